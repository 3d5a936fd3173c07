//! Figures of an end as both the summary and the advice have them.

use std::borrow::Cow;

use crate::{
    detect::{errno, phrase},
    event::{Close, Exit},
};

/// A look-up fails like this where the source is no address of the namespace, and by a route that is a black hole.
pub(super) const fn lacks_source(latest: &Close) -> bool {
    latest.errno == errno::EINVAL || (latest.errno == 0 && latest.soft_errno == errno::EINVAL)
}

/// A look-up fails like this by a route or a rule of the kind `prohibit`.
pub(super) const fn is_forbidden(latest: &Close) -> bool {
    latest.errno == errno::EACCES || (latest.errno == 0 && latest.soft_errno == errno::EACCES)
}

/// ICMP said that a port or a protocol cannot be reached, as firewalls do that reject.
pub(super) const fn is_refused(latest: &Close) -> bool {
    let errno = if latest.errno == 0 {
        latest.soft_errno
    } else {
        latest.errno
    };
    matches!(errno, errno::ECONNREFUSED | errno::ENOPROTOOPT)
}

/// Whether a timeout sent nothing again: no route, or a segment that still waits in a queue of this host.
pub(super) fn is_held_back(latest: &Close) -> bool {
    u32::from(latest.tcp.retransmits) > latest.tcp.total_retrans
}

/// How a process ended, as the end of a sentence.
pub(super) fn ended(exit: Exit) -> String {
    match exit {
        Exit::Signal(signal) => format!("was ended by {}", signal_name(signal)),
        Exit::Status(status) => format!("ended with status {status}"),
    }
}

/// A signal by its name, or by its number.
pub(super) fn signal_name(signal: u8) -> Cow<'static, str> {
    phrase::signal_name(signal).map_or_else(|| format!("signal {signal}").into(), Cow::Borrowed)
}
