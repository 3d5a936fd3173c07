//! conntracer's user half: records from the kernel become events, events change connections,
//! detectors judge the changes, sinks print the findings.
//!
//! Dependencies point one way: [`kernel`] and [`decode`] know nothing of the [`table`]; [`detect`]
//! knows nothing of the kernel or of sinks; a [`recording`] re-enters at [`decode`].

pub mod decode;
pub mod detect;
pub mod event;
pub mod finding;
pub mod kernel;
pub mod pipeline;
pub mod recording;
pub mod source;
pub mod table;

#[cfg(test)]
mod testing;
