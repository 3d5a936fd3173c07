//! How a process stands now: running, stopped or frozen, and whether it can open another descriptor.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use conntracer_common::record::descriptor_kind;

use super::{process, stat::Stat};

/// Threads looked at; of more it is said that there are.
const MAX_THREADS: usize = 256;
/// Descriptors counted one by one, where the kernel does not say how many there are (before 6.2).
const MAX_COUNTED: usize = 16_384;
/// Those whose kind is looked at, at some 1 µs each: where none is to spare.
const MAX_RESOLVED: usize = 4_096;
/// Control groups above one another that are looked at.
const MAX_DEPTH: usize = 16;

/// A process as /proc shows it now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) parent_pid: u32,
    pub(crate) comm: Vec<u8>,
    /// The letter of its first thread's state.
    pub(crate) state: u8,
    pub(crate) cpu_ms: u64,
    pub(crate) threads: u32,
    /// Of those looked at.
    pub(crate) stopped: u32,
    pub(crate) has_more_threads: bool,
    pub(crate) descriptors: Option<u32>,
    pub(crate) descriptor_limit: Option<u32>,
    /// What most of them are, by [`descriptor_kind`], and how many; where there are as many as there may be.
    pub(crate) descriptors_mostly: Option<(u8, u32)>,
    pub(crate) waits_in: Vec<u8>,
    pub(crate) is_frozen: bool,
    /// Times and microseconds.
    pub(crate) throttled: Option<(u64, u64)>,
}

/// Reads `proc`/`pid`; `None` when there is no such process any more. `cgroups` is where the unified hierarchy is
/// mounted.
pub(crate) fn read(proc: &Path, cgroups: &Path, pid: u32, ticks_per_s: u64) -> Option<Standing> {
    let directory = proc.join(pid.to_string());
    let stat = Task::parse(&fs::read(directory.join("stat")).ok()?, ticks_per_s)?;
    let mut standing = Standing {
        parent_pid: stat.parent_pid,
        comm: stat.comm,
        state: stat.state,
        cpu_ms: stat.cpu_ms,
        ..Standing::default()
    };
    // One that ends meanwhile has no threads left to count.
    for thread in fs::read_dir(directory.join("task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        if standing.threads as usize == MAX_THREADS {
            standing.has_more_threads = true;
            break;
        }
        let state = fs::read(thread.path().join("stat")).ok();
        let Some(stat) = state.and_then(|text| Task::parse(&text, ticks_per_s)) else {
            continue;
        };
        standing.threads += 1;
        standing.stopped += u32::from(matches!(stat.state, b'T' | b't'));
    }
    standing.descriptor_limit = fs::read(directory.join("limits"))
        .ok()
        .and_then(|limits| descriptor_limit(&limits));
    standing.descriptors = descriptors(&directory.join("fd"), standing.descriptor_limit);
    if standing.descriptors.is_some() && standing.descriptors >= standing.descriptor_limit {
        standing.descriptors_mostly = mostly(&directory.join("fd"));
    }
    standing.waits_in = fs::read(directory.join("wchan"))
        .ok()
        .filter(|function| function != b"0")
        .unwrap_or_default();
    let cgroup = fs::read(directory.join("cgroup")).ok();
    if let Some(path) = cgroup.as_deref().and_then(process::unified) {
        read_cgroup(cgroups, path, &mut standing);
    }
    Some(standing)
}

/// Children of a process: by the kernel's own list, or by looking at all processes, of which there are `most`.
pub(crate) fn children(proc: &Path, pid: u32, most: usize, scans: bool) -> Vec<u32> {
    let tasks = proc.join(pid.to_string()).join("task");
    let mut lists = fs::read_dir(tasks)
        .into_iter()
        .flatten()
        .flatten()
        .take(MAX_THREADS);
    let mut children = Vec::new();
    let mut listed = false;
    for list in &mut lists {
        let Ok(text) = fs::read_to_string(list.path().join("children")) else {
            break;
        };
        listed = true;
        children.extend(
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    if !listed && scans {
        children = pids(proc)
            .filter(|child| {
                fs::read(proc.join(child.to_string()).join("stat"))
                    .ok()
                    .and_then(|stat| Task::parse(&stat, 1))
                    .is_some_and(|stat| stat.parent_pid == pid)
            })
            .collect();
    }
    children.sort_unstable();
    children.truncate(most);
    children
}

/// Processes looked through at most, where one is searched for.
const MAX_PROCESSES: usize = 8192;

/// The processes there are.
pub(crate) fn pids(proc: &Path) -> impl Iterator<Item = u32> {
    fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .take(MAX_PROCESSES)
}

/// Those below the limit: one above it, older than the limit, takes no place of another. The size of the directory is
/// their number from Linux 6.2 on (`proc_fd_getattr`), and 0 before; where all are below a limit that is not reached, it
/// needs no counting.
fn descriptors(directory: &Path, limit: Option<u32>) -> Option<u32> {
    let size = u32::try_from(fs::metadata(directory).ok()?.size()).ok()?;
    if size > 0 && limit.is_none_or(|limit| size < limit) {
        return Some(size);
    }
    let limit = limit.unwrap_or(u32::MAX);
    let entries = fs::read_dir(directory).ok()?.flatten().take(MAX_COUNTED);
    let (mut all, mut below) = (0, 0);
    for entry in entries {
        let number: Option<u32> = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        all += 1;
        below += u32::from(number.is_some_and(|number| number < limit));
    }
    (all < MAX_COUNTED).then_some(below)
}

/// What most of the descriptors lead to, of some thousand of them.
fn mostly(directory: &Path) -> Option<(u8, u32)> {
    let mut counts = [0_u32; descriptor_kind::COUNT];
    for entry in fs::read_dir(directory).ok()?.flatten().take(MAX_RESOLVED) {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        counts[usize::from(kind_of(target.as_os_str().as_bytes()))] += 1;
    }
    let kinds = (0..).zip(counts).skip(1);
    let (kind, count) = kinds.max_by_key(|(_, count)| *count)?;
    (count > 0).then_some((kind, count))
}

/// Of the link in /proc/PID/fd.
fn kind_of(target: &[u8]) -> u8 {
    let kinds: [(&[u8], u8); 4] = [
        (b"socket:", descriptor_kind::SOCKET),
        (b"pipe:", descriptor_kind::PIPE),
        (b"anon_inode:", descriptor_kind::ANONYMOUS),
        (b"/", descriptor_kind::FILE),
    ];
    let kind = kinds.iter().find(|(prefix, _)| target.starts_with(prefix));
    kind.map_or(descriptor_kind::UNKNOWN, |(_, kind)| *kind)
}

/// The soft limit, which is in the first column.
fn descriptor_limit(limits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(limits).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Frozen is a group with one that is above it; throttled is the one with the quota.
fn read_cgroup(root: &Path, path: &[u8], standing: &mut Standing) {
    let Some(below) = path.strip_prefix(b"/") else {
        return;
    };
    let mut directory: PathBuf = root.join(OsStr::from_bytes(below));
    for depth in 0..MAX_DEPTH {
        if depth == 0
            && let Ok(events) = fs::read(directory.join("cgroup.events"))
        {
            standing.is_frozen = value(&events, "frozen") == Some(1);
        }
        if let Ok(stat) = fs::read(directory.join("cpu.stat"))
            && let (Some(times), Some(us)) =
                (value(&stat, "nr_throttled"), value(&stat, "throttled_usec"))
        {
            let most = standing.throttled.map_or(0, |(_, us)| us);
            if standing.throttled.is_none() || us > most {
                standing.throttled = Some((times, us));
            }
        }
        if directory == root || !directory.pop() {
            break;
        }
    }
}

/// The number behind a name.
fn value(text: &[u8], name: &str) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)?
        .1
        .trim()
        .parse()
        .ok()
}

/// What of /proc/PID/stat is read.
struct Task {
    comm: Vec<u8>,
    state: u8,
    parent_pid: u32,
    cpu_ms: u64,
}

impl Task {
    fn parse(stat: &[u8], ticks_per_s: u64) -> Option<Self> {
        let stat = Stat::split(stat)?;
        let ticks = stat.number(14)?.saturating_add(stat.number(15)?);
        Some(Self {
            comm: stat.comm.to_owned(),
            state: *stat.field(3)?.as_bytes().first()?,
            parent_pid: stat.field(4)?.parse().ok()?,
            cpu_ms: ticks.saturating_mul(1000).checked_div(ticks_per_s)?,
        })
    }
}

/// Reads `text` as each of the files.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &[u8]) {
    for ticks_per_s in [0, 1, 100] {
        let _read = Task::parse(text, ticks_per_s);
    }
    let _read = descriptor_limit(text);
    let _read = value(text, "frozen");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_stands_as_it_does() {
        let nowhere = Path::new("/nonexistent");
        let own = read(Path::new("/proc"), nowhere, std::process::id(), 100).unwrap();
        assert!(own.threads >= 1, "{own:?}");
        assert_eq!(own.stopped, 0);
        assert!(own.descriptors.unwrap() >= 3, "{own:?}");
        assert!(own.descriptor_limit.unwrap() >= own.descriptors.unwrap());
        assert_eq!(own.parent_pid, std::os::unix::process::parent_id());
        assert_eq!(read(Path::new("/proc"), nowhere, u32::MAX, 100), None);
        let siblings = children(Path::new("/proc"), own.parent_pid, 4096, true);
        assert!(siblings.contains(&std::process::id()), "{siblings:?}");
    }

    #[test]
    fn what_most_descriptors_are_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        for (number, target) in ["socket:[7]", "/dev/null", "socket:[8]", "pipe:[9]"]
            .iter()
            .enumerate()
        {
            std::os::unix::fs::symlink(target, directory.path().join(number.to_string())).unwrap();
        }
        assert_eq!(mostly(directory.path()), Some((descriptor_kind::SOCKET, 2)));
        assert_eq!(
            kind_of(b"anon_inode:[eventpoll]"),
            descriptor_kind::ANONYMOUS
        );
        assert_eq!(kind_of(b"mnt:[4]"), descriptor_kind::UNKNOWN);
        assert_eq!(mostly(Path::new("/nonexistent")), None);
    }

    #[test]
    fn a_name_cannot_move_the_fields() {
        let stat = b"7 (a) R 1 2) T 4 7 7 0 -1 4 0 0 0 0 30 12 0 0 20 0 1 0 4711 0 0";
        let stat = Task::parse(stat, 100).unwrap();
        assert_eq!((stat.state, stat.parent_pid, stat.cpu_ms), (b'T', 4, 420));
        assert_eq!(stat.comm, b"a) R 1 2");
        assert!(Task::parse(b")(", 100).is_none());
        assert!(Task::parse(b"7 (a) S 1", 100).is_none());
    }

    #[test]
    fn limits_and_groups_are_read_by_name() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files  32  4096  files\n";
        assert_eq!(descriptor_limit(limits.as_bytes()), Some(32));
        assert_eq!(
            descriptor_limit(b"Max open files  unlimited  unlimited  files"),
            None
        );
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        let stat = "usage_usec 9\nnr_periods 5\nnr_throttled 3\nthrottled_usec 700\n";
        fs::write(root.path().join("a/cpu.stat"), stat).unwrap();
        let mut standing = Standing::default();
        read_cgroup(root.path(), b"/a/b", &mut standing);
        assert!(standing.is_frozen);
        assert_eq!(standing.throttled, Some((3, 700)));
    }
}
