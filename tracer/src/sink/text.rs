//! Text for people: a short start block, a readable block for each finding, a line for each event.
//!
//! Times are UTC. Colour is the caller's decision ([`Text::new`]); everything that a process or a
//! peer chose goes through [`Escaped`].

use std::fmt::{self, Write as _};

use conntracer_common::netns::KERNEL;

use super::{
    escape::Escaped,
    line::{Account, Line, Reason, SharedHost, Time, Wall},
};
use crate::{
    event::{self, Body, Event, OwnerSource},
    finding::{Certainty, Container, Evidence, Finding, Ktime, Owner, Status, Subject, Value},
    reconcile::Reconciliation,
    table::listener::Summary,
    view::{fill::fill, plan},
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
            Line::Stats(account) => self.stats(&mut text, account),
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
        writeln!(text, "  {}", plan::in_one_line(&host.plan))?;
        for limit in plan::limits(&host.plan) {
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
            "{} {colour}{}{} {}{}{}  {}",
            Clock(self.wall.time(finding.at)),
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
        writeln!(text, "  #{}", finding.id)?;

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
        write!(text, "{clock} {:<10}", event.body.kind_name())?;
        if let Some(socket) = event.body.socket() {
            write!(text, " {}", Ends(socket))?;
        }
        text.push_str(&self.detail(event.time, &event.body));
        if let Some(owner) = event.body.owner() {
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
            Body::Connect(_)
            | Body::Accept(_)
            | Body::Tick
            | Body::Netns(_)
            | Body::Seeded(_)
            | Body::Audited(_)
            | Body::HalfClosed(_)
            | Body::Clock(_)
            | Body::Process(_)
            | Body::Holders(_) => String::new(),
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
            Body::Refusal(refusal) => format!(
                "  {}×{}{}",
                refusal.count,
                reason(refusal.reason, &self.host.drop_reasons),
                refusal
                    .device
                    .map(|device| format!(" by {}", Escaped(&device.to_text())))
                    .unwrap_or_default(),
            ),
            Body::Failure(failure) => format!(
                "  ×{}  errno {} after {} SYNs",
                failure.count, failure.errno, failure.syns
            ),
            Body::Ending(ending) => format!(
                "  from {:?}  {} bytes sent, {} received{}",
                ending.old,
                ending.bytes_sent(),
                ending.bytes_received(),
                errno(ending.errno),
            ),
            Body::Probe(probe) => format!(
                "  {} unanswered {} result {}",
                if probe.keepalive {
                    "keepalive"
                } else {
                    "window"
                },
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

fn errno(errno: u32) -> String {
    if errno == 0 {
        String::new()
    } else {
        format!(" errno {errno}")
    }
}

fn reason(reason: Option<u32>, names: &std::collections::BTreeMap<u32, String>) -> String {
    match reason {
        None => String::new(),
        Some(number) => match names.get(&number) {
            Some(name) => format!(" {}", Escaped(name)),
            None => format!(" reason {number}"),
        },
    }
}

struct Segments(u32);

impl fmt::Display for Segments {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(formatter, "{} segment{plural}", self.0)
    }
}

/// A snake_case key as words.
struct Words<'a>(&'a str);

impl fmt::Display for Words<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", Escaped(&self.0.replace('_', " ")))
    }
}

/// `name value unit`, the unit taken off the key.
struct EvidenceText<'a>(&'a Evidence);

/// Suffixes of evidence keys and what they are called; the longer of two that fit comes first.
const UNITS: [(&str, &str); 8] = [
    ("_per_s", "/s"),
    ("_per_minute", "/min"),
    ("_percent", " %"),
    ("_bytes", " B"),
    ("_segments", " segments"),
    ("_ms", " ms"),
    ("_us", " µs"),
    ("_s", " s"),
];

impl fmt::Display for EvidenceText<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.0.name.as_ref();
        let (name, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| key.strip_suffix(suffix).map(|name| (name, *unit)))
            .unwrap_or((key, ""));
        write!(formatter, "{} ", Words(name))?;
        match &self.0.value {
            Value::Count(count) => write!(formatter, "{count}{unit}"),
            Value::Number(number) => write!(formatter, "{}{unit}", Short(*number)),
            Value::Text(text) => write!(formatter, "{}{unit}", Escaped(text)),
        }
    }
}

/// A number with the digits that matter: two after the point below 1, one above.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.abs() < 1.0 {
            write!(formatter, "{:.2}", self.0)
        } else {
            write!(formatter, "{:.1}", self.0)
        }
    }
}

/// What a finding is about.
pub(crate) struct SubjectText<'a>(pub(crate) &'a Subject);

impl fmt::Display for SubjectText<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Subject::Listener { netns, local } => {
                write!(formatter, "listener {local} netns {netns}")
            }
            Subject::Connection {
                netns,
                local,
                remote,
                ..
            } => {
                write!(formatter, "{local} → {remote} netns {netns}")
            }
            Subject::Remote { netns, remote } => {
                write!(formatter, "all connections to {remote} netns {netns}")
            }
            Subject::Peer { netns, remote } => {
                write!(formatter, "connections to {remote} netns {netns}")
            }
            Subject::Prefix {
                netns,
                prefix,
                length,
            } => {
                write!(
                    formatter,
                    "all connections to {prefix}/{length} netns {netns}"
                )
            }
            Subject::Netns { netns } => write!(formatter, "netns {netns}"),
            Subject::Process { netns, pid, comm } => {
                write!(formatter, "process {}[{pid}] netns {netns}", Escaped(comm))
            }
            Subject::Host => formatter.write_str("this host"),
        }
    }
}

/// Of an owner that has forked since.
const OR_A_DESCENDANT: &str = " or a descendant";

/// Of a container's id, as runtimes show it.
const CONTAINER_CHARS: usize = 12;

struct OwnerText<'a>(&'a Owner);

impl fmt::Display for OwnerText<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner {
            pid,
            comm,
            uid,
            names,
            source,
            ..
        } = self.0;
        write!(formatter, "{}[{pid}]", Escaped(comm))?;
        if source == OwnerSource::Forked.name() {
            formatter.write_str(OR_A_DESCENDANT)?;
        }
        if let Some(Container { runtime, id }) = &names.container {
            let short = id.get(..CONTAINER_CHARS).unwrap_or(id);
            write!(formatter, " {} {}", Escaped(runtime), Escaped(short))?;
        } else if let Some(unit) = &names.unit {
            write!(formatter, " {}", Escaped(unit))?;
        }
        write!(formatter, " uid {uid}")?;
        match &names.netns_name {
            Some(name) => write!(formatter, " netns {}", Escaped(name)),
            None => Ok(()),
        }
    }
}

/// What several processes hold.
fn held(holders: u32) -> String {
    if holders > 1 {
        format!(" held by {holders} processes")
    } else {
        String::new()
    }
}

/// "shared by nginx[12], nginx[13] and 3 more"; nothing of a socket that one process holds.
fn sharers(finding: &Finding) -> Option<String> {
    let mut names = finding
        .owners
        .iter()
        .map(|Owner { comm, pid, .. }| format!("{}[{pid}]", Escaped(comm)));
    let mut text = format!("shared by {}", names.next()?);
    let mut names = names.peekable();
    let told = u32::try_from(finding.owners.len()).unwrap_or(u32::MAX);
    let more = finding.holders.unwrap_or(told).saturating_sub(told);
    while let Some(name) = names.next() {
        let last = names.peek().is_none() && more == 0;
        text.push_str(if last { " and " } else { ", " });
        text.push_str(&name);
    }
    if more > 0 {
        text.push_str(" and ");
        text.push_str(&more.to_string());
        text.push_str(" more");
    }
    Some(text)
}

struct Ends<'a>(&'a event::Socket);

impl fmt::Display for Ends<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0.local)?;
        if self.0.remote.port() != 0 {
            write!(formatter, " → {}", self.0.remote)?;
        }
        write!(formatter, " netns {}", self.0.netns)
    }
}

/// Time of day: what tells lines apart on a screen.
struct Clock(Time);

impl fmt::Display for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = format!("{:.3}", self.0.0);
        formatter.write_str(
            time.split_once('T')
                .map_or(time.as_str(), |(_, clock)| clock),
        )
    }
}

/// Date and time to the second.
struct Day(Time);

impl fmt::Display for Day {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.0}", self.0.0)
    }
}

/// SGR sequences, or nothing.
#[derive(Debug)]
struct Paint {
    colour: bool,
}

impl Paint {
    const fn sequence(&self, sequence: &'static str) -> &'static str {
        if self.colour { sequence } else { "" }
    }

    const fn red(&self) -> &'static str {
        self.sequence("\x1b[1;31m")
    }

    const fn yellow(&self) -> &'static str {
        self.sequence("\x1b[33m")
    }

    const fn green(&self) -> &'static str {
        self.sequence("\x1b[32m")
    }

    const fn bold(&self) -> &'static str {
        self.sequence("\x1b[1m")
    }

    const fn dim(&self) -> &'static str {
        self.sequence("\x1b[2m")
    }

    const fn off(&self) -> &'static str {
        self.sequence("\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use conntracer_common::record::{owner_source, syn_outcome};
    use rstest::rstest;

    use super::*;
    use crate::testing::{self, Run, socket};

    #[test]
    fn an_owner_that_has_forked_is_itself_or_a_descendant() {
        let mut run = Run::new();
        run.syn(testing::listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 1;
            syn.owner.source = owner_source::FORKED;
        });
        let owner = run.only().owner.as_ref().expect("it is known");
        let said = OwnerText(owner).to_string();
        assert_eq!(said, "server[1234] or a descendant uid 33");
    }

    #[rstest]
    #[case::one(&[1234], 1, None)]
    #[case::two(&[1234, 2], 2, Some("shared by server[1234] and server[2]"))]
    #[case::three(&[1234, 2, 3], 3, Some("shared by server[1234], server[2] and server[3]"))]
    #[case::many(&[1234, 2], 5, Some("shared by server[1234], server[2] and 3 more"))]
    fn sharers_are_listed_as_people_do(
        #[case] pids: &[u32],
        #[case] count: u32,
        #[case] said: Option<&str>,
    ) {
        let mut run = Run::new();
        for timeouts in 1..=3 {
            run.pass(Duration::from_millis(400));
            run.retransmit(socket("10.0.0.1:80", "10.0.0.2:4000"), |retransmit| {
                retransmit.tcp.retransmits = timeouts;
            });
        }
        run.holders(socket("10.0.0.1:80", "10.0.0.2:4000"), pids, count);
        assert_eq!(sharers(run.only()).as_deref(), said);
    }
}
