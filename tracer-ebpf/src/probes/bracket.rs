//! From the entry of a function of the listener path to its exit: what was before, so that the exit can
//! tell what changed; no programs.
//!
//! `tcp_conn_request` and `tcp_v4/v6_syn_recv_sock` run with bottom halves off, so a slot per CPU is
//! enough, and this CPU's SNMP counters move in between by nobody else's doing.

use aya_ebpf::maps::PerCpuArray;
use conntracer_common::syn::SynCounters;

use crate::{
    account::Outcome,
    maps::Bracket,
    probes::percpu,
    sock::{self, field},
    table::Table,
};

impl Bracket {
    /// A listener as it stands now; without counters.
    #[inline(always)]
    fn now(sk: u64, skb: u64) -> Self {
        Self {
            sk,
            skb,
            counters: SynCounters::NONE,
            no_routes: 0,
            drops: field!(sk, sk_drops: u32),
            ack_backlog: field!(sk, sk_ack_backlog: u32),
            max_ack_backlog: field!(sk, sk_max_ack_backlog: u32),
            syn_qlen: field!(sk, icsk_qlen: u32),
            nested: 0,
            retransmitted: 0,
            cookie: 0,
            pad: [0; 2],
        }
    }

    /// What the kernel counted since; `None` where its counters cannot be read.
    #[inline(always)]
    pub(crate) fn counted_since(&self) -> Option<SynCounters> {
        percpu::syn_counters(sock::net_of(self.sk)).map(|after| after.since(&self.counters))
    }
}

/// Remembers the listener as it is before the kernel decides, and what is to be known of the request
/// (0 for a SYN, which has none yet).
#[inline(always)]
pub(crate) fn enter(slot: &Table<PerCpuArray<Bracket>>, sk: u64, skb: u64, request: u64) {
    let Some(bracket) = slot.edit(0) else {
        return;
    };
    if bracket.skb == skb && skb != 0 {
        bracket.nested += 1;
        return;
    }
    *bracket = Bracket::now(sk, skb);
    if request != 0 {
        bracket.retransmitted = field!(request, req_num_retrans: u8);
        // Bit 0 of the byte that holds `num_timeout` is `syncookie`.
        bracket.cookie = field!(request, req_num_timeout: u8) & 1;
    }
    let net = sock::net_of(sk);
    if let Some(counters) = percpu::syn_counters(net) {
        bracket.counters = counters;
    }
    if request == 0 {
        bracket.no_routes = percpu::no_routes(net, sock::is_v6(skb));
    }
}

/// Judges at the exit of the outermost call, and frees the slot for the next entry. `NotOurs` in a
/// nested call, or when the entry was not seen.
#[inline(always)]
pub(crate) fn leave(
    slot: &Table<PerCpuArray<Bracket>>,
    judge: impl FnOnce(&Bracket) -> Outcome,
) -> Outcome {
    let Some(bracket) = slot.edit(0) else {
        return Outcome::NotOurs;
    };
    if bracket.nested > 0 {
        bracket.nested -= 1;
        return Outcome::NotOurs;
    }
    if bracket.skb == 0 {
        return Outcome::NotOurs;
    }
    let outcome = judge(bracket);
    bracket.skb = 0;
    outcome
}
