//! The table that closes a run of tests: a stage a row.

use std::time::Duration;

use crate::libtest::{Counts, Report};

/// What one stage came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) stage: String,
    pub(crate) counts: Counts,
    pub(crate) elapsed: Duration,
    /// How often conntracer was started.
    pub(crate) starts: u64,
    /// What failed, or why it was skipped.
    pub(crate) note: String,
}

impl Row {
    pub(crate) fn passed() -> Self {
        Self {
            counts: Counts {
                passed: 1,
                ..Counts::default()
            },
            ..Self::default()
        }
    }

    pub(crate) fn failed(note: String) -> Self {
        Self {
            counts: Counts {
                failed: 1,
                ..Counts::default()
            },
            note,
            ..Self::default()
        }
    }

    pub(crate) fn skipped(tests: u64, note: String) -> Self {
        Self {
            counts: Counts {
                skipped: tests,
                ..Counts::default()
            },
            note,
            ..Self::default()
        }
    }

    /// What harnesses said. `failure` is why the stage has failed, which counts even where no test did.
    pub(crate) fn reported(report: &Report, failure: Option<String>) -> Self {
        let mut counts = report.counts();
        if failure.is_some() && counts.failed == 0 {
            counts.failed = 1;
        }
        Self {
            counts,
            starts: report.starts,
            note: failure.unwrap_or_else(|| {
                let again = report.forgiven.join(", ");
                let again = (!again.is_empty()).then(|| format!("passed when run again: {again}"));
                let skipped = report.skip_reasons().into_iter().map(str::to_owned);
                again
                    .into_iter()
                    .chain(skipped)
                    .collect::<Vec<_>>()
                    .join("; ")
            }),
            ..Self::default()
        }
    }
}

/// Prints the table and the line of sums; gives the sums.
pub(crate) fn print(rows: &[Row]) -> Counts {
    let (table, total) = table(rows);
    println!("\n{table}");
    total
}

fn table(rows: &[Row]) -> (String, Counts) {
    let width = rows.iter().map(|row| row.stage.len()).max().unwrap_or(0);
    let mut lines = vec![format!(
        "{:<width$} {:>7} {:>7} {:>8} {:>8} {:>7}",
        "stage", "passed", "failed", "skipped", "seconds", "starts"
    )];
    let mut total = Counts::default();
    for row in rows {
        total += row.counts;
        let line = format!(
            "{:<width$} {:>7} {:>7} {:>8} {:>8} {:>7}  {}",
            row.stage,
            row.counts.passed,
            row.counts.failed,
            row.counts.skipped,
            row.elapsed.as_secs(),
            row.starts,
            row.note
        );
        lines.push(line.trim_end().to_owned());
    }
    let Counts {
        passed,
        failed,
        skipped,
    } = total;
    lines.push(format!(
        "\n{passed} passed, {failed} failed, {skipped} skipped"
    ));
    (lines.join("\n"), total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.line(line));
        report
    }

    #[test]
    fn a_stage_shows_its_tests_seconds_and_starts_and_the_last_line_their_sum() {
        let live = Row {
            stage: "live".to_owned(),
            elapsed: Duration::from_millis(61_900),
            ..Row::reported(
                &report(
                    "test-skipped c: no MPTCP\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 \
                     filtered out; finished in 1.00s\nconntracer-starts: 14",
                ),
                None,
            )
        };
        let vm = Row {
            stage: "vm 6.1".to_owned(),
            ..Row::failed("the VM ended without a verdict".to_owned())
        };
        let (table, total) = table(&[live, vm]);
        assert_eq!(
            table,
            "stage   passed  failed  skipped  seconds  starts\n\
             live         2       0        2       61      14  no MPTCP\n\
             vm 6.1       0       1        0        0       0  the VM ended without a verdict\n\
             \n2 passed, 1 failed, 2 skipped"
        );
        assert_eq!((total.passed, total.failed, total.skipped), (2, 1, 2));
    }

    #[test]
    fn a_stage_that_failed_without_a_failed_test_counts_as_one() {
        let silent = report("");
        let row = Row::reported(&silent, Some("killed after 2 s".to_owned()));
        assert_eq!(
            (row.counts.failed, row.note.as_str()),
            (1, "killed after 2 s")
        );
        let said = report(
            "test a ... FAILED\ntest b ... FAILED\ntest result: FAILED. 0 passed; 2 failed; 0 ignored; 0 \
             measured; 0 filtered out; finished in 1.00s",
        );
        let row = Row::reported(&said, Some("failed: a, b".to_owned()));
        assert_eq!(row.counts.failed, 2);
    }
}
