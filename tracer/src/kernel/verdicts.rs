//! The filter's verdicts on owners, as the eBPF side looks them up: on processes before it begins, on control groups
//! as it meets them.

use std::io;

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError},
};
use conntracer_common::filter::verdict;

use super::{error::CannotTrace, maps, names::OwnerNames};
use crate::{conditions::Owners, owner::cgroup::Cgroups};

/// Control groups the eBPF side knows at once, as many as names are kept of.
pub(super) const MAX_GROUPS: u32 = 16_384;

/// How many entries a map of the eBPF side needs.
pub(super) fn sizes(asked: &Owners) -> [(&'static str, u32); 3] {
    let places = |count: usize| u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    let groups = if asked.has_groups() { MAX_GROUPS } else { 1 };
    [
        ("FILTER_PIDS", places(asked.pids.len())),
        ("FILTER_COMMS", places(asked.comms.len())),
        ("GROUPS", groups),
    ]
}

/// Fills the maps, before the first hook is attached.
pub(super) fn fill(ebpf: &mut Ebpf, asked: &Owners) -> Result<(), CannotTrace> {
    fill_one(ebpf, "FILTER_PIDS", asked.pids.iter().copied())?;
    fill_one(ebpf, "FILTER_COMMS", asked.comms.iter().copied())?;
    if asked.has_groups() {
        let mut groups = keyed::<u64>(ebpf, "GROUPS")?;
        for (id, path) in Cgroups::of_host().all().take(MAX_GROUPS as usize) {
            let wants = asked.matches_group(&String::from_utf8_lossy(path));
            groups.insert(id, verdict_of(wants), 0).map_err(failed)?;
        }
    }
    Ok(())
}

fn fill_one<K: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    asked: impl Iterator<Item = K>,
) -> Result<(), CannotTrace> {
    let mut map = keyed::<K>(ebpf, name)?;
    for key in asked {
        map.insert(key, verdict::MATCHES, 0).map_err(failed)?;
    }
    Ok(())
}

fn keyed<'a, K: aya::Pod>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<HashMap<&'a mut MapData, K, u8>, CannotTrace> {
    ebpf.map_mut(name)
        .and_then(|map| HashMap::try_from(map).ok())
        .ok_or(CannotTrace::Foreign(name))
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> CannotTrace {
    CannotTrace::Kernel {
        what: "telling the eBPF side what is asked for",
        source: io::Error::other(error),
    }
}

const fn verdict_of(wants: bool) -> u8 {
    if wants {
        verdict::MATCHES
    } else {
        verdict::EXCLUDED
    }
}

/// The control groups of a run whose filter asks for some.
pub(super) struct GroupVerdicts {
    asked: Owners,
    verdicts: HashMap<MapData, u64, u8>,
    met: Array<MapData, u64>,
    /// How many had been met when all of them were decided on.
    decided: u64,
}

impl GroupVerdicts {
    /// `None` where the filter asks for no control group.
    pub(super) fn new(ebpf: &mut Ebpf, asked: &Owners) -> Result<Option<Self>, CannotTrace> {
        if !asked.has_groups() {
            return Ok(None);
        }
        let mut groups = Cgroups::of_host();
        let there: Vec<String> = groups
            .all()
            .map(|(_, path)| String::from_utf8_lossy(path).into_owned())
            .collect();
        for what in asked.missing(&there) {
            log::warn!("{what} is not there yet: its sockets are traced once it comes");
        }
        Ok(Some(Self {
            asked: asked.clone(),
            verdicts: maps::take(ebpf, "GROUPS")?,
            met: maps::take(ebpf, "GROUPS_MET")?,
            decided: 0,
        }))
    }

    /// Decides on the groups that the eBPF side met since. One that is gone before it was looked for
    /// stays undecided; should a socket of its still show, it is met again.
    pub(super) fn decide(&mut self, names: &mut OwnerNames) -> io::Result<()> {
        let met = self.met.get(&0, 0).map_err(io::Error::other)?;
        if met == self.decided {
            return Ok(());
        }
        let known: Vec<(u64, u8)> = self
            .verdicts
            .iter()
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)?;
        // Full: those that still have sockets are met again.
        if known.len() >= MAX_GROUPS as usize {
            for (id, _) in known {
                self.forget(id)?;
            }
            return Ok(());
        }
        let open: Vec<u64> = known
            .iter()
            .filter(|(_, decided)| *decided == verdict::OPEN)
            .map(|(id, _)| *id)
            .collect();
        let mut told = Vec::new();
        let all = names.find_groups(&open, |id, path| {
            told.push((id, path.map(|path| self.asked.matches_group(path))));
        });
        for (id, wants) in told {
            match wants {
                Some(wants) => self
                    .verdicts
                    .insert(id, verdict_of(wants), 0)
                    .map_err(io::Error::other)?,
                None => self.forget(id)?,
            }
        }
        if all {
            self.decided = met;
        }
        Ok(())
    }

    fn forget(&mut self, id: u64) -> io::Result<()> {
        match self.verdicts.remove(&id) {
            Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}
