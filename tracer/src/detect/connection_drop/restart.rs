//! Deaths with a process that ended as it was asked to, until it is known whether another takes its place: then it was
//! a restart, as every deploy makes them, and nothing that an operator has to hear of.

use std::{collections::VecDeque, time::Duration};

use super::{
    deaths::{DeathKey, Place},
    ends::{By, End},
    how::{How, Met},
};
use crate::{
    detect::restart::PATIENCE,
    event::{Close, Exit},
    table::listener::Listeners,
    time::Ktime,
};

/// SIGHUP, SIGINT and SIGTERM (signal(7)): what asks a process to end.
const ASKING: [u8; 3] = [1, 2, 15];

/// A death that is not told yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) key: DeathKey,
    pub(super) ending: Close,
    pub(super) other: Option<End>,
    pub(super) at: Ktime,
    /// The namespace and the port of the listener whose process ended.
    server: (u32, u16),
    /// When that may have been at the earliest.
    ended: Ktime,
}

impl Held {
    /// `None` where it is no death with a server that may have ended as it was asked to, or of a client of such a server.
    pub(super) fn of(
        key: DeathKey,
        ending: &Close,
        other: Option<End>,
        listeners: &Listeners,
        at: Ktime,
    ) -> Option<Self> {
        let (server, ended) = match (key.how, key.place, key.by, other) {
            (How::ProcessEnded(exit), Place::Listener(local), ..) if is_asked(exit) => {
                ((key.netns, local.port()), at)
            }
            (_, Place::Service(remote), By::Socket(Some(How::ProcessEnded(exit))), Some(other))
                if is_asked(exit) =>
            {
                ((other.netns, remote.port()), at)
            }
            // It was written to after the FIN of a server that may have ended in order, when the next one may have listened
            // already. A client that goes on long after the FIN does not look.
            (How::ResetReceived, Place::Service(remote), ..) if key.met == Some(Met::AfterFin) => (
                (listeners.served(key.netns, remote)?, remote.port()),
                at.before(PATIENCE),
            ),
            _ => return None,
        };
        Some(Self {
            key,
            ending: *ending,
            other,
            at,
            server,
            ended,
        })
    }
}

fn is_asked(exit: Exit) -> bool {
    match exit {
        Exit::Status(status) => status == 0,
        Exit::Signal(signal) => ASKING.contains(&signal),
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Restarts(VecDeque<Held>);

impl Restarts {
    /// What dies with a server of many clients. Two megabytes at most.
    const LIMIT: usize = 4096;

    /// Holds a death, and gives the oldest where there are too many.
    pub(super) fn hold(&mut self, held: &Held) -> Option<Held> {
        let oldest = (self.0.len() >= Self::LIMIT)
            .then(|| self.0.pop_front())
            .flatten();
        self.0.push_back(*held);
        oldest
    }

    /// Those for which nobody came in time. What somebody came for is forgotten.
    pub(super) fn take_over(
        &mut self,
        now: Ktime,
        patience: Duration,
        listeners: &Listeners,
    ) -> Vec<Held> {
        let mut over = Vec::new();
        self.0.retain(|held| {
            if listeners.has_begun(held.server, held.ended) {
                return false;
            }
            let is_over = now.since(held.at) >= patience;
            if is_over {
                over.push(*held);
            }
            !is_over
        });
        over
    }

    /// A namespace is gone with all that was in it, as a container that was stopped.
    pub(super) fn forget_netns(&mut self, netns: u32) {
        self.0
            .retain(|held| held.server.0 != netns && held.key.netns != netns);
    }
}

#[cfg(test)]
mod tests {
    use conntracer_common::record::{self, close_flag, netns_flag};
    use rstest::rstest;

    use super::*;
    use crate::{
        detect::Thresholds,
        testing::{Run, listener, socket},
    };

    const NETNS: u32 = 4026;

    fn ends_by(code: u16) -> impl Fn(&mut record::Close) {
        move |ending| {
            ending.error = 0;
            ending.flags = close_flag::EXITING;
            ending.unread = 6;
            ending.exit_code = code;
        }
    }

    fn dies(run: &mut Run, change: impl Fn(&mut record::Close)) {
        run.close(socket("10.0.0.1:80", "10.0.0.9:5000"), change);
    }

    /// A client asks a listener that has listened for so long.
    fn asks(run: &mut Run, since: Duration, local: &str) {
        let born_ns = run.ktime_ns() - u64::try_from(since.as_nanos()).expect("a moment ago");
        let socket = record::Socket {
            born_ns,
            ..listener(local, "10.0.0.9:5001")
        };
        run.syn(socket, |_| {});
    }

    #[rstest]
    #[case::status_0(0)]
    #[case::sighup(1)]
    #[case::sigint(2)]
    #[case::sigterm(15)]
    fn a_server_that_comes_back_was_restarted(#[case] code: u16) {
        for local in ["10.0.0.1:80", "0.0.0.0:80"] {
            let mut run = Run::new();
            dies(&mut run, ends_by(code));
            run.pass(Duration::from_secs(3));
            asks(&mut run, Duration::from_secs(1), local);
            run.pass(Duration::from_secs(30));
            run.finish();
            assert_eq!(run.findings.len(), 0, "{:#?}", run.findings);
            run.assert_replays(Thresholds::default());
        }
    }

    #[rstest]
    #[case::sigkill(9)]
    #[case::sigsegv(11)]
    #[case::status_1(1 << 8)]
    fn what_nobody_asked_for_is_told_at_once(#[case] code: u16) {
        let mut run = Run::new();
        dies(&mut run, ends_by(code));
        assert_eq!(run.only().count, 1);
    }

    #[test]
    fn where_nobody_comes_back_it_is_told_as_of_then() {
        let mut run = Run::new();
        let began = run.ktime_ns();
        dies(&mut run, ends_by(0));
        run.pass(Duration::from_secs(9));
        assert_eq!(run.findings.len(), 0);
        // One that was there before is no restart: a worker of many has ended.
        asks(&mut run, Duration::from_secs(9), "10.0.0.1:80");
        // Nor is one at another port.
        asks(&mut run, Duration::ZERO, "10.0.0.1:81");
        run.pass(Duration::from_secs(2));
        assert_eq!(run.only().since, Ktime(began));
        assert!(run.only().summary.contains("ended with status 0"));
        run.assert_replays(Thresholds::default());
    }

    #[test]
    fn at_the_end_of_input_it_is_told() {
        let mut run = Run::new();
        dies(&mut run, ends_by(0));
        run.finish();
        assert_eq!(run.only().count, 1);
    }

    #[test]
    fn a_container_that_was_stopped_is_no_trouble() {
        let mut run = Run::new();
        dies(&mut run, ends_by(15));
        run.netns_with(NETNS, 0, netns_flag::GONE);
        run.pass(Duration::from_secs(30));
        run.finish();
        assert_eq!(run.findings.len(), 0, "{:#?}", run.findings);
    }

    #[test]
    fn of_too_many_the_oldest_is_told() {
        let mut run = Run::new();
        for _ in 0..=Restarts::LIMIT {
            dies(&mut run, ends_by(0));
        }
        assert_eq!(run.only().count, 1);
    }

    /// The client, on this host, met a server that was restarted.
    #[test]
    fn both_ends_of_a_restart_are_quiet() {
        let mut run = Run::new();
        dies(&mut run, ends_by(0));
        let client = record::Socket {
            netns: NETNS + 1,
            role: record::role::ACTIVE,
            ..socket("10.0.0.9:5000", "10.0.0.1:80")
        };
        run.close(client, |_| {});
        run.pass(Duration::from_secs(1));
        asks(&mut run, Duration::ZERO, "10.0.0.1:80");
        run.pass(Duration::from_secs(30));
        assert_eq!(run.findings.len(), 0, "{:#?}", run.findings);

        let mut run = Run::new();
        dies(&mut run, ends_by(9));
        run.close(client, |_| {});
        assert_eq!(run.last_words().len(), 2, "one that crashed");
    }

    /// A client writes to a server that has ended in order: its FIN came, and then the RST of a kernel without a socket. The
    /// next one may listen by then, or a moment later.
    #[rstest]
    #[case::nobody_comes_back(None, false, 1)]
    #[case::later(Some(Duration::ZERO), false, 0)]
    #[case::before_the_rst(Some(Duration::from_secs(1)), true, 0)]
    #[case::the_one_that_was_there(Some(Duration::from_mins(1)), false, 1)]
    fn a_request_to_a_server_that_has_ended_is_told_where_nobody_comes_back(
        #[case] age: Option<Duration>,
        #[case] at_once: bool,
        #[case] told: usize,
    ) {
        let mut run = Run::new();
        run.pass(Duration::from_secs(1));
        asks(&mut run, Duration::from_mins(1), "10.0.0.1:80");
        run.skip(Duration::from_millis(10));
        let client = record::Socket {
            role: record::role::ACTIVE,
            ..socket("10.0.0.9:5000", "10.0.0.1:80")
        };
        run.close(client, |ending| {
            ending.flags |= close_flag::FIN_RECEIVED;
        });
        if !at_once {
            run.pass(Duration::from_secs(1));
            assert_eq!(run.findings.len(), 0, "{:#?}", run.findings);
        }
        run.skip(Duration::from_millis(10));
        if let Some(age) = age {
            asks(&mut run, age, "10.0.0.1:80");
        }
        run.pass(Duration::from_secs(30));
        assert_eq!(run.last_words().len(), told);
        run.assert_replays(Thresholds::default());
    }
}
