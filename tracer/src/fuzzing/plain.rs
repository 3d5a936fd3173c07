//! The first record of each kind in a script: a plain case of a few sockets and processes, nothing extreme.

use conntracer_common::{
    record::{
        self, Header, Owner, Socket, Tcp, close_flag, failure_how, idle_flag, kind, owner_source,
        role, syn_evidence,
    },
    tcp::{AF_INET, AF_INET6, ca, state},
};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// When time begins: not zero, which means "not seen" in records.
pub(super) const START_NS: u64 = 1_000_000_000_000;

const MAPPED: u32 = 0xffff_u32.to_be();

/// A record of `kind` about the socket of that number, of eight.
pub(super) fn plain(kind: u16, number: u8, now_ns: u64) -> Vec<u8> {
    let mut record = body(kind, number, now_ns);
    let header = Header {
        ktime_ns: now_ns,
        kind,
        size: u16::try_from(record.len()).expect("records are small"),
        cpu: 1,
    };
    record[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    record
}

fn of<T: IntoBytes + Immutable>(record: &T) -> Vec<u8> {
    record.as_bytes().to_vec()
}

fn body(kind: u16, number: u8, now_ns: u64) -> Vec<u8> {
    let (socket, owner) = (socket(number), owner(number));
    let header = Header::default();
    match kind {
        kind::CONNECT | kind::ACCEPT => of(&record::Connect {
            header,
            socket,
            owner,
        }),
        kind::STATE => of(&record::State {
            socket,
            owner,
            old_state: state::ESTABLISHED,
            new_state: state::CLOSE,
            ..record::State::default()
        }),
        kind::RETRANSMIT => of(&retransmit(number)),
        kind::RETRANSMITS => of(&record::Retransmits {
            last: retransmit(number),
            totals: record::RetransmitTotals {
                first_ns: START_NS,
                ..record::RetransmitTotals::of(&retransmit(number))
            },
            ..record::Retransmits::default()
        }),
        kind::UNDO => of(&record::Undo {
            socket,
            owner,
            first_ns: START_NS,
            ..record::Undo::default()
        }),
        kind::SYNACK => of(&record::SynAck {
            socket: listener(number),
            owner,
            request: 0x1000 + u64::from(number),
            max_ack_backlog: 128,
            syn_qlen: 1,
            num_retrans: 1,
            num_timeout: 1,
            ..record::SynAck::default()
        }),
        kind::SYN => of(&record::Syn {
            socket: listener(number),
            owner,
            last_ns: now_ns,
            ack_backlog: 2,
            max_ack_backlog: 1,
            peak_ack_backlog: 2,
            max_syn_backlog: 1024,
            outcome: u8::MAX,
            evidence: syn_evidence::COUNTERS,
            syncookies: 1,
            ..record::Syn::default()
        }),
        kind::SOURCES => {
            let mut sources = record::Sources::new_zeroed();
            sources.socket = listener(number);
            sources.since_ns = now_ns;
            sources.last_ns = now_ns;
            of(&sources)
        }
        _ => of_trouble(kind, number, now_ns),
    }
}

fn of_trouble(kind: u16, number: u8, now_ns: u64) -> Vec<u8> {
    let (socket, owner, tcp) = (socket(number), owner(number), tcp());
    match kind {
        kind::RESET => of(&record::Reset {
            socket,
            owner,
            reason: u32::MAX,
            received: 1,
            ..record::Reset::default()
        }),
        kind::DROP => of(&record::Drop {
            socket,
            owner,
            reason: number.into(),
            ..record::Drop::default()
        }),
        kind::EARLY_DROP => of(&record::EarlyDrop {
            socket: Socket {
                sk: 0,
                born_ns: 0,
                state: state::CLOSE,
                role: role::UNKNOWN,
                ..socket
            },
            count: 1,
            first_ns: START_NS,
            last_ns: now_ns,
            remotes: 1,
            device: *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0",
            ifindex: 2,
            reason: number.into(),
            path: record::path::INPUT,
            ..record::EarlyDrop::default()
        }),
        kind::FAILURE => of(&record::Failure {
            socket: Socket {
                state: state::SYN_SENT,
                role: role::ACTIVE,
                ..socket
            },
            owner,
            count: 1,
            first_ns: START_NS,
            last_ns: now_ns,
            longest_ns: 2_000_000,
            syns: 1,
            how: failure_how::PATIENT,
            ..record::Failure::default()
        }),
        kind::CLOSE => of(&record::Close {
            socket,
            owner,
            tcp,
            bytes_received: 4096,
            idle_ns: 1_000_000,
            unanswered_ns: u64::MAX,
            error: 104,
            reason: u32::MAX,
            sender_reason: u32::MAX,
            old_state: state::ESTABLISHED,
            flags: close_flag::RST_RECEIVED,
            ..record::Close::default()
        }),
        kind::PROBE => of(&record::Probe {
            socket,
            owner,
            tcp,
            keepalive: number & 1,
            ..record::Probe::default()
        }),
        kind::SNAPSHOT => of(&record::Snapshot {
            socket,
            owner,
            tcp,
            ..record::Snapshot::default()
        }),
        _ => of_userspace(kind, number, now_ns),
    }
}

#[expect(clippy::too_many_lines, reason = "a case a kind")]
fn of_userspace(kind: u16, number: u8, now_ns: u64) -> Vec<u8> {
    let (socket, owner, tcp) = (socket(number), owner(number), tcp());
    match kind {
        kind::LOSS => of(&record::Loss {
            lost: 1,
            hook: number.into(),
            ..record::Loss::default()
        }),
        kind::NETNS => {
            let mut netns = record::Netns::new_zeroed();
            netns.id.inode = socket.netns;
            of(&netns)
        }
        kind::SEED => of(&record::Seed {
            socket,
            owner,
            tcp,
            active_ns: now_ns,
            holders: 1,
            ..record::Seed::default()
        }),
        kind::SEEDED => of(&record::Seeded::default()),
        kind::IDLE => of(&record::Idle {
            socket,
            owner,
            tcp,
            idle_ns: 1_000_000_000_000,
            flags: idle_flag::KEEPALIVE_OFF,
            ..record::Idle::default()
        }),
        kind::RECEIVE => of(&record::Receive {
            socket,
            owner,
            data_idle_ns: 6_000_000_000,
            unread: 100_000,
            mss: 1448,
            flags: record::receive_flag::SHUT,
            ..record::Receive::default()
        }),
        kind::BIND => of(&record::Bind {
            socket: listener(number),
            owner,
            count: number.into(),
            first_ns: START_NS,
            last_ns: now_ns,
            error: 98,
            range: [32768, 60999],
            call: record::bind_call::BIND,
            ..record::Bind::default()
        }),
        kind::BIND_HOLDERS => {
            let asked = listener(number);
            let holder = record::BindHolder {
                owner,
                local_addr: asked.local_addr,
                local_port: asked.local_port,
                family: asked.family,
                state: state::LISTEN,
                ..record::BindHolder::default()
            };
            of(&record::BindHolders {
                local_addr: asked.local_addr,
                netns: asked.netns,
                port: asked.local_port,
                family: asked.family,
                listeners: 1,
                named: 1,
                holders: [holder; record::MAX_BIND_HOLDERS],
                ..record::BindHolders::default()
            })
        }
        kind::IDLE_TOTALS => of(&record::IdleTotals {
            limit_ns: 900_000_000_000,
            ..record::IdleTotals::default()
        }),
        kind::BESIDE => of(&record::Beside {
            remote_addr: socket.remote_addr,
            netns: socket.netns,
            family: socket.family,
            connections: 3,
            answered: 1,
            ..record::Beside::default()
        }),
        kind::CLOCK => of(&record::Clock::default()),
        kind::HALF_CLOSED => of(&record::HalfClosed {
            owner,
            count: 1,
            state: state::CLOSE_WAIT,
            ..record::HalfClosed::default()
        }),
        kind::PROCESS => {
            let mut process = record::Process::new_zeroed();
            process.pid = owner.pid;
            process.cgroup_id = owner.cgroup_id;
            process.netns = socket.netns;
            process.cgroup[..12].copy_from_slice(b"/web.service");
            of(&process)
        }
        kind::HOLDERS => of(&record::Holders {
            socket,
            owners: [owner; record::MAX_HOLDERS],
            count: 2,
            said_pid: owner.pid,
            ..record::Holders::default()
        }),
        kind::ACCEPTOR => of(&record::Acceptor {
            socket,
            pid: owner.pid,
            threads: 1,
            stopped: 1,
            state: b'T',
            flags: record::acceptor_flag::LAST,
            ..record::Acceptor::default()
        }),
        kind::ACCEPT_QUEUE => of(&record::AcceptQueue {
            socket,
            owner,
            oldest_ns: 3_000_000_000,
            ack_backlog: 2,
            max_ack_backlog: 8,
            waiting: 2,
            flags: record::accept_queue_flag::LATE,
            ..record::AcceptQueue::default()
        }),
        kind::DROPPED => of(&record::Dropped {
            count: 3,
            first_ns: START_NS,
            last_ns: START_NS,
            local_addr: socket.remote_addr,
            remote_addr: socket.local_addr,
            local_port: socket.remote_port,
            remote_port: socket.local_port,
            family: socket.family,
            netns: socket.netns,
            layer: record::drop_layer::NETFILTER,
            hook: record::drop_hook::OUTPUT,
            ..record::Dropped::default()
        }),
        kind::NETNS_FACTS => of(&record::NetnsFacts {
            netns: socket.netns,
            ..record::NetnsFacts::default()
        }),
        _ => of(&record::Tick::default()),
    }
}

fn retransmit(number: u8) -> record::Retransmit {
    record::Retransmit {
        socket: socket(number),
        owner: owner(number),
        tcp: tcp(),
        seq: 1000,
        end_seq: 1100,
        segs: 1,
        ..record::Retransmit::default()
    }
}

fn tcp() -> Tcp {
    Tcp {
        snd_una: 1000,
        snd_nxt: 3000,
        write_seq: 3000,
        snd_wnd: 64_000,
        packets_out: 2,
        mss: 1448,
        ca_state: ca::LOSS,
        retransmits: 2,
        data_segs_out: 100,
        ..Tcp::default()
    }
}

/// Two processes; the second is known from before.
fn owner(number: u8) -> Owner {
    let second = number & 1;
    Owner {
        cgroup_id: 77,
        comm: *b"server\0\0\0\0\0\0\0\0\0\0",
        pid: 1234 + u32::from(second),
        uid: 33,
        source: if second == 0 {
            owner_source::ACCEPT
        } else {
            owner_source::SEEDED
        },
        ..Owner::default()
    }
}

/// Connections to and from this host by both families, one of them in another namespace, and one whose address
/// in the kernel was another's before.
fn socket(number: u8) -> Socket {
    let v4 = |last: u8| [0, 0, MAPPED, u32::from_ne_bytes([10, 0, 0, last])];
    let v6 = |last: u32| [0xfd00_0000_u32.to_be(), 0, 0, last.to_be()];
    let passive = Socket {
        sk: 0xffff_8880_0000_0000,
        born_ns: START_NS,
        local_addr: v4(1),
        remote_addr: v4(2),
        netns: 4026,
        local_port: 80,
        remote_port: 4000,
        family: AF_INET,
        state: state::ESTABLISHED,
        role: role::PASSIVE,
        flags: 0,
    };
    let other = Socket {
        sk: passive.sk + u64::from(number) * 0x1000,
        ..passive
    };
    match number {
        0 => passive,
        1 => Socket {
            remote_addr: v4(3),
            ..other
        },
        2 => Socket {
            local_addr: v6(1),
            remote_addr: v6(2),
            family: AF_INET6,
            local_port: 5000,
            remote_port: 443,
            role: role::ACTIVE,
            ..other
        },
        3 => Socket {
            local_port: 6000,
            remote_port: 5432,
            role: role::ACTIVE,
            ..other
        },
        4 => listener(4),
        5 => listener(5),
        6 => Socket {
            netns: 4027,
            ..other
        },
        _ => Socket {
            born_ns: START_NS + 1,
            remote_addr: v4(4),
            ..passive
        },
    }
}

/// Two listeners, and clients that tell numbers apart.
fn listener(number: u8) -> Socket {
    let (local_addr, family, local_port) = if number & 1 == 0 {
        let v4 = [0, 0, MAPPED, u32::from_ne_bytes([10, 0, 0, 1])];
        (v4, AF_INET, 80)
    } else {
        ([0; 4], AF_INET6, 443)
    };
    Socket {
        sk: 0xffff_8880_1111_0000 + u64::from(number & 1),
        born_ns: START_NS,
        local_addr,
        remote_addr: [0, 0, MAPPED, u32::from_ne_bytes([10, 0, number, 2])],
        netns: 4026,
        local_port,
        remote_port: 4000 + u16::from(number),
        family,
        state: state::LISTEN,
        role: role::LISTENER,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode::decode, fuzzing::script::KINDS};

    #[test]
    fn every_kind_begins_as_a_record_of_its_size() {
        for (kind, size) in KINDS {
            for number in 0..8 {
                let record = plain(kind, number, START_NS);
                assert_eq!(record.len(), size, "kind {kind}");
                assert!(decode(&record).is_ok(), "kind {kind}, socket {number}");
            }
        }
    }
}
