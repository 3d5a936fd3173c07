//! Reading the kernel's per-CPU SNMP counters: where this CPU's per-CPU memory is, and the
//! counters of a network namespace that tell why a SYN was dropped.

use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use conntracer_common::{
    early_drop::DropCounters, layout::ABSENT, netns::kernel, syn::SynCounters, tcp::AF_INET6,
};

use crate::{
    globals::{FACTS, global},
    maps::{ARRAY_COPY, DropLook, LAST_DROP_LOOK, LAST_SYN_LOOK, PERCPU_ANCHOR, SynLook},
    sock::{self, field},
    table::{read_once, write_once},
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
    let (Some(anchor), Some(copy)) = (PERCPU_ANCHOR.edit(0), ARRAY_COPY.edit(0)) else {
        return 0;
    };
    // SAFETY: the map itself is read as kernel memory, to a size that covers `pptrs`.
    let failed = unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(copy).cast(),
            size_of::<[u64; 64]>() as u32,
            (&raw const PERCPU_ANCHOR).cast(),
        )
    };
    let pointer = copy.get(usize::from(offset) / size_of::<u64>());
    let (0, Some(pointer)) = (failed, pointer) else {
        return 0;
    };
    // Written and read again, so that the verifier's pointer becomes a plain number.
    let address = core::ptr::from_mut(anchor) as u64;
    write_once(anchor, address);
    let address = read_once(anchor);
    write_once(anchor, address.wrapping_sub(*pointer));
    1
}

/// 0 where it is not known.
#[inline(always)]
fn percpu_offset() -> u64 {
    PERCPU_ANCHOR.get(0).copied().unwrap_or(0)
}

/// This CPU's counters of a namespace; `None` where they cannot be found.
#[inline(always)]
pub(crate) fn syn_counters(net: u64) -> Option<SynCounters> {
    if global!(FACTS.mib_listen_overflows) == 0 || global!(LAYOUT.net_statistics) == ABSENT {
        return None;
    }
    let offset = PERCPU_ANCHOR.get(0).copied()?;
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
    Some(SynCounters {
        overflows,
        drops,
        full_drop,
        full_cookies,
    })
}

/// This CPU's counts of ACKs with a valid and with a wrong cookie; zeros where they cannot be found.
#[inline(always)]
pub(crate) fn cookies(net: u64) -> [u64; 2] {
    let offset = percpu_offset();
    let statistics = field!(net, net_statistics: u64);
    let [valid, invalid] = [
        read_once(&FACTS.mib_compared[kernel::SYNCOOKIES_RECV]),
        read_once(&FACTS.mib_compared[kernel::SYNCOOKIES_FAILED]),
    ];
    if offset == 0 || statistics == 0 || valid == 0 || invalid == 0 {
        return [0; 2];
    }
    pair(statistics.wrapping_add(offset), valid, invalid)
}

/// How often this CPU found no route for what the namespace sends by one family; 0 where that cannot be found.
#[inline(always)]
pub(crate) fn no_routes(net: u64, is_v6: bool) -> u64 {
    let index = global!(FACTS.mib_out_no_routes);
    let offset = percpu_offset();
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

/// What was counted, and whether there was anything to count from. No `Option`: an absent payload would
/// be copied as uninitialised stack, which 5.10 refuses to read.
#[derive(Clone, Copy)]
pub(crate) struct SinceLast {
    pub(crate) known: bool,
    /// Whether a route was not found, of the family that was asked about.
    pub(crate) no_route: bool,
    pub(crate) rise: SynCounters,
}

/// What a segment is that asks for no route.
pub(crate) const NO_FAMILY: u16 = 0;

/// What a namespace counted on this CPU since the last look (tracepoint hook type, which has no entry to
/// compare with), and of routes since the last look at a SYN of the same family; not known at the first look
/// where there was a past, and where the counters cannot be read.
#[inline(always)]
pub(crate) fn syns_since_last(net: u64, netns: u32, family: u16) -> SinceLast {
    let unknown = SinceLast {
        known: false,
        no_route: false,
        rise: SynCounters::NONE,
    };
    let Some(now) = syn_counters(net) else {
        return unknown;
    };
    let by_family = usize::from(family == AF_INET6);
    let no_routes = if family == NO_FAMILY {
        0
    } else {
        no_routes(net, family == AF_INET6) + 1
    };
    let Some(last) = LAST_SYN_LOOK.edit(netns) else {
        let first = SynLook {
            looks: 1,
            counters: now,
            no_routes: [
                no_routes & (by_family as u64).wrapping_sub(1),
                no_routes & (by_family as u64).wrapping_neg(),
            ],
        };
        // A full map leaves the namespace without a baseline: its causes stay inferred, which is said.
        LAST_SYN_LOOK.insert(netns, &first);
        return unknown;
    };
    let had_no_routes = if family == NO_FAMILY {
        0
    } else {
        core::mem::replace(&mut last.no_routes[by_family], no_routes)
    };
    let is_first = core::mem::replace(&mut last.looks, 1) == 0;
    let before = core::mem::replace(&mut last.counters, now);
    SinceLast {
        // A namespace of the same inode number as one that is gone starts anew.
        known: if is_first {
            now.are_fresh()
        } else {
            now.drops >= before.drops
        },
        no_route: had_no_routes != 0 && had_no_routes != no_routes,
        rise: now.since(&before),
    }
}

/// The counters that tell of drops before a socket; all zero where they cannot be found.
#[inline(always)]
fn drop_counters(net: u64, offset: u64) -> DropCounters {
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
    DropCounters {
        csum_errors: at(tcp, facts.mib_csum_errors),
        out_rsts: at(tcp, facts.mib_out_rsts),
        reverse_path: at(linux, facts.mib_reverse_path),
        md5: at(linux, facts.mib_md5_not_found)
            .wrapping_add(at(linux, facts.mib_md5_unexpected))
            .wrapping_add(at(linux, facts.mib_md5_failure)),
    }
}

/// Which of those counters of a namespace rose on this CPU since its last dropped segment, as bits of
/// `early_drop_hint`.
#[inline(always)]
pub(crate) fn drops_since_last(net: u64) -> u8 {
    let offset = percpu_offset();
    if net == 0 || offset == 0 {
        return 0;
    }
    let inum = sock::net_inum(net);
    let now = DropLook {
        looks: 1,
        counters: drop_counters(net, offset),
    };
    let before = if let Some(last) = LAST_DROP_LOOK.edit(inum) {
        core::mem::replace(last, now)
    } else {
        // Where the map has no room the next look is a first one again.
        LAST_DROP_LOOK.insert(inum, &now);
        DropLook {
            looks: 0,
            counters: DropCounters::NONE,
        }
    };
    now.counters.hints(&before.counters, before.looks == 0)
}
