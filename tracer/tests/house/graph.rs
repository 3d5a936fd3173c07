//! Arrows one by one, and the circles they make.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use crate::tree::{Arrows, Place};

/// One file names something of another.
pub(crate) struct Arrow<'a> {
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    pub(crate) place: &'a Place,
}

impl fmt::Display for Arrow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, path } = self.place;
        write!(f, "{} names {path} of {} (line {line})", self.from, self.to)
    }
}

/// Every arrow.
pub(crate) fn listed(arrows: &Arrows) -> impl Iterator<Item = Arrow<'_>> {
    arrows.iter().flat_map(|(from, targets)| {
        targets
            .iter()
            .map(move |(to, place)| Arrow { from, to, place })
    })
}

/// Whether a file is a module, or lies below it.
pub(crate) fn is_in(file: &str, module: &str) -> bool {
    file.strip_prefix(module)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Whether a file is what `pattern` says: a module, or with `::*` one with all below it.
pub(crate) fn is_named(file: &str, pattern: &str) -> bool {
    match pattern.strip_suffix("::*") {
        Some(module) => is_in(file, module),
        None => file == pattern,
    }
}

/// The shortest circle through each file that is in one, each circle once, in words.
pub(crate) fn circles(arrows: &Arrows) -> Vec<String> {
    let mut told = BTreeSet::new();
    let mut circles = Vec::new();
    for start in arrows.keys() {
        let Some(circle) = shortest(arrows, start) else {
            continue;
        };
        let members: BTreeSet<&str> = circle.iter().map(|arrow| arrow.from).collect();
        if told.insert(members) {
            let steps: Vec<String> = circle.iter().map(ToString::to_string).collect();
            circles.push(format!(
                "a circle: {}; what they share belongs in a file that names none of them",
                steps.join(", ")
            ));
        }
    }
    circles
}

/// The shortest way from a file back to itself.
fn shortest<'a>(arrows: &'a Arrows, start: &'a str) -> Option<Vec<Arrow<'a>>> {
    let mut came: BTreeMap<&str, &str> = BTreeMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(from) = next.pop_front() {
        for to in arrows.get(from).into_iter().flat_map(BTreeMap::keys) {
            if came.contains_key(to.as_str()) {
                continue;
            }
            came.insert(to, from);
            if to == start {
                return Some(back(arrows, &came, start));
            }
            next.push_back(to);
        }
    }
    None
}

fn back<'a>(
    arrows: &'a Arrows,
    came: &BTreeMap<&'a str, &'a str>,
    start: &'a str,
) -> Vec<Arrow<'a>> {
    let mut steps = Vec::new();
    let mut to = start;
    loop {
        let (from, targets) = arrows.get_key_value(came[to]).expect("it has an arrow");
        let (to_, place) = targets.get_key_value(to).expect("it was followed");
        steps.push(Arrow {
            from,
            to: to_,
            place,
        });
        to = from;
        if to == start {
            steps.reverse();
            return steps;
        }
    }
}
