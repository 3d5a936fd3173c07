//! What userspace itself put into the stream.

use std::{net::IpAddr, time::Duration};

use conntracer_common::{
    netns::{KernelCounts, NetnsId, kernel},
    record::{
        self, CGROUP_BYTES, EXECUTABLE_BYTES, Header, MAX_HOLDERS, NETNS_NAME_BYTES, netns_flag,
        process_flag,
    },
    stats::HOOKS,
};

use super::{
    owner::Owner,
    raw::{DecodeError, ago, read},
    socket::{Socket, TcpState, address},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Index into [`HOOKS`], checked by decode.
    pub hook: usize,
    pub lost: u64,
    /// Of those, the ones that no program saw.
    pub missed: u64,
}

/// The kernel's counters of a network namespace and ours, since the same moment. With inode 0: what is to
/// be said of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netns {
    pub id: NetnsId,
    /// Indexed by [`conntracer_common::netns::kernel`]; ours before the kernel's were read, and after.
    pub kernel: KernelCounts,
    pub before: KernelCounts,
    pub after: KernelCounts,
    /// Counted from the namespace's birth on.
    pub born: bool,
    /// Nothing can be compared: a filter is in force, or the kernel's counters cannot be read.
    pub filtered: bool,
    pub unreadable: bool,
    /// The kernel does not tell of segments that it could not send again.
    pub failures_untraced: bool,
    /// It is gone, with every socket in it, and no other has its inode yet.
    pub gone: bool,
    /// Namespaces not compared, and counts that found no room.
    pub uncompared: u32,
    pub untracked: u32,
    /// Counters that the record has, the first ones; the others are 0 on all sides.
    pub counters: usize,
}

impl Netns {
    /// A recording of an earlier conntracer has fewer counters, and the same ones first.
    #[cfg_attr(
        not(test),
        expect(
            clippy::arithmetic_side_effects,
            reason = "sizes of types, and of bytes that are fewer than these"
        )
    )]
    pub(super) fn decode(bytes: &[u8], header: &Header) -> Result<Self, DecodeError> {
        const LISTS: usize = 3;
        const AROUND: usize = size_of::<record::Netns>() - LISTS * size_of::<KernelCounts>();
        let counters = match bytes.len().checked_sub(AROUND) {
            Some(figures) if figures < LISTS * size_of::<KernelCounts>() => {
                figures / (LISTS * size_of::<u64>())
            }
            // The size of today, or of no record.
            _ => return Ok(Self::compared(&read(bytes, header)?, kernel::COUNT)),
        };
        let list = counters * size_of::<u64>();
        let mut whole = bytes.to_vec();
        for lists in (1..=LISTS).rev() {
            let end = size_of::<Header>() + lists * list;
            whole.splice(
                end..end,
                [0; size_of::<KernelCounts>()].into_iter().skip(list),
            );
        }
        Ok(Self::compared(&read(&whole, header)?, counters))
    }

    const fn compared(raw: &record::Netns, counters: usize) -> Self {
        Self {
            id: raw.id,
            kernel: raw.kernel,
            before: raw.before,
            after: raw.after,
            born: raw.flags & netns_flag::BORN != 0,
            filtered: raw.flags & netns_flag::FILTERED != 0,
            unreadable: raw.flags & netns_flag::UNREADABLE != 0,
            failures_untraced: raw.flags & netns_flag::FAILURES_UNTRACED != 0,
            gone: raw.flags & netns_flag::GONE != 0,
            uncompared: raw.uncompared,
            untracked: raw.untracked,
            counters,
        }
    }
}

/// The walk at start is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seeded {
    /// Sockets that found no room in the eBPF side's maps.
    pub untracked: u64,
    pub took: Duration,
    /// Network namespaces walked, and those that nothing leads into.
    pub namespaces: u32,
    pub not_entered: u32,
}

impl Seeded {
    pub(super) const fn decode(raw: &record::Seeded) -> Self {
        Self {
            untracked: raw.untracked,
            took: Duration::from_nanos(raw.took_ns),
            namespaces: raw.namespaces,
            not_entered: raw.not_entered,
        }
    }
}

/// The audit is over: the [`Idle`](super::Idle) events since the last one are all there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleTotals {
    /// Connections asked about, those told of, and those that were lost.
    pub asked: u32,
    pub said: u32,
    pub lost: u32,
    /// How long a connection must have been idle.
    pub limit: Duration,
}

impl IdleTotals {
    pub(super) const fn decode(raw: &record::IdleTotals) -> Self {
        Self {
            asked: raw.asked,
            said: raw.said,
            lost: raw.lost,
            limit: Duration::from_nanos(raw.limit_ns),
        }
    }
}

/// The wall clock was set, or the machine slept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// CLOCK_REALTIME − CLOCK_MONOTONIC from now on, nanoseconds.
    pub realtime_offset_ns: i64,
}

impl Clock {
    pub(super) const fn decode(raw: &record::Clock) -> Self {
        Self {
            realtime_offset_ns: raw.realtime_offset_ns,
        }
    }
}

/// What the other connections of this host to the address of a silent one show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beside {
    pub netns: u32,
    pub remote: IpAddr,
    /// Connections to it, the silent one included, and those that heard of it within the time of the silence.
    pub connections: u32,
    pub answered: u32,
    /// How long ago any of them last heard of it.
    pub heard_idle: Option<Duration>,
}

impl Beside {
    pub(super) fn decode(raw: &record::Beside) -> Self {
        Self {
            netns: raw.netns,
            remote: address(&raw.remote_addr, raw.family),
            connections: raw.connections,
            answered: raw.answered,
            heard_idle: ago(raw.heard_idle_ns),
        }
    }
}

/// Half-closed sockets of one process that a poll counts beyond those of which it shows a [`Snapshot`](super::Snapshot).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfClosed {
    pub owner: Option<Owner>,
    pub count: u64,
    pub state: TcpState,
}

impl HalfClosed {
    pub(super) fn decode(raw: &record::HalfClosed) -> Result<Self, DecodeError> {
        Ok(Self {
            owner: Owner::decode(&raw.owner)?,
            count: raw.count,
            state: raw.state.into(),
        })
    }
}

impl Loss {
    pub(super) fn decode(raw: &record::Loss) -> Result<Self, DecodeError> {
        let hook = usize::try_from(raw.hook)
            .ok()
            .filter(|hook| *hook < HOOKS.len())
            .ok_or(DecodeError::Value {
                field: "hook",
                value: raw.hook.into(),
            })?;
        Ok(Self {
            hook,
            lost: raw.lost,
            missed: raw.missed.into(),
        })
    }

    /// The hook's name.
    #[must_use]
    pub fn hook_name(&self) -> &'static str {
        HOOKS.get(self.hook).copied().unwrap_or("unknown")
    }
}

/// Who holds a socket that is in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    pub socket: Socket,
    first: [Option<Owner>; MAX_HOLDERS],
    /// Processes in all.
    pub count: u32,
    /// Whose it was said to be until then; 0 when nobody's, and in older recordings.
    pub said_pid: u32,
}

impl Holders {
    pub(super) fn decode(raw: &record::Holders) -> Result<Self, DecodeError> {
        // A search tells of sockets that somebody holds.
        if raw.count == 0 {
            return Err(DecodeError::Value {
                field: "holders",
                value: 0,
            });
        }
        let mut first = [None; MAX_HOLDERS];
        for (place, raw) in first.iter_mut().zip(&raw.owners) {
            *place = Owner::decode(raw)?;
        }
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            first,
            count: raw.count,
            said_pid: raw.said_pid,
        })
    }

    /// The first of them: the owner, and others by their pids.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.first.iter().flatten()
    }
}

/// What names an owner. Texts are NUL-padded, empty when not known, and any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub started_ms: u32,
    /// Milliseconds since 1970; 0 when not known.
    pub started_unix_ms: u64,
    /// The namespace that `netns_name` names.
    pub netns: u32,
    /// As in its [`Owner`].
    pub cgroup_id: u64,
    pub executable: [u8; EXECUTABLE_BYTES],
    /// The beginning is missing.
    pub executable_cut: bool,
    pub cgroup: [u8; CGROUP_BYTES],
    pub cgroup_cut: bool,
    pub netns_name: [u8; NETNS_NAME_BYTES],
}

impl Process {
    pub(super) const fn decode(raw: &record::Process) -> Self {
        Self {
            pid: raw.pid,
            started_ms: raw.started_ms,
            started_unix_ms: raw.started_unix_ms,
            netns: raw.netns,
            cgroup_id: raw.cgroup_id,
            executable: raw.executable,
            executable_cut: raw.flags & process_flag::EXECUTABLE_CUT != 0,
            cgroup: raw.cgroup,
            cgroup_cut: raw.flags & process_flag::CGROUP_CUT != 0,
            netns_name: raw.netns_name,
        }
    }
}

#[cfg(test)]
mod tests {
    use conntracer_common::record::kind;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::{
        decode::decode,
        event::{Body, Event},
    };

    #[test]
    fn an_older_recording_has_fewer_counters() {
        const FEWER: usize = kernel::ATTEMPT_FAILS;
        let mut now = record::Netns {
            kernel: std::array::from_fn(|at| at as u64),
            before: [100; kernel::COUNT],
            after: [200; kernel::COUNT],
            untracked: 9,
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
        assert_eq!(netns.counters, FEWER);
        assert_eq!(netns.kernel[FEWER - 1], FEWER as u64 - 1);
        assert_eq!(netns.kernel[FEWER], 0);
        assert_eq!((netns.before[0], netns.after[FEWER - 1]), (100, 200));
        assert_eq!(netns.untracked, 9);
    }
}
