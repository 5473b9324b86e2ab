//! The input of `import`: finding the bytes of a disk in a file, a pipe, a packed file, an OVA, an
//! image.

use std::{
    fs::File,
    io::{self, Cursor, Read, Seek},
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
};

use varve_client::{Error, ErrorKind, FileSource, Progress, Result, scratch_file, spool_dir};
use varve_content::block::MAX_VOLUME_BYTES;

use crate::{
    Options, blocking,
    disk_format::{
        Format, Image, Looks, Packing, Part, Reach, choose_disk, expected_by_name, unpacked,
    },
    import::FormatChoice,
    meter, qemu,
};

/// Bytes at the front of a pipe that are looked at.
const HEAD_BYTES: u64 = 512;

/// The input of `import`, opened once.
pub(crate) struct Intake {
    given: Given,
    /// The directory at which names in it begin.
    dir: Option<PathBuf>,
    /// A name from its content, if there is one.
    path: Option<PathBuf>,
}

enum Given {
    /// A file or block device, which is read at any place.
    Part(Part),
    /// A source that is read from front to back.
    Stream { reader: File, name: String },
}

impl Intake {
    /// Opens a file, or standard input.
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        let path = path.to_path_buf();
        // Opening a pipe waits for its writer.
        blocking(move || {
            if path == Path::new("-") {
                return Self::of_stdin();
            }
            let name = path.display().to_string();
            let opened = File::open(&path);
            let file = opened.map_err(|error| Error::file(format!("open {name}"), error))?;
            let dir = path.parent().map(|dir| match dir.as_os_str().is_empty() {
                true => PathBuf::from("."),
                false => dir.to_path_buf(),
            });
            Self::of(file, name, dir, Some(path))
        })
        .await
    }

    fn of_stdin() -> Result<Self> {
        const NAME: &str = "standard input";
        let failed = |error| Error::file(format!("open {NAME}"), error);
        let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
        let mut stdin = stdin.map_err(failed)?;
        let is_file = stdin.metadata().map_err(failed)?.is_file();
        if is_file && !stdin.stream_position().is_ok_and(|position| position == 0) {
            return Ok(Self {
                given: Given::Stream {
                    reader: stdin,
                    name: NAME.to_owned(),
                },
                dir: None,
                path: None,
            });
        }
        Self::of(stdin, NAME.to_owned(), None, None)
    }

    fn of(file: File, name: String, dir: Option<PathBuf>, path: Option<PathBuf>) -> Result<Self> {
        let metadata = file.metadata();
        let kind = metadata.map_err(|error| Error::file(format!("open {name}"), error))?;
        let kind = kind.file_type();
        if kind.is_fifo() || kind.is_char_device() || kind.is_socket() {
            return Ok(Self {
                given: Given::Stream { reader: file, name },
                dir: None,
                path: None,
            });
        }
        Ok(Self {
            given: Given::Part(Part::whole(file, name)?),
            dir,
            path,
        })
    }

    /// Returns true if it can be read in place.
    pub(crate) async fn is_ready(&self, choice: FormatChoice) -> Result<bool> {
        let Given::Part(part) = &self.given else {
            return Ok(false);
        };
        if choice == FormatChoice::Is(Format::Raw) {
            return Ok(true);
        }
        let part = part.clone();
        Ok(blocking(move || Looks::at(&part)).await? == Looks::Image(Format::Raw))
    }

    /// Finds the disk in it.
    pub(crate) async fn source(
        self,
        choice: FormatChoice,
        disk: Option<usize>,
        allow_dirs: &[PathBuf],
        options: &Options,
    ) -> Result<FileSource> {
        let Self {
            given,
            mut dir,
            mut path,
        } = self;
        let as_it_is = choice == FormatChoice::Is(Format::Raw);
        let mut unpacked_already = false;
        let mut part = match given {
            Given::Part(part) => part,
            Given::Stream { reader, name } => {
                let (part, packing) = spool_stream(reader, name, !as_it_is, options).await?;
                unpacked_already = packing.is_some();
                part
            }
        };
        let mut in_ova = false;
        let format = loop {
            if as_it_is {
                break Format::Raw;
            }
            let looked_at = part.clone();
            match blocking(move || Looks::at(&looked_at)).await? {
                Looks::Packed(packing) if !unpacked_already => {
                    options.remark(format_args!(
                        "unpacking {} ({packing}) to {}",
                        part.name(),
                        spool_dir().display()
                    ));
                    part = spool_packed(&part, packing, options).await?;
                    path = path.map(|path| path.with_extension(""));
                    unpacked_already = true;
                }
                Looks::Packed(packing) => {
                    let why = format!("it is packed more than once, the last time by {packing}");
                    return Err(part.refused(why));
                }
                Looks::Ova if !in_ova => {
                    let ova = part;
                    part = blocking(move || choose_disk(&ova, disk)).await?;
                    options.remark(format_args!("taking {}", part.name()));
                    (dir, path) = (None, Some(PathBuf::from(part.name())));
                    // Its content may be packed, independent of its own format.
                    (in_ova, unpacked_already) = (true, false);
                }
                Looks::Image(found) => {
                    break match choice {
                        FormatChoice::Is(format) => {
                            check_begins(&part, found, format)?;
                            format
                        }
                        FormatChoice::Auto => {
                            check_name(&part, found, path.as_deref())?;
                            found
                        }
                    };
                }
                looks => match choice {
                    FormatChoice::Is(format) if !in_ova => break format,
                    _ => return Err(part.refused(not_taken(looks))),
                },
            }
        };
        if disk.is_some() && !in_ova {
            return Err(part.refused("--disk is for an OVA, and this is not one"));
        }
        if format == Format::Raw {
            let name = part.name().to_owned();
            if !part.is_whole() {
                part = spool(part.reader(), part.len(), name.clone(), options).await?;
            }
            return match part.into_whole_file() {
                Some(file) => FileSource::from_file(file, name),
                None => Err(Error::new(
                    ErrorKind::Internal,
                    format!("import {name}"),
                    "its file is in use",
                )),
            };
        }
        if part.node().is_none() {
            let (len, name) = (part.len(), part.name().to_owned());
            part = spool(part.reader(), len, name, options).await?;
        }
        let reach = match choice {
            FormatChoice::Auto => Reach::nothing(),
            FormatChoice::Is(_) => Reach::below(dir.as_deref(), allow_dirs)?,
        };
        convert(part, format, dir, reach, options).await
    }
}

/// Converts an image to a raw disk in a temporary file.
async fn convert(
    part: Part,
    format: Format,
    dir: Option<PathBuf>,
    reach: Reach,
    options: &Options,
) -> Result<FileSource> {
    let name = part.name().to_owned();
    let image = blocking(move || Image::open(part, format, dir, &reach)).await?;
    for file in &image.others {
        options.remark(format_args!(
            "{name} is read together with {}",
            file.display()
        ));
    }
    qemu::check_whole(&image).await?;
    options.remark(format_args!("converting {name} from {format}"));
    let raw = scratch_file()?;
    let progress = Progress::new();
    let converting = qemu::to_raw(&image, &name, &raw, &progress);
    meter::watch("convert", options.quiet, &progress, converting).await?;
    FileSource::from_file(raw, name)
}

/// The reason why a file that looks like this is not imported.
fn not_taken(looks: Looks) -> String {
    match looks {
        Looks::Archive => {
            "it looks like an archive: use --archive to import it, or --format raw if it is a raw \
             disk"
                .to_owned()
        }
        Looks::Other(what) => {
            format!(
                "it looks like {what}, which is not supported; use --format raw if it is a raw \
                     disk"
            )
        }
        Looks::Ova => "it looks like an OVA within an OVA".to_owned(),
        Looks::Image(_) | Looks::Packed(_) => "it is not supported here".to_owned(),
    }
}

/// Checks that an image begins like images of the format that the user gave, if all of them begin
/// alike.
fn check_begins(part: &Part, found: Format, said: Format) -> Result<()> {
    use Format::{Parallels, Qcow2, Qed, Vdi, Vhdx};
    let alike = matches!(said, Qcow2 | Vhdx | Vdi | Qed | Parallels);
    // The content of devices is not looked at.
    if found == said || !alike || part.is_device() {
        return Ok(());
    }
    let why =
        format!("it does not begin like a {said} image; without --format, the format is detected");
    Err(part.refused(why))
}

/// Checks that a file that would be taken for a raw disk does not have the name of another format:
/// it may have lost the bytes that tell it.
fn check_name(part: &Part, found: Format, path: Option<&Path>) -> Result<()> {
    let expected = path.and_then(expected_by_name);
    match expected {
        Some(expected) if found == Format::Raw && !part.is_device() => {
            let why = format!(
                "its name is that of a {expected} image, but its content is not: it may be \
                 truncated or empty; use --format raw if \
                 it is a raw disk"
            );
            Err(part.refused(why))
        }
        _ => Ok(()),
    }
}

/// Copies the content of a pipe; unpacks it, if that is wanted and it is packed.
async fn spool_stream(
    mut reader: File,
    name: String,
    unpack: bool,
    options: &Options,
) -> Result<(Part, Option<Packing>)> {
    options.remark(format_args!("copying {name} to {}", spool_dir().display()));
    let progress = Progress::new();
    let counters = progress.clone();
    let copying = blocking(move || {
        let mut head = Vec::new();
        let read = reader.by_ref().take(HEAD_BYTES).read_to_end(&mut head);
        read.map_err(|error| Error::file(format!("read {name}"), error))?;
        let packing = Packing::of_head(&head).filter(|_| unpack);
        let whole = Cursor::new(head).chain(reader);
        let part = copy(whole, packing, name, counters)?;
        Ok((part, packing))
    });
    meter::watch("copy", options.quiet, &progress, copying).await
}

/// Unpacks a file.
async fn spool_packed(part: &Part, packing: Packing, options: &Options) -> Result<Part> {
    let progress = Progress::new();
    progress.set_total(part.len());
    let (reader, name, counters) = (part.reader(), part.name().to_owned(), progress.clone());
    let copying = blocking(move || copy(reader, Some(packing), name, counters));
    meter::watch("unpack", options.quiet, &progress, copying).await
}

/// Copies an extent of a file.
async fn spool(
    reader: impl Read + Send + 'static,
    len: u64,
    name: String,
    options: &Options,
) -> Result<Part> {
    let progress = Progress::new();
    progress.set_total(len);
    let counters = progress.clone();
    let copying = blocking(move || copy(reader, None, name, counters));
    meter::watch("copy", options.quiet, &progress, copying).await
}

/// Copies all bytes of `reader` to a temporary file, unpacked. `progress` counts the bytes read.
fn copy(
    reader: impl Read + Send + 'static,
    packing: Option<Packing>,
    name: String,
    progress: Progress,
) -> Result<Part> {
    let counted = Counted { reader, progress };
    let failed = |error| Error::file(format!("read {name}"), error);
    let plain: Box<dyn Read + Send> = match packing {
        Some(packing) => Box::new(Packed(unpacked(packing, counted).map_err(failed)?)),
        None => Box::new(counted),
    };
    let mut bounded = Bounded {
        reader: plain,
        left: MAX_VOLUME_BYTES,
    };
    let file = FileSource::spool(&mut bounded, &name)?.into_file();
    Part::whole(file, name)
}

/// Adds to an error that the packed file ends too early, if it does.
struct Packed(Box<dyn Read + Send>);

impl Read for Packed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(error.kind(), format!("it is cut off: {error}"))
            }
            _ => error,
        })
    }
}

/// Counts the bytes read.
struct Counted<R> {
    reader: R,
    progress: Progress,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.progress.add_done(read as u64);
        Ok(read)
    }
}

/// Limits the bytes read to the largest volume: a small file may unpack to very much.
struct Bounded<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            let why = format!("it is larger than the largest volume ({MAX_VOLUME_BYTES} bytes)");
            io::Error::other(why)
        })?;
        Ok(read)
    }
}
