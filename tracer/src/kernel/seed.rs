//! What was there before the hooks: walks the sockets of every network namespace through the kernel
//! half's iterators, and finds out which processes hold them.
//!
//! An iterator shows the namespace of the thread that makes it, so each is made by a thread that has
//! entered one; reading it needs no capability and is left to the poll. What is not known here: what a
//! socket's state means.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read},
    mem::offset_of,
    os::fd::AsFd,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use aya::{
    Btf as AyaBtf, Ebpf,
    programs::{Iter, Program},
};
use conntracer_common::{
    record::{Header, Seeded, kind},
    socket::Holder,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use zerocopy::{FromBytes, IntoBytes};

use super::progress::Progress;
use crate::plan::{HookPlan, HookType, Refused};

/// The iterators and what they walk.
const ITERATORS: [(&str, &str); 3] = [
    ("seed", "tcp"),
    ("seed_owners", "task_file"),
    ("seed_list", "tcp"),
];

/// What the kernel writes at most at one read (kernel/bpf/bpf_iter.c: 8 pages).
const READ_BYTES: usize = 32 * 1024;

/// Where network namespaces are kept that need no process: by ip-netns(8), and by Docker.
const KEPT: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// Loads the iterators. Without them nothing older than conntracer is known until a hook meets it, which
/// the plan says.
pub(super) fn load(ebpf: &mut Ebpf, btf: &AyaBtf) -> Result<(), String> {
    for (name, of) in ITERATORS {
        iterator(ebpf, name)?
            .load(of, btf)
            .map_err(|error| super::attach::reason(&error))?;
    }
    Ok(())
}

/// How the plan says that there is no walk at start.
pub(super) fn without(reason: &str) -> HookPlan {
    HookPlan {
        hook: "seed".to_owned(),
        hook_type: HookType::Off,
        attached: Vec::new(),
        refused: vec![Refused {
            hook_type: HookType::Tracepoint,
            reason: reason.to_owned(),
        }],
        blind_to: Some(
            "connections and listeners older than conntracer before they do something".to_owned(),
        ),
    }
}

fn iterator<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Iter, String> {
    match ebpf.program_mut(name) {
        Some(Program::Iter(program)) => Ok(program),
        _ => Err(format!("the eBPF object has no iterator {name}")),
    }
}

/// An iterator over what the calling thread's namespaces show.
fn open(ebpf: &mut Ebpf, name: &str) -> io::Result<File> {
    let program = iterator(ebpf, name).map_err(io::Error::other)?;
    let id = program.attach().map_err(io::Error::other)?;
    let link = program.take_link(id).map_err(io::Error::other)?;
    link.into_file().map_err(io::Error::other)
}

/// Reads an iterator to its end. EAGAIN: a million objects passed without a word, and there are more.
fn read(mut iterator: &File, buffer: &mut [u8], see: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    loop {
        match iterator.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => see(&buffer[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Looks for the owners of sockets that have none, and says who holds each socket.
pub(super) fn find_owners(ebpf: &mut Ebpf, see: &mut dyn FnMut(&Holder)) -> io::Result<()> {
    let files = open(ebpf, "seed_owners")?;
    read(&files, &mut vec![0; READ_BYTES], &mut |bytes| {
        for holder in bytes.chunks_exact(size_of::<Holder>()) {
            if let Ok(holder) = Holder::read_from_bytes(holder) {
                see(&holder);
            }
        }
    })
}

/// The walk that is under way.
#[derive(Debug, Default)]
pub(super) struct Seeds {
    /// Lists of what was found, one a namespace, not read yet.
    lists: Vec<File>,
    summary: Option<Seeded>,
}

impl Seeds {
    /// Takes in the sockets of the namespaces asked for (`None`: of all that something leads into) and
    /// finds their owners.
    pub(super) fn begin(ebpf: &mut Ebpf, asked: Option<&BTreeSet<u32>>) -> io::Result<Self> {
        let began_ns = super::live::ktime_ns();
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
                    read(&walk, &mut [0; 512], &mut |_| ())?;
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
        find_owners(ebpf, &mut |_| ())?;
        drop(progress);
        summary.not_entered = u32::try_from(missing.len()).unwrap_or(u32::MAX);
        summary.took_ns = super::live::ktime_ns().saturating_sub(began_ns);
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

    /// Feeds a `Seed` of everything found, and how the walk went.
    pub(super) fn list(&mut self, untracked: u64, feed: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let Some(summary) = self.summary.take() else {
            return Ok(());
        };
        let began_ns = super::live::ktime_ns();
        let mut buffer = vec![0; READ_BYTES];
        for list in std::mem::take(&mut self.lists) {
            read(&list, &mut buffer, &mut |bytes| each(bytes, feed))?;
        }
        let now_ns = super::live::ktime_ns();
        let seeded = Seeded {
            header: super::live::header::<Seeded>(kind::SEEDED, now_ns),
            untracked,
            took_ns: summary.took_ns + now_ns.saturating_sub(began_ns),
            ..summary
        };
        feed(seeded.as_bytes());
        Ok(())
    }
}

/// Splits what a read brought into records; each is written whole or not at all.
fn each(mut bytes: &[u8], feed: &mut dyn FnMut(&[u8])) {
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
                Ok((open(ebpf, "seed")?, open(ebpf, "seed_list")?))
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
            header: super::super::live::header::<Seed>(kind::SEED, ktime_ns),
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
