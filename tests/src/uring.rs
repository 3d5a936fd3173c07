//! One accept() by io_uring, in a worker of its own.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, ensure};
use socket2::Socket;

/// include/uapi/linux/io_uring.h, as are the structures below.
const IORING_OP_ACCEPT: u8 = 13;
const IOSQE_ASYNC: u8 = 1 << 4;
const IORING_ENTER_GETEVENTS: libc::c_uint = 1;
const IORING_OFF_SQ_RING: libc::off_t = 0;
const IORING_OFF_CQ_RING: libc::off_t = 0x800_0000;
const IORING_OFF_SQES: libc::off_t = 0x1000_0000;
/// One page each is enough for one entry.
const RING_BYTES: usize = 4096;

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Params {
    head: [u32; 10],
    sq_off: SqOffsets,
    cq_off: CqOffsets,
}

/// `struct io_sqring_offsets`.
#[repr(C)]
#[derive(Default)]
struct SqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    rest: [u32; 3],
}

/// `struct io_cqring_offsets`.
#[repr(C)]
#[derive(Default)]
struct CqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    overflow: u32,
    cqes: u32,
    rest: [u32; 4],
}

/// The beginning of `struct io_uring_sqe`, and what is zero here.
#[repr(C)]
struct Submission {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    rest: [u64; 7],
}

/// `struct io_uring_cqe`.
#[repr(C)]
struct Completion {
    user_data: u64,
    res: i32,
    flags: u32,
}

const _: () = {
    assert!(size_of::<Params>() == 120);
    assert!(size_of::<Submission>() == 64);
    assert!(size_of::<Completion>() == 16);
};

/// A ring for one submission.
#[derive(Debug)]
pub struct Uring {
    fd: OwnedFd,
    array: *mut u32,
    tail: *mut AtomicU32,
    submission: *mut Submission,
    completion: *const Completion,
}

impl Uring {
    /// Makes one; the error says why there is none here.
    pub fn new() -> io::Result<Self> {
        let mut params = Params::default();
        // SAFETY: a system call with a structure that lives.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: a descriptor that the kernel just gave to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let map = |offset| {
            // SAFETY: a mapping where the kernel likes; it stays until this process ends.
            let at = unsafe {
                libc::mmap(
                    ptr::null_mut(),
                    RING_BYTES,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                    fd.as_raw_fd(),
                    offset,
                )
            };
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(at.cast::<u8>())
        };
        let (ring, done, entries) = (
            map(IORING_OFF_SQ_RING)?,
            map(IORING_OFF_CQ_RING)?,
            map(IORING_OFF_SQES)?,
        );
        // SAFETY: offsets that the kernel gave within what it mapped, for one entry.
        Ok(unsafe {
            Self {
                fd,
                array: ring.add(params.sq_off.array as usize).cast(),
                tail: ring.add(params.sq_off.tail as usize).cast(),
                submission: entries.cast(),
                completion: done.add(params.cq_off.cqes as usize).cast(),
            }
        })
    }

    /// Waits for a connection and takes it.
    pub fn accept(self, listener: &Socket) -> Result<Socket> {
        // SAFETY: mappings of this ring, which nobody else uses; the kernel looks once the tail has moved.
        let res = unsafe {
            self.submission.write(Submission {
                opcode: IORING_OP_ACCEPT,
                flags: IOSQE_ASYNC,
                ioprio: 0,
                fd: listener.as_raw_fd(),
                rest: [0; 7],
            });
            self.array.write(0);
            (*self.tail).store(1, Ordering::Release);
            let entered = libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                1,
                1,
                IORING_ENTER_GETEVENTS,
                ptr::null::<libc::sigset_t>(),
                size_of::<u64>(),
            );
            ensure!(
                entered == 1,
                "io_uring_enter: {}",
                io::Error::last_os_error()
            );
            (*self.completion).res
        };
        ensure!(res >= 0, "accept: {}", io::Error::from_raw_os_error(-res));
        // SAFETY: a descriptor that the kernel just gave to nobody else.
        Ok(unsafe { Socket::from_raw_fd(res) })
    }
}
