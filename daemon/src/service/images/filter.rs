//! Filters of listings of images, with the names and rules of Amazon's `DescribeImages`.
//!
//! All filters have to pass, and of each one value. A value matches the whole text: `*` stands for
//! any number of characters, `?` for none or one, and a backslash makes the next one stand for
//! itself. A filter of something of which an image has several passes if one of them does.

use std::{borrow::Cow, collections::BTreeMap};

use varve_store::{Architecture, BootMode, DeviceSource, Image, ImageRecord, ImageState, Platform};

use crate::{
    auth::Directory,
    limits,
    service::{
        error::{Error, Result},
        request,
    },
};

/// A filter as a caller wrote it.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub(crate) name: String,
    pub(crate) values: Vec<String>,
}

/// Names of filters that look at the record.
const OF_RECORD: [&str; 21] = [
    "architecture",
    "block-device-mapping.delete-on-termination",
    "block-device-mapping.device-name",
    "block-device-mapping.snapshot-id",
    "block-device-mapping.volume-size",
    "boot-mode",
    "creation-date",
    "description",
    "hypervisor",
    "image-id",
    "image-type",
    "is-public",
    "manifest-location",
    "name",
    "owner-alias",
    "owner-id",
    "platform",
    "root-device-name",
    "root-device-type",
    "tag-key",
    "virtualization-type",
];
/// Names of filters that look at what the snapshots make of it.
const OF_STATE: [&str; 2] = ["state", "state-reason-message"];
const TAG: &str = "tag:";

/// Filters that were checked.
#[derive(Debug)]
pub(super) struct Filters<'a>(Vec<Checked<'a>>);

/// A filter that was checked.
#[derive(Debug)]
struct Checked<'a> {
    name: &'a str,
    patterns: Vec<Pattern>,
}

/// What a value of a filter matches.
#[derive(Debug)]
enum Pattern {
    /// This text.
    Plain(String),
    /// More than one text.
    Wild(Vec<Part>),
}

impl<'a> Filters<'a> {
    pub(super) fn new(filters: &'a [Filter]) -> Result<Self> {
        request::at_most(
            "filters",
            "filters",
            filters.len(),
            limits::LIST_FILTERS_MAX,
        )?;
        let mut checked = Vec::with_capacity(filters.len());
        let mut wild_chars = 0;
        for Filter { name, values } in filters {
            let is_known = OF_RECORD.contains(&&**name)
                || OF_STATE.contains(&&**name)
                || name.strip_prefix(TAG).is_some_and(|key| !key.is_empty());
            if !is_known {
                let shown: String = name.chars().take(limits::QUOTED_CHARS_MAX).collect();
                return Err(Error::field(
                    "filters",
                    format!("there is no filter {shown:?}"),
                ));
            }
            if values.is_empty() {
                return Err(Error::field("filters", format!("{name} has no values")));
            }
            request::at_most("filters", "values", values.len(), limits::FILTER_VALUES_MAX)?;
            let longest = values.iter().map(|value| value.chars().count()).max();
            let most = limits::FILTER_VALUE_CHARS_MAX;
            request::at_most("filters", "characters", longest.unwrap_or_default(), most)?;
            let patterns: Vec<_> = values.iter().map(|value| Pattern::of(value)).collect();
            wild_chars += patterns.iter().map(Pattern::wild_chars).sum::<usize>();
            checked.push(Checked { name, patterns });
        }
        // Each of them is tried at each character of each text.
        let unit = "characters of values with wildcards";
        request::at_most("filters", unit, wild_chars, limits::FILTER_WILD_CHARS_MAX)?;
        Ok(Self(checked))
    }

    /// Tags that an image has to have with just these values: an index finds it by them.
    pub(super) fn exact_tags(&self) -> BTreeMap<String, String> {
        let mut tags = BTreeMap::new();
        for Checked { name, patterns } in &self.0 {
            if let (Some(key), [Pattern::Plain(value)]) = (name.strip_prefix(TAG), &**patterns)
                && is_index_key(key, value)
            {
                tags.entry(key.to_owned()).or_insert_with(|| value.clone());
            }
        }
        tags
    }

    /// Returns true if a record passes all that look at it. `is_own`: the caller sees its tags.
    pub(super) fn pass_record(
        &self,
        record: &ImageRecord,
        is_own: bool,
        accounts: &Directory,
    ) -> bool {
        self.0.iter().all(|filter| {
            if OF_STATE.contains(&filter.name) {
                return true;
            }
            if let Some(key) = filter.name.strip_prefix(TAG) {
                let value = record.tags.get(key).filter(|_| is_own);
                return value.is_some_and(|value| filter.matches(value));
            }
            let texts = texts(filter.name, record, is_own, accounts);
            texts.iter().any(|text| filter.matches(text))
        })
    }

    /// Returns true if an image passes all that look at its state.
    pub(super) fn pass_state(&self, image: &Image) -> bool {
        self.0.iter().all(|filter| match filter.name {
            "state" => filter.matches(&image.state.to_string()),
            "state-reason-message" => match &image.state {
                ImageState::Failed { reason } => filter.matches(reason),
                _ => false,
            },
            _ => true,
        })
    }
}

/// Returns true if a tag may be a key of the index at all: others are found by no index.
fn is_index_key(key: &str, value: &str) -> bool {
    !key.contains('\0') && !value.contains('\0')
}

impl Checked<'_> {
    fn matches(&self, text: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(text))
    }
}

impl Pattern {
    fn of(value: &str) -> Self {
        let parts = parts(value);
        let plain = parts.iter().map(|part| match part {
            Part::One(char) => Some(*char),
            Part::Maybe | Part::Any => None,
        });
        match plain.collect() {
            Some(text) => Self::Plain(text),
            None => Self::Wild(parts),
        }
    }

    /// Its length, if it takes more than one comparison.
    const fn wild_chars(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Wild(parts) => parts.len(),
        }
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Plain(wanted) => wanted == text,
            Self::Wild(parts) => matches(parts, text),
        }
    }
}

/// What a filter of this name looks at.
fn texts<'a>(
    name: &str,
    record: &'a ImageRecord,
    is_own: bool,
    accounts: &Directory,
) -> Vec<Cow<'a, str>> {
    let one = |text: &'a str| vec![Cow::Borrowed(text)];
    let made = |text: String| vec![Cow::Owned(text)];
    let devices = record.devices.iter();
    match name {
        "architecture" => one(match record.architecture {
            Architecture::X86_64 => "x86_64",
            Architecture::Arm64 => "arm64",
            Architecture::I386 => "i386",
        }),
        "block-device-mapping.delete-on-termination" => devices
            .filter(|device| !matches!(device.source, DeviceSource::Ephemeral { .. }))
            .map(|device| Cow::Owned(device.delete_on_termination.to_string()))
            .collect(),
        "block-device-mapping.device-name" => {
            devices.map(|device| Cow::Borrowed(&*device.name)).collect()
        }
        "block-device-mapping.snapshot-id" => devices
            .filter_map(|device| Some(Cow::Owned(device.source.snapshot()?.to_string())))
            .collect(),
        "block-device-mapping.volume-size" => devices
            .filter_map(|device| device.source.size_bytes())
            .map(|bytes| Cow::Owned(bytes.div_ceil(1 << 30).to_string()))
            .collect(),
        "boot-mode" => match record.boot_mode {
            Some(BootMode::Bios) => one("legacy-bios"),
            Some(BootMode::Uefi) => one("uefi"),
            Some(BootMode::UefiPreferred) => one("uefi-preferred"),
            None => Vec::new(),
        },
        "creation-date" => made(instant(record.created_at_ns)),
        "description" => one(&record.description),
        "hypervisor" => one("xen"),
        "image-id" => made(record.id.to_string()),
        "image-type" => one("machine"),
        "is-public" => made(record.sharing.everybody.to_string()),
        "manifest-location" => made(format!("{}/{}", record.owner, record.name)),
        "name" => one(&record.name),
        "owner-alias" => {
            let owner = accounts.get(record.owner);
            let alias = owner.map(|owner| owner.alias.clone());
            alias
                .filter(|alias| !alias.is_empty())
                .map_or_else(Vec::new, made)
        }
        "owner-id" => made(record.owner.to_string()),
        // Amazon's Linux images have no platform. Who looks for them finds them by its details.
        "platform" => one(match record.platform {
            Platform::Linux => "Linux/UNIX",
            Platform::Windows => "windows",
        }),
        "root-device-name" => one(&record.root_device),
        "root-device-type" => one("ebs"),
        "tag-key" if is_own => record
            .tags
            .keys()
            .map(|key| Cow::Borrowed(&**key))
            .collect(),
        "virtualization-type" => one("hvm"),
        _ => Vec::new(),
    }
}

/// An instant as Amazon shows it: `2026-12-01T17:00:00.000Z`.
fn instant(at_ns: u64) -> String {
    let seconds = i64::try_from(at_ns / 1_000_000_000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |at| format!("{at:.3}"))
}

/// A part of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// This character.
    One(char),
    /// None or one.
    Maybe,
    /// Any number.
    Any,
}

fn parts(pattern: &str) -> Vec<Part> {
    let mut chars = pattern.chars();
    let mut parts = Vec::with_capacity(pattern.len());
    while let Some(char) = chars.next() {
        let part = match char {
            '*' => Part::Any,
            '?' => Part::Maybe,
            '\\' => Part::One(chars.next().unwrap_or('\\')),
            other => Part::One(other),
        };
        // Several of them in a row are no more than one, and would only take time.
        if part != Part::Any || parts.last() != Some(&Part::Any) {
            parts.push(part);
        }
    }
    parts
}

/// Returns true if a pattern matches the whole text.
///
/// The time is at most the product of both lengths, whatever the pattern: it follows all parts of
/// the pattern at which the text read so far may stand.
fn matches(parts: &[Part], text: &str) -> bool {
    // Those that may match nothing are also passed over.
    let opened = |places: &mut Vec<bool>| {
        for (place, part) in parts.iter().enumerate() {
            if places.get(place) == Some(&true)
                && !matches!(part, Part::One(_))
                && let Some(next) = places.get_mut(place + 1)
            {
                *next = true;
            }
        }
    };
    let mut places = vec![false; parts.len() + 1];
    if let Some(first) = places.first_mut() {
        *first = true;
    }
    opened(&mut places);
    for char in text.chars() {
        let mut after = vec![false; parts.len() + 1];
        for (place, part) in parts.iter().enumerate() {
            if places.get(place) != Some(&true) {
                continue;
            }
            let reached = match part {
                Part::Any => place,
                Part::Maybe => place + 1,
                Part::One(wanted) if *wanted == char => place + 1,
                Part::One(_) => continue,
            };
            if let Some(reached) = after.get_mut(reached) {
                *reached = true;
            }
        }
        opened(&mut after);
        places = after;
    }
    places.last() == Some(&true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    /// The same by trying everything.
    fn slowly(parts: &[Part], text: &[char]) -> bool {
        match (parts.split_first(), text.split_first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some((Part::One(wanted), rest)), Some((char, behind))) => {
                wanted == char && slowly(rest, behind)
            }
            (Some((Part::One(_), _)), None) => false,
            (Some((Part::Maybe, rest)), Some((_, behind))) => {
                slowly(rest, text) || slowly(rest, behind)
            }
            (Some((Part::Any, rest)), Some((_, behind))) => {
                slowly(rest, text) || slowly(parts, behind)
            }
            (Some((Part::Maybe | Part::Any, rest)), None) => slowly(rest, text),
        }
    }

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, does) in [
            ("", "", true),
            ("", "a", false),
            ("web", "web", true),
            ("web", "web-1", false),
            ("web*", "web-1", true),
            ("*", "", true),
            ("*-1", "web-1", true),
            ("w?b", "web", true),
            ("w?b", "wb", true),
            ("w?b", "weeb", false),
            ("WEB", "web", false),
            (r"a\*", "a*", true),
            (r"a\*", "ab", false),
            (r"a\\", r"a\", true),
            (r"a\", r"a\", true),
            ("a b", "a b", true),
            ("gr?n", "grün", true),
            ("2026-11-*", "2026-11-28T17:00:00.000Z", true),
        ] {
            assert_eq!(
                Pattern::of(pattern).matches(text),
                does,
                "{pattern:?} {text:?}"
            );
        }
        // Who means harm gets no more than the product of both lengths.
        let pattern = "*a".repeat(100) + "b";
        assert!(!Pattern::of(&pattern).matches(&"a".repeat(1000)));
    }

    proptest! {
        #[test]
        fn it_is_what_trying_everything_finds(pattern in r"[ab*?\\]{0,8}", text in "[ab*]{0,8}") {
            let chars: Vec<_> = text.chars().collect();
            prop_assert_eq!(Pattern::of(&pattern).matches(&text), slowly(&parts(&pattern), &chars));
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        let filter = |name: &str, values: &[&str]| Filter {
            name: name.to_owned(),
            values: values.iter().map(|&value| value.to_owned()).collect(),
        };
        for good in ["name", "state", "tag:os", "tag:a:b", "tag-key"] {
            Filters::new(&[filter(good, &["x"])]).unwrap();
        }
        for bad in ["", "Name", "title", "tag:", "tag"] {
            let refused = Filters::new(&[filter(bad, &["x"])]).unwrap_err();
            assert!(
                refused.to_string().contains("there is no filter"),
                "{refused}"
            );
        }
        Filters::new(&[filter("name", &[])]).unwrap_err();
        let many = vec![filter("name", &["x"]); limits::LIST_FILTERS_MAX + 1];
        Filters::new(&many).unwrap_err();
        Filters::new(&[filter("name", &["x"; limits::FILTER_VALUES_MAX + 1])]).unwrap_err();
        Filters::new(&[filter("name", &[&"x".repeat(256)])]).unwrap_err();
        // Many plain values are taken, and not so many that match more than one text.
        Filters::new(&[filter("name", &[&*"x".repeat(255); 200])]).unwrap();
        let wild = "*".to_owned() + &"x".repeat(254);
        let all = [filter("name", &[&*wild; 20])];
        let refused = Filters::new(&all).unwrap_err().to_string();
        assert!(refused.contains("wildcards"), "{refused}");
    }

    #[test]
    fn only_plain_tags_are_looked_up() {
        let filter = |name: &str, values: &[&str]| Filter {
            name: name.to_owned(),
            values: values.iter().map(|&value| value.to_owned()).collect(),
        };
        let all = [
            filter("tag:os", &["debian"]),
            filter("tag:a", &["1", "2"]),
            filter("tag:b", &["x*"]),
            filter("name", &["y"]),
        ];
        let exact = Filters::new(&all).unwrap().exact_tags();
        assert_eq!(
            exact,
            BTreeMap::from([("os".to_owned(), "debian".to_owned())])
        );
    }
}
