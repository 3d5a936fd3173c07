//! Recordings made by hand: a host, and one record of every kind.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use conntracer::{
    host::Host,
    plan::{Coverage, DetectorPlan, HookMode, HookPlan, HookType, Plan, Refused, Transport},
    recording::Writer,
};
use conntracer_common::{
    record::{
        Accept, Close, Connect, Drop, EarlyDrop, Failure, Header, Holders, Loss, MAX_HOLDERS,
        Owner, Probe, Reset, Retransmit, Seed, Snapshot, Socket, State, Syn, SynAck, Tcp, Tick,
        close_flag, failure_how, kind, owner_source, path, role, socket_flag, syn_evidence,
        syn_outcome,
    },
    stats::hook,
    tcp::{AF_INET, ca, flag, state},
};
use tempfile::TempDir;
use zerocopy::{Immutable, IntoBytes};

/// A name that would clear the screen and start a new line.
pub(crate) const HOSTILE_COMM: &[u8; 16] = b"\x1b[2J\nx\xe2\x80\xae\0\0\0\0\0\0\0";

/// SYNs dropped in [`drops`].
pub(crate) const DROPS: u64 = 20;

const SECOND_NS: u64 = 1_000_000_000;

pub(crate) struct Recording {
    path: PathBuf,
    _directory: TempDir,
}

impl Recording {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn of(records: &[Vec<u8>]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("recording");
        let mut writer = Writer::new(File::create(&path).unwrap(), &host()).unwrap();
        for record in records {
            writer.record(record).unwrap();
        }
        writer.flush().unwrap();
        Self {
            path,
            _directory: directory,
        }
    }
}

/// A listener that drops SYNs for two seconds and then stays silent until it counts as recovered.
pub(crate) fn drops() -> Recording {
    let mut records = Vec::new();
    for drop in 1..=DROPS {
        records.push(syn(drop * SECOND_NS / 10, drop));
        records.push(tick(drop * SECOND_NS / 10));
    }
    records.push(tick(60 * SECOND_NS));
    Recording::of(&records)
}

/// A host on which nothing happens.
pub(crate) fn silence() -> Recording {
    Recording::of(&[tick(SECOND_NS), tick(2 * SECOND_NS)])
}

/// One record of every kind, and a storm of retransmissions.
pub(crate) fn everything() -> Recording {
    let mut records = lives();
    records.extend(troubles());
    for segment in 0..100_u32 {
        let at = SECOND_NS + u64::from(segment) * SECOND_NS / 50;
        let retransmit = Retransmit {
            socket: socket(),
            owner: owner(),
            tcp: Tcp {
                data_segs_out: 1000 + segment,
                total_retrans: segment,
                ..tcp()
            },
            seq: segment * 1448,
            end_seq: (segment + 1) * 1448,
            segs: 1,
            ..Retransmit::default()
        };
        records.push(record(at, kind::RETRANSMIT, retransmit, |r| &mut r.header));
        records.push(tick(at));
    }
    records.push(shared(3 * SECOND_NS));
    records.extend(older(3 * SECOND_NS));
    Recording::of(&records)
}

/// A socket that was there before, and how it ends; and an attempt of one that failed.
fn older(at: u64) -> [Vec<u8>; 3] {
    let socket = Socket {
        sk: 0xffff_8880_0000_3000,
        flags: socket_flag::OLDER,
        ..socket()
    };
    let seed = Seed {
        socket,
        owner: owner(),
        tcp: tcp(),
        active_ns: at,
        holders: 1,
        ..Seed::default()
    };
    let ending = Close {
        socket,
        owner: owner(),
        tcp: tcp(),
        bytes_received: 4096,
        idle_ns: SECOND_NS,
        error: 104,
        reason: 14,
        old_state: state::ESTABLISHED,
        flags: close_flag::RST_RECEIVED,
        ..Close::default()
    };
    let failure = Failure {
        socket: Socket {
            state: state::SYN_SENT,
            ..socket
        },
        owner: owner(),
        count: 1,
        first_ns: at,
        last_ns: at,
        longest_ns: SECOND_NS,
        error: 111,
        syns: 1,
        how: failure_how::RESET,
        ..Failure::default()
    };
    [
        record(at, kind::SEED, seed, |r| &mut r.header),
        record(at, kind::FAILURE, failure, |r| &mut r.header),
        record(at, kind::CLOSE, ending, |r| &mut r.header),
    ]
}

/// The connection is shared by twelve processes.
fn shared(at: u64) -> Vec<u8> {
    let mut owners = [owner(); MAX_HOLDERS];
    for (pid, other) in (2000..).zip(&mut owners[1..]) {
        other.pid = pid;
    }
    let holders = Holders {
        socket: socket(),
        owners,
        count: 12,
        ..Holders::default()
    };
    record(at, kind::HOLDERS, holders, |r| &mut r.header)
}

/// What every connection goes through.
fn lives() -> Vec<Vec<u8>> {
    let (socket, owner, tcp) = (socket(), owner(), tcp());
    let header = Header::default();
    let opened = Connect {
        header,
        socket,
        owner,
    };
    let accepted = Accept {
        header,
        socket,
        owner,
    };
    let closed = State {
        socket,
        owner,
        error: 110,
        old_state: state::ESTABLISHED,
        new_state: state::CLOSE,
        ..State::default()
    };
    let snapshot = Snapshot {
        header,
        socket,
        owner,
        tcp,
        ..Snapshot::default()
    };
    vec![
        record(SECOND_NS, kind::CONNECT, opened, |r| &mut r.header),
        record(SECOND_NS, kind::ACCEPT, accepted, |r| &mut r.header),
        record(SECOND_NS, kind::STATE, closed, |r| &mut r.header),
        record(SECOND_NS, kind::SNAPSHOT, snapshot, |r| &mut r.header),
    ]
}

/// What healthy ones are spared.
fn troubles() -> Vec<Vec<u8>> {
    let (socket, owner, tcp) = (socket(), owner(), tcp());
    let syn_ack = SynAck {
        socket: listener(),
        owner,
        request: 7,
        num_retrans: 1,
        ..SynAck::default()
    };
    let reset = Reset {
        socket,
        owner,
        reason: 14,
        received: 1,
        ..Reset::default()
    };
    let drop = Drop {
        socket,
        owner,
        reason: 99,
        tcp_flags: flag::SYN,
        ..Drop::default()
    };
    let early_drop = EarlyDrop {
        socket,
        owner,
        count: 1,
        remotes: 1,
        device: *b"eth0\x1b\0\0\0\0\0\0\0\0\0\0\0",
        ifindex: 2,
        path: path::INPUT,
        reason: 99,
        ..EarlyDrop::default()
    };
    let probe = Probe {
        socket,
        owner,
        tcp,
        keepalive: 1,
        ..Probe::default()
    };
    let loss = Loss {
        lost: 3,
        hook: hook::SYN,
        ..Loss::default()
    };
    vec![
        record(SECOND_NS, kind::SYNACK, syn_ack, |r| &mut r.header),
        syn(SECOND_NS, 1),
        record(SECOND_NS, kind::RESET, reset, |r| &mut r.header),
        record(SECOND_NS, kind::DROP, drop, |r| &mut r.header),
        record(SECOND_NS, kind::EARLY_DROP, early_drop, |r| &mut r.header),
        record(SECOND_NS, kind::PROBE, probe, |r| &mut r.header),
        record(SECOND_NS, kind::LOSS, loss, |r| &mut r.header),
    ]
}

fn record<R: IntoBytes + Immutable>(
    ktime_ns: u64,
    kind: u16,
    mut body: R,
    header: impl Fn(&mut R) -> &mut Header,
) -> Vec<u8> {
    let size = u16::try_from(size_of::<R>()).unwrap();
    *header(&mut body) = Header {
        ktime_ns,
        kind,
        size,
        cpu: 0,
    };
    body.as_bytes().to_vec()
}

fn tick(ktime_ns: u64) -> Vec<u8> {
    record(ktime_ns, kind::TICK, Tick::default(), |r| &mut r.header)
}

fn syn(ktime_ns: u64, dropped: u64) -> Vec<u8> {
    let mut totals = [0; syn_outcome::COUNT];
    totals[syn_outcome::ACCEPT_QUEUE_FULL] = dropped;
    let syn = Syn {
        socket: listener(),
        owner: owner(),
        totals,
        last_ns: ktime_ns,
        ack_backlog: 2,
        max_ack_backlog: 1,
        outcome: 2,
        evidence: syn_evidence::COUNTERS,
        syncookies: 1,
        ..Syn::default()
    };
    record(ktime_ns, kind::SYN, syn, |r| &mut r.header)
}

fn address(octets: [u8; 4]) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(octets)]
}

fn socket() -> Socket {
    Socket {
        sk: 0xffff_8880_0000_1000,
        born_ns: SECOND_NS,
        local_addr: address([10, 0, 0, 1]),
        remote_addr: address([10, 0, 0, 2]),
        netns: 4_026_531_840,
        local_port: 80,
        remote_port: 40_000,
        family: AF_INET,
        state: state::ESTABLISHED,
        role: role::ACTIVE,
        flags: 0,
    }
}

fn listener() -> Socket {
    Socket {
        sk: 0xffff_8880_0000_2000,
        state: state::LISTEN,
        role: role::LISTENER,
        ..socket()
    }
}

fn owner() -> Owner {
    Owner {
        cgroup_id: 42,
        comm: *HOSTILE_COMM,
        pid: 1234,
        uid: 33,
        source: owner_source::LISTENER,
        ..Owner::default()
    }
}

fn tcp() -> Tcp {
    Tcp {
        snd_nxt: 14_480,
        data_segs_out: 1000,
        srtt_us: 20_000,
        mss: 1448,
        packets_out: 10,
        ca_state: ca::RECOVERY,
        keepalive: u8::MAX,
        ..Tcp::default()
    }
}

pub(crate) fn host() -> Host {
    let refused = vec![Refused {
        hook_type: HookType::Fentry,
        reason: "Operation not permitted".to_owned(),
    }];
    Host {
        hostname: "web1".to_owned(),
        kernel: "6.12.0".to_owned(),
        arch: "x86_64".to_owned(),
        attached_ns: 0,
        realtime_offset_ns: 1_700_000_000_000_000_000,
        drop_reasons: BTreeMap::new(),
        reset_reasons: BTreeMap::from([(14, "TCP_STATE".to_owned())]),
        netns: Some(4_026_531_840),
        sysctls: BTreeMap::from([("net.core.somaxconn".to_owned(), "4096".to_owned())]),
        plan: Plan {
            mode: HookMode::Auto,
            transport: Transport::Ringbuf,
            hooks: vec![
                HookPlan {
                    hook: "syn".to_owned(),
                    hook_type: HookType::Kprobe,
                    attached: vec!["tcp_conn_request".to_owned()],
                    refused,
                    blind_to: Some("nothing that matters here".to_owned()),
                },
                HookPlan {
                    hook: "retransmit".to_owned(),
                    hook_type: HookType::Tracepoint,
                    attached: vec!["tcp_retransmit_skb".to_owned()],
                    refused: Vec::new(),
                    blind_to: Some("what a test leaves out".to_owned()),
                },
            ],
            // As it was told then: a replay tells it anew, from the hooks.
            detectors: vec![
                DetectorPlan {
                    detector: "syn_drop".to_owned(),
                    coverage: Coverage::Exact,
                    because: None,
                },
                DetectorPlan {
                    detector: "retransmit_storm".to_owned(),
                    coverage: Coverage::Exact,
                    because: None,
                },
            ],
        },
    }
}
