//! Journals of volumes that are not open. All of this may take long: callers on an executor offload
//! it.

use std::{io::ErrorKind, path::Path};

use super::dir::remove_at;
use crate::{
    Error, Result,
    format::{VolumeId, names},
    io::{Disk, OpenMode},
};

/// The numbers of the journal files in a directory, in no order; none if there is no directory.
///
/// # Errors
///
/// [`Error::Io`] and [`Error::Shortage`] when the directory cannot be read.
pub(crate) fn journal_numbers(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>> {
    match disk.list(dir) {
        Ok(files) => Ok(files
            .iter()
            .filter_map(|name| names::journal_number_of(name))
            .collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::io("list", dir, source)),
    }
}

/// The number of a volume's last journal file, if that is `first_file` or one behind it. Files
/// before it hold nothing that the volume's base does not.
///
/// # Errors
///
/// As for [`journal_numbers`].
pub(crate) fn last_journal_file(
    disk: &dyn Disk,
    data_dir: &Path,
    volume: VolumeId,
    first_file: u64,
) -> Result<Option<u64>> {
    let numbers = journal_numbers(disk, &names::volume(data_dir, volume))?;
    Ok(numbers.into_iter().max().filter(|last| *last >= first_file))
}

/// Bytes that a volume's journal files take from `first_file` on. Files before it go when the
/// volume is opened.
///
/// # Errors
///
/// As for [`journal_numbers`], and the same of a file.
pub(crate) fn journal_bytes(
    disk: &dyn Disk,
    data_dir: &Path,
    volume: VolumeId,
    first_file: u64,
) -> Result<u64> {
    let mut bytes = 0;
    let numbers = journal_numbers(disk, &names::volume(data_dir, volume))?;
    for number in numbers.into_iter().filter(|it| *it >= first_file) {
        let path = names::journal_file(data_dir, volume, number);
        let len = disk
            .open(&path, OpenMode::Read)
            .and_then(|file| disk.len(&file));
        match len {
            Ok(len) => bytes += len,
            // Removed just now.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io("read the length of", &path, source)),
        }
    }
    Ok(bytes)
}

/// Removes a volume's journal and its directory. The volume's deletion is durable.
///
/// # Errors
///
/// The first file that could not be removed. The next start removes the rest.
pub(crate) fn remove_journal(disk: &dyn Disk, data_dir: &Path, volume: VolumeId) -> Result<()> {
    let dir = names::volume(data_dir, volume);
    for number in journal_numbers(disk, &dir)? {
        let path = names::journal_file(data_dir, volume, number);
        // It may have been a spare file, which went because space was short.
        unless_gone(remove_at(disk, &path))?;
    }
    unless_gone(remove_at(disk, &names::journal_owner(data_dir, volume)))?;
    match disk.remove_dir(&dir) {
        Ok(()) => Ok(()),
        // The volume was never opened.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::io("remove", &dir, source)),
    }
}

/// Takes a file that is gone already for removed.
fn unless_gone(removed: Result<()>) -> Result<()> {
    match removed {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
