//! The text that metrics are served in: the Prometheus text format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>) and OpenMetrics 1.0, which writes counters a little
//! otherwise.

use std::fmt::{Display, Write as _};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposition {
    Prometheus,
    OpenMetrics,
}

impl Exposition {
    /// What the scraper's `Accept` asks for.
    pub(super) fn asked(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Counter,
    Gauge,
    Info,
}

/// A text in the making.
#[derive(Debug)]
pub(super) struct Text {
    exposition: Exposition,
    written: String,
    /// The name that the next samples have.
    sample: String,
}

impl Text {
    pub(super) fn new(exposition: Exposition) -> Self {
        Self {
            exposition,
            written: String::new(),
            sample: String::new(),
        }
    }

    /// Begins a family; `name` is without what its type puts behind it. `help` is one line.
    pub(super) fn family(&mut self, name: &str, of: Type, help: &str) {
        let suffix = match of {
            Type::Counter => "_total",
            Type::Gauge => "",
            Type::Info => "_info",
        };
        self.sample = format!("{name}{suffix}");
        let (family, word) = match (self.exposition, of) {
            (Exposition::OpenMetrics, Type::Counter) => (name, "counter"),
            (Exposition::OpenMetrics, Type::Info) => (name, "info"),
            (Exposition::Prometheus, Type::Counter) => (&*self.sample, "counter"),
            (_, Type::Gauge) => (name, "gauge"),
            (Exposition::Prometheus, Type::Info) => (&*self.sample, "gauge"),
        };
        done(writeln!(
            self.written,
            "# HELP {family} {help}\n# TYPE {family} {word}"
        ));
    }

    /// One sample of the family.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.written.push_str(&self.sample);
        for (at, (name, value)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            done(write!(self.written, "{before}{name}=\"{}\"", Label(value)));
        }
        if !labels.is_empty() {
            self.written.push('}');
        }
        done(writeln!(self.written, " {value}"));
    }

    pub(super) fn end(mut self) -> String {
        if self.exposition == Exposition::OpenMetrics {
            self.written.push_str("# EOF\n");
        }
        self.written
    }
}

fn done(done: std::fmt::Result) {
    debug_assert!(done.is_ok(), "writing to a String cannot fail");
}

/// A label's value, which a process may have chosen.
struct Label<'a>(&'a str);

impl Display for Label<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for char in self.0.chars() {
            match char {
                '\\' => formatter.write_str("\\\\")?,
                '"' => formatter.write_str("\\\"")?,
                '\n' => formatter.write_str("\\n")?,
                _ => formatter.write_char(char)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(exposition: Exposition) -> String {
        let mut text = Text::new(exposition);
        text.family("a_seen", Type::Counter, "What was seen.");
        text.sample(&[("by", "a \"name\"\\\n"), ("of", "")], 3);
        text.family("a_build", Type::Info, "Which.");
        text.sample(&[("version", "1")], 1);
        text.family("a_open", Type::Gauge, "What is open.");
        text.sample(&[], 0.5);
        text.end()
    }

    #[test]
    fn both_formats_are_as_their_specifications_have_them() {
        assert_eq!(
            text(Exposition::Prometheus),
            "# HELP a_seen_total What was seen.\n# TYPE a_seen_total counter\n\
             a_seen_total{by=\"a \\\"name\\\"\\\\\\n\",of=\"\"} 3\n\
             # HELP a_build_info Which.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
             # HELP a_open What is open.\n# TYPE a_open gauge\na_open 0.5\n"
        );
        assert_eq!(
            text(Exposition::OpenMetrics),
            "# HELP a_seen What was seen.\n# TYPE a_seen counter\n\
             a_seen_total{by=\"a \\\"name\\\"\\\\\\n\",of=\"\"} 3\n\
             # HELP a_build Which.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
             # HELP a_open What is open.\n# TYPE a_open gauge\na_open 0.5\n# EOF\n"
        );
    }

    #[test]
    fn a_scraper_is_given_what_it_asks_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        assert_eq!(Exposition::asked(Some(prometheus)), Exposition::OpenMetrics);
        assert_eq!(Exposition::asked(Some("*/*")), Exposition::Prometheus);
        assert_eq!(Exposition::asked(None), Exposition::Prometheus);
    }
}
