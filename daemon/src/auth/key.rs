//! The file with the key for hashes of the secrets of tokens. From the same key comes the one that
//! seals the secrets of access keys.
//!
//! It is made with the first token or access key, in the data directory, and only its owner may
//! have access to it. Without it no token is valid, and no access key can be used.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::token::HashKey;

/// The name of the file in the data directory.
pub(crate) const FILE_NAME: &str = "auth.key";

const KEY_BYTES: usize = 32;

/// Why the key cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// The file cannot be read or made.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        verb: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The file is not such a file, or others may read it.
    #[error("cannot use {}: {why}", path.display())]
    Useless { path: PathBuf, why: String },
    /// There are tokens or access keys, and the file is not there.
    #[error(
        "{} is missing: put it back, or revoke all tokens and access keys first",
        path.display()
    )]
    Missing { path: PathBuf },
    /// The system has no random bytes.
    #[error(transparent)]
    Random(#[from] varve_store::Error),
}

/// Reads the key; `None` if the file does not exist. Blocks.
///
/// # Errors
///
/// A file that cannot be read, has another length, or that others than its owner may read.
pub(crate) fn read(path: &Path) -> Result<Option<HashKey>, KeyError> {
    let failed = |source| KeyError::Io {
        verb: "read",
        path: path.to_owned(),
        source,
    };
    let useless = |why: String| KeyError::Useless {
        path: path.to_owned(),
        why,
    };
    // A FIFO is opened without waiting, and refused then.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        // Whoever put a link there meant a key: it is elsewhere, and not to be had now.
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
            return Err(useless("it is a link to a file that is missing".to_owned()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(useless("it is not a regular file".to_owned()));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(useless(format!(
            "its mode is {:03o}, and only its owner may have access: chmod 600 it",
            metadata.mode() & 0o777
        )));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
    let mut limited = file.take(KEY_BYTES as u64 + 1);
    limited.read_to_end(&mut bytes).map_err(failed)?;
    let key = <[u8; KEY_BYTES]>::try_from(bytes.as_slice());
    let key = key.map_err(|_| {
        let found = metadata.len();
        useless(format!("it has {found} bytes, and a key has {KEY_BYTES}"))
    })?;
    Ok(Some(HashKey(key)))
}

/// Makes the file with a new key, durably, and returns the key. Blocks.
///
/// # Errors
///
/// The file exists, or cannot be written.
pub(crate) fn create(path: &Path) -> Result<HashKey, KeyError> {
    let failed = |verb, path: &Path| {
        let path = path.to_owned();
        move |source| KeyError::Io { verb, path, source }
    };
    let mut key = HashKey([0; KEY_BYTES]);
    varve_store::fill_random(&mut key.0)?;
    // Written beside it first: a file of that name is always whole.
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &draft)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(failed("make", &draft))?;
    file.write_all(&key.0).map_err(failed("write", &draft))?;
    file.sync_all().map_err(failed("sync", &draft))?;
    // Unlike a rename, a link never replaces a key.
    fs::hard_link(&draft, path).map_err(failed("make", path))?;
    fs::remove_file(&draft).map_err(failed("remove", &draft))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(failed("sync", dir))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.key");
        assert!(read(&path).unwrap().is_none());
        let made = create(&path).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().0, made.0);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = create(&path).unwrap_err().to_string();
        assert!(
            again.contains("auth.key") && again.contains("exists"),
            "{again}"
        );
        assert_eq!(read(&path).unwrap().unwrap().0, made.0);
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert!(names <= 2, "the key, and a draft at most");
        // What a crash left behind is no obstacle.
        fs::remove_file(&path).unwrap();
        fs::write(dir.path().join("auth.key.new"), "torn").unwrap();
        assert_ne!(create(&path).unwrap().0, made.0);
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.key");
        let refused = |why: &str| {
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("auth.key") && error.contains(why), "{error}");
        };
        for bytes in [0, 31, 33, 1 << 20] {
            fs::write(&path, vec![0; bytes]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            refused(&format!("it has {bytes} bytes"));
        }
        fs::write(&path, [0; 32]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        refused("chmod 600");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused("not a regular file");
    }
}
