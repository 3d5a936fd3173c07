//! What is remembered between events, all of it bounded.
//!
//! [`Bounded`] is the map every table is made of; [`connection`] and [`listener`] fold events into
//! what detectors judge, [`seed`] counts. Nothing here makes findings.

mod bounded;
pub mod connection;
pub mod listener;
pub mod seed;

pub use bounded::Bounded;
