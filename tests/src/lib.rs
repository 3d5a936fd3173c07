//! The harness of conntracer's live tests: throw-away network namespaces, the kernel's own counters
//! in them, traffic that fails in one known way each, and a running conntracer to compare with.
//!
//! Everything here works as root on a host and as the child of an init in a VM without any user
//! land: no command is run but conntracer itself, and those that a variable names. Nothing here asserts;
//! that is for `tests/kernel`, and for the demo to show.

pub mod bpf;
pub mod btf;
pub mod cgroup;
pub mod compared;
pub mod counters;
pub mod cpu;
pub mod family;
pub mod forbidden;
pub mod forked;
pub mod line;
pub mod link;
pub mod netfilter;
pub mod netlink;
pub mod netns;
pub mod output;
pub mod packet;
pub mod passed;
pub mod peer;
pub mod proc_net;
pub mod process;
mod program;
pub mod queue;
mod raw;
pub mod scenario;
pub mod schema;
pub mod security;
pub mod served;
pub mod shared;
pub mod sock_diag;
pub mod socket;
pub mod ss;
mod tail;
pub mod tracer;
pub mod uring;
pub mod wait;
pub mod watch;
pub mod witness;
pub mod xdp;
