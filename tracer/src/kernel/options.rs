//! What to trace and how, as the command line and the config file settled it.

use std::path::PathBuf;

use conntracer_common::filter::Filter;

use crate::{
    conditions::Owners,
    plan::{HookMode, Transport},
};

/// See the module.
#[derive(Clone, Debug)]
pub struct Options {
    /// The running kernel's BTF.
    pub btf: PathBuf,
    pub mode: HookMode,
    pub transport: Transport,
    pub filter: Filter,
    /// What `filter.owner` speaks of.
    pub owners: Owners,
    /// Kinds of records asked for beyond what findings need: bits of
    /// `conntracer_common::filter::emit_bit`.
    pub emit: u32,
    /// Connections kept in the kernel at once, ~200 bytes each.
    pub max_sockets: u32,
    /// Bytes of the ring that is read in batches, a power of two.
    pub ring_bytes: u32,
    /// Look for connections that have been idle for so long.
    pub idle_ns: Option<u64>,
    /// Pass the programs' own debug log on.
    pub verbose: bool,
}
