//! An XDP program that drops everything an interface receives, attached in the generic mode, where packets
//! are the kernel's own by then. It goes with its interface.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use netlink_packet_route::link::{LinkAttribute, LinkXdp};
use rtnetlink::LinkUnspec;

use crate::link::{find, with_handle};

/// `BPF_PROG_LOAD` and `BPF_PROG_TYPE_XDP` (include/uapi/linux/bpf.h).
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_XDP: u32 = 6;

/// `XDP_FLAGS_SKB_MODE` (include/uapi/linux/if_link.h).
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;

/// `r0 = XDP_DROP; exit`, as `struct bpf_insn`.
const DROP: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

/// The first members of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// Drops every packet that `interface` of the calling thread's namespace receives.
pub fn drop_all(interface: &str) -> Result<()> {
    let program = load().context("loading an XDP program")?;
    with_handle(async |handle| {
        let index = find(handle, interface).await?.header.index;
        let mut message = LinkUnspec::new_with_index(index).build();
        message.attributes.push(LinkAttribute::Xdp(vec![
            LinkXdp::Fd(program.as_raw_fd()),
            LinkXdp::Flags(XDP_FLAGS_SKB_MODE),
        ]));
        handle
            .link()
            .set(message)
            .execute()
            .await
            .with_context(|| format!("attaching an XDP program to {interface}"))
    })
}

fn load() -> io::Result<OwnedFd> {
    let mut attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: u32::try_from(DROP.len()).map_err(io::Error::other)?,
        insns: DROP.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
    };
    // SAFETY: `attr` is the member of bpf_attr that the command reads, of the size given; its pointers name
    // constants.
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
