//! A stopwatch that leaves out what conntracer does in user space meanwhile.

use std::{
    io,
    mem::MaybeUninit,
    ops::{AddAssign, Sub},
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::traced::Tracer;

/// Nanoseconds, which are instructions where the clock counts those.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    /// By everybody but the tracer's threads.
    pub(crate) load: u64,
    /// By those.
    pub(crate) user: u64,
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.load += other.load;
        self.user += other.user;
    }
}

/// Reads the time, and that of a tracer.
#[derive(Clone, Copy)]
pub(crate) struct Meter<'a>(pub(crate) Option<&'a Tracer>);

/// A moment, and the tracer's time until then.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    at: Instant,
    user: u64,
}

impl Meter<'_> {
    /// Begins: what takes longest, reading the tracer's time, comes before.
    pub(crate) fn begin(self) -> Result<Mark> {
        undisturbed(|| {
            let user = self.user()?;
            let at = Instant::now();
            Ok(Mark { at, user })
        })
    }

    /// What was spent since.
    pub(crate) fn end(self, begun: Mark) -> Result<Spent> {
        let ended = undisturbed(|| {
            let at = Instant::now();
            let user = self.user()?;
            Ok(Mark { at, user })
        })?;
        Ok(ended - begun)
    }

    fn user(self) -> Result<u64> {
        self.0.map_or(Ok(0), Tracer::cpu_ns)
    }
}

/// Two clocks read as one: again, if anybody else ran on this thread's CPU between them.
fn undisturbed(read: impl Fn() -> Result<Mark>) -> Result<Mark> {
    loop {
        let before = switches()?;
        let mark = read()?;
        if switches()? == before {
            return Ok(mark);
        }
    }
}

/// How often this thread left its CPU to another.
fn switches() -> Result<libc::c_long> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills the rusage it is given.
    let status = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    if status != 0 {
        return Err(io::Error::last_os_error()).context("asking for this thread's usage");
    }
    // SAFETY: filled above; all zero would be valid too.
    let usage = unsafe { usage.assume_init() };
    Ok(usage.ru_nvcsw + usage.ru_nivcsw)
}

impl Sub for Mark {
    type Output = Spent;

    fn sub(self, before: Self) -> Spent {
        let all = self.at.saturating_duration_since(before.at).as_nanos();
        let user = self.user.saturating_sub(before.user);
        Spent {
            // Nobody waits for 500 years.
            load: u64::try_from(all).unwrap_or(u64::MAX).saturating_sub(user),
            user,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_tracers_time_is_not_the_loads() {
        let before = Mark {
            at: Instant::now(),
            user: 100,
        };
        let after = Mark {
            at: before.at + Duration::from_micros(1),
            user: 300,
        };
        let expected = Spent {
            load: 800,
            user: 200,
        };
        assert_eq!(after - before, expected);
    }
}
