//! BPF programs of a few instructions, for the tests' own use.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use rustix::process::{Resource, Rlimit, setrlimit};

/// `BPF_PROG_LOAD` (include/uapi/linux/bpf.h).
const BPF_PROG_LOAD: libc::c_long = 5;

/// The first members of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// A program of a type and an attach type (0 where the type needs none), which returns a number.
pub(crate) fn returning(number: u32, prog_type: u32, attach_type: u32) -> io::Result<OwnedFd> {
    // Up to 5.10 programs are charged to RLIMIT_MEMLOCK; later kernels do not ask.
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let _charged = setrlimit(Resource::Memlock, unlimited);
    // `r0 = number; exit`, as `struct bpf_insn`.
    let instructions = [(u64::from(number) << 32) | 0xb7, 0x95];
    let mut attr = ProgLoad {
        prog_type,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        expected_attach_type: attach_type,
        ..ProgLoad::default()
    };
    // SAFETY: `attr` is the member of bpf_attr that the command reads, of the size given; its pointers name
    // what lives through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw mut attr,
            size_of::<ProgLoad>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel just made and nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
