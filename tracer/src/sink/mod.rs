//! Sinks: what the pipeline found, as text for people or NDJSON for programs.
//!
//! [`line`] is what travels, [`text`] and [`json`] render it, [`escape`] makes it safe, [`queue`] takes
//! it off the pipeline's thread. Nothing here judges.

pub mod escape;
mod fields;
pub mod json;
pub mod line;
pub mod queue;
pub mod text;

pub use line::{Account, Line, Occasion, Reason, SharedHost};

/// A renderer of lines.
#[derive(Debug)]
pub enum Renderer {
    Text(text::Text),
    Json(json::Json),
}

impl Renderer {
    /// Appends `line` as it is to be written.
    pub fn render(&mut self, line: &Line, into: &mut Vec<u8>) {
        match self {
            Self::Text(text) => text.render(line, into),
            Self::Json(json) => json.render(line, into),
        }
    }
}

#[cfg(test)]
mod tests;
