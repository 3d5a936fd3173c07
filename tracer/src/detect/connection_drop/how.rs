//! How a connection died, as its fields tell, and what a RST met.

use conntracer_common::record::close_flag;

use super::thresholds::Thresholds;
use crate::{
    detect::errno,
    event::{Close, Exit, TcpState},
    host::Host,
};

/// How a connection died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum How {
    ResetReceived,
    /// The client's RST came while the connection waited for accept().
    GaveUp,
    /// After the application had closed: the peer's RST, or this host's own for data that came then.
    ClosedBefore,
    /// The process that held it, or its listener, ended.
    ProcessEnded(Exit),
    /// close() with data that nobody read.
    Unread,
    /// close() with `SO_LINGER` 0.
    Linger,
    /// The listener went before accept().
    NotAccepted,
    /// connect() to AF_UNSPEC, or a protocol above.
    Disconnect,
    /// MPTCP ended one of its TCP connections.
    Subflow,
    Data,
    /// Nothing but the FIN was not acknowledged.
    Fin,
    /// Nothing is known to have waited for an answer.
    Timeout,
    Keepalive,
    WindowProbe,
    /// Data waited that the window had room for, and was never sent: probes take its place.
    Unsent,
    UserTimeout,
    /// Data or the FIN, after the application had closed.
    OrphanTimeout,
    Icmp,
    /// This host found no route any more.
    NoRoute,
    /// One of both.
    Unreachable,
    Killed,
    /// Too many orphans, or no memory for them.
    Orphan,
    /// A RST of this host, for a reason that has no name here.
    Aborted,
    Error,
}

impl How {
    /// `None` for an orderly end, for one that goes on elsewhere, and for a RST that cost nobody anything.
    pub(super) fn of(ending: &Close, host: &Host) -> Option<Self> {
        if ending.is_orderly() || ending.in_repair {
            return None;
        }
        let orphan = ending.has(close_flag::ORPHAN);
        Some(match ending.errno {
            errno::ETIMEDOUT if orphan => Self::OrphanTimeout,
            errno::ETIMEDOUT => Self::of_timeout(ending),
            errno if is_unreachable(errno, ending) => Self::of_unreachable(ending, errno),
            errno::ECONNABORTED => Self::Killed,
            errno::ECONNRESET | errno::EPIPE => return Self::of_reset(ending),
            0 if orphan => Self::Orphan,
            0 => Self::without_error(ending, host),
            _ => Self::Error,
        })
    }

    fn of_reset(ending: &Close) -> Option<Self> {
        let orphan = ending.has(close_flag::ORPHAN);
        if ending.has(close_flag::SUBFLOW) && !ending.has(close_flag::RST_RECEIVED) {
            return Some(Self::Subflow);
        }
        if orphan && ending.unacked_data() == 0 {
            return None;
        }
        // `tcp_rcv_state_process` treats data that nobody will read as if it were a RST, and then sends one.
        let may_be_late_data = ending.tcp.shutdown & RCV_SHUTDOWN != 0
            && matches!(ending.old, TcpState::FinWait1 | TcpState::FinWait2);
        Some(if ending.has(close_flag::NOT_ACCEPTED) {
            Self::GaveUp
        } else if may_be_late_data && ending.sender.is_none() {
            Self::ClosedBefore
        } else {
            Self::ResetReceived
        })
    }

    fn of_timeout(ending: &Close) -> Self {
        let tcp = &ending.tcp;
        if tcp.user_timeout.is_some() {
            Self::UserTimeout
        } else if tcp.retransmits > 0 || tcp.probes_out == 0 {
            if ending.waiting_data() > 0 {
                Self::Data
            } else if tcp.waiting_bytes() > 0 {
                Self::Fin
            } else if tcp.retransmits > 0 {
                Self::Data
            } else {
                Self::Timeout
            }
        } else if tcp.waiting_bytes() == 0 {
            // Probes are a keepalive's where there is nothing to deliver (`tcp_keepalive_timer`).
            Self::Keepalive
        } else if is_window_shut(ending) {
            Self::WindowProbe
        } else if ending.routed == Some(false) {
            Self::NoRoute
        } else {
            Self::Unsent
        }
    }

    /// Both a look-up of a route that fails and an ICMP message are kept in mind (`sk_err_soft`), and become the error
    /// when the kernel gives up. A look-up that fails sends nothing that would be counted (`__tcp_retransmit_skb`), and
    /// leaves the socket without a route; so may the kernel's own doubts of a route, but not where it only probed
    /// (`dst_negative_advice`). An ICMP message leaves the route.
    const fn of_unreachable(ending: &Close, errno: u32) -> Self {
        let tcp = &ending.tcp;
        match errno {
            // No ICMP message is turned into these (`icmp_err_convert`, `tab_unreach`), and no look-up fails with those.
            errno::EINVAL | errno::ENETDOWN => return Self::NoRoute,
            errno::ECONNREFUSED
            | errno::ENOPROTOOPT
            | errno::EOPNOTSUPP
            | errno::EPROTO
            | errno::EHOSTDOWN
            | errno::ENONET => return Self::Icmp,
            _ => {}
        }
        let is_held_back = tcp.retransmits as u32 > tcp.total_retrans;
        match ending.routed {
            // A neighbour that does not answer keeps segments back, too, and then this host says by ICMP to itself that
            // there is no way to it (`arp_error_report`).
            _ if errno == errno::EHOSTUNREACH && is_held_back => Self::Unreachable,
            _ if is_held_back => Self::NoRoute,
            Some(true) => Self::Icmp,
            Some(false) if tcp.retransmits == 0 && tcp.probes_out > 0 => Self::NoRoute,
            _ => Self::Unreachable,
        }
    }

    /// A living connection ends without an error: closed by its application, or by an error that the application took
    /// first. Before 6.10 the kernel wakes it (`sk_error_report`) before it changes the state.
    fn without_error(ending: &Close, host: &Host) -> Self {
        let tcp = &ending.tcp;
        if ending.has(close_flag::RST_SENT) {
            return Self::of_rst_sent(ending, host);
        }
        if ending.has(close_flag::SUBFLOW) {
            return Self::Subflow;
        }
        if let Some(exit) = ending.exit {
            return Self::ProcessEnded(exit);
        }
        if ending.has(close_flag::NOT_ACCEPTED) {
            Self::NotAccepted
        } else if ending.unread_bytes > 0 {
            Self::Unread
        } else if ending.has(close_flag::NO_LINGER) {
            Self::Linger
        } else if tcp.retransmits == 0 && tcp.probes_out == 0 {
            Self::Disconnect
        } else if is_unreachable(ending.soft_errno, ending) {
            Self::of_unreachable(ending, ending.soft_errno)
        } else {
            Self::of_timeout(ending)
        }
    }

    /// This host's RST came first: the application's own follows the change of state.
    fn of_rst_sent(ending: &Close, host: &Host) -> Self {
        if ending.has(close_flag::SUBFLOW) {
            return Self::Subflow;
        }
        if ending.tcp.probes_out > 0 {
            return Self::of_timeout(ending);
        }
        let reason = ending
            .reason
            .and_then(|reason| host.reset_reasons.get(&reason));
        match reason.map(String::as_str) {
            // `tcp_abort`.
            None | Some("TCP_STATE" | "NOT_SPECIFIED" | "ERROR") => Self::Killed,
            Some(_) => Self::Aborted,
        }
    }

    pub(super) const fn cause(self) -> &'static str {
        match self {
            Self::ResetReceived | Self::GaveUp | Self::ClosedBefore => "reset_received",
            Self::ProcessEnded(_)
            | Self::Unread
            | Self::Linger
            | Self::NotAccepted
            | Self::Disconnect
            | Self::Subflow => "reset_sent",
            Self::Data
            | Self::Fin
            | Self::Timeout
            | Self::Keepalive
            | Self::WindowProbe
            | Self::Unsent
            | Self::UserTimeout
            | Self::OrphanTimeout => "timed_out",
            Self::Icmp | Self::NoRoute | Self::Unreachable => "unreachable",
            Self::Killed | Self::Orphan | Self::Aborted | Self::Error => "aborted",
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ResetReceived => "reset_by_peer",
            Self::GaveUp => "reset_before_accept",
            Self::ClosedBefore => "reset_after_close",
            Self::ProcessEnded(_) => "process_ended",
            Self::Unread => "closed_with_unread_data",
            Self::Linger => "closed_without_linger",
            Self::NotAccepted => "closed_before_accept",
            Self::Disconnect => "disconnected",
            Self::Subflow => "mptcp",
            Self::Data => "data",
            Self::Fin => "fin",
            Self::Timeout => "timeout",
            Self::Keepalive => "keepalive",
            Self::WindowProbe => "window_probe",
            Self::Unsent => "unsent",
            Self::UserTimeout => "user_timeout",
            Self::OrphanTimeout => "orphan_timeout",
            Self::Icmp => "icmp",
            Self::NoRoute => "no_route",
            Self::Unreachable => "icmp_or_no_route",
            Self::Killed => "killed",
            Self::Orphan => "orphan",
            Self::Aborted => "aborted",
            Self::Error => "error",
        }
    }

    /// Whether this host sends a RST with it.
    pub(super) const fn sends_reset(self) -> bool {
        matches!(
            self,
            Self::ProcessEnded(_)
                | Self::Unread
                | Self::Linger
                | Self::NotAccepted
                | Self::Subflow
                | Self::Keepalive
                | Self::Killed
                | Self::Orphan
                | Self::Aborted
        )
    }

    /// Whether the pause before says anything: what ended the others is no timer of anybody's, or one of this kernel's
    /// that begins after it.
    pub(super) const fn follows_a_pause(self) -> bool {
        matches!(
            self,
            Self::ResetReceived
                | Self::Unread
                | Self::Linger
                | Self::Data
                | Self::UserTimeout
                | Self::OrphanTimeout
        )
    }
}

/// Whether the peer's window has no room for the next segment (`tcp_snd_wnd_test`).
fn is_window_shut(ending: &Close) -> bool {
    let (waiting, mss) = (ending.waiting_data(), ending.tcp.mss_bytes);
    let next = if mss == 0 { waiting } else { waiting.min(mss) };
    ending.tcp.snd_wnd_bytes < next
}

/// A bit of `sk_shutdown` (include/net/sock.h).
const RCV_SHUTDOWN: u8 = 1;

/// Kept in mind by the kernel until it gave up: an error that a look-up of a route or an ICMP message leaves.
const fn is_unreachable(errno: u32, ending: &Close) -> bool {
    let gave_up = ending.tcp.retransmits > 0 || ending.tcp.probes_out > 0;
    match errno {
        errno::EHOSTUNREACH
        | errno::ENETUNREACH
        | errno::EHOSTDOWN
        | errno::ENETDOWN
        | errno::ENONET => true,
        errno::ECONNREFUSED
        | errno::EACCES
        | errno::EINVAL
        | errno::ENOPROTOOPT
        | errno::EOPNOTSUPP
        | errno::EPROTO => gave_up,
        _ => false,
    }
}

/// What a RST met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Met {
    /// A connection that carried nothing.
    Unused,
    /// One that carried data less than [`Thresholds::idle_s`] before, or it is not known when.
    InUse,
    /// One that had been idle for longer.
    Idle,
    /// The first segment after such a pause was in flight.
    AfterPause,
    /// A keepalive probe was.
    Keepalive,
    /// The peer had sent its FIN.
    AfterFin,
}

impl Met {
    pub(super) fn of(ending: &Close, rules: &Thresholds) -> Self {
        let paused = ending.idle.is_some_and(|idle| idle >= rules.idle());
        if !ending.has_data() {
            Self::Unused
        } else if ending.has(close_flag::FIN_RECEIVED) {
            Self::AfterFin
        } else if ending.tcp.probes_out > 0 && ending.tcp.waiting_bytes() == 0 {
            Self::Keepalive
        } else if !paused {
            Self::InUse
        } else if ending.unacked_data() > 0 {
            Self::AfterPause
        } else {
            Self::Idle
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Unused => "an unused connection",
            Self::InUse => "a connection in use",
            Self::Idle => "an idle connection",
            Self::AfterPause => "the first segment after a pause",
            Self::Keepalive => "a keepalive probe",
            Self::AfterFin => "a connection that the peer had closed",
        }
    }
}
