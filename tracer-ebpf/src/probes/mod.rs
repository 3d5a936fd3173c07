//! The programs, one subject a file. A program is a thin function that counts what its `try_` half
//! says became of the event.

mod accept;
mod ack;
mod bracket;
mod close;
mod connect;
mod cookie;
mod counted;
mod destroy;
mod drop;
mod early_drop;
mod failure;
mod filter;
mod fork;
mod idle;
mod listener;
mod netns;
mod pass;
mod percpu;
mod probe;
mod request;
mod reset;
mod retransmit;
mod rto;
mod seed;
mod snapshot;
mod socket;
mod sources;
mod state;
mod syn;
mod synack;
mod tail_loss_probe;
mod timeout;
mod undo;
