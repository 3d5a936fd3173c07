//! All contact with the running kernel: BTF, layout, load, attach, rings, maps.
//!
//! [`open`] gives a [`Kernel`], a [`crate::source::Source`] of raw records; [`survey`] only finds out what
//! this kernel offers. Nothing here knows what a record means.

mod attach;
mod btf;
mod clock;
mod detectors;
mod early_drop;
mod error;
mod filter;
mod half_closed;
mod holders;
mod idle;
mod ladder;
mod layout;
mod live;
mod maps;
mod missed;
mod netns;
mod processes;
mod progress;
mod ring;
mod seed;

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf};

use aya::{
    Btf as AyaBtf, Ebpf, Endianness,
    maps::{Array, PerCpuArray},
    programs::{Program, RawTracePointRunOptions, TestRun},
    util::online_cpus,
};
use conntracer_common::filter::Filter;
use log::debug;

use self::{attach::Attached, btf::Btf};
pub use self::{error::CannotTrace, live::Kernel};
use crate::{
    conditions::Owners,
    host::Host,
    plan::{HookMode, Plan, Transport},
};

/// What to trace and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The running kernel's BTF.
    pub btf: PathBuf,
    pub mode: HookMode,
    pub transport: Transport,
    pub filter: Filter,
    /// What `filter.owner` speaks of.
    pub owners: Owners,
    /// Kinds of records asked for beyond what findings need: bits of
    /// `conntracer_common::filter::emit_bit`.
    pub emit: u32,
    /// Connections kept in the kernel at once, ~200 bytes each.
    pub max_sockets: u32,
    /// Bytes of the ring that is read in batches, a power of two.
    pub ring_bytes: u32,
    /// Look for connections that have been idle for so long.
    pub idle_ns: Option<u64>,
    /// Pass the programs' own debug log on.
    pub verbose: bool,
}

/// Loads, attaches, and starts to listen.
pub fn open(options: &Options) -> Result<Kernel, CannotTrace> {
    let (attached, host) = attach(options)?;
    let kernel = Kernel::new(attached, host, options)?;
    release_free_memory();
    Ok(kernel)
}

/// What this kernel offers: everything [`open`] does, undone at once.
pub fn survey(options: &Options) -> Result<Host, CannotTrace> {
    attach(options).map(|(_, host)| host)
}

fn attach(options: &Options) -> Result<(Attached, Host), CannotTrace> {
    raise_memlock();
    let data = fs::read(&options.btf).map_err(|source| CannotTrace::NoBtf {
        path: options.btf.clone(),
        source,
    })?;
    let bad = |source| CannotTrace::BadBtf {
        path: options.btf.clone(),
        source,
    };
    let btf = Btf::parse(&data).map_err(bad)?;
    let resolved = layout::resolve(&btf).map_err(bad)?;
    debug!("fields this kernel lacks: {:?}", resolved.missing);
    let aya_btf = AyaBtf::parse(&data, Endianness::default())
        .map_err(|_| bad(btf::BtfError::Malformed("aya refuses it")))?;
    let mut attached = attach::attach(options, &btf, &aya_btf, &resolved)?;
    let counters = learn_percpu_offsets(&mut attached.ebpf);
    match &counters {
        Ok(cpus) if !resolved.facts.mib_compared.contains(&0) => {
            attached.cpus = Some(cpus.clone());
        }
        Ok(_) => debug!("the kernel's counters: this kernel lacks one that is compared"),
        Err(reason) => debug!("the kernel's per-CPU counters: {reason}"),
    }
    detectors::note_resets(&mut attached.hooks, resolved.facts.args_tcp_send_reset);
    detectors::note_counters(&mut attached.hooks, counters.as_ref().err());
    detectors::note_reasons(&mut attached.hooks, &resolved.drop_reasons);
    let plan = Plan {
        mode: options.mode,
        transport: options.transport,
        // What detectors make of them is not for this wing to say.
        detectors: Vec::new(),
        hooks: std::mem::take(&mut attached.hooks),
    };
    let host = describe(plan, resolved.drop_reasons, resolved.reset_reasons);
    Ok((attached, host))
}

/// Runs `percpu_base` on every CPU, so that the programs can read the kernel's per-CPU counters, their own
/// CPU's and (`netns_look`) everybody's. The CPUs whose counters can be read.
fn learn_percpu_offsets(ebpf: &mut Ebpf) -> Result<Vec<u32>, String> {
    let cpus = online_cpus().map_err(|(what, error)| format!("{what}: {error}"))?;
    let anchor = ebpf
        .map("PERCPU_ANCHOR")
        .ok_or("the eBPF object has no map PERCPU_ANCHOR")?;
    let anchor: PerCpuArray<_, u64> =
        PerCpuArray::try_from(anchor).map_err(|error| error.to_string())?;
    let Some(Program::RawTracePoint(program)) = ebpf.program("percpu_base") else {
        return Err("the eBPF object has no program percpu_base".to_owned());
    };
    let mut learned = Vec::new();
    for cpu in &cpus {
        let mut run = RawTracePointRunOptions::new();
        run.cpu = Some(*cpu);
        program
            .test_run(run)
            .map_err(|error| format!("CPU {cpu}: {error}"))?;
        // Values are in the order of possible CPUs, which are numbered from 0 without gaps.
        let offsets = anchor.get(&0, 0).map_err(|error| error.to_string())?;
        match offsets.get(*cpu as usize) {
            Some(offset) if *offset != 0 => learned.push((*cpu, *offset)),
            _ => return Err(format!("CPU {cpu}: the per-CPU offset was not found")),
        }
    }
    let all = ebpf
        .map_mut("PERCPU_OFFSETS")
        .ok_or("the eBPF object has no map PERCPU_OFFSETS")?;
    let mut all: Array<_, u64> = Array::try_from(all).map_err(|error| error.to_string())?;
    for (cpu, offset) in learned {
        all.set(cpu, offset, 0).map_err(|error| error.to_string())?;
    }
    Ok(cpus)
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

/// Settings that findings quote and advice is phrased with.
const SYSCTLS: &[&str] = &[
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_abort_on_overflow",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mtu_probing",
    "net.ipv4.tcp_orphan_retries",
    "net.ipv4.tcp_retries1",
    "net.ipv4.tcp_retries2",
    "net.ipv4.tcp_syn_retries",
    "net.ipv4.tcp_synack_retries",
    "net.ipv4.tcp_syncookies",
];

fn describe(
    plan: Plan,
    drop_reasons: BTreeMap<u32, String>,
    reset_reasons: BTreeMap<u32, String>,
) -> Host {
    let uname = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let sysctls = SYSCTLS
        .iter()
        .filter_map(|name| {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            // A setting that cannot be read is not quoted.
            let value = fs::read_to_string(path).ok()?;
            Some(((*name).to_owned(), value.trim().to_owned()))
        })
        .collect();
    Host {
        hostname: text(uname.nodename()),
        kernel: text(uname.release()),
        arch: text(uname.machine()),
        realtime_offset_ns: clock::realtime_offset_ns(),
        drop_reasons,
        reset_reasons,
        netns: own_netns(),
        sysctls,
        plan,
    }
}

/// The namespace that `/proc/sys/net` shows.
fn own_netns() -> Option<u32> {
    let netns = fs::metadata("/proc/thread-self/ns/net").ok()?;
    u32::try_from(netns.ino()).ok()
}
