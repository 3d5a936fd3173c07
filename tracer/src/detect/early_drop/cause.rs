//! Why a SYN was dropped before its listener: by the kernel's name of the reason, or by what speaks for it.

use conntracer_common::record::early_drop_hint;

use crate::{
    event::{EarlyDrop as Event, Path, Place},
    host::Host,
};

/// Why SYNs were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    NoListener,
    Filtered,
    ReversePath,
    Auth,
    BadChecksum,
    SocketFilter,
    NoMemory,
    Other,
}

impl Cause {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NoListener => "no_listener",
            Self::Filtered => "filtered",
            Self::ReversePath => "reverse_path",
            Self::Auth => "auth",
            Self::BadChecksum => "bad_checksum",
            Self::SocketFilter => "socket_filter",
            Self::NoMemory => "no_memory",
            Self::Other => "other",
        }
    }
}

/// What a cause rests on, where the kernel did not say it.
pub(super) type Because = &'static str;

/// A cause and what it rests on.
pub(super) struct Why {
    pub(super) cause: Cause,
    pub(super) because: Option<Because>,
    /// Not by XDP or traffic control.
    pub(super) by_netfilter: bool,
}

/// The cause of an early drop; `None` for what is no drop of a SYN to this host.
pub(super) fn why(early_drop: &Event, host: &Host) -> Option<Why> {
    let name = early_drop
        .reason
        .map(|reason| host.drop_reasons.get(&reason).map_or("", String::as_str));
    let by_xdp = early_drop.hints & early_drop_hint::XDP != 0
        && matches!(name, None | Some("NOT_SPECIFIED"))
        && early_drop.place.is_none();
    let (cause, because) = if by_xdp {
        (Cause::Filtered, Some(GENERIC_XDP))
    } else if let Some(name) = name {
        (named(name, early_drop)?, None)
    } else {
        let (cause, because) = concluded(early_drop)?;
        (cause, Some(because))
    };
    let passes = early_drop.path == Some(Path::Forward);
    (!passes || cause == Cause::Filtered).then_some(Why {
        cause,
        because,
        by_netfilter: !by_xdp && !matches!(name, Some("XDP" | "TC_INGRESS")),
    })
}

const GENERIC_XDP: Because = "the kernel gives no reason for it: that an XDP program dropped it is concluded \
                             from the one at its device (ip link)";

/// By the kernel's own name (include/net/dropreason-core.h).
fn named(name: &str, early_drop: &Event) -> Option<Cause> {
    // Never received: sent by this host through a device that took its socket away, unless it was
    // dropped on the way from the device to IP.
    if early_drop.ifindex == 0 && !matches!(name, "XDP" | "TC_INGRESS" | "CPU_BACKLOG") {
        return None;
    }
    Some(match name {
        "NO_SOCKET" => Cause::NoListener,
        "NETFILTER_DROP" | "XDP" | "TC_INGRESS" => Cause::Filtered,
        "IP_RPFILTER" => Cause::ReversePath,
        "TCP_CSUM" | "IP_CSUM" | "SKB_CSUM" => Cause::BadChecksum,
        "SOCKET_FILTER" => Cause::SocketFilter,
        "NOMEM" | "PROTO_MEM" => Cause::NoMemory,
        "TCP_AUTH_HDR" => Cause::Auth,
        name if name.starts_with("TCP_MD5") || name.starts_with("TCP_AO") => Cause::Auth,
        "TCP_MINTTL" | "TCP_FLAGS" | "XFRM_POLICY" | "CPU_BACKLOG" => Cause::Other,
        // A retransmitted SYN, or one within a connection: answered, and then freed.
        "NOT_SPECIFIED" | "SKB_CONSUMED" | "SKB_NOT_DROPPED_YET" => return None,
        name if name.starts_with("TCP_") || name.starts_with("SOCKET_") => return None,
        name if name.starts_with("IP_") || name.starts_with("IPV6") => Cause::Other,
        // Anything else may be about a packet that only passed by, unless its route led here.
        _ if early_drop.path == Some(Path::Input) => Cause::Other,
        _ => return None,
    })
}

/// By what speaks for it, on kernels that give no reasons (before 5.17).
fn concluded(early_drop: &Event) -> Option<(Cause, Because)> {
    const FUNCTION: Because = "this kernel gives no drop reasons: the cause is concluded from the function that dropped it";
    const COUNTER: Because =
        "this kernel gives no drop reasons: the cause is concluded from its counters";
    const LISTENER: Because = "this kernel gives no drop reasons: the cause is concluded from the listener's socket filter";
    const NOBODY: Because = "this kernel gives no drop reasons: no listener is known there, and a \
                             reset was sent";
    if early_drop.ifindex == 0 {
        return None;
    }
    let has = |hint: u8| early_drop.hints & hint != 0;
    match early_drop.place {
        Some(Place::Netfilter) => return Some((Cause::Filtered, FUNCTION)),
        Some(Place::Route) => {
            return Some(if has(early_drop_hint::REVERSE_PATH) {
                (Cause::ReversePath, COUNTER)
            } else {
                (Cause::Other, FUNCTION)
            });
        }
        None if early_drop.path == Some(Path::Prerouting) => {
            return has(early_drop_hint::REVERSE_PATH).then_some((Cause::ReversePath, COUNTER));
        }
        Some(Place::Tcp) | None => {}
    }
    if has(early_drop_hint::CHECKSUM) {
        Some((Cause::BadChecksum, COUNTER))
    } else if has(early_drop_hint::MD5) {
        Some((Cause::Auth, COUNTER))
    } else if has(early_drop_hint::SOCKET_FILTER) {
        Some((Cause::SocketFilter, LISTENER))
    } else if !has(early_drop_hint::LISTENER)
        && (has(early_drop_hint::RESET_SENT) || !has(early_drop_hint::COUNTED))
    {
        Some((Cause::NoListener, NOBODY))
    } else {
        // Most likely a retransmitted SYN.
        None
    }
}
