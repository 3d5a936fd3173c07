//! Owners that no hook told, and holders of sockets in trouble: both are looked for among the open files of
//! all processes.

use std::io;

use conntracer_common::record::{Owner, owner_source};
use zerocopy::{IntoBytes, transmute};

use super::{
    super::{
        holders::{Asked, Found},
        seed,
    },
    Kernel, ktime_ns,
};

/// Sockets whose owner no hook told, because its program could not run at that moment, or because they
/// are older: looked for among the open files of all processes, which costs as much as there are.
#[derive(Debug, Default)]
pub(super) struct Unowned {
    met: bool,
    searched_ns: u64,
    wait_ns: u64,
}

/// Shortest and longest time between two searches: what no process holds (a kernel thread's listener) is
/// not found by the next one either.
const SEARCH_NS: (u64, u64) = (1_000_000_000, 64_000_000_000);

impl Unowned {
    pub(super) fn note(&mut self, owner: &Owner) {
        self.met |= owner.source == owner_source::UNKNOWN;
    }

    /// The same for one that its owner may have passed on, and that nobody looked for since.
    pub(super) fn note_held(&mut self, owner: &Owner) {
        self.met |= owner.holders == 0;
    }

    /// Whether to search now; each search that is asked for again doubles the wait.
    fn is_due(&mut self, now_ns: u64) -> bool {
        if !std::mem::take(&mut self.met) {
            return false;
        }
        let since_ns = now_ns.saturating_sub(self.searched_ns);
        if since_ns < self.wait_ns {
            return false;
        }
        self.wait_ns = if since_ns > 2 * self.wait_ns {
            SEARCH_NS.0
        } else {
            (2 * self.wait_ns).min(SEARCH_NS.1)
        };
        self.searched_ns = now_ns;
        true
    }
}

impl Kernel {
    /// Looks for owners that are not known, where it is time to.
    pub(super) fn search_owners(&mut self, now_ns: u64) -> io::Result<()> {
        if self.unowned.is_due(now_ns) {
            self.search(&Asked::default())?;
        }
        Ok(())
    }

    /// Looks through all open files, hands on what its owner holds no longer, and leaves to the owner what
    /// nobody else holds: as of the beginning, for who forks meanwhile may have a child that was passed over.
    fn search(&mut self, asked: &Asked) -> io::Result<Found> {
        let mut found = Found::default();
        let began_ns = ktime_ns();
        seed::find_owners(&mut self.ebpf, &mut |holder| found.see(holder, asked))?;
        for (id, heir) in found.heirs() {
            let heir: [u64; 6] = transmute!(heir);
            self.heir.set(0, heir, 0).map_err(io::Error::other)?;
            self.ask_about("heir", id, began_ns)?;
        }
        Ok(found)
    }

    /// Who holds the sockets that were told to be in trouble, where it is time to search.
    pub(super) fn poll_holders(&mut self, feed: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let began_ns = ktime_ns();
        if !self.asked.is_due(began_ns) {
            return Ok(());
        }
        let mut asked = std::mem::take(&mut self.asked);
        let found = self.search(&asked);
        if let Ok(found) = &found {
            for record in asked.tell(found, (began_ns, ktime_ns())) {
                self.processes.name(record.as_bytes(), feed);
            }
        }
        self.asked = asked;
        found.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNKNOWN: Owner = Owner {
        cgroup_id: 0,
        comm: [0; 16],
        pid: 0,
        uid: 0,
        source: owner_source::UNKNOWN,
        holders: 0,
        pad: [0; 2],
        started_ms: 0,
    };

    #[test]
    fn owners_that_stay_unknown_are_looked_for_ever_more_seldom() {
        let mut unowned = Unowned::default();
        let mut searches = Vec::new();
        for second in 1..200 {
            unowned.note(&UNKNOWN);
            if unowned.is_due(second * 1_000_000_000) {
                searches.push(second);
            }
        }
        assert_eq!(searches, [1, 2, 4, 8, 16, 32, 64, 128, 192]);
        assert!(!unowned.is_due(u64::MAX), "none is unknown");
        unowned.note(&Owner {
            source: owner_source::ACCEPT,
            ..UNKNOWN
        });
        assert!(!unowned.is_due(u64::MAX), "none is unknown");
    }
}
