//! `conntracer report`: what a run has said, as one screen of text ([`text`]), one object ([`json`]) or one page
//! ([`html`]).
//!
//! Folds the lines of NDJSON output; a recording is rendered to such lines first, so that both read the
//! same. Lines that are not conntracer's are counted and otherwise ignored. However long the file, what is kept is bounded,
//! and what was left out is counted.

mod fold;
mod html;
mod json;
mod read;
mod series;
#[cfg(test)]
mod tests;
mod text;

pub use self::{fold::Report, html::html, json::json, text::text};
