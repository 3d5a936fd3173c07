//! `conntracer explain`: what a finding or a cause means, how to be sure, and what to do, as a good
//! colleague would tell it.
//!
//! The words are those of the output contract. A cause with one spelling in two findings
//! (`syn_queue_full`) has one entry that speaks of both.

use super::fill::fill;
use crate::detect::{self, SPECS};

/// Words that are of no finding.
const GENERAL: &str = include_str!("general.md");

/// Columns of the explanations: what is read easily, with room for a command and what it shows.
const COLUMNS: usize = 96;

/// The explanation of `word`, however it is cased or joined.
#[must_use]
pub fn text(word: &str) -> Option<String> {
    // `half_open.dead_peer` is what the hook plan calls it.
    let word = word
        .rsplit('.')
        .next()
        .unwrap_or(word)
        .to_ascii_lowercase()
        .replace(['-', ' '], "_");
    let (word, text) = entries().find(|(known, _)| *known == word)?;
    let of = match kinds_with(word).as_slice() {
        [] => String::new(),
        kinds => format!(", a cause of {}", kinds.join(" and ")),
    };
    let causes = causes(word);
    let causes = if causes.is_empty() {
        String::new()
    } else {
        let causes = format!("Causes: {}. Ask for each by name.", causes.join(", "));
        format!("\n\n{}", fill(&causes, COLUMNS, 0, 0))
    };
    Some(format!("{}{of}\n\n{}{causes}\n", word, filled(text)))
}

/// A word that is not explained is taken for one that is this much like it, of 1: a letter or two are wrong, or it begins
/// so.
const LIKE: f64 = 0.85;

/// What an unknown word was likely to be.
#[must_use]
pub fn near(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase().replace(['-', ' '], "_");
    every_word()
        .map(|known| (strsim::jaro_winkler(known, &word), known))
        .filter(|(like, _)| *like >= LIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| known)
}

/// Paragraphs filled to [`COLUMNS`]; one that begins with a space is a table or a list of commands, and
/// stays as it is.
fn filled(text: &str) -> String {
    let paragraphs: Vec<String> = text
        .split("\n\n")
        .map(|paragraph| {
            if paragraph.starts_with(' ') {
                paragraph.to_owned()
            } else {
                fill(paragraph, COLUMNS, 0, 0)
            }
        })
        .collect();
    paragraphs.join("\n\n")
}

/// Every word that can be explained, for shells.
pub fn every_word() -> impl Iterator<Item = &'static str> {
    entries().map(|(word, _)| word)
}

/// Every word that can be explained, for reading: the findings with their causes.
#[must_use]
pub fn words() -> String {
    let rows = entries()
        .filter(|(word, _)| kinds_with(word).is_empty())
        .map(|(word, _)| {
            let causes = fill(&causes(word).join(", "), COLUMNS, 20, 20);
            format!("{}\n", format!("  {word:<18}{causes}").trim_end())
        });
    std::iter::once("conntracer explain WORD, with one of:\n".to_owned())
        .chain(rows)
        .collect()
}

/// The words of the detectors' rooms, and those that are of none, with what is said of each.
fn entries() -> impl Iterator<Item = (&'static str, &'static str)> {
    let rooms = SPECS.iter().flat_map(|spec| detect::words(spec.explain));
    rooms.chain(detect::words(GENERAL))
}

/// The findings that `word` is a cause of.
fn kinds_with(word: &str) -> Vec<&'static str> {
    let mut kinds = Vec::new();
    for spec in SPECS {
        if spec.severity(word).is_some() && !kinds.contains(&spec.kind.name()) {
            kinds.push(spec.kind.name());
        }
    }
    kinds
}

/// What is the least likely, and named last.
const UNLIKELY: [&str; 4] = ["no_memory", "no_route", "socket_filter", "other"];

/// The causes of a finding.
fn causes(finding: &str) -> Vec<&'static str> {
    let mut causes = Vec::new();
    for spec in SPECS.iter().filter(|spec| spec.kind.name() == finding) {
        for (cause, _) in spec.causes {
            if !causes.contains(cause) {
                causes.push(*cause);
            }
        }
    }
    causes.sort_by_key(|cause| UNLIKELY.iter().position(|unlikely| unlikely == cause));
    causes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rstest::rstest;

    use super::*;

    #[test]
    fn a_word_that_is_misspelt_is_recognised_and_another_is_not() {
        assert_eq!(near("acept_queue_full"), Some("accept_queue_full"));
        assert_eq!(near("dead-peers"), Some("dead_peer"));
        assert_eq!(near("Retransmit_Strom"), Some("retransmit_storm"));
        assert_eq!(near("nonsense"), None);
        assert_eq!(near(""), None);
    }

    #[test]
    fn every_finding_and_every_cause_is_explained_once() {
        let words: Vec<&str> = every_word().collect();
        let known: BTreeSet<&str> = words.iter().copied().collect();
        assert_eq!(known.len(), words.len(), "{words:?}");
        for spec in SPECS {
            for word in spec
                .causes
                .iter()
                .map(|(cause, _)| cause)
                .chain([&spec.kind.name()])
            {
                assert!(known.contains(word), "nothing explains {word}");
            }
        }
    }

    #[rstest]
    #[case::syn_drop("syn_drop")]
    #[case::syn_cookies("syn_cookies")]
    #[case::half_open("half_open")]
    #[case::accept_queue_full("accept_queue_full")]
    #[case::ack_overflow("ack_overflow")]
    fn what_is_said(#[case] word: &str) {
        insta::assert_snapshot!(word, text(word).unwrap());
    }

    /// In the order of what is likely.
    #[test]
    fn every_cause_of_syn_drop_is_explained() {
        assert_eq!(
            causes("syn_drop"),
            [
                "accept_queue_full",
                "ack_overflow",
                "abort_on_overflow",
                "syn_queue_full",
                "syn_queue_pressure",
                "no_listener",
                "filtered",
                "reverse_path",
                "auth",
                "bad_checksum",
                "no_memory",
                "no_route",
                "socket_filter",
                "other",
            ]
        );
    }

    #[test]
    fn words_are_found_however_they_are_written() {
        assert_eq!(text("half_open.dead_peer"), text("Dead-Peer"));
        assert!(text("dead_peer").is_some());
        assert!(text("nonsense").is_none());
    }

    #[test]
    fn what_has_no_causes_is_listed_by_its_name() {
        assert!(words().lines().any(|line| line == "  owner"), "{}", words());
        assert!(!text("owner").unwrap().contains("Causes"));
    }

    #[test]
    fn text_fits_a_terminal() {
        for word in every_word() {
            let text = text(word).unwrap();
            for line in text.lines() {
                assert!(line.chars().count() <= COLUMNS, "{word}: {line}");
            }
        }
    }
}
