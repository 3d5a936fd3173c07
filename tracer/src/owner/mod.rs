//! What names an owner to people, how it stands, and what its namespace counts, read from /proc, the control groups and
//! /run/netns.
//!
//! Reads files and nothing else; what is learned enters the stream as records
//! (`crate::kernel`), so that a replay names what the run named.

pub(crate) mod cgroup;
pub(crate) mod figures;
pub(crate) mod netns;
pub(crate) mod path;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod standing;
pub(crate) mod stat;
