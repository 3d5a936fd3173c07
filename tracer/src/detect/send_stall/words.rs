//! What is said of a stall.

use std::borrow::Cow;

use super::stall::{Cause, Stage, Stall};
use crate::{
    detect::room::{Context, Draft, Facts, Spec, plural, who},
    table::dropped::Whose,
};

pub(super) fn draft(spec: &'static Spec, stall: &Stall, cx: &Context<'_>) -> Draft {
    let tcp = &stall.connection.tcp;
    let probes = plural(stall.probes, "window probe");
    let remote = stall.connection.remote;
    let (cause, summary, advice): (_, _, Vec<Cow<'static, str>>) = match stall.cause {
        Cause::ReceiverStalled if stall.stage == Stage::Unanswered => (
            "receiver_stalled",
            format!("{remote} had no room for {probes}, and answers no more"),
            Vec::new(),
        ),
        Cause::ReceiverStalled => (
            "receiver_stalled",
            format!(
                "{remote} has had no room for {probes}: its application does not read, or its kernel has no memory for \
                 what comes; nothing was lost on the way"
            ),
            vec![
                "look at what the peer's process does instead of reading (ss -tnp there: Recv-Q is full); where Recv-Q is \
                 small, memory is short there (nstat -az 'TcpExtTCPMemoryPressures*' TcpExtPruneCalled)"
                    .into(),
            ],
        ),
        Cause::LocalDrop => (
            "local_drop",
            format!(
                "{probes} to {remote} did not leave this host, and nothing else of the connection does: this host drops what \
                 {} sends, or has no way for it",
                who(stall.connection.owner.as_ref())
            ),
            vec![
                format!(
                    "look at this host's output firewall (nft list ruleset), its qdisc (tc -s qdisc), the link and the \
                     route ('ip route get {}') in namespace {}",
                    remote.ip(),
                    stall.connection.netns
                )
                .into(),
            ],
        ),
    };
    // Of a shut window the peer has told: what it says came through.
    let here = (stall.cause == Cause::LocalDrop)
        .then(|| cx.dropped_of(&Whose::of(&stall.connection), stall.since));
    Draft {
        here,
        spec,
        cause,
        stage: Some(stall.stage.name()),
        doubt: cx.doubt_in(spec, stall.connection.netns),
        subject: stall.connection.subject(),
        owner: stall.connection.owner,
        severity: None,
        sample: None,
        since: stall.since,
        last: stall.last,
        count: stall.probes,
        summary,
        evidence: Facts::default()
            .count("window_bytes", tcp.snd_wnd_bytes)
            .count("unsent_bytes", tcp.write_seq.wrapping_sub(tcp.snd_nxt))
            .count("mss_bytes", tcp.mss_bytes)
            .seconds("stalled_s", stall.last.since(stall.since)),
        advice,
    }
}
