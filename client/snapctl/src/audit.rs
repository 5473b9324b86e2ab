//! `snapctl audit`: what was changed and refused.

use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;
use varve_client::{AuditEvent, AuditQuery, Client};

use crate::{
    Options,
    age::parse_age,
    exit::Failure,
    output::{self, Output},
};

/// Arguments of `audit`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The daemon writes a line for each change and each refusal, see docs/operations.md. Refusals that are \
alike within a second have one line with their number.")]
pub(crate) struct Audit {
    /// Only the events of this time, as in 12h or 30d
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    since: Option<Duration>,
    /// Only the events of this account: its id, name or alias
    #[arg(long)]
    account: Option<String>,
    /// Only the events with this action, as in DeleteVolume
    #[arg(long)]
    action: Option<String>,
    /// Show the last events only, this many at most; 0: all
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 100)]
    last: usize,
}

/// An event as JSON, one on a line.
#[derive(Serialize)]
struct EventJson<'a> {
    number: u64,
    time: Option<String>,
    account: Option<&'a str>,
    identity: &'a str,
    from: &'a str,
    protocol: &'a str,
    action: &'a str,
    resources: &'a str,
    result: &'a str,
    message: &'a str,
    request: &'a str,
    changed: &'a [String],
    changed_more: u64,
    count: u64,
}

impl<'a> From<&'a AuditEvent> for EventJson<'a> {
    fn from(event: &'a AuditEvent) -> Self {
        Self {
            number: event.number,
            time: output::rfc3339(event.time),
            account: Some(&*event.account).filter(|account| !account.is_empty()),
            identity: &event.identity,
            from: &event.from,
            protocol: &event.protocol,
            action: &event.action,
            resources: &event.resources,
            result: &event.result,
            message: &event.message,
            request: &event.request,
            changed: &event.changed,
            changed_more: event.changed_more,
            count: event.count,
        }
    }
}

/// The output for programs.
#[derive(Serialize)]
struct AuditJson<'a> {
    events: Vec<EventJson<'a>>,
    damaged_lines: u64,
}

impl Audit {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        let client = options.connect().await?;
        let (events, damaged_lines) = self.read(&client).await?;
        if options.output == Output::Json {
            return output::json(&AuditJson {
                events: events.iter().map(EventJson::from).collect(),
                damaged_lines,
            });
        }
        if damaged_lines > 0 {
            options.remark(format_args!(
                "{damaged_lines} damaged lines of the log were skipped"
            ));
        }
        const HEADINGS: [&str; 9] = [
            "TIME", "ACCOUNT", "IDENTITY", "+FROM", "ACTION", "ON", "RESULT", "+CHANGED",
            "+MESSAGE",
        ];
        let mut table = output::table(&HEADINGS, options.output);
        for event in &events {
            let or_none = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
            let result = match event.count {
                1 => event.result.clone(),
                count => format!("{} x {count}", event.result),
            };
            table.add_row([
                output::time(event.time),
                or_none(&event.account),
                or_none(&event.identity),
                event.from.clone(),
                event.action.clone(),
                or_none(&event.resources),
                result,
                event.changed.join(" "),
                event.message.clone(),
            ]);
        }
        table.write("events")
    }

    /// The events, and how many lines are damaged.
    async fn read(&self, client: &Client) -> Result<(Vec<AuditEvent>, u64), Failure> {
        let since = self
            .since
            .and_then(|age| SystemTime::now().checked_sub(age));
        let mut query = AuditQuery {
            since,
            account: self.account.clone(),
            action: self.action.clone(),
            ..AuditQuery::default()
        };
        let (mut events, mut damaged_lines) = (Vec::new(), 0);
        loop {
            let page = client.audit(&query).await?;
            events.extend(page.events);
            damaged_lines += page.damaged_lines;
            // Only the last ones are shown, so only these are kept.
            if self.last > 0 && events.len() > self.last {
                events.drain(..events.len() - self.last);
            }
            if !page.has_more {
                return Ok((events, damaged_lines));
            }
            query.after = page.next_after;
        }
    }
}
