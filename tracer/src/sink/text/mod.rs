//! Text for people: an aligned line for each change, what it means where a finding opens or ends, a line for each event,
//! and a table of what was found at the end.
//!
//! Times are local. Colour, width, zone and detail are the caller's decision ([`Look`]); everything that a process or a
//! peer chose goes through [`Escaped`].

pub mod fill;
mod headline;
mod ledger;
mod moment;
mod paragraph;
#[cfg(test)]
mod tests;
mod width;
mod words;

use std::fmt::{self, Write as _};

use conntracer_common::netns::KERNEL;
use jiff::{civil::Date, tz::TimeZone};

pub use self::width::Width;
use self::{
    fill::fill,
    headline::Headline,
    ledger::Ledger,
    paragraph::{INDENT, paragraph},
    width::cut,
    words::{
        Clock, Ends, EvidenceText, OR_A_DESCENDANT, OwnerText, Paint, Segments, Words, errno, held,
        reason, sharers,
    },
};
use super::{
    escape::Escaped,
    line::{Account, Line, Reason, SharedHost, SinkGap, Wall},
};
use crate::{
    count::plural,
    event::{Body, Event, OwnerSource},
    finding::{Certainty, Finding, Status},
    plan::Coverage,
    reconcile::Reconciliation,
    table::listener::Summary,
    time::Ktime,
};

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// A line for each change.
    Lines,
    /// What it means, where a finding opens or ends.
    #[default]
    Blocks,
    /// With all evidence each time, and every account at the end.
    Everything,
}

/// How it looks.
#[derive(Debug)]
pub struct Look {
    pub colour: bool,
    pub width: Width,
    pub zone: TimeZone,
    pub detail: Detail,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            colour: false,
            width: Width::default(),
            zone: TimeZone::UTC,
            detail: Detail::default(),
        }
    }
}

/// Renders lines as text.
#[derive(Debug)]
pub struct Text {
    host: SharedHost,
    wall: Wall,
    paint: Paint,
    width: Width,
    zone: TimeZone,
    detail: Detail,
    ledger: Ledger,
    /// Of the last line.
    date: Option<Date>,
}

impl Text {
    #[must_use]
    pub fn new(host: SharedHost, look: Look) -> Self {
        let Look {
            colour,
            width,
            zone,
            detail,
        } = look;
        let wall = Wall::of(&host);
        Self {
            host,
            wall,
            paint: Paint { colour },
            width,
            zone,
            detail,
            ledger: Ledger::default(),
            date: None,
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
            Line::SinkGap(gap) => self.sink_gap(&mut text, gap),
            Line::Clock { realtime_offset_ns } => {
                self.wall.set(*realtime_offset_ns);
                Ok(())
            }
            Line::Stats { account, .. } => self.stats(&mut text, account),
            Line::Now { moment, .. } => moment::moment(&mut text, moment, self.width.columns()),
            Line::Stop { reason, account } => self.stop(&mut text, *reason, account),
        };
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
        into.extend_from_slice(text.as_bytes());
    }

    fn start(&self, text: &mut String, time: Ktime) -> fmt::Result {
        let host = &*self.host;
        let columns = self.width.columns();
        let local = self.zone.to_datetime(self.wall.time(time).0);
        let zone = self.zone.to_offset(self.wall.time(time).0);
        let first = format!(
            "conntracer {} on {}, Linux {} {}, from {} {:.0} UTC{zone}",
            env!("CARGO_PKG_VERSION"),
            Escaped(&host.hostname),
            Escaped(&host.kernel),
            Escaped(&host.arch),
            local.date(),
            local.time(),
        );
        writeln!(text, "{}", fill(&first, columns, 0, INDENT))?;
        paragraph(text, columns, "", &host.plan.in_one_line())?;
        let (yellow, off) = (self.paint.yellow(), self.paint.off());
        let all: Vec<String> = host.plan.limits().collect();
        if self.detail == Detail::Everything || all.len() < 2 {
            for limit in all {
                let limit = fill(&Escaped(&limit).to_string(), columns, INDENT, 2 * INDENT);
                writeln!(text, "  {yellow}{limit}{off}")?;
            }
            return Ok(());
        }
        let detectors = host.plan.detectors.iter();
        let names: Vec<&str> = detectors
            .filter(|detector| detector.coverage != Coverage::Exact)
            .map(|detector| detector.detector.as_str())
            .collect();
        let limit = format!(
            "not everything is seen here: {} ('conntracer doctor' says what is not)",
            names.join(", ")
        );
        let limit = fill(&Escaped(&limit).to_string(), columns, INDENT, 2 * INDENT);
        writeln!(text, "  {yellow}{limit}{off}")
    }

    /// A line of a change; and what it means, where it opens or ends.
    fn finding(&mut self, text: &mut String, finding: &Finding) -> fmt::Result {
        self.ledger.said(finding);
        self.day(text, finding.at)?;
        let columns = self.width.columns();
        let head = Headline {
            finding,
            time: self.wall.time(finding.at),
            zone: &self.zone,
            paint: &self.paint,
            columns,
        };
        writeln!(text, "{head}")?;
        match (self.detail, finding.status) {
            (Detail::Lines, _) | (Detail::Blocks, Status::Update) => Ok(()),
            (Detail::Blocks, Status::Resolved) => paragraph(text, columns, "", &finding.summary),
            (Detail::Blocks, Status::Open) | (Detail::Everything, _) => {
                self.block(text, finding, columns)
            }
        }
    }

    fn block(&self, text: &mut String, finding: &Finding, columns: usize) -> fmt::Result {
        let paint = &self.paint;
        paragraph(text, columns, "", &finding.summary)?;
        if let Some(owner) = &finding.owner {
            paragraph(text, columns, "owner: ", &OwnerText(owner).to_string())?;
        }
        if let Some(sharers) = sharers(finding) {
            paragraph(text, columns, "", &sharers)?;
        }
        if finding.certainty == Certainty::Inferred {
            let because = finding
                .because
                .as_deref()
                .unwrap_or("not every hook runs here");
            paragraph(text, columns, "inferred: ", because)?;
        }
        if self.detail == Detail::Everything {
            let span = format!(
                "since {}, last {}",
                Clock(self.wall.time(finding.since), &self.zone),
                Clock(self.wall.time(finding.last), &self.zone),
            );
            paragraph(text, columns, "", &span)?;
            let evidence = finding.evidence.iter();
            for line in wrap(evidence.map(|of| EvidenceText(of).to_string()), columns) {
                writeln!(text, "  {}{line}{}", paint.dim(), paint.off())?;
            }
        }
        for advice in &finding.advice {
            paragraph(text, columns, "→ ", advice)?;
        }
        Ok(())
    }

    /// The date, before the first line of a day.
    fn day(&mut self, text: &mut String, at: Ktime) -> fmt::Result {
        let date = self.zone.to_datetime(self.wall.time(at).0).date();
        let last = self.date.replace(date);
        match last {
            Some(last) if last != date => writeln!(text, "{date}"),
            _ => Ok(()),
        }
    }

    fn event(&mut self, text: &mut String, event: &Event) -> fmt::Result {
        self.day(text, event.time)?;
        let clock = Clock(self.wall.time(event.time), &self.zone);
        let about = event.body.about();
        write!(text, "{clock:#} {:<10}", about.name)?;
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
                format!(
                    "  {} → {}{}",
                    state.old.name(),
                    state.new.name(),
                    errno(state.errno)
                )
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
            Body::Undo(undo) => format!(
                "  {} sent again without need",
                plural(undo.totals.segments, "segment")
            ),
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
                "  {}×{} after {}",
                failure.count,
                errno(failure.errno),
                plural(failure.syns.into(), "SYN"),
            ),
            Body::Close(close) => format!(
                "  from {}  {} B sent, {} B received{}",
                close.old.name(),
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
            Body::Snapshot(snapshot) => format!("  {}", snapshot.socket.state.name()),
            Body::Idle(idle) => format!("  idle for {} s", idle.idle.as_secs()),
            Body::Seed(seed) => format!(
                "  {}{}{}",
                seed.socket.state.name(),
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
        let said = format!(
            "{} GAP {lost} records of the {hook} hook were lost before they could be judged",
            Clock(self.wall.time(time), &self.zone),
        );
        let said = fill(&said, self.width.columns(), 0, INDENT);
        writeln!(text, "{}{said}{}", self.paint.yellow(), self.paint.off())
    }

    fn sink_gap(&self, text: &mut String, gap: &SinkGap) -> fmt::Result {
        let of = if gap.said_again == 0 {
            String::new()
        } else {
            let findings = plural(gap.said_again, "finding");
            format!("; what {findings} among them last said follows")
        };
        let said = format!(
            "{} GAP {} of this output were lost since {}: its reader was slower than they came{of}",
            Clock(self.wall.time(gap.until), &self.zone),
            plural(gap.lost(), "line"),
            Clock(self.wall.time(gap.since), &self.zone),
        );
        let said = fill(&said, self.width.columns(), 0, INDENT);
        writeln!(text, "{}{said}{}", self.paint.yellow(), self.paint.off())
    }

    fn stats(&self, text: &mut String, account: &Account) -> fmt::Result {
        write!(
            text,
            "{} stats; ",
            Clock(self.wall.time(account.time), &self.zone)
        )?;
        totals(text, account, self.width.columns())?;
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
        let columns = self.width.columns();
        let clock = Clock(self.wall.time(account.time), &self.zone);
        write!(text, "{clock} stopped: {why}; ")?;
        if self.detail == Detail::Everything {
            totals(text, account, columns)?;
            reconciliation(text, &account.reconciliation, columns)?;
            return self.table(text, columns);
        }
        kinds(text, account)?;
        self.table(text, columns)?;
        accounts(text, account, columns)
    }

    /// What was found, incident by incident.
    fn table(&self, text: &mut String, columns: usize) -> fmt::Result {
        let mut incident = 0;
        for row in self.ledger.rows() {
            let lead = if row.incident == incident { "  " } else { "" };
            incident = row.incident;
            let owner = row.owner.as_deref().unwrap_or_default();
            let state = if row.is_open { "open" } else { "ended" };
            let line = format!(
                "  {lead}#{} {} {state} {} {} {}×  {}  {owner}",
                row.id,
                row.severity.name(),
                row.kind,
                row.cause,
                row.count,
                row.subject,
            );
            let since = Clock(self.wall.time(row.since), &self.zone);
            let line = format!("{line}  since {since}");
            writeln!(text, "{}", cut(&Escaped(&line).to_string(), columns))?;
        }
        match self.ledger.left_out() {
            0 => Ok(()),
            more => writeln!(text, "  and {more} more findings"),
        }
    }
}

/// One line where everything is accounted for; otherwise what is not.
fn accounts(text: &mut String, account: &Account, columns: usize) -> fmt::Result {
    let off = account
        .hooks
        .iter()
        .filter(|(_, counters)| counters.lost > 0 || !counters.balances())
        .map(|(hook, counters)| format!("{hook} lost {} of {}", counters.lost, counters.seen));
    let residues = account.reconciliation.namespaces.iter().flat_map(|netns| {
        let counters = netns.counters.iter();
        let off = counters.filter(|(_, figures)| figures.residue != 0);
        off.map(|(counter, figures)| {
            format!(
                "{} of namespace {}: the kernel counts {}, conntracer {}",
                KERNEL[*counter].1, netns.netns, figures.kernel, figures.counted
            )
        })
    });
    let off: Vec<String> = off.chain(residues).collect();
    let told = &account.reconciliation;
    let compared = told
        .namespaces
        .len()
        .saturating_add(told.namespaces_left_out);
    if off.is_empty() && (!account.hooks.is_empty() || compared > 0) {
        let said = format!(
            "nothing was lost, and the kernel's own counters say the same (network namespaces compared: {compared}; -v shows them)"
        );
        paragraph(text, columns, "", &said)?;
    }
    for line in off {
        paragraph(text, columns, "", &line)?;
    }
    sinks(text, account)
}

/// How the kernel's own counters compare, where either side counted anything.
fn reconciliation(
    text: &mut String,
    reconciliation: &Reconciliation,
    columns: usize,
) -> fmt::Result {
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
        paragraph(text, columns, "", &format!("{lead}{}", counted.join("; ")))?;
    }
    if reconciliation.namespaces_left_out > 0 {
        let said = format!(
            "and {} more network namespaces, less busy",
            reconciliation.namespaces_left_out
        );
        paragraph(text, columns, "", &said)?;
    }
    let unknown: Vec<&str> = reconciliation.not_reconciled.keys().copied().collect();
    paragraph(
        text,
        columns,
        "",
        &format!("not compared: {}", unknown.join(", ")),
    )
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

/// Findings by kind.
fn kinds(text: &mut String, account: &Account) -> fmt::Result {
    if account.findings.is_empty() {
        return writeln!(text, "no findings");
    }
    let counts = account.findings.iter();
    let counts: Vec<String> = counts
        .map(|(kind, count)| format!("{count} {}", kind.name()))
        .collect();
    writeln!(text, "{}", counts.join(", "))
}

/// Findings, the hooks that saw anything, and the tallies that are not zero.
fn totals(text: &mut String, account: &Account, columns: usize) -> fmt::Result {
    kinds(text, account)?;
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
    for line in wrap(
        tallies.map(|(name, count)| format!("{} {count}", Words(name))),
        columns,
    ) {
        writeln!(text, "  {line}")?;
    }
    sinks(text, account)
}

/// What outputs could not take.
fn sinks(text: &mut String, account: &Account) -> fmt::Result {
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

/// Joins `parts` by middle dots into lines of at most so many columns, never within a part.
fn wrap(parts: impl Iterator<Item = String>, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if INDENT + line.chars().count() + 3 + part.chars().count() <= columns => {
                line.push_str(" · ");
                line.push_str(&part);
            }
            _ => lines.push(part),
        }
    }
    lines
}
