//! Gives up everything that serving a network does not need.

use anyhow::Context;
use caps::{CapSet, CapsHashSet};
use rustix::{
    process::{Gid, Uid, geteuid},
    thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// The user and group that own nothing: `overflowuid` and `overflowgid`, as every kernel has them unless it is told
/// otherwise.
const NOBODY: u32 = 65_534;

/// Called while there is one thread: others inherit it.
pub(super) fn confine() -> anyhow::Result<()> {
    set_no_new_privs(true).context("forbidding itself new privileges")?;
    if geteuid().is_root() {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        let be_nobody = || -> rustix::io::Result<()> {
            set_thread_groups(&[])?;
            set_thread_res_gid(group, group, group)?;
            set_thread_res_uid(user, user, user)
        };
        // A root that may not change its user (a container without CAP_SETUID) keeps it, without capabilities.
        if let Err(error) = be_nobody() {
            log::warn!("what serves the network stays root, without capabilities: {error}");
        }
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::set(None, set, &CapsHashSet::new()).context("giving its capabilities up")?;
    }
    Ok(())
}
