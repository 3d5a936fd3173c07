//! Charts as inline SVG, each with the same figures as a table below it.

use std::fmt::Write as _;

use super::text::{Html, clock};

/// The drawing's units: it is scaled to the page.
const WIDTH: f64 = 760.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const PLOT: f64 = 150.0;
const ROW: f64 = 22.0;
/// Room for the names of rows.
const NAMES: f64 = 250.0;
const NAME_LETTERS: usize = 38;

/// What a table says.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) heads: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

/// A chart, of the file's time from first to last where it is one over time.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    svg: String,
    table: Table,
}

impl Chart {
    /// The figure and its table.
    pub(super) fn render(&self) -> String {
        let mut html = format!(
            "<figure class=\"chart\" tabindex=\"0\" aria-label=\"{0}\">{1}</figure>\
             <details><summary>{0} as a table</summary><div class=\"wide\"><table><thead><tr>",
            Html(&self.title),
            self.svg
        );
        for head in &self.table.heads {
            let _ = write!(html, "<th scope=\"col\">{}</th>", Html(head));
        }
        html.push_str("</tr></thead><tbody>");
        for row in &self.table.rows {
            html.push_str("<tr>");
            for cell in row {
                let _ = write!(html, "<td>{}</td>", Html(cell));
            }
            html.push_str("</tr>");
        }
        html.push_str("</tbody></table></div></details>\n");
        html
    }
}

/// The time that charts span, nanoseconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) first: i128,
    pub(super) last: i128,
}

impl Span {
    /// A moment within it, from 0 to 1.
    fn part(self, ns: i128) -> f64 {
        let whole = (self.last - self.first).max(1) as f64;
        ((ns - self.first) as f64 / whole).clamp(0.0, 1.0)
    }

    const fn is_long(self) -> bool {
        const DAY_NS: i128 = 86_400_000_000_000;
        self.last - self.first > DAY_NS
    }
}

fn opened(title: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>",
        Html(title)
    )
}

/// Marks of time along the bottom.
fn times(svg: &mut String, span: Span, left: f64, bottom: f64) {
    let width = WIDTH - left - RIGHT;
    let _ = write!(
        svg,
        "<line class=\"axis\" x1=\"{left}\" y1=\"{bottom}\" x2=\"{}\" y2=\"{bottom}\"/>",
        left + width
    );
    for mark in 0..=4_u8 {
        let part = f64::from(mark) / 4.0;
        let ns = span.first + (span.last - span.first) * i128::from(mark) / 4;
        let anchor = match mark {
            0 => "start",
            4 => "end",
            _ => "middle",
        };
        let _ = write!(
            svg,
            "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            left + width * part,
            bottom + 16.0,
            clock(ns, span.is_long())
        );
    }
}

/// The height of a value, and the largest one at the left.
struct Scale {
    most: f64,
}

impl Scale {
    fn of(svg: &mut String, most: u64) -> Self {
        let _ = write!(
            svg,
            "<text class=\"soft\" x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{most}</text>\
             <text class=\"soft\" x=\"{x}\" y=\"{zero}\" text-anchor=\"end\">0</text>\
             <line class=\"axis\" x1=\"{LEFT}\" y1=\"{TOP}\" x2=\"{right}\" y2=\"{TOP}\"/>",
            x = LEFT - 6.0,
            y = TOP + 4.0,
            zero = TOP + PLOT + 4.0,
            right = WIDTH - RIGHT,
        );
        Self {
            most: most.max(1) as f64,
        }
    }

    fn height(&self, value: u64) -> f64 {
        PLOT * (value as f64 / self.most).min(1.0)
    }
}

/// One step of a chart over time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) at: i128,
    /// The bars, and the line above them.
    pub(super) bar: u64,
    pub(super) line: u64,
}

/// Bars over time and a line beside them, by one scale. Where the line `holds`, it goes on from one step to the next.
pub(super) fn over_time(
    title: String,
    (span, step_ns): (Span, i128),
    points: &[Point],
    (bar, line): (&'static str, &'static str),
    (classes, holds): ((&str, &str), bool),
) -> Chart {
    let mut svg = opened(&title, TOP + PLOT + 26.0);
    let most = points.iter().map(|point| point.bar.max(point.line)).max();
    let scale = Scale::of(&mut svg, most.unwrap_or(0));
    let width = WIDTH - LEFT - RIGHT;
    let step =
        (width * (step_ns as f64 / (span.last - span.first).max(1) as f64)).clamp(2.0, width);
    let mut path = String::new();
    for point in points {
        let x = LEFT + (width - step).max(0.0) * span.part(point.at);
        let height = scale.height(point.bar);
        if point.bar > 0 {
            let _ = write!(
                svg,
                "<rect class=\"{}\" data-mark=\"bar\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                classes.0,
                TOP + PLOT - height,
                (step - 0.5).max(1.5),
                height.max(1.0),
            );
        }
        let y = TOP + PLOT - scale.height(point.line);
        let command = if path.is_empty() || !holds { 'M' } else { 'L' };
        let _ = write!(path, "{command}{x:.1} {y:.1}L{:.1} {y:.1}", x + step);
    }
    if points.iter().any(|point| point.line > 0) {
        let _ = write!(
            svg,
            "<path class=\"{}\" fill=\"none\" data-mark=\"line\" d=\"{path}\"/>",
            classes.1
        );
    }
    times(&mut svg, span, LEFT, TOP + PLOT);
    svg.push_str("</svg>");
    let rows = points.iter().map(|point| {
        vec![
            clock(point.at, span.is_long()),
            point.bar.to_string(),
            point.line.to_string(),
        ]
    });
    Chart {
        title,
        svg,
        table: Table {
            heads: vec!["from (UTC)", bar, line],
            rows: rows.collect(),
        },
    }
}

/// One thing that lasted.
#[derive(Clone, Debug)]
pub(super) struct Lasting {
    pub(super) name: String,
    pub(super) class: &'static str,
    pub(super) from: i128,
    pub(super) to: i128,
    pub(super) link: String,
}

/// When each began and ended.
pub(super) fn lasted(title: String, span: Span, all: &[Lasting]) -> Chart {
    let bottom = TOP + ROW * all.len() as f64;
    let mut svg = opened(&title, bottom + 26.0);
    let width = WIDTH - NAMES - RIGHT;
    for (row, one) in all.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let x = NAMES + width * span.part(one.from);
        let length = (NAMES + width * span.part(one.to) - x)
            .max(3.0)
            .min(WIDTH - RIGHT - x + 3.0);
        let _ = write!(
            svg,
            "<a href=\"#{}\"><text x=\"0\" y=\"{:.1}\">{}</text>\
             <rect class=\"{}\" data-mark=\"bar\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{:.1}\" rx=\"2\"/></a>",
            Html(&one.link),
            y + 13.0,
            Html(&shortened(&one.name)),
            one.class,
            y + 3.0,
            ROW - 8.0,
        );
    }
    times(&mut svg, span, NAMES, bottom);
    svg.push_str("</svg>");
    let rows = all.iter().map(|one| {
        vec![
            one.name.clone(),
            clock(one.from, span.is_long()),
            clock(one.to, span.is_long()),
        ]
    });
    Chart {
        title,
        svg,
        table: Table {
            heads: vec!["what", "from (UTC)", "to (UTC)"],
            rows: rows.collect(),
        },
    }
}

/// Names and how much each has, the most first.
pub(super) fn ranked(
    title: String,
    (name, unit): (&'static str, &'static str),
    all: &[(String, u64)],
) -> Chart {
    let mut svg = opened(&title, TOP + ROW * all.len() as f64);
    let most = all
        .iter()
        .map(|(_, value)| *value)
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    let width = WIDTH - NAMES - 90.0;
    for (row, (name, value)) in all.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let length = (width * (*value as f64 / most)).max(2.0);
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{0:.1}\">{1}</text>\
             <rect class=\"bar\" data-mark=\"bar\" x=\"{NAMES}\" y=\"{2:.1}\" width=\"{length:.1}\" height=\"{3:.1}\" rx=\"2\"/>\
             <text class=\"soft\" x=\"{4:.1}\" y=\"{0:.1}\">{value}</text>",
            y + 7.0,
            Html(&shortened(name)),
            y - 4.0,
            ROW - 8.0,
            NAMES + length + 6.0,
        );
    }
    svg.push_str("</svg>");
    let rows = all
        .iter()
        .map(|(name, value)| vec![name.clone(), value.to_string()]);
    Chart {
        title,
        svg,
        table: Table {
            heads: vec![name, unit],
            rows: rows.collect(),
        },
    }
}

/// As much as there is room for; the table has the whole.
fn shortened(name: &str) -> String {
    if name.chars().count() <= NAME_LETTERS {
        return name.to_owned();
    }
    let mut short: String = name.chars().take(NAME_LETTERS - 1).collect();
    short.push('…');
    short
}
