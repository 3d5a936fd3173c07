//! All sinks of a run: a line goes to each that takes it.
//!
//! One of several whose destination fails is said, and the others go on. Nothing goes on when none is left, or when
//! whoever read standard output has left: `| head -1` ends conntracer.

use std::{
    fs::File,
    io::{self, ErrorKind},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    destination::{Destination, To, reader_is_gone},
    format::Format,
    line::{Line, SharedHost, SinkAccount},
    lines::Lines,
    queue::{Queue, WhenFull},
    selection::Selection,
};

/// One output, as flags and configuration ask for it.
#[derive(Clone, Debug)]
pub struct Output {
    pub to: To,
    pub format: Format,
    pub selection: Selection,
    /// Text says everything that is known.
    pub verbose: bool,
}

/// An output whose destination is open.
#[derive(Debug)]
pub struct Opened {
    pub output: Output,
    pub destination: Box<dyn Destination>,
}

impl Output {
    /// Before anything is attached, so that a wrong name is said at once.
    pub fn open(self) -> anyhow::Result<Opened> {
        let destination = self.to.open()?;
        Ok(Opened {
            output: self,
            destination,
        })
    }
}

impl Opened {
    /// The file that is written to, where it is one.
    #[must_use]
    pub fn file(&self) -> Option<&File> {
        self.destination.file()
    }
}

#[derive(Debug)]
struct Sink {
    to: To,
    selection: Selection,
    /// A second handle on the destination, to ask whether anybody still reads it.
    file: Option<File>,
    queue: Queue,
    failure_said: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Sinks {
    sinks: Vec<Sink>,
    failed: Arc<Notify>,
}

impl Sinks {
    /// Starts a writer for each output.
    pub fn spawn(outputs: Vec<Opened>, host: &SharedHost, when_full: WhenFull) -> io::Result<Self> {
        let failed = Arc::new(Notify::new());
        let spawn = |opened: Opened| {
            let Opened {
                output,
                destination,
            } = opened;
            let file = destination.file().map(File::try_clone).transpose()?;
            let renderer =
                output
                    .format
                    .renderer(file.as_ref(), Arc::clone(host), output.verbose)?;
            let sink = output.to.to_string();
            Ok(Sink {
                to: output.to,
                selection: output.selection,
                file,
                queue: Queue::spawn(sink, destination, renderer, when_full, Arc::clone(&failed))?,
                failure_said: false,
            })
        };
        let sinks = outputs.into_iter().map(spawn).collect::<io::Result<_>>()?;
        Ok(Self { sinks, failed })
    }

    /// Hands over the rest and waits until it is written, where `patience` is given no longer than that without progress: a
    /// reader that stopped reading then does not keep conntracer from ending. Of several failures one is returned: one that is
    /// more than a reader that left, where there is one.
    pub fn close(mut self, patience: Option<Duration>) -> anyhow::Result<()> {
        for sink in &mut self.sinks {
            sink.queue.end();
        }
        let start = Instant::now();
        let is_one = self.sinks.len() == 1;
        let mut failures = Vec::new();
        for Sink { to, queue, .. } in self.sinks {
            let Err(error) = queue.close(start, patience) else {
                continue;
            };
            let has_left = error.kind() == ErrorKind::BrokenPipe;
            let context = if is_one {
                "writing the output".to_owned()
            } else {
                format!("writing the output to {to}")
            };
            failures.push((has_left, anyhow::Error::new(error).context(context)));
        }
        failures.sort_by_key(|(has_left, _)| *has_left);
        let mut failures = failures.into_iter();
        let first = failures.next();
        for (_, error) in failures.filter(|(has_left, _)| !has_left) {
            log::warn!("{error:#}");
        }
        first.map_or(Ok(()), |(_, error)| Err(error))
    }
}

impl Lines for Sinks {
    /// Takes one line; it reaches the writers with the next [`Lines::flush`].
    fn push(&mut self, line: Line) {
        let Some((last, others)) = self.sinks.split_last_mut() else {
            return;
        };
        for sink in others {
            if sink.selection.takes(&line) {
                sink.queue.push(line.clone());
            }
        }
        if last.selection.takes(&line) {
            last.queue.push(line);
        }
    }

    /// Hands over what was collected.
    fn flush(&mut self) {
        for sink in &mut self.sinks {
            sink.queue.flush();
        }
    }

    /// Each is opened anew where it has a name: after its file was renamed.
    fn reopen(&mut self) {
        for sink in &mut self.sinks {
            sink.queue.reopen();
        }
    }

    /// What each could not take so far.
    fn accounts(&self) -> Vec<SinkAccount> {
        let account = |sink: &Sink| {
            let lost = sink.queue.lost();
            SinkAccount {
                sink: sink.to.to_string(),
                events_lost: lost.events,
                lines_lost: lost.others,
                failed: sink.queue.failure().map(|error| error.to_string()),
            }
        };
        self.sinks.iter().map(account).collect()
    }

    /// Completes when a destination failed; at once if one did since. Cancel-safe.
    async fn failed(&self) {
        self.failed.notified().await;
    }

    /// Whether nothing goes on; see the module.
    fn are_over(&mut self) -> bool {
        let is_one = self.sinks.len() == 1;
        let (mut some_works, mut unsaid) = (false, Vec::new());
        for sink in &mut self.sinks {
            let ends_all = is_one || sink.to.is_standard_output();
            let failure = sink.queue.failure();
            let has_left = match &failure {
                Some(error) => error.kind() == ErrorKind::BrokenPipe,
                None => sink.file.as_ref().is_some_and(reader_is_gone),
            };
            if ends_all && has_left {
                return true;
            }
            match failure {
                None => some_works = true,
                Some(error) if !sink.failure_said => unsaid.push((sink, error)),
                Some(_) => {}
            }
        }
        if some_works {
            for (sink, error) in unsaid {
                log::warn!("output {}: {error}; the others go on", sink.to);
                sink.failure_said = true;
            }
        }
        !some_works
    }
}
