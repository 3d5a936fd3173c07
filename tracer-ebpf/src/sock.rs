//! The only file that reads kernel memory: sockets, request sockets and packets, by the offsets the
//! user half found in the running kernel's BTF.
//!
//! Everything goes through `bpf_probe_read_kernel`: it serves kprobes and trampolines alike, tolerates
//! NULL and freed memory, and is not limited to the type BTF gives a pointer.

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_uid_gid, bpf_probe_read_kernel,
};
use conntracer_common::{
    layout::ABSENT,
    record::{Owner, Socket, Tcp},
    tcp::{AF_INET, AF_INET6, IPPROTO_TCP, state},
};

/// `SOCK_KEEPOPEN` in `enum sock_flags` (include/net/sock.h); the same in 5.10 … 7.x.
const SOCK_KEEPOPEN: u32 = 3;

/// Reads a `T` at `offset` from `base`; zero when the field is absent or the memory unreadable.
#[inline(always)]
pub fn read<T: Copy + Default>(base: u64, offset: u16) -> T {
    if offset == ABSENT {
        return T::default();
    }
    // SAFETY: bpf_probe_read_kernel accepts any address and reports a fault.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.unwrap_or_default()
}

/// Reads a field by its name in `KernelLayout`.
macro_rules! field {
    ($base:expr, $field:ident: $ty:ty) => {
        $crate::sock::read::<$ty>($base, $crate::maps::global!(LAYOUT.$field))
    };
}
pub(crate) use field;

/// Whether `sk` is TCP: the state tracepoint also fires for SCTP, DCCP and MPTCP.
#[inline(always)]
pub fn is_tcp(sk: u64) -> bool {
    field!(sk, sk_protocol: u16) == IPPROTO_TCP
}

/// The inode of the network namespace of a `struct net`.
#[inline(always)]
pub fn net_inum(net: u64) -> u32 {
    field!(net, net_inum: u32)
}

/// The `struct net` of any kind of socket.
#[inline(always)]
pub fn net_of(sk: u64) -> u64 {
    field!(sk, skc_net: u64)
}

/// v4-mapped form of an IPv4 address in network order.
#[inline(always)]
pub const fn mapped(addr: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), addr]
}

/// Fills the identity of a full, request or time-wait socket: what `struct sock_common` holds.
#[inline(always)]
pub fn common(sk: u64) -> Socket {
    let family = field!(sk, skc_family: u16);
    let (local_addr, remote_addr) = if family == AF_INET6 {
        (field!(sk, skc_v6_rcv_saddr: [u32; 4]), field!(sk, skc_v6_daddr: [u32; 4]))
    } else {
        (mapped(field!(sk, skc_rcv_saddr: u32)), mapped(field!(sk, skc_daddr: u32)))
    };
    Socket {
        sk,
        born_ns: 0,
        local_addr,
        remote_addr,
        netns: net_inum(net_of(sk)),
        local_port: field!(sk, skc_num: u16),
        remote_port: u16::from_be(field!(sk, skc_dport: u16)),
        family,
        state: field!(sk, skc_state: u8),
        role: 0,
        pad: 0,
    }
}

/// [`common`] for a full socket, whose port survives in `inet_sport` when `skc_num` is already
/// released (at the change to CLOSE).
#[inline(always)]
pub fn full(sk: u64) -> Socket {
    let mut socket = common(sk);
    if socket.local_port == 0 {
        socket.local_port = u16::from_be(field!(sk, inet_sport: u16));
    }
    if socket.state == state::LISTEN {
        socket.remote_addr = [0; 4];
        socket.remote_port = 0;
    }
    socket
}

/// The detectors' fields of a full socket.
#[inline(always)]
pub fn tcp(sk: u64) -> Tcp {
    let flags = field!(sk, skc_flags: u64);
    Tcp {
        bytes_acked: field!(sk, bytes_acked: u64),
        bytes_retrans: field!(sk, bytes_retrans: u64),
        snd_una: field!(sk, snd_una: u32),
        snd_nxt: field!(sk, snd_nxt: u32),
        write_seq: field!(sk, write_seq: u32),
        rcv_nxt: field!(sk, rcv_nxt: u32),
        snd_wnd: field!(sk, snd_wnd: u32),
        packets_out: field!(sk, packets_out: u32),
        lost_out: field!(sk, lost_out: u32),
        retrans_out: field!(sk, retrans_out: u32),
        total_retrans: field!(sk, total_retrans: u32),
        data_segs_out: field!(sk, data_segs_out: u32),
        srtt_us: field!(sk, srtt_us: u32) >> 3,
        rto_jiffies: field!(sk, icsk_rto: u32),
        mss: field!(sk, mss_cache: u32),
        user_timeout_ms: field!(sk, icsk_user_timeout: u32),
        retransmits: field!(sk, icsk_retransmits: u8),
        backoff: field!(sk, icsk_backoff: u8),
        probes_out: field!(sk, icsk_probes_out: u8),
        ca_state: field!(sk, icsk_ca_state: u8) & 0x1f,
        pending: field!(sk, icsk_pending: u8),
        keepalive: ((flags >> SOCK_KEEPOPEN) & 1) as u8,
        shutdown: field!(sk, sk_shutdown: u8) & 3,
        pad: 0,
    }
}

/// The task running now. Only for hooks that run in the owner's context.
#[inline(always)]
pub fn current(source: u8) -> Owner {
    // SAFETY: helper without preconditions.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    Owner {
        cgroup_id,
        comm: bpf_get_current_comm().unwrap_or_default(),
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        source,
        pad: [0; 7],
    }
}

/// What a packet says of itself, as its receiver sees it.
pub struct Packet {
    pub local_addr: [u32; 4],
    pub remote_addr: [u32; 4],
    pub local_port: u16,
    pub remote_port: u16,
    pub family: u16,
    pub seq: u32,
    pub flags: u8,
}

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// Whether an skb carries IP and has passed through `tcp_v4/v6_rcv`, which clear `skb->dev`.
#[inline(always)]
pub fn is_consumed_by_tcp(skb: u64) -> bool {
    if field!(skb, skb_dev: u64) != 0 {
        return false;
    }
    let protocol = u16::from_be(field!(skb, skb_protocol: u16));
    protocol == ETH_P_IP || protocol == ETH_P_IPV6
}

/// Parses the IP and TCP headers of an skb; `None` for anything but TCP.
///
/// `transport_header` may be unset where packets are dropped, so it is computed.
#[inline(always)]
pub fn packet(skb: u64) -> Option<Packet> {
    let protocol = u16::from_be(field!(skb, skb_protocol: u16));
    let network = field!(skb, skb_network_header: u16);
    if network == 0 || network == u16::MAX {
        return None;
    }
    let ip = field!(skb, skb_head: u64) + u64::from(network);
    let (local_addr, remote_addr, family, th) = if protocol == ETH_P_IP {
        if read::<u8>(ip, 9) as u16 != IPPROTO_TCP {
            return None;
        }
        let ihl = u64::from(read::<u8>(ip, 0) & 0x0f) * 4;
        (mapped(read::<u32>(ip, 16)), mapped(read::<u32>(ip, 12)), AF_INET, ip + ihl)
    } else if protocol == ETH_P_IPV6 {
        // Extension headers before TCP are rare enough to be left alone: such a packet is not ours.
        if read::<u8>(ip, 6) as u16 != IPPROTO_TCP {
            return None;
        }
        (read::<[u32; 4]>(ip, 24), read::<[u32; 4]>(ip, 8), AF_INET6, ip + 40)
    } else {
        return None;
    };
    Some(Packet {
        local_addr,
        remote_addr,
        local_port: u16::from_be(read::<u16>(th, 2)),
        remote_port: u16::from_be(read::<u16>(th, 0)),
        family,
        seq: u32::from_be(read::<u32>(th, 4)),
        flags: read::<u8>(th, 13),
    })
}

/// The `struct net` a received packet belongs to: of its device, or of its route's once TCP has taken
/// the device away; 0 when neither is there.
#[inline(always)]
pub fn net_of_packet(skb: u64) -> u64 {
    let mut dev = field!(skb, skb_dev: u64);
    if dev == 0 {
        // The low bit is SKB_DST_NOREF (include/linux/skbuff.h).
        let dst = field!(skb, skb_refdst: u64) & !1;
        if dst != 0 {
            dev = field!(dst, dst_dev: u64);
        }
    }
    if dev == 0 { 0 } else { field!(dev, dev_net: u64) }
}
