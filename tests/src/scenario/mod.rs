//! Traffic that fails in one known way each, in namespaces of its own.
//!
//! Every scenario has three steps, so that a tracer can be started after the first and compared
//! after the last: `new` makes the namespaces and nothing else; then it is provoked, waiting for the
//! kernel's counters or socket states; after `quiet` nothing is pending any more, and the counters
//! are final.

pub mod accept_queue;
pub mod bulk;
pub mod cookies;
pub mod dead_peer;
pub mod early_drop;
pub mod ghost_syns;
pub mod half_closed;
pub mod handshakes;
pub mod healthy;
pub mod load;
pub mod lossy_path;
pub mod old;
pub mod patterns;
pub mod repeats;
pub mod send_stall;
pub mod short_lives;
pub mod syn_flood;
pub mod two_servers;
