//! What was there before the hooks: walks the sockets of every network namespace through the eBPF side's
//! iterators, and finds out which processes hold them.
//!
//! An iterator shows the namespace of the thread that makes it, so each is made by a thread that has
//! entered one; reading it needs no capability and is left to the poll. What is not known here: what a
//! socket's state means.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    mem::offset_of,
    os::fd::AsFd,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use aya::Ebpf;
use conntracer_common::{
    filter::Filter,
    record::{Header, Seeded, kind},
    stats::hook,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use zerocopy::IntoBytes;

use super::{Feed, Poll};
use crate::kernel::{clock::ktime_ns, header::header, iterators, progress::Progress};

/// Where network namespaces are kept that need no process: by ip-netns(8), and by Docker.
const KEPT: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// The walk that is under way.
#[derive(Debug, Default)]
pub(crate) struct Seeds {
    /// Lists of what was found, one a namespace, not read yet.
    lists: Vec<File>,
    summary: Option<Seeded>,
}

impl Seeds {
    /// Takes in the sockets of the namespaces that are there and match the filter, and finds their owners. `there` is
    /// `None` where nobody can list them: then of those the filter names, or of all that something leads into.
    pub(crate) fn begin(
        ebpf: &mut Ebpf,
        there: Option<BTreeSet<u32>>,
        filter: &Filter,
    ) -> io::Result<Self> {
        let named = filter.netns.into_iter().filter(|inode| *inode != 0);
        let named = || (filter.netns[0] != 0).then(|| named.collect());
        Self::walk(ebpf, there.or_else(named).as_ref())
    }

    fn walk(ebpf: &mut Ebpf, asked: Option<&BTreeSet<u32>>) -> io::Result<Self> {
        let began_ns = ktime_ns();
        let namespaces = handles(asked);
        let mut seeds = Self::default();
        let mut summary = Seeded::default();
        let mut missing = asked.cloned().unwrap_or_default();
        let mut refused = None;
        let mut progress = Progress::on_stderr();
        for (at, (inode, namespace)) in namespaces.iter().enumerate() {
            let of = namespaces.len();
            progress.show(
                Instant::now(),
                format_args!("taking in the sockets of {at} of {of} network namespaces"),
            );
            match enter(ebpf, namespace) {
                Ok((walk, list)) => {
                    iterators::read(&walk, &mut |_| ())?;
                    seeds.lists.push(list);
                    summary.namespaces += 1;
                    missing.remove(inode);
                }
                Err(error) => {
                    missing.insert(*inode);
                    refused = Some(error);
                }
            }
        }
        progress.show(
            Instant::now(),
            format_args!("looking for the owners of sockets"),
        );
        iterators::find_owners(ebpf, &mut |_| ())?;
        drop(progress);
        summary.not_entered = u32::try_from(missing.len()).unwrap_or(u32::MAX);
        summary.took_ns = ktime_ns().saturating_sub(began_ns);
        if !missing.is_empty() {
            let reason = refused.map_or_else(
                || "no process, mount or descriptor leads there".to_owned(),
                |error| error.to_string(),
            );
            log::warn!(
                "sockets of {} network namespaces that are older than conntracer are not known yet: \
                 {reason}",
                missing.len()
            );
        }
        seeds.summary = Some(summary);
        Ok(seeds)
    }

    /// Once: a `Seed` of everything found, and how the walk went.
    pub(crate) fn poll(&mut self, poll: &mut Poll<'_>) -> io::Result<()> {
        let Some(summary) = self.summary else {
            return Ok(());
        };
        let untracked = poll.accounts.counted(hook::SEED)?.lost;
        self.summary = None;
        let began_ns = ktime_ns();
        for list in std::mem::take(&mut self.lists) {
            iterators::read(&list, &mut |bytes| each(bytes, poll.feed))?;
        }
        let now_ns = ktime_ns();
        let seeded = Seeded {
            header: header::<Seeded>(kind::SEEDED, now_ns),
            untracked,
            took_ns: summary.took_ns + now_ns.saturating_sub(began_ns),
            ..summary
        };
        (poll.feed)(seeded.as_bytes());
        Ok(())
    }
}

/// Splits what a read brought into records; each is written whole or not at all.
pub(crate) fn each(mut bytes: &[u8], feed: Feed<'_>) {
    const SIZE: usize = offset_of!(Header, size);
    while let Some(size) = bytes.get(SIZE..SIZE + 2) {
        let size = usize::from(u16::from_ne_bytes([size[0], size[1]]));
        let Some((record, rest)) = bytes.split_at_checked(size.max(size_of::<Header>())) else {
            return;
        };
        feed(record);
        bytes = rest;
    }
}

/// Makes both iterators over a namespace, in a thread that enters it.
fn enter(ebpf: &mut Ebpf, namespace: &File) -> io::Result<(File, File)> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("seed".to_owned())
            .spawn_scoped(scope, || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok((
                    iterators::open(ebpf, "seed")?,
                    iterators::open(ebpf, "seed_list")?,
                ))
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that enters it panicked")))
    })
}

/// A way into each network namespace that has one, by inode: of those asked for, or of all.
fn handles(asked: Option<&BTreeSet<u32>>) -> BTreeMap<u32, File> {
    let mut found = Handles {
        asked,
        found: BTreeMap::new(),
    };
    found.add(Path::new("/proc/thread-self/ns/net"));
    for directory in KEPT {
        for path in entries(Path::new(directory)) {
            found.add(&path);
        }
    }
    let processes: Vec<PathBuf> = entries(Path::new("/proc"))
        .filter(|path| path.file_name().is_some_and(is_number))
        .collect();
    for process in &processes {
        found.add(&process.join("ns/net"));
    }
    // Threads that went elsewhere, and descriptors: many, and seldom what leads to a namespace.
    for directory in ["task", "fd"] {
        for process in &processes {
            if found.complete() {
                break;
            }
            for path in entries(&process.join(directory)) {
                if directory == "task" {
                    found.add(&path.join("ns/net"));
                } else if fs::read_link(&path)
                    .is_ok_and(|target| target.to_string_lossy().starts_with("net:["))
                {
                    found.add(&path);
                }
            }
        }
    }
    found.found
}

struct Handles<'a> {
    asked: Option<&'a BTreeSet<u32>>,
    found: BTreeMap<u32, File>,
}

impl Handles<'_> {
    /// What cannot be looked at leads nowhere.
    fn add(&mut self, path: &Path) {
        let Ok(inode) = fs::metadata(path).map(|metadata| metadata.ino()) else {
            return;
        };
        let Ok(inode) = u32::try_from(inode) else {
            return;
        };
        if self.found.contains_key(&inode)
            || self.asked.is_some_and(|asked| !asked.contains(&inode))
        {
            return;
        }
        if let Ok(file) = File::open(path) {
            self.found.insert(inode, file);
        }
    }

    fn complete(&self) -> bool {
        self.asked
            .is_some_and(|asked| asked.len() == self.found.len())
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
}

fn is_number(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use conntracer_common::record::Seed;

    use super::*;

    #[test]
    fn a_read_is_split_into_its_records_and_half_a_one_is_none() {
        let record = |ktime_ns| Seed {
            header: header::<Seed>(kind::SEED, ktime_ns),
            ..Seed::default()
        };
        let mut bytes = record(1).as_bytes().to_vec();
        bytes.extend(record(2).as_bytes());
        bytes.extend(&record(3).as_bytes()[..100]);
        let mut times = Vec::new();
        each(&bytes, &mut |bytes| times.push(bytes[0]));
        assert_eq!(times, [1, 2]);
        each(&[0; 12], &mut |bytes| panic!("{bytes:?} is no record"));
    }

    #[test]
    fn the_own_namespace_leads_into_itself_and_nothing_leads_into_none() {
        let own = fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        let own = u32::try_from(own).unwrap();
        let asked = BTreeSet::from([own, 1]);
        let found = handles(Some(&asked));
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [own]);
    }
}
