//! A child process that ends with its value, or with the thread that has started it.

use std::{
    io::Read,
    os::unix::process::CommandExt,
    process::{Child, ChildStdout, Command, ExitStatus},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

/// A child process that does not outlive its value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: Pid,
    stderr: Option<JoinHandle<String>>,
}

impl Process {
    /// Starts it. It is told to end should the calling thread end first, `kill -9` included.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        // SAFETY: prctl(2) is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                Ok(rustix::process::set_parent_process_death_signal(Some(
                    Signal::TERM,
                ))?)
            });
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        let pid = Pid::from_child(&child);
        let stderr = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                // What was read before an error is still worth showing.
                let _ = stderr.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        Ok(Self { child, pid, stderr })
    }

    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its output, for the one who asks first.
    pub fn stdout(&mut self) -> Result<ChildStdout> {
        self.child
            .stdout
            .take()
            .context("standard output is not piped, or was taken")
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.pid, signal)
            .with_context(|| format!("sending {signal:?} to conntracer"))
    }

    /// Its status, where it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("waiting for conntracer")
    }

    /// Waits until it ends; its status and everything it wrote to standard error.
    pub fn wait(&mut self, limit: Duration) -> Result<(ExitStatus, String)> {
        let status = crate::wait::until("conntracer to end", limit, || self.ended())?;
        let stderr = self.stderr.take().map_or_else(String::new, |thread| {
            thread
                .join()
                .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        });
        Ok((status, stderr))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
