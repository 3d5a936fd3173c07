//! Resolves what the eBPF side needs to know of the running kernel: offsets, argument counts, counter
//! indices, and the names of drop and reset reasons. All from BTF, nothing by kernel version.

use std::collections::BTreeMap;

use conntracer_common::{
    layout::{ABSENT, FIELDS, KernelFacts, KernelLayout},
    netns::KERNEL,
};
use zerocopy::FromBytes;

use super::btf::{Btf, BtfError};

/// Everything resolved at load.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) layout: KernelLayout,
    pub(super) facts: KernelFacts,
    pub(super) drop_reasons: BTreeMap<u32, String>,
    pub(super) reset_reasons: BTreeMap<u32, String>,
    /// Optional fields this kernel lacks, for the debug log.
    pub(super) missing: Vec<&'static str>,
}

/// Asks BTF for every field of the layout; a required one that is missing is an error.
///
/// What a module has is looked for there where the kernel itself does not have it.
pub(super) fn resolve(btf: &Btf<'_>, module: Option<&Btf<'_>>) -> Result<Resolved, BtfError> {
    let mut offsets = [ABSENT; FIELDS.len()];
    let mut missing = Vec::new();
    for (slot, field) in offsets.iter_mut().zip(FIELDS) {
        let place = btf.place(field.structure, field.path).or_else(|error| {
            module.map_or(Err(error), |module| {
                module.place(field.structure, field.path)
            })
        });
        match place {
            Ok(place) => {
                *slot = u16::try_from(place.byte())
                    .ok()
                    .filter(|offset| *offset != ABSENT)
                    .ok_or(BtfError::Malformed("a member lies beyond 64 KiB"))?;
            }
            Err(_) if field.optional => missing.push(field.name),
            Err(error) => return Err(error),
        }
    }
    let layout = KernelLayout::read_from_bytes(zerocopy::IntoBytes::as_bytes(&offsets))
        .map_err(|_| BtfError::Malformed("the layout's size"))?;
    let mut drop_reasons = btf.enumeration("skb_drop_reason", "SKB_DROP_REASON_");
    let mut reset_reasons = btf.enumeration("sk_rst_reason", "SK_RST_REASON_");
    for reasons in [&mut drop_reasons, &mut reset_reasons] {
        // The enum's own bounds, not reasons.
        reasons.retain(|_, name| name != "MAX" && name != "SUBSYS_MASK");
    }
    Ok(Resolved {
        layout,
        facts: facts(btf),
        reset_reasons,
        drop_reasons,
        missing,
    })
}

/// The helper that gives the running task with its type, as the kernel's own list of them has it.
const TYPED_TASK: &str = "BPF_FUNC_get_current_task_btf";

fn facts(btf: &Btf<'_>) -> KernelFacts {
    let counters = btf.enumerators(&[
        "LINUX_MIB_LISTENOVERFLOWS",
        "LINUX_MIB_LISTENDROPS",
        "LINUX_MIB_TCPREQQFULLDROP",
        "LINUX_MIB_TCPREQQFULLDOCOOKIES",
        "LINUX_MIB_TCPKEEPALIVE",
        "IPSTATS_MIB_OUTNOROUTES",
        "LINUX_MIB_IPRPFILTER",
        "LINUX_MIB_TCPMD5NOTFOUND",
        "LINUX_MIB_TCPMD5UNEXPECTED",
        "LINUX_MIB_TCPMD5FAILURE",
        "TCP_MIB_CSUMERRORS",
        "TCP_MIB_OUTRSTS",
        "SKB_DROP_REASON_NOT_SPECIFIED",
        TYPED_TASK,
    ]);
    let compared = btf.enumerators(&KERNEL.map(|(enumerator, _)| enumerator));
    let counter = |name: &str| {
        counters
            .get(name)
            .and_then(|value| u16::try_from(*value).ok())
            .unwrap_or_default()
    };
    let count = |params: Option<usize>| {
        params
            .and_then(|count| u8::try_from(count).ok())
            .unwrap_or_default()
    };
    let bit = |structure, field| {
        btf.place(structure, field)
            .map_or(0, super::btf::Place::bit)
    };
    KernelFacts {
        mib_listen_overflows: counter("LINUX_MIB_LISTENOVERFLOWS"),
        mib_listen_drops: counter("LINUX_MIB_LISTENDROPS"),
        mib_reqq_full_drop: counter("LINUX_MIB_TCPREQQFULLDROP"),
        mib_reqq_full_cookies: counter("LINUX_MIB_TCPREQQFULLDOCOOKIES"),
        mib_tcp_keepalive: counter("LINUX_MIB_TCPKEEPALIVE"),
        mib_out_no_routes: counter("IPSTATS_MIB_OUTNOROUTES"),
        mib_reverse_path: counter("LINUX_MIB_IPRPFILTER"),
        mib_md5_not_found: counter("LINUX_MIB_TCPMD5NOTFOUND"),
        mib_md5_unexpected: counter("LINUX_MIB_TCPMD5UNEXPECTED"),
        mib_md5_failure: counter("LINUX_MIB_TCPMD5FAILURE"),
        mib_csum_errors: counter("TCP_MIB_CSUMERRORS"),
        mib_out_rsts: counter("TCP_MIB_OUTRSTS"),
        reason_not_specified: counters
            .get("SKB_DROP_REASON_NOT_SPECIFIED")
            .and_then(|value| u16::try_from(*value).ok())
            .unwrap_or(u16::MAX),
        mib_compared: KERNEL.map(|(enumerator, _)| {
            compared
                .get(enumerator)
                .and_then(|value| u16::try_from(*value).ok())
                .unwrap_or_default()
        }),
        args_tcp_retransmit_skb: count(btf.tracepoint_params("tcp_retransmit_skb")),
        args_kfree_skb: count(btf.tracepoint_params("kfree_skb")),
        args_tcp_send_reset: count(btf.tracepoint_params("tcp_send_reset")),
        ireq_acked_bit: bit("inet_request_sock", "acked"),
        reuseport_bit: bit("sock_common", "skc_reuseport"),
        ipv6only_bit: bit("sock_common", "skc_ipv6only"),
        typed_task: u8::from(counters.contains_key(TYPED_TASK)),
        repair_bit: bit("tcp_sock", "repair"),
        mptcp_binds_alone: u8::from(btf.function_params("inet_bind_sk").is_some()),
        pad: 0,
    }
}
