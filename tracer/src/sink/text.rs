//! Text for people: a short start block, a readable block for each finding, a line for each event.
//!
//! Times are UTC. Colour is the caller's decision ([`Text::new`]); everything that a process or a
//! peer chose goes through [`Escaped`].

use std::fmt;

use super::{
    escape::Escaped,
    line::{Account, Line, Reason, SharedHost, Time, Wall},
};
use crate::{
    event::{self, Body, Event},
    finding::{Certainty, Evidence, Finding, Ktime, Owner, Status, Subject, Value},
    view::plan,
};

/// Evidence on one line before it wraps: what fits 100 columns with the indent.
const LINE_CHARS: usize = 96;

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
    pub fn render(&self, line: &Line, into: &mut Vec<u8>) {
        let rendered = match line {
            Line::Start { time } => self.start(*time),
            Line::Finding(finding) => self.finding(finding),
            Line::Event(event) => self.event(event),
            Line::Gap { time, hook, lost } => self.gap(*time, hook, *lost),
            Line::Stats(account) => self.stats(account),
            Line::Stop { reason, account } => self.stop(*reason, account),
        };
        into.extend_from_slice(rendered.as_bytes());
    }

    fn start(&self, time: Ktime) -> String {
        let host = &*self.host;
        let mut text = format!(
            "conntracer {} on {}, Linux {} {}, from {}\n",
            env!("CARGO_PKG_VERSION"),
            Escaped(&host.hostname),
            Escaped(&host.kernel),
            Escaped(&host.arch),
            Day(self.wall.time(time)),
        );
        text += &format!("  {}\n", plan::in_one_line(&host.plan));
        for sight in plan::limits(&host.plan) {
            text += &format!(
                "  {}{}{}\n",
                self.paint.yellow(),
                Escaped(&sight),
                self.paint.off()
            );
        }
        text
    }

    fn finding(&self, finding: &Finding) -> String {
        let paint = &self.paint;
        let colour = match finding.status {
            Status::Open => paint.red(),
            Status::Update => paint.yellow(),
            Status::Resolved => paint.green(),
        };
        let kind = finding.kind.name().to_uppercase();
        let stage = finding.stage.as_deref().unwrap_or(match finding.status {
            Status::Open => "",
            Status::Update => "update",
            Status::Resolved => "resolved",
        });
        let mut text = format!(
            "{} {colour}{kind}{} {}{}{}  {}",
            Clock(self.wall.time(finding.at)),
            paint.off(),
            paint.bold(),
            Escaped(&finding.cause),
            paint.off(),
            SubjectText(&finding.subject),
        );
        if let Some(owner) = &finding.owner {
            text += &format!("  {}", OwnerText(owner));
        }
        text += &format!("  {}×", finding.count);
        if !stage.is_empty() {
            text += &format!("  {}", Escaped(stage));
        }
        text += &format!("  #{}\n", finding.id);

        text += &format!(
            "  {}; since {}, last {}\n",
            Escaped(&finding.summary),
            Clock(self.wall.time(finding.since)),
            Clock(self.wall.time(finding.last)),
        );
        if finding.certainty == Certainty::Inferred {
            let because = finding
                .because
                .as_deref()
                .unwrap_or("not every hook runs here");
            text += &format!("  inferred: {}\n", Escaped(because));
        }
        for line in wrap(
            finding
                .evidence
                .iter()
                .map(|evidence| EvidenceText(evidence).to_string()),
        ) {
            text += &format!("  {}{line}{}\n", paint.dim(), paint.off());
        }
        for advice in &finding.advice {
            text += &format!("  → {}\n", Escaped(advice));
        }
        text
    }

    fn event(&self, event: &Event) -> String {
        let clock = Clock(self.wall.time(event.time));
        let mut text = format!("{clock} {:<10}", event.body.kind_name());
        if let Some(socket) = event.body.socket() {
            text += &format!(" {}", Ends(socket));
        }
        text += &self.detail(&event.body);
        if let Some(owner) = event.body.owner() {
            text += &format!("  {}[{}]", Escaped(&owner.comm.to_text()), owner.pid);
        }
        text.push('\n');
        text
    }

    fn detail(&self, body: &Body) -> String {
        match body {
            Body::Connect(_) | Body::Accept(_) | Body::Tick => String::new(),
            Body::State(state) => {
                let error = if state.errno == 0 {
                    String::new()
                } else {
                    format!(" errno {}", state.errno)
                };
                format!("  {:?} → {:?}{error}", state.old, state.new)
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
            Body::Drop(drop) => {
                format!(
                    "  flags {:#04x}{}",
                    drop.tcp_flags,
                    reason(drop.reason, &self.host.drop_reasons)
                )
            }
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
            Body::Loss(loss) => format!(" {} lost {}", loss.hook_name(), loss.lost),
        }
    }

    fn gap(&self, time: Ktime, hook: &str, lost: u64) -> String {
        format!(
            "{} {}GAP{} {lost} records of the {hook} hook were lost before they could be judged\n",
            Clock(self.wall.time(time)),
            self.paint.yellow(),
            self.paint.off(),
        )
    }

    fn stats(&self, account: &Account) -> String {
        format!(
            "{} stats{}",
            Clock(self.wall.time(account.time)),
            accounts(account)
        )
    }

    fn stop(&self, reason: Reason, account: &Account) -> String {
        let why = match reason {
            Reason::Duration => "the time asked for is over",
            Reason::Signal => "asked to stop",
            Reason::EndOfInput => "end of the recording",
            Reason::BrokenPipe => "nobody reads any more",
        };
        format!(
            "{} stopped: {why}{}",
            Clock(self.wall.time(account.time)),
            accounts(account)
        )
    }
}

/// Findings, the hooks that saw anything, and the tallies that are not zero.
fn accounts(account: &Account) -> String {
    let findings = if account.findings.is_empty() {
        "no findings".to_owned()
    } else {
        let counts = account
            .findings
            .iter()
            .map(|(kind, count)| format!("{count} {}", kind.name()));
        counts.collect::<Vec<_>>().join(", ")
    };
    let mut text = format!("; {findings}\n");
    let seen = account
        .hooks
        .iter()
        .filter(|(_, counters)| counters.seen > 0);
    for (hook, counters) in seen {
        text += &format!(
            "  {hook:<14} seen {} = emitted {} + aggregated {} + filtered {} + lost {}{}\n",
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
        );
    }
    let tallies = account.tallies.iter().filter(|(_, count)| **count > 0);
    let tallies = tallies.map(|(name, count)| format!("{} {count}", Words(name)));
    for line in wrap(tallies) {
        text += &format!("  {line}\n");
    }
    text
}

/// Joins `parts` by middle dots into lines of at most [`LINE_CHARS`], never within a part.
fn wrap(parts: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 3 + part.chars().count() <= LINE_CHARS => {
                line.push_str(" · ");
                line.push_str(&part);
            }
            _ => lines.push(part),
        }
    }
    lines
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
            Subject::Process { netns, pid, comm } => {
                write!(formatter, "process {}[{pid}] netns {netns}", Escaped(comm))
            }
            Subject::Host => formatter.write_str("this host"),
        }
    }
}

struct OwnerText<'a>(&'a Owner);

impl fmt::Display for OwnerText<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner { pid, comm, uid, .. } = self.0;
        write!(formatter, "{}[{pid}] uid {uid}", Escaped(comm))
    }
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
