//! Where the lines of a run go: to its sinks ([`super::Sinks`]), or to whoever waits for all of them.

use super::{Line, SinkAccount};

/// What a run hands its lines to.
pub trait Lines {
    fn push(&mut self, line: Line);

    /// Hands over what was pushed since.
    fn flush(&mut self);

    /// What has a name is opened anew.
    fn reopen(&mut self);

    /// What could not be taken so far.
    fn accounts(&self) -> Vec<SinkAccount>;

    /// Completes when something that takes lines failed; at once if it did since. Cancel-safe.
    fn failed(&self) -> impl Future<Output = ()>;

    /// Whether nobody takes lines any more.
    fn are_over(&mut self) -> bool;
}

/// Calls one function with each line.
#[derive(Debug)]
pub struct Each<F>(pub F);

impl<F: FnMut(Line)> Lines for Each<F> {
    fn push(&mut self, line: Line) {
        (self.0)(line);
    }

    fn flush(&mut self) {}

    fn reopen(&mut self) {}

    fn accounts(&self) -> Vec<SinkAccount> {
        Vec::new()
    }

    fn failed(&self) -> impl Future<Output = ()> {
        std::future::pending()
    }

    fn are_over(&mut self) -> bool {
        false
    }
}
