//! What is known of a listener where a finding tells of it.

use super::drops::Drops;
use crate::{
    detect::room::Context,
    event::{Owner, Syn},
    host::Host,
    plan::HookType,
    table::listener::{Acceptor, ListenerKey, Listeners, Service, Summary},
    time::Ktime,
};

/// Everything a finding of one cause tells of its listener.
pub(super) struct Scene<'a> {
    pub(super) key: &'a ListenerKey,
    pub(super) service: &'a Service,
    pub(super) drops: &'a Drops,
    /// The newest record of the socket that dropped the most.
    pub(super) worst: &'a Syn,
    pub(super) worst_drops: u64,
    pub(super) owner: Option<Owner>,
    pub(super) acceptor: Acceptor,
}

impl<'a> Scene<'a> {
    pub(super) fn of(
        key: &'a ListenerKey,
        service: &'a Service,
        drops: &'a Drops,
        cx: &'a Context<'_>,
    ) -> Self {
        let (worst, worst_drops) = drops.worst().map_or((None, 0), |(id, count)| {
            (cx.listeners.member(key, id), count)
        });
        Self {
            key,
            service,
            drops,
            worst: worst.map_or(&service.latest, |member| &member.latest),
            worst_drops,
            owner: worst.and_then(|member| member.owner).or(service.owner),
            acceptor: drops.acceptor.unwrap_or_else(|| acceptor(service, cx)),
        }
    }
}

/// What is known of a listener's acceptor now.
pub(super) fn acceptor(service: &Service, cx: &Context<'_>) -> Acceptor {
    service.acceptor(cx.now, sees_accepts(cx.host), tells_members_apart(cx.host))
}

/// The busiest listeners in numbers, and how many more there are.
pub(crate) fn summaries(listeners: &Listeners, host: &Host, now: Ktime) -> (Vec<Summary>, u64) {
    listeners.summaries(now, sees_accepts(host), tells_members_apart(host))
}

/// Whether every accept() is counted.
pub(in crate::detect) fn sees_accepts(host: &Host) -> bool {
    !has_hook(host, "accept") || host.plan.hook_type("accept") == HookType::Fentry
}

/// Whether completions are counted by socket, and not by the address alone.
pub(in crate::detect) fn tells_members_apart(host: &Host) -> bool {
    !has_hook(host, "ack") || host.plan.hook_type("ack") != HookType::Tracepoint
}

/// A plan without the hook is that of a recording from before it was one.
fn has_hook(host: &Host, name: &str) -> bool {
    host.plan.hooks.iter().any(|plan| plan.hook == name)
}
