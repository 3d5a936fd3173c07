//! Bytes of one record to an [`Event`]; total over any bytes.
//!
//! Knows the records and nothing of tables or detectors. What does not fit is a [`DecodeError`]
//! that the pipeline counts.

mod connection;
mod early_drop;
mod idle;
mod listener;
mod retransmit;
mod seed;
mod snapshot;
mod userspace;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use conntracer_common::{
    record::{self, Header, kind, owner_source, role, socket_flag},
    tcp::AF_INET,
};
use thiserror::Error;
use zerocopy::FromBytes;

pub(crate) use self::retransmit::retransmit_type;
use crate::{
    event::{Body, Comm, Event, Owner, OwnerSource, Role, Socket, Tcp},
    id::SocketId,
    time::Ktime,
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
        kind::CONNECT => Body::Connect(connection::connect(&read(bytes, &header)?)?),
        kind::ACCEPT => Body::Accept(connection::accept(&read(bytes, &header)?)?),
        kind::STATE => Body::State(connection::state(&read(bytes, &header)?)?),
        kind::RESET => Body::Reset(connection::reset(&read(bytes, &header)?)?),
        kind::FAILURE => Body::Failure(connection::failure(&read(bytes, &header)?)?),
        kind::CLOSE => Body::Close(connection::close(&read(bytes, &header)?)?),
        kind::PROBE => Body::Probe(connection::probe(&read(bytes, &header)?)?),
        kind::RETRANSMIT => Body::Retransmit(retransmit::retransmit(&read(bytes, &header)?)?),
        kind::RETRANSMITS => Body::Retransmit(retransmit::retransmits(bytes, &header)?),
        kind::UNDO => Body::Undo(retransmit::undo(&read(bytes, &header)?)?),
        kind::SYNACK => Body::SynAck(listener::syn_ack(&read(bytes, &header)?)?),
        kind::SYN => Body::Syn(listener::syn(&read(bytes, &header)?)?),
        kind::SOURCES => Body::Sources(listener::sources(&read(bytes, &header)?)),
        kind::DROP => Body::Drop(early_drop::drop(&read(bytes, &header)?)?),
        kind::EARLY_DROP => Body::EarlyDrop(early_drop::early_drop(&read(bytes, &header)?)?),
        kind::SNAPSHOT => Body::Snapshot(snapshot::snapshot(&read(bytes, &header)?)?),
        kind::SEED => Body::Seed(seed::seed(&read(bytes, &header)?)?),
        kind::IDLE => Body::Idle(idle::idle(&read(bytes, &header)?)?),
        kind::TICK => {
            let _: record::Tick = read(bytes, &header)?;
            Body::Tick
        }
        kind::CHECKPOINT => {
            let _: record::Checkpoint = read(bytes, &header)?;
            Body::Checkpoint
        }
        kind::LOSS => Body::Loss(userspace::loss(&read(bytes, &header)?)?),
        kind::NETNS => Body::Netns(userspace::netns(bytes, &header)?),
        kind::SEEDED => Body::Seeded(userspace::seeded(&read(bytes, &header)?)),
        kind::IDLE_TOTALS => Body::IdleTotals(userspace::idle_totals(&read(bytes, &header)?)),
        kind::CLOCK => Body::Clock(userspace::clock(&read(bytes, &header)?)),
        kind::HALF_CLOSED => Body::HalfClosed(userspace::half_closed(&read(bytes, &header)?)?),
        kind::PROCESS => Body::Process(userspace::process(&read(bytes, &header)?)),
        kind::HOLDERS => Body::Holders(userspace::holders(&read(bytes, &header)?)?),
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

/// A time that may not be known.
fn when(ns: u64) -> Option<Ktime> {
    (ns != 0).then_some(Ktime(ns))
}

/// A reason of the kernel's, which some kernels do not give.
fn reason(raw: u32) -> Option<u32> {
    (raw != u32::MAX).then_some(raw)
}

#[cfg(test)]
mod tests {
    use conntracer_common::{record::MAX_RECORD, tcp::AF_INET6};
    use proptest::prelude::*;
    use rstest::rstest;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::testing::any_record;

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
