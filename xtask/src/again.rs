//! Live tests that fail, of which few are run once more, with what passed then said in the table. What is broken fails
//! twice; what fails now and then is a defect of the product or of a test, to be found: until each is, one of several
//! hundred tests in ten VMs would hide what the others say.

use crate::libtest::Report;

/// Tests that may be in doubt at once; a change that breaks more is not worth the time.
const MOST: usize = 3;

/// The failed tests, where running them again can tell whether they are broken.
pub(crate) fn doubtful(report: &Report) -> Option<Vec<String>> {
    let failed = &report.failures;
    let few = (1..=MOST).contains(&failed.len());
    // A console line that a kernel message garbled names no test.
    let all_are_named = failed.len() as u64 == report.counts().failed;
    // What is judged of a run as a whole cannot be run by its name.
    let all_are_tests = failed.iter().all(|name| !name.starts_with("shared::"));
    (few && all_are_named && all_are_tests).then(|| failed.clone())
}

/// Takes the failed tests for right where all of them passed in `again`.
pub(crate) fn settle(report: &mut Report, again: &Report) {
    let passed = again.failures.is_empty() && again.counts().failed == 0;
    // Skipped is not passed.
    if passed && again.counts().passed >= report.counts().failed && again.skip_reasons().is_empty()
    {
        report.forgive();
    }
    report.starts += again.starts;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.line(line));
        report
    }

    const ONE_FAILED: &str = "test a::b ... FAILED\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; 0 \
                              measured; 0 filtered out; finished in 0.01s";
    const ALONE: &str = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; \
                         finished in 0.01s";

    #[test]
    fn a_few_failed_tests_are_in_doubt() {
        assert_eq!(doubtful(&report(ONE_FAILED)), Some(vec!["a::b".to_owned()]));
        assert_eq!(doubtful(&report(ALONE)), None);
        let many = ONE_FAILED.replace("1 failed", "4 failed");
        let many = "test a ... FAILED\n".repeat(MOST) + &many;
        assert_eq!(doubtful(&report(&many)), None);
        // One of two failures stands in a line that cannot be read, and would be forgiven unseen.
        let garbled = ONE_FAILED.replace("1 failed", "2 failed");
        assert_eq!(doubtful(&report(&garbled)), None);
        let whole = ONE_FAILED.replace("a::b", "shared::plain::stops");
        assert_eq!(doubtful(&report(&whole)), None);
    }

    #[test]
    fn what_fails_twice_or_is_skipped_stays_a_failure_and_what_passes_is_said() {
        let mut failed = report(ONE_FAILED);
        settle(&mut failed, &report(ONE_FAILED));
        settle(
            &mut failed,
            &report(&format!("test-skipped a::b: no\n{ALONE}")),
        );
        assert_eq!(failed.failures, ["a::b"]);
        settle(&mut failed, &report(ALONE));
        assert_eq!((failed.counts().passed, failed.counts().failed), (3, 0));
        assert_eq!(failed.forgiven, ["a::b"]);
    }
}
