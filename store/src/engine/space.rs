//! Free space on the store's file system, and reserves that can give some back.

use std::{fmt, path::PathBuf, sync::Arc};

use parking_lot::RwLock;

use crate::{
    Error, Result,
    io::{Disk, offload},
    limits,
};

/// Holds space on the file system that can be given up.
pub(crate) trait SpaceReserve: fmt::Debug + Send + Sync {
    /// Gives back all space that is not in use. May take long.
    fn give_up(&self);
}

/// The free space of the file system that a store is on.
#[derive(Debug)]
pub(crate) struct FreeSpace {
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    reserves: RwLock<Vec<Arc<dyn SpaceReserve>>>,
}

impl FreeSpace {
    pub(crate) fn new(disk: Arc<dyn Disk>, data_dir: PathBuf) -> Self {
        Self {
            disk,
            data_dir,
            reserves: RwLock::default(),
        }
    }

    /// Adds a reserve. It is asked to give space back before anything is refused for lack of space.
    pub(crate) fn register(&self, reserve: Arc<dyn SpaceReserve>) {
        self.reserves.write().push(reserve);
    }

    /// Free bytes of the file system.
    pub(crate) fn free_bytes(&self) -> Result<u64> {
        self.disk
            .free_bytes(&self.data_dir)
            .map_err(|source| Error::io("read the free space of", &self.data_dir, source))
    }

    /// Checks that there is more free space than index and catalog log need: chunks must not take
    /// the last of it.
    ///
    /// # Errors
    ///
    /// [`Error::Reserved`] if there is not, even after the reserves have given space back.
    pub(crate) async fn check(&self) -> Result<()> {
        let is_short = || -> Result<bool> { Ok(self.free_bytes()? < limits::FREE_BYTES_MIN) };
        if !is_short()? {
            return Ok(());
        }
        let reserves = self.reserves.read().clone();
        offload(move || reserves.iter().for_each(|reserve| reserve.give_up())).await?;
        if is_short()? {
            return Err(Error::Reserved {
                path: self.data_dir.clone(),
                kept_bytes: limits::FREE_BYTES_MIN,
            });
        }
        Ok(())
    }
}
