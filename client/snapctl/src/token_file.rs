//! Files with a secret, such as a token, an access key or the name of an export with its ticket:
//! reading one, and writing a new one.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use varve_client::{Error, ErrorKind, Result, TokenSecret};
use varve_nbd::{ExportName, split_ticket};

/// Limit on the length of a file, in bytes.
const BYTES_MAX: u64 = 4096;
/// The permissions that users other than the owner must not have.
const OTHERS: u32 = 0o077;

/// Reads the token in a file: one line, in a regular file that only its owner can read.
///
/// # Errors
///
/// [`ErrorKind::Invalid`] for a file that is none of this; it is never repeated. Errors of the
/// file.
pub(crate) fn read(path: &Path) -> Result<TokenSecret> {
    let text = path.to_string_lossy();
    // The path of an error would show it.
    if TokenSecret::is_like(&text) && !path.exists() {
        let why = "this is a token; --token-file takes the file that has it";
        return Err(Error::new(ErrorKind::Invalid, "read a token", why));
    }
    let what = format!("read the token in {text}");
    let token = read_line(path, &what)?;
    TokenSecret::new(token).map_err(|error| Error::new(ErrorKind::Invalid, &what, error.why()))
}

/// Reads the name of an export with its ticket, in a file of the same kind.
///
/// # Errors
///
/// As for [`read`].
pub(crate) fn read_ticketed_export(path: &Path) -> Result<String> {
    let text = path.to_string_lossy();
    if split_ticket(&text).is_some() && !path.exists() {
        let why = "this is a ticket; --ticket-file takes the file that has it";
        return Err(Error::new(ErrorKind::Invalid, "read a ticket", why));
    }
    let what = format!("read the ticket in {text}");
    let name = read_line(path, &what)?;
    match ExportName::parse(&name) {
        Some(ExportName::Volume(key)) if split_ticket(key).is_some() => Ok(name),
        _ => {
            let why = "it does not have the name of an export with a ticket, volume/ID@N:TICKET";
            Err(Error::new(ErrorKind::Invalid, what, why))
        }
    }
}

/// Reads the line in a file that only its owner can read.
fn read_line(path: &Path, what: &str) -> Result<String> {
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
    let read = file.take(BYTES_MAX + 1).read_to_string(&mut line);
    match read {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(refuse("it is not text".to_owned()));
        }
        read => read.map_err(|error| Error::file(what, error))?,
    };
    if line.len() as u64 > BYTES_MAX {
        return Err(refuse(format!("it has more than {BYTES_MAX} bytes")));
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

/// A new file for a secret. It is removed again unless the secret gets into it.
#[derive(Debug)]
pub(crate) struct NewSecretFile {
    path: PathBuf,
    file: File,
    is_written: bool,
}

impl NewSecretFile {
    /// Makes an empty file that only its owner can read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if there is one; errors of the file.
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        let what = format!("create {}", path.display());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::file(&what, error))?;
        // The default list of a directory may add others.
        let narrowed = file.set_permissions(Permissions::from_mode(0o600));
        let new = Self {
            path,
            file,
            is_written: false,
        };
        narrowed.map_err(|error| Error::file(&what, error))?;
        Ok(new)
    }

    /// Writes the secret and a line feed, and keeps the file.
    ///
    /// # Errors
    ///
    /// Errors of the file.
    pub(crate) fn write(mut self, secret: &str) -> Result<()> {
        let written = writeln!(self.file, "{secret}");
        let written = written.and_then(|()| self.file.sync_all());
        written.map_err(|error| Error::file(format!("write {}", self.path.display()), error))?;
        self.is_written = true;
        Ok(())
    }
}

impl Drop for NewSecretFile {
    fn drop(&mut self) {
        if !self.is_written {
            // Nothing is lost with it, and the error that is told is the one before.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const TOKEN: &str = "varve_0123456789abcdef";

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
            assert_eq!(read(&path).unwrap().expose(), TOKEN);
            fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
            assert_eq!(read(&path).unwrap().expose(), TOKEN);
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
            let error = read(&path).unwrap_err();
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
            let error = read(&path).unwrap_err().to_string();
            let how = format!("chmod 600 '{}/it'\\''s open'", dir.path().display());
            assert!(error.contains(&how) && !error.contains(TOKEN), "{error}");
        }
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        let error = read(&pipe).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let error = read(Path::new(TOKEN)).unwrap_err().to_string();
        assert!(
            error.contains("takes the file") && !error.contains(TOKEN),
            "{error}"
        );
    }

    #[test]
    fn the_name_of_an_export_is_read_with_its_ticket() {
        let dir = tempfile::tempdir().unwrap();
        let name = "volume/vol-0123456789abcdef0@7:varve_ticket_0a1b";
        let path = written(dir.path(), "good", format!("{name}\n"), 0o600);
        assert_eq!(read_ticketed_export(&path).unwrap(), name);
        let opened = written(dir.path(), "open", name, 0o640);
        let short = written(dir.path(), "short", "varve_ticket_0a1b\n", 0o600);
        for wrong in [&opened, &short, Path::new(name)] {
            let error = read_ticketed_export(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(!format!("{error} {error:?}").contains("0a1b"), "{error}");
        }
    }

    #[test]
    fn a_new_file_is_its_owners_alone_and_goes_away_if_it_stays_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        drop(NewSecretFile::create(path.clone()).unwrap());
        assert!(!path.exists());
        let secret = TokenSecret::new(TOKEN).unwrap();
        NewSecretFile::create(path.clone())
            .unwrap()
            .write(secret.expose())
            .unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{TOKEN}\n"));
        assert_eq!(read(&path).unwrap(), secret);
        let error = NewSecretFile::create(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    }
}
