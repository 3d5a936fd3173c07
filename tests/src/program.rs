//! BPF programs of a few instructions, for the tests' own use.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use rustix::process::{Resource, Rlimit, setrlimit};

/// `BPF_PROG_LOAD` (include/uapi/linux/bpf.h).
const BPF_PROG_LOAD: libc::c_long = 5;

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is not 0.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u64; 2],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    infos: [u64; 4],
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// What a program is for; 0 where its type needs none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Purpose {
    pub(crate) prog_type: u32,
    pub(crate) attach_type: u32,
    /// The function's id in the kernel's BTF.
    pub(crate) function: u32,
}

/// Loads instructions that are laid out as `struct bpf_insn`.
pub(crate) fn load(purpose: Purpose, instructions: &[u64]) -> io::Result<OwnedFd> {
    lift_limit();
    let mut attr = ProgLoad {
        prog_type: purpose.prog_type,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        expected_attach_type: purpose.attach_type,
        attach_btf_id: purpose.function,
        ..ProgLoad::default()
    };
    bpf(BPF_PROG_LOAD, &mut attr)
}

/// Loads a program that returns a number.
pub(crate) fn returning(number: u32, purpose: Purpose) -> io::Result<OwnedFd> {
    // `r0 = number; exit`.
    load(purpose, &[(u64::from(number) << 32) | 0xb7, 0x95])
}

/// A command that makes a descriptor.
pub(crate) fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is the member of bpf_attr that the command reads, of the size given; what it points to
    // lives in its caller.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel just made and nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Before Linux 5.11 maps and programs are charged to RLIMIT_MEMLOCK, whose 64 KiB one test of several at once
/// would exceed: EPERM then says nothing of what the kernel can do. A host on which it may not be raised
/// has a newer kernel.
pub(crate) fn lift_limit() {
    let all = Rlimit {
        current: None,
        maximum: None,
    };
    let _refused = setrlimit(Resource::Memlock, all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_lie_where_the_kernel_reads_them() {
        assert_eq!(std::mem::offset_of!(ProgLoad, expected_attach_type), 68);
        assert_eq!(std::mem::offset_of!(ProgLoad, attach_btf_id), 108);
        assert_eq!(size_of::<ProgLoad>(), 112);
    }
}
