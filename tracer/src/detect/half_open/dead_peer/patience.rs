//! How long the kernel bears that nothing is acknowledged.

use std::time::Duration;

use crate::{detect::context::Context, table::connection::Connection};

/// `TCP_RTO_MIN` and `TCP_RTO_MAX` (include/net/tcp.h).
pub(super) const RTO_MIN: Duration = Duration::from_millis(200);
pub(super) const RTO_MAX: Duration = Duration::from_mins(2);

/// How long the kernel tries at least: `tcp_model_timeout` (net/ipv4/tcp_timer.c) for
/// `tcp_retries2`; 924.6 s for its default of 15.
fn gives_up_after(retries: u32) -> Duration {
    // ilog2(RTO_MAX / RTO_MIN): doublings until the timeout stays at its maximum.
    const DOUBLINGS: u32 = 9;
    let doubled = RTO_MIN.saturating_mul((2_u32 << retries.min(DOUBLINGS)).saturating_sub(1));
    doubled.saturating_add(RTO_MAX.saturating_mul(retries.saturating_sub(DOUBLINGS)))
}

/// How often the kernel tries: `tcp_retries2`, and without an application that waits `tcp_orphan_retries`, whose 0
/// stands for 8 (net/ipv4/tcp_timer.c, `tcp_orphan_retries`).
fn retries(connection: &Connection, cx: &Context<'_>) -> Option<u32> {
    const OF_ZERO: u64 = 8;
    let retries = if connection.tcp.orphan {
        let retries = cx.sysctl_number(ORPHAN_RETRIES, connection.netns)?;
        if retries == 0 { OF_ZERO } else { retries }
    } else {
        cx.sysctl_number(RETRIES2, connection.netns)?
    };
    u32::try_from(retries).ok()
}

pub(super) const RETRIES2: &str = "net.ipv4.tcp_retries2";
pub(super) const ORPHAN_RETRIES: &str = "net.ipv4.tcp_orphan_retries";

/// How long the kernel bears the silence, where timeouts tell; `None` where that is not known.
pub(super) fn limit(connection: &Connection, cx: &Context<'_>) -> Option<Duration> {
    let user_timeout = connection.tcp.user_timeout;
    user_timeout.or_else(|| retries(connection, cx).map(gives_up_after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gives_up_after_what_its_documentation_says() {
        assert_eq!(gives_up_after(15), Duration::from_millis(924_600));
        assert_eq!(gives_up_after(8), Duration::from_millis(102_200));
        assert_eq!(gives_up_after(0), Duration::from_millis(200));
        assert_eq!(
            gives_up_after(u32::MAX).as_secs(),
            120 * (u64::from(u32::MAX) - 9) + 204
        );
    }
}
