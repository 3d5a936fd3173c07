//! conntracer's user half: records from the kernel become events, events change connections,
//! detectors judge the changes, sinks print the findings.
//!
//! Dependencies point one way: [`kernel`] and [`decode`] know nothing of the [`table`]; [`detect`]
//! knows nothing of the kernel or of sinks; a [`recording`] re-enters at [`decode`]. [`command`] is
//! where the process starts.

pub mod cli;
pub mod command;
pub mod config;
pub mod decode;
pub mod detect;
pub mod event;
pub mod filter;
pub mod finding;
pub mod kernel;
mod owner;
pub mod pipeline;
pub mod privileges;
pub mod reconcile;
pub mod recording;
pub mod run;
pub mod sink;
pub mod source;
pub mod table;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod view;
pub mod watch;
