//! `conntracer explain`: what a finding or a cause means, how to be sure, and what to do, as a good
//! colleague would tell it.
//!
//! The words are those of the output contract. A cause with one spelling in two findings
//! (`syn_queue_full`) has one entry that speaks of both.

mod entries;

use entries::ENTRIES;

use super::fill::fill;

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
    let entry = ENTRIES.iter().find(|entry| entry.word == word)?;
    let of = entry
        .of
        .map_or_else(String::new, |finding| format!(", a cause of {finding}"));
    let causes: Vec<&str> = causes(entry.word).collect();
    let causes = if causes.is_empty() {
        String::new()
    } else {
        let causes = format!("Causes: {}. Ask for each by name.", causes.join(", "));
        format!("\n\n{}", fill(&causes, COLUMNS, 0, 0))
    };
    Some(format!(
        "{}{of}\n\n{}{causes}\n",
        entry.word,
        filled(entry.text)
    ))
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
    ENTRIES.iter().map(|entry| entry.word)
}

/// Every word that can be explained, for reading: the findings with their causes.
#[must_use]
pub fn words() -> String {
    let rows = ENTRIES
        .iter()
        .filter(|entry| entry.of.is_none())
        .map(|entry| {
            let causes: Vec<&str> = causes(entry.word).collect();
            let causes = fill(&causes.join(", "), COLUMNS, 20, 20);
            format!("{}\n", format!("  {:<18}{causes}", entry.word).trim_end())
        });
    std::iter::once("conntracer explain WORD, with one of:\n".to_owned())
        .chain(rows)
        .collect()
}

fn causes(finding: &str) -> impl Iterator<Item = &'static str> {
    ENTRIES
        .iter()
        .filter(move |entry| {
            entry
                .of
                .is_some_and(|of| of.split(" and ").any(|part| part == finding))
        })
        .map(|entry| entry.word)
}

/// Whether there is an entry for `cause` that speaks of `finding`.
#[cfg(test)]
pub(crate) fn explains(finding: &str, cause: &str) -> bool {
    causes(finding).any(|word| word == cause)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::finding::FindingKind;

    #[rstest]
    #[case(FindingKind::SynDrop)]
    #[case(FindingKind::SynCookies)]
    #[case(FindingKind::HalfOpen)]
    #[case(FindingKind::RetransmitStorm)]
    #[case(FindingKind::SendStall)]
    #[case(FindingKind::ConnectFailure)]
    #[case(FindingKind::ConnectionDrop)]
    fn every_finding_is_explained(#[case] kind: FindingKind) {
        let text = text(kind.name()).unwrap();
        assert!(text.contains("Causes: "), "{text}");
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
        let causes: Vec<_> = causes("syn_drop").collect();
        assert_eq!(
            causes,
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
        for entry in ENTRIES {
            let text = text(entry.word).unwrap();
            for line in text.lines() {
                assert!(line.chars().count() <= COLUMNS, "{}: {line}", entry.word);
            }
        }
    }
}
