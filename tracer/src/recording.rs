//! A recording: the host's facts, then every record as it was fed to the pipeline.
//!
//! ```text
//! "CONNTRC\n"  u32 version  u32 length of the head   head: Host as JSON
//! then, to the end of the file:  u32 length  that many bytes of one record
//! ```
//!
//! Numbers are in the byte order of the traced host, as the records are; a reader with the other
//! order says so. Replaying a recording feeds the pipeline the same bytes as the run did, so that it
//! makes the same findings. Thresholds are not recorded: a replay may be asked with others.

use std::io::{self, Read, Write};

use thiserror::Error;

use crate::{count::Grow, host::Host};

const MAGIC: [u8; 8] = *b"CONNTRC\n";
const VERSION: u32 = 1;
/// Reasons and sysctls of a real host take 20 kB; beyond this it is no head.
const MAX_HEAD: u32 = 4 << 20;
/// Far above `conntracer_common::record::MAX_RECORD`, so that newer records can be longer.
const MAX_LENGTH: u32 = 4096;

/// Why a recording cannot be read (further).
#[derive(Debug, Error)]
pub enum RecordingError {
    #[error("not a conntracer recording: record one with `conntracer record FILE`")]
    Magic,
    #[error("recorded on a machine of the other byte order: replay it on one like that")]
    ByteOrder,
    #[error(
        "recording has format {found} and this conntracer reads format {VERSION}: replay it with \
         the conntracer that recorded it"
    )]
    Version { found: u32 },
    #[error("the recording's head cannot be read: {reason}")]
    Head { reason: String },
    #[error("the recording ends in the middle of a record, after {records} whole ones")]
    Truncated { records: u64 },
    #[error("record {number} claims {length} bytes: the recording is damaged from there on, {records} records are whole", number = records.saturating_add(1))]
    Damaged { records: u64, length: u32 },
    #[error("reading the recording after {records} records: {source}")]
    Io { records: u64, source: io::Error },
}

/// Writes a recording. The caller buffers and flushes.
#[derive(Debug)]
pub struct Writer<W> {
    file: W,
}

impl<W: Write> Writer<W> {
    /// Writes the head.
    pub fn new(mut file: W, host: &Host) -> io::Result<Self> {
        let head = serde_json::to_vec(host)?;
        let length = u32::try_from(head.len())
            .ok()
            .filter(|length| *length <= MAX_HEAD)
            .ok_or_else(|| io::Error::other("the host's facts are too long for a recording"))?;
        file.write_all(&MAGIC)?;
        file.write_all(&VERSION.to_ne_bytes())?;
        file.write_all(&length.to_ne_bytes())?;
        file.write_all(&head)?;
        Ok(Self { file })
    }

    /// Appends one record, whatever its bytes: what the pipeline was fed is what is kept.
    pub fn record(&mut self, record: &[u8]) -> io::Result<()> {
        let length = u32::try_from(record.len())
            .ok()
            .filter(|length| *length <= MAX_LENGTH)
            .ok_or_else(|| io::Error::other("a record too long for a recording"))?;
        self.file.write_all(&length.to_ne_bytes())?;
        self.file.write_all(record)
    }

    /// What was written to.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn into_inner(self) -> W {
        self.file
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Reads a recording: total over any bytes, and never holds more than the head and one record.
#[derive(Debug)]
pub struct Reader<R> {
    file: R,
    host: Host,
    record: Vec<u8>,
    records: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the head.
    pub fn new(mut file: R) -> Result<Self, RecordingError> {
        let mut magic = [0; MAGIC.len()];
        match file.read_exact(&mut magic) {
            Ok(()) if magic == MAGIC => {}
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(RecordingError::Io {
                    records: 0,
                    source: error,
                });
            }
            _ => return Err(RecordingError::Magic),
        }
        let short = |error: io::Error| RecordingError::Head {
            reason: error.to_string(),
        };
        let mut word = [0; 4];
        file.read_exact(&mut word).map_err(short)?;
        match u32::from_ne_bytes(word) {
            VERSION => {}
            found if found.swap_bytes() <= 0xff => return Err(RecordingError::ByteOrder),
            found => return Err(RecordingError::Version { found }),
        }
        file.read_exact(&mut word).map_err(short)?;
        let length = u32::from_ne_bytes(word);
        if length > MAX_HEAD {
            return Err(RecordingError::Head {
                reason: format!("it claims {length} bytes"),
            });
        }
        let mut head = Vec::new();
        // Grows as bytes come: a false length costs nothing.
        file.by_ref()
            .take(length.into())
            .read_to_end(&mut head)
            .map_err(short)?;
        if head.len() != length as usize {
            return Err(RecordingError::Head {
                reason: "the file ends within it".to_owned(),
            });
        }
        let host = serde_json::from_slice(&head).map_err(|error| RecordingError::Head {
            reason: error.to_string(),
        })?;
        Ok(Self {
            file,
            host,
            record: Vec::new(),
            records: 0,
        })
    }

    /// The host the records come from.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// Whole records read so far.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// The next record; `None` at the end.
    pub fn next_record(&mut self) -> Result<Option<&[u8]>, RecordingError> {
        let records = self.records;
        let mut word = [0; 4];
        match self.fill(&mut word)? {
            0 => return Ok(None),
            4 => {}
            _ => return Err(RecordingError::Truncated { records }),
        }
        let length = u32::from_ne_bytes(word);
        if length > MAX_LENGTH {
            return Err(RecordingError::Damaged { records, length });
        }
        let mut record = std::mem::take(&mut self.record);
        record.resize(length as usize, 0);
        let read = self.fill(&mut record);
        self.record = record;
        if read? != self.record.len() {
            return Err(RecordingError::Truncated { records });
        }
        self.records.grow(1);
        Ok(Some(&self.record))
    }

    /// Reads until `buffer` is full or the file ends; says how many bytes came.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, RecordingError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled = filled.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(RecordingError::Io {
                        records: self.records,
                        source,
                    });
                }
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::testing::host;

    fn recorded(records: &[&[u8]]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &host()).expect("a Vec takes everything");
        for record in records {
            writer.record(record).expect("a Vec takes everything");
        }
        writer.file
    }

    fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, RecordingError> {
        let mut reader = Reader::new(bytes)?;
        let mut records = Vec::new();
        while let Some(record) = reader.next_record()? {
            records.push(record.to_vec());
        }
        Ok(records)
    }

    #[test]
    fn what_was_written_is_read_back() {
        let bytes = recorded(&[b"one", b"", b"three"]);
        assert_eq!(Reader::new(&*bytes).unwrap().host(), &host());
        assert_eq!(read(&bytes).unwrap(), [&b"one"[..], b"", b"three"]);
    }

    #[rstest]
    #[case::in_a_length(10)]
    #[case::in_a_record(6)]
    fn a_file_that_was_cut_off_says_how_much_is_whole(#[case] cut: usize) {
        let bytes = recorded(&[b"first", b"secondly"]);
        let error = read(&bytes[..bytes.len() - cut]).unwrap_err();
        assert!(
            matches!(error, RecordingError::Truncated { records: 1 }),
            "{error}"
        );
    }

    #[test]
    fn a_length_that_no_record_has_is_damage() {
        let mut bytes = recorded(&[b"first"]);
        bytes.extend(u32::MAX.to_ne_bytes());
        let error = read(&bytes).unwrap_err();
        assert!(
            matches!(error, RecordingError::Damaged { records: 1, .. }),
            "{error}"
        );
        assert!(error.to_string().starts_with("record 2 claims"), "{error}");
    }

    #[rstest]
    #[case::empty(&[], "not a conntracer recording")]
    #[case::another_file(b"\x7fELF and so on", "not a conntracer recording")]
    #[case::no_version(b"CONNTRC\n", "head cannot be read")]
    #[case::a_false_length(b"CONNTRC\n\x01\0\0\0\xff\xff\xff\xff", "claims 4294967295 bytes")]
    #[case::a_short_head(b"CONNTRC\n\x01\0\0\0\x40\0\0\0{}", "ends within it")]
    #[case::another_format(b"CONNTRC\n\x02\0\0\0", "format 2")]
    #[case::another_byte_order(b"CONNTRC\n\0\0\0\x01", "other byte order")]
    #[cfg(target_endian = "little")]
    fn what_is_no_recording_says_so(#[case] bytes: &[u8], #[case] says: &str) {
        let error = Reader::new(bytes).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_after_a_head_are_read_or_refused(
            tail in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = recorded(&[b"first"]);
            bytes.extend(tail);
            let _ = read(&bytes);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut file = b"CONNTRC\n\x01\0\0\0".to_vec();
            file.extend(&bytes);
            let _ = read(&file);
            let _ = read(&bytes);
        }
    }
}
