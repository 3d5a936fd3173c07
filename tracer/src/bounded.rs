//! Reading a file that has a largest size: a device or a pipe that never ends is no reason to fill memory.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

/// The whole of a file of at most `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    File::open(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut data)?;
    if u64::try_from(data.len()).unwrap_or(u64::MAX) > most {
        return Err(io::Error::other(format!(
            "it is larger than {} MiB, which no file of this kind is",
            most >> 20
        )));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_refused() {
        let error = read(Path::new("/dev/zero"), 1 << 20).unwrap_err();
        assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
        assert_eq!(read(Path::new("/dev/null"), 1 << 20).unwrap(), b"");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"four").unwrap();
        assert_eq!(read(file.path(), 4).unwrap(), b"four");
        assert!(read(file.path(), 3).is_err());
    }
}
