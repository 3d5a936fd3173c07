//! Which events are judged: those of sockets and owners that match the filter.
//!
//! The eBPF side leaves out what it can tell of. What remains to be decided here: sockets whose owner it
//! did not know, and control groups that it met a moment ago; and everything in a replay. Events go through
//! before they are kept or judged, so that a recording holds what its run has judged, and its replay finds
//! the same. What was left out is counted.

use std::net::{IpAddr, Ipv6Addr};

use conntracer_common::{
    filter::{Filter, Plain, comm_words},
    record::{self, role},
};
use serde::Serialize;

use crate::{
    conditions::{Conditions, Owners},
    count::Grow,
    event::{Body, Event, Owner, Process, Role, Socket, TcpState},
    table::Bounded,
};

/// Control groups whose answer is kept at once; a host has as many as it has services and containers.
const MAX_GROUPS: usize = 16_384;

/// What was left out, and what the bound of the groups cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Records of sockets or owners that do not match.
    pub records_filtered: u64,
    /// Records of which nobody could say whether they match: their owner was not known.
    pub records_owner_unknown: u64,
    pub groups_evicted: u64,
}

/// See the module.
#[derive(Debug)]
pub struct EventFilter {
    /// `None` where the eBPF side has told already.
    sockets: Option<Filter>,
    owners: Owners,
    /// Whether each control group matches, by id.
    groups: Bounded<u64, bool>,
    left_out: LeftOut,
}

impl EventFilter {
    /// Of a live kernel, whose eBPF side knows the sockets that match.
    #[must_use]
    pub fn live(owners: Owners) -> Self {
        Self {
            sockets: None,
            owners,
            groups: Bounded::new(MAX_GROUPS),
            left_out: LeftOut::default(),
        }
    }

    /// Of a recording.
    #[must_use]
    pub fn recorded(conditions: Conditions) -> Self {
        let Conditions { sockets, owners } = conditions;
        Self {
            sockets: (sockets != Filter::NONE).then_some(sockets),
            ..Self::live(owners)
        }
    }

    /// That everything matches.
    #[must_use]
    pub fn all() -> Self {
        Self::live(Owners::default())
    }

    /// What was left out so far.
    #[must_use]
    pub fn left_out(&self) -> LeftOut {
        LeftOut {
            groups_evicted: self.groups.evicted(),
            ..self.left_out
        }
    }

    /// Whether an event is to be judged. What is of no socket always is.
    pub fn passes(&mut self, event: &Event) -> bool {
        let by_owner = self.owners.conditions() != 0;
        if self.sockets.is_none() && !by_owner {
            return true;
        }
        match &event.body {
            Body::Process(process) => self.learn(process),
            // Sockets that are counted and not listed have no addresses to go by; where none of their process
            // passes, they are nobody's.
            Body::HalfClosed(_) if self.sockets.is_some() => {
                self.left_out.records_filtered.grow(1);
                return false;
            }
            _ => {}
        }
        let about = event.body.about();
        let Some(socket) = about.socket.filter(|socket| !is_all_that_is_left(socket)) else {
            return true;
        };
        // Who sent a listener's SYNs is told without whose the listener is.
        let by_owner = by_owner && !matches!(event.body, Body::Sources(_));
        let matches = if !self.matches_socket(socket) {
            Some(false)
        } else if by_owner {
            about.owner.and_then(|owner| self.matches_owner(owner))
        } else {
            Some(true)
        };
        match matches {
            Some(true) => {}
            Some(false) => self.left_out.records_filtered.grow(1),
            None => self.left_out.records_owner_unknown.grow(1),
        }
        matches == Some(true)
    }

    fn matches_socket(&self, socket: &Socket) -> bool {
        let Some(filter) = &self.sockets else {
            return true;
        };
        let mut raw = record::Socket {
            netns: socket.netns,
            local_addr: words(socket.local.ip()),
            local_port: socket.local.port(),
            ..record::Socket::default()
        };
        raw.role = match socket.role {
            Role::Unknown => role::UNKNOWN,
            Role::Active => role::ACTIVE,
            Role::Passive => role::PASSIVE,
            Role::Listener => role::LISTENER,
        };
        // A listener's record names the last client, and stands for all.
        if socket.role != Role::Listener {
            raw.remote_addr = words(socket.remote.ip());
            raw.remote_port = socket.remote.port();
        }
        filter.matches::<Plain>(&raw)
    }

    /// `None` of a control group that nobody named yet.
    fn matches_owner(&mut self, owner: &Owner) -> Option<bool> {
        let Owners { pids, comms, .. } = &self.owners;
        if !(pids.is_empty() || pids.contains(&owner.pid))
            || !(comms.is_empty() || comms.contains(&comm_words(&owner.comm.0)))
        {
            return Some(false);
        }
        if !self.owners.has_groups() {
            return Some(true);
        }
        self.groups.touch(&owner.cgroup_id).copied()
    }

    /// Takes an answer from the name of an owner, which goes before its first record.
    fn learn(&mut self, process: &Process) {
        let path = process.cgroup.split(|byte| *byte == 0).next();
        let path = String::from_utf8_lossy(path.unwrap_or_default());
        if path.is_empty() || !self.owners.has_groups() {
            return;
        }
        let matches = self.owners.matches_group(&path);
        // Of the end of a path one cannot tell what it lies in, nor that it is no container.
        if !process.cgroup_cut || (matches && self.owners.groups.is_empty()) {
            self.groups.insert(process.cgroup_id, matches);
        }
    }
}

/// An address as records and filters carry it: network order words, IPv4 mapped into IPv6.
#[must_use]
pub fn words(address: IpAddr) -> [u32; 4] {
    let address: Ipv6Addr = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut words = [0; 4];
    for (word, octets) in words.iter_mut().zip(address.octets().as_chunks().0) {
        *word = u32::from_ne_bytes(*octets);
    }
    words
}

/// Whether a record says no more than that a socket is gone.
const fn is_all_that_is_left(socket: &Socket) -> bool {
    matches!(socket.state, TcpState::Close) && socket.netns == 0 && socket.local.port() == 0
}

#[cfg(test)]
mod tests {
    use conntracer_common::{
        record::{Connect, Snapshot, Sources, Syn, Tick, kind, owner_source, process_flag},
        tcp::state,
    };
    use rstest::rstest;
    use zerocopy::{FromZeros, Immutable, IntoBytes};

    use super::*;
    use crate::decode::decode;

    const CONTAINER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn owner(pid: u32, cgroup_id: u64) -> record::Owner {
        record::Owner {
            cgroup_id,
            comm: *b"nginx\0old\0\0\0\0\0\0\0",
            pid,
            source: owner_source::CONNECT,
            ..record::Owner::default()
        }
    }

    fn event<T: IntoBytes + Immutable>(kind: u16, record: &T) -> Event {
        let mut bytes = record.as_bytes().to_vec();
        bytes[8..10].copy_from_slice(&kind.to_ne_bytes());
        let size = u16::try_from(bytes.len()).unwrap();
        bytes[10..12].copy_from_slice(&size.to_ne_bytes());
        decode(&bytes).unwrap()
    }

    fn socket() -> record::Socket {
        record::Socket {
            netns: 7,
            local_port: 80,
            remote_port: 40_000,
            ..record::Socket::default()
        }
    }

    fn connect(owner: record::Owner) -> Event {
        let record = Connect {
            socket: socket(),
            owner,
            ..Connect::default()
        };
        event(kind::CONNECT, &record)
    }

    fn named(cgroup_id: u64, cgroup: &str, flags: u8) -> Event {
        let mut record = record::Process::new_zeroed();
        record.cgroup_id = cgroup_id;
        record.flags = flags;
        record.cgroup[..cgroup.len()].copy_from_slice(cgroup.as_bytes());
        event(kind::PROCESS, &record)
    }

    fn by_socket(sockets: &Filter) -> EventFilter {
        EventFilter::recorded(Conditions {
            sockets: *sockets,
            owners: Owners::default(),
        })
    }

    fn by_port(port: u16) -> EventFilter {
        let mut sockets = Filter::NONE;
        sockets.ports[0] = port;
        sockets.used.ports = 1;
        by_socket(&sockets)
    }

    #[rstest]
    #[case::no_condition(&[], &[], true)]
    #[case::pid(&[9, 7], &[], true)]
    #[case::other_pid(&[8], &[], false)]
    #[case::both(&[7], &["nginx"], true)]
    #[case::one_of_both(&[7], &["ngin"], false)]
    #[case::any_name(&[], &["bash", "nginx"], true)]
    fn owners_pass_when_every_kind_is_met(
        #[case] pids: &[u32],
        #[case] comms: &[&str],
        #[case] passes: bool,
    ) {
        let words = |comm: &&str| {
            let mut bytes = [0; 16];
            bytes[..comm.len()].copy_from_slice(comm.as_bytes());
            comm_words(&bytes)
        };
        let mut filter = EventFilter::live(Owners {
            pids: pids.to_vec(),
            comms: comms.iter().map(words).collect(),
            ..Owners::default()
        });
        assert_eq!(filter.passes(&connect(owner(7, 1))), passes);
        assert_eq!(filter.left_out().records_filtered, u64::from(!passes));
    }

    #[test]
    fn an_owner_that_is_not_known_does_not_match_and_is_counted_apart() {
        let mut filter = EventFilter::live(Owners {
            pids: vec![7],
            ..Owners::default()
        });
        assert!(!filter.passes(&connect(record::Owner::default())));
        assert!(!filter.passes(&connect(owner(8, 1))));
        let left_out = filter.left_out();
        assert_eq!(
            (left_out.records_owner_unknown, left_out.records_filtered),
            (1, 1)
        );
        assert!(EventFilter::all().passes(&connect(record::Owner::default())));
    }

    #[test]
    fn a_control_group_is_told_by_the_name_of_its_owner() {
        let mut filter = EventFilter::live(Owners {
            groups: vec!["/web".to_owned()],
            ..Owners::default()
        });
        assert!(!filter.passes(&connect(owner(7, 1))));
        assert_eq!(filter.left_out().records_owner_unknown, 1);
        for (id, path) in [(1, "/web"), (2, "/web/a/b"), (3, "/website"), (4, "/")] {
            assert!(filter.passes(&named(id, path, 0)));
        }
        let passed = [1, 2, 3, 4].map(|id| filter.passes(&connect(owner(7, id))));
        assert_eq!(passed, [true, true, false, false]);
        assert_eq!(filter.left_out().records_filtered, 2);
    }

    #[test]
    fn of_a_path_that_was_cut_only_the_container_shows() {
        let scope = format!("ice/docker-{CONTAINER}.scope");
        let by_container = Owners {
            containers: vec![CONTAINER[..12].to_owned()],
            ..Owners::default()
        };
        let by_both = Owners {
            groups: vec!["/system.slice".to_owned()],
            ..by_container.clone()
        };
        for (owners, passes) in [(by_container, true), (by_both, false)] {
            let mut filter = EventFilter::live(owners);
            filter.passes(&named(1, &scope, process_flag::CGROUP_CUT));
            assert_eq!(filter.passes(&connect(owner(7, 1))), passes);
            assert_eq!(filter.left_out().records_owner_unknown, u64::from(!passes));
        }
    }

    #[test]
    fn a_recording_is_filtered_by_socket_as_the_kernel_would_have() {
        let mut filter = by_port(80);
        assert!(filter.passes(&connect(owner(7, 1))));
        let mut filter = by_port(81);
        assert!(!filter.passes(&connect(owner(7, 1))));
        assert_eq!(filter.left_out().records_filtered, 1);
        let sources = Sources {
            socket: socket(),
            ..Sources::new_zeroed()
        };
        assert!(!filter.passes(&event(kind::SOURCES, &sources)));
    }

    #[rstest]
    #[case("10.0.0.1")]
    #[case("0.0.0.0")]
    #[case("::")]
    #[case("fd00::1")]
    fn an_address_is_as_its_record_had_it(#[case] address: IpAddr) {
        let record = Connect {
            socket: record::Socket {
                local_addr: words(address),
                ..socket()
            },
            ..Connect::default()
        };
        let event = event(kind::CONNECT, &record);
        assert_eq!(event.body.about().socket.unwrap().local.ip(), address);
    }

    #[test]
    fn the_last_client_of_a_listener_stands_for_all() {
        let mut sockets = Filter::NONE;
        sockets.remote_ports[0] = 9;
        sockets.used.remote_ports = 1;
        let syn = Syn {
            socket: record::Socket {
                role: role::LISTENER,
                ..socket()
            },
            outcome: u8::MAX,
            ..Syn::default()
        };
        assert!(by_socket(&sockets).passes(&event(kind::SYN, &syn)));
    }

    #[test]
    fn what_is_of_no_socket_always_passes() {
        let mut filter = by_port(81);
        filter.owners.pids = vec![7];
        assert!(filter.passes(&event(kind::TICK, &Tick::default())));
        // What was watched is gone: whoever watched it asked for it.
        let gone = Snapshot {
            socket: record::Socket {
                state: state::CLOSE,
                ..record::Socket::default()
            },
            ..Snapshot::default()
        };
        assert!(filter.passes(&event(kind::SNAPSHOT, &gone)));
        assert_eq!(filter.left_out(), LeftOut::default());
    }
}
