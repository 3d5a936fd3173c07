//! What userspace writes itself: losses, accounts, holders, processes, clocks.

use std::time::Duration;

use conntracer_common::{
    netns::{KernelCounts, kernel},
    record::{self, Header, netns_flag, process_flag},
    stats::HOOKS,
};

use super::{DecodeError, owner, read, socket};
use crate::event::{Clock, HalfClosed, Holders, IdleTotals, Loss, Netns, Process, Seeded};

pub(super) const fn idle_totals(raw: &record::IdleTotals) -> IdleTotals {
    IdleTotals {
        asked: raw.asked,
        said: raw.said,
        lost: raw.lost,
        limit: Duration::from_nanos(raw.limit_ns),
    }
}

pub(super) const fn clock(raw: &record::Clock) -> Clock {
    Clock {
        realtime_offset_ns: raw.realtime_offset_ns,
    }
}

pub(super) fn half_closed(raw: &record::HalfClosed) -> Result<HalfClosed, DecodeError> {
    Ok(HalfClosed {
        owner: owner(&raw.owner)?,
        count: raw.count,
        state: raw.state.into(),
    })
}

pub(super) const fn seeded(raw: &record::Seeded) -> Seeded {
    Seeded {
        untracked: raw.untracked,
        took: Duration::from_nanos(raw.took_ns),
        namespaces: raw.namespaces,
        not_entered: raw.not_entered,
    }
}

pub(super) fn loss(raw: &record::Loss) -> Result<Loss, DecodeError> {
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

/// A recording of an earlier conntracer has fewer counters, and the same ones first.
#[cfg_attr(
    not(test),
    expect(
        clippy::arithmetic_side_effects,
        reason = "sizes of types, and of bytes that are fewer than these"
    )
)]
pub(super) fn netns(bytes: &[u8], header: &Header) -> Result<Netns, DecodeError> {
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
        untracked: raw.untracked,
        told,
    }
}

pub(super) const fn process(raw: &record::Process) -> Process {
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

pub(super) fn holders(raw: &record::Holders) -> Result<Holders, DecodeError> {
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
        assert_eq!(netns.told, FEWER);
        assert_eq!(netns.kernel[FEWER - 1], FEWER as u64 - 1);
        assert_eq!(netns.kernel[FEWER], 0);
        assert_eq!((netns.before[0], netns.after[FEWER - 1]), (100, 200));
        assert_eq!(netns.untracked, 9);
    }
}
