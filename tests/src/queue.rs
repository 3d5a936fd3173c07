//! Queue disciplines: one that has no room for any packet (`tc qdisc add … root pfifo limit 0`), and one that keeps each
//! for a while (`… root netem delay 20ms`), set up over netlink.
//!
//! What the first drops comes back to TCP as a verdict and not as an error (`NET_XMIT_DROP`). Both go with their interface.

use std::{os::fd::AsRawFd as _, time::Duration};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use rtnetlink::{
    Handle,
    packet_core::{
        DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
        NetlinkPayload,
    },
};

use crate::{
    netlink::{find, with_handle},
    program::{self, Purpose},
};

/// linux/rtnetlink.h; its value is a `tc_fifo_qopt` (linux/pkt_sched.h).
const TCA_OPTIONS: u16 = 2;
const LIMIT: u32 = 0;

/// Gives an interface of the calling thread's namespace such a queue.
pub fn shut(interface: &str) -> Result<()> {
    change(interface, NLM_F_CREATE | NLM_F_EXCL, |mut message| {
        message.attributes = vec![
            TcAttribute::Kind("pfifo".to_owned()),
            TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, LIMIT.to_ne_bytes().to_vec())),
        ];
        RouteNetlinkMessage::NewQueueDiscipline(message)
    })
}

/// Makes an interface of the calling thread's namespace send everything so much later.
pub fn delay(interface: &str, by: Duration) -> Result<()> {
    /// `PSCHED_SHIFT` (include/net/pkt_sched.h).
    const TICK_SHIFT: u32 = 6;
    /// Of packets, more than are ever on their way.
    const ROOM: u32 = 10_000;
    let ticks = u32::try_from(by.as_nanos() >> TICK_SHIFT)?;
    // `tc_netem_qopt`: latency, limit, loss, gap, duplicate, jitter.
    let options = [ticks, ROOM, 0, 0, 0, 0].map(u32::to_ne_bytes).concat();
    change(interface, NLM_F_CREATE | NLM_F_EXCL, |mut message| {
        message.attributes = vec![
            TcAttribute::Kind("netem".to_owned()),
            TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options)),
        ];
        RouteNetlinkMessage::NewQueueDiscipline(message)
    })
}

/// Gives an interface of the calling thread's namespace a program that drops all it sends (`tc qdisc add … clsact; tc
/// filter add … egress bpf direct-action`).
pub fn drop_at_egress(interface: &str) -> Result<()> {
    /// `BPF_PROG_TYPE_SCHED_CLS` and `TC_ACT_SHOT` (linux/bpf.h, linux/pkt_cls.h).
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    const TC_ACT_SHOT: u32 = 2;
    /// `TC_H_CLSACT`, its handle, and `TC_H_MIN_EGRESS` of it (linux/pkt_sched.h).
    const CLSACT: u32 = 0xffff_fff1;
    const CLSACT_HANDLE: u32 = 0xffff_0000;
    const EGRESS: u32 = 0xffff_fff3;
    /// `TCA_BPF_FD`, `TCA_BPF_NAME`, `TCA_BPF_FLAGS` and `TCA_BPF_FLAG_ACT_DIRECT` (linux/pkt_cls.h).
    const FD: u16 = 6;
    const NAME: u16 = 7;
    const FLAGS: u16 = 8;
    const DIRECT: u32 = 1;
    let purpose = Purpose {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        ..Purpose::default()
    };
    let program = program::returning(TC_ACT_SHOT, purpose).context("loading a tc program")?;
    change(interface, NLM_F_CREATE | NLM_F_EXCL, |mut message| {
        message.header.parent = CLSACT.into();
        message.header.handle = CLSACT_HANDLE.into();
        message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
        RouteNetlinkMessage::NewQueueDiscipline(message)
    })?;
    let attribute = |kind: u16, value: &[u8]| {
        let size = u16::try_from(4 + value.len()).expect("a small attribute");
        let mut bytes = [size.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let fd = u32::try_from(program.as_raw_fd())?;
    let options = [
        attribute(FD, &fd.to_ne_bytes()),
        attribute(NAME, b"ct-drop\0"),
        attribute(FLAGS, &DIRECT.to_ne_bytes()),
    ]
    .concat();
    change(interface, NLM_F_CREATE | NLM_F_EXCL, |mut message| {
        /// `ETH_P_ALL` (linux/if_ether.h).
        const ALL: u16 = 3;
        message.header.parent = EGRESS.into();
        message.header.info = (1 << 16) | u32::from(ALL.to_be());
        message.attributes = vec![
            TcAttribute::Kind("bpf".to_owned()),
            TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options)),
        ];
        RouteNetlinkMessage::NewTrafficFilter(message)
    })
}

/// Ends [`shut`].
pub fn open(interface: &str) -> Result<()> {
    change(interface, 0, RouteNetlinkMessage::DelQueueDiscipline)
}

/// Changes the root of an interface's queue disciplines.
fn change(
    interface: &str,
    flags: u16,
    what: impl FnOnce(TcMessage) -> RouteNetlinkMessage,
) -> Result<()> {
    with_handle(async |handle: &Handle| {
        let mut message = TcMessage::default();
        message.header.index = find(handle, interface).await?.header.index.try_into()?;
        message.header.parent = TcHandle::ROOT;
        let mut request = NetlinkMessage::from(what(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = handle
            .clone()
            .request(request)
            .with_context(|| format!("asking for another queue of {interface}"))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                bail!("changing the queue of {interface}: {error}");
            }
        }
        Ok(())
    })
}
