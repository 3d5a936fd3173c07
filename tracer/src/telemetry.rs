//! Diagnostics of conntracer itself: log lines on stderr, never mixed with what it found.

use std::io::Write as _;

use log::LevelFilter;

use crate::sink::escape::Escaped;

/// Logs warnings; with `-v` what it does, with `-vv` everything.
pub fn install(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level).format(|formatter, record| {
        let level = record.level().as_str().to_ascii_lowercase();
        let message = record.args().to_string();
        writeln!(formatter, "conntracer: {level}: {}", Escaped(&message))
    });
    if builder.try_init().is_err() {
        // A host program that embeds the library has its own logger; it wins.
        log::debug!("a logger is installed already");
    }
}
