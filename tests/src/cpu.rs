//! Where a test's threads run.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Keeps the calling thread on the first CPU that it may use.
pub(crate) fn pin_to_one() -> Result<()> {
    let allowed = sched_getaffinity(None).context("reading the CPU affinity")?;
    let first = (0..CpuSet::MAX_CPU)
        .find(|cpu| allowed.is_set(*cpu))
        .context("no CPU to run on")?;
    let mut one = CpuSet::new();
    one.set(first);
    sched_setaffinity(None, &one).context("setting the CPU affinity")
}

/// Does `act` on each CPU that the calling thread may use, one after the other; how many those are.
pub fn on_each(mut act: impl FnMut() -> Result<()>) -> Result<u64> {
    let allowed = sched_getaffinity(None).context("reading the CPU affinity")?;
    let mut cpus = 0;
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)) {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).context("setting the CPU affinity")?;
        act()?;
        cpus += 1;
    }
    sched_setaffinity(None, &allowed).context("restoring the CPU affinity")?;
    Ok(cpus)
}
