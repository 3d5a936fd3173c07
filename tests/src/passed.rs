//! A descriptor in a message (`SCM_RIGHTS`, unix(7)), by system calls alone.

use std::{mem, os::fd::RawFd, ptr};

/// Room for one descriptor: `CMSG_SPACE(sizeof(int))` is 24.
#[repr(C, align(8))]
struct Control([u8; 24]);

fn with_message<T>(control: &mut Control, act: impl FnOnce(&mut libc::msghdr) -> T) -> T {
    let mut byte = 0_u8;
    let mut part = libc::iovec {
        iov_base: ptr::from_mut(&mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: a plain structure of numbers and pointers.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    act(&mut message)
}

/// Whether it went.
#[must_use]
pub fn send(through: RawFd, fd: RawFd) -> bool {
    let mut control = Control([0; 24]);
    with_message(&mut control, |message| {
        // SAFETY: the control buffer has room for one header and one descriptor.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
            libc::sendmsg(through, message, 0) == 1
        }
    })
}

/// -1 when none came.
#[must_use]
pub fn receive(through: RawFd) -> RawFd {
    let mut control = Control([0; 24]);
    with_message(&mut control, |message| {
        // SAFETY: as above; without a header nothing is read.
        unsafe {
            if libc::recvmsg(through, message, 0) != 1 {
                return -1;
            }
            let header = libc::CMSG_FIRSTHDR(message);
            if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
                return -1;
            }
            libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()
        }
    })
}
