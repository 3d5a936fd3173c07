//! What this host dropped of connections in trouble.
//!
//! The eBPF side counts drops whether or not anything is wrong with the connection, for the drop comes first. Told are
//! those alone whose two ends a record of trouble named, here or in another namespace.

use std::{collections::HashMap, io, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use conntracer_common::{
    record::{Dropped, Header, Socket, kind},
    socket::DROPPED_KEY_BYTES,
};
use foldhash::quality::RandomState;
use zerocopy::{FromBytes, IntoBytes};

use super::{Feed, pace::Pace};
use crate::kernel::{
    clock::{cpu_ns, ktime_ns},
    error::CannotTrace,
    header::header,
    maps,
    trouble::troubled,
};

/// Connections in trouble that drops are looked up for; more wait until some of them are quiet.
const MAX_TROUBLED: usize = 4096;
/// Without trouble for so long, a connection is forgotten: a retransmission timeout is 120 s at most.
const QUIET_NS: u64 = 150_000_000_000;
/// Share of the time that looks may take of a CPU, as a divisor, and the longest rest.
const SHARE: u64 = 50;
const LONGEST_REST_NS: u64 = 1_000_000_000;

/// The two ends of a connection, whichever way a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ends([([u32; 4], u16); 2]);

impl Ends {
    fn of(local: ([u32; 4], u16), remote: ([u32; 4], u16)) -> Self {
        Self(if local <= remote {
            [local, remote]
        } else {
            [remote, local]
        })
    }
}

/// See the module.
pub(crate) struct DroppedLooks {
    map: MapData,
    counted: PerCpuArray<MapData, [u64; 2]>,
    /// What was counted at the last look.
    last_counted: u64,
    /// When each was last in trouble.
    troubled: HashMap<Ends, u64, RandomState>,
    /// Whether one is new since the last look.
    is_new: bool,
    /// When an entry began to count, and what was told of it.
    told: HashMap<[u8; DROPPED_KEY_BYTES], (u64, u64), RandomState>,
    pace: Pace,
}

impl DroppedLooks {
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        Ok(Self {
            map: maps::take_hash(ebpf, "DROPPED")?,
            counted: maps::take(ebpf, "DROPPED_COUNTED")?,
            last_counted: 0,
            troubled: HashMap::default(),
            is_new: false,
            told: HashMap::default(),
            pace: Pace::new(SHARE, 0..=LONGEST_REST_NS),
        })
    }

    /// Looks at a record that comes by.
    pub(crate) fn meet(&mut self, record: &[u8]) {
        let Some((now_ns, socket)) = in_trouble(record) else {
            return;
        };
        if socket.local_port == 0 || socket.remote_port == 0 {
            return;
        }
        let ends = Ends::of(
            (socket.local_addr, socket.local_port),
            (socket.remote_addr, socket.remote_port),
        );
        if let Some(last_ns) = self.troubled.get_mut(&ends) {
            *last_ns = now_ns.max(*last_ns);
        } else if self.troubled.len() < MAX_TROUBLED {
            self.troubled.insert(ends, now_ns);
            self.is_new = true;
        }
    }

    /// Tells of the drops of connections in trouble that are news.
    pub(crate) fn poll(&mut self, feed: Feed<'_>) -> io::Result<()> {
        let (now_ns, spent_ns) = (ktime_ns(), cpu_ns());
        if self.troubled.is_empty() || !self.pace.is_due(now_ns) {
            return Ok(());
        }
        let per_cpu = self.counted.get(&0, 0).map_err(io::Error::other)?;
        let counted = per_cpu.iter().fold(0, |sum: u64, [counted, left_out]| {
            sum.wrapping_add(*counted).wrapping_add(*left_out)
        });
        if counted == self.last_counted && !self.is_new {
            return Ok(());
        }
        self.last_counted = counted;
        self.is_new = false;
        self.troubled
            .retain(|_, last_ns| now_ns.saturating_sub(*last_ns) < QUIET_NS);
        let (troubled, told) = (&self.troubled, &mut self.told);
        let mut alive = HashMap::default();
        maps::for_each_entry(
            self.map.fd().as_fd(),
            size_of::<Dropped>(),
            |key: &[u8; DROPPED_KEY_BYTES], value| {
                let Ok(mut dropped) = Dropped::read_from_bytes(value) else {
                    return;
                };
                let ends = Ends::of(
                    (dropped.local_addr, dropped.local_port),
                    (dropped.remote_addr, dropped.remote_port),
                );
                if dropped.first_ns == 0 || !troubled.contains_key(&ends) {
                    return;
                }
                let state = (dropped.first_ns, dropped.count);
                if told.get(key) != Some(&state) {
                    dropped.header = header::<Dropped>(kind::DROPPED, now_ns);
                    feed(dropped.as_bytes());
                }
                alive.insert(*key, state);
            },
        )?;
        self.told = alive;
        let cost_ns = cpu_ns().saturating_sub(spent_ns);
        self.pace.rest(cost_ns, ktime_ns());
        Ok(())
    }
}

/// When a record tells of trouble, and the socket.
fn in_trouble(record: &[u8]) -> Option<(u64, Socket)> {
    if let Some((now_ns, socket, _)) = troubled(record) {
        return Some((now_ns, socket));
    }
    let (header, rest) = Header::read_from_prefix(record).ok()?;
    if header.kind != kind::FAILURE {
        return None;
    }
    let (socket, _) = Socket::read_from_prefix(rest).ok()?;
    Some((header.ktime_ns, socket))
}
