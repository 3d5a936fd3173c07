//! Network namespaces that exist as long as somebody holds them.
//!
//! A [`NetNs`] is a file descriptor and nothing else: no bind mount, no name, no process. When it
//! and the last socket made inside are dropped, also by a panic or `kill -9`, the kernel removes
//! the namespace with its interfaces.
//!
//! The kernel gives the inode of a namespace that is gone to the next, and findings go by it: what a conntracer that runs
//! for long still says of one test's would be taken for another's. So no two of a process have the same.

use std::{
    collections::HashSet,
    fs,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::{fs::MetadataExt as _, process::CommandExt as _},
    },
    panic,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

use crate::{
    counters::Counters,
    forked::{self, Forked},
    netlink,
    wait::{self, EVENTUALLY},
};

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
        let (fd, inode) = on_own_thread(|| {
            loop {
                occupy_used_inodes()?;
                let (fd, inode) = unshare(UnshareFlags::NEWNET, "net")?;
                // Not new where one has ended just now.
                if used().inodes.insert(inode) {
                    return Ok((fd, inode));
                }
            }
        })?;
        let netns = Self {
            fd: Arc::new(fd),
            inode,
        };
        netns.run(netlink::raise_loopback)?;
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

    /// A process inside that does nothing but be there, so that /proc leads into the namespace.
    pub fn inhabit(&self) -> Result<Forked> {
        let fd = self.fd.as_raw_fd();
        let inhabitant = Forked::run(c"ct-inhabitant", &[fd], move || {
            // SAFETY: a descriptor that is kept, and a kind of namespace.
            let entered = unsafe { libc::setns(fd, libc::CLONE_NEWNET) };
            if entered == 0 { forked::pause() } else { 1 }
        })?;
        let way = format!("/proc/{}/ns/net", inhabitant.pid());
        wait::until("a process to be in a namespace", EVENTUALLY, || {
            let inode = fs::metadata(&way).context("looking at a process")?.ino();
            Ok((inode == u64::from(self.inode())).then_some(()))
        })?;
        Ok(inhabitant)
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

/// Inodes that network namespaces of this process have or had.
#[derive(Debug, Default)]
struct Used {
    inodes: HashSet<u32>,
    /// What has those of the ones that are gone.
    occupied: Vec<OwnedFd>,
}

fn used() -> MutexGuard<'static, Used> {
    static USED: OnceLock<Mutex<Used>> = OnceLock::new();
    USED.get_or_init(|| {
        // A descriptor for each, on top of what the tests hold. Where it fails, opening one says so.
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let limit = Rlimit {
            current: maximum,
            maximum,
        };
        let _unchanged = setrlimit(Resource::Nofile, limit);
        Mutex::default()
    })
    .lock()
    // One number is added at a time.
    .unwrap_or_else(PoisonError::into_inner)
}

/// Gives inodes that are free again to namespaces of another kind, which are next to nothing: the kernel takes the lowest
/// number that is free (`proc_alloc_inum`), whatever it is for.
fn occupy_used_inodes() -> Result<()> {
    loop {
        let (fd, inode) = unshare(UnshareFlags::NEWUTS, "uts")?;
        let mut used = used();
        if !used.inodes.contains(&inode) {
            return Ok(());
        }
        used.occupied.push(fd);
    }
}

/// Moves the calling thread, which ends soon, into a new namespace.
fn unshare(kind: UnshareFlags, name: &str) -> Result<(OwnedFd, u32)> {
    // SAFETY: only a namespace of this thread changes, and nothing that other threads share (file table, address space)
    // is unshared.
    unsafe { unshare_unsafe(kind) }
        .with_context(|| format!("making a {name} namespace; this needs root (CAP_SYS_ADMIN)"))?;
    let path = format!("/proc/thread-self/ns/{name}");
    let namespace = fs::File::open(&path).with_context(|| format!("opening {path}"))?;
    let inode = rustix::fs::fstat(&namespace)
        .context("reading the namespace's inode")?
        .st_ino;
    let inode = u32::try_from(inode).context("a namespace inode that is not 32 bits")?;
    Ok((namespace.into(), inode))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_inode_is_used_twice() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mut inodes = HashSet::new();
        // A namespace is taken down by a kernel worker: some of them are while the next are made.
        for _ in 0..50 {
            assert!(inodes.insert(NetNs::new().unwrap().inode()));
        }
    }
}
