//! Sinks: what the pipeline found, as text for people or NDJSON for programs.
//!
//! A sink is a destination ([`destination`]) with a format ([`text`], [`json`]), a choice of lines ([`selection`]) and a
//! bounded queue that takes it off the pipeline's thread ([`queue`]); [`sinks`] are all of a run. [`line`] is what
//! travels, [`escape`] makes it safe. Nothing here judges.

pub mod destination;
pub mod escape;
mod fields;
pub mod format;
pub mod json;
pub mod line;
pub mod lines;
mod missed;
pub mod moment;
pub mod queue;
pub mod selection;
pub mod sinks;
pub mod text;

pub use self::{
    destination::To,
    format::Format,
    line::{Account, Line, Occasion, Reason, SharedHost, SinkAccount, SinkGap},
    lines::{Each, Lines},
    queue::WhenFull,
    selection::Selection,
    sinks::{Output, Sinks},
};

#[cfg(test)]
mod tests;
