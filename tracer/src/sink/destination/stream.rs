//! What every destination can do, and the one that most are: an open file.

use std::{
    fmt,
    fs::File,
    io::{self, Write},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::sink::line::Line;

/// Rendered text is written when it reaches this, so that a batch of 65,536 lines never becomes one
/// buffer of 30 MB.
const WRITE_BYTES: usize = 64 << 10;

/// Where one sink's lines go. It is used on the sink's own thread, and may block there.
pub trait Destination: fmt::Debug + Send {
    /// Takes one line, and how the sink's format has it. Once it fails it is not asked again.
    fn write(&mut self, line: &Line, rendered: &[u8]) -> io::Result<()>;

    /// No more lines come for now: what was kept back goes out.
    fn flush(&mut self) -> io::Result<()>;

    /// Somebody may have put another in its place, by its name: that one is used from here on.
    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The open file that it is, where it is one.
    fn file(&self) -> Option<&File> {
        None
    }
}

/// A file, pipe, socket or terminal.
#[derive(Debug)]
pub struct Stream {
    file: File,
    bytes: Vec<u8>,
}

impl Stream {
    #[must_use]
    pub fn new(file: File) -> Self {
        Self {
            file,
            bytes: Vec::with_capacity(WRITE_BYTES),
        }
    }
}

impl Destination for Stream {
    fn write(&mut self, _line: &Line, rendered: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(rendered);
        if self.bytes.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        write_fully(&mut self.file, &self.bytes)?;
        self.bytes.clear();
        Ok(())
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

/// `write_all` that also takes an output which another process made non-blocking.
fn write_fully(output: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(output, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the reader of a pipe or socket is gone. Asked between lines, so that `| head -1` ends
/// conntracer although nothing more is written.
#[must_use]
pub fn reader_is_gone(output: &File) -> bool {
    let mut fds = [PollFd::new(output, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(1..)) && fds[0].revents().intersects(PollFlags::ERR)
}
