//! The memory that is available to this daemon.

use std::{fs, path::Path};

/// The part of the machine's memory that the cache of chunks takes by default.
const CACHE_SHARE: u64 = 16;
/// The least and the most bytes of the cache.
const CACHE_BYTES: (u64, u64) = (varve_store::limits::CHUNK_CACHE_BYTES, 2 << 30);

/// The default size of the chunk cache in bytes: a sixteenth of the memory, from 128 MiB to 2 GiB.
pub(super) fn chunk_cache_bytes() -> u64 {
    let all = available(Path::new("/")).unwrap_or(0);
    (all / CACHE_SHARE).clamp(CACHE_BYTES.0, CACHE_BYTES.1)
}

/// The available memory in bytes: the most that a setting may give to a cache.
pub(super) fn total_bytes() -> u64 {
    available(Path::new("/")).unwrap_or(i64::MAX.cast_unsigned())
}

/// The machine's memory, or the limit of the control group, in bytes. `None` if it cannot be
/// determined.
fn available(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = meminfo.lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
    })?;
    Some(group_limit(root).map_or(total, |limit| limit.min(total)))
}

/// The smallest limit of this process's control group and of those around it (version 2).
fn group_limit(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let hierarchy = root.join("sys/fs/cgroup");
    let own = hierarchy.join(group);
    own.ancestors()
        .take_while(|group| group.starts_with(&hierarchy))
        .filter_map(|group| {
            let limit = fs::read_to_string(group.join("memory.max")).ok()?;
            // Or "max".
            limit.trim().parse().ok()
        })
        .min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// A machine with these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       24575372 kB\nMemFree:         1000000 kB\n",
    );

    #[test]
    fn the_machines_memory_counts_unless_a_group_has_less() {
        let whole = 24_575_372 << 10;
        let plain = machine(&[MEMINFO]);
        assert_eq!(available(plain.path()), Some(whole));
        let group = ("proc/self/cgroup", "0::/system.slice/varved.service\n");
        let service = "sys/fs/cgroup/system.slice/varved.service/memory.max";
        let slice = "sys/fs/cgroup/system.slice/memory.max";
        for (own, around, wanted) in [
            ("max\n", "max\n", whole),
            ("1073741824\n", "max\n", 1 << 30),
            ("4294967296\n", "2147483648\n", 2 << 30),
            ("99999999999999\n", "max\n", whole),
        ] {
            let machine = machine(&[MEMINFO, group, (service, own), (slice, around)]);
            assert_eq!(available(machine.path()), Some(wanted), "{own} {around}");
        }
        assert_eq!(available(machine(&[]).path()), None);
    }

    #[test]
    fn the_cache_has_its_bounds() {
        assert!((CACHE_BYTES.0..=CACHE_BYTES.1).contains(&chunk_cache_bytes()));
    }
}
