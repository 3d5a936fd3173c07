//! Standard output.

use std::{
    ffi::OsStr,
    fs,
    io::{self, stdout},
    os::fd::AsFd,
};

use anyhow::Context;

use super::stream::{Destination, Stream};

pub(super) fn open(_nothing: &OsStr) -> anyhow::Result<Box<dyn Destination>> {
    let file = standard_output().context("opening standard output")?;
    Ok(Box::new(Stream::new(file)))
}

/// A second descriptor of it: `io::stdout` would buffer by lines under our batches.
pub fn standard_output() -> io::Result<fs::File> {
    Ok(stdout().as_fd().try_clone_to_owned()?.into())
}
