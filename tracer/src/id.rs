//! What tells one socket from another: cookies do not exist on every kernel, and addresses of kernel
//! memory are used again.

use crate::time::Ktime;

/// A socket: the address of the kernel's `struct sock`, and its birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId {
    pub sk: u64,
    pub born: Ktime,
}

impl SocketId {
    #[must_use]
    pub const fn new(sk: u64, born_ns: u64) -> Self {
        Self {
            sk,
            born: Ktime(born_ns),
        }
    }
}
