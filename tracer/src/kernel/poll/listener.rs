//! Listeners whose totals changed, and who troubled them.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::AsFd as _,
    sync::Arc,
};

use aya::{Ebpf, maps::MapData};
use conntracer_common::{
    filter::verdict,
    record::{Sources, Syn, SynTotals, kind},
    socket::Listener,
    stats::{HookCounters, hook},
};
use foldhash::quality::RandomState;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::Poll;
use crate::{
    id::SocketId,
    kernel::{error::CannotTrace, header::header, maps, on_demand, trouble::troubled_syns},
};

/// Listeners whose queues are asked for anew at one poll: as many of a host's as may be in trouble at
/// once, at about 1 µs each. The others are told as they stood at their last SYN.
const MAX_REFRESHED: usize = 256;

/// Ports whose listeners are to be shown, by namespace: SYNs to them found none.
pub(crate) type AskedPorts = BTreeSet<(u32, u16)>;

/// Hooks that count at a listener.
const COUNTING: [u32; 6] = [
    hook::SYN,
    hook::ACK,
    hook::ACCEPT,
    hook::SYNACK,
    hook::REQUEST,
    hook::COOKIE,
];

pub(crate) struct Listeners {
    totals: Arc<MapData>,
    sketches: MapData,
    /// The state tells which handshakes were completed.
    by_state: bool,
    /// Events of the hooks at the last poll.
    events: u64,
    /// Totals of each listener, as last seen. A closed one's address is soon another's, whose totals may be the same.
    told: HashMap<SocketId, SynTotals, RandomState>,
    /// Of each listener's sketch, as last told: when it began, and its SYNs.
    sketched: HashMap<u64, (u64, u64), RandomState>,
}

impl Listeners {
    pub(crate) fn new(
        ebpf: &mut Ebpf,
        totals: Arc<MapData>,
        by_state: bool,
    ) -> Result<Self, CannotTrace> {
        Ok(Self {
            totals,
            sketches: maps::take_hash(ebpf, "SKETCHES")?,
            by_state,
            events: 0,
            told: HashMap::default(),
            sketched: HashMap::default(),
        })
    }

    /// A `Syn` of each listener that is watched, has an asked port or whose totals changed since the last poll, as it stands now; and
    /// a `Sources` of each that more SYNs troubled.
    pub(crate) fn poll(
        &mut self,
        watched: &[SocketId],
        asked: &AskedPorts,
        poll: &mut Poll<'_>,
    ) -> io::Result<()> {
        let mut events = HookCounters::default();
        for hook in COUNTING
            .into_iter()
            .chain(self.by_state.then_some(hook::STATE))
        {
            events.add(&poll.accounts.counted(hook)?);
        }
        if events.seen == self.events && watched.is_empty() && asked.is_empty() {
            return Ok(());
        }
        self.events = events.seen;
        let before = std::mem::take(&mut self.told);
        let (told, owners) = (&mut self.told, &mut *poll.owners);
        let mut due = watched.to_vec();
        maps::for_each(
            self.totals.fd().as_fd(),
            size_of::<Listener>(),
            |sk, value| {
                let Ok(Listener { syn, verdict, .. }) = Listener::read_from_bytes(value) else {
                    return;
                };
                // Without its birth it is still being filled in.
                if syn.socket.born_ns == 0 || verdict == verdict::EXCLUDED {
                    return;
                }
                let id = SocketId::new(sk, syn.socket.born_ns);
                told.insert(id, syn.totals);
                let port = (syn.socket.netns, syn.socket.local_port);
                if before.get(&id) != Some(&syn.totals) || asked.contains(&port) {
                    owners.note(&syn.owner);
                    due.push(id);
                }
            },
        )?;
        poll.search_owners()?;
        due.sort_unstable();
        due.dedup();
        for SocketId { sk, born } in due.iter().take(MAX_REFRESHED) {
            on_demand::run(poll.ebpf, "refresh", [*sk, born.0, 0])?;
        }
        let mut troubled = false;
        let mut value = [0; size_of::<Listener>()];
        for id in due {
            // Gone meanwhile: its last totals are in the rare ring.
            if !maps::lookup(self.totals.fd().as_fd(), id.sk, &mut value)? {
                continue;
            }
            let Ok(Listener { mut syn, .. }) = Listener::read_from_bytes(&value) else {
                continue;
            };
            if syn.socket.born_ns != id.born.0 {
                continue;
            }
            troubled |= before.get(&id).map_or(0, troubled_syns) != troubled_syns(&syn.totals);
            self.told.insert(id, syn.totals);
            syn.header = header::<Syn>(kind::SYN, poll.now_ns);
            syn.outcome = u8::MAX;
            (poll.feed)(syn.as_bytes());
        }
        if troubled {
            self.poll_sources(poll)?;
        }
        Ok(())
    }

    /// Who troubled listeners since the last poll.
    fn poll_sources(&mut self, poll: &mut Poll<'_>) -> io::Result<()> {
        let before = std::mem::take(&mut self.sketched);
        let sketched = &mut self.sketched;
        maps::for_each(
            self.sketches.fd().as_fd(),
            size_of::<Sources>(),
            |sk, value| {
                let Ok(mut sources) = Sources::read_from_bytes(value) else {
                    return;
                };
                let now = (sources.since_ns, sources.syns);
                sketched.insert(sk, now);
                if before.get(&sk) != Some(&now) {
                    sources.header = header::<Sources>(kind::SOURCES, poll.now_ns);
                    (poll.feed)(sources.as_bytes());
                }
            },
        )
    }
}
