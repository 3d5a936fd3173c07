//! A process of its own that shares some of this one's descriptors, for what belongs to somebody else.

use std::{ffi::CStr, io::Read, os::fd::RawFd};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// A child of this process; killed when dropped.
#[derive(Debug)]
pub struct Forked {
    pid: Pid,
    ended: bool,
}

impl Forked {
    /// Calls `act` in a copy of this process that is called `name` and keeps `kept` of its descriptors, and
    /// ends the copy with what it returns. The other descriptors are closed there when this returns.
    ///
    /// The copy has one thread of this process's many: `act` may make system calls, and must not allocate or
    /// lock.
    pub fn run(name: &CStr, kept: &[RawFd], act: impl FnOnce() -> u8) -> Result<Self> {
        let mut kept: Vec<RawFd> = kept.to_vec();
        kept.sort_unstable();
        let (mut closed, open) = std::io::pipe().context("making a pipe")?;
        // SAFETY: the child makes system calls only, by the contract of `act`, until it ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: arguments as prctl(2) wants them; `name` is a string that lives. _exit runs nothing of
            // what is the parent's to run.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::prctl(libc::PR_SET_NAME, name.as_ptr());
                close_others(&kept);
                libc::_exit(act().into());
            }
        }
        ensure!(pid > 0, "fork: {}", std::io::Error::last_os_error());
        let pid = Pid::from_raw(pid).context("a child without a pid")?;
        let forked = Self { pid, ended: false };
        drop(open);
        // Until nobody can write any more, the child included.
        let nothing = closed
            .read(&mut [0])
            .context("waiting for a child to close what it does not keep")?;
        ensure!(nothing == 0, "a child wrote to what it was to close");
        Ok(forked)
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Stops it as job control does, and waits until all of it is.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        waitpid(Some(self.pid), WaitOptions::UNTRACED).context("waiting for a child to stop")?;
        Ok(())
    }

    /// Lets it go on.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).context("sending a signal to a child")
    }

    /// Ends it, and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        waitpid(Some(self.pid), WaitOptions::empty()).context("waiting for a child to end")?;
        self.ended = true;
        Ok(())
    }

    /// Waits until it ends by itself, which must be with 0.
    pub fn wait(mut self) -> Result<()> {
        let (_, status) = waitpid(Some(self.pid), WaitOptions::empty())
            .context("waiting for a child")?
            .context("no status of a child")?;
        self.ended = true;
        ensure!(
            status.exit_status() == Some(0),
            "the child ended with {status:?}"
        );
        Ok(())
    }
}

/// Makes a copy of what is a copy already, called `name`, that goes when its maker does; whether this is it. Where
/// it fails there is none, which shows as what it does not do.
#[must_use]
pub fn again(name: &CStr) -> bool {
    // SAFETY: a copy has one thread and makes system calls only; arguments as prctl(2) wants them.
    unsafe {
        let is_copy = libc::fork() == 0;
        if is_copy {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        }
        is_copy
    }
}

/// Waits to be killed: for an `act` that is over.
#[must_use]
pub fn pause() -> u8 {
    loop {
        // SAFETY: no arguments.
        unsafe { libc::pause() };
    }
}

/// Closes every descriptor above standard error but those: another test's socket is not to be held by a process
/// of this one's.
fn close_others(sorted: &[RawFd]) {
    let mut first = libc::STDERR_FILENO + 1;
    for kept in sorted.iter().copied().chain([RawFd::MAX]) {
        if kept > first {
            // SAFETY: numbers; what is not open is passed over. Linux 5.9.
            unsafe { libc::syscall(libc::SYS_close_range, first, kept - 1, 0) };
        }
        first = first.max(kept.saturating_add(1));
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        if !self.ended {
            // Nobody is left to be told when this fails.
            let _gone = kill_process(self.pid, Signal::KILL);
            let _reaped = waitpid(Some(self.pid), WaitOptions::empty());
        }
    }
}
