//! Where each CPU's copy of the kernel's per-CPU data lies.

use aya::{
    Ebpf,
    maps::{Array, PerCpuArray},
    programs::{RawTracePointRunOptions, TestRun},
    util::online_cpus,
};

use super::on_demand;

/// Runs `percpu_base` on every CPU, so that the programs can read the kernel's per-CPU counters, their own
/// CPU's and (`netns_look`) everybody's. The CPUs whose counters can be read.
pub(super) fn learn(ebpf: &mut Ebpf) -> Result<Vec<u32>, String> {
    let cpus = online_cpus().map_err(|(what, error)| format!("{what}: {error}"))?;
    let anchor = ebpf
        .map("PERCPU_ANCHOR")
        .ok_or("the eBPF object has no map PERCPU_ANCHOR")?;
    let anchor: PerCpuArray<_, u64> =
        PerCpuArray::try_from(anchor).map_err(|error| error.to_string())?;
    let program = on_demand::program(ebpf, "percpu_base").map_err(|error| error.to_string())?;
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
