//! What a person sees, at the widths that terminals have.

use std::{sync::Arc, time::Duration};

use conntracer_common::record::syn_outcome;
use jiff::tz::TimeZone;
use rstest::rstest;

use super::{Detail, Look, Text, Width};
use crate::{
    sink::line::{Account, Line, Reason},
    testing::{Run, host, listener, socket},
    time::Ktime,
};

/// A full queue with a client that fails by it, a refused client, and a silent peer.
fn run() -> Run {
    let mut run = Run::new();
    run.tick();
    for total in 1..=18 {
        run.syn(listener("10.9.0.1:8080", "10.9.0.2:40000"), |syn| {
            syn.ack_backlog = 3;
            syn.max_ack_backlog = 2;
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = total;
        });
        run.pass(Duration::from_millis(500));
    }
    run.failure(socket("10.9.0.2:40000", "10.9.0.1:8080"), 1, |failure| {
        failure.error = 110;
        failure.how = 0;
    });
    for timeouts in 1..=6 {
        run.pass(Duration::from_secs(2));
        run.retransmit(socket("[2001:db8::1]:443", "[2001:db8::2:1]:50000"), |of| {
            of.tcp.retransmits = timeouts;
        });
    }
    run.pass(Duration::from_secs(20));
    run
}

fn text(look: Look) -> String {
    let run = run();
    let mut text = Text::new(Arc::new(host()), look);
    let mut into = Vec::new();
    let time = Ktime(run.ktime_ns());
    text.render(
        &Line::Start {
            time: Ktime(1_000_000_000_000),
        },
        &mut into,
    );
    for finding in &run.findings {
        text.render(&Line::Finding(Box::new(finding.clone())), &mut into);
    }
    let mut account = Account {
        time,
        ..Account::default()
    };
    for finding in run.last_words() {
        *account.findings.entry(finding.kind).or_insert(0) += 1;
    }
    let account = Box::new(account);
    let reason = Reason::Signal;
    text.render(&Line::Stop { reason, account }, &mut into);
    String::from_utf8(into).unwrap()
}

fn at(columns: usize, detail: Detail) -> Look {
    Look {
        width: Width::Fixed(columns),
        detail,
        ..Look::default()
    }
}

#[rstest]
#[case::narrow(80)]
#[case::usual(120)]
#[case::wide(200)]
fn no_line_is_wider_than_the_terminal(#[case] columns: usize) {
    for detail in [Detail::Lines, Detail::Blocks, Detail::Everything] {
        let text = text(at(columns, detail));
        for line in text.lines() {
            assert!(line.chars().count() <= columns, "{line}");
        }
    }
    let text = text(at(columns, Detail::Blocks));
    insta::assert_snapshot!(format!("text_at_{columns}"), text);
}

#[test]
fn brief_is_a_line_for_each_change_and_the_table() {
    insta::assert_snapshot!(text(at(120, Detail::Lines)));
}

/// A reader far from UTC, over midnight there.
#[test]
fn times_are_the_readers_and_a_new_day_is_said() {
    let day = run().findings[0].at;
    let zone = |hours: i8| TimeZone::fixed(jiff::tz::offset(hours));
    let at = |zone: &TimeZone| {
        let wall = super::Wall::of(&host());
        zone.to_datetime(wall.time(day).0)
    };
    // The zone in which the scenario begins in the last minute of a day.
    let (hours, minutes) = (at(&TimeZone::UTC).hour(), at(&TimeZone::UTC).minute());
    let seconds = 86_400
        - 20
        - i32::from(hours) * 3600
        - i32::from(minutes) * 60
        - i32::from(at(&TimeZone::UTC).second());
    let seconds = if seconds > 43_200 {
        seconds - 86_400
    } else {
        seconds
    };
    let late = TimeZone::fixed(jiff::tz::Offset::from_seconds(seconds).unwrap());
    let said = text(Look {
        zone: late.clone(),
        ..at_usual()
    });
    let date = at(&late).date().tomorrow().unwrap();
    let days: Vec<&str> = said
        .lines()
        .filter(|line| *line == date.to_string())
        .collect();
    assert_eq!(days.len(), 1, "{said}");
    assert!(
        said.contains("\n23:59:4") && said.contains("\n00:00:0"),
        "{said}"
    );
    // The same moment elsewhere.
    let said = text(Look {
        zone: zone(-7),
        ..at_usual()
    });
    assert!(
        said.contains(&format!("\n{:02}:", at(&zone(-7)).hour())),
        "{said}"
    );
}

fn at_usual() -> Look {
    at(100, Detail::Lines)
}
