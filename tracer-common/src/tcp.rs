//! TCP constants that are part of the kernel's ABI or have never changed in the kernels supported.
//!
//! Not here: anything that is renumbered between kernels (drop reasons, reset reasons, counters);
//! those are resolved by name from the running kernel's BTF.

/// `enum` in include/net/tcp_states.h; also the values of `inet_sock_set_state`.
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
    pub const NEW_SYN_RECV: u8 = 12;

    /// The kernel's name of a state without its `TCP_` prefix; `None` for a value no kernel uses.
    #[must_use]
    pub const fn name(state: u8) -> Option<&'static str> {
        Some(match state {
            ESTABLISHED => "ESTABLISHED",
            SYN_SENT => "SYN_SENT",
            SYN_RECV => "SYN_RECV",
            FIN_WAIT1 => "FIN_WAIT1",
            FIN_WAIT2 => "FIN_WAIT2",
            TIME_WAIT => "TIME_WAIT",
            CLOSE => "CLOSE",
            CLOSE_WAIT => "CLOSE_WAIT",
            LAST_ACK => "LAST_ACK",
            LISTEN => "LISTEN",
            CLOSING => "CLOSING",
            NEW_SYN_RECV => "NEW_SYN_RECV",
            _ => return None,
        })
    }
}

/// TCP header flags, as in `tcp_skb_cb.tcp_flags` (include/net/tcp.h).
pub mod flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// `enum tcp_ca_state` (include/uapi/linux/tcp.h).
pub mod ca {
    pub const OPEN: u8 = 0;
    pub const DISORDER: u8 = 1;
    pub const CWR: u8 = 2;
    pub const RECOVERY: u8 = 3;
    pub const LOSS: u8 = 4;
}

/// `TCPCB_*` of `tcp_skb_cb.sacked` (include/net/tcp.h).
pub mod sacked {
    pub const LOST: u8 = 0x04;
    pub const EVER_RETRANS: u8 = 0x80;
}

/// `ICSK_TIME_*` (include/net/inet_connection_sock.h): what the socket's timer waits for.
pub mod pending {
    pub const NONE: u8 = 0;
    pub const RETRANS: u8 = 1;
    pub const PROBE0: u8 = 3;
    pub const LOSS_PROBE: u8 = 5;
    pub const REO_TIMEOUT: u8 = 6;
}

/// `AF_INET` and `AF_INET6` as the kernel stores them in `skc_family`.
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
pub const IPPROTO_TCP: u16 = 6;
pub const IPPROTO_MPTCP: u16 = 262;
