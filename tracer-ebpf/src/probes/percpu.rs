//! Reading the kernel's per-CPU SNMP counters: where this CPU's per-CPU memory is, and the
//! counters of a network namespace that tell why a SYN was dropped.

use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use conntracer_common::{layout::ABSENT, netns::kernel, record::early_drop_hint, tcp::AF_INET6};

use crate::{
    maps::{
        DropMib, FACTS, LAST_DROP_MIB, LAST_MIB, Looked, Mib, PERCPU_ANCHOR, SCRATCH, SynMib,
        global, injected,
    },
    probes::bracket::NO_MIB,
    sock::{self, field},
};

/// Learns this CPU's per-CPU offset. Attached to nothing: userspace runs it once on every CPU
/// with BPF_PROG_TEST_RUN, and finds the offset in the map when it worked.
///
/// `bpf_map_lookup_elem` on a per-CPU array returns `this_cpu_ptr(array->pptrs[0])`
/// (kernel/bpf/arraymap.c, `percpu_array_map_lookup_elem`), so the difference is the offset that every
/// other per-CPU pointer needs too.
#[raw_tracepoint]
pub(crate) fn percpu_base(_ctx: RawTracePointContext) -> i32 {
    let offset = global!(LAYOUT.bpf_array_pptrs);
    let (Some(anchor), Some(scratch)) = (PERCPU_ANCHOR.get_ptr_mut(0), SCRATCH.get_ptr_mut(0))
    else {
        return 0;
    };
    if offset == ABSENT || offset as usize > size_of::<[u64; 64]>() - size_of::<u64>() {
        return 0;
    }
    // SAFETY: both are live map values; the map itself is read as kernel memory, to a size that
    // covers `pptrs`. Volatile, so that the verifier's pointer becomes a plain number.
    unsafe {
        if bpf_probe_read_kernel(
            scratch.cast(),
            size_of::<[u64; 64]>() as u32,
            (&raw const PERCPU_ANCHOR).cast(),
        ) != 0
        {
            return 0;
        }
        let pointer =
            core::ptr::read_volatile(scratch.cast::<u8>().add(offset as usize).cast::<u64>());
        core::ptr::write_volatile(anchor, anchor as u64);
        let address = core::ptr::read_volatile(anchor);
        core::ptr::write_volatile(anchor, address.wrapping_sub(pointer));
    }
    1
}

/// This CPU's counters of a namespace; `None` where they cannot be found.
#[inline(always)]
pub(crate) fn mib(net: u64) -> Option<Mib> {
    if global!(FACTS.mib_listen_overflows) == 0 || global!(LAYOUT.net_statistics) == ABSENT {
        return None;
    }
    let offset = *PERCPU_ANCHOR.get(0)?;
    if offset == 0 {
        return None;
    }
    let statistics = field!(net, net_statistics: u64);
    if statistics == 0 {
        return None;
    }
    let counters = statistics.wrapping_add(offset);
    let [overflows, drops] = pair(
        counters,
        global!(FACTS.mib_listen_overflows),
        global!(FACTS.mib_listen_drops),
    );
    let [full_cookies, full_drop] = pair(
        counters,
        global!(FACTS.mib_reqq_full_cookies),
        global!(FACTS.mib_reqq_full_drop),
    );
    Some(Mib {
        overflows,
        drops,
        full_drop,
        full_cookies,
    })
}

/// This CPU's counts of ACKs with a valid and with a wrong cookie; zeros where they cannot be found.
#[inline(always)]
pub(crate) fn cookies(net: u64) -> [u64; 2] {
    let Some(offset) = PERCPU_ANCHOR.get(0) else {
        return [0; 2];
    };
    let statistics = field!(net, net_statistics: u64);
    let [valid, invalid] = [
        injected(&FACTS.mib_compared[kernel::SYNCOOKIES_RECV]),
        injected(&FACTS.mib_compared[kernel::SYNCOOKIES_FAILED]),
    ];
    if *offset == 0 || statistics == 0 || valid == 0 || invalid == 0 {
        return [0; 2];
    }
    pair(statistics.wrapping_add(*offset), valid, invalid)
}

/// How often this CPU found no route for what the namespace sends by one family; 0 where that cannot be found.
#[inline(always)]
pub(crate) fn no_routes(net: u64, is_v6: bool) -> u64 {
    let index = global!(FACTS.mib_out_no_routes);
    let offset = PERCPU_ANCHOR.get(0).copied().unwrap_or(0);
    if index == 0 || offset == 0 {
        return 0;
    }
    let counters = if is_v6 {
        field!(net, net_ipv6_statistics: u64)
    } else {
        field!(net, net_ip_statistics: u64)
    };
    // Without IPv6 its pointer is NULL, and reads zero. Arithmetic, not a branch: the verifier would walk all
    // that follows once for either way.
    let offset = offset & u64::from(counters == 0).wrapping_sub(1);
    sock::read(counters.wrapping_add(offset), index * 8)
}

/// Two counters by index: in one read where they lie side by side, as they always have.
#[inline(always)]
fn pair(counters: u64, first: u16, second: u16) -> [u64; 2] {
    if second == first + 1 {
        sock::read::<[u64; 2]>(counters, first * 8)
    } else {
        [
            sock::read(counters, first * 8),
            sock::read(counters, second * 8),
        ]
    }
}

impl Mib {
    /// What was counted from `before` to `self`.
    #[inline(always)]
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            overflows: self.overflows.wrapping_sub(before.overflows),
            drops: self.drops.wrapping_sub(before.drops),
            full_drop: self.full_drop.wrapping_sub(before.full_drop),
            full_cookies: self.full_cookies.wrapping_sub(before.full_cookies),
        }
    }
}

/// What was counted, and whether there was anything to count from. No `Option`: an absent payload would
/// be copied as uninitialised stack, which 5.10 refuses to read.
#[derive(Clone, Copy)]
pub(crate) struct Counted {
    pub(crate) known: bool,
    /// Whether a route was not found, of the family that was asked about.
    pub(crate) no_route: bool,
    pub(crate) mib: Mib,
}

/// What a segment is that asks for no route.
pub(crate) const NO_FAMILY: u16 = 0;

/// What a namespace counted on this CPU since the last look (tracepoint hook type, which has no entry to
/// compare with), and of routes since the last look at a SYN of the same family; not known at the first look
/// where there was a past, and where the counters cannot be read.
#[inline(always)]
pub(crate) fn counted_since_last(net: u64, netns: u32, family: u16) -> Counted {
    let unknown = Counted {
        known: false,
        no_route: false,
        mib: NO_MIB,
    };
    let Some(now) = mib(net) else {
        return unknown;
    };
    let by_family = usize::from(family == AF_INET6);
    let no_routes = if family == NO_FAMILY {
        0
    } else {
        no_routes(net, family == AF_INET6) + 1
    };
    let Some(last) = LAST_MIB.get_ptr_mut(netns) else {
        let first = Looked {
            looks: 1,
            counters: SynMib {
                mib: now,
                no_routes: [
                    no_routes & (by_family as u64).wrapping_sub(1),
                    no_routes & (by_family as u64).wrapping_neg(),
                ],
            },
        };
        // A full map leaves the namespace without a baseline: its causes stay inferred, which is said.
        let _refused = LAST_MIB.insert(netns, first, 0);
        return unknown;
    };
    // SAFETY: a live per-CPU map value of plain data, and an index within its array.
    let (is_first, before, had_no_routes) = unsafe {
        let counters = &raw mut (*last).counters;
        let had_no_routes = if family == NO_FAMILY {
            0
        } else {
            core::ptr::replace(
                (&raw mut (*counters).no_routes)
                    .cast::<u64>()
                    .add(by_family),
                no_routes,
            )
        };
        (
            core::ptr::replace(&raw mut (*last).looks, 1) == 0,
            core::ptr::replace(&raw mut (*counters).mib, now),
            had_no_routes,
        )
    };
    // Counters at 1 counted this SYN, or one before the tracer.
    let is_fresh = now.overflows | now.drops | now.full_drop | now.full_cookies <= 1;
    Counted {
        // A namespace of the same inode number as one that is gone starts anew.
        known: if is_first {
            is_fresh
        } else {
            now.drops >= before.drops
        },
        no_route: had_no_routes != 0 && had_no_routes != no_routes,
        mib: now.since(&before),
    }
}

/// The counters that tell of drops before a socket; all zero where they cannot be found.
#[inline(always)]
fn drop_mib(net: u64, offset: u64) -> DropMib {
    let facts = global!(FACTS);
    let at = |counters: u64, index: u16| -> u64 {
        if counters == 0 || index == 0 {
            0
        } else {
            sock::read(counters.wrapping_add(offset), index * 8)
        }
    };
    let linux = field!(net, net_statistics: u64);
    let tcp = field!(net, net_tcp_statistics: u64);
    DropMib {
        csum_errors: at(tcp, facts.mib_csum_errors),
        out_rsts: at(tcp, facts.mib_out_rsts),
        reverse_path: at(linux, facts.mib_reverse_path),
        md5: at(linux, facts.mib_md5_not_found)
            .wrapping_add(at(linux, facts.mib_md5_unexpected))
            .wrapping_add(at(linux, facts.mib_md5_failure)),
    }
}

/// Which of those counters of a namespace rose on this CPU since its last dropped segment, as bits of
/// `early_drop_hint`. At the first look there is nothing to compare with: a counter at 1 counted this segment, or
/// one before the tracer, and only what it says is said.
#[inline(always)]
pub(crate) fn drops_since_last(net: u64) -> u8 {
    let offset = PERCPU_ANCHOR.get(0).copied().unwrap_or(0);
    if net == 0 || offset == 0 {
        return 0;
    }
    let inum = sock::net_inum(net);
    let now = Looked {
        looks: 1,
        counters: drop_mib(net, offset),
    };
    let before = if let Some(last) = LAST_DROP_MIB.get_ptr_mut(inum) {
        // SAFETY: a live per-CPU map value of plain data.
        unsafe { core::ptr::replace(last, now) }
    } else {
        // Where the map has no room the next look is a first one again.
        let _refused = LAST_DROP_MIB.insert(inum, now, 0);
        Looked {
            looks: 0,
            counters: DropMib {
                csum_errors: 0,
                out_rsts: 0,
                reverse_path: 0,
                md5: 0,
            },
        }
    };
    let is_first = before.looks == 0;
    let (now, before) = (now.counters, before.counters);
    let bit = |now: u64, before: u64, hint: u8| {
        let rose = if is_first { now == 1 } else { now != before };
        if rose { hint } else { 0 }
    };
    let rose = bit(
        now.csum_errors,
        before.csum_errors,
        early_drop_hint::CHECKSUM,
    ) | bit(now.md5, before.md5, early_drop_hint::MD5)
        | bit(
            now.reverse_path,
            before.reverse_path,
            early_drop_hint::REVERSE_PATH,
        )
        | bit(now.out_rsts, before.out_rsts, early_drop_hint::RESET_SENT);
    if is_first && rose == 0 {
        0
    } else {
        early_drop_hint::COUNTED | rose
    }
}
