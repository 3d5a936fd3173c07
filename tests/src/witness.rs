//! A second count of what tracepoints saw, by the kernel's perf events: on some machines it now and then runs no BPF
//! program for a burst of timers on a CPU, and counts none as skipped. Perf counts those, too.
//!
//! Where there is nothing to count by, and in the VMs, whose kernels skip nothing unsaid, nothing is counted.

use std::{
    collections::BTreeMap,
    fs,
    fs::File,
    io::{self, Read as _},
    os::fd::{FromRawFd as _, OwnedFd},
    sync::OnceLock,
    thread,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::{
    compared,
    line::{Start, Totals},
};

/// Hooks, and the tracepoint that their program is attached to on the machines that are meant.
const TRACEPOINTS: [(&str, &str); 3] = [
    ("state", "sock/inet_sock_set_state"),
    ("retransmit", "tcp/tcp_retransmit_skb"),
    ("synack", "tcp/tcp_retransmit_synack"),
];

/// Of `enum perf_type_id`, linux/perf_event.h.
const PERF_TYPE_TRACEPOINT: u32 = 2;
/// The first published form of `struct perf_event_attr`.
const PERF_ATTR_SIZE_VER0: u32 = 64;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// Hits by hook, on all CPUs, since the first look of this process; without those that are not counted.
pub type Hits = BTreeMap<&'static str, u64>;

/// What was hit so far.
#[must_use]
pub fn hits() -> Hits {
    static COUNTERS: OnceLock<Vec<(&str, Vec<File>)>> = OnceLock::new();
    let counters = COUNTERS.get_or_init(|| {
        if compared::is_own_machine() {
            return Vec::new();
        }
        // A machine without perf or tracefs, or that forbids it, has no second witness.
        thread::spawn(open_all)
            .join()
            .map_or_else(|_| Vec::new(), Result::unwrap_or_default)
    });
    counters
        .iter()
        .filter_map(|(hook, files)| Some((*hook, sum(files).ok()?)))
        .collect()
}

/// Events that were hit since `before` and that no program of the tracepoint saw, of a conntracer that has ended and
/// began after it.
#[must_use]
pub fn unseen(start: &Start, totals: &Totals, before: &Hits) -> BTreeMap<&'static str, u64> {
    let is_witnessed = |hook: &str| {
        let mut hooks = start.plan.hooks.iter();
        hooks.any(|plan| plan.hook == hook && plan.hook_type == "tracepoint")
    };
    hits()
        .into_iter()
        .filter(|(hook, _)| is_witnessed(hook))
        .filter_map(|(hook, now)| {
            let hit = now.checked_sub(*before.get(hook)?)?;
            Some((hook, hit.saturating_sub(totals.hooks.get(hook)?.seen)))
        })
        .collect()
}

fn sum(files: &[File]) -> io::Result<u64> {
    files.iter().try_fold(0, |sum, mut file| {
        let mut count = [0; size_of::<u64>()];
        file.read_exact(&mut count)?;
        Ok(sum + u64::from_ne_bytes(count))
    })
}

/// On a thread of its own, for its mounts.
fn open_all() -> Result<Vec<(&'static str, Vec<File>)>> {
    // SAFETY: the mounts of this thread, which ends soon; its current directory is its own then, and nobody looks at it.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
        .context("making a mount namespace")?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("making mounts private")?;
    mount(
        "tracefs",
        "/sys/kernel/tracing",
        "tracefs",
        MountFlags::empty(),
        None,
    )
    .context("mounting tracefs")?;
    TRACEPOINTS
        .into_iter()
        .map(|(hook, tracepoint)| {
            let path = format!("/sys/kernel/tracing/events/{tracepoint}/id");
            let id = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            let id = id
                .trim()
                .parse()
                .with_context(|| format!("parsing {path}"))?;
            Ok((
                hook,
                open(id).with_context(|| format!("counting {tracepoint}"))?,
            ))
        })
        .collect()
}

/// A counter for each CPU.
fn open(id: u64) -> Result<Vec<File>> {
    // Type, size and config are its first words; of the rest, zero is what is wanted.
    let mut attr = [0_u64; PERF_ATTR_SIZE_VER0 as usize / size_of::<u64>()];
    let words = [PERF_TYPE_TRACEPOINT, PERF_ATTR_SIZE_VER0].map(u32::to_ne_bytes);
    attr[0] = u64::from_ne_bytes(words.concat().try_into().unwrap_or_default());
    attr[1] = id;
    (0..thread::available_parallelism()?.get())
        .map(|cpu| {
            // SAFETY: arguments as perf_event_open(2) wants them; `attr` lives and says its size.
            let fd = unsafe {
                libc::syscall(
                    libc::SYS_perf_event_open,
                    attr.as_ptr(),
                    -1,
                    cpu,
                    -1,
                    PERF_FLAG_FD_CLOEXEC,
                )
            };
            ensure!(fd >= 0, "perf_event_open: {}", io::Error::last_os_error());
            // SAFETY: a descriptor that was made just now, and is nobody else's.
            Ok(unsafe { OwnedFd::from_raw_fd(fd.try_into()?) }.into())
        })
        .collect()
}
