//! What is remembered between events, all of it bounded.
//!
//! [`Bounded`] is the map every table is made of; [`connection`] and [`listener`] fold events into
//! what detectors judge, [`acceptor`] and [`netns_facts`] keep what /proc showed of those in trouble, [`seed`] counts. Nothing here makes findings.

pub mod acceptor;
mod bounded;
pub mod connection;
pub(crate) mod dropped;
pub mod listener;
pub mod netns_facts;
pub mod seed;

pub use bounded::Bounded;
