//! How the processes stood that may accept a listener's connections: the last look at each listener in trouble.

use std::time::Duration;

use crate::{
    event::Acceptor,
    id::SocketId,
    table::{Bounded, listener::ListenerKey},
    time::Ktime,
};

/// Listeners of which a look is kept: many more than are ever in trouble at once.
const MAX_LISTENERS: usize = 1024;
/// Processes of one look at most.
const MAX_PROCESSES: usize = 16;

/// Two looks closer than this are not compared: what a process ran is told in steps of 10 ms.
const COMPARED: Duration = Duration::from_millis(500);

/// A process at the look before.
#[derive(Clone, Copy, Debug)]
struct Before {
    pid: u32,
    at: Ktime,
    cpu_ms: u64,
    throttled_us: Option<u64>,
}

/// One look at one listening socket.
#[derive(Clone, Debug)]
pub struct Look {
    pub at: Ktime,
    processes: Vec<Acceptor>,
    before: Vec<Before>,
    is_whole: bool,
}

impl Look {
    /// Those who may accept: the holders where a search found any, otherwise the owner and its children.
    pub fn processes(&self) -> impl Iterator<Item = &Acceptor> {
        let known = self.is_of_holders();
        self.processes
            .iter()
            .filter(move |process| (process.holds() || !known) && !process.is_gone())
    }

    /// Whether a search found who holds the socket.
    #[must_use]
    pub fn is_of_holders(&self) -> bool {
        self.processes.iter().any(Acceptor::holds)
    }

    /// The share of the time since the look before in which a process ran; above 1 with several threads. `None` where
    /// there was no look a good while before.
    #[must_use]
    pub fn cpu_share(&self, process: &Acceptor) -> Option<f64> {
        let (before, elapsed) = self.before(process.pid)?;
        let ran = Duration::from_millis(process.cpu_ms.saturating_sub(before.cpu_ms));
        Some(ran.as_secs_f64() / elapsed.as_secs_f64())
    }

    /// The same for which its control group was kept from running by its quota.
    #[must_use]
    pub fn throttled_share(&self, process: &Acceptor) -> Option<f64> {
        let (before, elapsed) = self.before(process.pid)?;
        let (_, now_us) = process.throttled?;
        let stood = Duration::from_micros(now_us.saturating_sub(before.throttled_us?));
        Some(stood.as_secs_f64() / elapsed.as_secs_f64())
    }

    fn before(&self, pid: u32) -> Option<(&Before, Duration)> {
        let before = self.before.iter().find(|before| before.pid == pid)?;
        let elapsed = self.at.since(before.at);
        (elapsed >= COMPARED).then_some((before, elapsed))
    }
}

/// The looks.
#[derive(Debug)]
pub(crate) struct Acceptors {
    looks: Bounded<(ListenerKey, SocketId), Look>,
}

impl Default for Acceptors {
    fn default() -> Self {
        Self {
            looks: Bounded::new(MAX_LISTENERS),
        }
    }
}

impl Acceptors {
    pub(crate) const fn evicted(&self) -> u64 {
        self.looks.evicted()
    }

    /// Takes in one process of a look; the first begins it.
    pub(crate) fn apply(&mut self, acceptor: &Acceptor, now: Ktime) {
        let key = (ListenerKey::of(&acceptor.socket), acceptor.socket.id);
        if self.looks.touch(&key).is_none() {
            let new = Look {
                at: now,
                processes: Vec::new(),
                before: Vec::new(),
                is_whole: false,
            };
            self.looks.insert(key, new);
        }
        let Some(look) = self.looks.get_mut(&key) else {
            return;
        };
        if acceptor.index == 0 {
            let at = look.at;
            // A look a moment ago leaves the one before it to be compared with.
            if now.since(at) >= COMPARED || look.before.is_empty() {
                look.before = look
                    .processes
                    .iter()
                    .map(|process| Before {
                        pid: process.pid,
                        at,
                        cpu_ms: process.cpu_ms,
                        throttled_us: process.throttled.map(|(_, us)| us),
                    })
                    .collect();
            }
            look.processes.clear();
            look.is_whole = false;
        }
        if look.processes.len() < MAX_PROCESSES {
            look.processes.push(*acceptor);
        }
        look.at = now;
        look.is_whole |= acceptor.is_last();
    }

    /// The last whole look at a socket of a listener.
    pub(crate) fn of(&self, listener: &ListenerKey, socket: SocketId) -> Option<&Look> {
        let look = self.looks.get(&(*listener, socket))?;
        look.is_whole.then_some(look)
    }
}

#[cfg(test)]
mod tests {
    use conntracer_common::record::{self, acceptor_flag};

    use super::*;
    use crate::{
        decode::decode,
        event::{Body, Event},
        testing::{Run, listener},
    };

    fn acceptor(change: impl FnOnce(&mut record::Acceptor)) -> Acceptor {
        let mut run = Run::new();
        run.acceptor(listener("10.0.0.1:80", "0.0.0.0:0"), change);
        match decode(&run.fed[0]) {
            Ok(Event {
                body: Body::Acceptor(acceptor),
                ..
            }) => acceptor,
            other => panic!("{other:?}"),
        }
    }

    fn look<'a>(table: &'a Acceptors, of: &Acceptor) -> Option<&'a Look> {
        table.of(&ListenerKey::of(&of.socket), of.socket.id)
    }

    #[test]
    fn a_look_is_known_when_it_is_whole_and_holders_come_before_others() {
        let mut table = Acceptors::default();
        for (at, (pid, flags)) in [
            (254, acceptor_flag::HOLDS),
            (255, acceptor_flag::HOLDS | acceptor_flag::GONE),
            (256, acceptor_flag::LAST),
        ]
        .into_iter()
        .enumerate()
        {
            let process = acceptor(|raw| {
                (raw.pid, raw.flags) = (pid, flags);
                raw.index = u32::try_from(at).unwrap();
            });
            table.apply(&process, Ktime(at as u64));
            assert_eq!(look(&table, &process).is_some(), at == 2);
        }
        let alone = acceptor(|raw| {
            (raw.pid, raw.flags) = (7, acceptor_flag::LAST);
        });
        let pids = |table: &Acceptors| -> Vec<u32> {
            let look = look(table, &alone).unwrap();
            look.processes().map(|process| process.pid).collect()
        };
        assert_eq!(
            pids(&table),
            [254],
            "256 was not found to hold it, 255 is gone"
        );
        table.apply(&alone, Ktime(9));
        assert_eq!(pids(&table), [7]);
    }

    #[test]
    fn shares_are_of_the_time_between_two_looks() {
        let mut table = Acceptors::default();
        let at = |ms: u64| Ktime(ms * 1_000_000);
        let process = |cpu_ms, throttled_us| {
            acceptor(|raw| {
                (raw.cpu_ms, raw.throttled, raw.throttled_us) = (cpu_ms, 1, throttled_us);
            })
        };
        let first = process(100, 0);
        table.apply(&first, at(0));
        assert_eq!(look(&table, &first).unwrap().cpu_share(&first), None);
        let soon = process(200, 50_000);
        table.apply(&soon, at(100));
        assert_eq!(look(&table, &soon).unwrap().cpu_share(&soon), None);
        let later = process(1100, 500_000);
        table.apply(&later, at(1000));
        let look = look(&table, &later).unwrap();
        assert!((look.cpu_share(&later).unwrap() - 1.0).abs() < 1e-9);
        assert!(look.throttled_share(&later).unwrap() > 0.4);
    }
}
