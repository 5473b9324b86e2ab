//! One event and its line: `{"seq":7,"time":"2026-11-30T21:11:24.123456Z","account":...}`.
//!
//! Invariant: a line is at most [`LINE_BYTES_MAX`] long and has one line feed, at its end, for any
//! texts. Every text is cut to its bound, and every character that is not printable is escaped.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Deserialize;
use varve_content::printable::is_printable;

use super::limits::{
    ACCOUNT_BYTES_MAX, CHANGE_MESSAGE_BYTES_MAX, CHANGE_RESOURCES_BYTES_MAX, CHANGED_BYTES_MAX,
    FROM_BYTES_MAX, IDENTITY_BYTES_MAX, LINE_BYTES_MAX, REFUSAL_MESSAGE_BYTES_MAX,
    REFUSAL_RESOURCES_BYTES_MAX, REQUEST_BYTES_MAX, SEQ_MAX, WORD_BYTES_MAX,
};

/// The result of a change that was carried out.
pub const OK: &str = "ok";
/// The action of a line that says how many events were lost.
pub(super) const LOST: &str = "audit-lost";
/// The action of a line that says how many earlier lines the disk did not confirm.
pub(super) const UNSYNCED: &str = "audit-unsynced";
/// The action of a line that counts refusals of many kinds.
pub(super) const OTHERS: &str = "others";
/// The action of a call whose token is not taken: the call itself is not looked at.
pub const SHOW_TOKEN: &str = "ShowToken";
/// All of them that are no operations.
pub const EVENTS: [&str; 4] = [LOST, UNSYNCED, OTHERS, SHOW_TOKEN];

/// A change or a refusal. Texts may have any length and content.
#[derive(Debug, Clone, Copy, Default)]
pub struct Event<'a> {
    /// The account, 12 digits, if the caller has one.
    pub account: Option<&'a str>,
    /// The caller: `uid:0`, `token:tok-...`, `cert:CN`. Empty if nobody knows.
    pub identity: &'a str,
    /// The peer: `tcp:192.0.2.1:4711`, `unix:pid=4711,uid=0`.
    pub from: &'a str,
    /// The protocol: `grpc`, `nbd`.
    pub face: &'a str,
    /// The operation: `DeleteVolume`.
    pub action: &'a str,
    /// The resources, as the caller named them.
    pub resources: &'a str,
    /// [`OK`], or the kind of the error: `PermissionDenied`.
    pub result: &'a str,
    /// The text of the error.
    pub message: Option<&'a str>,
    /// The id of the request.
    pub request: Option<&'a str>,
    /// Ids of what was made, changed or deleted.
    pub changed: &'a [String],
}

/// An event as a reader finds it. Texts that the event did not have are empty.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Entry {
    /// The number of the line. Lines have ascending numbers without gaps: a gap shows that lines
    /// were removed.
    pub seq: u64,
    /// The time of the event; of several, that of the first one.
    #[serde(deserialize_with = "timestamp")]
    pub time: Timestamp,
    /// The time of the last of several events.
    #[serde(default, deserialize_with = "some_timestamp")]
    pub last: Option<Timestamp>,
    /// The number of events that the line stands for.
    #[serde(default = "one")]
    pub count: u64,
    #[serde(default)]
    pub account: Option<String>,
    #[serde(default)]
    pub identity: String,
    #[serde(default)]
    pub from: String,
    #[serde(default)]
    pub face: String,
    #[serde(default)]
    pub action: String,
    #[serde(default)]
    pub resources: String,
    #[serde(default)]
    pub result: String,
    #[serde(default)]
    pub message: Option<String>,
    #[serde(default)]
    pub request: Option<String>,
    #[serde(default)]
    pub changed: Vec<String>,
    /// Ids that had no room in `changed`.
    #[serde(default)]
    pub changed_more: u64,
}

fn one() -> u64 {
    1
}

fn timestamp<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(serde::de::Error::custom)
}

fn some_timestamp<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Option<Timestamp>, D::Error> {
    timestamp(from).map(Some)
}

impl Entry {
    /// The event of a line, or `None` if the line is damaged or of another kind.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        // Damage is often long, and an error of the parser costs more than this.
        if line.first() != Some(&b'{') {
            return None;
        }
        let entry: Self = serde_json::from_slice(line).ok()?;
        (entry.seq <= SEQ_MAX).then_some(entry)
    }

    /// The time of its last event.
    pub(super) fn until(&self) -> Timestamp {
        self.last.map_or(self.time, |last| last.max(self.time))
    }
}

/// An event that waits to be written. Its texts are escaped and cut already, so its memory is
/// bounded.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) time: Timestamp,
    pub(super) last: Option<Timestamp>,
    pub(super) count: u64,
    pub(super) body: Body,
    /// The number by which its caller waits for it; 0 if nobody does.
    pub(super) ticket: u64,
}

impl Waiting {
    pub(super) fn until(&self) -> Timestamp {
        self.last.map_or(self.time, |last| last.max(self.time))
    }

    /// Appends the line with this number.
    pub(super) fn write(&self, seq: u64, line: &mut String) {
        let start = line.len();
        // Writing to a string cannot fail.
        let _ = write!(line, r#"{{"seq":{seq},"time":"{:.6}""#, self.time);
        if self.count != 1 {
            let _ = write!(line, r#","count":{}"#, self.count);
        }
        if let Some(last) = self.last {
            let _ = write!(line, r#","last":"{last:.6}""#);
        }
        line.push_str(&self.body.0);
        line.push_str("}\n");
        debug_assert!(
            line.len() - start <= LINE_BYTES_MAX,
            "a line is {} bytes long",
            line.len() - start
        );
    }
}

/// The fields of an event in a line, from the comma before the first to the last.
#[derive(Debug)]
pub(super) struct Body(String);

impl Body {
    pub(super) fn of_change(event: &Event<'_>) -> Self {
        Self::new(event, CHANGE_RESOURCES_BYTES_MAX, CHANGE_MESSAGE_BYTES_MAX)
    }

    pub(super) fn of_refusal(event: &Event<'_>) -> Self {
        Self::new(
            event,
            REFUSAL_RESOURCES_BYTES_MAX,
            REFUSAL_MESSAGE_BYTES_MAX,
        )
    }

    /// A line of the log about itself.
    pub(super) fn of_log(action: &str, message: &str) -> Self {
        Self::of_change(&Event {
            action,
            message: Some(message),
            ..Event::default()
        })
    }

    fn new(event: &Event<'_>, resources: usize, message: usize) -> Self {
        let mut body = String::with_capacity(256);
        let mut text = |name: &str, text: Option<&str>, most| {
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                body.push_str(",\"");
                body.push_str(name);
                body.push_str("\":\"");
                escape(text, most, &mut body);
                body.push('"');
            }
        };
        text("account", event.account, ACCOUNT_BYTES_MAX);
        text("identity", Some(event.identity), IDENTITY_BYTES_MAX);
        text("from", Some(event.from), FROM_BYTES_MAX);
        text("face", Some(event.face), WORD_BYTES_MAX);
        text("action", Some(event.action), WORD_BYTES_MAX);
        text("resources", Some(event.resources), resources);
        text("result", Some(event.result), WORD_BYTES_MAX);
        text("message", event.message, message);
        text("request", event.request, REQUEST_BYTES_MAX);
        changed(event.changed, &mut body);
        Self(body)
    }
}

/// Appends the list of ids, as many as there is room for, and the number of the others.
fn changed(ids: &[String], body: &mut String) {
    if ids.is_empty() {
        return;
    }
    body.push_str(",\"changed\":[");
    let mut room = CHANGED_BYTES_MAX;
    let mut shown = 0;
    for id in ids {
        let before = body.len();
        body.push_str(if shown == 0 { "\"" } else { ",\"" });
        escape(id, REQUEST_BYTES_MAX, body);
        body.push('"');
        let taken = body.len() - before;
        let Some(rest) = room.checked_sub(taken) else {
            body.truncate(before);
            break;
        };
        room = rest;
        shown += 1;
    }
    body.push(']');
    let more = ids.len() - shown;
    if more > 0 {
        let _ = write!(body, r#","changed_more":{more}"#);
    }
}

/// Appends text as the inside of a JSON string, at most `most` bytes. Text that is cut ends with
/// three dots.
pub(super) fn escape(text: &str, most: usize, line: &mut String) {
    const DOTS: &str = "...";
    let start = line.len();
    // The end of what stays if the text has to be cut.
    let mut kept = start;
    for char in text.chars() {
        match char {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            char if is_printable(char) => line.push(char),
            char => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    let _ = write!(line, "\\u{unit:04x}");
                }
            }
        }
        let length = line.len() - start;
        if length > most {
            line.truncate(kept);
            line.push_str(DOTS);
            return;
        }
        if length + DOTS.len() <= most {
            kept = line.len();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn line(event: &Event<'_>) -> String {
        let waiting = Waiting {
            time: "2026-11-30T21:11:24.123456Z".parse().unwrap(),
            last: None,
            count: 1,
            body: Body::of_change(event),
            ticket: 0,
        };
        let mut line = String::new();
        waiting.write(7, &mut line);
        line
    }

    /// Readers outside of this repository parse these bytes. Fields may be added, not changed.
    #[test]
    fn the_form_of_a_line_stays() {
        let event = Event {
            account: Some("000000000042"),
            identity: "token:tok-1",
            from: "tcp:192.0.2.1:4",
            face: "grpc",
            action: "DeleteVolume",
            resources: "volume \"db\"",
            result: OK,
            message: None,
            request: Some("r-1"),
            changed: &["a".to_owned(), "b".to_owned()],
        };
        assert_eq!(
            line(&event),
            concat!(
                r#"{"seq":7,"time":"2026-11-30T21:11:24.123456Z","account":"000000000042","#,
                r#""identity":"token:tok-1","from":"tcp:192.0.2.1:4","face":"grpc","#,
                r#""action":"DeleteVolume","resources":"volume \"db\"","result":"ok","#,
                r#""request":"r-1","changed":["a","b"]}"#,
                "\n"
            )
        );
        let entry = Entry::parse(line(&event).as_bytes()).unwrap();
        assert_eq!(entry.seq, 7);
        assert_eq!(entry.count, 1);
        assert_eq!(entry.resources, "volume \"db\"");
        assert_eq!(entry.changed, ["a", "b"]);
        assert_eq!(entry.message, None);
    }

    #[test]
    fn any_texts_give_one_line_of_bounded_length() {
        for piece in [
            "\0",
            "\n",
            "\"",
            "\\",
            "x",
            "ü",
            "\u{2028}",
            "\u{e0001}",
            "\u{1b}[2J\r",
            "👩\u{202e}",
        ] {
            let long = piece.repeat((1 << 20) / piece.len());
            let ids = vec![piece.repeat(1000); 300];
            let event = Event {
                account: Some(&long),
                identity: &long,
                from: &long,
                face: &long,
                action: &long,
                resources: &long,
                result: &long,
                message: Some(&long),
                request: Some(&long),
                changed: &ids,
            };
            let line = line(&event);
            assert!(line.len() <= LINE_BYTES_MAX, "{piece:?}: {}", line.len());
            assert!(line.len() > LINE_BYTES_MAX / 2, "{piece:?}: {}", line.len());
            assert_eq!(line.find('\n'), Some(line.len() - 1), "{piece:?}");
            assert!(line.trim_end().chars().all(is_printable), "{piece:?}");
            let entry = Entry::parse(line.as_bytes()).unwrap();
            let message = entry.message.unwrap();
            let kept = message.strip_suffix("...").unwrap();
            assert!(long.starts_with(kept) && !kept.is_empty(), "{piece:?}");
            let shown = u64::try_from(entry.changed.len()).unwrap();
            assert_eq!(shown + entry.changed_more, 300, "{piece:?}");
        }
    }

    #[test]
    fn text_is_cut_only_if_it_is_too_long() {
        let cut = |text: &str, most| {
            let mut line = String::new();
            escape(text, most, &mut line);
            line
        };
        assert_eq!(cut("12345678", 8), "12345678");
        assert_eq!(cut("123456789", 8), "12345...");
        assert_eq!(cut("\u{1}\u{1}", 12), "\\u0001\\u0001");
        assert_eq!(cut("\u{1}\u{1}", 11), "\\u0001...");
        assert_eq!(cut("1234üü", 8), "1234üü");
        assert_eq!(cut("1234üü9", 8), "1234...");
    }

    #[test]
    fn lines_that_are_no_events_are_none() {
        for line in [
            "",
            "{}",
            "[1]",
            "{\"seq\":1}",
            "{\"seq\":1,\"time\":\"now\"}",
            "{\"seq\":18446744073709551615,\"time\":\"2026-11-30T21:11:24Z\"}",
            "{\"seq\":1,\"time\":\"2026-11-30T21:11:24Z\"",
        ] {
            assert_eq!(Entry::parse(line.as_bytes()), None, "{line}");
        }
        let least = br#"{"seq":1,"time":"2026-11-30T21:11:24Z","later":[{}]}"#;
        assert_eq!(Entry::parse(least).unwrap().seq, 1);
    }
}
