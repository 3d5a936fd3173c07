//! What happened alike, counted together under one finding: the part of its life that is the same whatever
//! happened. For `connect_failure` and `connection_drop`.

use std::{collections::BTreeMap, hash::Hash, time::Duration};

use super::{Context, Draft, Life};
use crate::{table::Bounded, time::Ktime};

/// Events that are told as one.
pub(super) trait Alike {
    fn count(&self) -> u64;
    /// When the last one was.
    fn last(&self) -> Ktime;
    fn life(&mut self) -> &mut Option<Life>;
}

/// Says what grew since a second or more, and resolves what is quiet. `open` has the keys of open findings
/// by id.
pub(super) fn tick<K: Copy + Eq + Hash, V: Alike>(
    open: &mut BTreeMap<u64, K>,
    table: &mut Bounded<K, V>,
    quiet: Duration,
    draft: impl Fn(&K, &V, &Context<'_>) -> Draft,
    cx: &mut Context<'_>,
) {
    open.retain(|_, key| {
        let Some(known) = table.get_mut(key) else {
            return false;
        };
        let Some(mut life) = *known.life() else {
            return false;
        };
        if cx.now.since(known.last()) >= quiet {
            cx.resolve(life, draft(key, known, cx));
            table.remove(key);
            return false;
        }
        if life.due(cx.now, known.count()) {
            cx.update(&mut life, draft(key, known, cx));
            *known.life() = Some(life);
        }
        true
    });
}

/// The last word on what is still open.
pub(super) fn finish<K: Copy + Eq + Hash, V: Alike>(
    open: &BTreeMap<u64, K>,
    table: &mut Bounded<K, V>,
    draft: impl Fn(&K, &V, &Context<'_>) -> Draft,
    cx: &mut Context<'_>,
) {
    for key in open.values() {
        let Some(known) = table.get_mut(key) else {
            continue;
        };
        if let Some(mut life) = *known.life()
            && cx.owes(&life, known.count())
        {
            cx.update(&mut life, draft(key, known, cx));
            *known.life() = Some(life);
        }
    }
}
