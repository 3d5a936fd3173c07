//! bind() and listen() that failed, and who holds the port.

use std::net::SocketAddr;

use conntracer_common::record::{self, bind_call, bind_flag};

use super::{
    owner::Owner,
    raw::DecodeError,
    socket::{Socket, TcpState, address},
};
use crate::time::Ktime;

/// Which call it was, and who refused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BindCall {
    Bind,
    Listen,
    /// bind(), refused by a security module before TCP saw it.
    Security,
}

/// Options of a socket that decide who may share its port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    pub reuse_addr: bool,
    pub reuse_port: bool,
    pub v6_only: bool,
}

impl Sharing {
    const fn decode(flags: u8) -> Self {
        Self {
            reuse_addr: flags & bind_flag::REUSEADDR != 0,
            reuse_port: flags & bind_flag::REUSEPORT != 0,
            v6_only: flags & bind_flag::V6_ONLY != 0,
        }
    }
}

/// Calls that failed alike, or with error 0 one that succeeded where others had failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Its local end is what was asked for.
    pub socket: Socket,
    pub owner: Option<Owner>,
    /// Calls since `first`, which tells this count from an earlier one of the same process and address.
    pub count: u64,
    pub first: Ktime,
    pub last: Ktime,
    pub errno: u32,
    pub call: BindCall,
    pub sharing: Sharing,
    /// `net.ipv4.ip_unprivileged_port_start` of the namespace.
    pub unprivileged_start: Option<u16>,
    /// Lowest and highest port of the range that port 0 asks for one of.
    pub range: Option<(u16, u16)>,
    /// The socket's, by which it is told from one that has its address later.
    pub inode: Option<u32>,
    /// Stands for several addresses, which found the eBPF side's map full.
    pub is_several: bool,
    /// The caller has CAP_NET_BIND_SERVICE, in its own user namespace.
    pub is_capable: bool,
}

impl Bind {
    pub(super) fn decode(raw: &record::Bind) -> Result<Self, DecodeError> {
        let [low, high] = raw.range;
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            count: raw.count,
            first: Ktime(raw.first_ns),
            last: Ktime(raw.last_ns),
            errno: raw.error,
            call: match raw.call {
                bind_call::BIND => BindCall::Bind,
                bind_call::LISTEN => BindCall::Listen,
                bind_call::SECURITY => BindCall::Security,
                value => {
                    return Err(DecodeError::Value {
                        field: "call",
                        value: value.into(),
                    });
                }
            },
            sharing: Sharing::decode(raw.flags),
            unprivileged_start: (raw.unprivileged_start != u16::MAX)
                .then_some(raw.unprivileged_start),
            range: (low != 0 && low <= high).then_some((low, high)),
            inode: (raw.inode != 0).then_some(raw.inode),
            is_several: raw.flags & bind_flag::SEVERAL != 0,
            is_capable: raw.flags & bind_flag::CAPABLE != 0,
        })
    }
}

/// A socket that holds a port, or of a range the process that holds `ports` of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindHolder {
    pub owner: Option<Owner>,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub state: TcpState,
    pub sharing: Sharing,
    pub ports: u32,
}

impl BindHolder {
    /// Whether both ends of a connection are the same socket: it was given the port that it connects to.
    #[must_use]
    pub fn is_connected_to_itself(&self) -> bool {
        self.local == self.remote && self.local.port() != 0
    }
}

/// Who holds a port that a call did not get: sockets whose address is in the way, counted by what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindHolders {
    pub netns: u32,
    /// What was asked for; port 0 for any of the range.
    pub asked: SocketAddr,
    /// Distinct ports of the range that are held.
    pub ports: u32,
    pub listeners: u32,
    pub bound: u32,
    pub connected: u32,
    /// Closed by their process, and not over.
    pub closing: u32,
    pub time_wait: u32,
    named: [Option<BindHolder>; record::MAX_BIND_HOLDERS],
    /// Sockets without a process could not be looked at.
    pub is_incomplete: bool,
}

impl BindHolders {
    pub(super) fn decode(raw: &record::BindHolders) -> Result<Self, DecodeError> {
        let named = usize::try_from(raw.named).unwrap_or(usize::MAX);
        let mut holders = [None; record::MAX_BIND_HOLDERS];
        for (place, raw) in holders.iter_mut().zip(&raw.holders).take(named) {
            *place = Some(BindHolder {
                owner: Owner::decode(&raw.owner)?,
                local: SocketAddr::new(address(&raw.local_addr, raw.family), raw.local_port),
                remote: SocketAddr::new(address(&raw.remote_addr, raw.family), raw.remote_port),
                state: raw.state.into(),
                sharing: Sharing::decode(raw.flags),
                ports: raw.ports,
            });
        }
        Ok(Self {
            netns: raw.netns,
            asked: SocketAddr::new(address(&raw.local_addr, raw.family), raw.port),
            ports: raw.ports,
            listeners: raw.listeners,
            bound: raw.bound,
            connected: raw.connected,
            closing: raw.closing,
            time_wait: raw.time_wait,
            named: holders,
            is_incomplete: raw.incomplete != 0,
        })
    }

    /// The first of them: those that listen first, or those that hold most.
    pub fn named(&self) -> impl Iterator<Item = &BindHolder> {
        self.named.iter().flatten()
    }
}
