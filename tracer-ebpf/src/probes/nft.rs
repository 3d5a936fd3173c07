//! Which rule of nf_tables dropped a packet, where the kernel frees it while the rule is at hand (`nft_do_chain`, Linux
//! 6.18); no programs.
//!
//! No hook tells. But the arguments of a tracepoint's program lie on the stack of what fired it, and just above them the
//! registers that the functions in between have saved: among them the rule that `nft_do_chain` stands at. That it is one is
//! proved: the rules of a chain lie one behind the other, and the end of them names their chain, which names them.

use core::ffi::c_void;

use conntracer_common::layout::ABSENT;

use crate::{
    globals::global,
    maps::CONTEXT,
    sock::{self, field},
    table::{read_once, write_once},
};

/// What dropped a packet.
#[derive(Clone, Copy, Default)]
pub(crate) struct Found {
    /// Address of its `struct nft_chain`; 0 when none was found.
    pub(crate) chain: u64,
    /// The rule's; 0 for the policy of the chain.
    pub(crate) handle: u64,
}

/// Words between the arguments and the place that dropped the packet: 17 on x86-64, 6.18.
const WORDS: u64 = 32;
/// The arguments themselves, of which the location is one.
const ARGUMENTS: u64 = 4;
/// Rules behind the one that dropped. One before more than these is not found.
const RULES: u64 = 128;

/// Whether this kernel's rules are laid out so.
#[inline(always)]
pub(crate) fn is_known() -> bool {
    global!(FACTS.args_kfree_skb) >= 4
        && global!(LAYOUT.nft_last_chain) != ABSENT
        && global!(LAYOUT.nft_rule_handle) == 1
        && global!(LAYOUT.nft_chain_blob_0) != ABSENT
}

/// Of `struct nft_rule_dp` (include/net/netfilter/nf_tables.h), a word: whether it is the end, bytes of its expressions,
/// its handle. The bits that no field has are what the memory held before, and so are those of the end but for the first
/// (net/netfilter/nf_tables_api.c, `nf_tables_commit_chain_prepare`, `nft_last_rule`).
const IS_LAST: u64 = 1;
const HANDLE_SHIFT: u64 = 13;
const HANDLE_MASK: u64 = (1 << 42) - 1;
/// Handles count up from 1 in each table; the address of something has a larger number there.
const HANDLE_MOST: u64 = u32::MAX as u64;
const HEADER_BYTES: u64 = 8;

/// Searches the words between a program's arguments and the return address `location`.
///
/// The rule that drops is before the one that would follow, which a register may hold too: of several the first.
/// Candidates first, and what becomes of them behind: the verifier walks a loop in another once for each way through it.
#[inline(always)]
pub(crate) fn search(context: *const c_void, location: u64) -> Found {
    let Some(place) = CONTEXT.edit(0) else {
        return Found::default();
    };
    write_once(&mut place[0], context as u64);
    let base = read_once(&place[0]);
    let [_, chain, handle] = place;
    search_words(base, location, chain, handle);
    Found {
        chain: read_once(chain),
        handle: read_once(handle),
    }
}

/// The same, with a stack of its own.
#[inline(never)]
fn search_words(base: u64, location: u64, chain: &mut u64, handle: &mut u64) {
    write_once(chain, 0);
    // A zero that the verifier does not know: one state of each step, whatever was found by then.
    let zero = read_once(chain);
    let (mut one, mut two, mut three) = (zero, zero, zero);
    let (mut end, mut other_end) = (zero, zero);
    let mut at = ARGUMENTS;
    while at < WORDS {
        let word: u64 = sock::read(base + at * 8, 0);
        if word == location {
            break;
        }
        at += 1;
        // Of the kernel, with four or five levels of page tables, and aligned as allocations are.
        if word & 7 != 0 || word >> 56 != 0xff {
            continue;
        }
        let header: u64 = sock::read(word, 0);
        if header & IS_LAST != 0 {
            other_end = end;
            end = word;
        } else if is_rule(header) {
            three = two;
            two = one;
            one = word;
        }
    }
    let (mut found, mut number) = (0, 0);
    let mut rule = u64::MAX;
    for candidate in [one, two, three] {
        if candidate != 0 && candidate < rule {
            let of = chain_of(candidate);
            if of != 0 {
                rule = candidate;
                found = of;
                number = handle_of(sock::read::<u64>(candidate, 0));
            }
        }
    }
    // Behind the last rule the policy decides. Not said where something may be a rule too far from the end.
    if one == 0 {
        for end in [end, other_end] {
            let of = if end == 0 { 0 } else { chain_behind(end, end) };
            if of != 0 && drops_by_policy(of) {
                found = of;
            }
        }
    }
    write_once(chain, found);
    write_once(handle, number);
}

/// The chain that has the rule; 0 where it is none, or too far from the end of the chain.
#[inline(never)]
fn chain_of(rule: u64) -> u64 {
    let mut cursor = rule;
    let mut rules = 0;
    while rules < RULES {
        rules += 1;
        let header: u64 = sock::read(cursor, 0);
        if header & IS_LAST != 0 {
            return chain_behind(cursor, rule);
        }
        if !is_rule(header) {
            return 0;
        }
        cursor += HEADER_BYTES + bytes_of(header);
    }
    0
}

/// Whether a word may begin a rule.
#[inline(always)]
fn is_rule(header: u64) -> bool {
    let handle = handle_of(header);
    header & IS_LAST == 0 && handle != 0 && handle <= HANDLE_MOST && bytes_of(header) & 7 == 0
}

#[inline(always)]
fn handle_of(header: u64) -> u64 {
    (header >> HANDLE_SHIFT) & HANDLE_MASK
}

#[inline(always)]
fn bytes_of(header: u64) -> u64 {
    (header >> 1) & 0xfff
}

/// The chain whose rules end at `end` and have `start` among them; 0 where that is not so.
#[inline(never)]
fn chain_behind(end: u64, start: u64) -> u64 {
    let chain = field!(end, nft_last_chain: u64);
    let rules = [
        field!(chain, nft_chain_blob_0: u64),
        field!(chain, nft_chain_blob_1: u64),
    ];
    // Those of now, and those that a change is about to put in their place.
    let ends_here = |blob: u64| {
        let bytes: u64 = sock::read(blob, 0);
        blob < start && blob + u64::from(global!(LAYOUT.nft_blob_data)) + bytes == end
    };
    if ends_here(rules[0]) || ends_here(rules[1]) {
        chain
    } else {
        0
    }
}

/// Whether it is a base chain whose policy is to drop.
#[inline(always)]
fn drops_by_policy(chain: u64) -> bool {
    const NFT_CHAIN_BASE: u8 = 1;
    const NF_DROP: u8 = 0;
    let (policy, of) = (
        global!(LAYOUT.nft_base_policy),
        global!(LAYOUT.nft_base_chain),
    );
    policy != ABSENT
        && of != ABSENT
        && field!(chain, nft_chain_flags: u8) & NFT_CHAIN_BASE != 0
        && sock::read::<u8>(chain - u64::from(of), policy) == NF_DROP
}
