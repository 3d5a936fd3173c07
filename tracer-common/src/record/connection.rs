//! A connection's life and end: attempts, accepts, changes of state, resets, probes, and how it failed.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Header, Owner, Socket, Tcp};

/// An active open: `tcp_connect`, or CLOSE → SYN_SENT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Connect {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
}

/// A connection handed to its application, or first used by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Accept {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
}

/// `inet_sock_set_state`. Default mode emits it only for sockets that were in trouble before
/// (retransmits, probes, an error), so that what detectors opened can be resolved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct State {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// `sk_err` (errno, positive) at the change.
    pub error: u32,
    pub old_state: u8,
    pub new_state: u8,
    /// `icsk_retransmits` at the change.
    pub retransmits: u8,
    /// `icsk_probes_out` at the change.
    pub probes_out: u8,
}

/// A RST sent or received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Reset {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// `enum sk_rst_reason` of the running kernel; `u32::MAX` when the kernel gives none.
    pub reason: u32,
    /// 1 received, 0 sent.
    pub received: u8,
    pub retransmits: u8,
    pub pad: [u8; 2],
}

/// Bits of [`Failure::how`].
pub mod failure_how {
    /// A RST answered.
    pub const RESET: u8 = 1;
    /// connect() failed at once: no SYN was sent.
    pub const AT_ONCE: u8 = 2;
    /// The application gave up no sooner than [`super::PATIENCE_NS`] after connect().
    pub const PATIENT: u8 = 4;
    /// Nobody saw what connect() returned: the error is concluded from the port that was not found.
    pub const CONCLUDED: u8 = 8;
    /// The application gave up; the error is what was noted while its process had locked the socket (`sk_err_soft`).
    pub const SOFT: u8 = 16;
    /// The process was ending, by a signal where [`super::Failure::signal`] names one.
    pub const EXITING: u8 = 32;
    /// The ICMP message about it was seen.
    pub const ICMP: u8 = 64;
    /// A segment came that did not fit, and this host answered it with a RST.
    pub const ANSWERED: u8 = 128;
}

/// An attempt given up sooner says nothing of the path: of two that race (RFC 8305), the slower one is
/// dropped after some 250 ms. After this time the first SYN is retransmitted (RFC 6298, 2.1).
pub const PATIENCE_NS: u64 = 1_000_000_000;

/// Attempts to connect that failed, cumulative by process, remote end and error. Emitted for the first one
/// and then at most once in [`SYN_INTERVAL_NS`](super::SYN_INTERVAL_NS), within [`EARLY_DROP_INTERVAL_NS`](super::EARLY_DROP_INTERVAL_NS) of every CPU; polled
/// otherwise.
///
/// `socket` is the last one's; remote port 0 stands for all that found the map full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Failure {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// Attempts since `first_ns`, which tells this count from an earlier one of the same key.
    pub count: u64,
    pub first_ns: u64,
    pub last_ns: u64,
    /// From connect() to the failure, the longest of all; 0 when no connect() was seen.
    pub longest_ns: u64,
    /// Errno (positive); 0 when the application gave up.
    pub error: u32,
    /// SYNs that the last one had sent.
    pub syns: u32,
    /// Bits of [`failure_how`].
    pub how: u8,
    pub unused: [u8; 2],
    /// The signal that ended the process; 0 where it ended by itself, or it is not known.
    pub signal: u8,
    /// Of the last ICMP message about it.
    pub icmp_type: u8,
    pub icmp_code: u8,
    pub pad: [u8; 2],
    /// Who sent it.
    pub icmp_from: [u32; 4],
}

/// Bytes of a [`Failure`] before it told of ICMP; they come first.
pub const FAILURE_BEFORE: usize = 168;

/// Bits of [`Close::flags`].
pub mod close_flag {
    /// A RST of the peer's ended it; this host sent one just before.
    pub const RST_RECEIVED: u8 = 1;
    pub const RST_SENT: u8 = 2;
    /// The application had closed the socket already (`SOCK_DEAD`).
    pub const ORPHAN: u8 = 4;
    /// `SO_LINGER` with a time of 0.
    pub const NO_LINGER: u8 = 8;
    /// No application had accepted it yet (`sk_socket` is NULL).
    pub const NOT_ACCEPTED: u8 = 16;
    /// The peer's FIN came (`SOCK_DONE`).
    pub const FIN_RECEIVED: u8 = 32;
    /// A TCP connection below an MPTCP one, which the application does not hold itself.
    pub const SUBFLOW: u8 = 64;
    /// By a process that was ending (`PF_EXITING`): see [`Close::exit_code`].
    pub const EXITING: u8 = 128;
}

/// Bits of [`Close::hints`].
pub mod close_hint {
    /// The kernel tells of every RST that TCP sends on this host.
    pub const SENDERS_TOLD: u8 = 1;
    /// It was taken away without a word to the peer (`TCP_REPAIR`), to live on elsewhere.
    pub const REPAIR: u8 = 2;
}

/// Values of [`Close::sender`]: how the RST that ended a connection was sent, where this host sent it.
pub mod rst_sender {
    /// Nobody on this host was seen to.
    pub const UNSEEN: u8 = 0;
    /// The socket at the other end did, by its own decision.
    pub const SOCKET: u8 = 1;
    /// Its kernel did, in answer to a segment, of the socket in the state [`Close::sender_state`].
    pub const ANSWER: u8 = 2;
    /// The same, where no socket was found for the segment.
    pub const NO_SOCKET: u8 = 3;
    /// Added to these: between the same ends but for one of them, which is translated.
    pub const TRANSLATED: u8 = 128;
}

/// How an established connection ended: with an error, without a FIN, or with a RST; every end where
/// somebody asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Close {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    pub bytes_received: u64,
    /// How long nothing had passed before the first segment that was not answered, or where all were, before the end;
    /// `u64::MAX` where the kernel does not tell. See [`crate::transition::Pause`].
    pub idle_ns: u64,
    /// `sk_err` and `sk_err_soft` (errno, positive).
    pub error: u32,
    pub soft_error: u32,
    /// `enum sk_rst_reason` of a RST sent before; `u32::MAX` when the kernel gives none.
    pub reason: u32,
    /// Received and not read.
    pub unread: u32,
    pub old_state: u8,
    /// Bits of [`close_flag`].
    pub flags: u8,
    /// `task_struct.exit_code` of the process that was ending: the signal in the low 7 bits, the status above 8.
    pub exit_code: u16,
    /// How, and from which state, this host sent the RST that was received: see [`rst_sender`].
    pub sender: u8,
    pub sender_state: u8,
    /// Bits of [`close_hint`].
    pub hints: u8,
    /// 1 where the socket had a route that it sent by, 2 where it had none; 0 where the kernel does not tell.
    pub routed: u8,
    /// Since the first segment that was not answered was sent; `u64::MAX` where there is none. This and what follows
    /// earlier recordings do not have.
    pub unanswered_ns: u64,
    /// `enum sk_rst_reason` with which it was sent, and the namespace that it was sent in.
    pub sender_reason: u32,
    pub sender_netns: u32,
}

/// A keepalive or zero-window probe (`tcp_write_wakeup`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Probe {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    /// Return value of `tcp_write_wakeup`: 0 sent, < 0 an error, > 0 a queue dropped it (`net_xmit_eval`).
    pub result: i32,
    /// 1 keepalive, 0 window probe.
    pub keepalive: u8,
    pub pad: [u8; 3],
}
