//! The identity of a data directory, and the creation of a new one.

use std::{path::Path, sync::Arc};

use varve_content::{chunker::CHUNKER_VERSION, codec::Compression};

use super::files::{create_dirs, is_there, read_short, sync_dir};
use crate::{
    Error, Result,
    engine::DirectoryLock,
    format::{StoreId, names, store_file::StoreFile},
    io::{AlignedBuf, Disk, OpenMode},
    meta,
};

/// More than an identity takes.
const STORE_FILE_BYTES_MAX: usize = 64 << 10;

/// Takes the directory for this process; makes it if it is absent.
pub(super) async fn lock_directory(disk: &Arc<dyn Disk>, dir: &Path) -> Result<DirectoryLock> {
    check_user(dir)?;
    create_dirs(disk, dir)?;
    // The lock is a file, and a refused directory stays unchanged. The identity is read again under
    // the lock.
    read_identity(disk, dir).await?;
    DirectoryLock::take(dir)
}

/// Checks that this process runs as the user that the store belongs to. Files that another one
/// makes, root above all, shut that user out.
fn check_user(dir: &Path) -> Result<()> {
    let path = names::store_file(dir);
    #[expect(
        clippy::disallowed_methods,
        reason = "a simulated disk has no users: this is about the process as the kernel sees it"
    )]
    let owner = match rustix::fs::stat(&path) {
        Ok(found) => found.st_uid,
        // The code that reads it reports the error.
        Err(_) => return Ok(()),
    };
    let user = rustix::process::geteuid().as_raw();
    if owner == user {
        return Ok(());
    }
    Err(Error::Incompatible {
        path,
        why: format!(
            "it belongs to user {owner}, and this process runs as user {user}: the store's own user could not read the \
             files that it makes; run it as that user (sudo -u '#{owner}' varved ...)"
        ),
    })
}

/// Reads the identity of a data directory; `None` if it is empty, and a store may be made in it.
pub(super) async fn read_identity(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<StoreFile>> {
    let path = names::store_file(dir);
    let Some(text) = read_short(disk, &path, STORE_FILE_BYTES_MAX).await? else {
        return refuse_other_files(disk, dir).map(|()| None);
    };
    let refuse = |why: String| Error::Incompatible {
        path: path.clone(),
        why,
    };
    let identity = StoreFile::decode(&text).map_err(|problem| refuse(problem.to_string()))?;
    if identity.chunker_version != CHUNKER_VERSION {
        return Err(refuse(format!(
            "it was cut with chunker version {}, this program cuts with {CHUNKER_VERSION}",
            identity.chunker_version
        )));
    }
    Ok(Some(identity))
}

/// A store is made only where nothing else is.
fn refuse_other_files(disk: &Arc<dyn Disk>, dir: &Path) -> Result<()> {
    let names = disk
        .list(dir)
        .map_err(|source| Error::io("list", dir, source))?;
    let Some(other) = names.iter().find(|name| !names::may_precede_store(name)) else {
        return Ok(());
    };
    // A process that makes a store writes its identity first: what is beside it may have come since
    // somebody looked for it.
    if is_there(disk, &names::store_file(dir))? {
        return Ok(());
    }
    Err(Error::Incompatible {
        path: dir.to_owned(),
        why: format!("it is not a Varve store and not empty (it holds {other:?})"),
    })
}

/// Gives a store its identity: a file that is written beside its place and made durable, and then
/// renamed. So a crash leaves a whole one or none.
pub(super) async fn create_identity(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    compression: Compression,
) -> Result<StoreFile> {
    let mut id = [0; StoreId::BYTES];
    getrandom::fill(&mut id).map_err(|error| Error::System {
        verb: "draw random numbers",
        source: std::io::Error::other(error),
    })?;
    let identity = StoreFile {
        store: StoreId::from_bytes(id),
        chunker_version: CHUNKER_VERSION,
        compression,
        created_unix_seconds: meta::now_ns() / 1_000_000_000,
    };
    let path = names::store_file(dir);
    let temporary = names::store_file_unfinished(dir);
    // From a process that did not finish.
    if is_there(disk, &temporary)? {
        disk.remove(&temporary)
            .map_err(|source| Error::io("remove", &temporary, source))?;
    }
    let file = disk
        .open(&temporary, OpenMode::CreateNew)
        .map_err(|source| Error::io("create", &temporary, source))?;
    let text = AlignedBuf::from_slice(identity.encode().as_bytes());
    let written = disk.write(&file, 0, text).await;
    written.map_err(|source| Error::io("write", &temporary, source))?;
    let synced = disk.sync_data(&file).await;
    synced.map_err(|source| Error::io("sync", &temporary, source))?;
    disk.rename(&temporary, &path)
        .map_err(|source| Error::io("rename to", &path, source))?;
    sync_dir(disk, dir).await?;
    Ok(identity)
}

#[cfg(test)]
mod tests;
