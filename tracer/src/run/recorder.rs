//! The recording of a live run. One that cannot be written any more (its disk is full) ends, is said at once and at the
//! end; tracing goes on.

use std::{
    fs::File,
    io::{self, BufWriter},
};

use crate::{host::Host, recording::Writer};

/// A recording in the making.
#[derive(Debug)]
pub struct Recorder {
    writer: Writer<BufWriter<File>>,
    failure: Option<io::Error>,
}

impl Recorder {
    /// Writes the head.
    pub fn new(file: File, host: &Host) -> io::Result<Self> {
        let mut writer = Writer::new(BufWriter::new(file), host)?;
        // A disk that is full already is said before anything is traced.
        writer.flush()?;
        Ok(Self {
            writer,
            failure: None,
        })
    }

    pub(super) fn keep(&mut self, record: &[u8]) {
        if self.failure.is_some() {
            return;
        }
        if let Err(error) = self.writer.record(record) {
            log::warn!("writing the recording: {error}; it ends here, and tracing goes on");
            self.failure = Some(error);
        }
    }

    /// Writes the rest; why it ended before, where it did.
    pub fn end(mut self) -> io::Result<()> {
        match self.failure.take() {
            Some(error) => Err(error),
            None => self.writer.flush(),
        }
    }
}
