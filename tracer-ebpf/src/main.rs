//! conntracer's eBPF side: the BPF programs, one subject a file under `probes`.
//!
//! Programs keep per-socket and per-listener state in maps and write records only for what findings
//! need or somebody asked for. Only `sock` reads kernel memory, only `emit` touches the rings, only
//! `table` follows pointers into maps. Which programs are loaded is userspace's choice
//! (`conntracer::kernel::attach`): an alternative that is not loaded costs nothing.
#![no_std]
#![no_main]
#![expect(
    internal_features,
    reason = "atomic_xadd: the target has no AtomicU64::fetch_add"
)]
#![feature(core_intrinsics)]

mod account;
mod emit;
mod globals;
mod maps;
mod probes;
mod scratch;
mod sock;
mod table;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// GPL: `bpf_probe_read_kernel` and the tracing helpers are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
