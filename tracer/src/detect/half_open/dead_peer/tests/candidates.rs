//! What else explains a silence, and what makes a finding doubtful.

use std::time::Duration;

use conntracer_common::stats::hook;
use rstest::rstest;

use super::{LOCAL, REMOTE, timeouts};
use crate::{
    detect::Thresholds,
    finding::{Certainty, Value},
    plan::{HookPlan, HookType},
    testing::{Run, evidence, host, socket},
};

/// Five timeouts of a full-sized segment, and nothing smaller in flight.
pub(in crate::detect::half_open::dead_peer) fn full_sized(
    run: &mut Run,
    remote: &str,
    talks: bool,
) {
    for number in 1..=5 {
        run.pass(Duration::from_millis(200));
        run.retransmit(socket(LOCAL, remote), |retransmit| {
            retransmit.end_seq = retransmit.seq + 1448;
            retransmit.tcp.retransmits = number;
            retransmit.tcp.rcv_nxt = u32::from(talks) * u32::from(number);
        });
    }
}

/// Both explain it, a path too narrow and a peer that is gone: what other connections to the peer show tells more.
#[rstest]
#[case::nothing_else_is_known(
    None,
    false,
    "path_mtu_or_dead_peer",
    "the path may be too narrow for them, or the peer is gone"
)]
#[case::others_are_idle(Some((3, 0)), false, "path_mtu_or_dead_peer", "the path may be too narrow for them, or the peer is gone")]
#[case::others_are_answered(Some((3, 2)), false, "path_mtu_or_forgotten", "it answers 2 other connections of this host meanwhile")]
#[case::another_is_too_narrow(None, true, "path_mtu", "the path is too narrow for them")]
fn full_sized_loss_alone_names_both_candidates(
    #[case] beside: Option<(u32, u32)>,
    #[case] another: bool,
    #[case] looks_like: &str,
    #[case] said: &str,
) {
    let mut run = Run::new();
    if another {
        full_sized(&mut run, "10.0.0.2:4001", true);
    }
    full_sized(&mut run, REMOTE, false);
    if let Some(counts) = beside {
        let asked = run.pipeline.watched().silent.expect("it is asked about");
        assert_eq!(asked.remote_addr, socket(LOCAL, REMOTE).remote_addr);
        let ago = Duration::from_millis(if counts.1 > 0 { 10 } else { 60_000 });
        run.beside(socket(LOCAL, REMOTE), counts, ago);
        assert_eq!(run.pipeline.watched().silent, None, "not again at once");
    }
    run.pass(Duration::from_secs(2));
    let words = run.last_words();
    let finding = words.last().unwrap();
    assert_eq!(
        evidence(finding, "looks_like"),
        &Value::Text(looks_like.to_owned().into())
    );
    assert!(finding.summary.contains(said), "{finding:#?}");
    let advice = finding.advice.join("\n");
    assert!(
        advice.starts_with("send it one packet as large"),
        "{advice}"
    );
    assert!(advice.contains("-s 1472 10.0.0.2"), "{advice}");
    assert_eq!(
        advice.contains("the peer is down"),
        looks_like == "path_mtu_or_dead_peer",
        "{advice}"
    );
    run.assert_replays(Thresholds::default());
}

/// A peer that answers others is not down.
#[rstest]
#[case::it_does(2, 10, true)]
#[case::not_since(2, 60_000, false)]
#[case::nobody_else(0, 60_000, false)]
fn a_peer_that_answers_others_is_up(
    #[case] answered: u32,
    #[case] ago_ms: u64,
    #[case] is_up: bool,
) {
    let mut run = Run::new();
    timeouts(&mut run, LOCAL, REMOTE, 4);
    run.beside(
        socket(LOCAL, REMOTE),
        (3, answered),
        Duration::from_millis(ago_ms),
    );
    run.pass(Duration::from_secs(2));
    run.checkpoint();
    let finding = run.only();
    let says_up = finding
        .summary
        .contains("it answers 2 other connections of this host");
    assert_eq!(says_up, is_up, "{finding:#?}");
    assert_eq!(finding.advice[0].contains("the peer is down"), !is_up);
    assert_eq!(evidence(finding, "other_connections"), &Value::Count(2));
}

/// A loss makes a finding doubtful where, and only where, it could have changed the answer.
#[rstest]
#[case::nothing_is_lost(None, None, false)]
#[case::of_a_hook_that_timeouts_do_not_need(Some((hook::PROBE, 1, 1)), None, false)]
#[case::of_the_ends(Some((hook::STATE, 1, 1)), None, true)]
#[case::missed_and_not_compared(Some((hook::RETRANSMIT, 2, 2)), None, true)]
#[case::missed_elsewhere(Some((hook::RETRANSMIT, 2, 2)), Some(0), false)]
#[case::missed_here(Some((hook::RETRANSMIT, 2, 2)), Some(1), true)]
#[case::one_was_counted_and_its_record_lost(Some((hook::RETRANSMIT, 2, 1)), Some(0), true)]
fn a_loss_that_could_not_change_the_answer_makes_no_doubt(
    #[case] lost: Option<(u32, u64, u32)>,
    #[case] residue: Option<u64>,
    #[case] is_doubtful: bool,
) {
    let mut host = host();
    for name in ["retransmit", "synack"] {
        host.plan.hooks.push(HookPlan {
            hook: name.to_owned(),
            hook_type: HookType::Fentry,
            attached: Vec::new(),
            refused: Vec::new(),
            blind_to: None,
        });
    }
    let mut run = Run::on(Thresholds::default(), host);
    timeouts(&mut run, LOCAL, REMOTE, 4);
    if let Some((hook, lost, missed)) = lost {
        run.lost(hook, lost, missed);
    }
    run.pass(Duration::from_secs(1));
    if let Some(residue) = residue {
        run.compared(0, 0);
        run.compared(4026, residue);
    }
    run.closed(socket(LOCAL, REMOTE), |closed| {
        closed.error = 110;
        closed.retransmits = 4;
    });
    let finding = run.only();
    assert_eq!(finding.stage.as_deref(), Some("confirmed"));
    let doubt = finding.certainty == Certainty::Inferred;
    assert_eq!(doubt, is_doubtful, "{finding:#?}");
}
