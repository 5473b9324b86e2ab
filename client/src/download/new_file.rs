//! Files that get their names when they are complete, with the owner and mode of the files that
//! they replace.
//!
//! Invariants: the place of a file is resolved once, before anything is written, and everything
//! happens in that directory, by its descriptor. Until it is published, a file has no name where
//! the file system supports that, so it disappears however this program ends.

use std::{
    ffi::{CStr, OsStr, OsString},
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, XattrFlags, fchmod,
        fchown, fremovexattr, fsetxattr, fstat, fstatfs, fsync, lgetxattr, linkat, openat,
        readlinkat, renameat, renameat_with, statat, unlinkat,
    },
    io::Errno,
    process::geteuid,
};

use crate::error::{Error, ErrorKind, Result};

/// Symbolic links that are followed, one after the other: as many as the system follows.
const LINKS_MAX: usize = 40;
/// Names that are tried for a file until it has its own.
const NAMES_TRIED: usize = 100;
/// Bytes of a file's name that its temporary name repeats: the rest fits within 255.
const NAME_BYTES_KEPT: usize = 200;
/// The attribute in which file systems keep access lists, and its greatest length.
const ACCESS_LIST: &CStr = c"system.posix_acl_access";
const ACCESS_LIST_BYTES_MAX: usize = 64 << 10;
/// The number that `statfs` has for the file system of `/proc`.
const PROC_MAGIC: i64 = 0x9fa0;

/// The treatment of an existing file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Existing {
    /// Refuse to write. A block device counts as existing.
    Keep,
    /// Replace it by the new file, with its owner and mode; write to a block device.
    Replace,
}

/// A file that gets its name only when it is complete. If it is dropped before, it leaves nothing
/// behind.
///
/// A symbolic link stays: the file takes the place of its target.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    place: Place,
    existing: Existing,
    /// The name until it is published, where the file system does not support files without names.
    temporary: Option<OsString>,
}

/// The place of a file that is being written.
#[derive(Debug)]
struct Place {
    dir: OwnedFd,
    name: OsString,
    /// The file that exists there now.
    before: Option<Stat>,
    /// The last link on the way leads to an open file of a process, not to a name.
    is_open_file: bool,
}

impl Place {
    /// Follows links from `path` to the place of the file.
    fn of(path: &Path) -> io::Result<Self> {
        let mut path = path.to_path_buf();
        for _ in 0..LINKS_MAX {
            let Some(name) = path.file_name().map(OsStr::to_os_string) else {
                return Err(io::Error::other("it is the name of a directory"));
            };
            let dir = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = openat(CWD, directory(&path), dir, Mode::empty())?;
            let before = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => Some(found),
                Err(Errno::NOENT) => None,
                Err(error) => return Err(error.into()),
            };
            let is_link = before.is_some_and(|found| kind(&found) == FileType::Symlink);
            let is_open_file = is_link && fstatfs(&dir)?.f_type == PROC_MAGIC;
            if is_link && !is_open_file {
                if let Some(link) = &before {
                    check_followed(&dir, link)?;
                }
                let target = readlinkat(&dir, &name, Vec::new())?;
                path = directory(&path).join(OsStr::from_bytes(target.as_bytes()));
                continue;
            }
            return Ok(Self {
                dir,
                name,
                before,
                is_open_file,
            });
        }
        Err(Errno::LOOP.into())
    }

    /// A name for a file on its way to this place.
    fn temporary_name(&self) -> OsString {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let kept = self.name.as_bytes();
        let mut name = OsString::from(".");
        name.push(OsStr::from_bytes(&kept[..kept.len().min(NAME_BYTES_KEPT)]));
        name.push(format!(".{}-{number}", process::id()));
        name
    }

    /// Tries names until `make` does not find one taken.
    fn with_temporary_name<T>(
        &self,
        mut make: impl FnMut(&OsStr) -> rustix::io::Result<T>,
    ) -> io::Result<(T, OsString)> {
        for _ in 0..NAMES_TRIED {
            let name = self.temporary_name();
            match make(&name) {
                Ok(made) => return Ok((made, name)),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EXIST.into())
    }
}

/// Checks that a link in `dir` may be followed. In a directory where everybody may make links, such
/// as `/tmp`, only links of this user and of the directory's owner may be: other users could direct
/// the file elsewhere. The system has the same rule (`fs.protected_symlinks`), but only for links
/// that it follows itself.
fn check_followed(dir: &OwnedFd, link: &Stat) -> io::Result<()> {
    let directory = fstat(dir)?;
    let mode = Mode::from_raw_mode(directory.st_mode);
    let is_of_all = mode.contains(Mode::SVTX | Mode::WOTH);
    let trusted = [geteuid().as_raw(), directory.st_uid];
    if is_of_all && !trusted.contains(&link.st_uid) {
        return Err(io::Error::other(format!(
            "it is a symbolic link of user {} in a directory that everyone can write to: it is not \
             followed",
            link.st_uid
        )));
    }
    Ok(())
}

impl NewFile {
    /// Prepares to write `path`.
    ///
    /// # Errors
    ///
    /// Every failure that can be known beforehand: [`ErrorKind::AlreadyExists`] if there is a file
    /// and `existing` is [`Existing::Keep`]; [`ErrorKind::File`] if there is something other than a
    /// file, if no file can be created there, or not with the owner of the existing file.
    pub fn create(path: impl Into<PathBuf>, existing: Existing) -> Result<Self> {
        let path = path.into();
        let what = format!("write {}", path.display());
        let refuse = |kind, why: &str| Err(Error::new(kind, &what, why));
        let place = Place::of(&path).map_err(|error| Error::file(&what, error))?;
        match place.before.as_ref().map(kind) {
            Some(FileType::Directory) => return refuse(ErrorKind::File, "is a directory"),
            Some(FileType::RegularFile) if existing == Existing::Keep => {
                return refuse(ErrorKind::AlreadyExists, "exists already");
            }
            Some(FileType::RegularFile) | None => {}
            Some(_) => return refuse(ErrorKind::File, "is not a regular file"),
        }
        let mode = match place.before {
            // Only for this user, until the file has its owner.
            Some(_) => Mode::RUSR | Mode::WUSR,
            // The mode of any new file, less the user's umask.
            None => Mode::from_raw_mode(0o666),
        };
        let (file, temporary) = make(&place, mode).map_err(|error| Error::file(&what, error))?;
        let new = Self {
            file,
            place,
            existing,
            temporary,
        };
        if let Some(before) = &new.place.before {
            give(&new.file, &new.place, before).map_err(|error| {
                let (user, group) = (before.st_uid, before.st_gid);
                let why = format!(
                    "it belongs to user {user} and group {group}, and the new file cannot get this \
                     owner: {error}; remove it \
                     first, or choose another name"
                );
                Error::new(ErrorKind::Denied, &what, why).with_source(error)
            })?;
        }
        Ok(new)
    }

    /// The file, to be written to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file, and gives it its name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if another program has created a file of that name meanwhile,
    /// and `existing` is [`Existing::Keep`]; [`ErrorKind::OutOfSpace`] or [`ErrorKind::File`] if it
    /// cannot be written.
    pub fn publish(self) -> Result<()> {
        let name = self.place.name.clone();
        let failed = |error| Error::file(format!("complete {}", name.display()), error);
        self.sync_and_name().map_err(failed)
    }

    pub(super) fn sync_and_name(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        match self.existing {
            // Another program may have made such a file meanwhile.
            Existing::Keep => self.name_new()?,
            Existing::Replace => self.name_instead()?,
        }
        Ok(fsync(&self.place.dir)?)
    }

    fn name_new(&mut self) -> io::Result<()> {
        let Place { dir, name, .. } = &self.place;
        let Some(temporary) = &self.temporary else {
            return Ok(link(&self.file, &self.place, name)?);
        };
        match renameat_with(dir, temporary, dir, name, RenameFlags::NOREPLACE) {
            // Not every file system can; then a second name that must be new, and the first one
            // taken away.
            Err(Errno::INVAL | Errno::NOSYS) => {
                linkat(dir, temporary, dir, name, AtFlags::empty())?
            }
            renamed => {
                renamed?;
                self.temporary = None;
            }
        }
        Ok(())
    }

    fn name_instead(&mut self) -> io::Result<()> {
        let place = &self.place;
        let found = statat(&place.dir, &place.name, AtFlags::SYMLINK_NOFOLLOW);
        if found.is_ok_and(|found| kind(&found) != FileType::RegularFile) {
            return Err(io::Error::other(
                "something other than a file took its place",
            ));
        }
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None => {
                let named = place.with_temporary_name(|name| link(&self.file, place, name));
                named?.1
            }
        };
        let renamed = renameat(&place.dir, &temporary, &place.dir, &place.name);
        if renamed.is_err() {
            self.temporary = Some(temporary);
        }
        Ok(renamed?)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary
            && let Err(error) = unlinkat(&self.place.dir, temporary, AtFlags::empty())
        {
            tracing::warn!(%error, name = %temporary.display(), "an unfinished file was not removed");
        }
    }
}

/// Opens a file that can be written only from front to back: a pipe, a character device, or an open
/// file by its descriptor, like `/dev/stdout`. `None` for any other file. Blocks until a pipe has a
/// reader.
///
/// # Errors
///
/// [`ErrorKind::AlreadyExists`] for an open file that is not empty, if `existing` is
/// [`Existing::Keep`]; [`ErrorKind::File`] if it cannot be opened.
pub fn open_stream(path: &Path, existing: Existing) -> Result<Option<File>> {
    let what = format!("write {}", path.display());
    let failed = |error| Error::file(&what, error);
    let is_stream = |kind: std::fs::FileType| kind.is_fifo() || kind.is_char_device();
    let is_open_file = match path.metadata() {
        Err(_) => return Ok(None),
        Ok(metadata) if is_stream(metadata.file_type()) => false,
        Ok(metadata) if metadata.is_file() => match Place::of(path) {
            Ok(place) if place.is_open_file => true,
            _ => return Ok(None),
        },
        Ok(_) => return Ok(None),
    };
    let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if is_open_file && metadata.is_file() {
        if existing == Existing::Keep && metadata.size() > 0 {
            return Err(Error::new(ErrorKind::AlreadyExists, what, "exists already"));
        }
        file.set_len(0).map_err(failed)?;
    } else if !is_stream(metadata.file_type()) {
        return Err(failed(io::Error::other("something else took its place")));
    }
    Ok(Some(file))
}

/// A file in the directory of `place`, and its name if it has one.
fn make(place: &Place, mode: Mode) -> io::Result<(File, Option<OsString>)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match openat(&place.dir, c".", flags | OFlags::TMPFILE, mode) {
        Ok(file) => {
            let file = File::from(file);
            // By this path the file gets its name.
            if Path::new(&by_descriptor(&file)).exists() {
                return Ok((file, None));
            }
        }
        // The file system or the kernel does not support such files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let (file, name) = place.with_temporary_name(|name| openat(&place.dir, name, flags, mode))?;
    Ok((File::from(file), Some(name)))
}

/// Sets owner, mode and access list of a file to those of the one in its place.
fn give(file: &File, place: &Place, before: &Stat) -> io::Result<()> {
    let metadata = file.metadata()?;
    if (metadata.uid(), metadata.gid()) != (before.st_uid, before.st_gid) {
        let (user, group) = (Uid::from_raw(before.st_uid), Gid::from_raw(before.st_gid));
        fchown(file, Some(user), Some(group))?;
    }
    if let Some(list) = access_list(place) {
        // The mode is a part of the list. Without the list, the bits of the group would be those of
        // the mask for the other entries.
        return Ok(fsetxattr(file, ACCESS_LIST, &list, XattrFlags::empty())?);
    }
    // Remove the list that the directory gives to new files.
    match fremovexattr(file, ACCESS_LIST) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(fchmod(file, Mode::from_raw_mode(before.st_mode & 0o777))?)
}

/// The access list of the file in this place, if the file system has such lists.
fn access_list(place: &Place) -> Option<Vec<u8>> {
    let mut path = PathBuf::from(by_descriptor(&place.dir));
    path.push(&place.name);
    let mut list = vec![0; ACCESS_LIST_BYTES_MAX];
    let len = lgetxattr(&path, ACCESS_LIST, &mut list[..]).ok()?;
    list.truncate(len);
    Some(list)
}

/// Links a file without a name to a name that must be new.
fn link(file: &File, place: &Place, name: &OsStr) -> rustix::io::Result<()> {
    linkat(
        CWD,
        by_descriptor(file),
        &place.dir,
        name,
        AtFlags::SYMLINK_FOLLOW,
    )
}

fn by_descriptor(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The directory that a path is in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
