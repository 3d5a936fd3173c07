//! What of netfilter dropped SYNs: a rule, or conntrack, which drops where its table is full and where it cannot insert a
//! connection, without a rule that says so.

use conntracer_common::record::netns_fact as fact;

use crate::{event::Path, table::netns_facts::Known};

/// What dropped them, as far as the namespace's figures tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Conntrack's table is full: entries, and how many there may be.
    TableFull { count: u64, most: u64 },
    /// Conntrack could not insert so many connections meanwhile: a translation found no free port, or the tuple was taken.
    InsertFailed(u64),
    /// Conntrack dropped none, or is not there.
    Rule,
    /// Any of them.
    Unknown,
}

impl By {
    /// `path` is how far the SYNs came. Conntrack looks a packet up before its route is known, and inserts its connection
    /// when it leaves netfilter: at the last hook of input or of postrouting.
    pub(super) fn of(facts: Option<&Known>, path: Option<Path>) -> Self {
        let Some(facts) = facts else {
            return Self::Unknown;
        };
        let early = !matches!(path, Some(Path::Input | Path::Forward));
        let late = path != Some(Path::Prerouting);
        let table = facts
            .now(fact::CONNTRACK_COUNT)
            .zip(facts.now(fact::CONNTRACK_MAX));
        let grown = |figure| facts.grown(figure).unwrap_or(0);
        if early
            && let Some((count, most)) = table
            && most > 0
            && (count >= most || grown(fact::CONNTRACK_DROP) > 0 && is_nearly(count, most))
        {
            return Self::TableFull { count, most };
        }
        if late && grown(fact::CONNTRACK_INSERT_FAILED) > 0 {
            return Self::InsertFailed(grown(fact::CONNTRACK_INSERT_FAILED));
        }
        // Its file is missing where the module is, and then so is each of its figures.
        let has_table = facts.now(fact::CONNTRACK_COUNT).is_some();
        let none = |figure| facts.now(figure) == Some(0);
        let is_known = facts.now(fact::ICMP_IN_UNREACHABLE).is_some();
        let excluded = !has_table && is_known
            || (!early || none(fact::CONNTRACK_DROP))
                && (!late || none(fact::CONNTRACK_INSERT_FAILED))
                && has_table;
        if excluded { Self::Rule } else { Self::Unknown }
    }

    /// The word of the evidence.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::TableFull { .. } => "conntrack_table_full",
            Self::InsertFailed(_) => "conntrack_insert_failed",
            Self::Rule => "rule",
            Self::Unknown => "not_known",
        }
    }
}

/// Within a twentieth: entries come and go between the drop and the look.
const fn is_nearly(count: u64, most: u64) -> bool {
    count >= most.saturating_sub(most / 20)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rstest::rstest;

    use crate::{
        finding::Value,
        testing::{Run, evidence, socket},
    };
    use conntracer_common::record::{netns_fact as fact, path};

    type Figures = &'static [(usize, u64)];

    const NO_DROPS: Figures = &[
        (fact::CONNTRACK_COUNT, 5),
        (fact::CONNTRACK_MAX, 100),
        (fact::CONNTRACK_DROP, 0),
        (fact::CONNTRACK_INSERT_FAILED, 0),
        (fact::ICMP_IN_UNREACHABLE, 0),
    ];

    /// Figures of two looks, how far the SYNs came, and what is said.
    #[rstest]
    #[case::full(
        &[(fact::CONNTRACK_COUNT, 100), (fact::CONNTRACK_MAX, 100)],
        &[], path::PREROUTING, "conntrack_table_full", "conntrack table of this namespace is full (100 of 100)"
    )]
    #[case::full_for_a_while(
        &[(fact::CONNTRACK_COUNT, 99), (fact::CONNTRACK_MAX, 100), (fact::CONNTRACK_DROP, 7)],
        &[(fact::CONNTRACK_DROP, 9)], path::PREROUTING, "conntrack_table_full", "(99 of 100)"
    )]
    // It was full once, and the SYN came past conntrack: a rule or not, nobody knows.
    #[case::full_before(
        &[(fact::CONNTRACK_COUNT, 9), (fact::CONNTRACK_MAX, 100), (fact::CONNTRACK_DROP, 7)],
        &[], path::PREROUTING, "not_known", "a rule, or conntrack"
    )]
    // A full table drops before the route is known.
    #[case::full_and_a_rule_at_input(
        &[(fact::CONNTRACK_COUNT, 100), (fact::CONNTRACK_MAX, 100), (fact::CONNTRACK_INSERT_FAILED, 0)],
        &[], path::INPUT, "rule", "by a netfilter rule (input)"
    )]
    #[case::no_port(
        &[(fact::CONNTRACK_COUNT, 5), (fact::CONNTRACK_MAX, 100), (fact::CONNTRACK_INSERT_FAILED, 2)],
        &[(fact::CONNTRACK_INSERT_FAILED, 6)], path::FORWARD, "conntrack_insert_failed", "could not insert"
    )]
    #[case::inserts_failed_before(
        &[(fact::CONNTRACK_COUNT, 5), (fact::CONNTRACK_MAX, 100), (fact::CONNTRACK_INSERT_FAILED, 2)],
        &[], path::FORWARD, "not_known", "a rule, or conntrack"
    )]
    #[case::a_rule(NO_DROPS, &[], path::PREROUTING, "rule", "by a netfilter rule (prerouting)")]
    #[case::without_conntrack(
        &[(fact::ICMP_IN_UNREACHABLE, 3)], &[], path::PREROUTING, "rule", "by a netfilter rule (prerouting)"
    )]
    #[case::nothing_known(&[], &[], path::PREROUTING, "not_known", "a rule, or conntrack")]
    fn a_rule_is_named_where_conntrack_is_excluded(
        #[case] first: Figures,
        #[case] last: Figures,
        #[case] path: u8,
        #[case] by: &'static str,
        #[case] said: &str,
    ) {
        let mut run = Run::new();
        let syns = |run: &mut Run, count| {
            run.early_drop(
                socket("10.0.0.1:80", "10.0.0.2:4000"),
                count,
                "NETFILTER_DROP",
                |drop| {
                    drop.path = path;
                },
            );
        };
        let set = |facts: &mut conntracer_common::record::NetnsFacts, figures: Figures| {
            for (figure, value) in figures {
                facts.figures[*figure] = *value;
            }
        };
        syns(&mut run, 3);
        if !first.is_empty() {
            run.netns_facts(|facts| set(facts, first));
            run.netns_facts(|facts| {
                set(facts, first);
                set(facts, last);
            });
        }
        run.tick();
        syns(&mut run, 4);
        run.pass(Duration::from_secs(2));
        let finding = run.only();
        assert_eq!(
            evidence(finding, "filtered_by"),
            &Value::Text(by.into()),
            "{finding:#?}"
        );
        assert!(finding.summary.contains(said), "{}", finding.summary);
        let doubted = by != "rule";
        assert_eq!(finding.because.is_some(), doubted, "{finding:#?}");
    }
}
