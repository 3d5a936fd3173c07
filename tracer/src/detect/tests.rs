use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path, time::Duration};

use conntracer_common::{
    record::{netns_flag, syn_outcome},
    stats::hook,
};
use proptest::prelude::*;

use crate::{
    detect::{Limits, SPECS, Thresholds, claims, errno},
    finding::{Certainty, FindingKind, Status},
    testing::{Run, generated, host, listener, socket},
};

#[test]
fn a_finding_on_a_hook_that_lost_records_is_inferred() {
    let mut run = Run::new();
    run.loss(hook::SYN, 3);
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 1;
    });
    assert_eq!(run.only().certainty, Certainty::Inferred);
    assert_eq!(
        run.only().because.as_deref(),
        Some("3 records of the syn hook were lost")
    );
    assert_eq!(run.pipeline.tallies().lost, 3);
}

#[test]
fn a_finding_of_a_detector_without_a_plan_is_inferred() {
    let mut host = host();
    host.plan.detectors.clear();
    let mut run = Run::on(Thresholds::default(), host);
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 1;
    });
    assert_eq!(run.only().certainty, Certainty::Inferred);
}

#[test]
fn what_a_full_table_forgets_is_resolved_and_counted() {
    let thresholds = Thresholds {
        limits: Limits {
            listeners: 2,
            ..Limits::default()
        },
        ..Thresholds::default()
    };
    let mut run = Run::with(thresholds);
    for port in 80..83 {
        let mut listener = listener(&format!("10.0.0.1:{port}"), "10.0.0.2:4000");
        listener.sk += port;
        run.syn(listener, |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 1;
        });
    }
    assert_eq!(
        run.statuses(),
        [Status::Open, Status::Open, Status::Resolved, Status::Open]
    );
    assert!(run.pipeline.tallies().evicted["listeners_evicted"] > 0);
}

#[test]
fn a_namespace_that_is_gone_takes_its_findings_along() {
    let mut run = Run::new();
    for (netns, sk) in [(4026, 1), (4027, 2)] {
        let mut listener = listener("10.0.0.1:80", "10.0.0.2:4000");
        (listener.netns, listener.sk) = (netns, sk);
        run.syn(listener, |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 1;
        });
    }
    run.netns(4026, 7);
    assert_eq!(run.statuses(), [Status::Open, Status::Open]);
    run.netns_with(4026, 7, netns_flag::GONE);
    let [.., ended] = &run.findings[..] else {
        panic!("nothing was found");
    };
    assert_eq!(ended.status, Status::Resolved);
    assert_eq!(ended.subject.netns(), Some(4026));
    assert_eq!(run.findings.len(), 3, "the other namespace's goes on");
    run.assert_replays(Thresholds::default());
}

#[test]
fn watching_is_bounded_and_what_is_not_watched_is_counted() {
    let thresholds = Thresholds {
        limits: Limits {
            watched: 3,
            ..Limits::default()
        },
        ..Thresholds::default()
    };
    let mut run = Run::with(thresholds);
    for port in 4000..4010 {
        run.retransmit(socket("10.0.0.1:80", &format!("10.0.0.2:{port}")), |_| {});
    }
    assert_eq!(run.pipeline.watched().connections.len(), 3);
    assert_eq!(run.pipeline.tallies().unwatched, 7);
}

/// Kinds are declared in the rooms, and listed in the contract.
#[test]
fn the_schema_has_every_kind_of_finding() {
    const BEGINS: &str = "\"finding_kind\": {\n      \"enum\": [\n";
    let kinds: BTreeSet<FindingKind> = SPECS.iter().map(|spec| spec.kind).collect();
    let names: BTreeSet<&str> = kinds.iter().map(|kind| kind.name()).collect();
    assert_eq!(
        names.len(),
        kinds.len(),
        "one place and one name each: {kinds:?}"
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/conntracer.schema.json");
    let schema = fs::read_to_string(path).unwrap();
    let (head, rest) = schema.split_once(BEGINS).unwrap();
    let (_, tail) = rest.split_once("\n      ]").unwrap();
    let names: Vec<String> = kinds
        .iter()
        .map(|kind| format!("        \"{}\"", kind.name()))
        .collect();
    let names = names.join(",\n");
    generated(
        Path::new(path),
        &format!("{head}{BEGINS}{names}\n      ]{tail}"),
    );
}

#[test]
fn thresholds_refuse_unknown_keys_and_senseless_values() {
    assert!(toml::from_str::<Thresholds>("[syn_drop]\nquiet = 3").is_err());
    let thresholds: Thresholds =
        toml::from_str("[retransmit_storm]\nhost_per_s = -1.0").expect("known keys");
    assert!(thresholds.check().unwrap_err().contains("host_per_s"));
    assert_eq!(Thresholds::default().check(), Ok(()));
    let text = toml::to_string(&Thresholds::default()).expect("defaults serialise");
    assert_eq!(
        toml::from_str::<Thresholds>(&text).expect("and parse"),
        Thresholds::default()
    );
}

/// What may happen to any of a few sockets.
fn stir(run: &mut Run, action: u8, who: u8, number: u8) {
    let remote = format!("10.0.0.{}:{}", 2 + who % 2, 4000 + u16::from(who));
    let peer = socket("10.0.0.1:80", &remote);
    let door = listener("10.0.0.1:80", &remote);
    match action {
        0 => run.pass(Duration::from_millis(u64::from(number) * 40)),
        1 => run.syn(door, |syn| {
            syn.totals[usize::from(number) % syn_outcome::COUNT] = number.into();
        }),
        2 => run.syn_ack(door, number % 6, number > 128),
        3 => run.probe(peer, |probe| probe.tcp.probes_out = number % 5),
        4 => run.closed(peer, |closed| {
            closed.error = if number > 128 { 110 } else { 0 };
            closed.retransmits = number % 3;
        }),
        5 => {
            let since_ns = run
                .ktime_ns()
                .saturating_sub(u64::from(number) * 1_000_000_000);
            run.snapshot(peer, |snapshot| {
                snapshot.socket.state = number % 12;
                snapshot.since_ns = since_ns;
            });
        }
        6 => run.reset_received(peer),
        _ => run.retransmit(peer, |retransmit| {
            retransmit.tcp.retransmits = number % 7;
            retransmit.tcp.snd_una = number.into();
            retransmit.segs = number.into();
            retransmit.tcp.ca_state = number % 5;
        }),
    }
}

proptest! {
    /// Live = replay, and every finding opens once, resolves at most once, and says nothing after.
    #[test]
    fn any_records_replay_alike_and_findings_keep_their_order(
        actions in prop::collection::vec((0..9u8, 0..8u8, any::<u8>()), 0..300),
    ) {
        claims::hears_random_records();
        let mut run = Run::new();
        for (action, who, number) in actions {
            stir(&mut run, action, who, number);
        }
        run.finish();
        run.assert_replays(Thresholds::default());
        for last in run.last_words() {
            let said: Vec<_> = run.findings.iter().filter(|said| said.id == last.id).collect();
            prop_assert_eq!(said[0].status, Status::Open);
            for finding in &said[1..said.len().max(2) - 1] {
                prop_assert_eq!(finding.status, Status::Update);
            }
            prop_assert!(said.len() == 1 || last.status != Status::Open);
            for finding in said {
                prop_assert!(finding.since <= finding.last && finding.last <= finding.at);
            }
        }
    }
}

/// Law 10: ten minutes of one client that fails twenty times a second are at most 25 lines, ten of them in the first minute,
/// and each tells all there is by then.
#[test]
fn what_goes_on_is_said_at_growing_intervals() {
    let mut run = Run::new();
    run.tick();
    let began = run.ktime_ns();
    for count in 1..=12_000 {
        run.failure(socket("10.0.0.1:40000", "10.0.0.9:443"), count, |failure| {
            failure.error = errno::ETIMEDOUT;
            failure.how = 0;
        });
        run.skip(Duration::from_millis(50));
        if count % 5 == 0 {
            run.tick();
        }
    }
    run.pass(Duration::from_mins(2));
    let at: Vec<u64> = run
        .findings
        .iter()
        .map(|finding| (finding.at.0 - began) / 1_000_000_000)
        .collect();
    let (last, going_on) = at.split_last().unwrap();
    assert_eq!(
        going_on,
        [0, 1, 3, 7, 15, 31, 63, 127, 255, 511],
        "and {last}"
    );
    assert_eq!(run.only().status, Status::Resolved);
    assert_eq!(run.only().count, 12_000);
    run.assert_replays(Thresholds::default());
}

/// Another cause is another thing to do: it does not wait.
#[test]
fn another_stage_is_said_at_once() {
    let mut run = Run::new();
    let silent = |run: &mut Run, timeouts: u8| {
        run.retransmit(socket("10.0.0.1:80", "10.0.0.2:4000"), |retransmit| {
            retransmit.tcp.retransmits = timeouts;
        });
    };
    for timeouts in 1..=9 {
        run.pass(Duration::from_secs(4));
        silent(&mut run, timeouts);
    }
    let lines = run.findings.len();
    run.closed(socket("10.0.0.1:80", "10.0.0.2:4000"), |state| {
        state.error = errno::ETIMEDOUT;
    });
    let told = &run.findings[lines..];
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(told[0].stage.as_deref(), Some("confirmed"));
}

fn repository(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

/// Every kind once, in order, with the causes of all its detectors.
fn kinds() -> Vec<(FindingKind, Vec<(&'static str, crate::finding::Severity)>)> {
    let mut kinds: Vec<(FindingKind, Vec<_>)> = Vec::new();
    for spec in SPECS {
        if !kinds.iter().any(|(kind, _)| *kind == spec.kind) {
            kinds.push((spec.kind, Vec::new()));
        }
        let (_, causes) = kinds
            .iter_mut()
            .find(|(kind, _)| *kind == spec.kind)
            .expect("it was put in above");
        for cause in spec.causes {
            if !causes.contains(cause) {
                causes.push(*cause);
            }
        }
    }
    kinds
}

#[test]
fn the_page_of_findings_is_what_the_detectors_declare() {
    let explained: std::collections::BTreeMap<&str, &str> = SPECS
        .iter()
        .flat_map(|spec| crate::detect::words(spec.explain))
        .collect();
    let first = |word: &str| {
        let text = explained[word].split("\n\n").next().unwrap_or_default();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let end = text.find(". ").map_or(text.len(), |end| end + 1);
        text[..end].replace('|', "\\|")
    };
    let mut page = "# Findings\n\nMade of what the detectors declare; `conntracer explain WORD` has the whole of each.\n"
        .to_owned();
    for (kind, causes) in kinds() {
        let name = kind.name();
        write!(page, "\n## {name}\n\n{}\n\n", first(name)).unwrap();
        page += "| cause | severity | means |\n|---|---|---|\n";
        for (cause, severity) in causes {
            writeln!(
                page,
                "| `{cause}` | {} | {} |",
                severity.name(),
                first(cause)
            )
            .unwrap();
        }
    }
    generated(&repository("tracer/docs/findings.md"), &page);
}

/// A newcomer's first page is short, lists every finding, and leads to pages that are there.
#[test]
fn the_readme_is_short_and_complete() {
    let readme = fs::read_to_string(repository("README.md")).unwrap();
    assert!(readme.lines().count() <= 150);
    for line in readme.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
    let (_, rest) = readme.split_once("## What it finds").unwrap();
    let (list, _) = rest.split_once("## ").unwrap();
    for (kind, causes) in kinds() {
        let from = list.find(&format!("- `{}`:", kind.name()));
        let entry = &list[from.unwrap_or_else(|| panic!("{} is missing", kind.name()))..];
        let entry = entry[2..].split("\n- ").next().unwrap();
        let entry = entry.split("\n\n").next().unwrap();
        let told: BTreeSet<&str> = entry.split('`').skip(3).step_by(2).collect();
        let declared: BTreeSet<&str> = causes.iter().map(|(cause, _)| *cause).collect();
        assert_eq!(told, declared, "{}", kind.name());
    }
    let pages = fs::read_dir(repository("tracer/docs")).unwrap();
    let pages = pages.map(|page| format!("tracer/docs/{}", page.unwrap().file_name().display()));
    for page in pages {
        assert!(
            readme.contains(&format!("]({page})")),
            "{page} is not linked"
        );
    }
    for target in readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
    {
        if !target.starts_with("https://") {
            assert!(repository(target).exists(), "{target} is not there");
        }
    }
}

/// A poll finds out what this host drops after the finding was said, which has no news by then.
#[test]
fn drops_that_are_found_out_later_are_another_cause() {
    let ends = || socket("10.0.0.1:80", "10.0.0.2:4000");
    let mut run = Run::new();
    for timeouts in 1..=3 {
        run.pass(Duration::from_millis(400));
        run.retransmit(ends(), |retransmit| retransmit.tcp.retransmits = timeouts);
    }
    assert_eq!(run.only().cause, "dead_peer");
    let lines = run.findings.len();
    run.dropped(ends(), |_| ());
    run.pass(Duration::from_secs(2));
    assert_eq!(run.only().cause, "dropped_here");
    // What is of other connections changes nothing.
    run.dropped(socket("10.0.0.1:80", "10.0.0.9:9"), |_| ());
    run.pass(Duration::from_secs(2));
    assert_eq!(run.findings.len(), lines + 1);
    run.assert_replays(Thresholds::default());
}
