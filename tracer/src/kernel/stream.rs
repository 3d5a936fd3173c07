//! What every record passes on its way out of the kernel's wing: it learns where a SYN was dropped and who its
//! owner is, and shows which sockets are in trouble.

use std::{collections::HashMap, io};

use aya::Ebpf;
use conntracer_common::record::{EarlyDrop, kind};
use foldhash::quality::RandomState;
use zerocopy::FromBytes as _;

use super::{
    answer::Answers,
    header::is_of,
    names::OwnerNames,
    owners::OwnerSearch,
    place::Places,
    poll::{
        Feed, acceptor::AcceptorLooks, dropped::DroppedLooks, holder::HolderSearch,
        listener::AskedPorts, netns_facts::NetnsFactsLooks, port::PortLooks,
    },
};
use crate::host::Host;

pub(super) struct Stream {
    answers: Answers,
    places: Places,
    holders: HolderSearch,
    acceptors: AcceptorLooks,
    netns_facts: NetnsFactsLooks,
    dropped: DroppedLooks,
    bound: PortLooks,
    ports: Ports,
    names: OwnerNames,
}

/// Ports at which SYNs were dropped before a listener: who listens there, perhaps for others, is worth a look.
#[derive(Default)]
struct Ports {
    asked: AskedPorts,
    /// When each was asked for last.
    told: HashMap<(u32, u16), u64, RandomState>,
}

/// Ports asked for at one poll; a scan of all of them is no reason to look at every listener.
const MAX_ASKED: usize = 64;
const MAX_TOLD: usize = 1024;
/// Between two looks at the listeners of one port.
const ASKED_AGAIN_NS: u64 = 5_000_000_000;

impl Ports {
    fn meet(&mut self, record: &[u8]) {
        if !is_of(kind::EARLY_DROP, record) {
            return;
        }
        let Ok((early_drop, _)) = EarlyDrop::read_from_prefix(record) else {
            return;
        };
        let socket = &early_drop.socket;
        if socket.local_port == 0 {
            return;
        }
        let port = (socket.netns, socket.local_port);
        let now_ns = early_drop.header.ktime_ns;
        let due = self
            .told
            .get(&port)
            .is_none_or(|told_ns| now_ns.saturating_sub(*told_ns) >= ASKED_AGAIN_NS);
        if !due || self.asked.len() >= MAX_ASKED {
            return;
        }
        if self.told.len() >= MAX_TOLD {
            self.told.clear();
        }
        self.told.insert(port, now_ns);
        self.asked.insert(port);
    }
}

impl Stream {
    pub(super) fn new(
        host: &Host,
        answers: Answers,
        dropped: DroppedLooks,
        bound: PortLooks,
    ) -> Self {
        let places = if host.drop_reasons.is_empty() {
            Places::read()
                .inspect_err(|error| log::warn!("reading /proc/kallsyms: {error}"))
                .unwrap_or_default()
        } else {
            Places::default()
        };
        Self {
            answers,
            places,
            holders: HolderSearch::default(),
            acceptors: AcceptorLooks::default(),
            netns_facts: NetnsFactsLooks::default(),
            dropped,
            bound,
            ports: Ports::default(),
            names: OwnerNames::default(),
        }
    }

    pub(super) fn names(&mut self) -> &mut OwnerNames {
        &mut self.names
    }

    /// The ports whose listeners the next poll is to show.
    pub(super) fn take_asked_ports(&mut self) -> AskedPorts {
        std::mem::take(&mut self.ports.asked)
    }

    /// Hands a record on, with what is made of it.
    pub(super) fn pass(&mut self, record: &[u8], feed: Feed<'_>) {
        let Self {
            answers,
            places,
            holders,
            acceptors,
            netns_facts,
            dropped,
            bound,
            ports,
            names,
        } = self;
        answers.name(record, &mut |record| {
            places.name(record, &mut |record| {
                holders.meet(record);
                netns_facts.meet(record);
                dropped.meet(record);
                bound.meet(record);
                ports.meet(record);
                acceptors.meet(record, feed);
                names.name(record, feed);
            });
        });
    }

    /// Who holds the sockets in trouble, where it is time to search; how those stand, and what their namespaces count.
    pub(super) fn poll_holders(
        &mut self,
        ebpf: &mut Ebpf,
        owners: &mut OwnerSearch,
        feed: Feed<'_>,
    ) -> io::Result<()> {
        let (names, acceptors) = (&mut self.names, &mut self.acceptors);
        self.holders.poll(ebpf, owners, &mut |record| {
            acceptors.meet(record, feed);
            names.name(record, feed);
        })?;
        acceptors.poll(feed);
        self.bound
            .poll(ebpf, &mut |record| names.name(record, feed))?;
        self.netns_facts.poll(feed);
        self.dropped.poll(feed)
    }
}
