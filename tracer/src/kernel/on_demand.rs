//! Programs that are loaded and attached to nothing: run when userspace asks.

use std::io;

use aya::{
    Ebpf,
    programs::{Program, RawTracePoint, RawTracePointRunOptions, TestRun},
};

use super::error::{CannotTrace, reason};
use crate::plan::HookType;

/// `snapshot`, `receive` and `idle` write their records to the bulk ring, `refresh` brings a listener's up to date, `heir`
/// hands a socket on, `beside` counts in its map, `accept_queue` leaves what it found in its.
pub(super) const PROGRAMS: [&str; 8] = [
    "accept_queue",
    "receive",
    "snapshot",
    "refresh",
    "heir",
    "percpu_base",
    "netns_look",
    "beside",
];
/// Loaded where somebody asked for idle connections.
pub(super) const IDLE: &str = "idle";

pub(super) fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), CannotTrace> {
    let Some(Program::RawTracePoint(program)) = ebpf.program_mut(name) else {
        return Err(CannotTrace::Foreign(name));
    };
    program.load().map_err(|error| CannotTrace::Hook {
        hook: name,
        hook_type: HookType::Tracepoint,
        reason: reason(&error),
    })
}

/// The program of a name.
pub(super) fn program<'a>(ebpf: &'a Ebpf, name: &str) -> io::Result<&'a RawTracePoint> {
    match ebpf.program(name) {
        Some(Program::RawTracePoint(program)) => Ok(program),
        _ => Err(io::Error::other(format!(
            "the eBPF object has no program {name}"
        ))),
    }
}

/// Runs one with its arguments, and gives its answer.
pub(super) fn run(ebpf: &Ebpf, name: &str, arguments: [u64; 3]) -> io::Result<u32> {
    let mut options = RawTracePointRunOptions::new();
    options.args[..3].copy_from_slice(&arguments);
    program(ebpf, name)?
        .test_run(options)
        .map(|result| result.return_value)
        .map_err(io::Error::other)
}
