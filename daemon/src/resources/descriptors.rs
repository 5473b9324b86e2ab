//! The file descriptors of the daemon: the number that it needs, and the division of those that it
//! gets.
//!
//! The store comes first: a refused connection can be retried, but a guest whose writes are refused
//! has lost its disk. So the store's share is reserved at the start, and the rest bounds the number
//! of connections: the store and its management find descriptors beside any number of idle ones.
//!
//! | share | use |
//! | --- | --- |
//! | fixed | RocksDB, packs being written, logs, listeners, copies, the runtime: [`DESCRIPTORS_FIXED`] |
//! | packs | packs kept open for reads |
//! | journals | journal files of all volumes: two for each that is being written, and those that are read |
//! | gRPC, NBD | connections of each, both listeners together, and the handshakes at them |

use std::fmt;

use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

use super::limits::{
    DESCRIPTORS_FIXED, DESCRIPTORS_LEAST, JOURNAL_DESCRIPTORS_LEAST, PACK_DESCRIPTORS_LEAST,
};
use crate::{
    limits::CONNECTIONS_MAX,
    net::limits::{HANDSHAKES_LEAST, handshakes_max},
};

/// The division of a process's descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit of the process.
    pub limit: u64,
    /// The number that a daemon needs when all tables are full.
    pub wanted: u64,
    /// Packs kept open for reads.
    pub packs: usize,
    /// Descriptors for journals.
    pub journals: usize,
    /// gRPC connections.
    pub grpc_connections: usize,
    /// NBD connections.
    pub nbd_connections: usize,
}

/// The error for fewer descriptors than a store needs.
#[derive(Debug, thiserror::Error)]
#[error(
    "{limit} open files are permitted, and varved needs {} at least: raise the limit \
     (`ulimit -n`, or LimitNOFILE= of a systemd unit)",
    DESCRIPTORS_LEAST
)]
pub struct TooFew {
    limit: u64,
}

/// Number of descriptors for `volumes` attached volumes and `nbd_connections`.
#[must_use]
pub const fn asked_for(volumes: u64, nbd_connections: usize) -> u64 {
    DESCRIPTORS_FIXED
        + varve_store::limits::PACKS_OPEN_MAX as u64
        + varve_store::limits::journal_descriptors(volumes)
        + (descriptors_of(CONNECTIONS_MAX) + descriptors_of(nbd_connections)) as u64
}

/// Number of descriptors of a service with this many places, including the handshakes at its two
/// listeners beyond the fixed ones.
const fn descriptors_of(places: usize) -> usize {
    places + 2 * (handshakes_max(places) - HANDSHAKES_LEAST)
}

/// The most places that these descriptors allow.
fn places_of(descriptors: usize) -> usize {
    // Descriptors are at most half again as many as places, so the answer is a few steps away.
    let mut places = descriptors * 2 / 3;
    while descriptors_of(places + 1) <= descriptors {
        places += 1;
    }
    places
}

impl Descriptors {
    /// Divides `limit`, with at most `nbd_connections` for NBD.
    ///
    /// # Errors
    ///
    /// [`TooFew`] if the store would not have the descriptors that it needs.
    pub fn divide(limit: u64, nbd_connections: usize) -> Result<Self, TooFew> {
        let wanted = asked_for(varve_store::limits::VOLUMES_MAX, nbd_connections);
        if limit < DESCRIPTORS_LEAST {
            return Err(TooFew { limit });
        }
        let rest = usize::try_from(limit.min(wanted) - DESCRIPTORS_FIXED).unwrap_or(usize::MAX);
        let packs_max = varve_store::limits::PACKS_OPEN_MAX;
        let packs = (rest / 8).clamp(PACK_DESCRIPTORS_LEAST, packs_max);
        // Journals and connections get half each of the rest behind packs. If one needs less, the
        // other gets more.
        let rest = rest - packs;
        let journals_max = varve_store::limits::JOURNAL_FILES_OPEN_MAX;
        let grpc_max = descriptors_of(CONNECTIONS_MAX);
        let nbd_max = descriptors_of(nbd_connections);
        let connections_max = grpc_max + nbd_max;
        let journals = (rest / 2)
            .max(rest.saturating_sub(connections_max))
            .clamp(JOURNAL_DESCRIPTORS_LEAST, journals_max);
        let connections = rest - journals;
        // NBD gets its share of the connections, but leaves at least a quarter to gRPC.
        let grpc_least = (connections / 4).min(grpc_max);
        let nbd = (connections * nbd_max).div_ceil(connections_max);
        let nbd = nbd.clamp(1, nbd_max.min(connections - grpc_least));
        let grpc = (connections - nbd).min(grpc_max);
        Ok(Self {
            limit,
            wanted,
            packs,
            journals,
            grpc_connections: places_of(grpc).min(CONNECTIONS_MAX),
            nbd_connections: places_of(nbd).min(nbd_connections),
        })
    }

    /// The same for the limit of this process.
    ///
    /// # Errors
    ///
    /// As for [`divide`](Self::divide).
    pub fn of_process(nbd_connections: usize) -> Result<Self, TooFew> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self::divide(limit, nbd_connections)
    }

    /// Logs the division, as a warning if there are fewer than a daemon with full tables needs.
    pub fn tell(&self) {
        let Self { limit, wanted, .. } = self;
        if limit < wanted {
            warn!("{self}: raise the limit for more (LimitNOFILE= of a systemd unit)");
        } else {
            info!("{self}");
        }
    }
}

impl fmt::Display for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} open files are permitted, {} are asked for with {} volumes attached; \
             kept for the store: {DESCRIPTORS_FIXED}, {} packs, {} for journals; \
             connections: {} of gRPC, {} of NBD",
            self.limit,
            self.wanted,
            varve_store::limits::VOLUMES_MAX,
            self.packs,
            self.journals,
            self.grpc_connections,
            self.nbd_connections
        )
    }
}

/// Raises the soft limit of open files to the hard one: the usual soft limit is 1024, for programs
/// that use select().
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let before = limit.current;
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, limit = before, wanted = limit.maximum, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::limits::NBD_CONNECTIONS_MAX;

    /// The sum of all shares.
    fn sum(divided: &Descriptors) -> u64 {
        let connections =
            descriptors_of(divided.grpc_connections) + descriptors_of(divided.nbd_connections);
        DESCRIPTORS_FIXED + (divided.packs + divided.journals + connections) as u64
    }

    #[test]
    fn connections_never_take_what_the_store_needs() {
        for nbd in [1, 10, 100, NBD_CONNECTIONS_MAX, 100_000] {
            for limit in (DESCRIPTORS_LEAST..DESCRIPTORS_LEAST + 300)
                .chain((600..40_000).step_by(97))
                .chain([524_288, 1 << 30, u64::MAX])
            {
                let divided = Descriptors::divide(limit, nbd).unwrap();
                let sum = sum(&divided);
                assert!(sum <= limit, "{limit}: {divided:?} is {sum}");
                assert!(divided.packs >= PACK_DESCRIPTORS_LEAST, "{divided:?}");
                assert!(divided.journals >= JOURNAL_DESCRIPTORS_LEAST, "{divided:?}");
                assert!(divided.grpc_connections >= 4, "{divided:?}");
                assert!((1..=nbd).contains(&divided.nbd_connections), "{divided:?}");
            }
        }
    }

    #[test]
    fn what_is_asked_for_is_enough_for_all_there_may_be() {
        let wanted = asked_for(varve_store::limits::VOLUMES_MAX, NBD_CONNECTIONS_MAX);
        let divided = Descriptors::divide(wanted, NBD_CONNECTIONS_MAX).unwrap();
        assert_eq!(
            divided,
            Descriptors {
                limit: wanted,
                wanted,
                packs: 256,
                journals: 9216,
                grpc_connections: 4096,
                nbd_connections: 4096,
            }
        );
        // As documented.
        assert_eq!(wanted, 19_064);
        assert_eq!(asked_for(0, NBD_CONNECTIONS_MAX), 10_872);
    }

    #[test]
    fn the_usual_soft_limit_is_divided() {
        let divided = Descriptors::divide(1024, NBD_CONNECTIONS_MAX).unwrap();
        assert_eq!(
            (
                divided.packs,
                divided.journals,
                divided.grpc_connections,
                divided.nbd_connections
            ),
            (73, 255, 107, 107)
        );
        assert!(
            divided
                .to_string()
                .contains("1024 open files are permitted, 19064 are asked for")
        );
    }

    #[test]
    fn too_few_are_refused_with_the_number() {
        let error = Descriptors::divide(200, 10).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("200 open files are permitted"),
            "{error}"
        );
        assert!(
            error.to_string().contains(&DESCRIPTORS_LEAST.to_string()),
            "{error}"
        );
    }
}
