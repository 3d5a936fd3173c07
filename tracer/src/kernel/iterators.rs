//! Walks of all sockets and of all open files, by the eBPF side's iterators (Linux 5.8).
//!
//! An iterator shows what the thread sees that makes it; reading it needs no capability.

use std::{
    fs::File,
    io::{self, Read},
};

use aya::{
    Btf as AyaBtf, Ebpf,
    programs::{Iter, Program},
};
use conntracer_common::socket::{Holder, PortHolder};
use zerocopy::FromBytes;

use super::error::reason;
use crate::plan::{HookPlan, HookType, Refused};

/// The iterators and what they walk.
const ITERATORS: [(&str, &str); 4] = [
    ("seed", "tcp"),
    ("seed_owners", "task_file"),
    ("seed_list", "tcp"),
    ("port_holders", "task_file"),
];

/// What the kernel writes at most at one read (kernel/bpf/bpf_iter.c: 8 pages).
const READ_BYTES: usize = 32 * 1024;

/// Loads the iterators. Without them nothing older than conntracer is known until a hook meets it, which
/// the plan says.
pub(super) fn load(ebpf: &mut Ebpf, btf: &AyaBtf) -> Result<(), String> {
    for (name, of) in ITERATORS {
        iterator(ebpf, name)?
            .load(of, btf)
            .map_err(|error| reason(&error))?;
    }
    Ok(())
}

/// How the plan says that there is no walk at start.
pub(super) fn without(reason: &str) -> HookPlan {
    HookPlan {
        hook: "seed".to_owned(),
        hook_type: HookType::Off,
        attached: Vec::new(),
        refused: vec![Refused {
            hook_type: HookType::Tracepoint,
            reason: reason.to_owned(),
        }],
        blind_to: Some(
            "connections and listeners older than conntracer before they do something".to_owned(),
        ),
    }
}

fn iterator<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Iter, String> {
    match ebpf.program_mut(name) {
        Some(Program::Iter(program)) => Ok(program),
        _ => Err(format!("the eBPF object has no iterator {name}")),
    }
}

/// An iterator over what the calling thread's namespaces show.
pub(super) fn open(ebpf: &mut Ebpf, name: &str) -> io::Result<File> {
    let program = iterator(ebpf, name).map_err(io::Error::other)?;
    let id = program.attach().map_err(io::Error::other)?;
    let link = program.take_link(id).map_err(io::Error::other)?;
    link.into_file().map_err(io::Error::other)
}

/// Reads an iterator to its end. EAGAIN: a million objects passed without a word, and there are more.
pub(super) fn read(mut iterator: &File, see: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match iterator.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => see(&buffer[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Looks for the owners of sockets that have none, and says who holds each socket.
pub(super) fn find_owners(ebpf: &mut Ebpf, see: &mut dyn FnMut(&Holder)) -> io::Result<()> {
    let files = open(ebpf, "seed_owners")?;
    read(&files, &mut |bytes| {
        for holder in bytes.chunks_exact(size_of::<Holder>()) {
            if let Ok(holder) = Holder::read_from_bytes(holder) {
                see(&holder);
            }
        }
    })
}

/// Shows each process that holds a TCP socket bound to one of the ports sought.
pub(super) fn find_port_holders(
    ebpf: &mut Ebpf,
    see: &mut dyn FnMut(PortHolder),
) -> io::Result<()> {
    let files = open(ebpf, "port_holders")?;
    read(&files, &mut |bytes| {
        for holder in bytes.chunks_exact(size_of::<PortHolder>()) {
            if let Ok(holder) = PortHolder::read_from_bytes(holder) {
                see(holder);
            }
        }
    })
}
