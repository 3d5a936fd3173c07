//! Every rule: opens, counts exactly, resolves, stays silent on a healthy host, and replays alike.

mod connect_failure;
mod connection_drop;
mod dead_peer;
mod early_drop;
mod half_closed;
mod handshake;
mod idle;
mod lifecycle;
mod retransmit_storm;
mod send_stall;
mod syn_drop;

use crate::{
    finding::{Finding, FindingKind, Value},
    testing::Run,
};

/// The one finding of a kind, as last told.
fn only_of(run: &Run, kind: FindingKind) -> &Finding {
    let found = run.last_words();
    let mut alike = found.iter().filter(|finding| finding.kind == kind);
    match (alike.next(), alike.next()) {
        (Some(only), None) => only,
        _ => panic!("expected one {kind:?}, got {found:#?}"),
    }
}

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
