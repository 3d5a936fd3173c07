//! Every hook's ladder: the programs of each hook type, best first, and what the lower ones cannot see.
//!
//! A table and nothing else; `kernel::attach` walks it. A hook is one row here, and its programs. The functions and
//! tracepoints were checked on 5.10, 6.1, 6.12, 6.18 and 7.3.

use conntracer_common::stats::hook;

use crate::plan::HookType;

/// One program and where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attachment {
    pub(super) program: &'static str,
    /// The kernel function, or for a tracepoint's program the tracepoint.
    pub(super) target: &'static str,
    /// Parameters the function must have for this program: its return value lies behind them, and a
    /// slot too small loads and gives an argument instead.
    pub(super) params: Option<usize>,
}

impl Attachment {
    /// Whether its target exists only where IPv6, MPTCP or security modules are built in, and may be missing elsewhere.
    pub(super) fn may_be_missing(&self) -> bool {
        let of = ["_v6_", "inet6_", "mptcp_", "security_"];
        of.iter().any(|part| self.target.contains(part))
    }
}

/// One way of getting a hook.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) hook_type: HookType,
    /// Empty: another hook's program stands in (told so by an option).
    pub(super) attachments: &'static [Attachment],
    /// What this hook type cannot see.
    pub(super) blind_to: Option<&'static str>,
}

/// A hook and its hook types, best first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ladder {
    /// Index into `conntracer_common::stats::HOOKS`.
    pub(super) hook: u32,
    pub(super) steps: &'static [Step],
    /// What is lost with no hook type at all; `None`: conntracer cannot work without this hook.
    pub(super) off: Option<&'static str>,
}

const fn on(program: &'static str, target: &'static str) -> Attachment {
    Attachment {
        program,
        target,
        params: None,
    }
}

/// A program for a function of exactly so many parameters.
const fn of(params: usize, program: &'static str, target: &'static str) -> Attachment {
    Attachment {
        params: Some(params),
        ..on(program, target)
    }
}

const fn step(hook_type: HookType, attachments: &'static [Attachment]) -> Step {
    Step {
        hook_type,
        attachments,
        blind_to: None,
    }
}

const fn fentry(attachments: &'static [Attachment]) -> Step {
    step(HookType::Fentry, attachments)
}

const fn kprobe(attachments: &'static [Attachment]) -> Step {
    step(HookType::Kprobe, attachments)
}

const fn tracepoint(attachments: &'static [Attachment]) -> Step {
    step(HookType::Tracepoint, attachments)
}

const fn blind_tracepoint(attachments: &'static [Attachment], to: &'static str) -> Step {
    Step {
        blind_to: Some(to),
        ..tracepoint(attachments)
    }
}

pub(super) const LADDERS: &[Ladder] = &[
    // First: who forks between two hooks must not have become an owner before.
    Ladder {
        hook: hook::FORK,
        steps: &[tracepoint(&[on("fork", "sched_process_fork")])],
        off: Some("sockets that are inherited by fork(), before their holders are searched for"),
    },
    Ladder {
        hook: hook::STATE,
        steps: &[tracepoint(&[on("state", "inet_sock_set_state")])],
        off: None,
    },
    Ladder {
        hook: hook::DESTROY,
        steps: &[tracepoint(&[on("destroy", "tcp_destroy_sock")])],
        off: None,
    },
    Ladder {
        hook: hook::RETRANSMIT,
        steps: &[tracepoint(&[on("retransmit", "tcp_retransmit_skb")])],
        off: None,
    },
    Ladder {
        hook: hook::SYNACK,
        steps: &[tracepoint(&[on("synack", "tcp_retransmit_synack")])],
        off: None,
    },
    Ladder {
        hook: hook::CONNECT,
        steps: &[
            fentry(&[on("connect_fentry", "tcp_connect")]),
            kprobe(&[on("connect_kprobe", "tcp_connect")]),
            blind_tracepoint(
                &[],
                "the local port of a connection that is not bound yet when connect() starts",
            ),
        ],
        off: None,
    },
    Ladder {
        hook: hook::FAILURE,
        steps: &[
            fentry(&[
                of(3, "failure_fexit_v4", "tcp_v4_connect"),
                of(3, "failure_fexit_v6", "tcp_v6_connect"),
                of(3, "failure_fexit_pre_v4", "tcp_v4_pre_connect"),
                of(3, "failure_fexit_pre_v6", "tcp_v6_pre_connect"),
                on("icmp_fentry_v4", "tcp_v4_err"),
                on("icmp_fentry_v6", "tcp_v6_err"),
            ]),
            kprobe(&[
                on("failure_kretprobe", "tcp_v4_connect"),
                on("failure_kretprobe", "tcp_v6_connect"),
                on("failure_kretprobe", "tcp_v4_pre_connect"),
                on("failure_kretprobe", "tcp_v6_pre_connect"),
                on("failure_kprobe", "tcp_v4_connect"),
                on("failure_kprobe", "tcp_v6_connect"),
                on("failure_kprobe", "tcp_v4_pre_connect"),
                on("failure_kprobe", "tcp_v6_pre_connect"),
                on("icmp_kprobe_v4", "tcp_v4_err"),
                on("icmp_kprobe_v6", "tcp_v6_err"),
            ]),
        ],
        off: Some(
            "connect() that fails at once, but for want of a port: no route, or not permitted; which ICMP \
             message ends an attempt, and who sent it",
        ),
    },
    Ladder {
        hook: hook::ACCEPT,
        steps: &[
            fentry(&[of(2, "accept_fexit_2", "inet_csk_accept")]),
            fentry(&[of(4, "accept_fexit_4", "inet_csk_accept")]),
            blind_tracepoint(
                &[on("accept_tracepoint", "tcp_rcv_space_adjust")],
                "accepted connections that never receive: they stay their listener's",
            ),
        ],
        off: Some("who accepted a connection: it stays its listener's"),
    },
    Ladder {
        hook: hook::SYN,
        steps: &[
            fentry(&[
                on("syn_fexit", "tcp_conn_request"),
                on("syn_fentry", "tcp_conn_request"),
            ]),
            kprobe(&[
                on("syn_kretprobe", "tcp_conn_request"),
                on("syn_kprobe", "tcp_conn_request"),
            ]),
            blind_tracepoint(
                &[on("syn_tracepoint", "consume_skb")],
                "which member of a SO_REUSEPORT group dropped a SYN; the cause of the first SYN on each CPU is inferred from queue lengths",
            ),
        ],
        off: Some("SYNs dropped at a listener"),
    },
    Ladder {
        hook: hook::ACK,
        steps: &[
            fentry(&[
                of(6, "ack_fexit_v4_6", "tcp_v4_syn_recv_sock"),
                on("ack_fentry_v4", "tcp_v4_syn_recv_sock"),
                of(6, "ack_fexit_v6_6", "tcp_v6_syn_recv_sock"),
                on("ack_fentry_v6", "tcp_v6_syn_recv_sock"),
            ]),
            fentry(&[
                of(7, "ack_fexit_v4_7", "tcp_v4_syn_recv_sock"),
                on("ack_fentry_v4", "tcp_v4_syn_recv_sock"),
                of(7, "ack_fexit_v6_7", "tcp_v6_syn_recv_sock"),
                on("ack_fentry_v6", "tcp_v6_syn_recv_sock"),
            ]),
            kprobe(&[
                on("ack_kretprobe", "tcp_v4_syn_recv_sock"),
                on("ack_kretprobe", "tcp_v6_syn_recv_sock"),
                on("ack_kprobe", "tcp_v4_syn_recv_sock"),
                on("ack_kprobe", "tcp_v6_syn_recv_sock"),
            ]),
            tracepoint(&[]),
        ],
        off: Some("third ACKs that found the accept queue full"),
    },
    Ladder {
        hook: hook::COOKIE,
        steps: &[
            fentry(&[
                on("cookie_fexit_v4", "cookie_v4_check"),
                on("cookie_fentry_v4", "cookie_v4_check"),
                on("cookie_fexit_v6", "cookie_v6_check"),
                on("cookie_fentry_v6", "cookie_v6_check"),
            ]),
            kprobe(&[
                on("cookie_kretprobe", "cookie_v4_check"),
                on("cookie_kretprobe", "cookie_v6_check"),
                on("cookie_kprobe", "cookie_v4_check"),
                on("cookie_kprobe", "cookie_v6_check"),
            ]),
        ],
        off: Some("whether third ACKs bring valid SYN cookies"),
    },
    Ladder {
        hook: hook::REQUEST,
        steps: &[
            fentry(&[
                of(5, "request_fexit_5", "tcp_check_req"),
                on("request_timer_fexit", "reqsk_timer_handler"),
                on("request_timer_fentry", "reqsk_timer_handler"),
            ]),
            fentry(&[
                of(6, "request_fexit_6", "tcp_check_req"),
                on("request_timer_fexit", "reqsk_timer_handler"),
                on("request_timer_fentry", "reqsk_timer_handler"),
            ]),
            kprobe(&[
                on("request_kretprobe", "tcp_check_req"),
                on("request_kprobe", "tcp_check_req"),
                on("request_timer_kretprobe", "reqsk_timer_handler"),
                on("request_timer_kprobe", "reqsk_timer_handler"),
            ]),
        ],
        off: Some("how requests without a third ACK end: expired, or reset by the client"),
    },
    Ladder {
        hook: hook::RTO,
        steps: &[
            fentry(&[on("rto_fentry", "tcp_enter_loss")]),
            kprobe(&[on("rto_kprobe", "tcp_enter_loss")]),
            tracepoint(&[on("rto_tracepoint", "tcp_cong_state_set")]),
        ],
        off: Some("timeouts that send nothing because the segment never left this host"),
    },
    Ladder {
        hook: hook::TIMEOUT,
        steps: &[
            fentry(&[on("timeout_fentry", "tcp_retransmit_timer")]),
            kprobe(&[on("timeout_kprobe", "tcp_retransmit_timer")]),
        ],
        off: Some("the timeout with which the kernel gives a connection up"),
    },
    Ladder {
        hook: hook::LOSS_PROBE,
        steps: &[
            fentry(&[
                on("loss_probe_fexit", "tcp_send_loss_probe"),
                on("loss_probe_fentry", "tcp_send_loss_probe"),
            ]),
            kprobe(&[
                on("loss_probe_kretprobe", "tcp_send_loss_probe"),
                on("loss_probe_kprobe", "tcp_send_loss_probe"),
            ]),
        ],
        off: Some("tail loss probes that carry new data"),
    },
    Ladder {
        hook: hook::UNDO,
        steps: &[
            fentry(&[on("undo_fentry", "tcp_undo_cwnd_reduction")]),
            kprobe(&[on("undo_kprobe", "tcp_undo_cwnd_reduction")]),
            blind_tracepoint(
                &[on("undo_tracepoint", "tcp_cong_state_set")],
                "segments that were sent again without need where that is found out after the recovery, and by which check it was found out before",
            ),
        ],
        off: Some(
            "segments that were sent again without need, unless the peer reports the second copies (DSACK)",
        ),
    },
    Ladder {
        hook: hook::PROBE,
        steps: &[
            fentry(&[on("tcp_probe_fexit", "tcp_write_wakeup")]),
            kprobe(&[
                on("tcp_probe_kretprobe", "tcp_write_wakeup"),
                on("tcp_probe_kprobe", "tcp_write_wakeup"),
            ]),
        ],
        off: Some(
            "unanswered keepalive and window probes of a connection that retransmits nothing",
        ),
    },
    Ladder {
        hook: hook::RESET_SENT,
        steps: &[tracepoint(&[on("reset_sent", "tcp_send_reset")])],
        off: Some("resets sent"),
    },
    Ladder {
        hook: hook::RESET_RECEIVED,
        steps: &[tracepoint(&[on("reset_received", "tcp_receive_reset")])],
        off: Some("resets received"),
    },
    Ladder {
        hook: hook::DROP,
        steps: &[tracepoint(&[
            on("drop", "kfree_skb"),
            on("dropped", "kfree_skb"),
        ])],
        off: Some("packets dropped before they reach a socket"),
    },
    Ladder {
        hook: hook::PASS,
        steps: &[
            fentry(&[on("pass_fentry", "__receive_sock")]),
            kprobe(&[on("pass_kprobe", "__receive_sock")]),
        ],
        off: Some(
            "descriptors passed between processes, before the receiver receives data or the socket's \
             holders are searched for",
        ),
    },
    Ladder {
        hook: hook::BIND,
        steps: &[
            fentry(&[
                of(3, "bind_fexit_v4", "inet_bind"),
                of(3, "bind_fexit_v6", "inet6_bind"),
                of(3, "bind_fexit_mptcp", "mptcp_bind"),
                of(2, "bind_fexit_listen", "inet_listen"),
                of(3, "bind_fexit_security", "security_socket_bind"),
            ]),
            kprobe(&[
                on("bind_kretprobe", "inet_bind"),
                on("bind_kretprobe", "inet6_bind"),
                on("bind_kretprobe", "mptcp_bind"),
                on("bind_kretprobe_listen", "inet_listen"),
                on("bind_kretprobe_security", "security_socket_bind"),
                on("bind_kprobe", "inet_bind"),
                on("bind_kprobe", "inet6_bind"),
                on("bind_kprobe", "mptcp_bind"),
                on("bind_kprobe", "inet_listen"),
                on("bind_kprobe", "security_socket_bind"),
            ]),
        ],
        off: Some("bind() and listen() that fail"),
    },
];
