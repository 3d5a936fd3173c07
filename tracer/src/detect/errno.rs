//! errno.h: the same on every architecture that Linux's BPF runs on but MIPS and SPARC.

pub(crate) const EPERM: u32 = 1;
pub(crate) const EACCES: u32 = 13;
pub(crate) const ENODEV: u32 = 19;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const EPIPE: u32 = 32;
pub(crate) const ENONET: u32 = 64;
pub(crate) const EPROTO: u32 = 71;
pub(crate) const ENOPROTOOPT: u32 = 92;
pub(crate) const EOPNOTSUPP: u32 = 95;
pub(crate) const EADDRINUSE: u32 = 98;
pub(crate) const EADDRNOTAVAIL: u32 = 99;
pub(crate) const ENETDOWN: u32 = 100;
pub(crate) const ENETUNREACH: u32 = 101;
pub(crate) const ECONNABORTED: u32 = 103;
pub(crate) const ECONNRESET: u32 = 104;
pub(crate) const ETIMEDOUT: u32 = 110;
pub(crate) const ECONNREFUSED: u32 = 111;
pub(crate) const EHOSTDOWN: u32 = 112;
pub(crate) const EHOSTUNREACH: u32 = 113;

/// The name, where a detector knows it.
pub(crate) const fn name(errno: u32) -> Option<&'static str> {
    Some(match errno {
        EPERM => "EPERM",
        EACCES => "EACCES",
        ENODEV => "ENODEV",
        EINVAL => "EINVAL",
        EPIPE => "EPIPE",
        ENONET => "ENONET",
        EPROTO => "EPROTO",
        ENOPROTOOPT => "ENOPROTOOPT",
        EOPNOTSUPP => "EOPNOTSUPP",
        EADDRINUSE => "EADDRINUSE",
        EADDRNOTAVAIL => "EADDRNOTAVAIL",
        ENETDOWN => "ENETDOWN",
        ENETUNREACH => "ENETUNREACH",
        ECONNABORTED => "ECONNABORTED",
        ECONNRESET => "ECONNRESET",
        ETIMEDOUT => "ETIMEDOUT",
        ECONNREFUSED => "ECONNREFUSED",
        EHOSTDOWN => "EHOSTDOWN",
        EHOSTUNREACH => "EHOSTUNREACH",
        _ => return None,
    })
}
