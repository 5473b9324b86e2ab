//! Secrets: tokens, which prove to a daemon for whom a client acts, and those of access keys.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;
use tonic::codegen::http::HeaderValue;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// The first characters of every token.
const PREFIX: &str = "varve_";
/// Limit on the length of a token, in bytes. Today's have 75.
const BYTES_MAX: usize = 512;
/// Limit on the length of a file with a token, in bytes.
const FILE_BYTES_MAX: u64 = 4096;
/// The permissions that users other than the owner of that file must not have.
const OTHERS: u32 = 0o077;

/// The secret of a token. Whoever has it acts for the token's account.
///
/// It is shown by [`expose`](Self::expose) only: `Debug` leaves it out, and there is no `Display`.
///
/// ```
/// use varve_client::TokenSecret;
///
/// let secret = TokenSecret::new("varve_0123456789abcdef")?;
/// assert_eq!(format!("{secret:?}"), "TokenSecret(..)");
/// # Ok::<(), varve_client::Error>(())
/// ```
#[derive(Clone, Eq, PartialEq)]
pub struct TokenSecret(String);

impl TokenSecret {
    /// Takes a token as the daemon has shown it: `varve_` and what follows, without a line feed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a text that is no token. The error does not repeat it.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let rest = text.strip_prefix(PREFIX).unwrap_or_default();
        if rest.is_empty() || text.len() > BYTES_MAX || !rest.bytes().all(is_allowed) {
            let why = "it is not a token of Varve, which begins with varve_";
            return Err(Error::new(ErrorKind::Invalid, "read a token", why));
        }
        Ok(Self(text))
    }

    /// Reads the token in a file: one line, in a regular file that only its owner can read. Blocks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a file that is none of this; it is never repeated. Errors of the
    /// file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = path.to_string_lossy();
        // The path of an error would show it.
        if Self::is_like(&text) && !path.exists() {
            let why = "this is a token; --token-file takes the file that has it";
            return Err(Error::new(ErrorKind::Invalid, "read a token", why));
        }
        let what = format!("read the token in {text}");
        let token = read_secret_line(path, &what)?;
        Self::new(token).map_err(|error| Error::new(ErrorKind::Invalid, &what, error.why()))
    }

    /// Returns true if a text begins like a token, so that it must not be shown.
    #[must_use]
    pub fn is_like(text: &str) -> bool {
        text.trim_start().starts_with(PREFIX)
    }

    /// The token itself, to store or to pass on.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The value of the header `authorization`. It is marked as sensitive, so it is not shown
    /// either.
    pub(crate) fn header(&self) -> Result<HeaderValue> {
        let header = HeaderValue::try_from(format!("Bearer {}", self.0));
        let mut header = header.map_err(|_| {
            // The error of the header is not passed on: it may have the value.
            Error::internal("send a token", "it does not fit a header")
        })?;
        header.set_sensitive(true);
        Ok(header)
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

/// Length of the secret of an access key.
const SECRET_BYTES: usize = 40;

/// The secret of an access key. Who has it signs requests for the key's account.
///
/// It is shown by [`expose`](Self::expose) only: `Debug` leaves it out, and there is no `Display`.
#[derive(Clone, Eq, PartialEq)]
pub struct SecretAccessKey(Zeroizing<String>);

impl SecretAccessKey {
    /// Takes a secret as the daemon has shown it; `None` for any other text.
    pub(crate) fn new(text: String) -> Option<Self> {
        let text = Zeroizing::new(text);
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+/".contains(&byte);
        let is_one = text.len() == SECRET_BYTES && text.bytes().all(is_allowed);
        is_one.then_some(Self(text))
    }

    /// The secret itself, to store or to pass on.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretAccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretAccessKey(..)")
    }
}

/// Reads a secret in a file: one line, in a regular file that only its owner can read. Blocks.
/// Errors say what was to be done by `what`.
///
/// # Errors
///
/// [`ErrorKind::Invalid`] for a file that is none of this; it is never repeated. Errors of the
/// file.
pub fn read_secret_line(path: &Path, what: &str) -> Result<String> {
    let refuse = |why: String| Error::new(ErrorKind::Invalid, what, why);
    // Opening a pipe must not wait for its writer.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| Error::file(what, error))?;
    let found = file.metadata().map_err(|error| Error::file(what, error))?;
    if !found.is_file() {
        return Err(refuse("it is not a regular file".to_owned()));
    }
    if found.mode() & OTHERS != 0 {
        let name = shell_word(&path.to_string_lossy());
        return Err(refuse(format!(
            "other users may have access to it: `chmod 600 {name}` ends that"
        )));
    }
    let mut line = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut line);
    match read {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(refuse("it is not text".to_owned()));
        }
        read => read.map_err(|error| Error::file(what, error))?,
    };
    if line.len() as u64 > FILE_BYTES_MAX {
        return Err(refuse(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    let secret = line.strip_suffix('\n').unwrap_or(&line);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.contains('\n') {
        return Err(refuse("it has more than one line".to_owned()));
    }
    Ok(secret.to_owned())
}

/// A word of a shell's command line.
fn shell_word(text: &str) -> String {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "._-/~@%+=:".contains(char);
    if text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
        path::PathBuf,
    };

    use super::*;

    const TOKEN: &str = "varve_0123456789abcdef";

    #[test]
    fn a_secret_is_shown_by_nothing_but_its_own_method() {
        let text = "varve_0123-abcDEF.9";
        let secret = TokenSecret::new(text).unwrap();
        assert_eq!(secret.expose(), text);
        let header = secret.header().unwrap();
        assert_eq!(header.as_bytes(), b"Bearer varve_0123-abcDEF.9");
        for shown in [format!("{secret:?}"), format!("{header:?}")] {
            assert!(!shown.contains("0123"), "{shown}");
        }
    }

    #[test]
    fn a_text_that_is_no_token_is_refused_and_not_repeated() {
        let long = format!("varve_{}", "a".repeat(BYTES_MAX));
        for text in [
            "",
            "varve_",
            "hunter2",
            "varve_hunter2\n",
            "varve_hunter 2",
            "varve_hünter2",
            "Varve_hunter2",
            &long,
        ] {
            let error = TokenSecret::new(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(!shown.contains("nter") && !shown.contains("aaa"), "{shown}");
            }
        }
    }

    fn written(dir: &Path, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn one_line_is_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for end in ["", "\n", "\r\n"] {
            let path = written(dir.path(), "good", format!("{TOKEN}{end}"), 0o600);
            assert_eq!(TokenSecret::from_file(&path).unwrap().expose(), TOKEN);
            fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
            assert_eq!(TokenSecret::from_file(&path).unwrap().expose(), TOKEN);
            fs::remove_file(path).unwrap();
        }
        let long = format!("{TOKEN}{}", "a".repeat(5000));
        for (content, says) in [
            (&b""[..], "not a token"),
            (b"hunter2\n", "not a token"),
            (b"varve_hunter2\nvarve_hunter2\n", "more than one line"),
            (b"varve_hunter2\n\n", "more than one line"),
            (b"\xff\xfe", "not text"),
            (long.as_bytes(), "more than 4096 bytes"),
        ] {
            let path = written(dir.path(), "bad", content, 0o600);
            let error = TokenSecret::from_file(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            let text = format!("{error} {error:?}");
            assert!(text.contains(says) && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn files_of_others_and_what_is_no_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o640, 0o604, 0o660, 0o620] {
            let path = written(dir.path(), "it's open", TOKEN, mode);
            let error = TokenSecret::from_file(&path).unwrap_err().to_string();
            let how = format!("chmod 600 '{}/it'\\''s open'", dir.path().display());
            assert!(error.contains(&how) && !error.contains(TOKEN), "{error}");
        }
        let error = TokenSecret::from_file(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        let error = TokenSecret::from_file(&pipe).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let error = TokenSecret::from_file(Path::new(TOKEN))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("takes the file") && !error.contains(TOKEN),
            "{error}"
        );
    }
}
