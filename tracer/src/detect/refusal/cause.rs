//! Why a SYN was dropped before its listener: by the kernel's name of the reason, or by what speaks for it.

use conntracer_common::record::refusal_hint;

use crate::{
    event::{Path, Place, Refusal as Event},
    kernel::host::Host,
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

/// The cause of a refusal; `None` for what is no drop of a SYN to this host.
pub(super) fn why(refusal: &Event, host: &Host) -> Option<Why> {
    let name = refusal
        .reason
        .map(|reason| host.drop_reasons.get(&reason).map_or("", String::as_str));
    let by_xdp = refusal.hints & refusal_hint::XDP != 0
        && matches!(name, None | Some("NOT_SPECIFIED"))
        && refusal.place.is_none();
    let (cause, because) = if by_xdp {
        (Cause::Filtered, Some(GENERIC_XDP))
    } else if let Some(name) = name {
        (named(name, refusal)?, None)
    } else {
        let (cause, because) = concluded(refusal)?;
        (cause, Some(because))
    };
    let passes = refusal.path == Some(Path::Forward);
    (!passes || cause == Cause::Filtered).then_some(Why {
        cause,
        because,
        by_netfilter: !by_xdp && !matches!(name, Some("XDP" | "TC_INGRESS")),
    })
}

const GENERIC_XDP: Because = "the kernel gives no reason for it: that an XDP program dropped it is concluded \
                             from the one at its device (ip link)";

/// By the kernel's own name (include/net/dropreason-core.h).
fn named(name: &str, refusal: &Event) -> Option<Cause> {
    // Never received: sent by this host through a device that took its socket away, unless it was
    // dropped on the way from the device to IP.
    if refusal.ifindex == 0 && !matches!(name, "XDP" | "TC_INGRESS" | "CPU_BACKLOG") {
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
        // A repeated SYN, or one within a connection: answered, and then freed.
        "NOT_SPECIFIED" | "SKB_CONSUMED" | "SKB_NOT_DROPPED_YET" => return None,
        name if name.starts_with("TCP_") || name.starts_with("SOCKET_") => return None,
        name if name.starts_with("IP_") || name.starts_with("IPV6") => Cause::Other,
        // Anything else may be about a packet that only passed by, unless its route led here.
        _ if refusal.path == Some(Path::Input) => Cause::Other,
        _ => return None,
    })
}

/// By what speaks for it, on kernels that give no reasons (before 5.17).
fn concluded(refusal: &Event) -> Option<(Cause, Because)> {
    const FUNCTION: Because = "this kernel gives no drop reasons: the cause is concluded from the function that dropped it";
    const COUNTER: Because =
        "this kernel gives no drop reasons: the cause is concluded from its counters";
    const LISTENER: Because = "this kernel gives no drop reasons: the cause is concluded from the listener's socket filter";
    const NOBODY: Because = "this kernel gives no drop reasons: no listener is known there, and a \
                             reset was sent";
    if refusal.ifindex == 0 {
        return None;
    }
    let has = |hint: u8| refusal.hints & hint != 0;
    match refusal.place {
        Some(Place::Netfilter) => return Some((Cause::Filtered, FUNCTION)),
        Some(Place::Route) => {
            return Some(if has(refusal_hint::REVERSE_PATH) {
                (Cause::ReversePath, COUNTER)
            } else {
                (Cause::Other, FUNCTION)
            });
        }
        None if refusal.path == Some(Path::Prerouting) => {
            return has(refusal_hint::REVERSE_PATH).then_some((Cause::ReversePath, COUNTER));
        }
        Some(Place::Tcp) | None => {}
    }
    if has(refusal_hint::CHECKSUM) {
        Some((Cause::BadChecksum, COUNTER))
    } else if has(refusal_hint::MD5) {
        Some((Cause::Auth, COUNTER))
    } else if has(refusal_hint::SOCKET_FILTER) {
        Some((Cause::SocketFilter, LISTENER))
    } else if !has(refusal_hint::LISTENER)
        && (has(refusal_hint::RESET_SENT) || !has(refusal_hint::COUNTED))
    {
        Some((Cause::NoListener, NOBODY))
    } else {
        // Most likely a repeated SYN.
        None
    }
}
