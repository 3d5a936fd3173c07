//! Every hook's ladder: the programs of each hook type, best first, and what the lower ones cannot see.
//!
//! A table and nothing else; `kernel::attach` walks it. The functions and tracepoints were checked on
//! 5.10, 6.1, 6.12, 6.18 and 7.3.

use crate::plan::HookType;

/// What a program attaches to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Fentry(&'static str),
    Fexit(&'static str),
    Kprobe(&'static str),
    Kretprobe(&'static str),
    Tracepoint(&'static str),
}

impl Target {
    /// The kernel's name of it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Fentry(name)
            | Self::Fexit(name)
            | Self::Kprobe(name)
            | Self::Kretprobe(name)
            | Self::Tracepoint(name) => name,
        }
    }

    /// Whether it exists only where IPv6 is built in, and may be missing elsewhere.
    pub(super) fn is_ipv6(self) -> bool {
        self.name().contains("_v6_")
    }
}

/// One program and where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attachment {
    pub(super) program: &'static str,
    pub(super) target: Target,
    /// Parameters the function must have for this program: its return value lies behind them, and a
    /// slot too small loads and gives an argument instead.
    pub(super) params: Option<usize>,
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

const fn on(program: &'static str, target: Target) -> Attachment {
    Attachment {
        program,
        target,
        params: None,
    }
}

/// A program for a function of exactly so many parameters.
const fn of(params: usize, program: &'static str, target: Target) -> Attachment {
    Attachment {
        program,
        target,
        params: Some(params),
    }
}

const fn step(hook_type: HookType, attachments: &'static [Attachment]) -> Step {
    Step {
        hook_type,
        attachments,
        blind_to: None,
    }
}

const fn blind(hook_type: HookType, attachments: &'static [Attachment], to: &'static str) -> Step {
    Step {
        hook_type,
        attachments,
        blind_to: Some(to),
    }
}

use HookType::{Fentry as F, Kprobe as K, Tracepoint as T};
use Target::{Fentry, Fexit, Kprobe, Kretprobe, Tracepoint};
use conntracer_common::stats::hook;

pub(super) const LADDERS: &[Ladder] = &[
    // First: who forks between two hooks must not have become an owner before.
    Ladder {
        hook: hook::FORK,
        steps: &[step(T, &[on("fork", Tracepoint("sched_process_fork"))])],
        off: Some("sockets that are inherited by fork(), before their holders are searched for"),
    },
    Ladder {
        hook: hook::STATE,
        steps: &[step(T, &[on("state", Tracepoint("inet_sock_set_state"))])],
        off: None,
    },
    Ladder {
        hook: hook::DESTROY,
        steps: &[step(T, &[on("destroy", Tracepoint("tcp_destroy_sock"))])],
        off: None,
    },
    Ladder {
        hook: hook::RETRANSMIT,
        steps: &[step(
            T,
            &[on("retransmit", Tracepoint("tcp_retransmit_skb"))],
        )],
        off: None,
    },
    Ladder {
        hook: hook::SYNACK,
        steps: &[step(
            T,
            &[on("synack", Tracepoint("tcp_retransmit_synack"))],
        )],
        off: None,
    },
    Ladder {
        hook: hook::CONNECT,
        steps: &[
            step(F, &[on("connect_fentry", Fentry("tcp_connect"))]),
            step(K, &[on("connect_kprobe", Kprobe("tcp_connect"))]),
            blind(
                T,
                &[],
                "the local port of a connection that is not bound yet when connect() starts",
            ),
        ],
        off: None,
    },
    Ladder {
        hook: hook::FAILURE,
        steps: &[
            step(
                F,
                &[
                    of(3, "failure_fexit_v4", Fexit("tcp_v4_connect")),
                    of(3, "failure_fexit_v6", Fexit("tcp_v6_connect")),
                    of(3, "failure_fexit_pre_v4", Fexit("tcp_v4_pre_connect")),
                    of(3, "failure_fexit_pre_v6", Fexit("tcp_v6_pre_connect")),
                ],
            ),
            step(
                K,
                &[
                    on("failure_kretprobe", Kretprobe("tcp_v4_connect")),
                    on("failure_kretprobe", Kretprobe("tcp_v6_connect")),
                    on("failure_kretprobe", Kretprobe("tcp_v4_pre_connect")),
                    on("failure_kretprobe", Kretprobe("tcp_v6_pre_connect")),
                    on("failure_kprobe", Kprobe("tcp_v4_connect")),
                    on("failure_kprobe", Kprobe("tcp_v6_connect")),
                    on("failure_kprobe", Kprobe("tcp_v4_pre_connect")),
                    on("failure_kprobe", Kprobe("tcp_v6_pre_connect")),
                ],
            ),
        ],
        off: Some(
            "connect() that fails at once, but for want of a port: no route, or not permitted",
        ),
    },
    Ladder {
        hook: hook::ACCEPT,
        steps: &[
            step(F, &[of(2, "accept_fexit_2", Fexit("inet_csk_accept"))]),
            step(F, &[of(4, "accept_fexit_4", Fexit("inet_csk_accept"))]),
            blind(
                T,
                &[on("accept_tracepoint", Tracepoint("tcp_rcv_space_adjust"))],
                "accepted connections that never receive: they stay their listener's",
            ),
        ],
        off: Some("who accepted a connection: it stays its listener's"),
    },
    Ladder {
        hook: hook::SYN,
        steps: &[
            step(
                F,
                &[
                    on("syn_fexit", Fexit("tcp_conn_request")),
                    on("syn_fentry", Fentry("tcp_conn_request")),
                ],
            ),
            step(
                K,
                &[
                    on("syn_kretprobe", Kretprobe("tcp_conn_request")),
                    on("syn_kprobe", Kprobe("tcp_conn_request")),
                ],
            ),
            blind(
                T,
                &[on("syn_tracepoint", Tracepoint("consume_skb"))],
                "which member of a SO_REUSEPORT group dropped a SYN; the cause of the first SYN on each CPU is inferred from queue lengths",
            ),
        ],
        off: Some("SYNs dropped at a listener"),
    },
    Ladder {
        hook: hook::ACK,
        steps: &[
            step(
                F,
                &[
                    of(6, "ack_fexit_v4_6", Fexit("tcp_v4_syn_recv_sock")),
                    on("ack_fentry_v4", Fentry("tcp_v4_syn_recv_sock")),
                    of(6, "ack_fexit_v6_6", Fexit("tcp_v6_syn_recv_sock")),
                    on("ack_fentry_v6", Fentry("tcp_v6_syn_recv_sock")),
                ],
            ),
            step(
                F,
                &[
                    of(7, "ack_fexit_v4_7", Fexit("tcp_v4_syn_recv_sock")),
                    on("ack_fentry_v4", Fentry("tcp_v4_syn_recv_sock")),
                    of(7, "ack_fexit_v6_7", Fexit("tcp_v6_syn_recv_sock")),
                    on("ack_fentry_v6", Fentry("tcp_v6_syn_recv_sock")),
                ],
            ),
            step(
                K,
                &[
                    on("ack_kretprobe", Kretprobe("tcp_v4_syn_recv_sock")),
                    on("ack_kretprobe", Kretprobe("tcp_v6_syn_recv_sock")),
                    on("ack_kprobe", Kprobe("tcp_v4_syn_recv_sock")),
                    on("ack_kprobe", Kprobe("tcp_v6_syn_recv_sock")),
                ],
            ),
            step(T, &[]),
        ],
        off: Some("third ACKs that found the accept queue full"),
    },
    Ladder {
        hook: hook::COOKIE,
        steps: &[
            step(
                F,
                &[
                    on("cookie_fexit_v4", Fexit("cookie_v4_check")),
                    on("cookie_fentry_v4", Fentry("cookie_v4_check")),
                    on("cookie_fexit_v6", Fexit("cookie_v6_check")),
                    on("cookie_fentry_v6", Fentry("cookie_v6_check")),
                ],
            ),
            step(
                K,
                &[
                    on("cookie_kretprobe", Kretprobe("cookie_v4_check")),
                    on("cookie_kretprobe", Kretprobe("cookie_v6_check")),
                    on("cookie_kprobe", Kprobe("cookie_v4_check")),
                    on("cookie_kprobe", Kprobe("cookie_v6_check")),
                ],
            ),
        ],
        off: Some("whether third ACKs bring valid SYN cookies"),
    },
    Ladder {
        hook: hook::REQUEST,
        steps: &[
            step(
                F,
                &[
                    of(5, "request_fexit_5", Fexit("tcp_check_req")),
                    on("request_timer_fexit", Fexit("reqsk_timer_handler")),
                    on("request_timer_fentry", Fentry("reqsk_timer_handler")),
                ],
            ),
            step(
                F,
                &[
                    of(6, "request_fexit_6", Fexit("tcp_check_req")),
                    on("request_timer_fexit", Fexit("reqsk_timer_handler")),
                    on("request_timer_fentry", Fentry("reqsk_timer_handler")),
                ],
            ),
            step(
                K,
                &[
                    on("request_kretprobe", Kretprobe("tcp_check_req")),
                    on("request_kprobe", Kprobe("tcp_check_req")),
                    on("request_timer_kretprobe", Kretprobe("reqsk_timer_handler")),
                    on("request_timer_kprobe", Kprobe("reqsk_timer_handler")),
                ],
            ),
        ],
        off: Some("how requests without a third ACK end: expired, or reset by the client"),
    },
    Ladder {
        hook: hook::RTO,
        steps: &[
            step(F, &[on("rto_fentry", Fentry("tcp_enter_loss"))]),
            step(K, &[on("rto_kprobe", Kprobe("tcp_enter_loss"))]),
            step(T, &[on("rto_tracepoint", Tracepoint("tcp_cong_state_set"))]),
        ],
        off: Some("timeouts that send nothing because the segment never left this host"),
    },
    Ladder {
        hook: hook::TIMEOUT,
        steps: &[
            step(F, &[on("timeout_fentry", Fentry("tcp_retransmit_timer"))]),
            step(K, &[on("timeout_kprobe", Kprobe("tcp_retransmit_timer"))]),
        ],
        off: Some("the timeout with which the kernel gives a connection up"),
    },
    Ladder {
        hook: hook::LOSS_PROBE,
        steps: &[
            step(
                F,
                &[
                    on("loss_probe_fexit", Fexit("tcp_send_loss_probe")),
                    on("loss_probe_fentry", Fentry("tcp_send_loss_probe")),
                ],
            ),
            step(
                K,
                &[
                    on("loss_probe_kretprobe", Kretprobe("tcp_send_loss_probe")),
                    on("loss_probe_kprobe", Kprobe("tcp_send_loss_probe")),
                ],
            ),
        ],
        off: Some("tail loss probes that carry new data"),
    },
    Ladder {
        hook: hook::UNDO,
        steps: &[
            step(F, &[on("undo_fentry", Fentry("tcp_undo_cwnd_reduction"))]),
            step(K, &[on("undo_kprobe", Kprobe("tcp_undo_cwnd_reduction"))]),
            blind(
                T,
                &[on("undo_tracepoint", Tracepoint("tcp_cong_state_set"))],
                "losses that turn out to be none after their recovery, and by what one did before its end",
            ),
        ],
        off: Some("losses that were none, unless the peer says that what was repeated came twice"),
    },
    Ladder {
        hook: hook::PROBE,
        steps: &[
            step(F, &[on("probe_fexit", Fexit("tcp_write_wakeup"))]),
            step(
                K,
                &[
                    on("probe_kretprobe", Kretprobe("tcp_write_wakeup")),
                    on("probe_kprobe", Kprobe("tcp_write_wakeup")),
                ],
            ),
        ],
        off: Some(
            "unanswered keepalive and window probes of a connection that retransmits nothing",
        ),
    },
    Ladder {
        hook: hook::RESET_SENT,
        steps: &[step(T, &[on("reset_sent", Tracepoint("tcp_send_reset"))])],
        off: Some("resets sent"),
    },
    Ladder {
        hook: hook::RESET_RECEIVED,
        steps: &[step(
            T,
            &[on("reset_received", Tracepoint("tcp_receive_reset"))],
        )],
        off: Some("resets received"),
    },
    Ladder {
        hook: hook::DROP,
        steps: &[step(T, &[on("drop", Tracepoint("kfree_skb"))])],
        off: Some("packets dropped before they reach a socket"),
    },
    Ladder {
        hook: hook::PASS,
        steps: &[
            step(F, &[on("pass_fentry", Fentry("__receive_sock"))]),
            step(K, &[on("pass_kprobe", Kprobe("__receive_sock"))]),
        ],
        off: Some(
            "descriptors passed between processes, before the receiver receives data or the socket's \
             holders are searched for",
        ),
    },
];
