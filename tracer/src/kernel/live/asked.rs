//! Sockets that the eBPF side is asked about by running a program on each.

use std::{io, os::fd::AsFd as _};

use aya::programs::{Program, RawTracePoint, RawTracePointRunOptions, TestRun as _};
use conntracer_common::record::answer;
use zerocopy::IntoBytes as _;

use super::{Feed, Kernel, ktime_ns};
use crate::{
    id::SocketId,
    kernel::idle::{self, Answers},
};

/// Sockets asked about before the rings are read: their records fill a quarter of one CPU's perf buffer, the
/// smallest of rings, and every answer is written by this CPU.
const AT_ONCE: usize = 512;

impl Kernel {
    fn on_demand(&self, name: &str) -> io::Result<&RawTracePoint> {
        match self.ebpf.program(name) {
            Some(Program::RawTracePoint(program)) => Ok(program),
            _ => Err(io::Error::other(format!(
                "the eBPF object has no program {name}"
            ))),
        }
    }

    /// Runs a program on one socket: `refresh` for a listener, or `heir`.
    pub(super) fn ask(&self, name: &str, id: SocketId) -> io::Result<()> {
        self.ask_about(name, id, 0).map(drop)
    }

    /// The same with an argument, and the program's answer: `snapshot` and `idle` write their records to the bulk
    /// ring.
    pub(super) fn ask_about(&self, name: &str, id: SocketId, argument: u64) -> io::Result<u32> {
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = id.sk;
        options.args[1] = id.born.0;
        options.args[2] = argument;
        self.on_demand(name)?
            .test_run(options)
            .map(|result| result.return_value)
            .map_err(io::Error::other)
    }

    /// Asks about one socket after the other, and reads the rings before the answers fill one.
    fn ask_in_turn(
        &mut self,
        name: &str,
        ids: &[SocketId],
        argument: u64,
        feed: Feed<'_>,
        mut answered: impl FnMut(u32),
    ) -> io::Result<()> {
        for some in ids.chunks(AT_ONCE) {
            for id in some {
                answered(self.ask_about(name, *id, argument)?);
            }
            let places = &self.places;
            self.rings.drain(&mut |record| places.name(record, feed));
        }
        Ok(())
    }

    /// A `Snapshot` of each socket.
    pub(super) fn ask_all(&mut self, ids: &[SocketId], feed: Feed<'_>) -> io::Result<()> {
        let mut lost = 0;
        let asked = self.ask_in_turn("snapshot", ids, 0, feed, |answered| {
            lost += u64::from(answered == answer::LOST);
        });
        self.answers_lost += lost;
        asked
    }

    /// Sockets in CLOSE_WAIT or FIN_WAIT2 for longer than the limit: swept for at long intervals, and
    /// asked for again at every poll.
    pub(super) fn poll_half_closed(
        &mut self,
        now_ns: u64,
        limit_ns: u64,
        feed: Feed<'_>,
    ) -> io::Result<()> {
        if self.half_closed.is_due(now_ns, limit_ns) {
            let unowned = &mut self.unowned;
            let sockets = self.sockets.fd().as_fd();
            self.half_closed
                .sweep(sockets, now_ns, limit_ns, |owner| unowned.note_held(owner))?;
            self.search_owners(now_ns)?;
        }
        let half_closed = std::mem::take(&mut self.half_closed);
        let asked = self.ask_all(half_closed.listed(), feed);
        half_closed.tell(now_ns, feed);
        self.half_closed = half_closed;
        asked
    }

    /// Connections that nothing passes on, where somebody asked for them and it is time to look.
    pub(super) fn look_for_idle(
        &mut self,
        now_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let Some(search) = &mut self.search else {
            return Ok(());
        };
        if !search.is_due(now_ns) {
            return Ok(());
        }
        let limit_ns = search.limit_ns();
        let unowned = &mut self.unowned;
        let candidates = search.candidates(self.sockets.fd().as_fd(), now_ns, |state| {
            unowned.note(&state.owner);
        })?;
        self.search_owners(now_ns)?;
        let mut answers = Answers::default();
        self.ask_in_turn(idle::PROGRAM, &candidates, limit_ns, feed, |answered| {
            answers.add(answered);
        })?;
        feed(answers.record(limit_ns, ktime_ns()).as_bytes());
        Ok(())
    }
}
