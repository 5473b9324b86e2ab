//! Shows the progress of a transfer on standard error: a bar on a terminal, a line now and then
//! otherwise.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use varve_client::Progress;

use crate::output;

const BAR_PERIOD: Duration = Duration::from_millis(100);
const LINE_PERIOD: Duration = Duration::from_secs(5);

/// Drives `transfer` to its end and shows `progress` meanwhile, unless `quiet`.
pub(crate) async fn watch<T>(
    verb: &'static str,
    quiet: bool,
    progress: &Progress,
    transfer: impl Future<Output = T>,
) -> T {
    if quiet {
        return transfer.await;
    }
    let display = if stderr().is_terminal() {
        Display::bar(verb)
    } else {
        Display::lines(verb)
    };
    let mut transfer = std::pin::pin!(transfer);
    let mut ticks = tokio::time::interval(display.period());
    // The first tick comes at once, when there is nothing to show.
    ticks.tick().await;
    loop {
        tokio::select! {
            result = &mut transfer => return result,
            _ = ticks.tick() => display.show(progress),
        }
    }
}

enum Display {
    Bar(ProgressBar),
    Lines {
        verb: &'static str,
        started: Instant,
    },
}

impl Display {
    fn bar(verb: &'static str) -> Self {
        let bar = ProgressBar::no_length();
        let template = "{msg} {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(verb);
        Self::Bar(bar)
    }

    fn lines(verb: &'static str) -> Self {
        Self::Lines {
            verb,
            started: Instant::now(),
        }
    }

    fn period(&self) -> Duration {
        match self {
            Self::Bar(_) => BAR_PERIOD,
            Self::Lines { .. } => LINE_PERIOD,
        }
    }

    fn show(&self, progress: &Progress) {
        let (done, total) = (progress.done_bytes(), progress.total_bytes());
        match self {
            Self::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            Self::Lines { verb, started } => {
                output::tell(format_args!(
                    "{verb} {}",
                    line(done, total, started.elapsed())
                ));
            }
        }
    }
}

impl Drop for Display {
    /// Begins a new line, even if the transfer is given up: the message then has a line of its own.
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Progress, rate and remaining time.
fn line(done: u64, total: u64, elapsed: Duration) -> String {
    let rate = output::per_second(done, elapsed);
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let mut line = format!(
        "{} of {} ({percent} %), {}",
        output::size(done),
        output::size(total),
        output::rate(rate)
    );
    if rate > 0 && total > done {
        line.push_str(&format!(", {} s left", (total - done).div_ceil(rate)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let mib = 1 << 20;
        assert_eq!(
            line(100 * mib, 400 * mib, Duration::from_secs(2)),
            "100.0 MiB of 400.0 MiB (25 %), 50.0 MiB/s, 6 s left"
        );
        assert_eq!(line(0, 0, Duration::ZERO), "0 B of 0 B (0 %), 0 B/s");
    }
}
