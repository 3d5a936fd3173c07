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
