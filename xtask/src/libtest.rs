//! Reads what Rust's test harness prints: which tests failed, and how many there were. Works on a
//! VM's serial console too, where the kernel's messages stand in between.

use std::ops::AddAssign;

/// Numbers of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// What a harness said so far, line by line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// The sum of all `test result:` lines.
    counts: Counts,
    /// How many `test result:` lines there were; none means that no harness finished.
    pub(crate) summaries: u64,
    /// Names of failed tests.
    pub(crate) failures: Vec<String>,
    /// Tests that found themselves unable to run, and returned: "NAME: REASON".
    skips: Vec<String>,
    /// How often conntracer was started.
    pub(crate) starts: u64,
    /// Failed tests that passed when they were run again.
    pub(crate) forgiven: Vec<String>,
}

/// How a test says that it did not run; the harness knows no such thing and counts it as passed.
const SKIPPED: &str = "test-skipped ";

/// How `conntracer-live` says how often conntracer was started.
const STARTS: &str = "conntracer-starts: ";

impl Report {
    /// Takes in a line of output.
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some((_, summary)) = line.split_once("test result: ") {
            if let Some(counts) = parse_summary(summary) {
                self.counts += counts;
                self.summaries += 1;
            }
        } else if let Some((_, skip)) = line.split_once(SKIPPED) {
            self.skips.push(skip.to_owned());
        } else if let Some((_, starts)) = line.split_once(STARTS) {
            self.starts += starts.parse::<u64>().unwrap_or(0);
        } else if let Some(name) = failed_test(line) {
            self.failures.push(name.to_owned());
        }
    }

    /// How many passed, failed, and did not run.
    pub(crate) fn counts(&self) -> Counts {
        let skipped = self.skips.len() as u64;
        Counts {
            passed: self.counts.passed.saturating_sub(skipped),
            skipped: self.counts.skipped + skipped,
            ..self.counts
        }
    }

    /// The failed tests are found to be right.
    pub(crate) fn forgive(&mut self) {
        self.forgiven.append(&mut self.failures);
        self.counts.passed += self.counts.failed;
        self.counts.failed = 0;
    }

    /// Why tests did not run, each reason once.
    pub(crate) fn skip_reasons(&self) -> Vec<&str> {
        let mut reasons: Vec<&str> = self
            .skips
            .iter()
            .filter_map(|skip| skip.split_once(": "))
            .map(|(_, reason)| reason)
            .collect();
        reasons.sort_unstable();
        reasons.dedup();
        reasons
    }
}

/// From "ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s".
fn parse_summary(summary: &str) -> Option<Counts> {
    let count = |word: &str| {
        summary.split([';', '.']).find_map(|part| {
            part.trim()
                .strip_suffix(word)?
                .trim_end()
                .parse::<u64>()
                .ok()
        })
    };
    Some(Counts {
        passed: count("passed")?,
        failed: count("failed")?,
        skipped: count("ignored")?,
    })
}

/// The name in "test NAME ... FAILED".
fn failed_test(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("test ")?;
    rest.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        for line in text.lines() {
            report.line(line);
        }
        report
    }

    #[test]
    fn summaries_are_added_up() {
        let report = report(
            "running 2 tests\ntest a ... ok\ntest b ... ok\n\ntest result: ok. 2 passed; 0 failed; \
             0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\nrunning 3 tests\ntest c \
             ... FAILED\ntest d ... ignored, no IPv6\ntest e ... ok\n\ntest result: FAILED. 1 \
             passed; 1 failed; 1 ignored; 0 measured; 4 filtered out; finished in 1.52s\n",
        );
        assert_eq!(report.summaries, 2);
        assert_eq!(
            report.counts(),
            Counts {
                passed: 3,
                failed: 1,
                skipped: 1
            }
        );
        assert_eq!(report.failures, ["c"]);
    }

    #[test]
    fn a_test_that_says_it_did_not_run_has_not_passed() {
        let report = report(
            "test a::v4 ... \ntest-skipped a::v4: no MPTCP: none at all\nok\ntest b ... ok\ntest \
             a::v6 ... \ntest-skipped a::v6: no MPTCP: none at all\nok\ntest result: ok. 3 passed; \
             0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n",
        );
        assert_eq!(
            report.counts(),
            Counts {
                passed: 1,
                failed: 0,
                skipped: 2
            }
        );
        assert_eq!(report.skip_reasons(), ["no MPTCP: none at all"]);
    }

    #[test]
    fn serial_console_lines_end_in_carriage_returns() {
        let report = report(
            "[    3.1] veth0: entered promiscuous mode\r\ntest x::y ... FAILED\r\ntest result: \
             FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in \
             9.01s\r\n",
        );
        assert_eq!(report.failures, ["x::y"]);
        assert_eq!(report.counts().failed, 1);
    }

    #[test]
    fn starts_are_added_up() {
        let report = report("conntracer-starts: 7\r\nconntracer-starts: 12\nconntracer-starts: ");
        assert_eq!(report.starts, 19);
    }

    #[test]
    fn cut_off_summary_counts_for_nothing() {
        assert_eq!(report("test result: ok. 12 pas"), Report::default());
    }
}
