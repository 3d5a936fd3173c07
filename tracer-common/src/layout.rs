//! Where the running kernel keeps what the eBPF side reads.
//!
//! One [`KernelLayout`] of byte offsets is resolved from the kernel's BTF by userspace
//! (`conntracer::kernel::layout`) and injected as a read-only global before load; the verifier sees
//! constants. A field the kernel lacks is [`ABSENT`].

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::netns;

/// No such field in the running kernel.
pub const ABSENT: u16 = u16::MAX;

macro_rules! layout {
    ($($(#[$doc:meta])* $field:ident = $ty:literal . $path:literal $(, $need:ident)?;)*) => {
        /// Byte offsets, each from the start of the structure its [`FIELDS`] entry names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
        #[repr(C)]
        pub struct KernelLayout {
            $($(#[$doc])* pub $field: u16,)*
        }

        impl KernelLayout {
            /// Nothing resolved: what is compiled into the object.
            pub const UNRESOLVED: Self = Self { $($field: ABSENT,)* };
        }

        /// Every field in the order of [`KernelLayout`].
        pub const FIELDS: &[Field] = &[
            $(Field {
                name: stringify!($field),
                structure: $ty,
                path: $path,
                optional: layout!(@need $($need)?),
            },)*
        ];
    };
    (@need optional) => { true };
    (@need) => { false };
}

/// One entry of the layout: the kernel's own name of the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub structure: &'static str,
    /// Members from the outside in, joined by dots; anonymous members are walked through.
    pub path: &'static str,
    /// Whether conntracer works without it.
    pub optional: bool,
}

layout! {
    skc_daddr = "sock_common"."skc_daddr";
    skc_rcv_saddr = "sock_common"."skc_rcv_saddr";
    skc_dport = "sock_common"."skc_dport";
    skc_num = "sock_common"."skc_num";
    skc_family = "sock_common"."skc_family";
    skc_state = "sock_common"."skc_state";
    skc_net = "sock_common"."skc_net";
    skc_v6_daddr = "sock_common"."skc_v6_daddr", optional;
    skc_v6_rcv_saddr = "sock_common"."skc_v6_rcv_saddr", optional;
    skc_flags = "sock_common"."skc_flags";
    /// Of a request: `rsk_listener`.
    skc_listener = "sock_common"."skc_listener";
    /// NULL once a socket or request is in no hash table.
    skc_pprev = "sock_common"."skc_nulls_node.pprev";
    /// The bytes that hold these bit fields, at bits `reuseport_bit` and `ipv6only_bit`.
    skc_reuseport = "sock_common"."skc_reuseport", optional;
    skc_ipv6only = "sock_common"."skc_ipv6only", optional;
    skc_bound_dev_if = "sock_common"."skc_bound_dev_if", optional;

    sk_protocol = "sock"."sk_protocol";
    /// Whether a process has locked the socket (include/net/sock.h, `sock_owned_by_user`).
    sk_owned = "sock"."sk_lock.owned";
    sk_err = "sock"."sk_err";
    sk_err_soft = "sock"."sk_err_soft", optional;
    sk_shutdown = "sock"."sk_shutdown", optional;
    sk_lingertime = "sock"."sk_lingertime", optional;
    sk_socket = "sock"."sk_socket", optional;
    /// The route that it sends by.
    sk_dst = "sock"."sk_dst_cache", optional;
    sk_drops = "sock"."sk_drops";
    /// Memory of what waits to be read, and how much it may be.
    sk_rmem_alloc = "sock"."sk_backlog.rmem_alloc", optional;
    sk_rcvbuf = "sock"."sk_rcvbuf", optional;
    sk_ack_backlog = "sock"."sk_ack_backlog";
    sk_max_ack_backlog = "sock"."sk_max_ack_backlog";
    sk_filter = "sock"."sk_filter", optional;

    inet_sport = "inet_sock"."inet_sport";

    icsk_retransmits = "inet_connection_sock"."icsk_retransmits";
    icsk_backoff = "inet_connection_sock"."icsk_backoff";
    icsk_probes_out = "inet_connection_sock"."icsk_probes_out";
    icsk_pending = "inet_connection_sock"."icsk_pending";
    /// The byte whose low 5 bits are `icsk_ca_state`.
    icsk_ca_state = "inet_connection_sock"."icsk_ca_state";
    icsk_rto = "inet_connection_sock"."icsk_rto";
    icsk_user_timeout = "inet_connection_sock"."icsk_user_timeout", optional;
    icsk_lrcvtime = "inet_connection_sock"."icsk_ack.lrcvtime", optional;
    /// The largest segment that came.
    icsk_rcv_mss = "inet_connection_sock"."icsk_ack.rcv_mss", optional;
    icsk_qlen = "inet_connection_sock"."icsk_accept_queue.qlen";
    /// The connection that waits for accept() the longest, by its request.
    icsk_accept_head = "inet_connection_sock"."icsk_accept_queue.rskq_accept_head", optional;

    snd_una = "tcp_sock"."snd_una";
    snd_nxt = "tcp_sock"."snd_nxt";
    write_seq = "tcp_sock"."write_seq";
    rcv_nxt = "tcp_sock"."rcv_nxt";
    /// What was acknowledged last, and the window that was offered with it.
    rcv_wup = "tcp_sock"."rcv_wup", optional;
    rcv_wnd = "tcp_sock"."rcv_wnd", optional;
    copied_seq = "tcp_sock"."copied_seq", optional;
    lsndtime = "tcp_sock"."lsndtime", optional;
    /// When an acknowledgement last came (`tcp_jiffies32`), and when the first segment after the last one that was
    /// acknowledged was sent (CLOCK_MONOTONIC in microseconds).
    rcv_tstamp = "tcp_sock"."rcv_tstamp", optional;
    first_tx_mstamp = "tcp_sock"."first_tx_mstamp", optional;
    is_mptcp = "tcp_sock"."is_mptcp", optional;
    /// The byte that holds it, at bit `repair_bit`.
    tcp_repair = "tcp_sock"."repair", optional;
    retrans_stamp = "tcp_sock"."retrans_stamp", optional;
    bytes_received = "tcp_sock"."bytes_received", optional;
    snd_wnd = "tcp_sock"."snd_wnd";
    packets_out = "tcp_sock"."packets_out";
    lost_out = "tcp_sock"."lost_out";
    retrans_out = "tcp_sock"."retrans_out";
    total_retrans = "tcp_sock"."total_retrans";
    data_segs_out = "tcp_sock"."data_segs_out", optional;
    bytes_acked = "tcp_sock"."bytes_acked", optional;
    bytes_retrans = "tcp_sock"."bytes_retrans", optional;
    /// When TCP last did anything with the socket: CLOCK_MONOTONIC in microseconds.
    tcp_mstamp = "tcp_sock"."tcp_mstamp", optional;
    srtt_us = "tcp_sock"."srtt_us";
    dsack_dups = "tcp_sock"."dsack_dups", optional;
    tlp_high_seq = "tcp_sock"."tlp_high_seq", optional;
    /// What was in flight when the recovery began, whether it may be undone (0: not), and the segments retransmitted in it.
    high_seq = "tcp_sock"."high_seq", optional;
    undo_marker = "tcp_sock"."undo_marker", optional;
    undo_retrans = "tcp_sock"."undo_retrans", optional;
    /// The request of a Fast Open child until its third ACK.
    fastopen_rsk = "tcp_sock"."fastopen_rsk", optional;
    mss_cache = "tcp_sock"."mss_cache", optional;
    /// The first of three samples is the smallest round trip.
    rtt_min = "tcp_sock"."rtt_min.s", optional;
    sample_value = "minmax_sample"."v", optional;
    /// The path MTU that the segment size was last chosen by.
    icsk_pmtu = "inet_connection_sock"."icsk_pmtu_cookie", optional;

    /// The largest packet that an ICMP message about this socket said would pass; 0 when none came.
    mtu_info = "tcp_sock"."mtu_info", optional;

    /// TIME_WAIT, or FIN_WAIT2 that no process holds any more.
    tw_substate = "inet_timewait_sock"."tw_substate", optional;

    /// The next request of the accept queue, and the connection that it became.
    req_next = "request_sock"."dl_next", optional;
    req_sk = "request_sock"."sk", optional;
    req_num_retrans = "request_sock"."num_retrans";
    /// The byte whose upper 7 bits are `num_timeout` (bit 0 is `syncookie`).
    req_num_timeout = "request_sock"."num_timeout";
    req_timer = "request_sock"."rsk_timer";
    treq_rcv_isn = "tcp_request_sock"."rcv_isn";
    /// The byte that holds `acked`, at bit `ireq_acked_bit`.
    ireq_acked = "inet_request_sock"."acked", optional;

    skb_head = "sk_buff"."head";
    skb_cb = "sk_buff"."cb";
    skb_protocol = "sk_buff"."protocol";
    skb_network_header = "sk_buff"."network_header";
    skb_transport_header = "sk_buff"."transport_header", optional;
    skb_data = "sk_buff"."data", optional;
    skb_dev = "sk_buff"."dev";
    skb_sk = "sk_buff"."sk";
    skb_refdst = "sk_buff"."_skb_refdst";
    skb_iif = "sk_buff"."skb_iif", optional;
    cb_seq = "tcp_skb_cb"."seq";
    cb_end_seq = "tcp_skb_cb"."end_seq";
    cb_gso_segs = "tcp_skb_cb"."tcp_gso_segs";
    cb_tcp_flags = "tcp_skb_cb"."tcp_flags";
    cb_sacked = "tcp_skb_cb"."sacked";
    dst_dev = "dst_entry"."dev";
    dev_net = "net_device"."nd_net";
    dev_name = "net_device"."name", optional;
    dev_xdp_prog = "net_device"."xdp_prog", optional;
    dev_ifindex = "net_device"."ifindex", optional;
    rt_flags = "rtable"."rt_flags", optional;
    rt6i_flags = "rt6_info"."rt6i_flags", optional;

    /// How the rule that dropped a packet is found, and its chain and table: where nf_tables keeps the rules of a chain one
    /// behind the other (Linux 5.17).
    nft_rule_handle = "nft_rule_dp"."handle", optional;
    nft_blob_data = "nft_rule_blob"."data", optional;
    nft_last_chain = "nft_rule_dp_last"."chain", optional;
    nft_chain_blob_0 = "nft_chain"."blob_gen_0", optional;
    nft_chain_blob_1 = "nft_chain"."blob_gen_1", optional;
    nft_chain_table = "nft_chain"."table", optional;
    nft_chain_name = "nft_chain"."name", optional;
    /// The byte whose low bit says that it is a base chain; and from there what such a one has.
    nft_chain_flags = "nft_chain"."flags", optional;
    nft_base_policy = "nft_base_chain"."policy", optional;
    nft_base_chain = "nft_base_chain"."chain", optional;
    nft_table_name = "nft_table"."name", optional;
    /// The byte whose low 6 bits it is.
    nft_table_family = "nft_table"."family", optional;

    net_inum = "net"."ns.inum";
    net_hash_mix = "net"."hash_mix", optional;
    /// How every network namespace is found: from the running task's through the kernel's list.
    net_list = "net"."list", optional;
    net_ops = "net"."ns.ops", optional;
    task_flags = "task_struct"."flags";
    task_exit_code = "task_struct"."exit_code", optional;
    task_leader = "task_struct"."group_leader";
    task_started = "task_struct"."start_boottime", optional;
    task_comm = "task_struct"."comm";
    task_nsproxy = "task_struct"."nsproxy", optional;
    nsproxy_net = "nsproxy"."net_ns", optional;
    /// From an open file to its socket, and from a task to what an owner is.
    file_inode = "file"."f_inode", optional;
    file_private = "file"."private_data", optional;
    inode_mode = "inode"."i_mode", optional;
    socket_sk = "socket"."sk", optional;
    socket_file = "socket"."file", optional;
    inode_number = "inode"."i_ino", optional;
    /// The first TCP connection below an MPTCP socket, or its listener.
    mptcp_first = "mptcp_sock"."first", optional;
    task_tgid = "task_struct"."tgid", optional;
    task_parent = "task_struct"."real_parent", optional;
    task_cred = "task_struct"."cred", optional;
    task_cgroups = "task_struct"."cgroups", optional;
    cred_uid = "cred"."uid", optional;
    cred_capabilities = "cred"."cap_effective", optional;
    css_set_cgroup = "css_set"."dfl_cgrp", optional;
    cgroup_node = "cgroup"."kn", optional;
    node_id = "kernfs_node"."id", optional;
    net_tcp_statistics = "net"."mib.tcp_statistics", optional;
    net_syncookies = "net"."ipv4.sysctl_tcp_syncookies", optional;
    net_max_syn_backlog = "net"."ipv4.sysctl_max_syn_backlog", optional;
    net_abort_on_overflow = "net"."ipv4.sysctl_tcp_abort_on_overflow", optional;
    net_unprivileged_start = "net"."ipv4.sysctl_ip_prot_sock", optional;
    /// Lowest and highest port for connections: two ints, and from 6.8 on two halves of one.
    net_port_range = "net"."ipv4.ip_local_ports.range", optional;
    net_somaxconn = "net"."core.sysctl_somaxconn", optional;
    net_statistics = "net"."mib.net_statistics", optional;
    net_ip_statistics = "net"."mib.ip_statistics", optional;
    net_ipv6_statistics = "net"."mib.ipv6_statistics", optional;
    /// Per-CPU pointers of a per-CPU array map: how a program learns this CPU's offset.
    bpf_array_pptrs = "bpf_array"."pptrs", optional;
}

/// Facts of the running kernel that are not offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct KernelFacts {
    /// Indices of the counters in `struct linux_mib.mibs`; 0 when unknown (0 is `LINUX_MIB_NUM`'s
    /// unused first slot).
    pub mib_listen_overflows: u16,
    pub mib_listen_drops: u16,
    pub mib_reqq_full_drop: u16,
    pub mib_reqq_full_cookies: u16,
    pub mib_tcp_keepalive: u16,
    /// Index of `IPSTATS_MIB_OUTNOROUTES` in `struct ipstats_mib.mibs`; 0 when unknown.
    pub mib_out_no_routes: u16,
    /// What counts SYNs dropped before a listener: in `struct linux_mib.mibs`, then in
    /// `struct tcp_mib.mibs`; 0 when unknown.
    pub mib_reverse_path: u16,
    pub mib_md5_not_found: u16,
    pub mib_md5_unexpected: u16,
    pub mib_md5_failure: u16,
    pub mib_csum_errors: u16,
    pub mib_out_rsts: u16,
    /// `SKB_DROP_REASON_NOT_SPECIFIED`: a reason that is none. `u16::MAX` when the kernel has no reasons.
    pub reason_not_specified: u16,
    /// Indices of [`crate::netns::KERNEL`] in `struct linux_mib.mibs` and `struct tcp_mib.mibs`; 0 when
    /// unknown.
    pub mib_compared: [u16; netns::kernel::COUNT],
    /// Arguments of tracepoints as BTF declares them, 0 when absent.
    pub args_tcp_retransmit_skb: u8,
    pub args_kfree_skb: u8,
    pub args_tcp_send_reset: u8,
    /// Bit of `acked` within its byte.
    pub ireq_acked_bit: u8,
    pub reuseport_bit: u8,
    pub ipv6only_bit: u8,
    /// 1 where the running task's type is known to the verifier (`bpf_get_current_task_btf`, Linux 5.11).
    pub typed_task: u8,
    /// Bit of `tcp_sock.repair` within its byte.
    pub repair_bit: u8,
    /// 1 where an MPTCP socket's bind() passes the one of TCP below it by another way (`inet_bind_sk`, Linux 6.6).
    pub mptcp_binds_alone: u8,
    pub pad: u8,
}

impl KernelFacts {
    pub const UNRESOLVED: Self = Self {
        mib_listen_overflows: 0,
        mib_listen_drops: 0,
        mib_reqq_full_drop: 0,
        mib_reqq_full_cookies: 0,
        mib_tcp_keepalive: 0,
        mib_out_no_routes: 0,
        mib_reverse_path: 0,
        mib_md5_not_found: 0,
        mib_md5_unexpected: 0,
        mib_md5_failure: 0,
        mib_csum_errors: 0,
        mib_out_rsts: 0,
        reason_not_specified: u16::MAX,
        mib_compared: [0; netns::kernel::COUNT],
        args_tcp_retransmit_skb: 0,
        args_kfree_skb: 0,
        args_tcp_send_reset: 0,
        ireq_acked_bit: 0,
        reuseport_bit: 0,
        ipv6only_bit: 0,
        typed_task: 0,
        repair_bit: 0,
        mptcp_binds_alone: 0,
        pad: 0,
    };
}

const _: () = assert!(size_of::<KernelLayout>() == FIELDS.len() * size_of::<u16>());
