//! Packs as files of a local directory.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::{PackStage, PackStore};
use crate::{
    Error, Result,
    format::{PackId, PackKind, StoreId, names},
    io::{AlignedBuf, Completion, Disk, File, OpenMode, RuntimeEnded, is_shortage, offload},
    limits,
};

/// All packs of a data directory. The most recently read ones stay open, as far as descriptors
/// allow.
///
/// Packs are read through the page cache, which keeps packed bytes beside the store's cache of
/// plain ones, and written with direct IO.
#[derive(Debug)]
pub struct LocalPacks {
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    store: StoreId,
    pack_bytes_max: u64,
    /// The highest number that was ever used, as far as known.
    last_number: AtomicU64,
    open: OpenPacks,
    /// The same, past the page cache.
    open_direct: OpenPacks,
}

/// Packs that are open for reads.
#[derive(Debug, Clone)]
struct OpenPacks {
    disk: Arc<dyn Disk>,
    past_cache: bool,
    files: Arc<Mutex<OpenFiles>>,
}

/// Open files, and when they were used.
#[derive(Debug)]
struct OpenFiles {
    most: usize,
    files: HashMap<PackId, (File, u64)>,
    uses: u64,
    /// Number of removed packs.
    removals: u64,
}

impl LocalPacks {
    /// The packs of a data directory, in which there is a directory for them. Packs are sealed at
    /// `pack_bytes_max`, and so many stay open for reads.
    pub fn open(
        disk: Arc<dyn Disk>,
        data_dir: &Path,
        store: StoreId,
        pack_bytes_max: u64,
        open_max: usize,
    ) -> Result<Arc<Self>> {
        Self::new(disk, data_dir, store, pack_bytes_max, open_max).count()
    }

    fn new(
        disk: Arc<dyn Disk>,
        data_dir: &Path,
        store: StoreId,
        pack_bytes_max: u64,
        open_max: usize,
    ) -> Self {
        let open = |past_cache, most| OpenPacks {
            disk: Arc::clone(&disk),
            past_cache,
            files: Arc::new(Mutex::new(OpenFiles::new(most))),
        };
        Self {
            open: open(false, open_max),
            open_direct: open(true, limits::PACKS_OPEN_DIRECT_MAX),
            disk,
            data_dir: data_dir.to_owned(),
            store,
            pack_bytes_max,
            last_number: AtomicU64::new(0),
        }
    }

    /// Finds out which numbers were used.
    fn count(self) -> Result<Arc<Self>> {
        if let Some(last) = self.list()?.last() {
            self.keep_numbers_above(last.number);
        }
        Ok(Arc::new(self))
    }

    /// All packs, sealed or not, by their numbers.
    ///
    /// # Errors
    ///
    /// The errors of listing a directory.
    pub fn list(&self) -> Result<Vec<PackId>> {
        let dir = names::packs(&self.data_dir);
        let names = self
            .disk
            .list(&dir)
            .map_err(|source| Error::io("list", &dir, source))?;
        let mut packs: Vec<_> = names
            .iter()
            .filter_map(|name| names::pack_of(name))
            .collect();
        packs.sort_unstable_by_key(|pack| (pack.number, pack.kind));
        Ok(packs)
    }

    /// Notes that numbers up to `number` were used, by packs that may be gone.
    pub fn keep_numbers_above(&self, number: u64) {
        self.last_number.fetch_max(number, Ordering::Relaxed);
    }

    fn file_path(&self, pack: PackId) -> PathBuf {
        names::pack(&self.data_dir, pack)
    }

    fn open_as(
        &self,
        verb: &'static str,
        pack: PackId,
        open: impl FnOnce(&Path) -> io::Result<File>,
    ) -> Result<File> {
        let path = self.file_path(pack);
        open(&path).map_err(|source| Error::io(verb, &path, source))
    }
}

/// Removes a pack, and drops it from the open files.
fn remove_file(
    disk: &dyn Disk,
    pack: PackId,
    path: &Path,
    open: [&OpenPacks; 2],
) -> io::Result<()> {
    let removed = disk.remove(path);
    // Afterwards: a reader that has just opened it would keep it open for later ones.
    for open in open {
        open.files.lock().removed(pack);
    }
    removed
}

impl OpenPacks {
    fn file(&self, pack: PackId, path: &Path) -> io::Result<File> {
        let removals = {
            let mut files = self.files.lock();
            if let Some(file) = files.used(pack) {
                return Ok(file);
            }
            files.removals
        };
        let file = match self.past_cache {
            true => self.disk.open_direct(path, OpenMode::Read)?,
            false => self.disk.open(path, OpenMode::Read)?,
        };
        let mut files = self.files.lock();
        // A pack that was removed since it was opened must not be kept: it would keep its space.
        if files.removals == removals {
            files.insert(pack, file.clone());
        }
        drop(files);
        Ok(file)
    }

    /// Reads, as soon as the pack can be opened.
    fn read(
        &self,
        pack: PackId,
        path: PathBuf,
        read: impl Fn(&dyn Disk, &File) -> Completion<AlignedBuf> + Send + 'static,
    ) -> Completion<AlignedBuf> {
        match self.file(pack, &path) {
            Ok(file) => read(&*self.disk, &file),
            Err(error) if is_shortage(&error) => {
                let packs = self.clone();
                Completion::deferred(async move {
                    let patience = packs.disk.patience();
                    let file = patience.until_possible(|| packs.file(pack, &path)).await?;
                    read(&*packs.disk, &file).await
                })
            }
            Err(error) => Completion::failed(error),
        }
    }
}

impl OpenFiles {
    fn new(most: usize) -> Self {
        Self {
            most,
            files: HashMap::new(),
            uses: 0,
            removals: 0,
        }
    }

    fn used(&mut self, pack: PackId) -> Option<File> {
        self.uses += 1;
        let (file, used) = self.files.get_mut(&pack)?;
        *used = self.uses;
        Some(file.clone())
    }

    fn removed(&mut self, pack: PackId) {
        self.files.remove(&pack);
        self.removals += 1;
    }

    fn insert(&mut self, pack: PackId, file: File) {
        if self.files.len() >= self.most {
            // Scans all of them, once for each opened file; opening it takes longer.
            let oldest = self
                .files
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(pack, _)| *pack);
            if let Some(oldest) = oldest {
                self.files.remove(&oldest);
            }
        }
        self.files.insert(pack, (file, self.uses));
    }
}

impl PackStage for LocalPacks {
    fn store_id(&self) -> StoreId {
        self.store
    }

    fn reserve(&self, kind: PackKind) -> PackId {
        PackId {
            kind,
            number: self.last_number.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    fn next_number(&self) -> u64 {
        self.last_number.load(Ordering::Relaxed) + 1
    }

    fn pack_bytes_max(&self) -> u64 {
        self.pack_bytes_max
    }

    fn path(&self, pack: PackId) -> PathBuf {
        self.file_path(pack)
    }

    fn dir(&self) -> PathBuf {
        names::packs(&self.data_dir)
    }

    fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    fn create(&self, pack: PackId) -> Result<File> {
        self.open_as("create", pack, |path| {
            self.disk.open_direct(path, OpenMode::CreateNew)
        })
    }

    fn reopen(&self, pack: PackId) -> Result<File> {
        self.open_as("open", pack, |path| {
            self.disk.open_direct(path, OpenMode::ReadWrite)
        })
    }

    fn open_to_mend(&self, pack: PackId) -> Result<File> {
        self.open_as("open", pack, |path| {
            self.disk.open(path, OpenMode::ReadWrite)
        })
    }

    fn remove(&self, pack: PackId) -> Result<()> {
        let path = self.file_path(pack);
        remove_file(&*self.disk, pack, &path, [&self.open, &self.open_direct])
            .map_err(|source| Error::io("remove", &path, source))
    }

    fn sync_names(&self) -> Completion<()> {
        self.disk.sync_dir(&names::packs(&self.data_dir))
    }
}

impl PackStore for LocalPacks {
    fn store_id(&self) -> StoreId {
        self.store
    }

    fn path(&self, pack: PackId) -> PathBuf {
        self.file_path(pack)
    }

    fn len_bytes(&self, pack: PackId) -> Completion<u64> {
        let file = self.open.file(pack, &self.file_path(pack));
        Completion::known(file.and_then(|file| self.disk.len(&file)))
    }

    fn read(&self, pack: PackId, offset_bytes: u64, len: usize) -> Completion<AlignedBuf> {
        let path = self.file_path(pack);
        self.open.read(pack, path, move |disk, file| {
            disk.read(file, offset_bytes, len)
        })
    }

    fn read_past_cache(
        &self,
        pack: PackId,
        offset_bytes: u64,
        len: usize,
    ) -> Completion<AlignedBuf> {
        let path = self.file_path(pack);
        self.open_direct.read(pack, path, move |disk, file| {
            disk.read_up_to(file, offset_bytes, len)
        })
    }

    fn delete(&self, pack: PackId) -> Completion<()> {
        let (disk, path) = (Arc::clone(&self.disk), self.file_path(pack));
        let (open, open_direct) = (self.open.clone(), self.open_direct.clone());
        // Large files are not removed at once.
        Completion::deferred(async move {
            offload(move || remove_file(&*disk, pack, &path, [&open, &open_direct]))
                .await
                .map_err(|RuntimeEnded| io::Error::other("the runtime has ended"))?
        })
    }
}
