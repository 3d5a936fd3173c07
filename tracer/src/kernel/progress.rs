//! One line on a terminal about what takes its time, gone when it is over.

use std::{
    io::{self, IsTerminal as _, Write},
    time::{Duration, Instant},
};

/// What is done sooner needs no line.
const PATIENCE: Duration = Duration::from_secs(1);
/// Shortest time between two lines, which only a person reads.
const INTERVAL: Duration = Duration::from_millis(100);

/// Back to the beginning of the line, and empty it (ECMA-48: EL).
const CLEAR: &str = "\r\x1b[K";

/// See the module. Dropping it clears the line.
pub(super) struct Progress<W: Write> {
    /// `None` where nobody looks.
    terminal: Option<W>,
    next: Instant,
    shown: bool,
}

impl Progress<io::Stderr> {
    pub(super) fn on_stderr() -> Self {
        let stderr = io::stderr();
        Self::begin(stderr.is_terminal().then_some(stderr), Instant::now())
    }
}

impl<W: Write> Progress<W> {
    fn begin(terminal: Option<W>, now: Instant) -> Self {
        Self {
            terminal,
            next: now + PATIENCE,
            shown: false,
        }
    }

    /// So much is done.
    pub(super) fn show(&mut self, now: Instant, said: std::fmt::Arguments<'_>) {
        if let Some(terminal) = &mut self.terminal
            && now >= self.next
        {
            self.next = now + INTERVAL;
            self.shown = true;
            // A terminal that is gone sees no progress.
            let _unseen = write!(terminal, "{CLEAR}{said}").and_then(|()| terminal.flush());
        }
    }
}

impl<W: Write> Drop for Progress<W> {
    fn drop(&mut self) {
        if let (Some(terminal), true) = (&mut self.terminal, self.shown) {
            let _unseen = write!(terminal, "{CLEAR}").and_then(|()| terminal.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(on_terminal: bool, times_ms: &[u64]) -> String {
        let began = Instant::now();
        let mut written = Vec::new();
        let mut progress = Progress::begin(on_terminal.then_some(&mut written), began);
        for time in times_ms {
            progress.show(
                began + Duration::from_millis(*time),
                format_args!("at {time}"),
            );
        }
        drop(progress);
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn only_what_takes_long_is_shown_and_it_goes_again() {
        assert_eq!(written(true, &[0, 999]), "");
        assert_eq!(
            written(true, &[0, 1000, 1050, 1100]),
            "\r\x1b[Kat 1000\r\x1b[Kat 1100\r\x1b[K"
        );
    }

    #[test]
    fn nobody_is_shown_nothing() {
        assert_eq!(written(false, &[1000, 2000]), "");
    }
}
