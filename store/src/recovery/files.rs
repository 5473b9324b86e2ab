//! Files and directories of a store that is being opened or made, by way of its disk.

use std::{io::ErrorKind, path::Path, sync::Arc};

use crate::{
    Error, Result,
    io::{Disk, OpenMode},
};

/// Returns true if a name is in the directory that it belongs in.
pub(super) fn is_there(disk: &Arc<dyn Disk>, path: &Path) -> Result<bool> {
    let (Some(dir), Some(wanted)) = (path.parent(), path.file_name()) else {
        return Ok(false);
    };
    match disk.list(dir) {
        Ok(names) => Ok(names.iter().any(|name| name == wanted)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::io("list", dir, source)),
    }
}

/// Reads a file that is short, and no more of it than `bytes_max`. `None` if there is none.
pub(super) async fn read_short(
    disk: &Arc<dyn Disk>,
    path: &Path,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>> {
    let file = match disk.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::io("read", path, source)),
    };
    let read = disk.read_up_to(&file, 0, bytes_max).await;
    let bytes = read.map_err(|source| Error::io("read", path, source))?;
    Ok(Some(bytes.to_vec()))
}

/// Makes a directory, and those above it that are missing. Not durably: a store that is made in it
/// makes its own names so, and a crash before that leaves nothing.
pub(super) fn create_dirs(disk: &Arc<dyn Disk>, dir: &Path) -> Result<()> {
    match disk.create_dir(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = dir.parent().filter(|it| !it.as_os_str().is_empty());
            let Some(parent) = parent else {
                return Err(Error::io("create", dir, error));
            };
            create_dirs(disk, parent)?;
            match disk.create_dir(dir) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    Err(Error::io("create", dir, error))
                }
                _ => Ok(()),
            }
        }
        Err(source) => Err(Error::io("create", dir, source)),
    }
}

pub(super) async fn create_missing_dir(
    disk: &Arc<dyn Disk>,
    parent: &Path,
    dir: &Path,
) -> Result<()> {
    match disk.create_dir(dir) {
        Ok(()) => sync_dir(disk, parent).await,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Error::io("create", dir, source)),
    }
}

pub(super) async fn sync_dir(disk: &Arc<dyn Disk>, dir: &Path) -> Result<()> {
    disk.sync_dir(dir)
        .await
        .map_err(|source| Error::io("sync", dir, source))
}
