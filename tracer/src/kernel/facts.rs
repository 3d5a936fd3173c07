//! What is known of this host before the first record.

use std::{collections::BTreeMap, ffi::CStr, fs, os::unix::fs::MetadataExt};

use super::clock::{ktime_ns, realtime_offset_ns};
use crate::{host::Host, plan::Plan};

/// Settings that findings quote and advice is phrased with.
const SYSCTLS: &[&str] = &[
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_abort_on_overflow",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mtu_probing",
    "net.ipv4.tcp_orphan_retries",
    "net.ipv4.tcp_retries1",
    "net.ipv4.tcp_retries2",
    "net.ipv4.tcp_syn_linear_timeouts",
    "net.ipv4.tcp_syn_retries",
    "net.ipv4.tcp_synack_retries",
    "net.ipv4.tcp_syncookies",
];

pub(super) fn host(
    plan: Plan,
    drop_reasons: BTreeMap<u32, String>,
    reset_reasons: BTreeMap<u32, String>,
) -> Host {
    let uname = rustix::system::uname();
    let text = |part: &CStr| part.to_string_lossy().into_owned();
    let sysctls = SYSCTLS
        .iter()
        .filter_map(|name| {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            // A setting that cannot be read is not quoted.
            let value = fs::read_to_string(path).ok()?;
            Some(((*name).to_owned(), value.trim().to_owned()))
        })
        .collect();
    Host {
        hostname: text(uname.nodename()),
        kernel: text(uname.release()),
        arch: text(uname.machine()),
        realtime_offset_ns: realtime_offset_ns(),
        attached_ns: ktime_ns(),
        drop_reasons,
        reset_reasons,
        netns: own_netns(),
        sysctls,
        plan,
    }
}

/// The namespace that `/proc/sys/net` shows.
fn own_netns() -> Option<u32> {
    let netns = fs::metadata("/proc/thread-self/ns/net").ok()?;
    u32::try_from(netns.ino()).ok()
}
