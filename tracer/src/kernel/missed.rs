//! Events that passed unseen because a program could not run: a BPF program is not entered again on a CPU
//! where it is already running (`recursion_misses`, since 5.12), and a kprobe does not fire while another is
//! handled there, nor a kretprobe when its instances are used up (`missed`, told since 6.7). The kernel
//! counts these and tells nobody who does not ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    fs, io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use aya::{Ebpf, programs::Program};
use conntracer_common::stats::HOOKS;
use log::debug;

use super::ladder::LADDERS;

/// The loaded programs by hook, and by what they are attached to.
pub(super) struct Missed {
    /// Per hook: those of the same functions, an entry and its exit.
    brackets: Vec<Vec<Bracket>>,
}

type Bracket = Vec<Attached>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Attached {
    program: RawFd,
    /// Of a kprobe, where the kernel has links for them: one a function.
    links: Vec<RawFd>,
}

/// One of them as the ladder attaches it: to what, and by which link.
struct Place {
    target: &'static str,
    program: RawFd,
    link: Option<RawFd>,
}

impl Missed {
    /// Remembers which programs were loaded and attached; their descriptors live as long as `ebpf`.
    pub(super) fn new(ebpf: &Ebpf) -> Self {
        let links = kprobe_links();
        let mut places: Vec<Vec<Place>> = HOOKS.iter().map(|_| Vec::new()).collect();
        for ladder in LADDERS {
            for attachment in ladder.steps.iter().flat_map(|step| step.attachments) {
                let Some(program) = ebpf.program(attachment.program) else {
                    continue;
                };
                let Ok(fd) = program.fd() else {
                    continue;
                };
                let target = attachment.target;
                let link = match program {
                    Program::KProbe(_) => program
                        .info()
                        .ok()
                        .and_then(|info| links.get(&(info.id(), target.to_owned())).copied()),
                    _ => None,
                };
                places[ladder.hook as usize].push(Place {
                    target,
                    program: fd.as_fd().as_raw_fd(),
                    link,
                });
            }
        }
        Self {
            brackets: places.into_iter().map(brackets).collect(),
        }
    }

    /// Events of a hook that passed unseen so far. An entry and its exit are one event: the larger count
    /// of the two. 0 where the kernel does not count.
    pub(super) fn of(&self, hook: u32) -> u64 {
        let missed = |attached: &Attached| {
            let links = attached.links.iter();
            links
                .filter_map(|link| not_fired(*link))
                .fold(recursion_misses(attached.program), u64::saturating_add)
        };
        self.brackets[hook as usize]
            .iter()
            .filter_map(|bracket| bracket.iter().map(missed).max())
            .fold(0, u64::saturating_add)
    }
}

/// Puts the programs of the same functions together. The kernel counts by program what is not entered again, not by
/// function: of one that is attached to several the count is said once.
fn brackets(places: Vec<Place>) -> Vec<Bracket> {
    let mut programs: BTreeMap<RawFd, (BTreeSet<&'static str>, Vec<RawFd>)> = BTreeMap::new();
    for place in places {
        let (targets, links) = programs.entry(place.program).or_default();
        if targets.insert(place.target) {
            links.extend(place.link);
        }
    }
    let mut brackets: BTreeMap<BTreeSet<&'static str>, Bracket> = BTreeMap::new();
    for (program, (targets, links)) in programs {
        let bracket = brackets.entry(targets).or_default();
        bracket.push(Attached { program, links });
    }
    brackets.into_values().collect()
}

/// This process's links of kprobes, by program and function. aya has the descriptors and does not give them.
fn kprobe_links() -> BTreeMap<(u32, String), RawFd> {
    let fds = match fs::read_dir("/proc/self/fd") {
        Ok(fds) => fds,
        Err(error) => {
            debug!("/proc/self/fd: {error}: what kprobes miss is not counted");
            return BTreeMap::new();
        }
    };
    fds.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| is_link(&fdinfo(*fd)))
        .filter_map(|fd| {
            let mut name = [0_u8; FUNCTION_LEN];
            let info = link_info(fd, &mut name).ok()?;
            let function = CStr::from_bytes_until_nul(&name).ok()?.to_str().ok()?;
            is_kprobe(&info).then(|| ((info.prog_id, function.to_owned()), fd))
        })
        .collect()
}

/// Times a kprobe did not fire (kernel/trace/trace_kprobe.c, `trace_kprobe_missed`). `None` before 6.7.
fn not_fired(link: RawFd) -> Option<u64> {
    let mut name = [0_u8; FUNCTION_LEN];
    Some(link_info(link, &mut name).ok()?.missed)
}

/// `KSYM_NAME_LEN`.
const FUNCTION_LEN: usize = 512;
/// `BPF_OBJ_GET_INFO_BY_FD` of `enum bpf_cmd`.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// `BPF_LINK_TYPE_PERF_EVENT` of `enum bpf_link_type`.
const LINK_OF_PERF_EVENT: u32 = 7;
/// `BPF_PERF_EVENT_KPROBE` and `BPF_PERF_EVENT_KRETPROBE` of `enum bpf_perf_event_type`.
const KPROBE: u32 = 3;
const KRETPROBE: u32 = 4;

/// `struct bpf_link_info` with its `perf_event.kprobe` member (include/uapi/linux/bpf.h). A kernel that knows
/// less leaves the rest as it is.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    event: u32,
    event_pad: u32,
    name: u64,
    name_len: u32,
    offset: u32,
    addr: u64,
    missed: u64,
    cookie: u64,
}

/// `struct bpf_prog_info` up to its `recursion_misses` (include/uapi/linux/bpf.h), which 5.10 does not have and leaves 0.
/// What else it asks for is nothing: no instructions, no names.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    before: [u64; 26],
    recursion_misses: u64,
}

/// The `info` member of `union bpf_attr`.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    info_len: u32,
    info: u64,
}

const fn is_kprobe(info: &LinkInfo) -> bool {
    info.kind == LINK_OF_PERF_EVENT && matches!(info.event, KPROBE | KRETPROBE)
}

fn link_info(fd: RawFd, name: &mut [u8; FUNCTION_LEN]) -> io::Result<LinkInfo> {
    let mut info = LinkInfo {
        name: name.as_mut_ptr().addr() as u64,
        name_len: u32::try_from(name.len()).map_err(io::Error::other)?,
        ..LinkInfo::default()
    };
    // SAFETY: it names a buffer of the length given.
    unsafe { ask(fd, &mut info) }?;
    Ok(info)
}

/// Has the kernel fill in what it tells of a link or a program.
///
/// # Safety
///
/// `info` is the kernel's struct of that, up to some member, and names no memory but its own.
unsafe fn ask<T>(fd: RawFd, info: &mut T) -> io::Result<()> {
    let mut attr = InfoAttr {
        fd: u32::try_from(fd).map_err(io::Error::other)?,
        info_len: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: (&raw mut *info).addr() as u64,
    };
    // SAFETY: `attr` is the info member of bpf_attr; it names a live struct of the length given, which is as the caller
    // says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            (&raw mut attr).cast::<libc::c_void>(),
            size_of::<InfoAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What /proc/self/fdinfo tells of a descriptor; nothing of one that is gone.
fn fdinfo(fd: RawFd) -> String {
    fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default()
}

/// kernel/bpf/syscall.c, `bpf_link_show_fdinfo`.
fn is_link(fdinfo: &str) -> bool {
    fdinfo.lines().any(|line| line.starts_with("link_id:"))
}

/// Asked of every program at every poll: one system call each, where fdinfo takes four.
fn recursion_misses(program: RawFd) -> u64 {
    let mut info = ProgramInfo::default();
    // SAFETY: it is `struct bpf_prog_info` up to that member, and names no memory.
    match unsafe { ask(program, &mut info) } {
        Ok(()) => info.recursion_misses,
        Err(error) => {
            debug!("program {program}: {error}: what it missed is not counted");
            0
        }
    }
}

/// Reads `fdinfo` as each of the files.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(fdinfo: &str) {
    let _read = is_link(fdinfo);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_has_missed_nothing() {
        let file = fs::File::open("/proc/self/status").unwrap();
        assert_eq!(recursion_misses(file.as_raw_fd()), 0);
        // Up to `run_cnt`, as of 5.10.
        assert_eq!(size_of::<ProgramInfo>(), 208 + 8);
    }

    #[test]
    fn a_program_of_many_functions_is_counted_once_and_an_entry_with_its_exit() {
        let place = |program, target, link| Place {
            target,
            program,
            link,
        };
        let attached = |program, links: &[RawFd]| Attached {
            program,
            links: links.to_vec(),
        };
        let of_two = brackets(vec![
            place(1, "tcp_v4_connect", Some(10)),
            place(1, "tcp_v6_connect", Some(11)),
            place(2, "tcp_v4_connect", Some(12)),
            place(2, "tcp_v6_connect", Some(13)),
            // A second step of the ladder names it, too.
            place(1, "tcp_v4_connect", Some(10)),
            place(3, "tcp_v4_connect", None),
        ]);
        assert_eq!(
            of_two,
            [
                vec![attached(3, &[])],
                vec![attached(1, &[10, 11]), attached(2, &[12, 13])],
            ]
        );
    }

    #[test]
    fn what_is_no_link_has_no_kprobe() {
        let mut name = [0; FUNCTION_LEN];
        let file = fs::File::open("/proc/self/status").unwrap();
        let error = link_info(file.as_raw_fd(), &mut name).err().unwrap();
        assert!(error.raw_os_error().is_some(), "{error}");
        assert!(!is_link(&fdinfo(file.as_raw_fd())));
        assert!(is_link("pos:\t0\nlink_type:\tperf\nlink_id:\t7\n"));
        let info = |kind, event| LinkInfo {
            kind,
            event,
            ..LinkInfo::default()
        };
        assert!(is_kprobe(&info(LINK_OF_PERF_EVENT, KRETPROBE)));
        assert!(!is_kprobe(&info(LINK_OF_PERF_EVENT, 0)));
        assert_eq!(size_of::<LinkInfo>(), 64);
    }
}
