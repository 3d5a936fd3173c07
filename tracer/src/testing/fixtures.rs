//! A host, an owner and sockets to make records of, and records of any bytes.

use std::{collections::BTreeMap, net::SocketAddr};

use conntracer_common::{
    record::{self, Header, Owner, Socket, kind, owner_source, role},
    tcp::{AF_INET, AF_INET6, state},
};
use proptest::prelude::*;

use super::{Run, START_NS};
use crate::{
    decode::decode,
    detect::SPECS,
    event,
    fuzzing::KINDS,
    host::Host,
    plan::{Coverage, DetectorPlan, HookMode, Plan, Transport},
};

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
    let detectors = SPECS
        .iter()
        .map(|spec| DetectorPlan {
            detector: spec.detector.to_owned(),
            coverage: Coverage::Exact,
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
        attached_ns: 0,
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

/// A record of any kind, its size right and every other byte any.
pub(crate) fn any_record() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop::sample::select(KINDS.to_vec());
    (
        kinds,
        // Numbers at their ends, where arithmetic overflows, are as likely as those between.
        prop::collection::vec(
            prop_oneof![any::<[u8; 4]>(), Just([0; 4]), Just([0xff; 4])],
            record::MAX_RECORD.div_ceil(4),
        ),
        any::<u8>(),
    )
        .prop_map(|((kind, size), words, source)| {
            let mut bytes = words.concat();
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
            if kind == kind::EARLY_DROP {
                bytes[std::mem::offset_of!(record::EarlyDrop, path)] = source % 5;
                bytes[std::mem::offset_of!(record::EarlyDrop, place)] = source % 4;
            }
            bytes
        })
}
