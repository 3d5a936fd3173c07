//! A file that somebody else writes, read as it grows and to its end.

use std::{
    fs::File,
    io::{self, Read},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// Room for a few events at a time.
const EVENT_BYTES: usize = 512;

/// Reads wait at the end of the file until more is written; the file ends when its last writer has closed it.
#[derive(Debug)]
pub(crate) struct Tail {
    file: File,
    changes: OwnedFd,
    is_complete: bool,
}

impl Tail {
    /// Of a file that is open for writing elsewhere.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let changes = inotify::init(CreateFlags::CLOEXEC)?;
        inotify::add_watch(&changes, path, WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE)?;
        Ok(Self {
            file: File::open(path)?,
            changes,
            is_complete: false,
        })
    }

    /// Waits until something changed since the last look.
    fn wait(&mut self) -> io::Result<()> {
        let mut room = [MaybeUninit::uninit(); EVENT_BYTES];
        let mut events = Reader::new(&self.changes, &mut room);
        loop {
            let event = events.next()?;
            self.is_complete |= event.events().contains(ReadFlags::CLOSE_WRITE);
            if events.is_buffer_empty() {
                return Ok(());
            }
        }
    }
}

impl Read for Tail {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.file.read(into)?;
            if read > 0 || self.is_complete {
                return Ok(read);
            }
            self.wait()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, sync::mpsc::channel, thread};

    use super::*;

    #[test]
    fn what_is_written_later_is_read_and_the_end_is_the_writers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = File::options().append(true).open(file.path()).unwrap();
        writer.write_all(b"one").unwrap();
        let mut tail = Tail::open(file.path()).unwrap();
        let (sender, chunks) = channel();
        let reader = thread::spawn(move || {
            let mut chunk = [0; 8];
            while let Ok(read @ 1..) = tail.read(&mut chunk) {
                sender.send(chunk[..read].to_vec()).unwrap();
            }
        });
        assert_eq!(chunks.recv().unwrap(), b"one");
        writer.write_all(b"two").unwrap();
        assert_eq!(chunks.recv().unwrap(), b"two");
        drop(writer);
        assert!(chunks.recv().is_err());
        reader.join().unwrap();
    }
}
