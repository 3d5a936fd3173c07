//! A file that is appended to.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Context;

use super::stream::{Destination, Stream};

/// No link is followed: root writing into a directory of somebody else must not be led elsewhere.
pub(super) fn open(path: &OsStr) -> anyhow::Result<Box<dyn Destination>> {
    let path = Path::new(path);
    let file = append(path).with_context(|| format!("opening {} to append to", path.display()))?;
    Ok(Box::new(Stream::new(file)))
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(named_link)
}

fn named_link(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::ELOOP) {
        io::Error::other("it is a symbolic link, which conntracer does not follow")
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn output_follows_no_link_and_appends() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let link = directory.path().join("link");
        fs::write(&target, "kept\n").unwrap();
        symlink(&target, &link).unwrap();
        let refused = append(&link).unwrap_err().to_string();
        assert!(refused.contains("symbolic link"), "{refused}");
        append(&target).unwrap().write_all(b"more\n").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept\nmore\n");
    }
}
