//! Whose a finding is: the stage between detectors and sinks.
//!
//! Detectors name the owner that a record names. Here it gets what it is called ([`name`]), and those who hold the
//! socket with it, or instead of it ([`holder`]). Called by the pipeline; judges nothing.

mod holder;
mod name;

use self::{holder::SocketHolders, name::OwnerNames};
use crate::{
    event::{Body, Event},
    finding::{Finding, Owner},
    time::Ktime,
};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Attribution {
    names: OwnerNames,
    holders: SocketHolders,
}

impl Attribution {
    /// Learns from what userspace found out, and says again the open findings that it changes.
    pub(crate) fn learn(&mut self, event: &Event, now: Ktime, out: &mut dyn FnMut(Finding)) {
        match &event.body {
            Body::Process(process) => self.names.apply(process),
            Body::Holders(holders) => self.holders.apply(holders, now, &self.names, out),
            _ => {}
        }
    }

    /// Completes what a detector says, and hands it on.
    pub(crate) fn pass(&mut self, mut finding: Finding, out: &mut dyn FnMut(Finding)) {
        self.holders.share(&mut finding);
        self.names.name(&mut finding);
        self.holders.said(&finding);
        out(finding);
    }

    /// Names the owner of a socket in `netns`.
    pub(crate) fn name(&self, owner: &mut Owner, netns: u32) {
        self.names.name_owner(owner, Some(netns));
    }

    /// Another namespace has this inode by now.
    pub(crate) fn forget_netns(&mut self, inode: u32) {
        self.names.forget_netns(inode);
    }

    /// Names that had to make room.
    pub(crate) const fn names_evicted(&self) -> u64 {
        self.names.evicted()
    }

    /// Sockets and findings that had to make room.
    pub(crate) const fn holders_evicted(&self) -> u64 {
        self.holders.evicted()
    }
}
