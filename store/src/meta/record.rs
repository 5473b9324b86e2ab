//! Rules for names and tags of records, and the id and instant of new records.

use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};

use varve_content::printable::is_printable;

use super::{
    AccountId, AccountRecord, Identity, ImageId, Meta, Records as _, SnapshotContent, SnapshotId,
    SnapshotRecord, SnapshotState, VolumeId,
};
use crate::{
    Error, Result,
    format::{CatalogRecord as _, ID_BYTES, IdKind, RecordId, Tags},
    limits,
};

const NAME_PUNCTUATION: &str = "._-/:+@";

impl SnapshotRecord {
    /// The content of the snapshot.
    ///
    /// # Errors
    ///
    /// [`Error::NotCompleted`] while it is pending, and when it has failed.
    pub fn completed(&self) -> Result<SnapshotContent> {
        let (state, why) = match &self.state {
            SnapshotState::Completed(content) => return Ok(*content),
            SnapshotState::Pending => ("pending", "its content is on its way into the store"),
            SnapshotState::Failed { reason } => ("failed", &**reason),
        };
        Err(Error::NotCompleted {
            name: self.label().into_owned(),
            state,
            why: why.to_owned(),
        })
    }
}

impl<K: IdKind> RecordId<K> {
    /// A new id. Two are never equal in practice: of a million ids, with a probability of 1 in 590
    /// million.
    ///
    /// # Errors
    ///
    /// If the system has no random bytes.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; ID_BYTES];
        fill_random(&mut bytes)?;
        Ok(Self::from_low_bits(bytes))
    }
}

/// Fills a buffer with random bytes of the system, fit for keys.
///
/// # Errors
///
/// If the system has none.
pub fn fill_random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|source| Error::System {
        verb: "draw random numbers",
        source: io::Error::other(source.to_string()),
    })
}

/// The time in nanoseconds since 1970.
#[must_use]
pub fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Checks the name of a record of a kind (`what`): 1 to [`limits::NAME_CHARS_MAX`] letters and
/// digits of ASCII and any of `. _ - / : + @`, beginning with a letter or digit, and not of the
/// form of an id.
///
/// # Errors
///
/// [`Error::Invalid`], with what a name may be.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let invalid = |why: String| {
        Err(Error::Invalid(format!(
            "{what} name {}: {why}",
            shortened(name)
        )))
    };
    let Some(first) = name.chars().next() else {
        return Err(Error::Invalid(format!("a {what} name cannot be empty")));
    };
    let chars = name.chars().count();
    if chars > limits::NAME_CHARS_MAX {
        return invalid(format!(
            "{chars} characters, at most {} are allowed",
            limits::NAME_CHARS_MAX
        ));
    }
    let allowed = |char: char| char.is_ascii_alphanumeric() || NAME_PUNCTUATION.contains(char);
    if let Some(char) = name.chars().find(|char| !allowed(*char)) {
        return invalid(format!(
            "{char:?} is not allowed: only letters a-z and A-Z, digits and {NAME_PUNCTUATION}"
        ));
    }
    if !first.is_ascii_alphanumeric() {
        return invalid(format!(
            "begins with {first:?}, and must begin with a letter or digit"
        ));
    }
    if SnapshotId::is_of_its_form(name) || VolumeId::is_of_its_form(name) {
        return invalid("has the form of an id, which is not allowed for names".to_owned());
    }
    Ok(())
}

/// Checks the name or the alias (`what`) of an account: as [`check_name`], and not of the form of
/// an account's id, nor a word that stands for several accounts.
///
/// # Errors
///
/// [`Error::Invalid`], with what it may be.
pub(crate) fn check_account_name(what: &str, name: &str) -> Result<()> {
    check_name(&format!("account {what}"), name)?;
    let invalid = |why: &str| Err(Error::Invalid(format!("account {what} {name:?}: {why}")));
    if name.contains('/') || name.contains(':') {
        return invalid("'/' and ':' are not allowed");
    }
    if name.parse::<AccountId>().is_ok() {
        return invalid("has the form of an id, which is not allowed for names");
    }
    if ["self", "all", "public"].contains(&name) {
        return invalid("is reserved");
    }
    Ok(())
}

/// Checks the name of an image: letters and digits of ASCII, spaces and any of
/// `( ) [ ] . / - ' @ _` in the number of [`limits::IMAGE_NAME_CHARS`], as Amazon's names of
/// machine images, and not of the form of an id.
///
/// # Errors
///
/// [`Error::Invalid`], with what a name may be.
pub(crate) fn check_image_name(name: &str) -> Result<()> {
    const PUNCTUATION: &str = "()[]./-'@_";
    let invalid = |why: String| {
        Err(Error::Invalid(format!(
            "image name {}: {why}",
            shortened(name)
        )))
    };
    let (chars, allowed) = (name.chars().count(), limits::IMAGE_NAME_CHARS);
    if !allowed.contains(&chars) {
        let (least, most) = (allowed.start(), allowed.end());
        return invalid(format!("{chars} characters, {least} to {most} are allowed"));
    }
    let is_allowed =
        |char: char| char.is_ascii_alphanumeric() || char == ' ' || PUNCTUATION.contains(char);
    if let Some(char) = name.chars().find(|char| !is_allowed(*char)) {
        return invalid(format!(
            "{char:?} is not allowed: only letters a-z and A-Z, digits, spaces and {PUNCTUATION}"
        ));
    }
    if name.trim() != name {
        return invalid("begins or ends with a space".to_owned());
    }
    // What follows an id and a slash is a device, in names of exports.
    let before_slash = name.split('/').next().unwrap_or(name);
    if ImageId::is_of_its_form(before_slash) {
        return invalid("has the form of an id, which is not allowed for names".to_owned());
    }
    Ok(())
}

/// Checks the name of a device of an image: at most [`limits::DEVICE_NAME_CHARS_MAX`] printable
/// characters of ASCII, no spaces.
///
/// # Errors
///
/// [`Error::Invalid`], with what a name may be.
pub(crate) fn check_device_name(name: &str) -> Result<()> {
    let invalid = |why: String| {
        Err(Error::Invalid(format!(
            "device name {}: {why}",
            shortened(name)
        )))
    };
    let chars = name.chars().count();
    if chars == 0 || chars > limits::DEVICE_NAME_CHARS_MAX {
        let most = limits::DEVICE_NAME_CHARS_MAX;
        return invalid(format!("{chars} characters, 1 to {most} are allowed"));
    }
    match name.chars().find(|char| !char.is_ascii_graphic()) {
        Some(char) => invalid(format!(
            "{char:?} is not allowed: only ASCII without spaces"
        )),
        None => Ok(()),
    }
}

/// Checks the description of a token.
///
/// # Errors
///
/// [`Error::Invalid`], with what it may be.
pub(crate) fn check_description(text: &str) -> Result<()> {
    check_text("token", "description", text, limits::DESCRIPTION_CHARS_MAX)
}

/// Checks an identity of an account.
///
/// # Errors
///
/// [`Error::Invalid`], with what it may be.
pub(crate) fn check_identity(identity: &Identity) -> Result<()> {
    let Identity::Certificate(subject) = identity else {
        return Ok(());
    };
    if subject.len() > limits::SUBJECT_BYTES_MAX {
        return Err(Error::Invalid(format!(
            "the subject of a certificate has {} bytes, at most {} are allowed",
            subject.len(),
            limits::SUBJECT_BYTES_MAX
        )));
    }
    // It has fewer characters than bytes.
    check_text("certificate", "subject", subject, limits::SUBJECT_BYTES_MAX)
}

/// Checks that an account exists, which a new record will belong to.
pub(crate) fn check_owner(meta: &dyn Meta, owner: AccountId) -> Result<()> {
    if owner == AccountId::ADMINISTRATOR || meta.get::<AccountRecord>(&owner)?.is_some() {
        return Ok(());
    }
    Err(no_account(owner))
}

/// The error for an account that is not there.
pub(crate) fn no_account(id: AccountId) -> Error {
    Error::NotFound {
        what: AccountRecord::KIND.what,
        name: id.to_string(),
    }
}

/// Checks the tags of a record of a kind (`what`): at most [`limits::TAGS_MAX`], keys of 1 to
/// [`limits::TAG_KEY_CHARS_MAX`] characters, values of at most [`limits::TAG_VALUE_CHARS_MAX`],
/// [printable](is_printable) characters only.
///
/// # Errors
///
/// [`Error::Invalid`], with what tags may be.
pub fn check_tags(what: &str, tags: &Tags) -> Result<()> {
    if tags.len() > limits::TAGS_MAX {
        return Err(Error::Invalid(format!(
            "{} tags, a {what} has at most {}",
            tags.len(),
            limits::TAGS_MAX
        )));
    }
    for (key, value) in tags {
        if key.is_empty() {
            return Err(Error::Invalid(
                "the key of a tag cannot be empty".to_owned(),
            ));
        }
        let tag = format!("tag {}", shortened(key));
        check_text(&tag, "key", key, limits::TAG_KEY_CHARS_MAX)?;
        check_text(&tag, "value", value, limits::TAG_VALUE_CHARS_MAX)?;
    }
    Ok(())
}

/// Checks a text that is a `part` of something: its length, and that it is printable.
pub(crate) fn check_text(of: &str, part: &str, text: &str, most: usize) -> Result<()> {
    let invalid = |why: String| Err(Error::Invalid(format!("{of}: {why}")));
    let chars = text.chars().count();
    if chars > most {
        return invalid(format!(
            "its {part} has {chars} characters, at most {most} are allowed"
        ));
    }
    // They would break tables and terminals of everybody who lists them.
    if let Some(char) = text.chars().find(|char| !is_printable(*char)) {
        return invalid(format!(
            "its {part} has the character U+{:04X}, which is not printable and not allowed",
            u32::from(char)
        ));
    }
    Ok(())
}

/// Text from outside for an error, quoted, and cut where it is longer than anybody reads.
fn shortened(text: &str) -> String {
    const SHOWN_CHARS: usize = 160;
    match text.char_indices().nth(SHOWN_CHARS) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeMap;

    use super::*;

    fn refusal(result: Result<()>) -> String {
        match result {
            Err(Error::Invalid(message)) => message,
            other => format!("not refused: {other:?}"),
        }
    }

    #[test]
    fn names_that_are_allowed() {
        for name in [
            "a",
            "0",
            "debian-12",
            "Vm/disk0:2024-01-01T00:00:00+02@x_y.z",
            "snap-",
            "snap-0123",
        ] {
            check_name("snapshot", name).unwrap();
        }
        check_name("snapshot", &"n".repeat(limits::NAME_CHARS_MAX)).unwrap();
    }

    #[test]
    fn names_that_are_not_and_why() {
        for (name, why) in [
            ("", "cannot be empty"),
            ("-a", "begins with '-'"),
            ("/a", "begins with '/'"),
            ("a b", "' ' is not allowed"),
            ("a\n", "'\\n' is not allowed"),
            ("ä", "'ä' is not allowed"),
            ("snap-00112233445566778", "form of an id"),
            ("SNAP-00112233445566AAA", "form of an id"),
            ("vol-00112233445566778", "form of an id"),
            (
                &"n".repeat(limits::NAME_CHARS_MAX + 1),
                "129 characters, at most 128",
            ),
        ] {
            let message = refusal(check_name("snapshot", name));
            assert!(message.contains(why), "{message}");
        }
        assert!(
            refusal(check_name("snapshot", &"ä".repeat(1 << 20))).len() < 1000,
            "an error is short"
        );
    }

    #[test]
    fn tags_and_their_bounds() {
        let tag = |key: String, value: String| BTreeMap::from([(key, value)]);
        check_tags("volume", &BTreeMap::new()).unwrap();
        check_tags("volume", &tag("ключ".to_owned(), String::new())).unwrap();
        let longest = tag(
            "k".repeat(limits::TAG_KEY_CHARS_MAX),
            "v".repeat(limits::TAG_VALUE_CHARS_MAX),
        );
        check_tags("volume", &longest).unwrap();
        let many = |count: usize| (0..count).map(|n| (n.to_string(), String::new())).collect();
        check_tags("volume", &many(limits::TAGS_MAX)).unwrap();
        for (tags, why) in [
            (many(limits::TAGS_MAX + 1), "51 tags"),
            (tag(String::new(), "v".to_owned()), "cannot be empty"),
            (
                tag("k".repeat(128), String::new()),
                "key has 128 characters",
            ),
            (
                tag("k".to_owned(), "v".repeat(256)),
                "value has 256 characters",
            ),
            (
                tag("k\0".to_owned(), String::new()),
                "key has the character U+0000",
            ),
            (
                tag("k".to_owned(), "\u{1b}[2J".to_owned()),
                "value has the character U+001B",
            ),
            (
                tag("k".to_owned(), "good\u{202e}dab".to_owned()),
                "value has the character U+202E",
            ),
            (
                tag("one\u{2028}two".to_owned(), String::new()),
                "key has the character U+2028",
            ),
        ] {
            let message = refusal(check_tags("volume", &tags));
            assert!(message.contains(why), "{message}");
        }
    }

    #[test]
    fn random_ids_differ_and_read_back() {
        let (a, b) = (SnapshotId::random().unwrap(), SnapshotId::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.to_string().parse::<SnapshotId>().unwrap(), a);
        assert!(SnapshotId::is_of_its_form(&a.to_string()));
    }
}
