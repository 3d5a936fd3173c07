//! Live tests: what conntracer says against what the kernel counts, each in a network namespace of
//! its own.
//!
//! `CONNTRACER_BIN` names the binary, `CONNTRACER_HOOKS` the hook mode (default `auto`). What cannot
//! run here prints one `test-skipped NAME: REASON` line and passes, so that the reasons can be
//! counted; with `CONNTRACER_MUST_TRACE` set it fails instead.

mod accept_delay;
mod acceptor;
mod alike;
mod alone;
mod another_transport;
mod before;
mod bind_failure;
mod connect_failure;
mod connection;
mod connection_drop;
mod connects;
mod conntrack;
mod deaths;
mod denied;
mod doctor;
mod dropped_here;
mod early_drop;
mod emit;
mod filter;
mod fork;
mod half_open;
mod handshake;
mod healthy;
mod holder;
mod hour;
mod idle;
mod incidents;
mod lifecycle;
mod listener;
mod listeners;
mod metrics;
mod nginx;
mod now;
mod owner;
mod programs;
mod receive_stall;
mod reconcile;
mod resets;
mod retransmit;
mod retransmit_storm;
mod routes;
mod scenario;
mod seed;
mod send_stall;
mod silence;
mod support;
mod syn_drop;
mod syslog;
mod times;
