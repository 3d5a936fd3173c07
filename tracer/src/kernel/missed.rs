//! Program runs that the kernel skipped: a BPF program is not entered again on a CPU where it is already
//! running, and the event passes unseen. The kernel counts them per program (`recursion_misses`, since
//! 5.12) and tells nobody who does not ask.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use aya::{Ebpf, programs::Program};
use conntracer_common::stats::HOOKS;

use super::ladder::LADDERS;

/// The loaded programs by hook and by what they are attached to.
pub(super) struct Missed {
    /// Per hook: descriptors of the programs on one function or tracepoint.
    programs: Vec<BTreeMap<&'static str, Vec<RawFd>>>,
}

impl Missed {
    /// Remembers which programs were loaded; their descriptors live as long as `ebpf`.
    pub(super) fn new(ebpf: &Ebpf) -> Self {
        let mut programs = vec![BTreeMap::<_, Vec<RawFd>>::new(); HOOKS.len()];
        for ladder in LADDERS {
            for attachment in ladder.steps.iter().flat_map(|step| step.attachments) {
                let Some(Ok(fd)) = ebpf.program(attachment.program).map(Program::fd) else {
                    continue;
                };
                let fd = fd.as_fd().as_raw_fd();
                let on_target = programs[ladder.hook as usize]
                    .entry(attachment.target.name())
                    .or_default();
                if !on_target.contains(&fd) {
                    on_target.push(fd);
                }
            }
        }
        Self { programs }
    }

    /// Events of a hook that passed unseen so far. An entry and its exit are one event: the larger count
    /// of the two. 0 where the kernel does not count.
    pub(super) fn of(&self, hook: u32) -> u64 {
        self.programs[hook as usize]
            .values()
            .map(|programs| {
                programs
                    .iter()
                    .copied()
                    .map(recursion_misses)
                    .max()
                    .unwrap_or(0)
            })
            .sum()
    }
}

/// `recursion_misses` of /proc/self/fdinfo (kernel/bpf/syscall.c, `bpf_prog_show_fdinfo`).
fn recursion_misses(fd: RawFd) -> u64 {
    let Ok(text) = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")) else {
        return 0;
    };
    parse(&text)
}

fn parse(fdinfo: &str) -> u64 {
    fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"))
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_and_its_absence_is_none() {
        assert_eq!(
            parse("prog_type:\t26\nrecursion_misses:\t17\nverified_insns:\t9\n"),
            17
        );
        assert_eq!(parse("prog_type:\t26\n"), 0);
        assert_eq!(parse("recursion_misses:\tmany\n"), 0);
    }
}
