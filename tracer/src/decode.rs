//! Bytes of one record to an [`Event`]; total over any bytes.
//!
//! Knows the records and nothing of tables or detectors. What does not fit is a [`DecodeError`]
//! that the pipeline counts.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use conntracer_common::{
    netns::{KernelCounts, kernel},
    record::{
        self, Header, RetransmitTotals, idle_flag, kind, listener_flag, netns_flag, owner_source,
        path, process_flag, refusal_place, role, socket_flag, syn_evidence, syn_outcome,
    },
    retransmit::{Attempt, class},
    stats::HOOKS,
    tcp::AF_INET,
};
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    event::{
        Audited, Body, Clock, Comm, Device, Drop, Egress, Ending, Event, Failure, HalfClosed,
        Holders, Idle, Loss, Netns, Opened, Owner, OwnerSource, Path, Place, Probe, Process,
        Refusal, Reset, Retransmit, RetransmitType, Role, Seed, Seeded, Snapshot, Socket, Sources,
        State, Syn, SynAck, Tcp, Undo,
    },
    finding::Ktime,
    source::SocketId,
};

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("record of {length} bytes is shorter than its header")]
    Short { length: usize },
    #[error("record says {size} bytes and {length} arrived")]
    Truncated { size: usize, length: usize },
    #[error("no record has kind {kind}")]
    Kind { kind: u16 },
    #[error("a record of kind {kind} has {expected} bytes, not {size}")]
    Size {
        kind: u16,
        size: usize,
        expected: usize,
    },
    #[error("{field} is {value}, which no record carries")]
    Value { field: &'static str, value: u64 },
}

/// Decodes one record. Bytes beyond the header's `size` are a transport's padding and ignored.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let (header, _) = Header::read_from_prefix(bytes).map_err(|_| DecodeError::Short {
        length: bytes.len(),
    })?;
    let size = usize::from(header.size);
    let bytes = bytes.get(..size).ok_or(DecodeError::Truncated {
        size,
        length: bytes.len(),
    })?;
    let body = match header.kind {
        kind::CONNECT => {
            let raw: record::Connect = read(bytes, &header)?;
            Body::Connect(Opened {
                socket: socket(&raw.socket),
                owner: owner(&raw.owner)?,
            })
        }
        kind::ACCEPT => {
            let raw: record::Accept = read(bytes, &header)?;
            Body::Accept(Opened {
                socket: socket(&raw.socket),
                owner: owner(&raw.owner)?,
            })
        }
        kind::STATE => Body::State(state(&read(bytes, &header)?)?),
        kind::RETRANSMIT => Body::Retransmit(retransmit(&read(bytes, &header)?)?),
        kind::RETRANSMITS => Body::Retransmit(retransmits(bytes, &header)?),
        kind::UNDO => Body::Undo(undo(&read(bytes, &header)?)?),
        kind::SYNACK => Body::SynAck(syn_ack(&read(bytes, &header)?)?),
        kind::SYN => Body::Syn(syn(&read(bytes, &header)?)?),
        kind::SOURCES => Body::Sources(sources(&read(bytes, &header)?)),
        kind::RESET => Body::Reset(reset(&read(bytes, &header)?)?),
        kind::DROP => Body::Drop(drop(&read(bytes, &header)?)?),
        kind::REFUSAL => Body::Refusal(refusal(&read(bytes, &header)?)?),
        kind::FAILURE => Body::Failure(failure(&read(bytes, &header)?)?),
        kind::ENDING => Body::Ending(ending(&read(bytes, &header)?)?),
        kind::PROBE => Body::Probe(probe(&read(bytes, &header)?)?),
        kind::SNAPSHOT => Body::Snapshot(snapshot(&read(bytes, &header)?)?),
        kind::TICK => {
            let _: record::Tick = read(bytes, &header)?;
            Body::Tick
        }
        kind::LOSS => Body::Loss(loss(&read(bytes, &header)?)?),
        kind::NETNS => Body::Netns(netns(bytes, &header)?),
        kind::SEED => Body::Seed(seed(&read(bytes, &header)?)?),
        kind::SEEDED => Body::Seeded(seeded(&read(bytes, &header)?)),
        kind::IDLE => Body::Idle(idle(&read(bytes, &header)?)?),
        kind::AUDITED => Body::Audited(audited(&read(bytes, &header)?)),
        kind::CLOCK => Body::Clock(clock(&read(bytes, &header)?)),
        kind::HALF_CLOSED => Body::HalfClosed(half_closed(&read(bytes, &header)?)?),
        kind::PROCESS => Body::Process(process(&read(bytes, &header)?)),
        kind::HOLDERS => Body::Holders(holders(&read(bytes, &header)?)?),
        kind => return Err(DecodeError::Kind { kind }),
    };
    Ok(Event {
        time: Ktime(header.ktime_ns),
        cpu: header.cpu,
        body,
    })
}

/// The record, copied out: a perf ring or a file guarantees no alignment, and at most 232 bytes cost
/// less than a branch on it.
fn read<T: FromBytes>(bytes: &[u8], header: &Header) -> Result<T, DecodeError> {
    T::read_from_bytes(bytes).map_err(|_| DecodeError::Size {
        kind: header.kind,
        size: bytes.len(),
        expected: size_of::<T>(),
    })
}

fn socket(raw: &record::Socket) -> Socket {
    let addr = |words: &[u32; 4], port| SocketAddr::new(address(words, raw.family), port);
    Socket {
        id: SocketId {
            sk: raw.sk,
            born: Ktime(raw.born_ns),
        },
        netns: raw.netns,
        local: addr(&raw.local_addr, raw.local_port),
        remote: addr(&raw.remote_addr, raw.remote_port),
        state: raw.state.into(),
        role: match raw.role {
            role::ACTIVE => Role::Active,
            role::PASSIVE => Role::Passive,
            role::LISTENER => Role::Listener,
            _ => Role::Unknown,
        },
        older: raw.flags & socket_flag::OLDER != 0,
    }
}

/// An address as its packets carry it: v4-mapped is IPv4 whatever the socket's family, and an
/// unset address takes the family's any-address.
fn address(words: &[u32; 4], family: u16) -> IpAddr {
    let mut octets = [0; 16];
    for (chunk, word) in octets.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    let v6 = Ipv6Addr::from(octets);
    match v6.to_ipv4_mapped() {
        Some(v4) => v4.into(),
        None if family == AF_INET && v6.is_unspecified() => Ipv4Addr::UNSPECIFIED.into(),
        None => v6.into(),
    }
}

fn owner(raw: &record::Owner) -> Result<Option<Owner>, DecodeError> {
    let source = match raw.source {
        owner_source::UNKNOWN => return Ok(None),
        owner_source::CONNECT => OwnerSource::Connect,
        owner_source::ACCEPT => OwnerSource::Accept,
        owner_source::LISTENER => OwnerSource::Listener,
        owner_source::SEEDED => OwnerSource::Seeded,
        owner_source::PASSED => OwnerSource::Passed,
        owner_source::FORKED => OwnerSource::Forked,
        value => {
            return Err(DecodeError::Value {
                field: "owner source",
                value: value.into(),
            });
        }
    };
    Ok(Some(Owner {
        cgroup_id: raw.cgroup_id,
        comm: Comm(raw.comm),
        pid: raw.pid,
        uid: raw.uid,
        started_ms: raw.started_ms,
        source,
        holders: (raw.holders != 0).then_some(raw.holders),
    }))
}

fn tcp(raw: &record::Tcp) -> Tcp {
    Tcp {
        bytes_acked: raw.bytes_acked,
        bytes_retrans: raw.bytes_retrans,
        snd_una: raw.snd_una,
        snd_nxt: raw.snd_nxt,
        write_seq: raw.write_seq,
        rcv_nxt: raw.rcv_nxt,
        snd_wnd_bytes: raw.snd_wnd,
        packets_out: raw.packets_out,
        lost_out: raw.lost_out,
        retrans_out: raw.retrans_out,
        total_retrans: raw.total_retrans,
        data_segs_out: raw.data_segs_out,
        srtt: Duration::from_micros(raw.srtt_us.into()),
        rto_jiffies: raw.rto_jiffies,
        mss_bytes: raw.mss,
        user_timeout: (raw.user_timeout_ms != 0)
            .then(|| Duration::from_millis(raw.user_timeout_ms.into())),
        retransmits: raw.retransmits,
        backoff: raw.backoff,
        probes_out: raw.probes_out,
        ca_state: raw.ca_state,
        pending: raw.pending,
        keepalive: match raw.keepalive {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        },
        shutdown: raw.shutdown,
        orphan: raw.orphan != 0,
    }
}

fn state(raw: &record::State) -> Result<State, DecodeError> {
    Ok(State {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        old: raw.old_state.into(),
        new: raw.new_state.into(),
        errno: raw.error,
        retransmits: raw.retransmits,
        probes_out: raw.probes_out,
    })
}

/// A recording of an earlier conntracer does not tell the interface.
fn retransmits(bytes: &[u8], header: &Header) -> Result<Retransmit, DecodeError> {
    const OLDER: usize = size_of::<record::Retransmits>() - size_of::<record::Egress>();
    let raw: record::Retransmits = if bytes.len() == OLDER {
        read(
            &[bytes, record::Egress::default().as_bytes()].concat(),
            header,
        )?
    } else {
        read(bytes, header)?
    };
    let egress = raw.egress;
    Ok(Retransmit {
        totals: raw.totals,
        is_cumulative: true,
        egress: (egress.device[0] != 0).then_some(Egress {
            device: Device(egress.device),
            ifindex: egress.ifindex,
        }),
        ..retransmit(&raw.last)?
    })
}

fn retransmit(raw: &record::Retransmit) -> Result<Retransmit, DecodeError> {
    Ok(Retransmit {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        kind: retransmit_type(class(&Attempt::of(raw))),
        seq: raw.seq,
        end_seq: raw.end_seq,
        segments: raw.segs.max(1),
        errno: raw.error,
        failures_traced: raw.failures_traced != 0,
        duplicates: raw.dsack_dups,
        totals: RetransmitTotals::of(raw),
        is_cumulative: false,
        egress: None,
    })
}

fn undo(raw: &record::Undo) -> Result<Undo, DecodeError> {
    Ok(Undo {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        began: (raw.first_ns != 0).then_some(Ktime(raw.first_ns)),
        totals: raw.totals,
        duplicates: raw.dsack_dups,
    })
}

/// The type of a segment, by what sent it again. What follows a retransmission timeout is `Timeout` like its
/// first segment: it is repeated because a timer expired, not because an ACK told of a hole.
pub(crate) const fn retransmit_type(class: u8) -> RetransmitType {
    match class {
        class::SYN => RetransmitType::Syn,
        class::SYN_ACK => RetransmitType::SynAck,
        class::TIMEOUT | class::SLOW_START => RetransmitType::Timeout,
        class::FAST => RetransmitType::Fast,
        class::LOSS_PROBE => RetransmitType::TailLossProbe,
        _ => RetransmitType::Unknown,
    }
}

fn syn_ack(raw: &record::SynAck) -> Result<SynAck, DecodeError> {
    Ok(SynAck {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        request: raw.request,
        ack_backlog: raw.ack_backlog,
        max_ack_backlog: raw.max_ack_backlog,
        syn_qlen: raw.syn_qlen,
        num_retrans: raw.num_retrans,
        num_timeout: raw.num_timeout,
        acked: raw.acked != 0,
    })
}

fn syn(raw: &record::Syn) -> Result<Syn, DecodeError> {
    let outcome = match raw.outcome {
        u8::MAX => None,
        value if usize::from(value) < syn_outcome::OUTCOMES => Some(value.into()),
        value => {
            return Err(DecodeError::Value {
                field: "SYN outcome",
                value: value.into(),
            });
        }
    };
    let seen = |ns| (ns != 0).then_some(Ktime(ns));
    Ok(Syn {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        totals: raw.totals,
        last_accept: seen(raw.last_accept_ns),
        last: seen(raw.last_ns),
        ack_backlog: raw.ack_backlog,
        max_ack_backlog: raw.max_ack_backlog,
        syn_qlen: raw.syn_qlen,
        max_syn_backlog: raw.max_syn_backlog,
        peak_ack_backlog: raw.peak_ack_backlog,
        peak_syn_qlen: raw.peak_syn_qlen,
        outcome,
        by_counters: raw.evidence == syn_evidence::COUNTERS,
        somaxconn: (raw.somaxconn != 0).then_some(raw.somaxconn),
        syncookies: (raw.syncookies != u8::MAX).then_some(raw.syncookies),
        abort_on_overflow: (raw.abort_on_overflow != u8::MAX).then_some(raw.abort_on_overflow != 0),
        v6_only: raw.flags & listener_flag::V6_ONLY != 0,
        reuseport: raw.flags & listener_flag::REUSEPORT != 0,
        most_repeats: raw.most_repeats,
    })
}

fn sources(raw: &record::Sources) -> Sources {
    Sources {
        socket: socket(&raw.socket),
        since: Ktime(raw.since_ns),
        last: Ktime(raw.last_ns),
        syns: raw.syns,
        addresses: raw.addresses,
        prefixes: raw.prefixes,
    }
}

fn reset(raw: &record::Reset) -> Result<Reset, DecodeError> {
    Ok(Reset {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        reason: reason(raw.reason),
        received: raw.received != 0,
        retransmits: raw.retransmits,
    })
}

fn drop(raw: &record::Drop) -> Result<Drop, DecodeError> {
    Ok(Drop {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        location: raw.location,
        seq: raw.seq,
        reason: reason(raw.reason),
        tcp_flags: raw.tcp_flags,
    })
}

fn refusal(raw: &record::Refusal) -> Result<Refusal, DecodeError> {
    let path = match raw.path {
        path::UNKNOWN => None,
        path::PREROUTING => Some(Path::Prerouting),
        path::INPUT => Some(Path::Input),
        path::FORWARD => Some(Path::Forward),
        value => {
            return Err(DecodeError::Value {
                field: "path of a refusal",
                value: value.into(),
            });
        }
    };
    let place = match raw.place {
        refusal_place::UNKNOWN => None,
        refusal_place::NETFILTER => Some(Place::Netfilter),
        refusal_place::ROUTE => Some(Place::Route),
        refusal_place::TCP => Some(Place::Tcp),
        value => {
            return Err(DecodeError::Value {
                field: "place of a refusal",
                value: value.into(),
            });
        }
    };
    let port = raw.socket.local_port;
    Ok(Refusal {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        count: raw.count,
        first: Ktime(raw.first_ns),
        last: Ktime(raw.last_ns),
        location: raw.location,
        remotes: raw.remotes,
        listener: (raw.socket.sk != 0)
            .then(|| SocketAddr::new(address(&raw.listener_addr, raw.socket.family), port)),
        device: (raw.device[0] != 0).then_some(Device(raw.device)),
        ifindex: raw.ifindex,
        reason: reason(raw.reason),
        path,
        place,
        hints: raw.hints,
    })
}

fn failure(raw: &record::Failure) -> Result<Failure, DecodeError> {
    Ok(Failure {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        count: raw.count,
        first: Ktime(raw.first_ns),
        last: Ktime(raw.last_ns),
        longest: Duration::from_nanos(raw.longest_ns),
        errno: raw.error,
        syns: raw.syns,
        how: raw.how,
    })
}

fn ending(raw: &record::Ending) -> Result<Ending, DecodeError> {
    let socket = socket(&raw.socket);
    let is_whole = socket.id.born != Ktime(0) && !socket.older && socket.role != Role::Unknown;
    Ok(Ending {
        socket,
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        octets_received: raw.bytes_received,
        age: is_whole.then(|| Ktime(raw.header.ktime_ns).since(socket.id.born)),
        idle: (raw.idle_ns != u64::MAX).then(|| Duration::from_nanos(raw.idle_ns)),
        errno: raw.error,
        soft_errno: raw.soft_error,
        reason: reason(raw.reason),
        unread_bytes: raw.unread,
        old: raw.old_state.into(),
        flags: raw.flags,
    })
}

fn reason(raw: u32) -> Option<u32> {
    (raw != u32::MAX).then_some(raw)
}

fn probe(raw: &record::Probe) -> Result<Probe, DecodeError> {
    Ok(Probe {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        result: raw.result,
        keepalive: raw.keepalive != 0,
    })
}

fn snapshot(raw: &record::Snapshot) -> Result<Snapshot, DecodeError> {
    Ok(Snapshot {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        since: (raw.since_ns != 0).then_some(Ktime(raw.since_ns)),
    })
}

fn seed(raw: &record::Seed) -> Result<Seed, DecodeError> {
    let seen = |ns| (ns != 0).then_some(Ktime(ns));
    Ok(Seed {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        bytes_received: raw.bytes_received,
        active: seen(raw.active_ns),
        since: seen(raw.since_ns),
        ack_backlog: raw.ack_backlog,
        max_ack_backlog: raw.max_ack_backlog,
        holders: raw.holders,
        num_retrans: raw.num_retrans,
    })
}

fn idle(raw: &record::Idle) -> Result<Idle, DecodeError> {
    Ok(Idle {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        idle: Duration::from_nanos(raw.idle_ns),
        without_timer: raw.flags & idle_flag::NO_TIMER != 0,
    })
}

const fn audited(raw: &record::Audited) -> Audited {
    Audited {
        asked: raw.asked,
        said: raw.said,
        lost: raw.lost,
        limit: Duration::from_nanos(raw.limit_ns),
    }
}

const fn clock(raw: &record::Clock) -> Clock {
    Clock {
        realtime_offset_ns: raw.realtime_offset_ns,
    }
}

fn half_closed(raw: &record::HalfClosed) -> Result<HalfClosed, DecodeError> {
    Ok(HalfClosed {
        owner: owner(&raw.owner)?,
        count: raw.count,
        state: raw.state.into(),
    })
}

const fn seeded(raw: &record::Seeded) -> Seeded {
    Seeded {
        homeless: raw.homeless,
        took: Duration::from_nanos(raw.took_ns),
        namespaces: raw.namespaces,
        not_entered: raw.not_entered,
    }
}

/// A recording of an earlier conntracer has fewer counters, and the same ones first.
fn netns(bytes: &[u8], header: &Header) -> Result<Netns, DecodeError> {
    const LISTS: usize = 3;
    const AROUND: usize = size_of::<record::Netns>() - LISTS * size_of::<KernelCounts>();
    let told = match bytes.len().checked_sub(AROUND) {
        Some(figures) if figures < LISTS * size_of::<KernelCounts>() => {
            figures / (LISTS * size_of::<u64>())
        }
        // The size of today, or of no record.
        _ => return Ok(compared(&read(bytes, header)?, kernel::COUNT)),
    };
    let list = told * size_of::<u64>();
    let mut whole = bytes.to_vec();
    for lists in (1..=LISTS).rev() {
        let end = size_of::<Header>() + lists * list;
        whole.splice(
            end..end,
            [0; size_of::<KernelCounts>()].into_iter().skip(list),
        );
    }
    Ok(compared(&read(&whole, header)?, told))
}

const fn compared(raw: &record::Netns, told: usize) -> Netns {
    Netns {
        id: raw.id,
        kernel: raw.kernel,
        before: raw.before,
        after: raw.after,
        born: raw.flags & netns_flag::BORN != 0,
        filtered: raw.flags & netns_flag::FILTERED != 0,
        unreadable: raw.flags & netns_flag::UNREADABLE != 0,
        failures_untraced: raw.flags & netns_flag::FAILURES_UNTRACED != 0,
        uncompared: raw.uncompared,
        homeless: raw.homeless,
        told,
    }
}

fn holders(raw: &record::Holders) -> Result<Holders, DecodeError> {
    let mut first = [None; record::MAX_HOLDERS];
    for (place, raw) in first.iter_mut().zip(&raw.owners) {
        *place = owner(raw)?;
    }
    Ok(Holders::new(
        socket(&raw.socket),
        first,
        raw.count,
        raw.said_pid,
    ))
}

const fn process(raw: &record::Process) -> Process {
    Process {
        pid: raw.pid,
        started_ms: raw.started_ms,
        started_unix_ms: raw.started_unix_ms,
        netns: raw.netns,
        executable: raw.executable,
        executable_cut: raw.flags & process_flag::EXECUTABLE_CUT != 0,
        cgroup: raw.cgroup,
        cgroup_cut: raw.flags & process_flag::CGROUP_CUT != 0,
        netns_name: raw.netns_name,
    }
}

fn loss(raw: &record::Loss) -> Result<Loss, DecodeError> {
    let hook = usize::try_from(raw.hook)
        .ok()
        .filter(|hook| *hook < HOOKS.len())
        .ok_or(DecodeError::Value {
            field: "hook",
            value: raw.hook.into(),
        })?;
    Ok(Loss {
        hook,
        lost: raw.lost,
    })
}

#[cfg(test)]
mod tests {
    use conntracer_common::{record::MAX_RECORD, tcp::AF_INET6};
    use proptest::prelude::*;
    use rstest::rstest;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::testing::{Run, any_record, listener};

    fn tick() -> record::Tick {
        let size = u16::try_from(size_of::<record::Tick>()).unwrap();
        record::Tick {
            header: Header {
                ktime_ns: 5,
                kind: kind::TICK,
                size,
                cpu: 3,
            },
        }
    }

    #[test]
    fn padding_behind_a_record_is_ignored() {
        let mut bytes = tick().as_bytes().to_vec();
        bytes.extend([0; 4]);
        let event = Event {
            time: Ktime(5),
            cpu: 3,
            body: Body::Tick,
        };
        assert_eq!(decode(&bytes), Ok(event));
    }

    #[rstest]
    #[case::nothing(0, 0, 0, DecodeError::Short { length: 0 })]
    #[case::half_a_header(0, 0, 8, DecodeError::Short { length: 8 })]
    #[case::no_kind(0, 16, 16, DecodeError::Kind { kind: 0 })]
    #[case::cut_off(kind::CONNECT, 120, 16, DecodeError::Truncated { size: 120, length: 16 })]
    #[case::less_than_its_header(
        kind::NETNS, 0, 16,
        DecodeError::Size { kind: kind::NETNS, size: 0, expected: size_of::<record::Netns>() }
    )]
    #[case::of_another_size(
        kind::CONNECT, 16, 16, DecodeError::Size { kind: kind::CONNECT, size: 16, expected: 120 }
    )]
    fn what_is_no_record_says_why(
        #[case] kind: u16,
        #[case] size: u16,
        #[case] length: usize,
        #[case] error: DecodeError,
    ) {
        let header = Header {
            kind,
            size,
            ..Header::default()
        };
        assert_eq!(decode(&header.as_bytes()[..length]), Err(error));
    }

    #[rstest]
    #[case::v4([0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([10, 0, 0, 1])], AF_INET, "10.0.0.1")]
    #[case::v4_on_a_dual_stack_socket(
        [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([10, 0, 0, 1])], AF_INET6, "10.0.0.1"
    )]
    #[case::v6([0xfd00_0000_u32.to_be(), 0, 0, 1_u32.to_be()], AF_INET6, "fd00::1")]
    #[case::any_v4([0; 4], AF_INET, "0.0.0.0")]
    #[case::any_v6([0; 4], AF_INET6, "::")]
    fn addresses_are_what_packets_carry(
        #[case] words: [u32; 4],
        #[case] family: u16,
        #[case] expected: &str,
    ) {
        assert_eq!(address(&words, family).to_string(), expected);
    }

    #[rstest]
    #[case::syn(class::SYN, RetransmitType::Syn)]
    #[case::simultaneous_open(class::SYN_ACK, RetransmitType::SynAck)]
    #[case::timer(class::TIMEOUT, RetransmitType::Timeout)]
    #[case::after_the_timer(class::SLOW_START, RetransmitType::Timeout)]
    #[case::fast(class::FAST, RetransmitType::Fast)]
    #[case::probe(class::LOSS_PROBE, RetransmitType::TailLossProbe)]
    #[case::anything_else(class::OTHER, RetransmitType::Unknown)]
    fn what_sent_a_segment_again_is_its_type(#[case] class: u8, #[case] expected: RetransmitType) {
        assert_eq!(retransmit_type(class), expected);
    }

    #[test]
    fn an_older_recording_has_fewer_counters() {
        const FEWER: usize = kernel::ATTEMPT_FAILS;
        let mut now = record::Netns {
            kernel: std::array::from_fn(|at| at as u64),
            before: [100; kernel::COUNT],
            after: [200; kernel::COUNT],
            homeless: 9,
            ..record::Netns::default()
        };
        now.header.kind = kind::NETNS;
        let words = |figures: &KernelCounts| figures[..FEWER].as_bytes().to_vec();
        let body = [&now.kernel, &now.before, &now.after].map(words).concat();
        let tail_at = size_of::<Header>() + 3 * size_of::<KernelCounts>();
        let tail = now.as_bytes()[tail_at..].to_vec();
        now.header.size = u16::try_from(size_of::<Header>() + body.len() + tail.len()).unwrap();
        let older = [now.header.as_bytes(), &body, &tail].concat();
        let Ok(Event {
            body: Body::Netns(netns),
            ..
        }) = decode(&older)
        else {
            panic!("{:?}", decode(&older));
        };
        assert_eq!(netns.told, FEWER);
        assert_eq!(netns.kernel[FEWER - 1], FEWER as u64 - 1);
        assert_eq!(netns.kernel[FEWER], 0);
        assert_eq!((netns.before[0], netns.after[FEWER - 1]), (100, 200));
        assert_eq!(netns.homeless, 9);
    }

    #[test]
    fn an_older_recording_does_not_tell_the_interface() {
        let mut now = record::Retransmits::default();
        now.egress.device[..4].copy_from_slice(b"eth0");
        now.totals.events = 3;
        now.last.header.kind = kind::RETRANSMITS;
        let egress = |size: usize| {
            let mut record = now;
            record.last.header.size = u16::try_from(size).unwrap();
            match decode(&record.as_bytes()[..size]) {
                Ok(Event {
                    body: Body::Retransmit(body),
                    ..
                }) => (body.totals.events, body.egress.map(|egress| egress.device)),
                other => panic!("{other:?}"),
            }
        };
        let whole = size_of::<record::Retransmits>();
        assert_eq!(egress(whole), (3, Some(Device(now.egress.device))));
        assert_eq!(egress(whole - size_of::<record::Egress>()), (3, None));
    }

    #[test]
    fn an_outcome_that_does_not_exist_is_refused() {
        let mut run = Run::new();
        run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
            syn.outcome = 10;
        });
        assert_eq!(run.pipeline.tallies().decode_errors, 1);
        let error = DecodeError::Value {
            field: "SYN outcome",
            value: 10,
        };
        assert_eq!(decode(&run.fed[0]), Err(error));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_say_why(
            bytes in prop::collection::vec(any::<u8>(), 0..MAX_RECORD + 8),
        ) {
            let _total = decode(&bytes);
        }

        #[test]
        fn any_record_of_another_size_decodes_or_says_why(
            bytes in any_record(), share in 0..=u16::MAX,
        ) {
            const SIZE_AT: usize = std::mem::offset_of!(Header, size);
            let cut = bytes.len() * usize::from(share) / usize::from(u16::MAX);
            let mut bytes = bytes[..cut].to_vec();
            if let Some(size) = bytes.get_mut(SIZE_AT..SIZE_AT + 2) {
                size.copy_from_slice(&u16::try_from(cut).unwrap().to_ne_bytes());
            }
            let _total = decode(&bytes);
            // Even shorter than its own header.
            if let Some(size) = bytes.get_mut(SIZE_AT..SIZE_AT + 2) {
                size.copy_from_slice(&(share % 16).to_ne_bytes());
            }
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn any_record_of_the_right_size_decodes_or_names_the_field(bytes in any_record()) {
            let decoded = decode(&bytes);
            prop_assert!(
                matches!(decoded, Ok(_) | Err(DecodeError::Value { .. })), "{:?}", decoded
            );
        }
    }
}
