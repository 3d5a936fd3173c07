//! Which BPF objects the kernel holds, and which of them belong to a process: what must be gone when
//! the process is.

use std::{collections::BTreeSet, fs, io, path::Path};

use anyhow::{Context, Result};
use rustix::process::Pid;

/// Commands of bpf(2), linux/bpf.h: each walks the ids of one kind of object.
const BPF_PROG_GET_NEXT_ID: libc::c_long = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_long = 12;
const BPF_LINK_GET_NEXT_ID: libc::c_long = 31;

/// Identities of BPF objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    pub programs: BTreeSet<u32>,
    pub maps: BTreeSet<u32>,
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// All there are. Needs CAP_SYS_ADMIN.
    pub fn in_kernel() -> Result<Self> {
        Ok(Self {
            programs: ids(BPF_PROG_GET_NEXT_ID).context("listing BPF programs")?,
            maps: ids(BPF_MAP_GET_NEXT_ID).context("listing BPF maps")?,
            links: ids(BPF_LINK_GET_NEXT_ID).context("listing BPF links")?,
        })
    }

    /// Those that a process has open.
    pub fn of(pid: Pid) -> Result<Self> {
        let directory = format!("/proc/{pid}/fdinfo");
        let mut objects = Self::default();
        for entry in fs::read_dir(&directory).with_context(|| format!("reading {directory}"))? {
            let path = entry
                .with_context(|| format!("reading {directory}"))?
                .path();
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                // Closed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("reading {}", path.display()));
                }
            };
            objects.take_note(&text);
        }
        Ok(objects)
    }

    /// Whether nothing of the one is in the other.
    #[must_use]
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.programs.is_disjoint(&other.programs)
            && self.maps.is_disjoint(&other.maps)
            && self.links.is_disjoint(&other.links)
    }

    fn take_note(&mut self, fdinfo: &str) {
        for (key, value) in fdinfo.lines().filter_map(|line| line.split_once(':')) {
            let ids = match key {
                "prog_id" => &mut self.programs,
                "map_id" => &mut self.maps,
                "link_id" => &mut self.links,
                _ => continue,
            };
            ids.extend(value.trim().parse::<u32>());
        }
    }
}

/// Names in the top directory of the BPF file system; none where it is not mounted.
pub fn pins() -> Result<BTreeSet<String>> {
    names(Path::new("/sys/fs/bpf")).context("listing /sys/fs/bpf")
}

/// `union bpf_attr` of the three commands.
#[repr(C)]
struct NextId {
    start: u32,
    next: u32,
    open_flags: u32,
}

fn ids(command: libc::c_long) -> io::Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    let mut attr = NextId {
        start: 0,
        next: 0,
        open_flags: 0,
    };
    loop {
        // SAFETY: `attr` is a valid attribute of these commands, of the size given, and is only
        // written to within that size.
        let status =
            unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<NextId>()) };
        if status != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(ids),
                _ => Err(error),
            };
        }
        ids.insert(attr.next);
        attr.start = attr.next;
    }
}

fn names(directory: &Path) -> io::Result<BTreeSet<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_names_its_program_too() {
        let mut objects = Objects::default();
        objects.take_note("pos:\t0\nlink_type:\ttracing\nlink_id:\t7\nprog_id:\t12\n");
        let expected = Objects {
            programs: BTreeSet::from([12]),
            maps: BTreeSet::new(),
            links: BTreeSet::from([7]),
        };
        assert_eq!(objects, expected);
    }
}
