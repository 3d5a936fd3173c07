//! Whether the address of a silent connection answers others of this host: every connection is asked about, once for an
//! address, at most once a second.

use std::{io, os::fd::AsFd as _, sync::Arc};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use conntracer_common::{
    record::{Beside, kind},
    socket::SocketState,
};
use zerocopy::{FromBytes, IntoBytes, transmute};

use super::Poll;
use crate::{
    id::SocketId,
    kernel::{clock::ktime_ns, error::CannotTrace, header::header, maps, on_demand},
    source::Silent,
};

/// Shortest time between two looks, and the most connections that are asked about: 25 ms of a CPU, 2.5 % of it while
/// addresses go silent one after the other. On a host with more nothing is said of the others.
const INTERVAL_NS: u64 = 1_000_000_000;
const MOST: usize = 16_384;

pub(crate) struct BesideSearch {
    sockets: Arc<MapData>,
    found: Array<MapData, [u64; 8]>,
    looked_ns: u64,
}

impl BesideSearch {
    pub(crate) fn new(ebpf: &mut Ebpf, sockets: Arc<MapData>) -> Result<Self, CannotTrace> {
        Ok(Self {
            sockets,
            found: maps::take(ebpf, "BESIDE")?,
            looked_ns: 0,
        })
    }

    /// A `Beside` of an address that somebody asks about, where it is time to.
    pub(crate) fn poll(&mut self, asked: Option<&Silent>, poll: &mut Poll<'_>) -> io::Result<()> {
        let Some(silent) = asked else {
            return Ok(());
        };
        if poll.now_ns.saturating_sub(self.looked_ns) < INTERVAL_NS {
            return Ok(());
        }
        self.looked_ns = poll.now_ns;
        let mut sockets = Vec::new();
        let mut left_out = 0_u32;
        maps::for_each(
            self.sockets.fd().as_fd(),
            size_of::<SocketState>(),
            |sk, value| {
                let Ok(state) = SocketState::read_from_bytes(value) else {
                    return;
                };
                if sockets.len() < MOST {
                    sockets.push(SocketId::new(sk, state.born_ns));
                } else {
                    left_out += 1;
                }
            },
        )?;
        if left_out > 0 {
            return Ok(());
        }
        let asked = Beside {
            header: header::<Beside>(kind::BESIDE, poll.now_ns),
            remote_addr: silent.remote_addr,
            silent_ns: poll.now_ns.saturating_sub(silent.since.0),
            heard_idle_ns: u64::MAX,
            netns: silent.netns,
            family: silent.family,
            ..Beside::default()
        };
        let words: [u64; 8] = transmute!(asked);
        self.found.set(0, words, 0).map_err(io::Error::other)?;
        for SocketId { sk, born } in sockets {
            on_demand::run(poll.ebpf, "beside", [sk, born.0, 0])?;
        }
        let words = self.found.get(&0, 0).map_err(io::Error::other)?;
        let mut found: Beside = transmute!(words);
        found.header = header::<Beside>(kind::BESIDE, ktime_ns());
        (poll.feed)(found.as_bytes());
        Ok(())
    }
}
