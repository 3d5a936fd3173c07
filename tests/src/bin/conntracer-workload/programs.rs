//! What each BPF program of the kernel ran, and for how long (`kernel.bpf_stats_enabled`).

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
};

use anyhow::{Context, Result};
use conntracer_tests::bpf::Objects;

/// Commands of bpf(2), linux/bpf.h.
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// What a program came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) runs: u64,
    pub(crate) ns: u64,
}

/// Programs by name, of which the kernel keeps 15 characters: those that begin alike, such as one for IPv4 and one
/// for IPv6, are one.
pub(crate) type Programs = BTreeMap<String, Ran>;

/// Has the kernel count.
pub(crate) fn count(is_on: bool) -> Result<()> {
    fs::write(SWITCH, if is_on { "1" } else { "0" }).with_context(|| format!("writing {SWITCH}"))
}

/// All that the kernel has, as counted so far.
pub(crate) fn read() -> Result<Programs> {
    let mut programs = Programs::new();
    for id in Objects::in_kernel()?.programs {
        let info = info(id).with_context(|| format!("asking about BPF program {id}"))?;
        let ran = programs.entry(info.name()).or_default();
        ran.runs += info.run_cnt;
        ran.ns += info.run_time_ns;
    }
    Ok(programs)
}

/// What came in between.
pub(crate) fn between(before: &Programs, after: Programs) -> Programs {
    after
        .into_iter()
        .map(|(name, ran)| {
            let before = before.get(&name).copied().unwrap_or_default();
            let ran = Ran {
                runs: ran.runs.saturating_sub(before.runs),
                ns: ran.ns.saturating_sub(before.ns),
            };
            (name, ran)
        })
        .filter(|(_, ran)| ran.runs > 0)
        .collect()
}

/// `struct bpf_prog_info` of linux/bpf.h, to the last field wanted, which Linux 5.1 brought.
#[repr(C)]
#[derive(Clone, Copy)]
struct ProgInfo {
    _kind: u32,
    _id: u32,
    _tag: [u8; 8],
    _code: [u64; 3],
    _load_time: u64,
    _uid: u32,
    nr_map_ids: u32,
    _map_ids: u64,
    name: [u8; 16],
    _others: [u64; 14],
    run_time_ns: u64,
    run_cnt: u64,
}

impl ProgInfo {
    fn name(&self) -> String {
        let name = self.name.split(|byte| *byte == 0).next();
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }
}

const _: () = {
    // As pahole shows them.
    assert!(std::mem::offset_of!(ProgInfo, name) == 64);
    assert!(std::mem::offset_of!(ProgInfo, run_time_ns) == 192);
};

/// `union bpf_attr` of [`BPF_OBJ_GET_INFO_BY_FD`].
#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

fn info(id: u32) -> io::Result<ProgInfo> {
    // `id`, `next_id`, `open_flags`.
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0])?;
    // SAFETY: the kernel has just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) };
    // SAFETY: all zero is a valid ProgInfo: plain numbers, and no buffer for the kernel to fill.
    let mut info: ProgInfo = unsafe { std::mem::zeroed() };
    let mut attr = InfoByFd {
        fd: program.as_raw_fd().unsigned_abs(),
        length: u32::try_from(size_of::<ProgInfo>()).map_err(io::Error::other)?,
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a valid attribute of its command, of the size given; what it points to lives as long and
    // has the length that it names.
    let status = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ran_in_between_counts() {
        let programs = |ran: &[(&str, u64, u64)]| -> Programs {
            ran.iter()
                .map(|&(name, runs, ns)| (name.to_owned(), Ran { runs, ns }))
                .collect()
        };
        let before = programs(&[("state", 5, 500), ("drop", 1, 10)]);
        let after = programs(&[("state", 7, 900), ("drop", 1, 10), ("connect", 1, 30)]);
        let expected = programs(&[("state", 2, 400), ("connect", 1, 30)]);
        assert_eq!(between(&before, after), expected);
    }
}
