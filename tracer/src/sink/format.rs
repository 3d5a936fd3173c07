//! How lines are written.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, IsTerminal},
};

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::{
    json::Json,
    line::{Line, SharedHost},
    text::{Detail, Look, Text, Width},
};

/// The formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// A line for each change, and what it means where a finding opens or ends.
    Text,
    /// Only a line for each change.
    Brief,
    /// One JSON object a line.
    Json,
}

/// A renderer of lines.
#[derive(Debug)]
pub enum Renderer {
    Text(Text),
    Json(Json),
}

impl Format {
    /// `auto` settled: text where a person reads.
    #[must_use]
    pub const fn settled(self, terminal: bool) -> Self {
        match (self, terminal) {
            (Self::Auto, true) => Self::Text,
            (Self::Auto, false) => Self::Json,
            (chosen, _) => chosen,
        }
    }

    /// What renders for a destination that is `file`, or none.
    pub fn renderer(
        self,
        file: Option<&File>,
        host: SharedHost,
        verbose: bool,
    ) -> io::Result<Renderer> {
        let terminal = file.is_some_and(IsTerminal::is_terminal);
        Ok(match self.settled(terminal) {
            Self::Json => Renderer::Json(Json::new(host)),
            format @ (Self::Text | Self::Brief | Self::Auto) => {
                let look = Look {
                    colour: terminal && wants_colour(|name| env::var_os(name)),
                    width: match file.filter(|_| terminal) {
                        Some(file) => Width::Terminal(file.try_clone()?),
                        None => Width::default(),
                    },
                    zone: TimeZone::system(),
                    detail: match (format, verbose) {
                        (Self::Brief, _) => Detail::Lines,
                        (_, true) => Detail::Everything,
                        (_, false) => Detail::Blocks,
                    },
                };
                Renderer::Text(Text::new(host, look))
            }
        })
    }
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

/// <https://no-color.org>: any value that is not empty forbids colour.
fn wants_colour(environment: impl Fn(&str) -> Option<OsString>) -> bool {
    environment("NO_COLOR").is_none_or(|value| value.is_empty())
        && environment("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_can_be_forbidden() {
        let environment = |set: &'static [(&str, &str)]| {
            move |name: &str| {
                set.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).into())
            }
        };
        assert!(wants_colour(environment(&[])));
        assert!(wants_colour(environment(&[("NO_COLOR", "")])));
        assert!(!wants_colour(environment(&[("NO_COLOR", "1")])));
        assert!(!wants_colour(environment(&[("TERM", "dumb")])));
    }
}
