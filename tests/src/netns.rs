//! Network namespaces that exist as long as somebody holds them.
//!
//! A [`NetNs`] is a file descriptor and nothing else: no bind mount, no name, no process. When it
//! and the last socket made inside are dropped, also by a panic or `kill -9`, the kernel removes
//! the namespace with its interfaces.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    panic,
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::{counters::Counters, link};

/// `comm` of the process that makes namespaces, and of its threads that act inside, so that tests know the
/// owner to expect.
pub const COMM: &str = "ct-netns";

/// A throw-away network namespace with its loopback interface up. A clone is the same namespace.
#[derive(Clone, Debug)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    inode: u32,
}

impl NetNs {
    /// Makes one. Needs CAP_SYS_ADMIN.
    pub fn new() -> Result<Self> {
        // The name of the process is that of its first thread.
        fs::write("/proc/self/comm", COMM).context("naming this process")?;
        let fd = on_own_thread(|| -> Result<OwnedFd> {
            // SAFETY: only the network namespace of this thread changes; the thread ends here, and
            // nothing that other threads share (file table, address space) is unshared.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .context("making a network namespace; this needs root (CAP_SYS_ADMIN)")?;
            let namespace = fs::File::open("/proc/thread-self/ns/net")
                .context("opening /proc/thread-self/ns/net")?;
            Ok(OwnedFd::from(namespace))
        })?;
        let inode = rustix::fs::fstat(&fd)
            .context("reading the namespace's inode")?
            .st_ino;
        let inode = u32::try_from(inode).context("a namespace inode that is not 32 bits")?;
        let netns = Self {
            fd: Arc::new(fd),
            inode,
        };
        netns.run(link::raise_loopback)?;
        Ok(netns)
    }

    /// Inode of the namespace: what conntracer calls its netns.
    #[must_use]
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// The namespace itself, for moving an interface into it.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Runs `work` inside, on a thread of its own; sockets made there stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                .context("entering a network namespace")?;
            work()
        })
    }

    /// Makes `command` run inside, wherever it is started.
    pub fn adopt(&self, command: &mut Command) {
        let fd = Arc::clone(&self.fd);
        let enter = move || {
            Ok(move_into_link_name_space(
                fd.as_fd(),
                Some(LinkNameSpaceType::Network),
            )?)
        };
        // SAFETY: setns(2) is async-signal-safe and allocates nothing.
        unsafe { command.pre_exec(enter) };
    }

    /// Sets a sysctl of this namespace; `name` with slashes, below `/proc/sys`.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| {
            fs::write(format!("/proc/sys/{name}"), value)
                .with_context(|| format!("setting {name} to {value}"))
        })
    }

    /// The kernel's TCP counters of this namespace, now.
    pub fn counters(&self) -> Result<Counters> {
        self.run(Counters::read)
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name(COMM.to_owned())
            .spawn_scoped(scope, work)
            .context("starting a thread")?
            .join()
            .unwrap_or_else(|payload| panic::resume_unwind(payload))
    })
}
