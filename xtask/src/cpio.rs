//! Writes a cpio archive in the "newc" form, which the kernel unpacks as its initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Reads none.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

/// File types as in `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Every record and every file's data start at a multiple of this.
const ALIGNMENT: usize = 4;

/// An archive being written. All files belong to root and date from the epoch, so that the same
/// content gives the same bytes.
pub(crate) struct Archive<W> {
    writer: W,
    next_inode: u32,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(writer: W) -> Self {
        Self {
            writer,
            next_inode: 1,
        }
    }

    /// Adds a directory; parents come before children.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a file with the permissions `mode`.
    pub(crate) fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | mode, (0, 0), data)
    }

    /// Adds a character device node.
    pub(crate) fn character_device(
        &mut self,
        path: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE | mode, (major, minor), &[])
    }

    /// Writes the trailer and gives the writer back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.next_inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.writer.flush()?;
        Ok(self.writer)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, path.to_owned());
        let size = u32::try_from(data.len()).map_err(too_large)?;
        // The terminating NUL counts.
        let name_size = u32::try_from(path.len() + 1).map_err(too_large)?;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let fields = [
            self.next_inode,
            mode,
            0, // owner
            0, // group
            links,
            0, // modification time
            size,
            0, // major and minor of the device the file was on
            0,
            device.0,
            device.1,
            name_size,
            0, // checksum, unused in this form
        ];
        self.next_inode = self.next_inode.wrapping_add(1);
        let mut header = String::from("070701");
        for field in fields {
            // Writing to a String cannot fail.
            let _ = write!(header, "{field:08x}");
        }
        self.writer.write_all(header.as_bytes())?;
        self.writer.write_all(path.as_bytes())?;
        self.writer.write_all(&[0])?;
        self.pad(header.len() + path.len() + 1)?;
        self.writer.write_all(data)?;
        self.pad(data.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        let padding = written.next_multiple_of(ALIGNMENT) - written;
        self.writer.write_all(&[0; ALIGNMENT][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, mode, device numbers and data.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive by the rules of the format.
    fn entries(mut bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let digits = &bytes[6 + index * 8..14 + index * 8];
                u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let data_start = (110 + name_size).next_multiple_of(4);
            let data = bytes[data_start..data_start + size].to_vec();
            let end = (data_start + size).next_multiple_of(4);
            let (mode, device) = (field(1), (field(9), field(10)));
            bytes = &bytes[end..];
            if name == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, mode, device, data));
        }
    }

    #[test]
    fn archive_holds_what_was_added() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev").unwrap();
        archive
            .character_device("dev/console", 0o600, 5, 1)
            .unwrap();
        // Sizes on both sides of the alignment.
        archive.file("init", 0o755, b"12345").unwrap();
        archive.file("empty", 0o644, b"").unwrap();
        archive.file("four", 0o644, b"1234").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(
            entries(&bytes),
            [
                ("dev".to_owned(), 0o040_755, (0, 0), vec![]),
                ("dev/console".to_owned(), 0o020_600, (5, 1), vec![]),
                ("init".to_owned(), 0o100_755, (0, 0), b"12345".to_vec()),
                ("empty".to_owned(), 0o100_644, (0, 0), vec![]),
                ("four".to_owned(), 0o100_644, (0, 0), b"1234".to_vec()),
            ]
        );
    }

    #[test]
    fn same_content_gives_same_bytes() {
        let write = || {
            let mut archive = Archive::new(Vec::new());
            archive.file("init", 0o755, b"x").unwrap();
            archive.finish().unwrap()
        };
        assert_eq!(write(), write());
    }
}
