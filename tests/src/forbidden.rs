//! A control group whose processes may not connect.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    net::SocketAddr,
    os::fd::AsRawFd,
};

use anyhow::{Context, Result};
use socket2::SockAddr;

use crate::{
    cgroup::Cgroup,
    family::Family,
    forked::Forked,
    program::{self, Purpose},
};

/// include/uapi/linux/bpf.h.
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_INET6_CONNECT: u32 = 11;

/// The first members of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct ProgAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// See the module. Its programs go with the group.
#[derive(Debug)]
pub struct Forbidden {
    group: Cgroup,
    family: Family,
}

impl Forbidden {
    /// Denies connect() to addresses of `family` to the processes of a group.
    pub fn new(group: Cgroup, family: Family) -> Result<Self> {
        const DENY: u32 = 0;
        let attach_type = match family {
            Family::V4 => BPF_CGROUP_INET4_CONNECT,
            Family::V6 => BPF_CGROUP_INET6_CONNECT,
        };
        let purpose = Purpose {
            prog_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
            attach_type,
            ..Purpose::default()
        };
        let program =
            program::returning(DENY, purpose).context("loading a program for a control group")?;
        let directory = File::open(group.directory()).context("opening a control group")?;
        let mut attr = ProgAttach {
            target_fd: directory.as_raw_fd().cast_unsigned(),
            attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
            attach_type,
            attach_flags: 0,
        };
        // SAFETY: `attr` is the member of bpf_attr that the command reads, of the size given.
        let status = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_ATTACH,
                &raw mut attr,
                size_of::<ProgAttach>(),
            )
        };
        if status == 0 {
            Ok(Self { group, family })
        } else {
            Err(io::Error::last_os_error()).context("attaching a program to a control group")
        }
    }

    /// A process within, called `ct-forbidden`, that tries to connect from the calling thread's network namespace and
    /// ends well when it may not (EPERM).
    pub fn connect(&self, remote: SocketAddr) -> Result<Forked> {
        let processes = fs::OpenOptions::new()
            .write(true)
            .open(self.group.directory().join("cgroup.procs"))
            .context("opening a control group's processes")?;
        let remote = SockAddr::from(remote);
        let domain = libc::c_int::from(self.family.domain());
        Forked::run(c"ct-forbidden", &[processes.as_raw_fd()], || {
            let joined = rustix::io::write(&processes, b"0");
            // SAFETY: the address lives in this copy of the parent's memory.
            let connected = unsafe {
                let socket = libc::socket(domain, libc::SOCK_STREAM, 0);
                libc::connect(socket, remote.as_ptr().cast(), remote.len())
            };
            let forbidden =
                connected != 0 && io::Error::last_os_error().kind() == ErrorKind::PermissionDenied;
            u8::from(joined.is_err() || !forbidden)
        })
    }
}
