//! The names on the simulated disk: the visible ones, and the durable ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use super::random::Random;

/// The target of a name.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Dir,
    /// The number of a file's content.
    File(u64),
}

#[derive(Debug, Clone)]
enum Edit {
    Create {
        path: PathBuf,
        entry: Entry,
    },
    Remove {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        entry: Entry,
    },
}

#[derive(Debug, Clone)]
struct Pending {
    number: u64,
    edit: Edit,
}

/// All directories are flat in one map: a path and what it stands for. `/` is always there.
#[derive(Debug, Default, Clone)]
pub(super) struct Names {
    seen: BTreeMap<PathBuf, Entry>,
    durable: BTreeMap<PathBuf, Entry>,
    pending: Vec<Pending>,
    begun: u64,
}

impl Names {
    /// The file of that name.
    pub(super) fn file(&self, path: &Path) -> io::Result<u64> {
        match self.seen.get(path) {
            Some(Entry::File(number)) => Ok(*number),
            Some(Entry::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// All files that have a name, each once.
    pub(super) fn files(&self) -> BTreeSet<u64> {
        let numbers = self.seen.values().filter_map(|entry| match entry {
            Entry::File(number) => Some(*number),
            Entry::Dir => None,
        });
        numbers.collect()
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        self.check_dir(dir)?;
        let within = self.seen.keys().filter(|path| path.parent() == Some(dir));
        Ok(within
            .filter_map(|path| path.file_name())
            .map(OsString::from)
            .collect())
    }

    pub(super) fn create(&mut self, path: &Path, entry: Entry) -> io::Result<()> {
        self.check_parent(path)?;
        if self.seen.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.begin(Edit::Create {
            path: path.to_owned(),
            entry,
        });
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        self.begin(Edit::Remove {
            path: path.to_owned(),
        });
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        self.check_dir(path)?;
        if !self.list(path)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.begin(Edit::Remove {
            path: path.to_owned(),
        });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let entry = Entry::File(self.file(from)?);
        self.check_parent(to)?;
        self.begin(Edit::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
            entry,
        });
        Ok(())
    }

    pub(super) fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let entry = Entry::File(self.file(from)?);
        self.create(to, entry)
    }

    /// Number of changes so far.
    pub(super) const fn begun(&self) -> u64 {
        self.begun
    }

    /// Makes the first `upto` changes durable, those of them in `dir`.
    pub(super) fn sync(&mut self, dir: &Path, upto: u64) {
        let durable = &mut self.durable;
        self.pending.retain(|pending| {
            let now = pending.number <= upto && pending.edit.dir() == Some(dir);
            if now {
                pending.edit.apply(durable);
            }
            !now
        });
    }

    /// The names after a loss of power. A lost directory loses its content.
    pub(super) fn after_crash(&self, random: &mut Random) -> Self {
        let mut kept = self.durable.clone();
        for pending in &self.pending {
            if random.one_in(2) {
                pending.edit.apply(&mut kept);
            }
        }
        let reachable = kept.iter().filter(|(path, _)| {
            let mut parents = path.ancestors().skip(1);
            parents.all(|parent| parent.parent().is_none() || kept.get(parent) == Some(&Entry::Dir))
        });
        let reachable: BTreeMap<_, _> = reachable
            .map(|(path, entry)| (path.clone(), *entry))
            .collect();
        Self {
            seen: reachable.clone(),
            durable: reachable,
            ..Self::default()
        }
    }

    fn begin(&mut self, edit: Edit) {
        edit.apply(&mut self.seen);
        self.begun += 1;
        self.pending.push(Pending {
            number: self.begun,
            edit,
        });
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) => self.check_dir(parent),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn check_dir(&self, dir: &Path) -> io::Result<()> {
        match self.seen.get(dir) {
            Some(Entry::Dir) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None if dir.parent().is_none() => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Edit {
    /// The directory that has to be synced.
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Create { path, .. } | Self::Remove { path } => path.parent(),
            Self::Rename { to, .. } => to.parent(),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        match self {
            Self::Create { path, entry } => {
                names.insert(path.clone(), *entry);
            }
            Self::Remove { path } => {
                names.remove(path);
            }
            Self::Rename { from, to, entry } => {
                names.remove(from);
                names.insert(to.clone(), *entry);
            }
        }
    }
}
