//! Text for people: a short start block, a readable block for each finding, a line for each event.
//!
//! Times are UTC. Colour is the caller's decision ([`Text::new`]); everything that a process or a
//! peer chose goes through [`Escaped`].

pub mod fill;
mod words;

use std::fmt::{self, Write as _};

use conntracer_common::netns::KERNEL;

use self::{
    fill::fill,
    words::{
        Clock, Day, Ends, EvidenceText, OR_A_DESCENDANT, OwnerText, Paint, Segments, SubjectText,
        Words, errno, held, reason, sharers,
    },
};
use super::{
    escape::Escaped,
    line::{Account, Line, Reason, SharedHost, Wall},
};
use crate::{
    event::{Body, Event, OwnerSource},
    finding::{Certainty, Finding, Status},
    reconcile::Reconciliation,
    table::listener::Summary,
    time::Ktime,
};

/// Columns of a line: what fits most windows, and a mail.
const LINE_CHARS: usize = 98;
/// Columns by which a block stands under its headline.
const INDENT: usize = 2;

/// Renders lines as text.
#[derive(Debug)]
pub struct Text {
    host: SharedHost,
    wall: Wall,
    paint: Paint,
}

impl Text {
    #[must_use]
    pub fn new(host: SharedHost, colour: bool) -> Self {
        let wall = Wall::of(&host);
        Self {
            host,
            wall,
            paint: Paint { colour },
        }
    }

    /// Appends `line`, newline included.
    pub fn render(&mut self, line: &Line, into: &mut Vec<u8>) {
        let mut text = String::new();
        let written = match line {
            Line::Start { time } => self.start(&mut text, *time),
            Line::Finding(finding) => self.finding(&mut text, finding),
            Line::Event(event) => self.event(&mut text, event),
            Line::Gap { time, hook, lost } => self.gap(&mut text, *time, hook, *lost),
            Line::Clock { realtime_offset_ns } => {
                self.wall.set(*realtime_offset_ns);
                Ok(())
            }
            Line::Stats { account, .. } => self.stats(&mut text, account),
            Line::Stop { reason, account } => self.stop(&mut text, *reason, account),
        };
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
        into.extend_from_slice(text.as_bytes());
    }

    fn start(&self, text: &mut String, time: Ktime) -> fmt::Result {
        let host = &*self.host;
        writeln!(
            text,
            "conntracer {} on {}, Linux {} {}, from {}",
            env!("CARGO_PKG_VERSION"),
            Escaped(&host.hostname),
            Escaped(&host.kernel),
            Escaped(&host.arch),
            Day(self.wall.time(time)),
        )?;
        writeln!(text, "  {}", host.plan.in_one_line())?;
        for limit in host.plan.limits() {
            let limit = Escaped(&limit).to_string();
            let limit = fill(&limit, LINE_CHARS, INDENT, 2 * INDENT);
            writeln!(text, "  {}{limit}{}", self.paint.yellow(), self.paint.off())?;
        }
        Ok(())
    }

    fn finding(&self, text: &mut String, finding: &Finding) -> fmt::Result {
        let paint = &self.paint;
        let colour = match finding.status {
            Status::Open => paint.red(),
            Status::Update => paint.yellow(),
            Status::Resolved => paint.green(),
        };
        write!(
            text,
            "{} {:<8} {colour}{}{} {}{}{}  {}",
            Clock(self.wall.time(finding.at)),
            finding.severity.name(),
            finding.kind.name().to_uppercase(),
            paint.off(),
            paint.bold(),
            Escaped(&finding.cause),
            paint.off(),
            SubjectText(&finding.subject),
        )?;
        if let Some(owner) = &finding.owner {
            write!(text, "  {}", OwnerText(owner))?;
        }
        write!(text, "  {}×", finding.count)?;
        if let Some(state) = state(finding) {
            write!(text, "  {}", Escaped(&state))?;
        }
        writeln!(text, "  #{}{}", finding.id, incident(finding))?;

        paragraph(text, "", &finding.summary)?;
        if let Some(sharers) = sharers(finding) {
            paragraph(text, "", &sharers)?;
        }
        writeln!(
            text,
            "  since {}, last {}",
            Clock(self.wall.time(finding.since)),
            Clock(self.wall.time(finding.last)),
        )?;
        if finding.certainty == Certainty::Inferred {
            let because = finding
                .because
                .as_deref()
                .unwrap_or("not every hook runs here");
            paragraph(text, "inferred: ", because)?;
        }
        for line in wrap(
            finding
                .evidence
                .iter()
                .map(|evidence| EvidenceText(evidence).to_string()),
        ) {
            writeln!(text, "  {}{line}{}", paint.dim(), paint.off())?;
        }
        for advice in &finding.advice {
            paragraph(text, "→ ", advice)?;
        }
        Ok(())
    }

    fn event(&self, text: &mut String, event: &Event) -> fmt::Result {
        let clock = Clock(self.wall.time(event.time));
        let about = event.body.about();
        write!(text, "{clock} {:<10}", about.name)?;
        if let Some(socket) = about.socket {
            write!(text, " {}", Ends(socket))?;
        }
        text.push_str(&self.detail(event.time, &event.body));
        if let Some(owner) = about.owner {
            write!(text, "  {}[{}]", Escaped(&owner.comm.to_text()), owner.pid)?;
            if owner.source == OwnerSource::Forked {
                text.push_str(OR_A_DESCENDANT);
            }
            if let Some(others) = owner.holders.filter(|holders| *holders > 1) {
                write!(text, " and {} more", others - 1)?;
            }
        }
        writeln!(text)
    }

    fn detail(&self, time: Ktime, body: &Body) -> String {
        match body {
            Body::State(state) => {
                format!("  {:?} → {:?}{}", state.old, state.new, errno(state.errno))
            }
            Body::Retransmit(retransmit) => format!(
                "  {} {} seq {} unacked {} B srtt {:.1} ms timeouts {}",
                retransmit.kind.name(),
                Segments(retransmit.segments),
                retransmit.seq,
                retransmit.tcp.unacked_bytes(),
                retransmit.tcp.srtt.as_secs_f64() * 1e3,
                retransmit.tcp.retransmits,
            ),
            Body::SynAck(syn_ack) => format!(
                "  syn_ack repeat {} accept queue {}/{} SYN queue {}{}",
                u16::from(syn_ack.num_retrans) + 1,
                syn_ack.ack_backlog,
                syn_ack.max_ack_backlog,
                syn_ack.syn_qlen,
                if syn_ack.acked {
                    " third ACK was discarded"
                } else {
                    ""
                },
            ),
            Body::Syn(syn) => format!(
                "  {} accept queue {}/{} SYN queue {}/{}",
                syn.outcome
                    .and_then(|outcome| conntracer_common::record::syn_outcome::NAMES.get(outcome))
                    .unwrap_or(&"totals"),
                syn.ack_backlog,
                syn.max_ack_backlog,
                syn.syn_qlen,
                syn.max_syn_backlog,
            ),
            Body::Reset(reset) => format!(
                "  {}{}",
                if reset.received { "received" } else { "sent" },
                reason(reset.reason, &self.host.reset_reasons),
            ),
            Body::Drop(drop) => format!(
                "  flags {:#04x}{}",
                drop.tcp_flags,
                reason(drop.reason, &self.host.drop_reasons)
            ),
            Body::Undo(undo) => format!("  {}× for nothing", undo.totals.segments),
            Body::EarlyDrop(early_drop) => format!(
                "  {}×{}{}",
                early_drop.count,
                reason(early_drop.reason, &self.host.drop_reasons),
                early_drop
                    .device
                    .map(|device| format!(" by {}", Escaped(&device.to_text())))
                    .unwrap_or_default(),
            ),
            Body::Failure(failure) => format!(
                "  ×{}  errno {} after {} SYNs",
                failure.count, failure.errno, failure.syns
            ),
            Body::Close(close) => format!(
                "  from {:?}  {} bytes sent, {} received{}",
                close.old,
                close.bytes_sent(),
                close.bytes_received(),
                errno(close.errno),
            ),
            Body::Probe(probe) => format!(
                "  {} unanswered {} result {}",
                ["window", "keepalive"][usize::from(probe.keepalive)],
                probe.tcp.probes_out,
                probe.result,
            ),
            Body::Snapshot(snapshot) => format!("  {:?}", snapshot.socket.state),
            Body::Idle(idle) => format!("  idle for {} s", idle.idle.as_secs()),
            Body::Seed(seed) => format!(
                "  {:?}{}{}",
                seed.socket.state,
                seed.since.map_or_else(String::new, |since| format!(
                    " for {:.1} s at least",
                    time.since(since).as_secs_f64()
                )),
                held(seed.holders),
            ),
            Body::Sources(sources) => format!("  {} SYNs in trouble", sources.syns),
            Body::Loss(loss) => format!(" {} lost {}", loss.hook_name(), loss.lost),
            _ => String::new(),
        }
    }

    fn gap(&self, text: &mut String, time: Ktime, hook: &str, lost: u64) -> fmt::Result {
        writeln!(
            text,
            "{} {}GAP{} {lost} records of the {hook} hook were lost before they could be judged",
            Clock(self.wall.time(time)),
            self.paint.yellow(),
            self.paint.off(),
        )
    }

    fn stats(&self, text: &mut String, account: &Account) -> fmt::Result {
        write!(text, "{} stats; ", Clock(self.wall.time(account.time)))?;
        totals(text, account)?;
        for listener in &account.listeners {
            queue(text, listener)?;
        }
        if account.listeners_left_out > 0 {
            writeln!(
                text,
                "  and {} quieter listeners",
                account.listeners_left_out
            )?;
        }
        Ok(())
    }

    fn stop(&self, text: &mut String, reason: Reason, account: &Account) -> fmt::Result {
        let why = match reason {
            Reason::Duration => "the time asked for is over",
            Reason::Signal => "asked to stop",
            Reason::EndOfInput => "end of the recording",
            Reason::BrokenPipe => "nobody reads any more",
        };
        write!(
            text,
            "{} stopped: {why}; ",
            Clock(self.wall.time(account.time))
        )?;
        totals(text, account)?;
        reconciliation(text, &account.reconciliation)
    }
}

/// How the kernel's own counters compare, where either side counted anything.
fn reconciliation(text: &mut String, reconciliation: &Reconciliation) -> fmt::Result {
    if reconciliation.namespaces.is_empty() {
        return Ok(());
    }
    for namespace in &reconciliation.namespaces {
        let lead = format!("netns {}: the kernel counts ", namespace.netns);
        let counted = namespace.counters.iter();
        let counted: Vec<String> = counted
            .filter(|(_, figures)| figures.kernel != 0 || figures.residue != 0)
            .map(|(counter, figures)| {
                let name = KERNEL[*counter].1;
                match &figures.because {
                    None => format!("{name} {}, the same", figures.kernel),
                    Some(because) => format!(
                        "{name} {}, conntracer {} ({because})",
                        figures.kernel, figures.counted
                    ),
                }
            })
            .collect();
        paragraph(text, "", &format!("{lead}{}", counted.join("; ")))?;
    }
    let unknown: Vec<&str> = reconciliation.not_reconciled.keys().copied().collect();
    paragraph(text, "", &format!("not compared: {}", unknown.join(", ")))
}

/// One listener on one line.
fn queue(text: &mut String, listener: &Summary) -> fmt::Result {
    write!(text, "  {} netns {}", listener.local, listener.netns)?;
    if let Some(families) = listener.takes {
        write!(text, " ({families})")?;
    }
    if let Some(owner) = &listener.owner {
        write!(text, ", {}", OwnerText(owner))?;
    }
    write!(
        text,
        ": queue {} of {} (peak {})",
        listener.ack_backlog, listener.max_ack_backlog, listener.peak_ack_backlog
    )?;
    if listener.members > 1 {
        write!(text, " at the fullest of {} sockets", listener.members)?;
    }
    match (listener.since_last_accept_s, listener.accepts_per_s) {
        // What nobody waits for is no stall.
        (Some(idle), _) if idle >= 1.0 && listener.ack_backlog > 0 => {
            write!(text, ", nothing accepted for {idle:.1} s")?;
        }
        (_, Some(rate)) => write!(text, ", accepts {rate:.1}/s")?,
        (_, None) => {}
    }
    writeln!(
        text,
        "; {} SYNs: {} added, {} cookies, {} dropped",
        listener.syn_arrivals, listener.syn_added, listener.syn_cookies_sent, listener.syn_drops
    )
}

/// What it belongs to, where it does not stand alone.
fn incident(finding: &Finding) -> String {
    match finding.explained_by {
        Some(cause) => format!(" because of #{cause}"),
        None if !finding.related.is_empty() => format!(" in incident {}", finding.incident),
        None => String::new(),
    }
}

/// What became of a finding, where that is not plain from its being there: its own stage, and whether
/// it is over.
fn state(finding: &Finding) -> Option<String> {
    let status = match finding.status {
        Status::Open => None,
        Status::Update => Some("update"),
        Status::Resolved => Some("resolved"),
    };
    match (finding.stage.as_deref(), status) {
        (Some(stage), Some("resolved")) => Some(format!("resolved, {stage}")),
        (Some(stage), _) => Some(stage.to_owned()),
        (None, status) => status.map(str::to_owned),
    }
}

/// Indented under a finding's headline, and filled.
fn paragraph(text: &mut String, lead: &str, body: &str) -> fmt::Result {
    let taken = INDENT + lead.chars().count();
    let body = Escaped(body).to_string();
    writeln!(text, "  {lead}{}", fill(&body, LINE_CHARS, taken, taken))
}

/// Findings, the hooks that saw anything, and the tallies that are not zero.
fn totals(text: &mut String, account: &Account) -> fmt::Result {
    if account.findings.is_empty() {
        writeln!(text, "no findings")?;
    } else {
        let counts = account.findings.iter();
        let counts: Vec<String> = counts
            .map(|(kind, count)| format!("{count} {}", kind.name()))
            .collect();
        writeln!(text, "{}", counts.join(", "))?;
    }
    for (hook, counters) in account
        .hooks
        .iter()
        .filter(|(_, counters)| counters.seen > 0)
    {
        writeln!(
            text,
            "  {hook:<14} seen {} = emitted {} + aggregated {} + filtered {} + lost {}{}",
            counters.seen,
            counters.emitted,
            counters.aggregated,
            counters.filtered,
            counters.lost,
            if counters.balances() {
                ""
            } else {
                "  (does not balance: events were in flight)"
            },
        )?;
    }
    let tallies = account.tallies.iter().filter(|(_, count)| **count > 0);
    for line in wrap(tallies.map(|(name, count)| format!("{} {count}", Words(name)))) {
        writeln!(text, "  {line}")?;
    }
    for sink in &account.sinks {
        let (events, lines) = (sink.events_lost, sink.lines_lost);
        let name = Escaped(&sink.sink);
        write!(
            text,
            "  output {name}: {events} events and {lines} other lines lost"
        )?;
        match &sink.failed {
            Some(error) => writeln!(text, ", failed: {}", Escaped(error))?,
            None => writeln!(text)?,
        }
    }
    Ok(())
}

/// Joins `parts` by middle dots into lines of at most [`LINE_CHARS`], never within a part.
fn wrap(parts: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line)
                if INDENT + line.chars().count() + 3 + part.chars().count() <= LINE_CHARS =>
            {
                line.push_str(" · ");
                line.push_str(&part);
            }
            _ => lines.push(part),
        }
    }
    lines
}
