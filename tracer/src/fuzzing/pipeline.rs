//! Records through the whole pipeline to the bytes that are printed, and the same records replayed.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    sync::{Arc, LazyLock},
};

use conntracer_common::filter::Filter;

use super::{
    plain::{START_NS, plain},
    script::{self, KINDS, Step},
};
use crate::{
    conditions::{Conditions, Owners},
    config::Config,
    detect::{self, SPECS, Thresholds},
    emit::{Emit, Emits},
    filter::EventFilter,
    finding::{Finding, Status, Value},
    host::Host,
    recording::{Reader, Writer},
    sink::{
        Line, Occasion,
        escape::is_hostile,
        json::Json,
        text::{Look, Text},
    },
    watch::Watch,
};

/// A host on which every hook is at its best.
const HOST: &str = include_str!("../../../tests/data/fuzz/host.json");
/// Tables that are full at once.
const NARROW: &str = "\
[detect.limits]
connections = 2
listeners = 2
early_drops = 2
remotes = 2
processes = 2
failures = 2
drops = 2
watched = 1
";
/// Detectors that open at the least.
const EAGER: &str = "\
[detect.syn_drop]
quiet_s = 1
refused_syns = 1
scan_ports = 1
[detect.accept_delay]
wait_ms = 1
quiet_s = 1
begin_s = 0
[detect.half_open]
synack_repeats = 1
synack_requests = 1
flood_sources = 1
timeouts = 1
probes = 1
half_closed_after_s = 1
leak_per_minute = 0
idle_after_s = 1
[detect.retransmit_storm]
connection_per_s = 0.1
remote_per_s = 0.1
host_per_s = 0.1
usual_factor = 0
ratio = 0
quiet_s = 1
[detect.send_stall]
probes = 1
failed_probes = 1
[detect.connect_failure]
quiet_s = 1
[detect.connection_drop]
quiet_s = 1
idle_s = 0
";

/// Bits of a script's first byte.
mod setting {
    pub(super) const NARROW: u8 = 1;
    pub(super) const EAGER: u8 = 2;
    /// The hook plan says nothing.
    pub(super) const BLIND: u8 = 4;
    /// Only what [`super::filtered`] passes.
    pub(super) const FILTERED: u8 = 8;
    /// Events are printed, too.
    pub(super) const EVENTS: u8 = 16;
    /// The replay is of a recording, and what it prints is compared, too.
    pub(super) const FILE: u8 = 32;
}

/// The host of the records: every hook is at its best, or nothing is said of any.
pub(super) fn host(setting: u8) -> Arc<Host> {
    static HOSTS: LazyLock<[Arc<Host>; 2]> = LazyLock::new(|| {
        let host: Host = serde_json::from_str(HOST).expect("the corpus has a host");
        let mut blind = host.clone();
        blind.plan.hooks.clear();
        blind.plan.detectors.clear();
        blind.netns = None;
        [host, blind].map(|host| Arc::new(detect::with_coverage(host)))
    });
    Arc::clone(&HOSTS[usize::from(setting & setting::BLIND != 0)])
}

/// A filter of every kind that asks for most of a script's sockets.
pub(super) fn filtered() -> EventFilter {
    let mut sockets = Filter::NONE;
    sockets.ports[..2].copy_from_slice(&[80, 443]);
    sockets.used.ports = 2;
    sockets.netns[0] = 4026;
    sockets.used.netns = 1;
    let owners = Owners {
        groups: vec!["/web.service".to_owned()],
        ..Owners::default()
    };
    EventFilter::recorded(Conditions { sockets, owners })
}

fn thresholds(setting: u8) -> Thresholds {
    static ALL: LazyLock<[Thresholds; 4]> = LazyLock::new(|| {
        ["", NARROW, EAGER, &format!("{NARROW}{EAGER}")].map(|text| {
            let config = Config::parse(text, "fuzzing".as_ref());
            config.expect("a right config").detect
        })
    });
    ALL[usize::from(setting & (setting::NARROW | setting::EAGER))].clone()
}

/// The target: a script, live and replayed.
pub(super) fn run(data: &[u8]) {
    let Some((&setting, script)) = data.split_first() else {
        return;
    };
    let (live, kept) = live(setting, script);
    let mut replayed = judge(setting, EventFilter::all());
    replayed.heard.prints = setting & setting::FILE != 0;
    if replayed.heard.prints {
        replayed.replay(&recorded(&host(setting), &kept));
    } else {
        for record in &kept {
            replayed.feed(record);
        }
    }
    replayed.finish();
    assert_eq!(live.heard.findings, replayed.heard.findings);
    if replayed.heard.prints {
        assert_eq!(
            String::from_utf8_lossy(&live.heard.json),
            String::from_utf8_lossy(&replayed.heard.json)
        );
    }
}

/// A script as a run would take it, and the records that it kept.
fn live(setting: u8, script: &[u8]) -> (Judge, Vec<Vec<u8>>) {
    let filter = if setting & setting::FILTERED == 0 {
        EventFilter::all()
    } else {
        filtered()
    };
    let mut live = judge(setting, filter);
    let mut kept = Vec::new();
    for step in script::steps(script) {
        match step {
            Step::Feed(record) => {
                if live.feed(&record) {
                    kept.push(record);
                }
            }
            // What only a run does changes nothing that is found.
            Step::Poll => live.poll(),
            Step::Account => live.account(),
        }
    }
    live.finish();
    (live, kept)
}

fn judge(setting: u8, filter: EventFilter) -> Judge {
    let emits = if setting & setting::EVENTS == 0 {
        Emits::default()
    } else {
        Emits::of(&[Emit::All])
    };
    Judge::new(thresholds(setting), &host(setting), emits, filter)
}

fn recorded(host: &Host, records: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), host).expect("a Vec takes everything");
    for record in records {
        writer.record(record).expect("a Vec takes everything");
    }
    writer.into_inner()
}

/// Judges a plain record of each kind, and another at the end of time.
pub(super) fn once(thresholds: &Thresholds) {
    let mut judge = Judge::new(
        thresholds.clone(),
        &host(0),
        Emits::default(),
        EventFilter::all(),
    );
    judge.heard.prints = false;
    for at_ns in [START_NS, u64::MAX] {
        for (kind, _) in KINDS {
            judge.feed(&plain(kind, 0, at_ns));
        }
    }
    judge.finish();
}

/// A pipeline and what is heard of it.
pub(super) struct Judge {
    watch: Watch,
    heard: Heard,
}

impl Judge {
    pub(super) fn new(
        thresholds: Thresholds,
        host: &Arc<Host>,
        emits: Emits,
        filter: EventFilter,
    ) -> Self {
        Self {
            watch: Watch::new(thresholds, Arc::clone(host), emits, filter),
            heard: Heard::new(host),
        }
    }

    /// Whether it matches the filter.
    pub(super) fn feed(&mut self, record: &[u8]) -> bool {
        let heard = &mut self.heard;
        self.watch.feed(record, &mut |line| heard.line(&line))
    }

    /// Feeds what was written by a run.
    fn replay(&mut self, recording: &[u8]) {
        let mut reader = Reader::new(recording).expect("what was written is a recording");
        while let Some(record) = reader.next_record().expect("every record is whole") {
            self.feed(record);
        }
    }

    /// No connection is asked for twice.
    fn poll(&mut self) {
        let mut connections = self.watch.watched().connections;
        let asked = connections.len();
        connections.sort_unstable();
        connections.dedup();
        assert_eq!(connections.len(), asked, "{connections:?}");
    }

    /// The totals, which are printed and not kept.
    pub(super) fn account(&mut self) {
        let account = self.watch.account(Vec::new(), Vec::new(), 0, false);
        let kept = self.heard.json.len();
        self.heard.line(&Line::Stats {
            occasion: Occasion::Signal,
            account: Box::new(account),
        });
        self.heard.json.truncate(kept);
    }

    pub(super) fn finish(&mut self) {
        let heard = &mut self.heard;
        self.watch.finish(&mut |line| heard.line(&line));
    }
}

/// Every line as it is printed, held against what a line may be.
pub(super) struct Heard {
    findings: Vec<Finding>,
    json: Vec<u8>,
    text: Vec<u8>,
    prints: bool,
    render_json: Json,
    render_text: Text,
    open: BTreeSet<u64>,
    last_id: u64,
}

impl Heard {
    pub(super) fn new(host: &Arc<Host>) -> Self {
        Self {
            findings: Vec::new(),
            json: Vec::new(),
            text: Vec::new(),
            prints: true,
            render_json: Json::new(Arc::clone(host)),
            render_text: Text::new(Arc::clone(host), Look::default()),
            open: BTreeSet::new(),
            last_id: 0,
        }
    }

    pub(super) fn line(&mut self, line: &Line) {
        if let Line::Finding(finding) = line {
            self.finding(finding);
            self.findings.push((**finding).clone());
        }
        if !self.prints {
            return;
        }
        let before = self.json.len();
        self.render_json.render(line, &mut self.json);
        let lines = usize::from(!matches!(line, Line::Clock { .. }));
        assert_printable(&self.json[before..], lines..=lines);
        self.text.clear();
        self.render_text.render(line, &mut self.text);
        assert_printable(&self.text, 0..=usize::MAX);
    }

    /// A finding opens once, and nothing is said of it after its end.
    fn finding(&mut self, finding: &Finding) {
        let id = finding.id;
        let in_turn = match finding.status {
            // Of those that are folded into one, one is told.
            Status::Open => id > self.last_id && self.open.insert(id),
            Status::Update => self.open.contains(&id),
            Status::Resolved => self.open.remove(&id),
        };
        assert!(in_turn, "out of turn: {finding:?}");
        self.last_id = self.last_id.max(id);
        let (kind, cause) = (finding.kind, &finding.cause);
        let is_known = SPECS
            .iter()
            .any(|spec| spec.kind == kind && spec.severity(cause).is_some());
        assert!(is_known, "{cause} is no cause of {kind:?}");
        for fact in &finding.evidence {
            if let Value::Number(number) = fact.value {
                assert!(number.is_finite(), "{fact:?}");
            }
        }
    }
}

/// Whether output is text, of so many lines, in which nothing moves a terminal's cursor or hides.
fn assert_printable(bytes: &[u8], lines: RangeInclusive<usize>) {
    let text = std::str::from_utf8(bytes).expect("output is UTF-8");
    let (mut found, mut odd) = (0, 0);
    for byte in bytes {
        found += usize::from(*byte == b'\n');
        odd += usize::from(byte.wrapping_sub(b' ') > b'~' - b' ');
    }
    assert!(lines.contains(&found), "{found} lines: {text}");
    let hostile = |character| character != '\n' && is_hostile(character);
    assert!(odd == found || !text.contains(hostile), "{text:?}");
}

#[cfg(test)]
mod tests {
    use conntracer_tests::schema::Schema;

    use super::*;
    use crate::fuzzing::inputs;

    #[test]
    fn what_the_corpus_prints_is_of_the_contract() {
        let schema = Schema::strict().unwrap();
        for (name, data) in inputs("pipeline") {
            let Some((setting, script)) = data.split_first() else {
                continue;
            };
            let (judge, _) = live(setting | setting::EVENTS, script);
            for line in judge.heard.json.split_inclusive(|byte| *byte == b'\n') {
                let line = serde_json::from_slice(line).unwrap();
                if let Err(error) = schema.accepts(&line) {
                    panic!("{name}: {error:#}: {line}");
                }
            }
        }
    }
}
