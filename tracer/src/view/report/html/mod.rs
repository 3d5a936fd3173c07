//! The report as one page: a file that needs nothing else, asks nobody for anything and runs no script.

mod chart;
#[cfg(test)]
mod tests;
mod text;

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;

use self::{
    chart::{Lasting, Point, Span, lasted, over_time, ranked},
    text::{Html, moment},
};
use super::fold::{Found, Incident, Report};
use crate::{
    count::{Grow, plural},
    finding::{Severity, Status},
};

const STYLE: &str = include_str!("style.css");
/// Of [`STYLE`]: a browser applies that and no other.
const STYLE_HASH: &str = "sha256-5eSw7WwModqT4zRs6cgVJgXn5uuIGXOepyA/uZ+D/Fc=";

/// Bars of a chart that ranks or lasts.
const MAX_BARS: usize = 20;
/// Accept queues with a chart of their own: the fullest.
const MAX_QUEUES: usize = 12;
/// Findings with a block of their own: the worst.
const MAX_BLOCKS: usize = 60;

/// The whole page.
#[must_use]
pub fn html(report: &Report) -> String {
    let incidents = report.incidents();
    let host = report.host.as_deref().unwrap_or("a host that is not named");
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src '{STYLE_HASH}'; \
         base-uri 'none'; form-action 'none'\">\
         <link rel=\"icon\" href=\"data:,\"><title>conntracer: {0}</title><style>{STYLE}</style></head><body>\n\
         <header><h1>What failed on {0}</h1>",
        Html(host)
    );
    verdict(&mut page, report, &incidents);
    page.push_str("</header>\n<main>\n");
    if let Some((first, last)) = report.span {
        let span = Span {
            first: first.as_nanosecond(),
            last: last.as_nanosecond(),
        };
        timeline(&mut page, report, &incidents, span);
        queues(&mut page, report, span);
        segments(&mut page, report, span);
    }
    ends(&mut page, report);
    ranks(&mut page, report);
    blocks(&mut page, report, &incidents);
    accounts(&mut page, report);
    page.push_str("</main>\n</body></html>\n");
    page
}

fn class(severity: Severity) -> &'static str {
    severity.name()
}

fn verdict(page: &mut String, report: &Report, incidents: &[Incident<'_>]) {
    let findings = report.findings.len();
    let verdict = if findings == 0 {
        "Nothing was found.".to_owned()
    } else {
        let open = incidents.iter().filter(|incident| !incident.is_over());
        format!(
            "{} in {}; {} still open at the end.",
            plural(findings as u64, "finding"),
            plural(incidents.len() as u64, "incident"),
            open.count()
        )
    };
    let _ = write!(page, "<p class=\"verdict\">{}</p>", Html(&verdict));
    if let Some((first, last)) = report.span {
        let _ = write!(
            page,
            "<p class=\"soft\">From {} to {} UTC; all times are UTC.</p>",
            moment(first),
            moment(last)
        );
    }
}

/// How a finding is called in one line.
fn name(report: &Report, incident: &Incident<'_>) -> String {
    incident
        .findings
        .first()
        .map_or_else(String::new, |(key, found)| {
            let latest = &found.latest;
            format!(
                "#{} {} {}",
                report.number(*key),
                latest.finding,
                latest.cause
            )
        })
}

fn anchor(report: &Report, incident: &Incident<'_>) -> String {
    format!("incident-{}", report.number(incident.key))
}

fn timeline(page: &mut String, report: &Report, incidents: &[Incident<'_>], span: Span) {
    page.push_str("<section id=\"incidents\"><h2>Incidents over time</h2>");
    if incidents.is_empty() {
        page.push_str("<p>None.</p></section>\n");
        return;
    }
    let bars: Vec<Lasting> = incidents
        .iter()
        .take(MAX_BARS)
        .map(|incident| {
            let found = incident.findings.iter().map(|(_, found)| &found.latest);
            let from = found
                .clone()
                .map(|latest| latest.since.as_nanosecond())
                .min();
            let to = if incident.is_over() {
                found.map(|latest| latest.last.as_nanosecond()).max()
            } else {
                Some(report.end_of_run(incident.key, span.last))
            };
            Lasting {
                name: name(report, incident),
                class: class(incident.severity),
                from: from.unwrap_or(span.first),
                to: to.unwrap_or(span.last),
                link: anchor(report, incident),
            }
        })
        .collect();
    page.push_str(&lasted("Incidents over time".to_owned(), span, &bars).render());
    left_out(page, incidents.len(), MAX_BARS, "incident");
    page.push_str("</section>\n");
}

fn left_out(page: &mut String, all: usize, most: usize, noun: &str) {
    if let Some(more) = all.checked_sub(most).filter(|more| *more > 0) {
        let _ = write!(
            page,
            "<p class=\"soft\">{} more left out.</p>",
            Html(&plural(more as u64, noun))
        );
    }
}

fn queues(page: &mut String, report: &Report, span: Span) {
    page.push_str("<section id=\"queues\"><h2>Accept queues</h2>");
    if report.queues.is_empty() {
        page.push_str(
            "<p class=\"soft\">No data: the file has no line with the length of an accept queue (--emit stats or --emit syn \
             adds them).</p></section>\n",
        );
        return;
    }
    let mut fullest: Vec<_> = report
        .queues
        .iter()
        .map(|(key, series)| {
            let part = series
                .steps()
                .map(|(_, queue)| queue.longest.saturating_mul(1000) / queue.limit.max(1))
                .max();
            (part.unwrap_or(0), key, series)
        })
        .collect();
    fullest.sort_by_key(|(part, key, _)| (std::cmp::Reverse(*part), *key));
    for (_, (netns, local), series) in fullest.iter().take(MAX_QUEUES) {
        let points: Vec<Point> = series
            .steps()
            .map(|(at, queue)| Point {
                at,
                bar: queue.longest,
                line: queue.limit,
            })
            .collect();
        let title = format!("Accept queue of {local}, network namespace {netns}");
        let _ = write!(page, "<h3>{}</h3>", Html(&title));
        let chart = over_time(
            title,
            (span, series.step_ns),
            &points,
            ("longest", "limit"),
            (("bar", "limit"), true),
        );
        page.push_str(&chart.render());
    }
    left_out(page, fullest.len(), MAX_QUEUES, "queue");
    if report.queues_left_out > 0 {
        let _ = write!(
            page,
            "<p class=\"soft\">{} lines about further queues left out.</p>",
            report.queues_left_out
        );
    }
    page.push_str("</section>\n");
}

fn segments(page: &mut String, report: &Report, span: Span) {
    page.push_str("<section id=\"segments\"><h2>Retransmissions</h2>");
    if report.segments.is_empty() {
        page.push_str(
            "<p class=\"soft\">No data: the file has no retransmit lines (--emit retransmit adds them).</p></section>\n",
        );
        return;
    }
    let points: Vec<Point> = report
        .segments
        .steps()
        .map(|(at, segments)| Point {
            at,
            bar: segments.again,
            line: segments.sent,
        })
        .collect();
    page.push_str(
        "<p class=\"soft\">Bars: segments retransmitted. Line: segments sent by the same connections since their last \
         retransmission.</p>",
    );
    let chart = over_time(
        "Segments retransmitted and sent".to_owned(),
        (span, report.segments.step_ns),
        &points,
        ("retransmitted", "sent"),
        (("again", "sent"), false),
    );
    page.push_str(&chart.render());
    page.push_str("</section>\n");
}

fn ends(page: &mut String, report: &Report) {
    page.push_str("<section id=\"ends\"><h2>What failed, by cause</h2>");
    let mut causes = BTreeMap::<String, u64>::new();
    for Found { latest, .. } in report.findings.values() {
        let events = causes
            .entry(format!("{} {}", latest.finding, latest.cause))
            .or_default();
        *events = events.saturating_add(latest.count);
    }
    rank(page, "Events by cause", ("cause", "events"), causes);
    if !report.ends.is_empty() {
        page.push_str("<h3>How connections ended</h3>");
        let ends = report
            .ends
            .iter()
            .map(|(end, count)| ((*end).to_owned(), *count));
        rank(
            page,
            "Connections by end",
            ("end", "connections"),
            ends.collect(),
        );
    }
    page.push_str("</section>\n");
}

fn rank(
    page: &mut String,
    title: &str,
    heads: (&'static str, &'static str),
    all: BTreeMap<String, u64>,
) {
    if all.is_empty() {
        page.push_str("<p class=\"soft\">None.</p>");
        return;
    }
    let mut all: Vec<(String, u64)> = all.into_iter().collect();
    all.sort_by(|one, other| (other.1, &one.0).cmp(&(one.1, &other.0)));
    let count = all.len();
    all.truncate(MAX_BARS);
    page.push_str(&ranked(title.to_owned(), heads, &all).render());
    left_out(page, count, MAX_BARS, heads.0);
}

fn ranks(page: &mut String, report: &Report) {
    let (mut processes, mut peers) = (
        BTreeMap::<String, u64>::new(),
        BTreeMap::<String, u64>::new(),
    );
    for Found { latest, .. } in report.findings.values() {
        if let Some(process) = latest.process() {
            processes.entry(process).or_default().grow(1);
        }
        if let Some(peer) = latest.peer() {
            peers.entry(peer).or_default().grow(1);
        }
    }
    page.push_str("<section id=\"processes\"><h2>Processes</h2>");
    rank(
        page,
        "Findings by process",
        ("process", "findings"),
        processes,
    );
    page.push_str("</section>\n<section id=\"peers\"><h2>Remote addresses</h2>");
    rank(
        page,
        "Findings by remote address",
        ("address", "findings"),
        peers,
    );
    page.push_str("</section>\n");
}

fn blocks(page: &mut String, report: &Report, incidents: &[Incident<'_>]) {
    page.push_str("<section id=\"findings\"><h2>Findings</h2>");
    let mut room = MAX_BLOCKS;
    for incident in incidents {
        if room == 0 {
            break;
        }
        let _ = write!(page, "<div id=\"{}\">", Html(&anchor(report, incident)));
        for (at, (key, found)) in incident.findings.iter().enumerate() {
            if room == 0 {
                break;
            }
            room -= 1;
            block(page, &report.number(*key), found, (incident, at));
        }
        page.push_str("</div>\n");
    }
    left_out(page, report.findings.len(), MAX_BLOCKS, "finding");
    if report.forgotten > 0 {
        let _ = write!(
            page,
            "<p class=\"soft\">{} lines of further findings left out.</p>",
            report.forgotten
        );
    }
    page.push_str("</section>\n");
}

fn block(page: &mut String, number: &str, found: &Found, (incident, at): (&Incident<'_>, usize)) {
    let latest = &found.latest;
    let severity = latest.severity.unwrap_or(Severity::Warning);
    let (state, colour) = match latest.status {
        Status::Resolved => ("ended", "ended"),
        Status::Open | Status::Update => (severity.name(), class(severity)),
    };
    let _ = write!(
        page,
        "<article><h3><span class=\"{colour}\">{state}</span> #{} {} {}</h3><p>{}</p>\
         <p class=\"soft\">{}{}; from {} to {} UTC; count {}</p>",
        Html(number),
        Html(&latest.finding),
        Html(&latest.cause),
        Html(&latest.summary),
        Html(&latest.place()),
        Html(
            &latest
                .process()
                .map_or_else(String::new, |process| format!("; {process}"))
        ),
        moment(latest.since),
        moment(latest.last),
        latest.count,
    );
    if let Some(because) = &latest.because {
        let _ = write!(page, "<p class=\"soft\">inferred: {}</p>", Html(because));
    }
    if !latest.advice.is_empty() {
        page.push_str("<ul>");
        for advice in &latest.advice {
            let _ = write!(page, "<li>{}</li>", Html(advice));
        }
        page.push_str("</ul>");
    }
    if !latest.evidence.is_empty() {
        page.push_str("<details open><summary>evidence</summary><dl>");
        for (name, value) in &latest.evidence {
            let value = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let _ = write!(page, "<dt>{}</dt><dd>{}</dd>", Html(name), Html(&value));
        }
        page.push_str("</dl></details>");
    }
    before(page, found, (incident, at));
    page.push_str("</article>\n");
}

/// What came before the last word: the others of its incident that began earlier, and its own course.
fn before(page: &mut String, found: &Found, (incident, at): (&Incident<'_>, usize)) {
    let earlier: Vec<String> = incident
        .findings
        .iter()
        .enumerate()
        .filter(|(other, (_, earlier))| *other != at && earlier.latest.since < found.latest.since)
        .map(|(_, (_, earlier))| {
            let latest = &earlier.latest;
            format!(
                "#{} {} {} since {} UTC",
                latest.id,
                latest.finding,
                latest.cause,
                moment(latest.since)
            )
        })
        .collect();
    if !earlier.is_empty() {
        let _ = write!(
            page,
            "<p class=\"soft\">Before it, in the same incident: {}</p>",
            Html(&earlier.join("; "))
        );
    }
    if found.changes.len() < 2 {
        return;
    }
    page.push_str(
        "<details><summary>its course</summary><div class=\"wide\"><table><thead><tr><th scope=\"col\">at (UTC)</th>\
         <th scope=\"col\">status</th><th scope=\"col\">cause</th><th scope=\"col\">stage</th><th scope=\"col\" \
         class=\"number\">count</th></tr></thead><tbody>",
    );
    for change in &found.changes {
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"number\">{}</td></tr>",
            moment(change.at),
            change.status.name(),
            Html(&change.cause),
            Html(change.stage.as_deref().unwrap_or_default()),
            change.count
        );
    }
    page.push_str("</tbody></table></div>");
    if found.changes_left_out > 0 {
        let _ = write!(
            page,
            "<p class=\"soft\">{} changes in between left out.</p>",
            found.changes_left_out
        );
    }
    page.push_str("</details>");
}

fn accounts(page: &mut String, report: &Report) {
    page.push_str("<section id=\"accounts\"><h2>What was read</h2><dl>");
    for (kind, count) in &report.kinds {
        let _ = write!(page, "<dt>{} lines</dt><dd>{count}</dd>", Html(kind));
    }
    for (hook, lost) in &report.lost {
        let _ = write!(page, "<dt>{} records lost</dt><dd>{lost}</dd>", Html(hook));
    }
    if report.foreign > 0 {
        let _ = write!(
            page,
            "<dt>lines that are not conntracer's</dt><dd>{}</dd>",
            report.foreign
        );
    }
    if report.runs > 1 {
        let _ = write!(
            page,
            "<dt>runs</dt><dd>{}; #2.1 is the first finding of the second</dd>",
            report.runs
        );
    }
    page.push_str("</dl></section>\n");
}
