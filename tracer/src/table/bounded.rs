//! A map that never holds more than its limit: the entry longest untouched makes room, and is counted.
//!
//! Keys are chosen by peers, so hashing is seeded; order never depends on the seed, because iteration
//! follows the list of use, oldest first. That keeps a replay identical to the run.

use std::hash::Hash;

use foldhash::quality::RandomState;

use crate::count::Grow;

type Map<K> = std::collections::HashMap<K, u32, RandomState>;

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    /// Towards the oldest, towards the newest.
    older: u32,
    newer: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Bounded<K, V> {
    map: Map<K>,
    /// `None` where a removed entry's slot waits for reuse.
    slots: Vec<Option<Slot<K, V>>>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
    limit: usize,
    evicted: u64,
}

impl<K: Copy + Eq + Hash, V> Bounded<K, V> {
    /// An empty map for at most `limit` entries, at least one. Memory is taken as entries come.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            map: Map::default(),
            slots: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
            limit: limit.clamp(1, (NONE as usize).saturating_sub(1)),
            evicted: 0,
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Entries that had to make room since the start.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        let index = *self.map.get(key)?;
        self.slot(index).map(|slot| &slot.value)
    }

    /// The entry, without counting as use.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let index = *self.map.get(key)?;
        self.slot_mut(index).map(|slot| &mut slot.value)
    }

    /// The entry, made the newest.
    pub fn touch(&mut self, key: &K) -> Option<&mut V> {
        let index = *self.map.get(key)?;
        self.unlink(index);
        self.link_newest(index);
        self.slot_mut(index).map(|slot| &mut slot.value)
    }

    /// Puts in a new entry as the newest and returns what had to go for it: the oldest entry, or the
    /// value that `key` had.
    pub fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        let gone = if let Some(old) = self.remove(&key) {
            Some((key, old))
        } else if self.map.len() >= self.limit {
            self.evicted.grow(1);
            self.pop_oldest()
        } else {
            None
        };
        let slot = Slot {
            key,
            value,
            older: NONE,
            newer: NONE,
        };
        let index = if let Some(index) = self.free.pop() {
            self.slots[index as usize] = Some(slot);
            index
        } else {
            let index = u32::try_from(self.slots.len())
                .expect("there are at most `limit` slots, which is below u32::MAX");
            self.slots.push(Some(slot));
            index
        };
        self.map.insert(key, index);
        self.link_newest(index);
        gone
    }

    /// [`Self::insert`] that lets the oldest spare entry make room before any that is none.
    pub fn insert_over(
        &mut self,
        key: K,
        value: V,
        is_spare: impl Fn(&V) -> bool,
    ) -> Option<(K, V)> {
        let is_full = self.map.len() >= self.limit && !self.map.contains_key(&key);
        let spare = is_full
            .then(|| self.iter().find(|(_, value)| is_spare(value)))
            .flatten()
            .map(|(key, _)| *key);
        let gone = spare.and_then(|spare| Some((spare, self.remove(&spare)?)));
        self.evicted.grow(u64::from(gone.is_some()));
        self.insert(key, value).or(gone)
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let index = self.map.remove(key)?;
        self.unlink(index);
        self.free.push(index);
        self.slots[index as usize].take().map(|slot| slot.value)
    }

    /// The entry longest untouched.
    #[must_use]
    pub fn oldest(&self) -> Option<(&K, &V)> {
        self.slot(self.oldest).map(|slot| (&slot.key, &slot.value))
    }

    pub fn pop_oldest(&mut self) -> Option<(K, V)> {
        let key = *self.oldest()?.0;
        self.remove(&key).map(|value| (key, value))
    }

    /// All entries, the longest untouched first.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        std::iter::successors(self.slot(self.oldest), |slot| self.slot(slot.newer))
            .map(|slot| (&slot.key, &slot.value))
    }

    /// Visits every entry for a change; the order is none that an outcome may depend on.
    pub fn for_each(&mut self, mut change: impl FnMut(&K, &mut V)) {
        for slot in self.slots.iter_mut().flatten() {
            change(&slot.key, &mut slot.value);
        }
    }

    fn slot(&self, index: u32) -> Option<&Slot<K, V>> {
        self.slots.get(index as usize)?.as_ref()
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<K, V>> {
        self.slots.get_mut(index as usize)?.as_mut()
    }

    fn unlink(&mut self, index: u32) {
        let Some((older, newer)) = self.slot(index).map(|slot| (slot.older, slot.newer)) else {
            return;
        };
        match self.slot_mut(older) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
        match self.slot_mut(newer) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
    }

    fn link_newest(&mut self, index: u32) {
        let last = self.newest;
        if let Some(slot) = self.slot_mut(index) {
            slot.older = last;
            slot.newer = NONE;
        }
        match self.slot_mut(last) {
            Some(slot) => slot.newer = index,
            None => self.oldest = index,
        }
        self.newest = index;
    }
}

impl<K: Copy + Eq + Hash> Bounded<K, u64> {
    /// What a cumulative count adds to those told of `key` before.
    pub fn gained(&mut self, key: K, count: u64) -> u64 {
        let Some(before) = self.touch(&key) else {
            self.insert(key, count);
            return count;
        };
        let gained = count.saturating_sub(*before);
        // Records of two CPUs may arrive out of order: an older count takes nothing back.
        *before = (*before).max(count);
        gained
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(map: &Bounded<u8, u32>) -> Vec<u8> {
        map.iter().map(|(key, _)| *key).collect()
    }

    #[test]
    fn the_entry_longest_untouched_makes_room() {
        let mut map = Bounded::new(2);
        assert_eq!(map.insert(1, 10), None);
        assert_eq!(map.insert(2, 20), None);
        map.touch(&1);
        assert_eq!(map.insert(3, 30), Some((2, 20)));
        assert_eq!(keys(&map), [1, 3]);
        assert_eq!(map.evicted(), 1);
    }

    #[test]
    fn a_spare_entry_makes_room_before_older_ones() {
        let mut map = Bounded::new(3);
        for (key, value) in [(1, 10), (2, 21), (3, 31)] {
            map.insert(key, value);
        }
        let is_odd = |value: &u32| value % 2 == 1;
        assert_eq!(map.insert_over(3, 33, is_odd), Some((3, 31)));
        assert_eq!(map.evicted(), 0);
        assert_eq!(map.insert_over(4, 40, is_odd), Some((2, 21)));
        assert_eq!(map.insert_over(5, 50, is_odd), Some((3, 33)));
        assert_eq!(map.insert_over(6, 60, is_odd), Some((1, 10)));
        assert_eq!(keys(&map), [4, 5, 6]);
        assert_eq!(map.evicted(), 3);
    }

    proptest! {
        /// Against a plain vector in order of use.
        #[test]
        fn behaves_like_a_list_in_order_of_use(
            operations in prop::collection::vec((0..4u8, 0..8u8, any::<u32>()), 0..200),
            limit in 1..6usize,
        ) {
            let mut map = Bounded::new(limit);
            let mut model: Vec<(u8, u32)> = Vec::new();
            for (operation, key, value) in operations {
                let at = model.iter().position(|(known, _)| *known == key);
                match operation {
                    0 => {
                        let gone = match at {
                            Some(at) => Some(model.remove(at)),
                            None if model.len() == limit => Some(model.remove(0)),
                            None => None,
                        };
                        model.push((key, value));
                        prop_assert_eq!(map.insert(key, value), gone);
                    }
                    1 => {
                        let expected = at.map(|at| {
                            let entry = model.remove(at);
                            model.push(entry);
                            entry.1
                        });
                        prop_assert_eq!(map.touch(&key).copied(), expected);
                    }
                    2 => {
                        let expected = at.map(|at| model.remove(at).1);
                        prop_assert_eq!(map.remove(&key), expected);
                    }
                    _ => {
                        let expected = (!model.is_empty()).then(|| model.remove(0));
                        prop_assert_eq!(map.pop_oldest(), expected);
                    }
                }
                let held: Vec<_> = map.iter().map(|(key, value)| (*key, *value)).collect();
                prop_assert_eq!(held, model.clone());
                prop_assert_eq!(map.len(), model.len());
            }
        }
    }
}
