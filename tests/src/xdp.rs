//! An XDP program that drops everything an interface receives, attached in the generic mode, where packets
//! are the kernel's own by then. It goes with its interface.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use netlink_packet_route::link::{LinkAttribute, LinkXdp};
use rtnetlink::LinkUnspec;

use crate::{
    netlink::{find, with_handle},
    program::{self, Purpose},
};

/// `BPF_PROG_TYPE_XDP` and `XDP_DROP` (include/uapi/linux/bpf.h).
const BPF_PROG_TYPE_XDP: u32 = 6;
const XDP_DROP: u32 = 1;

/// `XDP_FLAGS_SKB_MODE` (include/uapi/linux/if_link.h).
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;

/// Drops every packet that `interface` of the calling thread's namespace receives.
pub fn drop_all(interface: &str) -> Result<()> {
    let purpose = Purpose {
        prog_type: BPF_PROG_TYPE_XDP,
        ..Purpose::default()
    };
    let program = program::returning(XDP_DROP, purpose).context("loading an XDP program")?;
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
