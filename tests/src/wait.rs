//! Waiting for a condition with a deadline: the only way anything here waits.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Longest wait for something the kernel does at once, or within its shortest timers. Generous,
/// because an emulated CPU is a hundred times slower than a real one; it costs nothing when met.
pub const SOON: Duration = Duration::from_mins(1);

/// Longest wait for something behind several of TCP's doubling timers.
pub const EVENTUALLY: Duration = Duration::from_mins(3);

/// Pause between two looks at a condition: a fifth of the kernel's shortest RTO, 200 ms.
const INTERVAL: Duration = Duration::from_millis(40);

/// Looks until `condition` gives a value or the deadline passes; `what` completes the sentence
/// "waited 60 s for …".
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        thread::sleep(INTERVAL);
    }
}
