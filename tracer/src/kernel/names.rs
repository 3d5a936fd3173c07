//! Names owners in the stream: before the first record of an owner goes a `Process`, so that a recording
//! holds every name.
//!
//! A pid alone is no identity. With the start time that the eBPF side keeps of its owner, a process that
//! has the pid by now is told from the one that is meant; one that is gone is said to be.

use std::{collections::HashSet, mem::offset_of, path::Path, time::Instant};

use conntracer_common::record::{
    BindHolders, Header, Holders, Owner, Process, Socket, kind, owner_source, process_flag,
};
use foldhash::quality::RandomState;
use rustix::time::{ClockId, Timespec, clock_gettime};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::header::header;
use crate::owner::{cgroup::Cgroups, netns::Names, process};

/// Owners told of; beyond it all are told again.
const MAX_TOLD: usize = 16_384;

/// Kinds of records that do not begin with a header, a socket and its owner: all others do.
const WITHOUT_OWNER: [u16; 16] = [
    kind::TICK,
    kind::CHECKPOINT,
    kind::LOSS,
    kind::SOURCES,
    kind::NETNS,
    kind::PROCESS,
    kind::HOLDERS,
    kind::SEEDED,
    kind::IDLE_TOTALS,
    kind::HALF_CLOSED,
    kind::CLOCK,
    kind::ACCEPTOR,
    kind::NETNS_FACTS,
    kind::BESIDE,
    kind::DROPPED,
    kind::BIND_HOLDERS,
];

/// Which owner, and in which namespace its socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    pid: u32,
    started_ms: u32,
    cgroup_id: u64,
    netns: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct OwnerNames {
    cgroups: Cgroups,
    names: Names,
    told: HashSet<Key, RandomState>,
    ticks_per_s: u64,
}

impl Default for OwnerNames {
    fn default() -> Self {
        Self {
            cgroups: Cgroups::of_host(),
            names: Names::new(Path::new("/run/netns")),
            told: HashSet::default(),
            ticks_per_s: rustix::param::clock_ticks_per_second(),
        }
    }
}

impl OwnerNames {
    /// Hands a record on, its owner named before it where that is new.
    pub(super) fn name(&mut self, record: &[u8], feed: &mut dyn FnMut(&[u8])) {
        if let Ok(holders) = Holders::read_from_bytes(record)
            && holders.header.kind == kind::HOLDERS
        {
            for owner in &holders.owners {
                self.name_owner(owner, holders.socket.netns, holders.header.ktime_ns, feed);
            }
        } else if let Ok(holders) = BindHolders::read_from_bytes(record)
            && holders.header.kind == kind::BIND_HOLDERS
        {
            for holder in &holders.holders {
                let ktime_ns = holders.header.ktime_ns;
                self.name_owner(&holder.owner, holders.netns, ktime_ns, feed);
            }
        } else if let Some((owner, netns, ktime_ns)) = owner(record) {
            self.name_owner(&owner, netns, ktime_ns, feed);
        }
        feed(record);
    }

    /// Shows the path of each control group in `ids`, `None` of those that are gone, and names their owners
    /// again. False when some were not looked for yet, and not shown: the hierarchy is walked once a second.
    pub(super) fn find_groups(
        &mut self,
        ids: &[u64],
        mut see: impl FnMut(u64, Option<&str>),
    ) -> bool {
        let looked = self.cgroups.learn_all(ids, Instant::now());
        for id in ids {
            if let Some(path) = self.cgroups.known(*id) {
                self.told.retain(|key| key.cgroup_id != *id);
                see(*id, Some(&String::from_utf8_lossy(path)));
            } else if looked {
                see(*id, None);
            }
        }
        looked
    }

    fn name_owner(
        &mut self,
        owner: &Owner,
        netns: u32,
        ktime_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) {
        let key = Key {
            pid: owner.pid,
            started_ms: owner.started_ms,
            cgroup_id: owner.cgroup_id,
            netns,
        };
        if owner.source == owner_source::UNKNOWN || self.told.contains(&key) {
            return;
        }
        if self.told.len() >= MAX_TOLD {
            self.told.clear();
        }
        self.told.insert(key);
        feed(self.process(&key, ktime_ns).as_bytes());
    }

    fn process(&mut self, key: &Key, ktime_ns: u64) -> Process {
        let now = Instant::now();
        let found = process::read(Path::new("/proc"), key.pid, self.ticks_per_s)
            .filter(|found| is_same(key.started_ms, found.started_ms, self.ticks_per_s));
        let mut record = Process::new_zeroed();
        record.header = header::<Process>(kind::PROCESS, ktime_ns);
        record.pid = key.pid;
        record.started_ms = key.started_ms;
        record.cgroup_id = key.cgroup_id;
        record.netns = key.netns;
        let hint = found.as_ref().and_then(|found| found.cgroup.as_deref());
        if let Some(path) = self.cgroups.path(key.cgroup_id, hint, now)
            && put(&mut record.cgroup, path)
        {
            record.flags |= process_flag::CGROUP_CUT;
        }
        if let Some(name) = self.names.name(key.netns, now) {
            put(&mut record.netns_name, name);
        }
        match found {
            None => record.flags |= process_flag::GONE,
            Some(found) => {
                record.started_unix_ms = booted_unix_ms().saturating_add(found.started_ms);
                let executable = found.executable.unwrap_or_default();
                if put(&mut record.executable, &executable) {
                    record.flags |= process_flag::EXECUTABLE_CUT;
                }
            }
        }
        record
    }
}

/// The owner of a record that has one, and in which namespace and when.
pub(super) fn owner(record: &[u8]) -> Option<(Owner, u32, u64)> {
    const NETNS: usize = offset_of!(Socket, netns);
    let (header, rest) = Header::read_from_prefix(record).ok()?;
    if WITHOUT_OWNER.contains(&header.kind) {
        return None;
    }
    let netns = u32::from_ne_bytes(*rest.get(NETNS..)?.first_chunk()?);
    let (owner, _) = Owner::read_from_prefix(rest.get(size_of::<Socket>()..)?).ok()?;
    Some((owner, netns, header.ktime_ns))
}

/// Whether a process that started at a clock tick is the one that the eBPF side saw start in that tick.
/// Without its start time nobody can tell, and it is taken for another.
fn is_same(wanted_ms: u32, found_ms: u64, ticks_per_s: u64) -> bool {
    // The low 32 bits are what the eBPF side keeps.
    #[expect(clippy::cast_possible_truncation, reason = "both sides wrap alike")]
    let later = wanted_ms.wrapping_sub(found_ms as u32);
    wanted_ms != 0 && u64::from(later) < 1000 / ticks_per_s.max(1)
}

/// Copies the last bytes that fit; whether any did not.
fn put(place: &mut [u8], text: &[u8]) -> bool {
    let cut = text.len().saturating_sub(place.len());
    let text = &text[cut..];
    place[..text.len()].copy_from_slice(text);
    cut > 0
}

/// Wall clock at boot, milliseconds since 1970, as the wall clock is set now.
fn booted_unix_ms() -> u64 {
    let realtime = milliseconds(clock_gettime(ClockId::Realtime));
    realtime.saturating_sub(milliseconds(clock_gettime(ClockId::Boottime)))
}

fn milliseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds * 1000 + nanoseconds / 1_000_000
}

#[cfg(test)]
mod tests {
    use conntracer_common::record::{Connect, EXECUTABLE_BYTES};
    use proptest::prelude::*;

    use super::*;
    use crate::{decode::decode, testing::any_record};

    fn connect(pid: u32, started_ms: u32, source: u8) -> Connect {
        Connect {
            header: header::<Connect>(kind::CONNECT, 5),
            socket: Socket {
                netns: 7,
                ..Socket::default()
            },
            owner: Owner {
                pid,
                started_ms,
                source,
                ..Owner::default()
            },
        }
    }

    fn fed(names: &mut OwnerNames, record: &Connect) -> Vec<Process> {
        let mut made = Vec::new();
        let mut passed = 0;
        names.name(record.as_bytes(), &mut |bytes| {
            if bytes == record.as_bytes() {
                passed += 1;
            } else {
                assert_eq!(passed, 0, "names go first");
                made.push(Process::read_from_bytes(bytes).unwrap());
            }
        });
        assert_eq!(passed, 1);
        made
    }

    #[test]
    fn an_owner_is_named_once() {
        let mut names = OwnerNames::default();
        let own = process::read(Path::new("/proc"), std::process::id(), 100).unwrap();
        let started = u32::try_from(own.started_ms & u64::from(u32::MAX)).unwrap();
        let record = connect(std::process::id(), started + 9, owner_source::CONNECT);
        let made = fed(&mut names, &record);
        let [process] = made.as_slice() else {
            panic!("one name: {made:?}");
        };
        assert_eq!(
            (
                process.pid,
                process.netns,
                process.flags & process_flag::GONE
            ),
            (record.owner.pid, 7, 0)
        );
        assert!(process.started_unix_ms > 0);
        let executable = own.executable.unwrap();
        let tail = &executable[executable.len().saturating_sub(EXECUTABLE_BYTES)..];
        assert!(process.executable.starts_with(tail));
        assert_eq!(fed(&mut names, &record), []);
    }

    #[test]
    fn another_process_of_the_same_pid_names_nobody() {
        let mut names = OwnerNames::default();
        let own = process::read(Path::new("/proc"), std::process::id(), 100).unwrap();
        let started = u32::try_from(own.started_ms & u64::from(u32::MAX)).unwrap();
        for other in [started.wrapping_sub(1), started + 10, 0] {
            let record = connect(std::process::id(), other, owner_source::CONNECT);
            let process = fed(&mut names, &record)[0];
            assert_eq!(process.flags, process_flag::GONE, "{other}");
            assert_eq!(process.executable, [0; EXECUTABLE_BYTES]);
        }
    }

    #[test]
    fn an_unknown_owner_is_not_named() {
        let record = connect(1, 1, owner_source::UNKNOWN);
        assert_eq!(fed(&mut OwnerNames::default(), &record), []);
    }

    #[test]
    fn a_long_text_keeps_its_end() {
        let mut place = [0; 4];
        assert!(put(&mut place, b"abcdef"));
        assert_eq!(&place, b"cdef");
        assert!(!put(&mut place, b"xy"));
    }

    proptest! {
        #[test]
        fn the_owner_of_every_record_about_a_socket_is_named_and_no_other(bytes in any_record()) {
            let Ok(event) = decode(&bytes) else { return Ok(()) };
            let about = event.body.about();
            let about = about.owner.zip(about.socket);
            let named = owner(&bytes).filter(|(owner, ..)| owner.source != owner_source::UNKNOWN);
            prop_assert_eq!(
                named.map(|(owner, netns, _)| (owner.pid, netns)),
                about.map(|(owner, socket)| (owner.pid, socket.netns))
            );
        }
    }
}
