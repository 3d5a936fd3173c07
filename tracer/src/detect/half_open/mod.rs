//! `half_open`: one end believes in a connection that the other does not have, or not any more.

pub(crate) mod dead_peer;
pub(crate) mod half_closed;
pub(crate) mod handshake;
pub(crate) mod idle;

use crate::{event::Owner, finding::Subject};

/// All sockets of a process in a namespace; its name is its owner's, where that is known.
fn process((netns, pid): (u32, u32), owner: Option<&Owner>) -> Subject {
    Subject::Process {
        netns,
        pid,
        comm: owner.map_or_else(String::new, |owner| owner.comm.to_text().into_owned()),
    }
}
