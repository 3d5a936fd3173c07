//! The records that cross the ring, byte for byte as the eBPF side writes them.
//!
//! Every record starts with a [`Header`] whose `kind` says which struct follows; all are flat,
//! widest field first, without implicit padding (`IntoBytes` refuses it at compile time, and the
//! verifier refuses uninitialised stack). Integers are in the host's byte order; addresses are in
//! network order, IPv4 as v4-mapped IPv6 (RFC 4291, 2.5.5.2), ports are in host order.
//!
//! Written by `tracer-ebpf` (and, where a record says so, by userspace), read by `conntracer::decode`.

mod accept_queue;
mod bind;
mod connection;
mod dropped;
mod early_drop;
mod idle;
mod listener;
mod receive;
mod retransmit;
mod seed;
mod snapshot;
mod userspace;

use zerocopy::{FromBytes, Immutable, IntoBytes};

pub use self::{
    accept_queue::*, bind::*, connection::*, dropped::*, early_drop::*, idle::*, listener::*,
    receive::*, retransmit::*, seed::*, snapshot::*, userspace::*,
};

/// What of a record its reader must know beforehand.
pub trait Record: IntoBytes + Immutable {
    /// The value of [`Header::kind`].
    const KIND: u16;
}

/// A line a record: its kind, its number, which stays its own for ever, and its bytes.
macro_rules! records {
    ($($kind:ident = $number:literal: $record:ident, $bytes:literal;)*) => {
        /// What a record is about; the value of [`Header::kind`].
        pub mod kind {
            $(#[doc = concat!("See [`super::", stringify!($record), "`].")] pub const $kind: u16 = $number;)*
        }

        $(impl Record for $record {
            const KIND: u16 = kind::$kind;
        })*

        const _: () = {
            $(assert!(size_of::<$record>() == $bytes && $bytes <= MAX_RECORD);)*
        };
    };
}

records! {
    CONNECT = 1: Connect, 120;
    ACCEPT = 2: Accept, 120;
    STATE = 3: State, 128;
    RETRANSMIT = 4: Retransmit, 224;
    SYNACK = 5: SynAck, 144;
    SYN = 6: Syn, 344;
    RESET = 7: Reset, 128;
    DROP = 8: Drop, 144;
    PROBE = 9: Probe, 208;
    SNAPSHOT = 10: Snapshot, 248;
    TICK = 11: Tick, 16;
    LOSS = 12: Loss, 32;
    SOURCES = 13: Sources, 424;
    EARLY_DROP = 14: EarlyDrop, 208;
    NETNS = 15: Netns, 544;
    SEED = 16: Seed, 256;
    PROCESS = 17: Process, 448;
    HOLDERS = 18: Holders, 408;
    RETRANSMITS = 19: Retransmits, 400;
    UNDO = 20: Undo, 176;
    FAILURE = 21: Failure, 184;
    CLOSE = 22: Close, 256;
    IDLE = 23: Idle, 216;
    SEEDED = 24: Seeded, 40;
    IDLE_TOTALS = 25: IdleTotals, 40;
    HALF_CLOSED = 27: HalfClosed, 72;
    CLOCK = 28: Clock, 24;
    CHECKPOINT = 29: Checkpoint, 16;
    ACCEPTOR = 30: Acceptor, 184;
    NETNS_FACTS = 31: NetnsFacts, 144;
    ACCEPT_QUEUE = 40: AcceptQueue, 216;
    RECEIVE = 45: Receive, 160;
    BIND = 46: Bind, 160;
    BIND_HOLDERS = 47: BindHolders, 336;
    BESIDE = 50: Beside, 64;
    DROPPED = 60: Dropped, 208;
}

/// Where a socket's owner was learned; DESIGN.md's `owner_source`.
pub mod owner_source {
    pub const UNKNOWN: u8 = 0;
    pub const CONNECT: u8 = 1;
    pub const ACCEPT: u8 = 2;
    pub const LISTENER: u8 = 3;
    pub const SEEDED: u8 = 4;
    /// Its descriptor was passed to the owner, or the owner was seen to use what had been another's.
    pub const PASSED: u8 = 5;
    /// The owner, however it was learned, has forked since: it or descendants of it hold the socket.
    pub const FORKED: u8 = 6;
}

/// Which side opened a connection.
pub mod role {
    pub const UNKNOWN: u8 = 0;
    pub const ACTIVE: u8 = 1;
    pub const PASSIVE: u8 = 2;
    pub const LISTENER: u8 = 3;
}

/// Bits of [`Socket::flags`].
pub mod socket_flag {
    /// Its birth was not seen: it is older than the tracer.
    pub const OLDER: u32 = 1;
}

/// The first 16 bytes of every record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Header {
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC), nanoseconds.
    pub ktime_ns: u64,
    /// One of [`kind`].
    pub kind: u16,
    /// Bytes of the whole record, this header included.
    pub size: u16,
    pub cpu: u32,
}

impl Header {
    /// The header of a `T`.
    #[must_use]
    #[inline]
    pub const fn of<T: Record>(ktime_ns: u64, cpu: u32) -> Self {
        Self {
            ktime_ns,
            kind: T::KIND,
            #[expect(
                clippy::cast_possible_truncation,
                reason = "no record is larger than MAX_RECORD"
            )]
            size: size_of::<T>() as u16,
            cpu,
        }
    }
}

/// The process a socket belongs to, as last learned in a context that can know (never the task that
/// happened to be interrupted). All zero when `source` is `UNKNOWN`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Owner {
    /// `bpf_get_current_cgroup_id`: the inode of the cgroup v2 directory.
    pub cgroup_id: u64,
    /// `task_struct.comm` of the thread group's leader, NUL-padded, any bytes.
    pub comm: [u8; 16],
    /// Thread group id (what user space calls the pid) in the initial pid namespace.
    pub pid: u32,
    pub uid: u32,
    /// One of [`owner_source`].
    pub source: u8,
    /// Processes that hold the socket, this one among them, as a search found; 0 when none was made since
    /// it became this one's, 255 for more.
    pub holders: u8,
    pub pad: [u8; 2],
    /// When the process started: the low 32 bits of `start_boottime` in milliseconds. With the pid it is
    /// an identity, for pids are reused. 0 when not known.
    pub started_ms: u32,
}

/// Which socket, and where it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Socket {
    /// Address of the `struct sock`. Reused by the kernel: an identity only with `born_ns`.
    pub sk: u64,
    /// When the eBPF side first saw the socket (its birth, or mid-life when `role` is unknown);
    /// 0 when it never did.
    pub born_ns: u64,
    /// Network order words; IPv4 is `[0, 0, htonl(0xffff), addr]`.
    pub local_addr: [u32; 4],
    pub remote_addr: [u32; 4],
    /// Inode of the network namespace (`ns.inum`).
    pub netns: u32,
    pub local_port: u16,
    pub remote_port: u16,
    /// `AF_INET` or `AF_INET6` (a dual-stack listener is `AF_INET6` with an any-address).
    pub family: u16,
    /// `skc_state` at the time of the record.
    pub state: u8,
    /// One of [`role`].
    pub role: u8,
    /// Bits of [`socket_flag`].
    pub flags: u32,
}

/// The fields of `struct tcp_sock` and `struct inet_connection_sock` that detectors judge by.
/// A field the running kernel does not have is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Tcp {
    pub bytes_acked: u64,
    pub bytes_retrans: u64,
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub write_seq: u32,
    pub rcv_nxt: u32,
    /// Bytes of window the peer last advertised.
    pub snd_wnd: u32,
    pub packets_out: u32,
    pub lost_out: u32,
    pub retrans_out: u32,
    /// Segments retransmitted in the socket's life (`tcp_sock.total_retrans`).
    pub total_retrans: u32,
    /// Data segments sent in the socket's life, retransmissions included.
    pub data_segs_out: u32,
    /// Smoothed round-trip time, microseconds (`srtt_us >> 3`).
    pub srtt_us: u32,
    /// Current retransmission timeout in jiffies (`icsk_rto`).
    pub rto_jiffies: u32,
    pub mss: u32,
    /// `TCP_USER_TIMEOUT`, milliseconds; 0 when not set.
    pub user_timeout_ms: u32,
    /// Consecutive unanswered retransmission timeouts (`icsk_retransmits`).
    pub retransmits: u8,
    pub backoff: u8,
    /// Unanswered keepalive or window probes (`icsk_probes_out`).
    pub probes_out: u8,
    /// One of [`crate::tcp::ca`].
    pub ca_state: u8,
    /// One of [`crate::tcp::pending`].
    pub pending: u8,
    /// 1 when `SO_KEEPALIVE` is set (`SOCK_KEEPOPEN`), 0 when not, 255 when not known.
    pub keepalive: u8,
    /// `sk_shutdown`: 1 receive, 2 send.
    pub shutdown: u8,
    /// 1 when the application has closed the socket (`SOCK_DEAD`).
    pub orphan: u8,
}

/// The largest record. What is larger than half the 512-byte BPF stack is emitted from its map.
pub const MAX_RECORD: usize = 544;

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Socket>() == 64);
    assert!(size_of::<Owner>() == 40);
    assert!(size_of::<Tcp>() == 80);
};
