//! Figures and owners as sentences have them.

use std::time::Duration;

use crate::{
    event::{Owner, OwnerSource},
    finding::Subject,
};

/// A duration for a sentence.
pub(crate) fn said_seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// The signals that end processes, as x86 and ARM number them.
pub(crate) const fn signal_name(signal: u8) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

/// Who should act: the owner by pid, or nobody in particular. The name is in the finding's owner,
/// where sinks escape it.
pub(crate) fn who(owner: Option<&Owner>) -> String {
    owner.map_or_else(
        || "the application".to_owned(),
        |owner| match owner.source {
            OwnerSource::Forked => format!("process {} or a descendant", owner.pid),
            _ => format!("process {}", owner.pid),
        },
    )
}

/// All sockets of a process in a namespace; its name is its owner's, where that is known.
pub(crate) fn process((netns, pid): (u32, u32), owner: Option<&Owner>) -> Subject {
    Subject::Process {
        netns,
        pid,
        comm: owner.map_or_else(String::new, |owner| owner.comm.to_text().into_owned()),
    }
}
