//! What matches the filter; no programs.
//!
//! What it says of an owner is kept beside the owner, so that an event of a known socket costs one look at a
//! flag, and is made anew whenever the owner changes. What it cannot be told of yet passes: userspace
//! decides on the record.

use conntracer_common::{
    filter::{Read, comm_words, owner_condition, verdict},
    record::{Owner, Socket, owner_source},
};

use crate::{
    globals::{FILTER, Injected, global},
    maps::{FILTER_COMMS, FILTER_PIDS, GROUPS, GROUPS_MET},
    sock::{self, Reach},
    table::add,
};

/// Whether a socket matches, as far as it can be told without its owner.
#[inline(always)]
pub(crate) fn socket(socket: &Socket) -> bool {
    !filters_sockets() || FILTER.matches::<Injected>(socket)
}

/// Whether the filter is about anything but owners; a constant to the verifier.
#[inline(always)]
fn filters_sockets() -> bool {
    Injected::read(&FILTER.used.netns) != 0 || FILTER.has_endpoint::<Injected>()
}

/// [`socket`] for one of which nothing was read yet: no more is than the filter is about.
#[inline(always)]
pub(crate) fn address<R: Reach>(sk: u64, role: u8) -> bool {
    if FILTER.has_endpoint::<Injected>() {
        let mut unread = Socket::default();
        sock::fill_full::<R>(sk, &mut unread);
        unread.role = role;
        socket(&unread)
    } else {
        !filters_sockets() || FILTER.matches_netns::<Injected>(sock::netns_of::<R>(sk))
    }
}

/// Whether the namespace of a `struct net` matches.
#[inline(always)]
pub(crate) fn netns(net: u64) -> bool {
    FILTER.matches_netns::<Injected>(sock::net_inum(net))
}

/// Whether the filter is about owners at all; a constant to the verifier.
#[inline(always)]
pub(crate) fn by_owner() -> bool {
    global!(FILTER.owner) != 0
}

/// What the filter says of an owner: one of [`verdict`].
#[inline(always)]
pub(crate) fn owner(owner: &Owner) -> u8 {
    if !by_owner() {
        return verdict::MATCHES;
    }
    if owner.source == owner_source::UNKNOWN {
        return verdict::OPEN;
    }
    let conditions = global!(FILTER.owner);
    let excluded = conditions & owner_condition::PID != 0 && !FILTER_PIDS.has(owner.pid)
        || conditions & owner_condition::COMM != 0 && !FILTER_COMMS.has(comm_words(&owner.comm));
    if excluded {
        verdict::EXCLUDED
    } else if conditions & owner_condition::GROUP != 0 {
        group(owner.cgroup_id)
    } else {
        verdict::MATCHES
    }
}

#[inline(always)]
fn group(id: u64) -> u8 {
    if let Some(decided) = GROUPS.get(id) {
        return *decided;
    }
    // Another CPU may have been first, or there is no room: it stays open either way.
    if GROUPS.insert_new(id, verdict::OPEN)
        && let Some(met) = GROUPS_MET.edit(0)
    {
        add(met, 1);
    }
    verdict::OPEN
}

/// Whether the filter excludes an owner. `kept` is where what it says is, or will be, kept.
#[inline(always)]
pub(crate) fn excludes(kept: &mut u8, owner: &Owner) -> bool {
    if !by_owner() {
        return false;
    }
    if *kept == verdict::OPEN {
        *kept = self::owner(owner);
    }
    *kept == verdict::EXCLUDED
}
