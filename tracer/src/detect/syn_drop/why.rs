//! Why nobody takes connections out of a full accept queue: what keeps those who may accept from it, as the last look at
//! them showed.
//!
//! Each is said of a process that was looked at, and of no other. Of several processes that hold the listener, which of
//! them accept is not known (a server of a master and workers and one that forks for each connection look alike), so
//! those that nothing hinders are told beside those that are hindered.

use std::borrow::Cow;

use crate::{event::Acceptor, table::acceptor::Look, time::Ktime};

/// From which share of the time a quota keeps a process from running for long enough to fill a queue.
const THROTTLED: f64 = 0.2;
/// From which share of one CPU a process is busy, and to which it does nothing.
const BUSY: f64 = 0.8;
/// Processes named at most.
const NAMED: usize = 4;

/// What keeps a process from accepting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::detect) enum Hindrance {
    /// By a signal, or by a debugger.
    Stopped,
    Traced,
    Frozen,
    /// Descriptors in use, and how many there may be.
    NoDescriptors(u32, u32),
    /// Share of the time.
    Throttled(f64),
}

impl Hindrance {
    fn of(look: &Look, process: &Acceptor) -> Option<Self> {
        if process.is_frozen() {
            return Some(Self::Frozen);
        }
        if process.is_stopped() {
            return Some(if process.state == b't' {
                Self::Traced
            } else {
                Self::Stopped
            });
        }
        if process.has_no_descriptor() {
            let (open, most) = process.descriptors.zip(process.descriptor_limit)?;
            return Some(Self::NoDescriptors(open, most));
        }
        let share = look.throttled_share(process)?;
        (share >= THROTTLED).then_some(Self::Throttled(share.min(1.0)))
    }

    /// The word of the evidence.
    pub(in crate::detect) const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Traced => "traced",
            Self::Frozen => "frozen",
            Self::NoDescriptors(..) => "no_descriptors",
            Self::Throttled(_) => "throttled",
        }
    }
}

/// What the last look at a listener's processes showed, while its queue was full.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::detect) struct Why {
    pub(in crate::detect) at: Ktime,
    /// The first process that is hindered, and by what; the others that are by the same.
    pub(in crate::detect) hindrance: Option<(Hindrance, Acceptor)>,
    pub(in crate::detect) alike: Vec<Acceptor>,
    /// Those that nothing hinders, and how busy each is.
    pub(in crate::detect) others: Vec<(Acceptor, Option<f64>)>,
    pub(in crate::detect) is_of_holders: bool,
}

impl Why {
    pub(in crate::detect) fn of(look: &Look) -> Self {
        let mut why = Self {
            at: look.at,
            hindrance: None,
            alike: Vec::new(),
            others: Vec::new(),
            is_of_holders: look.is_of_holders(),
        };
        for process in look.processes() {
            match (Hindrance::of(look, process), why.hindrance) {
                (Some(hindrance), None) => why.hindrance = Some((hindrance, *process)),
                (Some(hindrance), Some((known, _))) if hindrance.name() == known.name() => {
                    why.alike.push(*process);
                }
                _ => why.others.push((*process, look.cpu_share(process))),
            }
        }
        why
    }

    /// Without what hinders a process that may not hold the listener: before a search, only the owner that has no child
    /// of its own program is known to.
    pub(in crate::detect) fn of_holders(mut self) -> Self {
        let is_sole = |process: &Acceptor| process.pid == process.owner_pid;
        let is_known = self.is_of_holders
            || self.others.is_empty()
                && self.alike.is_empty()
                && self.hindrance.is_some_and(|(_, process)| is_sole(&process));
        if !is_known && let Some((_, process)) = self.hindrance.take() {
            let alike = std::mem::take(&mut self.alike);
            let hindered = std::iter::once(process).chain(alike);
            self.others.extend(hindered.map(|process| (process, None)));
        }
        self
    }

    /// The word of the evidence.
    pub(in crate::detect) fn name(&self) -> Option<&'static str> {
        self.hindrance.map(|(hindrance, _)| hindrance.name())
    }

    /// All that were looked at, those that are hindered first.
    pub(in crate::detect) fn processes(&self) -> impl Iterator<Item = &Acceptor> {
        self.hindered()
            .chain(self.others.iter().map(|(process, _)| process))
    }

    /// Those that are hindered.
    pub(in crate::detect) fn hindered(&self) -> impl Iterator<Item = &Acceptor> {
        self.hindrance
            .iter()
            .map(|(_, process)| process)
            .chain(&self.alike)
    }

    /// What was seen before it was known who holds the listener, of those who turn out to: `holders` is what a look at
    /// all of these shows, who may have been let go since. `None` where nobody of them was hindered.
    pub(in crate::detect) fn borne_out(&self, holders: &Self) -> Option<Self> {
        let holds = |process: &&Acceptor| {
            let looked = holders.others.iter().map(|(holder, _)| holder);
            looked
                .chain(holders.hindered())
                .any(|holder| holder.pid == process.pid)
        };
        let (hindrance, first) = self.hindrance?;
        let mut held = self.hindered().filter(holds).copied();
        let process = held.next()?;
        let hindrance = match hindrance {
            Hindrance::NoDescriptors(..) => {
                let (open, most) = process.descriptors.zip(process.descriptor_limit)?;
                Hindrance::NoDescriptors(open, most)
            }
            // The share was that of the first one's control group.
            Hindrance::Throttled(_) if process.pid != first.pid => return None,
            Hindrance::Throttled(_)
            | Hindrance::Stopped
            | Hindrance::Traced
            | Hindrance::Frozen => hindrance,
        };
        let alike: Vec<Acceptor> = held.collect();
        let is_told = |pid: u32| pid == process.pid || alike.iter().any(|one| one.pid == pid);
        let mut others = holders.others.clone();
        others.retain(|(other, _)| !is_told(other.pid));
        Some(Self {
            at: holders.at,
            hindrance: Some((hindrance, process)),
            alike,
            others,
            is_of_holders: true,
        })
    }

    /// What hinders them, for a sentence.
    pub(in crate::detect) fn said(&self) -> Option<String> {
        let (hindrance, first) = self.hindrance?;
        let count = self.alike.len().saturating_add(1);
        let many = count > 1;
        let is = if many { "are" } else { "is" };
        let mut names: Vec<String> = self
            .hindered()
            .take(NAMED)
            .map(|process| self.said_of(process))
            .collect();
        if count > NAMED {
            names.push("more".to_owned());
        }
        let names = match names.split_last() {
            Some((last, first)) if !first.is_empty() => format!("{} and {last}", first.join(", ")),
            _ => names.concat(),
        };
        let what = match hindrance {
            Hindrance::Stopped => format!("{names} {is} stopped (state T)"),
            Hindrance::Traced => format!("{names} {is} stopped by a debugger (state t)"),
            Hindrance::Frozen => format!("{names} {is} frozen with its control group"),
            Hindrance::NoDescriptors(open, most) => {
                let mostly = match first.descriptors_mostly {
                    Some((kind, count)) => format!(", {count} of them {kind}"),
                    None => String::new(),
                };
                format!("{names}: accept() fails, {open} of {most} descriptors are in use{mostly}")
            }
            Hindrance::Throttled(share) => format!(
                "{names} {is} kept from running by a CPU quota for {:.0} % of the time",
                share * 100.0
            ),
        };
        let others = self.others.len();
        Some(match others {
            0 => what,
            1 if self.is_of_holders => {
                let (other, _) = &self.others[0];
                format!(
                    "{what}; {}, which holds the listener too, is not",
                    other.name()
                )
            }
            _ if self.is_of_holders => {
                format!("{what}; {others} more processes that hold the listener are not")
            }
            _ => what,
        })
    }

    /// A process that was not found to hold the listener is told by how it is related.
    fn said_of(&self, process: &Acceptor) -> String {
        if self.is_of_holders || process.pid == process.owner_pid {
            process.name()
        } else {
            format!(
                "{} (child of the listener's process {})",
                process.name(),
                process.owner_pid
            )
        }
    }

    /// What a process does that nothing hinders, for a sentence; `None` of several.
    pub(in crate::detect) fn said_unhindered(&self) -> Option<String> {
        if self.hindrance.is_some() {
            return None;
        }
        let [(process, share)] = self.others.as_slice() else {
            return None;
        };
        let name = process.name();
        let inside = process
            .waits_in()
            .map_or_else(String::new, |function| format!(" (in {function})"));
        Some(match (process.state, share) {
            (_, Some(share)) if *share >= BUSY => {
                format!("{name} is busy: it used {:.0} % of a CPU", share * 100.0)
            }
            (b'D', _) => {
                format!("{name} waits in the kernel for a device or a lock (state D){inside}")
            }
            (b'S', _) => format!("{name} sleeps (state S){inside}"),
            (b'R', _) => format!("{name} runs (state R)"),
            (b'Z', _) => format!("{name} has ended (state Z)"),
            (state, _) => format!("{name} is in state {}", char::from(state).escape_default()),
        })
    }

    /// What mends it.
    pub(in crate::detect) fn advice(&self) -> Vec<Cow<'static, str>> {
        let Some((hindrance, process)) = self.hindrance else {
            return Vec::new();
        };
        let pid = process.pid;
        let pids = self
            .hindered()
            .take(NAMED)
            .map(|process| process.pid.to_string())
            .collect::<Vec<_>>()
            .join(" ");
        match hindrance {
            Hindrance::Stopped => vec![
                format!("find out who stopped it (SIGSTOP, or job control), and let it run: 'kill -CONT {pids}'").into(),
            ],
            Hindrance::Traced => vec![
                format!("let the debugger go on: 'grep TracerPid /proc/{pid}/status' names it").into(),
            ],
            Hindrance::Frozen => vec![
                format!(
                    "thaw its control group (cgroup.freeze 0; 'docker unpause', 'systemctl thaw'): \
                     'cat /proc/{pid}/cgroup' names it"
                )
                .into(),
            ],
            Hindrance::NoDescriptors(_, most) => vec![
                format!("see what the descriptors are: 'ls -l /proc/{pid}/fd'; one kind that grows is a leak").into(),
                format!(
                    "if all are needed, raise the limit (now {most}): 'prlimit --pid {pid} --nofile=N', and \
                     LimitNOFILE= of its unit"
                )
                .into(),
            ],
            Hindrance::Throttled(_) => vec![
                format!(
                    "raise the quota of its control group (cpu.max, CPUQuota=, the container's CPU limit): \
                     'cat /proc/{pid}/cgroup' names it"
                )
                .into(),
            ],
        }
    }
}
