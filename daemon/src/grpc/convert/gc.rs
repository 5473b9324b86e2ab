//! Collections, plans and usage as messages.

use varve_proto::v1;
use varve_store::{GcAction, GcPhase, GcPlan, GcProgress, GcReport, GcStatus, GcStep, Usage};

use super::timestamp;
use crate::{
    limits,
    service::{GcChoice, GcState},
};

pub(in crate::grpc) fn gc_choice(options: Option<v1::GcOptions>) -> GcChoice {
    let options = options.unwrap_or_default();
    GcChoice {
        rewrite_dead_percent: options.rewrite_dead_percent,
        bytes_per_second: options.bytes_per_second,
    }
}

pub(in crate::grpc) fn gc_state(state: GcState) -> v1::RunGcResponse {
    use v1::run_gc_response::State;

    v1::RunGcResponse {
        state: Some(match state {
            GcState::Running(progress) => State::Progress(gc_progress(progress)),
            GcState::Ended(report) => State::Report(gc_report(report)),
        }),
    }
}

pub(in crate::grpc) fn gc_status(status: GcStatus) -> v1::GcStatus {
    use v1::gc_ended::Outcome;

    let running = status
        .running
        .map(|(started_at_ns, progress)| v1::GcRunning {
            started_at: Some(timestamp(started_at_ns)),
            progress: Some(gc_progress(progress)),
        });
    let last = status.last.map(|last| v1::GcEnded {
        started_at: Some(timestamp(last.started_at_ns)),
        ended_at: Some(timestamp(last.ended_at_ns)),
        outcome: Some(match last.outcome {
            Ok(report) => Outcome::Report(gc_report(report)),
            Err(error) => Outcome::Error(error),
        }),
    });
    v1::GcStatus { running, last }
}

/// Approximate bytes of dead records that the last collection has left: the files that it removed
/// had headers, too.
pub(in crate::grpc) fn dead_bytes(status: &GcStatus) -> Option<u64> {
    let report = status.last.as_ref()?.outcome.as_ref().ok()?;
    // Stopped before it had counted them.
    if report.passes == 0 {
        return None;
    }
    let returned_bytes = report.removed_bytes.saturating_sub(report.copied_bytes);
    Some(report.dead_bytes.saturating_sub(returned_bytes))
}

fn gc_progress(progress: GcProgress) -> v1::GcProgress {
    let phase = match progress.phase {
        GcPhase::Marking => v1::GcPhase::Marking,
        GcPhase::Sweeping => v1::GcPhase::Sweeping,
    };
    v1::GcProgress {
        phase: phase.into(),
        packs_planned: progress.packs_planned,
        packs_removed: progress.packs_removed,
        removed_bytes: progress.removed_bytes,
        copied_bytes: progress.copied_bytes,
    }
}

fn gc_report(report: GcReport) -> v1::GcReport {
    v1::GcReport {
        packs_removed: report.packs_removed,
        removed_bytes: report.removed_bytes,
        copied_bytes: report.copied_bytes,
        dead_bytes: report.dead_bytes,
        live_bytes: report.live_bytes,
        packs_held: report.packs_held,
        held_by: report.held_by,
        damage: report.damage,
        packs_damaged: report.packs_damaged,
        stopped: report.stopped,
    }
}

pub(in crate::grpc) fn gc_plan(plan: GcPlan) -> v1::GcPlan {
    let mut answer = v1::GcPlan {
        usage: Some(v1::StoreUsage {
            logical_bytes: plan.usage.logical_bytes,
            data_bytes: plan.usage.data_bytes,
            unique_bytes: plan.usage.unique_bytes,
            live_bytes: plan.usage.live_bytes,
            dead_bytes: plan.usage.dead_bytes,
            file_bytes: plan.usage.file_bytes,
            free_bytes: plan.free_bytes,
        }),
        ..v1::GcPlan::default()
    };
    for step in &plan.steps {
        let packs = step.action.packs().count() as u64;
        match step.action {
            GcAction::Drop(_) => answer.packs_dropped += packs,
            GcAction::Rewrite(_) => answer.packs_rewritten += packs,
            GcAction::Merge(_) => answer.packs_merged += packs,
        }
        answer.copied_bytes += step.copied_bytes;
        answer.removed_bytes += step.returned_bytes;
    }
    let mut shown = 0;
    let steps = plan.steps.into_iter().take_while(|step| {
        shown += step.action.packs().count();
        shown <= limits::GC_PACKS_SHOWN_MAX
    });
    answer.steps = steps.map(gc_step).collect();
    answer
}

fn gc_step(step: GcStep) -> v1::GcStep {
    let action = match step.action {
        GcAction::Drop(_) => v1::GcAction::Drop,
        GcAction::Rewrite(_) => v1::GcAction::Rewrite,
        GcAction::Merge(_) => v1::GcAction::Merge,
    };
    v1::GcStep {
        action: action.into(),
        packs: step.action.packs().map(|pack| pack.to_string()).collect(),
        copied_bytes: step.copied_bytes,
        removed_bytes: step.returned_bytes,
    }
}

pub(in crate::grpc) fn usage(usage: Usage) -> v1::Usage {
    v1::Usage {
        exclusive_bytes: usage.exclusive_bytes,
        shared_bytes: usage.shared_bytes.unwrap_or(0),
    }
}
