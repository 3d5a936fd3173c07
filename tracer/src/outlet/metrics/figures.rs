//! The figures that are served, folded from the lines. Every series of findings, hooks and kernel counters exists from the
//! start at 0; labels are words of conntracer's own, and of the busiest listeners their address and process: never a peer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use conntracer_common::{netns::KERNEL, stats::HOOKS};

use super::{
    exposition::{Exposition, Text, Type},
    process::Process,
};
use crate::{
    detect,
    outlet::lines::{Account, Finding, Incoming, Listener, Reconciled, Start, Stats},
};

/// Kind and cause.
type Key = (String, String);

/// See the module.
#[derive(Debug)]
pub(super) struct Figures {
    start: Option<Start>,
    stats: Option<Box<Stats>>,
    causes: BTreeMap<Key, Counts>,
    open: HashMap<u64, Open>,
    lines_unread: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    opened: u64,
    events: u64,
}

/// An open finding.
#[derive(Debug)]
struct Open {
    key: Key,
    incident: u64,
    count: u64,
}

impl Figures {
    pub(super) fn new() -> Self {
        let causes = detect::SPECS.iter().flat_map(|spec| {
            let causes = spec.causes.iter();
            causes.map(|(cause, _)| (spec.kind.name().to_owned(), (*cause).to_owned()))
        });
        Self {
            start: None,
            stats: None,
            causes: causes.map(|key| (key, Counts::default())).collect(),
            open: HashMap::new(),
            lines_unread: 0,
        }
    }

    /// Takes one line.
    pub(super) fn take(&mut self, line: &str) {
        match Incoming::parse(line) {
            Ok(Incoming::Start(start)) => self.start = Some(start),
            Ok(Incoming::Stats(stats)) => self.stats = Some(stats),
            Ok(Incoming::Finding(finding)) => self.finding(finding),
            Ok(Incoming::Other) => {}
            Err(error) => {
                log::warn!("a line that cannot be read: {error}");
                self.lines_unread = self.lines_unread.saturating_add(1);
            }
        }
    }

    fn finding(&mut self, finding: Finding) {
        let key = (finding.name, finding.cause);
        let before = self.open.remove(&finding.id);
        let counts = self.causes.entry(key.clone()).or_default();
        // Whatever its status: of one whose first line was lost, a later one is said again.
        if before.is_none() {
            counts.opened = counts.opened.saturating_add(1);
        }
        let counted = before.map_or(0, |before| before.count);
        let more = finding.count.saturating_sub(counted);
        counts.events = counts.events.saturating_add(more);
        if finding.status != "resolved" {
            let open = Open {
                key,
                incident: finding.incident,
                count: finding.count,
            };
            self.open.insert(finding.id, open);
        }
    }

    /// All of it.
    pub(super) fn text(&self, exposition: Exposition, process: &Process) -> String {
        let mut text = Text::new(exposition);
        self.build(&mut text);
        self.findings(&mut text);
        self.hooks(&mut text);
        self.counters(&mut text);
        self.listeners(&mut text);
        self.own(&mut text);
        process.tell(&mut text);
        text.end()
    }

    fn build(&self, text: &mut Text) {
        let Some(start) = &self.start else { return };
        text.family(
            "conntracer_build",
            Type::Info,
            "Version of conntracer, and the kernel that it traces.",
        );
        let kernel = ("kernel", &*start.host.kernel);
        text.sample(&[("version", &start.version), kernel], 1);
    }

    fn findings(&self, text: &mut Text) {
        let mut open: BTreeMap<&Key, u64> = self.causes.keys().map(|key| (key, 0)).collect();
        for finding in self.open.values() {
            *open.entry(&finding.key).or_default() += 1;
        }
        let mut each = |name, of, help, value: &dyn Fn(&Key, &Counts) -> u64| {
            text.family(name, of, help);
            for (key, counts) in &self.causes {
                let labels = [("finding", &*key.0), ("cause", &*key.1)];
                text.sample(&labels, value(key, counts));
            }
        };
        each(
            "conntracer_findings_open",
            Type::Gauge,
            "Findings that are open, by their cause.",
            &|key, _| open.get(key).copied().unwrap_or_default(),
        );
        each(
            "conntracer_findings",
            Type::Counter,
            "Findings that opened, by the cause that they opened with.",
            &|_, counts| counts.opened,
        );
        each(
            "conntracer_finding_events",
            Type::Counter,
            "Events that findings count (SYNs dropped, attempts that failed, connections that ended), by their cause.",
            &|_, counts| counts.events,
        );
        let incidents: BTreeSet<u64> = self.open.values().map(|open| open.incident).collect();
        text.family(
            "conntracer_incidents_open",
            Type::Gauge,
            "Incidents with an open finding.",
        );
        text.sample(&[], incidents.len());
    }

    fn hooks(&self, text: &mut Text) {
        text.family(
            "conntracer_hook",
            Type::Info,
            "How each hook is attached; type off where it is not.",
        );
        let plan = self.start.iter().flat_map(|start| &start.plan.hooks);
        for hook in plan {
            text.sample(&[("hook", &hook.hook), ("type", &hook.hook_type)], 1);
        }
        let mut each = |name, help, value: fn(&Account) -> u64| {
            text.family(name, Type::Counter, help);
            for hook in HOOKS {
                let account = self.stats.as_ref().and_then(|stats| stats.hooks.get(hook));
                text.sample(&[("hook", hook)], account.map_or(0, value));
            }
        };
        each(
            "conntracer_hook_seen",
            "Kernel events that came to a hook.",
            |of| of.seen,
        );
        each(
            "conntracer_hook_emitted",
            "Kernel events that became a record of their own; the others were counted in the kernel, or did not match the filter.",
            |of| of.emitted,
        );
        each(
            "conntracer_hook_lost",
            "Kernel events that were lost before they could be judged.",
            |of| of.lost,
        );
    }

    fn counters(&self, text: &mut Text) {
        let mut each = |name, of, help, value: fn(&Reconciled) -> i128| {
            text.family(name, of, help);
            for (_, counter) in KERNEL {
                let sums = self.stats.as_ref().map(|stats| &stats.reconciliation.sums);
                let figures = sums.and_then(|sums| sums.get(counter));
                text.sample(&[("counter", counter)], figures.map_or(0, value));
            }
        };
        each(
            "conntracer_kernel_tcp",
            Type::Counter,
            "The kernel's own TCP counters (/proc/net/snmp and netstat), over all network namespaces, since conntracer watches them.",
            |of| of.kernel.into(),
        );
        each(
            "conntracer_residue",
            Type::Gauge,
            "What the kernel counted and conntracer did not see; 0 where every hook runs.",
            |of| of.residue.into(),
        );
    }

    /// Of the busiest; how many others there are is one more series.
    fn listeners(&self, text: &mut Text) {
        let listeners = self.stats.iter().flat_map(|stats| &stats.listeners);
        let listeners: Vec<&Listener> = listeners.collect();
        let mut each = |name, of, help, value: fn(&Listener) -> Option<f64>| {
            text.family(name, of, help);
            for listener in &listeners {
                let Some(value) = value(listener) else {
                    continue;
                };
                let netns = listener.netns.to_string();
                let process = listener.owner.as_ref().map_or("", |owner| &*owner.comm);
                let labels = [
                    ("local", &*listener.local),
                    ("netns", &*netns),
                    ("process", process),
                ];
                text.sample(&labels, value);
            }
        };
        each(
            "conntracer_listener_queue",
            Type::Gauge,
            "Connections that wait for accept(), as the last SYN found them.",
            |of| Some(of.ack_backlog.into()),
        );
        each(
            "conntracer_listener_queue_peak",
            Type::Gauge,
            "The most that waited for accept().",
            |of| Some(of.peak_ack_backlog.into()),
        );
        each(
            "conntracer_listener_queue_limit",
            Type::Gauge,
            "Limit of the accept queue: the smaller of listen()'s backlog and net.core.somaxconn.",
            |of| Some(of.max_ack_backlog.into()),
        );
        each(
            "conntracer_listener_accepts_per_second",
            Type::Gauge,
            "Connections that left the accept queue, a second.",
            |of| of.accepts_per_s,
        );
        #[expect(clippy::cast_precision_loss, reason = "a scraper reads floats")]
        {
            each(
                "conntracer_listener_syns_added",
                Type::Counter,
                "SYNs that became a request.",
                |of| Some(of.syn_added as f64),
            );
            each(
                "conntracer_listener_syns_dropped",
                Type::Counter,
                "SYNs that the kernel dropped.",
                |of| Some(of.syn_drops as f64),
            );
            each(
                "conntracer_listener_syn_cookies_sent",
                Type::Counter,
                "SYNs that were answered with a cookie.",
                |of| Some(of.syn_cookies_sent as f64),
            );
        }
        text.family(
            "conntracer_listeners_left_out",
            Type::Gauge,
            "Listeners that are quieter than those above.",
        );
        let left_out = self.stats.as_ref().map_or(0, |of| of.listeners_left_out);
        text.sample(&[], left_out);
    }

    /// What conntracer tells of itself.
    fn own(&self, text: &mut Text) {
        text.family(
            "conntracer_tally",
            Type::Gauge,
            "What conntracer counted since its start, by the name that its stop line has for it.",
        );
        let tallies = self.stats.iter().flat_map(|stats| &stats.tallies);
        for (name, count) in tallies {
            text.sample(&[("name", name)], count);
        }
        text.family(
            "conntracer_sink_lost",
            Type::Counter,
            "Lines that an output could not take.",
        );
        for sink in self.stats.iter().flat_map(|stats| &stats.sinks) {
            for (kind, lost) in [("event", sink.events_lost), ("other", sink.lines_lost)] {
                text.sample(&[("sink", &sink.name), ("kind", kind)], lost);
            }
        }
        text.family(
            "conntracer_lines_unread",
            Type::Counter,
            "Lines from the tracer that could not be read; always 0.",
        );
        text.sample(&[], self.lines_unread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERIES: usize = 500;

    fn finding(id: u64, cause: &str, status: &str, count: u64) -> String {
        format!(
            r#"{{"schema":1,"time":"2026-01-01T00:00:00.000000000Z","kind":"finding","id":{id},"finding":"syn_drop",
               "cause":"{cause}","status":"{status}","incident":7,"count":{count},"more":[{{}}]}}"#
        )
    }

    fn text(figures: &Figures) -> String {
        figures.text(Exposition::Prometheus, &Process::parent())
    }

    fn value(text: &str, series: &str) -> u64 {
        let lines: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
            .collect();
        let [value] = lines[..] else {
            panic!("{series}: {lines:?}")
        };
        value.parse().unwrap()
    }

    fn of(text: &str, cause: &str) -> [u64; 3] {
        ["findings_open", "findings_total", "finding_events_total"].map(|name| {
            let labels = format!("{{finding=\"syn_drop\",cause=\"{cause}\"}}");
            value(text, &format!("conntracer_{name}{labels}"))
        })
    }

    #[test]
    fn a_finding_is_followed_from_its_opening_to_its_end() {
        let mut figures = Figures::new();
        assert_eq!(of(&text(&figures), "no_listener"), [0, 0, 0]);
        figures.take(&finding(1, "no_listener", "open", 3));
        figures.take(&finding(2, "no_listener", "open", 1));
        figures.take(&finding(1, "no_listener", "update", 5));
        let now = text(&figures);
        assert_eq!(of(&now, "no_listener"), [2, 2, 6]);
        assert_eq!(value(&now, "conntracer_incidents_open"), 1);
        // Its cause turns out to be another: what was counted stays where it was.
        figures.take(&finding(1, "accept_queue_full", "update", 9));
        let now = text(&figures);
        assert_eq!(of(&now, "no_listener"), [1, 2, 6]);
        assert_eq!(of(&now, "accept_queue_full"), [1, 0, 4]);
        figures.take(&finding(1, "accept_queue_full", "resolved", 9));
        figures.take(&finding(2, "no_listener", "resolved", 1));
        let now = text(&figures);
        assert_eq!(of(&now, "accept_queue_full"), [0, 0, 4]);
        assert_eq!(value(&now, "conntracer_incidents_open"), 0);
    }

    #[test]
    fn one_whose_opening_was_lost_is_counted_when_it_is_said_again() {
        let mut figures = Figures::new();
        figures.take(&finding(1, "no_listener", "resolved", 4));
        assert_eq!(of(&text(&figures), "no_listener"), [0, 1, 4]);
    }

    #[test]
    fn every_series_is_there_from_the_start_and_they_are_few() {
        let now = text(&Figures::new());
        for spec in detect::SPECS {
            for (cause, _) in spec.causes {
                let labels = format!("{{finding=\"{}\",cause=\"{cause}\"}}", spec.kind.name());
                assert_eq!(value(&now, &format!("conntracer_findings_open{labels}")), 0);
            }
        }
        for hook in HOOKS {
            let series = format!("conntracer_hook_lost_total{{hook=\"{hook}\"}}");
            assert_eq!(value(&now, &series), 0);
        }
        // With what a busy host adds: 16 listeners of seven series each, tallies and outputs.
        let series = now.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series + 16 * 7 + 60 < SERIES, "{series}");
    }

    #[test]
    fn a_line_that_cannot_be_read_is_counted() {
        let mut figures = Figures::new();
        figures.take("{\"kind\":\"finding\"}");
        figures.take("half a li");
        figures.take(r#"{"kind":"syn","more":1}"#);
        assert_eq!(value(&text(&figures), "conntracer_lines_unread_total"), 2);
    }
}
