//! Every rule: opens, counts exactly, resolves, stays silent on a healthy host, and replays alike.

mod connect_failure;
mod connection_drop;
mod dead_peer;
mod half_closed;
mod handshake;
mod idle;
mod lifecycle;
mod refusal;
mod retransmit_storm;
mod send_stall;
mod syn_drop;

use crate::finding::{Finding, Value};

/// A number or word of the evidence.
fn evidence<'a>(finding: &'a Finding, name: &str) -> &'a Value {
    finding
        .evidence
        .iter()
        .find(|evidence| evidence.name == name)
        .map_or_else(
            || panic!("no {name} in {finding:#?}"),
            |evidence| &evidence.value,
        )
}
