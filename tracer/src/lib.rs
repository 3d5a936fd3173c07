//! conntracer's userspace: records from the kernel become events, events change connections,
//! detectors judge the changes, owners are told, sinks print the findings.
//!
//! Dependencies point one way: [`kernel`] and [`decode`] know nothing of the [`table`]; [`detect`]
//! knows nothing of the kernel or of sinks; a [`recording`] re-enters at [`decode`]. [`command`] is
//! where the process starts.
//!
//! What is right of the ring takes any bytes (law 7): its arithmetic saturates or is checked, which the
//! lint on these modules holds.

#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod alike;
mod attribute;
mod bounded;
mod cadence;
pub mod cli;
pub mod command;
pub mod conditions;
pub mod config;
mod count;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub mod decode;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub mod detect;
pub mod emit;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub mod event;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub mod filter;
pub mod finding;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod id;
mod incident;
pub mod kernel;
mod outlet;
mod owner;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub mod pipeline;
pub mod plan;
pub mod privileges;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub mod reconcile;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub mod recording;
pub mod run;
pub mod section;
pub mod sink;
pub mod source;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub mod table;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod time;
pub mod view;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub mod watch;
