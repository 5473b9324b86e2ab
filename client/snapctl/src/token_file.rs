//! Files with a secret, such as a token, an access key or the name of an export with its ticket:
//! reading one, and writing a new one.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use varve_client::{Error, ErrorKind, Result, read_secret_line};
use varve_nbd::{ExportName, split_ticket};

/// Reads the name of an export with its ticket, in a file that only its owner can read.
///
/// # Errors
///
/// As of [`read_secret_line`]; [`ErrorKind::Invalid`] for a line that is none.
pub(crate) fn read_ticketed_export(path: &Path) -> Result<String> {
    let text = path.to_string_lossy();
    if split_ticket(&text).is_some() && !path.exists() {
        let why = "this is a ticket; --ticket-file takes the file that has it";
        return Err(Error::new(ErrorKind::Invalid, "read a ticket", why));
    }
    let what = format!("read the ticket in {text}");
    let name = read_secret_line(path, &what)?;
    match ExportName::parse(&name) {
        Some(ExportName::Volume(key)) if split_ticket(key).is_some() => Ok(name),
        _ => {
            let why = "it does not have the name of an export with a ticket, volume/ID@N:TICKET";
            Err(Error::new(ErrorKind::Invalid, what, why))
        }
    }
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

    use std::os::unix::fs::MetadataExt;

    use varve_client::TokenSecret;

    use super::*;

    const TOKEN: &str = "varve_0123456789abcdef";

    fn written(dir: &Path, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
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
        assert_eq!(TokenSecret::from_file(&path).unwrap(), secret);
        let error = NewSecretFile::create(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    }
}
