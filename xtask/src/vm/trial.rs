//! The tests in one VM: booted, run, and what failed run once more.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Plan, files::Run, filter_argument};
use crate::{
    kernel::Kernel,
    libtest::{Counts, Report},
    machine::{self, Log, Programs, Verdict},
    workspace::Workspace,
};

/// One VM's run of the tests.
pub(crate) struct Outcome {
    pub(crate) release: String,
    pub(crate) hooks: &'static str,
    pub(crate) counts: Counts,
    /// Why the run as a whole is a failure; None when it is a success.
    pub(crate) failure: Option<String>,
    /// Why tests did not run, and which passed only when they were run again.
    remarks: String,
    pub(crate) elapsed: Duration,
    pub(crate) log: PathBuf,
}

impl Outcome {
    /// What a table says of it beyond its numbers.
    pub(crate) fn note(&self) -> &str {
        self.failure.as_deref().unwrap_or(&self.remarks)
    }
}

pub(super) fn test_one(
    workspace: &Workspace,
    plan: &Plan<'_>,
    kernel: &Kernel,
    programs: &Programs,
    hooks: &'static str,
    filter: &str,
) -> Result<Outcome> {
    let run = Run::prepare(workspace, kernel, programs, hooks)?;
    let start = Instant::now();
    let mut trial = try_tests(plan, kernel, &run, hooks, filter, hooks)?;
    let mut remarks: Vec<String> = trial
        .report
        .skip_reasons()
        .into_iter()
        .map(str::to_owned)
        .collect();
    if let Some(tests) = trial.doubtful() {
        let filter = exactly(&tests)?;
        eprintln!(
            "Linux {} ({hooks}): failed: {}; running that again ({} has the first time)",
            kernel.release,
            tests.join(", "),
            trial.log.display()
        );
        let again = try_tests(
            plan,
            kernel,
            &run,
            hooks,
            &filter,
            &format!("{hooks}-again"),
        )?;
        trial.settle(&again, &mut remarks);
    }
    let elapsed = start.elapsed();
    if plan.keep {
        run.keep(hooks)?;
    }
    let failure = trial.failure();
    eprintln!(
        "Linux {} ({hooks}): {} in {} s",
        kernel.release,
        failure.as_deref().unwrap_or("passed"),
        elapsed.as_secs()
    );
    let mut counts = trial.report.counts();
    if failure.is_some() && counts.failed == 0 {
        // The VM itself failed, which must show in the sum.
        counts.failed = 1;
    }
    Ok(Outcome {
        release: kernel.release.clone(),
        hooks,
        counts,
        failure,
        remarks: remarks.join("; "),
        elapsed,
        log: trial.log,
    })
}

/// The tests in one boot of a VM.
struct Trial {
    report: Report,
    verdict: Verdict,
    log: PathBuf,
}

/// Tests that may fail and be run again. Emulated, a kernel skips runs of BPF programs that no CPU of today
/// would: a test that this hits finds a count one short, and passes when less runs beside it. What is
/// broken fails twice, and a change that breaks more than a few is not worth the time.
pub(crate) const DOUBTFUL: usize = 3;

impl Trial {
    /// The failed tests, where only running them again can tell whether they are broken.
    fn doubtful(&self) -> Option<Vec<String>> {
        let failed = &self.report.failures;
        let few = (1..=DOUBTFUL).contains(&failed.len());
        // A console line that a kernel message garbled names no test.
        let all_are_named = failed.len() as u64 == self.report.counts().failed;
        (few && all_are_named && self.verdict == Verdict::Failure).then(|| failed.clone())
    }

    /// Takes what became of the failed tests in `again` for what they are, and says so.
    fn settle(&mut self, again: &Self, remarks: &mut Vec<String>) {
        let all = self.report.failures.len();
        if again.failure().is_some() || again.report.counts().passed != all as u64 {
            return;
        }
        let tests = self.report.failures.join(", ");
        remarks.push(format!("passed when run again: {tests}"));
        self.report.forgive();
        self.verdict = Verdict::Success;
    }

    fn failure(&self) -> Option<String> {
        failure(&self.verdict, &self.report)
    }
}

/// The init's filter parameter for these tests and no others.
fn exactly(tests: &[String]) -> Result<String> {
    let filters: Vec<String> = std::iter::once("--exact".to_owned())
        .chain(tests.iter().cloned())
        .collect();
    filter_argument(&filters)
}

fn try_tests(
    plan: &Plan<'_>,
    kernel: &Kernel,
    run: &Run,
    hooks: &str,
    filter: &str,
    name: &str,
) -> Result<Trial> {
    let log_path = run.directory.join(format!("{name}.log"));
    let mut report = Report::default();
    let mut boots_left = BOOTS;
    let verdict = loop {
        boots_left -= 1;
        let mut log = Log::create(log_path.clone())?;
        let mut testing = false;
        let verdict = machine::boot(
            kernel,
            &run.initramfs,
            &format!("conntracer.run=tests conntracer.hooks={hooks} {filter}"),
            plan.timeout,
            |line| {
                testing |= line.starts_with("running ");
                report.line(line);
                log.line(line)
            },
        )?;
        match &verdict {
            Verdict::Crash(message) if !testing && boots_left > 0 => {
                eprintln!(
                    "Linux {} ({hooks}): crashed before any test began ({message}), which says \
                     nothing of conntracer; booting it again",
                    kernel.release
                );
            }
            _ => break verdict,
        }
    };
    Ok(Trial {
        report,
        verdict,
        log: log_path,
    })
}

/// Boots of one VM at most. QEMU emulates a kernel's self-modifying code on two CPUs imperfectly, and a
/// kernel may die of it (int3 at a jump label) within its first two seconds.
const BOOTS: u32 = 3;

/// Why a run is no success. A verdict without a single test behind it is none.
fn failure(verdict: &Verdict, report: &Report) -> Option<String> {
    if !report.failures.is_empty() {
        return Some(format!("failed: {}", report.failures.join(", ")));
    }
    verdict_failure(verdict).or_else(|| {
        (report.summaries == 0 || report.counts().failed > 0)
            .then(|| "the init said success, the test harness did not".to_owned())
    })
}

pub(crate) fn verdict_failure(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Success => None,
        Verdict::Failure => Some("the init said failure".to_owned()),
        Verdict::Crash(message) => Some(format!("the kernel crashed: {message}")),
        Verdict::Contradiction => Some("the init gave more than one verdict".to_owned()),
        Verdict::Silence => Some("the VM ended without a verdict".to_owned()),
        Verdict::Timeout(after) => Some(format!("killed after {} s", after.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.line(line));
        report
    }

    const PASSED: &str = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered \
                          out; finished in 0.01s";

    #[test]
    fn success_needs_verdict_and_tests() {
        assert_eq!(failure(&Verdict::Success, &report(PASSED)), None);
        assert!(failure(&Verdict::Success, &report("")).is_some());
        assert!(failure(&Verdict::Silence, &report(PASSED)).is_some());
        let failed = report("test a::b ... FAILED");
        assert_eq!(
            failure(&Verdict::Failure, &failed).as_deref(),
            Some("failed: a::b")
        );
    }

    fn trial(verdict: Verdict, text: &str) -> Trial {
        Trial {
            report: report(text),
            verdict,
            log: PathBuf::new(),
        }
    }

    const ONE_FAILED: &str = "test a::b ... FAILED\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; 0 \
                              measured; 0 filtered out; finished in 0.01s";
    const ALONE: &str = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; \
                         finished in 0.01s";

    #[test]
    fn a_few_failed_tests_are_run_again_and_a_crash_is_not() {
        let failed = trial(Verdict::Failure, ONE_FAILED);
        assert_eq!(failed.doubtful(), Some(vec!["a::b".to_owned()]));
        assert_eq!(
            exactly(&failed.doubtful().unwrap()).unwrap(),
            "conntracer.filter=--exact,a::b"
        );
        assert_eq!(trial(Verdict::Success, PASSED).doubtful(), None);
        let crash = Verdict::Crash("BUG:".to_owned());
        assert_eq!(trial(crash, ONE_FAILED).doubtful(), None);
        let summary = "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; \
                       finished in 0.01s";
        let many = "test a ... FAILED\n".repeat(DOUBTFUL + 1) + summary;
        assert_eq!(trial(Verdict::Failure, &many).doubtful(), None);
        // One of two failures stands in a line that cannot be read, and would be forgiven unseen.
        let garbled = ONE_FAILED.replace("1 failed", "2 failed");
        assert_eq!(trial(Verdict::Failure, &garbled).doubtful(), None);
    }

    #[test]
    fn what_passes_the_second_time_is_said_and_what_fails_twice_is_a_failure() {
        let mut remarks = Vec::new();
        let mut failed = trial(Verdict::Failure, ONE_FAILED);
        failed.settle(&trial(Verdict::Failure, ONE_FAILED), &mut remarks);
        // Skipped is not passed.
        failed.settle(
            &trial(Verdict::Success, &format!("test-skipped a::b: no\n{ALONE}")),
            &mut remarks,
        );
        assert_eq!(failed.failure().as_deref(), Some("failed: a::b"));
        assert_eq!(failed.report.counts().failed, 1);
        assert!(remarks.is_empty());
        failed.settle(&trial(Verdict::Success, ALONE), &mut remarks);
        assert_eq!(failed.failure(), None);
        assert_eq!(failed.report.counts().passed, 3);
        assert_eq!(remarks, ["passed when run again: a::b"]);
    }
}
