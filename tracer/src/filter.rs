//! Which records are judged: those of sockets and owners that are asked for.
//!
//! The eBPF side leaves out what it can tell of. What remains to be decided here: sockets whose owner it
//! did not know, and control groups that it met a moment ago; and everything in a replay. Records go through
//! before they are kept or judged, so that a recording holds what its run has judged, and its replay finds
//! the same. What was left out is counted.

use conntracer_common::{
    filter::{Filter, Plain, comm_words, owner_condition},
    record::{Header, Owner, Process, Socket, kind, owner_source, process_flag, role},
    tcp::state,
};
use serde::Serialize;
use zerocopy::FromBytes;

use crate::{
    count::Grow,
    {owner::path, table::Bounded},
};

/// Control groups whose answer is kept at once; a host has as many as it has services and containers.
const MAX_GROUPS: usize = 16_384;

/// Kinds of records that begin with a header, a socket and its owner.
const OWNED: [u16; 17] = [
    kind::CONNECT,
    kind::ACCEPT,
    kind::STATE,
    kind::RETRANSMIT,
    kind::RETRANSMITS,
    kind::UNDO,
    kind::SYNACK,
    kind::SYN,
    kind::RESET,
    kind::DROP,
    kind::EARLY_DROP,
    kind::PROBE,
    kind::SNAPSHOT,
    kind::IDLE,
    kind::SEED,
    kind::FAILURE,
    kind::CLOSE,
];

/// Conditions on owners; empty ones ask for nothing, and any of a kind will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    pub pids: Vec<u32>,
    /// As `conntracer_common::filter::comm_words` gives them.
    pub comms: Vec<[u64; 2]>,
    /// Control groups by their path below the root, as in `/system.slice/nginx.service`.
    pub groups: Vec<String>,
    /// First characters of containers' ids, or of the names of systemd's machines.
    pub containers: Vec<String>,
}

impl Owners {
    /// Bits of [`owner_condition`].
    #[must_use]
    pub fn conditions(&self) -> u32 {
        let bit = |asked: bool, bit: u32| if asked { bit } else { 0 };
        bit(!self.pids.is_empty(), owner_condition::PID)
            | bit(!self.comms.is_empty(), owner_condition::COMM)
            | bit(self.asks_for_groups(), owner_condition::GROUP)
    }

    /// Whether anything is asked about control groups.
    #[must_use]
    pub fn asks_for_groups(&self) -> bool {
        !self.groups.is_empty() || !self.containers.is_empty()
    }

    /// Whether processes of a control group are asked for, by its path below the root.
    #[must_use]
    pub fn wants_group(&self, path: &str) -> bool {
        let within = self.groups.iter().any(|group| is_within(group, path));
        let contained = || {
            path::container(path)
                .is_some_and(|(_, id)| self.containers.iter().any(|asked| id.starts_with(asked)))
        };
        (self.groups.is_empty() || within) && (self.containers.is_empty() || contained())
    }

    /// What is asked for and is none of the control groups that there are, as it is typed.
    #[must_use]
    pub fn missing(&self, there: &[String]) -> Vec<String> {
        let lacks = |asked: Self| !there.iter().any(|path| asked.wants_group(path));
        let group = |group: &String| {
            let groups = vec![group.clone()];
            lacks(Self {
                groups,
                ..Self::default()
            })
            .then(|| format!("--cgroup {group}"))
        };
        let container = |container: &String| {
            let containers = vec![container.clone()];
            lacks(Self {
                containers,
                ..Self::default()
            })
            .then(|| format!("--container {container}"))
        };
        let groups = self.groups.iter().filter_map(group);
        groups
            .chain(self.containers.iter().filter_map(container))
            .collect()
    }
}

/// Whether a control group is `group`, or lies below it.
fn is_within(group: &str, path: &str) -> bool {
    path.strip_prefix(group.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What was left out, and what the bound of the groups cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tallies {
    /// Records of sockets or owners that are not asked for.
    pub records_filtered: u64,
    /// Records that nobody could say of whether they are asked for: their owner was not known.
    pub records_owner_unknown: u64,
    pub groups_evicted: u64,
}

enum Answer {
    Asked,
    Refused,
    Unknown,
}

/// See the module.
#[derive(Debug)]
pub struct Records {
    /// `None` where the eBPF side has told already.
    sockets: Option<Filter>,
    owners: Owners,
    /// What was said of each control group, by id.
    groups: Bounded<u64, bool>,
    tallies: Tallies,
}

impl Records {
    /// Of a live kernel, whose own half knows the sockets that are asked for.
    #[must_use]
    pub fn live(owners: Owners) -> Self {
        Self {
            sockets: None,
            owners,
            groups: Bounded::new(MAX_GROUPS),
            tallies: Tallies::default(),
        }
    }

    /// Of a recording.
    #[must_use]
    pub fn recorded(sockets: Filter, owners: Owners) -> Self {
        Self {
            sockets: (sockets != Filter::NONE).then_some(sockets),
            ..Self::live(owners)
        }
    }

    /// All of them.
    #[must_use]
    pub fn all() -> Self {
        Self::live(Owners::default())
    }

    /// What was left out so far.
    #[must_use]
    pub fn tallies(&self) -> Tallies {
        Tallies {
            groups_evicted: self.groups.evicted(),
            ..self.tallies
        }
    }

    /// Whether a record is to be judged. What is of no socket always is, and so is what is no record: it is
    /// counted elsewhere.
    pub fn take(&mut self, record: &[u8]) -> bool {
        let by_owner = self.owners.conditions() != 0;
        if self.sockets.is_none() && !by_owner {
            return true;
        }
        let Ok((header, rest)) = Header::read_from_prefix(record) else {
            return true;
        };
        if header.kind == kind::PROCESS {
            self.learn(record);
            return true;
        }
        // Sockets that are counted and not listed have no addresses to go by; where none of their process passes,
        // they are nobody's.
        if header.kind == kind::HALF_CLOSED && self.sockets.is_some() {
            self.tallies.records_filtered.grow(1);
            return false;
        }
        let is_owned = OWNED.contains(&header.kind);
        if !is_owned && header.kind != kind::SOURCES {
            return true;
        }
        let Ok((socket, rest)) = Socket::read_from_prefix(rest) else {
            return true;
        };
        if is_all_that_is_left(&socket) {
            return true;
        }
        if !self.wants_socket(socket) {
            self.tallies.records_filtered.grow(1);
            return false;
        }
        if !is_owned || !by_owner {
            return true;
        }
        let Ok((owner, _)) = Owner::read_from_prefix(rest) else {
            return true;
        };
        match self.answer(&owner) {
            Answer::Asked => true,
            Answer::Refused => {
                self.tallies.records_filtered.grow(1);
                false
            }
            Answer::Unknown => {
                self.tallies.records_owner_unknown.grow(1);
                false
            }
        }
    }

    fn wants_socket(&self, mut socket: Socket) -> bool {
        let Some(filter) = &self.sockets else {
            return true;
        };
        // Its record names the last client, and stands for all.
        if socket.role == role::LISTENER {
            socket.remote_addr = [0; 4];
            socket.remote_port = 0;
        }
        filter.matches::<Plain>(&socket)
    }

    fn answer(&mut self, owner: &Owner) -> Answer {
        let asked = &self.owners;
        if owner.source == owner_source::UNKNOWN {
            return Answer::Unknown;
        }
        if !(asked.pids.is_empty() || asked.pids.contains(&owner.pid))
            || !(asked.comms.is_empty() || asked.comms.contains(&comm_words(&owner.comm)))
        {
            return Answer::Refused;
        }
        if !asked.asks_for_groups() {
            return Answer::Asked;
        }
        match self.groups.touch(&owner.cgroup_id) {
            Some(true) => Answer::Asked,
            Some(false) => Answer::Refused,
            None => Answer::Unknown,
        }
    }

    /// Takes an answer from the name of an owner, which goes before its first record.
    fn learn(&mut self, record: &[u8]) {
        let Ok((process, _)) = Process::read_from_prefix(record) else {
            return;
        };
        let path = process.cgroup.split(|byte| *byte == 0).next();
        let path = String::from_utf8_lossy(path.unwrap_or_default());
        if path.is_empty() || !self.owners.asks_for_groups() {
            return;
        }
        let wants = self.owners.wants_group(&path);
        // Of the end of a path one cannot tell what it lies in, nor that it is no container.
        let is_cut = process.flags & process_flag::CGROUP_CUT != 0;
        if !is_cut || (wants && self.owners.groups.is_empty()) {
            self.groups.insert(process.cgroup_id, wants);
        }
    }
}

/// Whether a record says no more than that a socket is gone.
const fn is_all_that_is_left(socket: &Socket) -> bool {
    socket.state == state::CLOSE && socket.netns == 0 && socket.local_port == 0
}

#[cfg(test)]
mod tests {
    use conntracer_common::record::{Connect, Snapshot, Sources, Syn, Tick};
    use rstest::rstest;
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    const CONTAINER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn owner(pid: u32, cgroup_id: u64) -> Owner {
        Owner {
            cgroup_id,
            comm: *b"nginx\0old\0\0\0\0\0\0\0",
            pid,
            source: owner_source::CONNECT,
            ..Owner::default()
        }
    }

    fn header(kind: u16) -> Header {
        Header {
            kind,
            ..Header::default()
        }
    }

    fn socket() -> Socket {
        Socket {
            netns: 7,
            local_port: 80,
            remote_port: 40_000,
            ..Socket::default()
        }
    }

    fn connect(owner: Owner) -> Vec<u8> {
        let record = Connect {
            header: header(kind::CONNECT),
            socket: socket(),
            owner,
        };
        record.as_bytes().to_vec()
    }

    fn named(cgroup_id: u64, cgroup: &str, flags: u8) -> Vec<u8> {
        let mut record = Process::new_zeroed();
        record.header = header(kind::PROCESS);
        record.cgroup_id = cgroup_id;
        record.flags = flags;
        record.cgroup[..cgroup.len()].copy_from_slice(cgroup.as_bytes());
        record.as_bytes().to_vec()
    }

    fn port(port: u16) -> Filter {
        let mut filter = Filter::NONE;
        filter.ports[0] = port;
        filter.used.ports = 1;
        filter
    }

    #[rstest]
    #[case::nothing_asked(&[], &[], true)]
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
        let mut records = Records::live(Owners {
            pids: pids.to_vec(),
            comms: comms.iter().map(words).collect(),
            ..Owners::default()
        });
        assert_eq!(records.take(&connect(owner(7, 1))), passes);
        assert_eq!(records.tallies().records_filtered, u64::from(!passes));
    }

    #[test]
    fn an_owner_that_is_not_known_is_none_of_those_asked_for_and_counted_apart() {
        let mut records = Records::live(Owners {
            pids: vec![7],
            ..Owners::default()
        });
        assert!(!records.take(&connect(Owner::default())));
        assert!(!records.take(&connect(owner(8, 1))));
        let tallies = records.tallies();
        assert_eq!(
            (tallies.records_owner_unknown, tallies.records_filtered),
            (1, 1)
        );
        assert!(Records::all().take(&connect(Owner::default())));
    }

    #[test]
    fn a_control_group_is_told_by_the_name_of_its_owner() {
        let mut records = Records::live(Owners {
            groups: vec!["/web".to_owned()],
            ..Owners::default()
        });
        assert!(!records.take(&connect(owner(7, 1))));
        assert_eq!(records.tallies().records_owner_unknown, 1);
        for (id, path) in [(1, "/web"), (2, "/web/a/b"), (3, "/website"), (4, "/")] {
            assert!(records.take(&named(id, path, 0)));
        }
        let passed = [1, 2, 3, 4].map(|id| records.take(&connect(owner(7, id))));
        assert_eq!(passed, [true, true, false, false]);
        assert_eq!(records.tallies().records_filtered, 2);
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
        for (asked, passes) in [(by_container, true), (by_both, false)] {
            let mut records = Records::live(asked);
            records.take(&named(1, &scope, process_flag::CGROUP_CUT));
            assert_eq!(records.take(&connect(owner(7, 1))), passes);
            assert_eq!(records.tallies().records_owner_unknown, u64::from(!passes));
        }
    }

    #[rstest]
    #[case::container(&[], &["0123456789ab"], true)]
    #[case::other_container(&[], &["123456789ab"], false)]
    #[case::any_container(&[], &["f", "0"], true)]
    #[case::within(&["/system.slice"], &["0"], true)]
    #[case::not_within(&["/user.slice"], &["0"], false)]
    #[case::everything(&["/"], &[], true)]
    fn groups_are_wanted_when_every_kind_is_met(
        #[case] groups: &[&str],
        #[case] containers: &[&str],
        #[case] wanted: bool,
    ) {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let asked = Owners {
            groups: texts(groups),
            containers: texts(containers),
            ..Owners::default()
        };
        let path = format!("/system.slice/docker-{CONTAINER}.scope");
        assert_eq!(asked.wants_group(&path), wanted);
    }

    #[test]
    fn what_is_asked_for_and_not_there_is_said_as_it_is_typed() {
        let asked = Owners {
            groups: vec!["/web".to_owned(), "/db".to_owned()],
            containers: vec!["abc".to_owned()],
            ..Owners::default()
        };
        let there = ["/db/1".to_owned()];
        assert_eq!(asked.missing(&there), ["--cgroup /web", "--container abc"]);
    }

    #[test]
    fn a_recording_is_filtered_by_socket_as_the_kernel_would_have() {
        let mut records = Records::recorded(port(80), Owners::default());
        assert!(records.take(&connect(owner(7, 1))));
        let mut records = Records::recorded(port(81), Owners::default());
        assert!(!records.take(&connect(owner(7, 1))));
        assert_eq!(records.tallies().records_filtered, 1);
        let sources = Sources {
            header: header(kind::SOURCES),
            socket: socket(),
            ..Sources::new_zeroed()
        };
        assert!(!records.take(sources.as_bytes()));
    }

    #[test]
    fn the_last_client_of_a_listener_stands_for_all() {
        let mut filter = Filter::NONE;
        filter.remote_ports[0] = 9;
        filter.used.remote_ports = 1;
        let mut records = Records::recorded(filter, Owners::default());
        let syn = Syn {
            header: header(kind::SYN),
            socket: Socket {
                role: role::LISTENER,
                ..socket()
            },
            ..Syn::default()
        };
        assert!(records.take(syn.as_bytes()));
    }

    #[test]
    fn what_is_of_no_socket_always_passes() {
        let owners = Owners {
            pids: vec![7],
            ..Owners::default()
        };
        let mut records = Records::recorded(port(81), owners);
        let tick = Tick {
            header: header(kind::TICK),
        };
        assert!(records.take(tick.as_bytes()));
        assert!(records.take(&[1, 2, 3]));
        // What was watched is gone: whoever watched it asked for it.
        let gone = Snapshot {
            header: header(kind::SNAPSHOT),
            socket: Socket {
                state: state::CLOSE,
                ..Socket::default()
            },
            ..Snapshot::default()
        };
        assert!(records.take(gone.as_bytes()));
        assert_eq!(records.tallies(), Tallies::default());
    }
}
