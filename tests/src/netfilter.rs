//! A firewall that drops everything at one of netfilter's hooks: a base chain whose policy is `drop`, set up
//! over netlink. It goes with its namespace.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::wait::SOON;

/// Where packets are dropped: `NF_INET_*` of linux/netfilter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Output,
}

impl Hook {
    const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Output => 3,
        }
    }

    /// `NF_IP_PRI_RAW` before routing, else `NF_IP_PRI_FILTER`.
    const fn priority(self) -> i32 {
        match self {
            Self::Prerouting => -300,
            Self::Input | Self::Output => 0,
        }
    }
}

/// linux/netfilter/nfnetlink.h and nf_tables.h.
const NFPROTO_INET: u8 = 1;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYS_NFTABLES: u16 = 10;
const NEW_TABLE: u16 = SUBSYS_NFTABLES << 8;
const DELETE_TABLE: u16 = (SUBSYS_NFTABLES << 8) | 2;
const NEW_CHAIN: u16 = (SUBSYS_NFTABLES << 8) | 3;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const NESTED: u16 = 1 << 15;
const POLICY_DROP: u32 = 0;
const HEADER: usize = 16;

const TABLE: &[u8] = b"ct-tests\0";
const CHAIN: &[u8] = b"ct-drop\0";

/// Drops every packet of both families that comes to `hook`, in the calling thread's namespace.
pub fn drop_at(hook: Hook) -> Result<()> {
    let chain_hook = [
        attribute(HOOK_NUMBER, &hook.number().to_be_bytes()),
        attribute(HOOK_PRIORITY, &hook.priority().to_be_bytes()),
    ]
    .concat();
    let chain = [
        attribute(CHAIN_TABLE, TABLE),
        attribute(CHAIN_NAME, CHAIN),
        attribute(CHAIN_HOOK | NESTED, &chain_hook),
        attribute(CHAIN_POLICY, &POLICY_DROP.to_be_bytes()),
        attribute(CHAIN_TYPE, b"filter\0"),
    ]
    .concat();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE;
    change(&[
        message(
            NEW_TABLE,
            flags,
            NFPROTO_INET,
            0,
            &attribute(TABLE_NAME, TABLE),
        ),
        message(NEW_CHAIN, flags, NFPROTO_INET, 0, &chain),
    ])
}

/// Ends [`drop_at`].
pub fn let_pass() -> Result<()> {
    change(&[message(
        DELETE_TABLE,
        libc::NLM_F_REQUEST | libc::NLM_F_ACK,
        NFPROTO_INET,
        0,
        &attribute(TABLE_NAME, TABLE),
    )])
}

/// Makes all of these changes, or none.
fn change(messages: &[Vec<u8>]) -> Result<()> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW,
        Some(Protocol::from(libc::NETLINK_NETFILTER)),
    )
    .context("opening a netfilter socket")?;
    socket
        .set_read_timeout(Some(SOON.max(Duration::from_secs(1))))
        .context("setting SO_RCVTIMEO")?;
    let batch = [
        message(BATCH_BEGIN, libc::NLM_F_REQUEST, 0, SUBSYS_NFTABLES, &[]),
        messages.concat(),
        message(BATCH_END, libc::NLM_F_REQUEST, 0, SUBSYS_NFTABLES, &[]),
    ]
    .concat();
    socket.send(&batch).context("sending a netfilter batch")?;
    let mut acknowledged = 0;
    while acknowledged < messages.len() {
        acknowledged += read_acknowledgements(&socket)?;
    }
    Ok(())
}

/// Reads one datagram of acknowledgements and returns how many were in it.
fn read_acknowledgements(mut socket: &Socket) -> Result<usize> {
    let mut buffer = [0; 8192];
    let length =
        std::io::Read::read(&mut socket, &mut buffer).context("reading from a netfilter socket")?;
    let mut rest = &buffer[..length];
    let mut acknowledged = 0;
    while !rest.is_empty() {
        ensure!(rest.len() >= HEADER + 4, "a netlink message cut short");
        let size = usize::try_from(u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]))?;
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        let errno = i32::from_ne_bytes([rest[16], rest[17], rest[18], rest[19]]);
        if i32::from(kind) != libc::NLMSG_ERROR {
            bail!("netfilter answered with a message of type {kind}");
        }
        if errno != 0 {
            return Err(std::io::Error::from_raw_os_error(-errno)).context("changing the firewall");
        }
        acknowledged += 1;
        rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(acknowledged)
}

/// A netlink message: `struct nlmsghdr`, `struct nfgenmsg`, attributes.
fn message(kind: u16, flags: libc::c_int, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    const GENERAL: usize = 4;
    let size = u32::try_from(HEADER + GENERAL + attributes.len()).expect("a small message");
    let flags = u16::try_from(flags).expect("netlink flags are 16 bits");
    let mut message = Vec::new();
    message.extend(size.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(attributes);
    message
}

/// A netlink attribute, padded to 4 bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let size = 4 + value.len();
    let mut attribute = Vec::new();
    attribute.extend(
        u16::try_from(size)
            .expect("a small attribute")
            .to_ne_bytes(),
    );
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(size.next_multiple_of(4), 0);
    attribute
}
