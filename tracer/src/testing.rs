//! Synthetic records and a pipeline to feed them to, for the tests of everything right of `decode`.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use conntracer_common::{
    netns::NetnsId,
    record::{
        self, Header, Owner, Socket, Tcp, kind, owner_source, role, socket_flag, syn_evidence,
    },
    sketch,
    tcp::{AF_INET, AF_INET6, ca, state},
    undo::way,
};
use proptest::prelude::*;
use zerocopy::{Immutable, IntoBytes};

use crate::{
    decode::decode,
    detect::Thresholds,
    event,
    finding::{Finding, Status},
    kernel::{
        host::Host,
        plan::{DetectorPlan, HookMode, Plan, Sight, Transport},
    },
    pipeline::{Output, Pipeline},
    view::explain,
};

/// When test time begins: not zero, which means "not seen" in records.
const START_NS: u64 = 1_000_000_000_000;

const DETECTORS: [&str; 11] = [
    "syn_drop",
    "syn_drop.refusal",
    "half_open.handshake",
    "half_open.dead_peer",
    "half_open.half_closed",
    "half_open.idle",
    "retransmit_storm",
    "retransmit_storm.reordering",
    "send_stall",
    "connect_failure",
    "connection_drop",
];

/// The drop reasons of [`host`], numbered as no kernel does.
pub(crate) const REASONS: [&str; 16] = [
    "NOT_SPECIFIED",
    "TCP_CSUM",
    "NO_SOCKET",
    "NETFILTER_DROP",
    "IP_RPFILTER",
    "TCP_MD5NOTFOUND",
    "TCP_AOFAILURE",
    "SOCKET_FILTER",
    "NOMEM",
    "TCP_MINTTL",
    "XDP",
    "TCP_INVALID_SYN",
    "NEIGH_FAILED",
    "SECURITY_HOOK",
    "CPU_BACKLOG",
    "IP_INNOROUTES",
];

/// A host on which every detector is exact.
pub(crate) fn host() -> Host {
    let detectors = DETECTORS
        .iter()
        .map(|detector| DetectorPlan {
            detector: (*detector).to_owned(),
            sight: Sight::Exact,
            because: None,
        })
        .collect();
    let sysctls = [
        ("net.core.somaxconn", "4096"),
        ("net.ipv4.tcp_retries2", "15"),
        ("net.ipv4.tcp_orphan_retries", "0"),
        ("net.ipv4.tcp_synack_retries", "5"),
        ("net.ipv4.tcp_fin_timeout", "60"),
        ("net.ipv4.tcp_mtu_probing", "0"),
    ];
    Host {
        hostname: "test".to_owned(),
        kernel: "6.12.0".to_owned(),
        arch: "x86_64".to_owned(),
        realtime_offset_ns: 0,
        drop_reasons: (0..).zip(REASONS.map(str::to_owned)).collect(),
        reset_reasons: BTreeMap::from([(14, "TCP_STATE".to_owned())]),
        netns: Some(4026),
        sysctls: sysctls
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        plan: Plan {
            mode: HookMode::Auto,
            transport: Transport::Ringbuf,
            hooks: Vec::new(),
            detectors,
        },
    }
}

pub(crate) fn owner() -> Owner {
    let mut comm = [0; 16];
    comm[..6].copy_from_slice(b"server");
    Owner {
        cgroup_id: 77,
        comm,
        pid: 1234,
        uid: 33,
        source: owner_source::ACCEPT,
        ..Owner::default()
    }
}

fn words(addr: SocketAddr) -> ([u32; 4], u16) {
    let octets = match addr {
        SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(v6) => v6.ip().octets(),
    };
    let word = |at: usize| {
        u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
    };
    ([word(0), word(4), word(8), word(12)], addr.port())
}

/// An established connection's socket, `sk` told apart by the remote port.
pub(crate) fn socket(local: &str, remote: &str) -> Socket {
    let local: SocketAddr = local.parse().expect("a test's address");
    let remote: SocketAddr = remote.parse().expect("a test's address");
    let (local_addr, local_port) = words(local);
    let (remote_addr, remote_port) = words(remote);
    Socket {
        sk: 0xffff_8880_0000_0000 + u64::from(remote_port),
        born_ns: START_NS,
        local_addr,
        remote_addr,
        netns: 4026,
        local_port,
        remote_port,
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        state: state::ESTABLISHED,
        role: role::PASSIVE,
        flags: 0,
    }
}

/// A listener, with the peer of the moment.
pub(crate) fn listener(local: &str, remote: &str) -> Socket {
    Socket {
        sk: 0xffff_8880_1111_0000,
        state: state::LISTEN,
        role: role::LISTENER,
        ..socket(local, remote)
    }
}

/// The event of a listener that nobody troubles.
pub(crate) fn sources() -> event::Sources {
    let mut run = Run::new();
    run.sources(listener("10.0.0.1:80", "0.0.0.0:0"), std::iter::empty());
    match decode(&run.fed[0]).map(|event| event.body) {
        Ok(event::Body::Sources(sources)) => sources,
        other => panic!("not what was encoded: {other:?}"),
    }
}

/// Findings are kept; each has to be one that `explain` knows, as a cause of that finding.
#[track_caller]
fn keep(findings: &mut Vec<Finding>, output: &Output<'_>) {
    if let Output::Finding(finding) = output {
        let (kind, cause) = (finding.kind.name(), &finding.cause);
        assert!(
            explain::explains(kind, cause),
            "nothing explains {cause} as a cause of {kind}"
        );
        findings.push((*finding).clone());
    }
}

/// A pipeline, what it found, and what it was fed.
pub(crate) struct Run {
    pub(crate) pipeline: Pipeline,
    pub(crate) findings: Vec<Finding>,
    pub(crate) fed: Vec<Vec<u8>>,
    ktime_ns: u64,
}

impl Run {
    pub(crate) fn new() -> Self {
        Self::with(Thresholds::default())
    }

    pub(crate) fn with(thresholds: Thresholds) -> Self {
        Self::on(thresholds, host())
    }

    pub(crate) fn on(thresholds: Thresholds, host: Host) -> Self {
        Self {
            pipeline: Pipeline::new(thresholds, Arc::new(host)),
            findings: Vec::new(),
            fed: Vec::new(),
            ktime_ns: START_NS,
        }
    }

    pub(crate) fn ktime_ns(&self) -> u64 {
        self.ktime_ns
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.fed.push(bytes.to_vec());
        let findings = &mut self.findings;
        self.pipeline
            .feed(bytes, &mut |output| keep(findings, &output));
    }

    pub(crate) fn finish(&mut self) {
        let findings = &mut self.findings;
        self.pipeline.finish(&mut |output| keep(findings, &output));
    }

    fn record<T: IntoBytes + Immutable>(&mut self, record: &T) {
        self.feed(record.as_bytes());
    }

    fn header<T>(&self, kind: u16) -> Header {
        Header {
            ktime_ns: self.ktime_ns,
            kind,
            size: u16::try_from(size_of::<T>()).expect("records are small"),
            cpu: 1,
        }
    }

    pub(crate) fn tick(&mut self) {
        let header = self.header::<record::Tick>(kind::TICK);
        self.record(&record::Tick { header });
    }

    /// Lets time pass, with a tick every 250 ms.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = self.ktime_ns + u64::try_from(duration.as_nanos()).expect("a test's duration");
        while self.ktime_ns < end {
            self.ktime_ns = end.min(self.ktime_ns + 250_000_000);
            self.tick();
        }
    }

    /// Lets time pass without a record.
    pub(crate) fn skip(&mut self, duration: Duration) {
        self.ktime_ns += u64::try_from(duration.as_nanos()).expect("a test's duration");
    }

    pub(crate) fn syn(&mut self, socket: Socket, change: impl FnOnce(&mut record::Syn)) {
        let mut record = record::Syn {
            header: self.header::<record::Syn>(kind::SYN),
            socket,
            owner: owner(),
            last_ns: self.ktime_ns,
            max_ack_backlog: 1,
            ack_backlog: 2,
            peak_ack_backlog: 2,
            max_syn_backlog: 1024,
            outcome: u8::MAX,
            evidence: syn_evidence::COUNTERS,
            syncookies: 1,
            ..record::Syn::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// The registers that SYNs from these addresses leave at a listener.
    pub(crate) fn sources(&mut self, socket: Socket, from: impl Iterator<Item = [u32; 4]>) {
        let mut record = record::Sources {
            header: self.header::<record::Sources>(kind::SOURCES),
            socket,
            since_ns: self.ktime_ns,
            last_ns: self.ktime_ns,
            syns: 0,
            addresses: [0; sketch::ADDRESSES],
            prefixes: [0; sketch::PREFIXES],
        };
        let raise = |registers: &mut [u8], hash: u64| {
            let count = registers.len();
            let register =
                &mut registers[usize::try_from(hash % count as u64).expect("a register")];
            *register = (*register).max(sketch::rank(hash, count));
        };
        for source in from {
            record.syns += 1;
            raise(&mut record.addresses, sketch::hash(&source, 7));
            raise(
                &mut record.prefixes,
                sketch::hash(&sketch::prefix(&source), 7),
            );
        }
        self.record(&record);
    }

    pub(crate) fn syn_ack(&mut self, socket: Socket, num_retrans: u8, acked: bool) {
        let record = record::SynAck {
            header: self.header::<record::SynAck>(kind::SYNACK),
            socket,
            owner: owner(),
            request: 0x1000 + u64::from(socket.remote_port),
            max_ack_backlog: 128,
            syn_qlen: 1,
            num_retrans,
            num_timeout: num_retrans,
            acked: acked.into(),
            ..record::SynAck::default()
        };
        self.record(&record);
    }

    pub(crate) fn retransmit(
        &mut self,
        socket: Socket,
        change: impl FnOnce(&mut record::Retransmit),
    ) {
        let mut record = self.repeated(socket);
        change(&mut record);
        self.record(&record);
    }

    /// The kernel takes back what it did about a loss, `change`d from one that repeated a segment.
    pub(crate) fn undo(&mut self, socket: Socket, change: impl FnOnce(&mut record::Undo)) {
        let mut record = record::Undo {
            header: self.header::<record::Undo>(kind::UNDO),
            socket,
            owner: owner(),
            ..record::Undo::default()
        };
        record.totals.count(way::LOSS, 1);
        change(&mut record);
        self.record(&record);
    }

    /// One segment that is sent again now.
    pub(crate) fn repeated(&self, socket: Socket) -> record::Retransmit {
        record::Retransmit {
            header: self.header::<record::Retransmit>(kind::RETRANSMIT),
            socket,
            owner: owner(),
            tcp: Tcp {
                snd_una: 1000,
                snd_nxt: 3000,
                snd_wnd: 64_000,
                mss: 1448,
                ca_state: ca::LOSS,
                retransmits: 1,
                data_segs_out: 100,
                ..Tcp::default()
            },
            seq: 1000,
            end_seq: 1100,
            segs: 1,
            ..record::Retransmit::default()
        }
    }

    /// What a search found: the pids of those who hold `socket`, of `count` in all.
    pub(crate) fn holders(&mut self, socket: Socket, pids: &[u32], count: u32) {
        self.holders_instead_of(0, socket, pids, count);
    }

    /// The same of a socket that was said to be another's.
    pub(crate) fn holders_instead_of(
        &mut self,
        said_pid: u32,
        socket: Socket,
        pids: &[u32],
        count: u32,
    ) {
        let mut owners = [Owner::default(); record::MAX_HOLDERS];
        for (place, pid) in owners.iter_mut().zip(pids) {
            *place = Owner {
                pid: *pid,
                source: owner_source::SEEDED,
                ..owner()
            };
        }
        let record = record::Holders {
            header: self.header::<record::Holders>(kind::HOLDERS),
            socket,
            owners,
            count,
            said_pid,
        };
        self.record(&record);
    }

    pub(crate) fn probe(&mut self, socket: Socket, change: impl FnOnce(&mut record::Probe)) {
        let mut record = record::Probe {
            header: self.header::<record::Probe>(kind::PROBE),
            socket,
            owner: owner(),
            keepalive: 1,
            ..record::Probe::default()
        };
        change(&mut record);
        self.record(&record);
    }

    pub(crate) fn snapshot(&mut self, socket: Socket, change: impl FnOnce(&mut record::Snapshot)) {
        let mut record = record::Snapshot {
            header: self.header::<record::Snapshot>(kind::SNAPSHOT),
            socket,
            owner: owner(),
            ..record::Snapshot::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// A connection that the audit found: idle for `idle`, keepalive off.
    pub(crate) fn idle(
        &mut self,
        socket: Socket,
        idle: Duration,
        change: impl FnOnce(&mut record::Idle),
    ) {
        let mut record = record::Idle {
            header: self.header::<record::Idle>(kind::IDLE),
            socket,
            owner: owner(),
            idle_ns: u64::try_from(idle.as_nanos()).expect("a test's duration"),
            flags: record::idle_flag::KEEPALIVE_OFF,
            ..record::Idle::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// The end of an audit, which lost so many.
    pub(crate) fn audited(&mut self, lost: u32) {
        let record = record::Audited {
            header: self.header::<record::Audited>(kind::AUDITED),
            lost,
            limit_ns: 900_000_000_000,
            ..record::Audited::default()
        };
        self.record(&record);
    }

    /// The comparison of a namespace, which counted nothing.
    pub(crate) fn netns(&mut self, inode: u32, mix: u32) {
        let record = record::Netns {
            header: self.header::<record::Netns>(kind::NETNS),
            id: NetnsId { inode, mix },
            ..record::Netns::default()
        };
        self.record(&record);
    }

    /// So many sockets in `half` of [`owner`]'s process that a poll does not list.
    pub(crate) fn half_closed(&mut self, half: u8, count: u64) {
        let record = record::HalfClosed {
            header: self.header::<record::HalfClosed>(kind::HALF_CLOSED),
            owner: owner(),
            count,
            state: half,
            ..record::HalfClosed::default()
        };
        self.record(&record);
    }

    /// A socket that was there before.
    pub(crate) fn seed(&mut self, socket: Socket, change: impl FnOnce(&mut record::Seed)) {
        let mut record = record::Seed {
            header: self.header::<record::Seed>(kind::SEED),
            socket: Socket {
                flags: socket_flag::OLDER,
                ..socket
            },
            owner: owner(),
            active_ns: self.ktime_ns,
            holders: 1,
            ..record::Seed::default()
        };
        change(&mut record);
        self.record(&record);
    }

    pub(crate) fn closed(&mut self, socket: Socket, change: impl FnOnce(&mut record::State)) {
        let mut record = record::State {
            header: self.header::<record::State>(kind::STATE),
            socket,
            owner: owner(),
            old_state: state::ESTABLISHED,
            new_state: state::CLOSE,
            ..record::State::default()
        };
        change(&mut record);
        self.record(&record);
    }

    pub(crate) fn reset_received(&mut self, socket: Socket) {
        let record = record::Reset {
            header: self.header::<record::Reset>(kind::RESET),
            socket,
            owner: owner(),
            reason: u32::MAX,
            received: 1,
            ..record::Reset::default()
        };
        self.record(&record);
    }

    /// Dropped SYNs, `count` in all since the test began, for `reason` of [`REASONS`].
    pub(crate) fn refusal(
        &mut self,
        socket: Socket,
        count: u64,
        reason: &str,
        change: impl FnOnce(&mut record::Refusal),
    ) {
        let reason = (0..).zip(REASONS).find(|(_, name)| *name == reason);
        let mut record = record::Refusal {
            header: self.header::<record::Refusal>(kind::REFUSAL),
            socket: Socket {
                sk: 0,
                born_ns: 0,
                state: state::CLOSE,
                role: role::UNKNOWN,
                ..socket
            },
            count,
            first_ns: START_NS,
            last_ns: self.ktime_ns,
            remotes: 1,
            device: *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0",
            ifindex: 2,
            reason: reason.map_or(u32::MAX, |(number, _)| number),
            path: record::path::INPUT,
            ..record::Refusal::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// Failed attempts to connect from `socket`, `count` in all since the test began.
    pub(crate) fn failure(
        &mut self,
        socket: Socket,
        count: u64,
        change: impl FnOnce(&mut record::Failure),
    ) {
        let mut record = record::Failure {
            header: self.header::<record::Failure>(kind::FAILURE),
            socket: Socket {
                state: state::SYN_SENT,
                role: role::ACTIVE,
                ..socket
            },
            owner: Owner {
                source: owner_source::CONNECT,
                ..owner()
            },
            count,
            first_ns: START_NS,
            last_ns: self.ktime_ns,
            longest_ns: 2_000_000,
            syns: 1,
            ..record::Failure::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// The end of `socket`: a RST came, unless changed.
    pub(crate) fn ending(&mut self, socket: Socket, change: impl FnOnce(&mut record::Ending)) {
        let mut record = record::Ending {
            header: self.header::<record::Ending>(kind::ENDING),
            socket,
            owner: owner(),
            bytes_received: 4096,
            idle_ns: 1_000_000,
            error: 104,
            reason: u32::MAX,
            old_state: state::ESTABLISHED,
            flags: record::ending_flag::RST_RECEIVED,
            ..record::Ending::default()
        };
        change(&mut record);
        self.record(&record);
    }

    pub(crate) fn loss(&mut self, hook: u32, lost: u64) {
        let header = self.header::<record::Loss>(kind::LOSS);
        self.record(&record::Loss {
            header,
            lost,
            hook,
            pad: 0,
        });
    }

    /// The findings' ids in order of opening, with the last that was said of each.
    pub(crate) fn last_words(&self) -> Vec<&Finding> {
        let mut last: BTreeMap<u64, &Finding> = BTreeMap::new();
        for finding in &self.findings {
            last.insert(finding.id, finding);
        }
        last.into_values().collect()
    }

    /// The one finding there is, as last told.
    pub(crate) fn only(&self) -> &Finding {
        match self.last_words().as_slice() {
            [only] => only,
            all => panic!("expected one finding, got {all:#?}"),
        }
    }

    pub(crate) fn statuses(&self) -> Vec<Status> {
        self.findings.iter().map(|finding| finding.status).collect()
    }

    /// Feeds the same bytes to a new pipeline and compares every word.
    pub(crate) fn assert_replays(&self, thresholds: Thresholds) {
        let mut again = Self::with(thresholds);
        for record in &self.fed {
            again.feed(record);
        }
        again.finish();
        let said = |run: &Self| serde_json::to_string(&run.findings).expect("findings serialise");
        assert_eq!(said(&again), said(self));
    }
}

/// A record of any kind, its size right and every other byte any.
pub(crate) fn any_record() -> impl Strategy<Value = Vec<u8>> {
    let sizes = [
        (kind::CONNECT, size_of::<record::Connect>()),
        (kind::ACCEPT, size_of::<record::Accept>()),
        (kind::STATE, size_of::<record::State>()),
        (kind::RETRANSMIT, size_of::<record::Retransmit>()),
        (kind::RETRANSMITS, size_of::<record::Retransmits>()),
        (kind::UNDO, size_of::<record::Undo>()),
        (kind::SYNACK, size_of::<record::SynAck>()),
        (kind::SYN, size_of::<record::Syn>()),
        (kind::RESET, size_of::<record::Reset>()),
        (kind::DROP, size_of::<record::Drop>()),
        (kind::REFUSAL, size_of::<record::Refusal>()),
        (kind::FAILURE, size_of::<record::Failure>()),
        (kind::ENDING, size_of::<record::Ending>()),
        (kind::PROBE, size_of::<record::Probe>()),
        (kind::SNAPSHOT, size_of::<record::Snapshot>()),
        (kind::TICK, size_of::<record::Tick>()),
        (kind::LOSS, size_of::<record::Loss>()),
        (kind::NETNS, size_of::<record::Netns>()),
        (kind::SOURCES, size_of::<record::Sources>()),
        (kind::SEED, size_of::<record::Seed>()),
        (kind::SEEDED, size_of::<record::Seeded>()),
        (kind::IDLE, size_of::<record::Idle>()),
        (kind::AUDITED, size_of::<record::Audited>()),
        (kind::CLOCK, size_of::<record::Clock>()),
        (kind::HALF_CLOSED, size_of::<record::HalfClosed>()),
        (kind::PROCESS, size_of::<record::Process>()),
        (kind::HOLDERS, size_of::<record::Holders>()),
    ];
    let kinds = prop::sample::select(sizes.to_vec());
    (
        kinds,
        prop::collection::vec(any::<u8>(), record::MAX_RECORD),
        any::<u8>(),
    )
        .prop_map(|((kind, size), mut bytes, source)| {
            bytes.truncate(size);
            bytes[8..10].copy_from_slice(&kind.to_ne_bytes());
            let size = u16::try_from(size).expect("records are small");
            bytes[10..12].copy_from_slice(&size.to_ne_bytes());
            // Most owners and outcomes valid, so that more than decode is reached.
            let owner_source_at = size_of::<Header>() + size_of::<Socket>() + 32;
            if let Some(byte) = bytes.get_mut(owner_source_at) {
                *byte = source % 7;
            }
            if kind == kind::SYN {
                bytes[std::mem::offset_of!(record::Syn, outcome)] = source % 11;
            }
            if kind == kind::REFUSAL {
                bytes[std::mem::offset_of!(record::Refusal, path)] = source % 5;
                bytes[std::mem::offset_of!(record::Refusal, place)] = source % 4;
            }
            bytes
        })
}
