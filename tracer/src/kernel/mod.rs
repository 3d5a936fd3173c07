//! All contact with the running kernel: BTF, layout, load, attach, rings, maps.
//!
//! [`open`] gives a [`LiveKernel`], a [`crate::source::Source`] of raw records; [`survey`] only finds out what
//! this kernel offers. Nothing here knows what a record means.

mod accounts;
mod answer;
mod attach;
mod blind;
mod btf;
mod clock;
mod drop_layers;
mod error;
mod facts;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod header;
mod iterators;
mod ladder;
mod layout;
mod live;
mod maps;
mod missed;
mod names;
mod netns;
mod on_demand;
mod options;
mod owners;
mod percpu;
mod place;
mod poll;
mod progress;
mod ring;
mod stream;
mod trouble;
mod verdicts;
mod words;

use std::fs;

use aya::{Btf as AyaBtf, Endianness};
use log::debug;

use self::{attach::Attached, btf::Btf};
pub use self::{clock::now, error::CannotTrace, live::LiveKernel, options::Options};
use crate::{bounded, host::Host, plan::Plan};

/// The types of nf_tables, where it is a module that is loaded.
const NF_TABLES: &str = "/sys/kernel/btf/nf_tables";

/// A kernel's BTF is some 5 to 20 MB.
const MAX_BTF_BYTES: u64 = 256 << 20;

/// Loads, attaches, and starts to listen.
pub fn open(options: &Options) -> Result<LiveKernel, CannotTrace> {
    let (attached, host) = attach(options)?;
    let kernel = LiveKernel::new(attached, host, options)?;
    release_free_memory();
    Ok(kernel)
}

/// What this kernel offers: everything [`open`] does, undone at once.
pub fn survey(options: &Options) -> Result<Host, CannotTrace> {
    attach(options).map(|(_, host)| host)
}

fn attach(options: &Options) -> Result<(Attached, Host), CannotTrace> {
    raise_memlock();
    let data = bounded::read(&options.btf, MAX_BTF_BYTES).map_err(|source| CannotTrace::NoBtf {
        path: options.btf.clone(),
        source,
    })?;
    let bad = |source| CannotTrace::BadBtf {
        path: options.btf.clone(),
        source,
    };
    let btf = Btf::parse(&data).map_err(bad)?;
    let module = fs::read(NF_TABLES).ok();
    let module = module.as_deref().and_then(|data| {
        Btf::parse_module(data, &btf)
            .inspect_err(|error| debug!("{NF_TABLES}: {error}"))
            .ok()
    });
    let resolved = layout::resolve(&btf, module.as_ref()).map_err(bad)?;
    debug!("fields this kernel lacks: {:?}", resolved.missing);
    let aya_btf = AyaBtf::parse(&data, Endianness::default())
        .map_err(|_| bad(btf::BtfError::Malformed("aya refuses it")))?;
    let mut attached = attach::attach(options, &btf, &aya_btf, &resolved)?;
    let counters = percpu::learn(&mut attached.ebpf);
    match &counters {
        Ok(cpus) if !resolved.facts.mib_compared.contains(&0) => {
            attached.cpus = Some(cpus.clone());
        }
        Ok(_) => debug!("the kernel's counters: this kernel lacks one that is compared"),
        Err(reason) => debug!("the kernel's per-CPU counters: {reason}"),
    }
    blind::note_resets(&mut attached.hooks, resolved.facts.args_tcp_send_reset);
    blind::note_counters(&mut attached.hooks, counters.as_ref().err());
    blind::note_reasons(&mut attached.hooks, &resolved.drop_reasons);
    let plan = Plan {
        mode: options.mode,
        transport: options.transport,
        // What detectors make of them is not for this wing to say.
        detectors: Vec::new(),
        hooks: std::mem::take(&mut attached.hooks),
    };
    let host = facts::host(plan, resolved.drop_reasons, resolved.reset_reasons);
    Ok((attached, host))
}

/// Up to 5.10 maps are charged to RLIMIT_MEMLOCK; later kernels do not ask, and refusing us there (no
/// CAP_SYS_RESOURCE) does no harm.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if let Err(error) = setrlimit(Resource::Memlock, unlimited) {
        debug!("raising RLIMIT_MEMLOCK: {error}");
    }
}

/// Parsing BTF takes tens of MB once; glibc would keep them.
fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
