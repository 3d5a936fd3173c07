//! Loads the eBPF object and attaches every hook by the best hook type that works, saying why for each one
//! that does not.
//!
//! Which hook type a hook got is a read-only global of the programs, so a hook type that fails to load starts the
//! load over one hook type lower; in the worst case that is once per hook type, not per hook.

use aya::{Btf as AyaBtf, Ebpf, EbpfLoader, programs::Program};
use conntracer_common::{
    options::Options as KernelOptions,
    stats::{HOOKS, hook},
};
use log::debug;
use zerocopy::IntoBytes;

use super::{
    btf::Btf,
    clock::ktime_ns,
    drop_layers,
    error::{CannotTrace, reason},
    iterators,
    ladder::{Attachment, LADDERS, Ladder, Step},
    layout::Resolved,
    on_demand,
    options::Options,
    ring::Rings,
    verdicts,
};
use crate::plan::{HookMode, HookPlan, HookType, Refused, Transport};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/conntracer.bpf.o"));

/// Bytes of the ring for records that must survive a flood: ~1,800 of the largest, 60 s of every
/// listener of a host with 3 of them overflowing at the emission limit of 10 records a second.
const RARE_BYTES: u32 = 512 * 1024;
/// A loaded object with its hooks attached; dropping it detaches them.
pub(super) struct Attached {
    pub(super) ebpf: Ebpf,
    pub(super) rings: Rings,
    pub(super) hooks: Vec<HookPlan>,
    /// CPUs whose counters can be read; `None` where none can.
    pub(super) cpus: Option<Vec<u32>>,
    /// Whether the kernel tells of segments that it could not send again.
    pub(super) traces_failures: bool,
    /// Whether what was there before can be walked, or why not.
    pub(super) iterators: Result<(), String>,
}

/// Where a hook stands on its ladder while hook types are tried.
struct Climb {
    ladder: &'static Ladder,
    /// Index of the step being tried; past the end: off.
    at: usize,
    refused: Vec<Refused>,
    attached: Vec<String>,
}

impl Climb {
    fn step(&self) -> Option<&'static Step> {
        self.ladder.steps.get(self.at)
    }

    fn name(&self) -> &'static str {
        HOOKS[self.ladder.hook as usize]
    }

    fn hook_type(&self) -> HookType {
        self.step().map_or(HookType::Off, |step| step.hook_type)
    }

    fn lower(&mut self, reason: String) {
        debug!(
            "hook {}: {:?} refused: {reason}",
            self.name(),
            self.hook_type()
        );
        self.refused.push(Refused {
            hook_type: self.hook_type(),
            reason,
        });
        self.at += 1;
    }
}

pub(super) fn attach(
    options: &Options,
    btf: &Btf<'_>,
    aya_btf: &AyaBtf,
    resolved: &Resolved,
) -> Result<Attached, CannotTrace> {
    if OBJECT.is_empty() {
        return Err(CannotTrace::NoObject);
    }
    let mut climbs: Vec<Climb> = LADDERS
        .iter()
        .map(|ladder| Climb {
            ladder,
            at: 0,
            refused: Vec::new(),
            attached: Vec::new(),
        })
        .collect();
    for climb in &mut climbs {
        start(climb, options.mode);
        descend_to_existing(climb, btf);
    }
    loop {
        for climb in &climbs {
            check(climb, options.mode)?;
        }
        let mut ebpf = load(options, &climbs, aya_btf, resolved)?;
        // Before the first program: what it emits must find a ring.
        let rings = Rings::open(&mut ebpf, options.transport)?;
        let mut refused = false;
        for climb in &mut climbs {
            if let Err(reason) = attach_step(&mut ebpf, climb, btf, aya_btf) {
                climb.lower(reason);
                descend_to_existing(climb, btf);
                refused = true;
            }
        }
        if !refused {
            let idle = options.idle_ns.map(|_| on_demand::IDLE);
            for name in on_demand::PROGRAMS.into_iter().chain(idle) {
                on_demand::load(&mut ebpf, name)?;
            }
            let iterators = iterators::load(&mut ebpf, aya_btf);
            let mut hooks: Vec<HookPlan> = climbs.into_iter().map(plan).collect();
            let without = iterators.as_ref().err();
            hooks.extend(without.map(|reason| iterators::without(reason)));
            return Ok(Attached {
                ebpf,
                rings,
                hooks,
                cpus: None,
                traces_failures: resolved.facts.args_tcp_retransmit_skb >= 3,
                iterators,
            });
        }
    }
}

/// Skips the hook types that `--hooks` forbids; a hook that has only a tracepoint keeps it in every mode.
fn start(climb: &mut Climb, mode: HookMode) {
    let wanted = |hook_type: HookType| match mode {
        HookMode::Auto => true,
        HookMode::Fentry => hook_type == HookType::Fentry,
        HookMode::Kprobe => hook_type == HookType::Kprobe,
        HookMode::Tracepoint => hook_type == HookType::Tracepoint,
    };
    let steps = climb.ladder.steps;
    climb.at = steps
        .iter()
        .position(|step| wanted(step.hook_type))
        .or_else(|| {
            steps
                .iter()
                .position(|step| step.hook_type == HookType::Tracepoint)
        })
        .unwrap_or(steps.len());
}

/// Lowers a hook past hook types whose functions or tracepoints this kernel does not have.
fn descend_to_existing(climb: &mut Climb, btf: &Btf<'_>) {
    while let Some(step) = climb.step() {
        // Another program of the same hook type fits this kernel's parameters: nothing is refused.
        let misfit = |attachment: &Attachment| {
            let params = btf.function_params(attachment.target);
            attachment
                .params
                .is_some_and(|wanted| params.is_some_and(|params| params != wanted))
        };
        if step.attachments.iter().any(misfit) {
            climb.at += 1;
            continue;
        }
        let hook_type = step.hook_type;
        let missing = step.attachments.iter().find(|attachment| {
            !attachment.may_be_missing() && !exists(btf, hook_type, attachment.target)
        });
        let Some(Attachment { target, .. }) = missing else {
            return;
        };
        let what = if hook_type == HookType::Tracepoint {
            "tracepoint"
        } else {
            "function"
        };
        climb.lower(format!("this kernel has no {what} {target}"));
    }
}

fn exists(btf: &Btf<'_>, hook_type: HookType, target: &str) -> bool {
    let params = if hook_type == HookType::Tracepoint {
        btf.tracepoint_params(target)
    } else {
        btf.function_params(target)
    };
    params.is_some()
}

/// A hook type that was demanded, and a hook that nothing works without, are errors when missing.
fn check(climb: &Climb, mode: HookMode) -> Result<(), CannotTrace> {
    let demanded = match mode {
        HookMode::Auto => None,
        HookMode::Fentry => Some(HookType::Fentry),
        HookMode::Kprobe => Some(HookType::Kprobe),
        HookMode::Tracepoint => Some(HookType::Tracepoint),
    };
    let lost = climb.hook_type() == HookType::Off && climb.ladder.off.is_none();
    let refused = climb
        .refused
        .iter()
        .find(|tried| lost || demanded == Some(tried.hook_type))
        .filter(|tried| lost || tried.hook_type != HookType::Tracepoint);
    match refused {
        Some(tried) => Err(CannotTrace::Hook {
            hook: climb.name(),
            hook_type: tried.hook_type,
            reason: tried.reason.clone(),
        }),
        None => Ok(()),
    }
}

fn load(
    options: &Options,
    climbs: &[Climb],
    aya_btf: &AyaBtf,
    resolved: &Resolved,
) -> Result<Ebpf, CannotTrace> {
    let by_tracepoint =
        |hook: u32| {
            u8::from(climbs.iter().any(|climb| {
                climb.ladder.hook == hook && climb.hook_type() == HookType::Tracepoint
            }))
        };
    let kernel_options =
        KernelOptions {
            began_ns: ktime_ns(),
            emit: options.emit,
            perf: u8::from(options.transport == Transport::Perf),
            connect_by_state: by_tracepoint(hook::CONNECT),
            ack_by_skb: by_tracepoint(hook::ACK),
            syn_by_skb: by_tracepoint(hook::SYN),
            failure_by_state: u8::from(climbs.iter().any(|climb| {
                climb.ladder.hook == hook::FAILURE && climb.hook_type() == HookType::Off
            })),
            pad: [0; 3],
            tick_ns: tick_ns(),
        };
    // The ring buffers are not used by the perf transport, but a map must have a size: one page.
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
    let (rare, bulk) = match options.transport {
        Transport::Ringbuf => (RARE_BYTES, options.ring_bytes),
        Transport::Perf => (page, page),
    };
    // `aya_log_common::Level`: 0 is below Error, 4 is Debug. What is off is pruned by the verifier.
    let log_level = if options.verbose { 4_u8 } else { 0 };
    let mut loader = EbpfLoader::new();
    for (map, entries) in verdicts::sizes(&options.owners) {
        loader.map_max_entries(map, entries);
    }
    let mut ebpf = loader
        .btf(Some(aya_btf))
        .override_global("LAYOUT", resolved.layout.as_bytes(), true)
        .override_global("FACTS", resolved.facts.as_bytes(), true)
        .override_global("FILTER", options.filter.as_bytes(), true)
        .override_global("OPTIONS", kernel_options.as_bytes(), true)
        .override_global("AYA_LOG_LEVEL", &log_level, true)
        .map_max_entries("RARE", rare)
        .map_max_entries("BULK", bulk)
        .map_max_entries("SOCKETS", options.max_sockets)
        .load(OBJECT)?;
    verdicts::fill(&mut ebpf, &options.owners)?;
    drop_layers::fill(&mut ebpf, &resolved.drop_reasons)?;
    Ok(ebpf)
}

/// `TICK_NSEC`, which is the coarse clocks' resolution (kernel/time/posix-timers.c).
fn tick_ns() -> u32 {
    let mut tick = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `tick` is writable; on failure it stays 0, and idle times read 0.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    u32::try_from(tick.tv_nsec).unwrap_or_default()
}

fn attach_step(
    ebpf: &mut Ebpf,
    climb: &mut Climb,
    btf: &Btf<'_>,
    aya_btf: &AyaBtf,
) -> Result<(), String> {
    climb.attached.clear();
    let Some(step) = climb.step() else {
        return Ok(());
    };
    for attachment in step.attachments {
        if attachment.may_be_missing() && !exists(btf, step.hook_type, attachment.target) {
            continue;
        }
        attach_program(ebpf, attachment, step.hook_type, aya_btf)?;
        let name = attachment.target.to_owned();
        if !climb.attached.contains(&name) {
            climb.attached.push(name);
        }
    }
    Ok(())
}

fn attach_program(
    ebpf: &mut Ebpf,
    attachment: &Attachment,
    hook_type: HookType,
    aya_btf: &AyaBtf,
) -> Result<(), String> {
    let Attachment {
        program: name,
        target,
        ..
    } = *attachment;
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("the eBPF object has no program {name}"))?;
    let attached = match (program, hook_type) {
        (Program::BtfTracePoint(program), HookType::Tracepoint) => program
            .load(target, aya_btf)
            .and_then(|()| program.attach().map(drop)),
        (Program::FEntry(program), HookType::Fentry) => program
            .load(target, aya_btf)
            .and_then(|()| program.attach().map(drop)),
        (Program::FExit(program), HookType::Fentry) => program
            .load(target, aya_btf)
            .and_then(|()| program.attach().map(drop)),
        (Program::KProbe(program), HookType::Kprobe) => {
            // One program serves the IPv4 and the IPv6 function.
            let loaded = if program.fd().is_ok() {
                Ok(())
            } else {
                program.load()
            };
            loaded.and_then(|()| program.attach(target, 0).map(drop))
        }
        _ => return Err(format!("program {name} is of another type")),
    };
    attached.map_err(|error| reason(&error))
}

fn plan(climb: Climb) -> HookPlan {
    let blind_to = match climb.step() {
        Some(step) => step.blind_to,
        None => climb.ladder.off,
    };
    HookPlan {
        hook: climb.name().to_owned(),
        hook_type: climb.hook_type(),
        attached: climb.attached,
        refused: climb.refused,
        blind_to: blind_to.map(str::to_owned),
    }
}
