//! The programs, one subject a file. A program is a thin function that counts what its `try_` half
//! says became of the event.

mod accept;
mod ack;
mod bracket;
mod close;
mod connect;
mod cookie;
mod cumulative;
mod destroy;
mod drop;
mod early_drop;
mod failure;
mod fork;
mod idle;
mod listener;
mod loss_probe;
mod matching;
mod netns;
mod ownership;
mod pass;
mod percpu;
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
mod tcp_probe;
mod timeout;
mod totals;
mod undo;
