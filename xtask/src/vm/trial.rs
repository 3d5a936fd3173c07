//! The tests in one VM.

use std::{
    iter,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Result;

use super::{
    files::Run,
    plan::{Plan, Setup},
};
use crate::{
    again,
    excerpt::print_failure,
    kernel::Kernel,
    libtest::Report,
    machine::{self, Log, Programs, Verdict},
    table::Row,
    workspace::Workspace,
};

/// One VM's run of the tests.
pub(crate) struct Outcome {
    pub(crate) row: Row,
    /// Why the run as a whole is a failure; None when it is a success.
    pub(crate) failure: Option<String>,
    pub(crate) log: PathBuf,
}

pub(super) fn test_one(
    workspace: &Workspace,
    plan: &Plan,
    kernel: &Kernel,
    programs: &Programs,
    setup: &Setup,
) -> Result<Outcome> {
    let name = setup.name();
    let run = Run::prepare(workspace, kernel, programs, &name)?;
    let log = run.directory.join(format!("{name}.log"));
    let start = Instant::now();
    let (mut verdict, mut report) = boot(plan, kernel, &run, setup, &log)?;
    if let Some(tests) = again::doubtful(&report)
        && verdict == Verdict::Failure
    {
        eprintln!(
            "Linux {} ({name}): failed: {}; running that again ({} has the first time)",
            kernel.release,
            tests.join(", "),
            log.display()
        );
        print_failure(&setup.name(), "the first time", &log)?;
        let filters = iter::once("--exact".to_owned()).chain(tests).collect();
        let setup = Setup {
            filters,
            ..setup.clone()
        };
        let log = run.directory.join(format!("{name}-again.log"));
        let (ended, second) = boot(plan, kernel, &run, &setup, &log)?;
        if failure(&ended, &second).is_none() {
            again::settle(&mut report, &second);
        }
        if report.failures.is_empty() {
            verdict = ended;
        }
    }
    let elapsed = start.elapsed();
    if plan.keep {
        run.keep(&name)?;
    }
    let failure = failure(&verdict, &report);
    eprintln!(
        "Linux {} ({name}): {} in {} s",
        kernel.release,
        failure.as_deref().unwrap_or("passed"),
        elapsed.as_secs()
    );
    Ok(Outcome {
        row: Row {
            stage: format!("vm {} {name}", kernel.release),
            elapsed,
            ..Row::reported(&report, failure.clone())
        },
        failure,
        log,
    })
}

/// Boots the VM until a test has begun, and gives what it came to.
fn boot(
    plan: &Plan,
    kernel: &Kernel,
    run: &Run,
    setup: &Setup,
    log: &Path,
) -> Result<(Verdict, Report)> {
    let parameters = setup.parameters()?;
    let mut boots_left = BOOTS;
    loop {
        boots_left -= 1;
        let mut report = Report::default();
        let mut log = Log::create(log.to_owned())?;
        let mut testing = false;
        let verdict = machine::boot(kernel, &run.initramfs, &parameters, plan.timeout, |line| {
            testing |= line.starts_with("running ");
            report.line(line);
            log.line(line)
        })?;
        match &verdict {
            Verdict::Crash(message) if !testing && boots_left > 0 => eprintln!(
                "Linux {} ({}): crashed before any test began ({message}), which says nothing of \
                 conntracer; booting it again",
                kernel.release,
                setup.name()
            ),
            _ => return Ok((verdict, report)),
        }
    }
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
}
