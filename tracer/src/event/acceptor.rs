//! How a process stands that may accept a listener's connections.

use std::borrow::Cow;

use conntracer_common::record::{
    self, UNKNOWN_COUNT, UNKNOWN_TOTAL, acceptor_flag, descriptor_kind,
};

use super::{owner::Comm, socket::Socket};

/// One process of one look at a listener in trouble, as /proc showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acceptor {
    /// The listener.
    pub socket: Socket,
    pub pid: u32,
    pub parent_pid: u32,
    pub comm: Comm,
    /// The letter of its first thread's state.
    pub state: u8,
    pub threads: u32,
    /// Of those, the stopped ones.
    pub stopped: u32,
    pub descriptors: Option<u32>,
    pub descriptor_limit: Option<u32>,
    /// What most of its descriptors are, and how many, where it has none to spare.
    pub descriptors_mostly: Option<(&'static str, u32)>,
    /// Times and microseconds that its control group was throttled since it was made.
    pub throttled: Option<(u64, u64)>,
    /// Milliseconds that it has run so far.
    pub cpu_ms: u64,
    waits_in: [u8; 24],
    /// Whose the listener was said to be.
    pub owner_pid: u32,
    /// Where in its look.
    pub index: u32,
    flags: u8,
}

/// One of [`descriptor_kind`], for a sentence.
const fn descriptors(kind: u8) -> Option<&'static str> {
    match kind {
        descriptor_kind::SOCKET => Some("sockets"),
        descriptor_kind::PIPE => Some("pipes"),
        descriptor_kind::FILE => Some("files"),
        descriptor_kind::ANONYMOUS => Some("event, epoll or timer descriptors"),
        _ => None,
    }
}

impl Acceptor {
    pub(super) fn decode(raw: &record::Acceptor) -> Self {
        let count = |value: u32| (value != UNKNOWN_COUNT).then_some(value);
        Self {
            socket: Socket::decode(&raw.socket),
            pid: raw.pid,
            parent_pid: raw.parent_pid,
            comm: Comm(raw.comm),
            state: raw.state,
            threads: raw.threads,
            stopped: raw.stopped,
            descriptors: count(raw.descriptors),
            descriptor_limit: count(raw.descriptor_limit),
            descriptors_mostly: descriptors(raw.descriptor_kind)
                .map(|kind| (kind, raw.descriptors_of_kind)),
            throttled: (raw.throttled != UNKNOWN_TOTAL && raw.throttled_us != UNKNOWN_TOTAL)
                .then_some((raw.throttled, raw.throttled_us)),
            cpu_ms: raw.cpu_ms,
            waits_in: raw.waits_in,
            owner_pid: raw.owner_pid,
            index: raw.index,
            flags: raw.flags,
        }
    }

    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether a search found that it holds the listener.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.has(acceptor_flag::HOLDS)
    }

    /// The last of its look.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        self.has(acceptor_flag::LAST)
    }

    /// Its control group is frozen.
    #[must_use]
    pub const fn is_frozen(&self) -> bool {
        self.has(acceptor_flag::FROZEN)
    }

    #[must_use]
    pub const fn is_gone(&self) -> bool {
        self.has(acceptor_flag::GONE)
    }

    /// All its threads are stopped, by a signal (`T`) or by a debugger (`t`).
    #[must_use]
    pub const fn is_stopped(&self) -> bool {
        !self.is_gone()
            && !self.has(acceptor_flag::MANY_THREADS)
            && matches!(self.state, b'T' | b't')
            && self.stopped >= self.threads
    }

    /// Whether it can open no further descriptor.
    #[must_use]
    pub fn has_no_descriptor(&self) -> bool {
        !self.is_gone()
            && matches!((self.descriptors, self.descriptor_limit), (Some(open), Some(most)) if open >= most)
    }

    /// The kernel function that its first thread sleeps in, where that is told.
    #[must_use]
    pub fn waits_in(&self) -> Option<Cow<'_, str>> {
        let end = self.waits_in.iter().position(|byte| *byte == 0);
        let text = &self.waits_in[..end.unwrap_or(self.waits_in.len())];
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        (!text.is_empty() && text.iter().all(is_name)).then(|| String::from_utf8_lossy(text))
    }

    /// `comm` and pid, for a sentence: without control characters, which a process may choose.
    #[must_use]
    pub fn name(&self) -> String {
        let name: String = self
            .comm
            .to_text()
            .chars()
            .map(|letter| {
                if letter.is_control() {
                    '\u{fffd}'
                } else {
                    letter
                }
            })
            .collect();
        if name.is_empty() {
            format!("process {}", self.pid)
        } else {
            format!("{name} {}", self.pid)
        }
    }
}
