//! Who holds the sockets that findings are about, and what was last said of those findings: one that turns out
//! to be somebody else's, or shared, is said again.

use std::net::SocketAddr;

use super::name::OwnerNames;
use crate::{
    event::{self, Role},
    finding::{Finding, Owner, Status, Subject},
    id::SocketId,
    table::Bounded,
    time::Ktime,
};

/// Sockets whose holders are kept: those of many more findings than are ever open. 2 MB when full.
const MAX_SOCKETS: usize = 4_096;
/// Open findings that are said again; of more, the next update tells.
const MAX_SAID: usize = 1_024;

/// A listener: several of one address (`SO_REUSEPORT`) are told apart by their owners.
type ListenerKey = (u32, SocketAddr, u32);

/// What a search found, and when.
type Found = (event::Holders, Ktime);

/// See the module.
#[derive(Debug)]
pub(super) struct SocketHolders {
    connections: Bounded<SocketId, Found>,
    listeners: Bounded<ListenerKey, Found>,
    said: Bounded<u64, Finding>,
}

impl Default for SocketHolders {
    fn default() -> Self {
        Self {
            connections: Bounded::new(MAX_SOCKETS),
            listeners: Bounded::new(MAX_SOCKETS),
            said: Bounded::new(MAX_SAID),
        }
    }
}

impl SocketHolders {
    /// Sockets and findings that had to make room.
    pub(super) const fn evicted(&self) -> u64 {
        self.connections
            .evicted()
            .saturating_add(self.listeners.evicted())
            .saturating_add(self.said.evicted())
    }

    /// Learns what a search found, and says again what it changes.
    pub(super) fn apply(
        &mut self,
        holders: &event::Holders,
        now: Ktime,
        names: &OwnerNames,
        out: &mut dyn FnMut(Finding),
    ) {
        let socket = &holders.socket;
        let owner_pid = holders.owners().next().map_or(0, |owner| owner.pid);
        if socket.role == Role::Listener {
            // What was said of a listener names whose it was then.
            for pid in [owner_pid, holders.said_pid] {
                let key = (socket.netns, socket.local, pid);
                self.listeners.insert(key, (*holders, now));
            }
        } else {
            self.connections.insert(socket.id, (*holders, now));
        }
        let about: Vec<Finding> = self
            .said
            .iter()
            .map(|(_, finding)| finding)
            .filter(|finding| self.of(finding).is_some_and(|(held, _)| held == holders))
            .cloned()
            .collect();
        for mut finding in about {
            let before = attributed(&finding);
            self.share(&mut finding);
            if attributed(&finding) != before {
                finding.status = Status::Update;
                finding.at = now;
                names.name(&mut finding);
                self.said.insert(finding.id, finding.clone());
                out(finding);
            }
        }
    }

    /// Completes a finding's owner by those who hold its socket with it, or instead of it.
    pub(super) fn share(&self, finding: &mut Finding) {
        let Some((held, at)) = self.of(finding) else {
            return;
        };
        let known = |owner: &Owner| {
            held.owners()
                .any(|holder| (holder.pid, holder.started_ms) == (owner.pid, owner.started_ms))
        };
        if let Some(owner) = &finding.owner {
            // The descriptor was passed on since the search, or inherited.
            if owner.source == "passed" && !known(owner) || is_forked(owner) && finding.last > *at {
                return;
            }
        }
        if let Subject::Process { .. } = finding.subject {
            // Another's by now: that one's finding tells of it.
            if finding.owner.as_ref().is_some_and(known) {
                finding.owners = sharers(held);
            }
            return;
        }
        // One that turned out to be the only holder may have forked as it likes.
        let stays = |owner: &Owner| known(owner) && !(is_forked(owner) && held.count == 1);
        if !finding.owner.as_ref().is_some_and(stays) {
            finding.owner = held.owners().next().map(|owner| (*owner).into());
        }
        finding.holders = Some(held.count);
        finding.owners = sharers(held);
    }

    /// Remembers what was said, as long as the finding is open.
    pub(super) fn said(&mut self, finding: &Finding) {
        if finding.status == Status::Resolved {
            self.said.remove(&finding.id);
        } else {
            self.said.insert(finding.id, finding.clone());
        }
    }

    /// Who holds the socket that a finding is about, where it is about one.
    fn of(&self, finding: &Finding) -> Option<&Found> {
        match &finding.subject {
            Subject::Connection { id, born, .. } => self.connections.get(&SocketId {
                sk: *id,
                born: *born,
            }),
            Subject::Listener { netns, local } => {
                let pid = finding.owner.as_ref()?.pid;
                self.listeners.get(&(*netns, *local, pid))
            }
            Subject::Process { .. } => self.connections.get(&finding.sample?),
            Subject::Remote { .. }
            | Subject::Peer { .. }
            | Subject::Prefix { .. }
            | Subject::Netns { .. }
            | Subject::Host => None,
        }
    }
}

/// The first of those who hold a socket together.
fn sharers(held: &event::Holders) -> Vec<Owner> {
    if held.count > 1 {
        held.owners().map(|owner| (*owner).into()).collect()
    } else {
        Vec::new()
    }
}

/// Whether a descendant may hold the socket in the owner's place.
fn is_forked(owner: &Owner) -> bool {
    owner.source == "forked"
}

/// What a finding says of whose it is: an owner for certain or not, the first of several, and how many.
type Attributed = (Option<(u32, bool)>, Vec<u32>, Option<u32>);

fn attributed(finding: &Finding) -> Attributed {
    (
        finding
            .owner
            .as_ref()
            .map(|owner| (owner.pid, !is_forked(owner))),
        finding.owners.iter().map(|owner| owner.pid).collect(),
        finding.holders.filter(|holders| *holders > 1),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use conntracer_common::{
        record::{self, owner_source, syn_outcome},
        tcp::state,
    };

    use super::*;
    use crate::{
        detect::Thresholds,
        testing::{self, Run},
    };

    const LOCAL: &str = "10.0.0.1:80";
    const REMOTE: &str = "10.0.0.2:4000";

    /// A silent peer of the process that accepted the connection.
    fn silent() -> Run {
        let mut run = Run::new();
        for timeouts in 1..=3 {
            run.pass(Duration::from_millis(400));
            run.retransmit(testing::socket(LOCAL, REMOTE), |retransmit| {
                retransmit.tcp.retransmits = timeouts;
            });
        }
        let acceptor = Some((testing::owner().pid, true));
        assert_eq!(attributed(run.only()), (acceptor, vec![], None));
        run
    }

    /// The peer stays silent, and the record has another owner.
    fn again(run: &mut Run, timeouts: u8, own: impl FnOnce(&mut record::Owner)) {
        run.pass(Duration::from_secs(2));
        run.retransmit(testing::socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.retransmits = timeouts;
            own(&mut retransmit.owner);
        });
    }

    #[test]
    fn a_shared_connection_is_said_again_with_its_owners() {
        let acceptor = testing::owner().pid;
        let mut run = silent();
        run.holders(testing::socket(LOCAL, REMOTE), &[acceptor, 7], 12);
        let shared = (Some((acceptor, true)), vec![acceptor, 7], Some(12));
        assert_eq!(attributed(run.only()), shared);
        assert_eq!(run.only().owner.as_ref().unwrap().source, "accept");
        run.holders(testing::socket(LOCAL, REMOTE), &[acceptor, 7], 12);
        assert_eq!(run.statuses(), [Status::Open, Status::Update], "no news");
        again(&mut run, 4, |_| ());
        assert_eq!(
            attributed(run.only()),
            shared,
            "as long as nobody looks again"
        );
        run.assert_replays(Thresholds::default());
    }

    #[test]
    fn a_connection_that_its_acceptor_holds_no_longer_is_its_holders() {
        let mut run = silent();
        run.holders(testing::socket(LOCAL, REMOTE), &[7], 1);
        assert_eq!(attributed(run.only()), (Some((7, true)), vec![], None));
        assert_eq!(run.only().owner.as_ref().unwrap().source, "seeded");
        assert_eq!(run.only().holders, Some(1));
        // Passed on since: whoever received it is the last to be known of.
        again(&mut run, 4, |owner| {
            owner.pid = 9;
            owner.source = owner_source::PASSED;
        });
        assert_eq!(attributed(run.only()).0, Some((9, true)));
        assert_eq!(run.only().holders, None);
        run.assert_replays(Thresholds::default());
    }

    #[test]
    fn a_connection_of_a_process_that_has_forked_is_its_again_once_nobody_else_is_found() {
        let acceptor = testing::owner().pid;
        let mut run = silent();
        let forked = |owner: &mut record::Owner| owner.source = owner_source::FORKED;
        again(&mut run, 4, forked);
        assert_eq!(attributed(run.only()).0, Some((acceptor, false)));
        run.holders(testing::socket(LOCAL, REMOTE), &[acceptor], 1);
        assert_eq!(
            attributed(run.only()),
            (Some((acceptor, true)), vec![], None)
        );
        assert_eq!(run.only().holders, Some(1));
        // It forks again: what was found before does not tell.
        again(&mut run, 5, forked);
        assert_eq!(attributed(run.only()).0, Some((acceptor, false)));
        assert_eq!(run.only().holders, None);
        run.holders(testing::socket(LOCAL, REMOTE), &[acceptor, 7], 2);
        let shared = (Some((acceptor, false)), vec![acceptor, 7], Some(2));
        assert_eq!(attributed(run.only()), shared);
        run.assert_replays(Thresholds::default());
    }

    #[test]
    fn a_listener_that_its_maker_passed_on_is_its_holders() {
        let maker = testing::owner().pid;
        let listener = testing::listener(LOCAL, REMOTE);
        let mut run = Run::new();
        run.syn(listener, |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 1;
            syn.owner.source = owner_source::FORKED;
        });
        assert_eq!(attributed(run.only()), (Some((maker, false)), vec![], None));
        run.holders_instead_of(maker, listener, &[7], 1);
        assert_eq!(attributed(run.only()), (Some((7, true)), vec![], None));
        run.holders_instead_of(7, listener, &[7, 9], 2);
        assert_eq!(
            attributed(run.only()).1,
            [7, 9],
            "said to be the holder's by now"
        );
        run.assert_replays(Thresholds::default());
    }

    #[test]
    fn the_sockets_of_a_process_are_shared_as_the_oldest_of_them_is() {
        let parent = testing::owner().pid;
        let mut run = Run::new();
        let since_ns = run.ktime_ns() - 61_000_000_000;
        let oldest = testing::socket(LOCAL, REMOTE);
        let other = testing::socket(LOCAL, "10.0.0.2:4001");
        for (mut socket, since_ns) in [(other, since_ns + 1), (oldest, since_ns)] {
            socket.state = state::CLOSE_WAIT;
            run.snapshot(socket, |snapshot| snapshot.since_ns = since_ns);
        }
        run.tick();
        run.holders(other, &[parent, 9], 2);
        run.holders(oldest, &[7], 1);
        assert_eq!(attributed(run.only()), (Some((parent, true)), vec![], None));
        run.holders(oldest, &[parent, 7], 2);
        assert_eq!(attributed(run.only()).1, [parent, 7]);
        assert_eq!(run.only().holders, None, "it is about two sockets");
        run.assert_replays(Thresholds::default());
    }

    #[test]
    fn a_resolved_finding_is_not_said_again() {
        let mut run = silent();
        run.closed(testing::socket(LOCAL, REMOTE), |state| state.error = 110);
        let said = run.findings.len();
        assert_eq!(run.only().status, Status::Resolved);
        run.holders(testing::socket(LOCAL, REMOTE), &[7], 1);
        assert_eq!(run.findings.len(), said);
    }
}
