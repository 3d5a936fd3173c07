//! The only file that reads kernel memory: sockets, request sockets and packets, by the offsets that
//! userspace found in the running kernel's BTF; and what the kernel tells of now.
//!
//! Everything goes through `bpf_probe_read_kernel`: it serves kprobes and trampolines alike, tolerates
//! NULL and freed memory, and is not limited to the type BTF gives a pointer.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated};
use conntracer_common::{
    layout::ABSENT,
    record::{Owner, Socket, Tcp},
    tcp::{AF_INET, AF_INET6, IPPROTO_TCP, flag, state},
};

use crate::globals::global;

/// Bits of `skc_flags`: `enum sock_flags` (include/net/sock.h), the same in 5.10 … 7.x.
const SOCK_KEEPOPEN: u32 = 3;
pub(crate) const SOCK_DEAD: u64 = 1 << 0;
pub(crate) const SOCK_DONE: u64 = 1 << 1;
pub(crate) const SOCK_LINGER: u64 = 1 << 4;

/// Reads a `T` at `offset` from `base`; zero when the field is absent or the memory unreadable.
///
/// Without a branch on what the helper returns: the verifier would walk all that follows once for
/// either way, for every field.
#[inline(always)]
pub(crate) fn read<T: Copy + Default>(base: u64, offset: u16) -> T {
    if offset == ABSENT {
        return T::default();
    }
    let mut place = MaybeUninit::<T>::uninit();
    // SAFETY: `place` is writable; the helper accepts any source, and on a fault zeroes `place`
    // (kernel/trace/bpf_trace.c, `bpf_probe_read_kernel_common`), so it is initialised either way.
    unsafe {
        generated::bpf_probe_read_kernel(
            place.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            (base + u64::from(offset)) as *const core::ffi::c_void,
        );
        place.assume_init()
    }
}

/// Reads a `T` straight into its place in a record: no copy on a stack that has none to spare.
#[inline(always)]
pub(crate) fn read_into<T: Default>(place: &mut T, base: u64, offset: u16) {
    if offset == ABSENT {
        *place = T::default();
        return;
    }
    // SAFETY: `place` is writable; the helper accepts any source and zeroes `place` on a fault
    // (kernel/trace/bpf_trace.c, `bpf_probe_read_kernel_common`).
    unsafe {
        generated::bpf_probe_read_kernel(
            core::ptr::from_mut(place).cast(),
            size_of::<T>() as u32,
            (base + u64::from(offset)) as *const core::ffi::c_void,
        );
    }
}

/// Reads a field by its name in `KernelLayout`.
macro_rules! field {
    ($base:expr, $field:ident: $ty:ty) => {
        $crate::sock::read::<$ty>($base, $crate::globals::global!(LAYOUT.$field))
    };
}
pub(crate) use field;

/// Reads a field by its name straight into its place.
macro_rules! field_into {
    ($base:expr, $field:ident, $place:expr) => {
        $crate::sock::read_into($place, $base, $crate::globals::global!(LAYOUT.$field))
    };
}
pub(crate) use field_into;

/// Loads a field through a pointer that the verifier knows: an argument of a BTF tracepoint, within
/// the structure BTF says it points to. A tenth of the cost of a helper call, for the hottest programs.
/// Numbers only: 5.10 takes a pointer loaded this way for never NULL, and drops the branch that asks.
macro_rules! load {
    ($pointer:expr, $field:ident: $ty:ty) => {
        // SAFETY: the verifier checks the access against the structure; a fault reads zero.
        unsafe {
            core::ptr::read_volatile(
                ($pointer + u64::from($crate::globals::global!(LAYOUT.$field))) as *const $ty,
            )
        }
    };
}
pub(crate) use load;

/// How the fields of a socket are read.
pub(crate) trait Reach {
    /// A field at its offset; zero where the kernel has none.
    fn get<T: Copy + Default>(base: u64, offset: u16) -> T;

    /// The same, straight into its place.
    fn get_into<T: Copy + Default>(place: &mut T, base: u64, offset: u16);
}

/// Of any address: by the helper.
pub(crate) struct Anywhere;

/// Of what the verifier knows the type of, an argument of a BTF tracepoint or the running task: by a load (see
/// [`load`]), as far as that type goes.
pub(crate) struct Typed;

impl Reach for Anywhere {
    #[inline(always)]
    fn get<T: Copy + Default>(base: u64, offset: u16) -> T {
        read(base, offset)
    }

    #[inline(always)]
    fn get_into<T: Copy + Default>(place: &mut T, base: u64, offset: u16) {
        read_into(place, base, offset);
    }
}

impl Reach for Typed {
    #[inline(always)]
    fn get<T: Copy + Default>(base: u64, offset: u16) -> T {
        if offset == ABSENT {
            return T::default();
        }
        // SAFETY: as in `load`.
        unsafe { core::ptr::read_volatile((base + u64::from(offset)) as *const T) }
    }

    #[inline(always)]
    fn get_into<T: Copy + Default>(place: &mut T, base: u64, offset: u16) {
        *place = Self::get(base, offset);
    }
}

/// The `struct tcp_sock` of a full TCP socket (of a BTF tracepoint), whose fields [`load`] then reads: one call
/// for all of them. 0 for any other.
#[inline(always)]
pub(crate) fn tcp_sock(sk: u64) -> u64 {
    // SAFETY: the verifier checks what `sk` points to.
    unsafe { generated::bpf_skc_to_tcp_sock(sk as *mut core::ffi::c_void) as u64 }
}

/// The inode of the network namespace of a `struct net`.
#[inline(always)]
pub(crate) fn net_inum(net: u64) -> u32 {
    field!(net, net_inum: u32)
}

/// Whether the application has closed a full socket.
#[inline(always)]
pub(crate) fn is_orphan<R: Reach>(sk: u64) -> bool {
    R::get::<u64>(sk, global!(LAYOUT.skc_flags)) & SOCK_DEAD != 0
}

/// The `struct net` of any kind of socket.
#[inline(always)]
pub(crate) fn net_of(sk: u64) -> u64 {
    field!(sk, skc_net: u64)
}

/// v4-mapped form of an IPv4 address in network order.
#[inline(always)]
pub(crate) const fn mapped(addr: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), addr]
}

/// Fills the identity of a full, request or time-wait socket: what `struct sock_common` holds.
#[inline(always)]
pub(crate) fn fill_common<R: Reach>(sk: u64, socket: &mut Socket) {
    socket.sk = sk;
    socket.family = R::get(sk, global!(LAYOUT.skc_family));
    if socket.family == AF_INET6 {
        R::get_into(&mut socket.local_addr, sk, global!(LAYOUT.skc_v6_rcv_saddr));
        R::get_into(&mut socket.remote_addr, sk, global!(LAYOUT.skc_v6_daddr));
    } else {
        socket.local_addr = mapped(R::get(sk, global!(LAYOUT.skc_rcv_saddr)));
        socket.remote_addr = mapped(R::get(sk, global!(LAYOUT.skc_daddr)));
    }
    socket.netns = netns_of::<R>(sk);
    R::get_into(&mut socket.local_port, sk, global!(LAYOUT.skc_num));
    socket.remote_port = u16::from_be(R::get(sk, global!(LAYOUT.skc_dport)));
    R::get_into(&mut socket.state, sk, global!(LAYOUT.skc_state));
}

/// The inode of a socket's network namespace.
#[inline(always)]
pub(crate) fn netns_of<R: Reach>(sk: u64) -> u32 {
    R::get(
        R::get(sk, global!(LAYOUT.skc_net)),
        global!(LAYOUT.net_inum),
    )
}

/// [`fill_common`] for a full socket, whose port survives in `inet_sport` when `skc_num` is already
/// released (at the change to CLOSE).
#[inline(always)]
pub(crate) fn fill_full<R: Reach>(sk: u64, socket: &mut Socket) {
    fill_common::<R>(sk, socket);
    if socket.local_port == 0 {
        socket.local_port = u16::from_be(field!(sk, inet_sport: u16));
    }
    if socket.state == state::LISTEN {
        socket.remote_addr = [0; 4];
        socket.remote_port = 0;
    }
}

/// Fills the detectors' fields of a full socket.
#[inline(always)]
pub(crate) fn fill_tcp(sk: u64, tcp: &mut Tcp) {
    field_into!(sk, bytes_acked, &mut tcp.bytes_acked);
    field_into!(sk, bytes_retrans, &mut tcp.bytes_retrans);
    field_into!(sk, snd_una, &mut tcp.snd_una);
    field_into!(sk, snd_nxt, &mut tcp.snd_nxt);
    field_into!(sk, write_seq, &mut tcp.write_seq);
    field_into!(sk, rcv_nxt, &mut tcp.rcv_nxt);
    field_into!(sk, snd_wnd, &mut tcp.snd_wnd);
    field_into!(sk, packets_out, &mut tcp.packets_out);
    field_into!(sk, lost_out, &mut tcp.lost_out);
    field_into!(sk, retrans_out, &mut tcp.retrans_out);
    field_into!(sk, total_retrans, &mut tcp.total_retrans);
    field_into!(sk, data_segs_out, &mut tcp.data_segs_out);
    field_into!(sk, srtt_us, &mut tcp.srtt_us);
    tcp.srtt_us >>= 3;
    field_into!(sk, icsk_rto, &mut tcp.rto_jiffies);
    field_into!(sk, mss_cache, &mut tcp.mss);
    field_into!(sk, icsk_user_timeout, &mut tcp.user_timeout_ms);
    field_into!(sk, icsk_retransmits, &mut tcp.retransmits);
    field_into!(sk, icsk_backoff, &mut tcp.backoff);
    field_into!(sk, icsk_probes_out, &mut tcp.probes_out);
    field_into!(sk, icsk_ca_state, &mut tcp.ca_state);
    tcp.ca_state &= 0x1f;
    field_into!(sk, icsk_pending, &mut tcp.pending);
    let flags = field!(sk, skc_flags: u64);
    tcp.keepalive = ((flags >> SOCK_KEEPOPEN) & 1) as u8;
    tcp.orphan = (flags & SOCK_DEAD) as u8;
    field_into!(sk, sk_shutdown, &mut tcp.shutdown);
    tcp.shutdown &= 3;
}

/// Makes the process running now the owner. Only for hooks that run in the owner's context.
///
/// A kernel thread leaves it unknown: it acts for somebody else (io_uring's workers before 5.12) or for the
/// kernel, and nobody could mend what is named after it. Named is the process, not the thread of it that
/// runs: the name `ps` and `ss` show, of io_uring's workers too.
#[inline(always)]
pub(crate) fn fill_current(owner: &mut Owner, source: u8) {
    // SAFETY: helper without preconditions.
    owner.cgroup_id = unsafe { generated::bpf_get_current_cgroup_id() };
    owner.pid = current_pid();
    owner.uid = bpf_get_current_uid_gid() as u32;
    // Chosen at load: loads cost a fraction of four calls of a helper.
    let is_kernel = if global!(FACTS.typed_task) != 0 {
        // SAFETY: helper without preconditions.
        let task = unsafe { generated::bpf_get_current_task_btf() } as u64;
        fill_leader::<Typed>(owner, task);
        kthread_bit::<Typed>(task)
    } else {
        let task = current_task();
        fill_leader::<Anywhere>(owner, task);
        kthread_bit::<Anywhere>(task)
    };
    // Arithmetic, not a branch: the verifier would walk all that follows once for either way.
    owner.source = source & is_kernel.wrapping_sub(1);
    owner.holders = 0;
}

const _: () = assert!(core::mem::offset_of!(Owner, comm).is_multiple_of(align_of::<u64>()));

/// What the leader of a task's thread group tells of the process.
#[inline(always)]
fn fill_leader<R: Reach>(owner: &mut Owner, task: u64) {
    let leader = R::get(task, global!(LAYOUT.task_leader));
    // SAFETY: as many bytes, at an address for words (above). Bytes would be loaded one by one.
    let comm = unsafe { &mut *owner.comm.as_mut_ptr().cast::<[u64; 2]>() };
    R::get_into(comm, leader, global!(LAYOUT.task_comm));
    let started: u64 = R::get(leader, global!(LAYOUT.task_started));
    owner.started_ms = (started / 1_000_000) as u32;
}

/// 1 for a thread of the kernel's own (`PF_KTHREAD`).
#[inline(always)]
fn kthread_bit<R: Reach>(task: u64) -> u8 {
    const PF_KTHREAD_BIT: u32 = 21;
    let flags: u32 = R::get(task, global!(LAYOUT.task_flags));
    (flags >> PF_KTHREAD_BIT) as u8 & 1
}

/// Whether a thread of the kernel's own is running now.
#[inline(always)]
pub(crate) fn is_kernel() -> bool {
    kthread_bit::<Anywhere>(current_task()) != 0
}

/// What [`exit_code_of_current`] says of a process that is not ending.
pub(crate) const RUNS: u32 = u32::MAX;

/// With which code the process running now ends, where it does (`PF_EXITING`): what `do_exit` stores before it closes
/// the files.
#[inline(always)]
pub(crate) fn exit_code_of_current() -> u32 {
    const PF_EXITING: u32 = 4;
    let task = current_task();
    let flags: u32 = field!(task, task_flags: u32);
    if flags & PF_EXITING == 0 {
        return RUNS;
    }
    field!(task, task_exit_code: u32) & 0xffff
}

/// The `struct task_struct` running now.
#[inline(always)]
pub(crate) fn current_task() -> u64 {
    // SAFETY: helper without preconditions.
    unsafe { generated::bpf_get_current_task() }
}

/// CLOCK_MONOTONIC.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: helper without preconditions.
    unsafe { generated::bpf_ktime_get_ns() }
}

/// `tcp_jiffies32`.
#[inline(always)]
pub(crate) fn now_jiffies() -> u32 {
    // SAFETY: helper without preconditions.
    unsafe { generated::bpf_jiffies64() as u32 }
}

/// The CPU that this runs on.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: helper without preconditions.
    unsafe { generated::bpf_get_smp_processor_id() }
}

/// The thread running now, and its process.
#[inline(always)]
pub(crate) fn current_thread() -> u64 {
    bpf_get_current_pid_tgid()
}

/// The process running now.
#[inline(always)]
pub(crate) fn current_pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Where a `struct sockaddr` points: address and port.
#[inline(always)]
pub(crate) fn destination(sockaddr: u64) -> ([u32; 4], u16) {
    // Both families begin with family and port; IPv6 has its flow label before the address.
    let addr = if read::<u16>(sockaddr, 0) == AF_INET6 {
        read(sockaddr, 8)
    } else {
        mapped(read(sockaddr, 4))
    };
    (addr, u16::from_be(read(sockaddr, 2)))
}

/// The same for any process: of a `struct task_struct`.
#[inline(always)]
pub(crate) fn fill_task(owner: &mut Owner, task: u64, source: u8) {
    let css_set = field!(task, task_cgroups: u64);
    let cgroup = field!(css_set, css_set_cgroup: u64);
    let node = field!(cgroup, cgroup_node: u64);
    field_into!(node, node_id, &mut owner.cgroup_id);
    fill_leader::<Anywhere>(owner, task);
    field_into!(task, task_tgid, &mut owner.pid);
    owner.uid = field!(field!(task, task_cred: u64), cred_uid: u32);
    owner.source = source;
    owner.holders = 0;
}

/// What a packet says of itself, as its receiver sees it.
pub(crate) struct Packet {
    pub(crate) local_addr: [u32; 4],
    pub(crate) remote_addr: [u32; 4],
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
    pub(crate) family: u16,
    pub(crate) seq: u32,
    pub(crate) flags: u8,
}

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// Whether an skb (of a BTF tracepoint) carries IP and has passed through `tcp_v4/v6_rcv`, which clear
/// `skb->dev`.
#[inline(always)]
pub(crate) fn is_consumed_by_tcp(skb: u64) -> bool {
    let protocol = u16::from_be(load!(skb, skb_protocol: u16));
    (protocol == ETH_P_IP || protocol == ETH_P_IPV6) && field!(skb, skb_dev: u64) == 0
}

/// Whether a packet is IPv6's.
#[inline(always)]
pub(crate) fn is_v6(skb: u64) -> bool {
    u16::from_be(field!(skb, skb_protocol: u16)) == ETH_P_IPV6
}

/// Where a packet comes from; all zero for anything but IP.
#[inline(always)]
pub(crate) fn source_of(skb: u64) -> [u32; 4] {
    let ip = field!(skb, skb_head: u64) + u64::from(field!(skb, skb_network_header: u16));
    match u16::from_be(field!(skb, skb_protocol: u16)) {
        ETH_P_IP => mapped(read(ip, 12)),
        ETH_P_IPV6 => read(ip, 8),
        _ => [0; 4],
    }
}

/// Whether a segment ends the request it is for: a RST, or a SYN that is not the request's own
/// (`tcp_check_req`). Only behind `tcp_v4/v6_rcv`, which fill `TCP_SKB_CB`.
#[inline(always)]
pub(crate) fn ends_request(skb: u64, rcv_isn: u32) -> bool {
    let cb = skb + u64::from(global!(LAYOUT.skb_cb));
    let flags = field!(cb, cb_tcp_flags: u8);
    flags & flag::RST != 0 || (flags & flag::SYN != 0 && field!(cb, cb_seq: u32) != rcv_isn)
}

/// An IPv4 header without options (RFC 791) and the first 16 bytes of a TCP header (RFC 9293), in words.
type Ipv4 = [u32; 9];
/// The same of IPv6 (RFC 8200).
type Ipv6 = [u32; 14];
/// The first 16 bytes of a TCP header, in words.
type TcpHead = [u32; 4];

/// Parses the IP and TCP headers of an skb; `None` for anything but TCP. One read gets both: where a packet ends
/// before, `skb_shared_info` follows it.
///
/// `transport_header` may be unset where packets are dropped, so it is computed.
#[inline(always)]
pub(crate) fn packet(skb: u64) -> Option<Packet> {
    let protocol = field!(skb, skb_protocol: u16);
    let network = field!(skb, skb_network_header: u16);
    parse(protocol, field!(skb, skb_head: u64), network)
}

/// [`packet`] for an argument of a BTF tracepoint.
#[inline(always)]
pub(crate) fn packet_of_tracepoint(skb: u64) -> Option<Packet> {
    let protocol = load!(skb, skb_protocol: u16);
    let network = load!(skb, skb_network_header: u16);
    parse(protocol, load!(skb, skb_head: u64), network)
}

/// The length of an IPv4 header without options.
const IPV4_WORDS: u32 = 5;

#[inline(always)]
fn parse(protocol_be: u16, head: u64, network: u16) -> Option<Packet> {
    if network == 0 || network == u16::MAX {
        return None;
    }
    let protocol = u16::from_be(protocol_be);
    let ip = head + u64::from(network);
    let (local_addr, remote_addr, family, tcp): (_, _, _, TcpHead) = if protocol == ETH_P_IP {
        let header = read::<Ipv4>(ip, 0);
        // Bytes 8..12: time to live, protocol, checksum.
        if (u32::from_be(header[2]) >> 16) as u8 != IPPROTO_TCP as u8 {
            return None;
        }
        // Bytes 4..8: identification, fragment offset. Only the first fragment has a TCP header.
        if u32::from_be(header[1]) & 0x1fff != 0 {
            return None;
        }
        let words = (u32::from_be(header[0]) >> 24) & 0x0f;
        let tcp = if words == IPV4_WORDS {
            [header[5], header[6], header[7], header[8]]
        } else {
            read::<TcpHead>(ip + u64::from(words) * 4, 0)
        };
        (mapped(header[4]), mapped(header[3]), AF_INET, tcp)
    } else if protocol == ETH_P_IPV6 {
        let header = read::<Ipv6>(ip, 0);
        // Bytes 4..8: length, next header, hop limit. Extension headers before TCP are rare enough to
        // be left alone: such a packet is not ours.
        if (u32::from_be(header[1]) >> 8) as u8 != IPPROTO_TCP as u8 {
            return None;
        }
        let source = [header[2], header[3], header[4], header[5]];
        let destination = [header[6], header[7], header[8], header[9]];
        let tcp = [header[10], header[11], header[12], header[13]];
        (destination, source, AF_INET6, tcp)
    } else {
        return None;
    };
    let ports = u32::from_be(tcp[0]);
    Some(Packet {
        local_addr,
        remote_addr,
        local_port: ports as u16,
        remote_port: (ports >> 16) as u16,
        family,
        seq: u32::from_be(tcp[1]),
        flags: (u32::from_be(tcp[3]) >> 16) as u8,
    })
}

/// The `struct net` a received packet belongs to: of its device, or of its route's once TCP has taken
/// the device away; 0 when neither is there.
#[inline(always)]
pub(crate) fn net_of_packet(skb: u64) -> u64 {
    let dev = field!(skb, skb_dev: u64);
    if dev == 0 {
        net_of_route(field!(skb, skb_refdst: u64))
    } else {
        field!(dev, dev_net: u64)
    }
}

/// The same of a packet whose device TCP has taken away, by its `_skb_refdst`.
#[inline(always)]
pub(crate) fn net_of_route(refdst: u64) -> u64 {
    // The low bit is SKB_DST_NOREF (include/linux/skbuff.h).
    let dst = refdst & !1;
    let dev = if dst == 0 {
        0
    } else {
        field!(dst, dst_dev: u64)
    };
    if dev == 0 {
        0
    } else {
        field!(dev, dev_net: u64)
    }
}
