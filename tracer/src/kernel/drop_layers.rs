//! Which part of the kernel drops for which reason, told to the eBPF side before it begins: by the names that the
//! running kernel has for its reasons, and without reasons by the functions that drop.
//!
//! A reason that is not here is no drop that says what is wrong: what is received twice, is too old, or is refused
//! with an answer; and what a socket's own filter drops, as its process wants it to.

use std::{collections::BTreeMap, io};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use conntracer_common::{
    record::drop_layer,
    socket::{DROP_PLACES_MOST, DROP_REASONS},
};

use super::{error::CannotTrace, place};

/// The kernel's names, of all versions.
const LAYERS: &[(&str, u8)] = &[
    ("NETFILTER_DROP", drop_layer::NETFILTER),
    ("TC_INGRESS", drop_layer::TC_INGRESS),
    ("TC_EGRESS", drop_layer::TC_EGRESS),
    ("QDISC_DROP", drop_layer::QDISC),
    ("QDISC_OVERLIMIT", drop_layer::QDISC),
    ("QDISC_CONGESTED", drop_layer::QDISC),
    ("CAKE_FLOOD", drop_layer::QDISC),
    ("FQ_BAND_LIMIT", drop_layer::QDISC),
    ("FQ_HORIZON_LIMIT", drop_layer::QDISC),
    ("FQ_FLOW_LIMIT", drop_layer::QDISC),
    ("CPU_BACKLOG", drop_layer::CPU_BACKLOG),
    ("XDP", drop_layer::XDP),
    ("BPF_CGROUP_EGRESS", drop_layer::BPF),
    ("IP_RPFILTER", drop_layer::ROUTE),
    ("IP_INNOROUTES", drop_layer::ROUTE),
    ("IP_OUTNOROUTES", drop_layer::ROUTE),
    ("NEIGH_CREATEFAIL", drop_layer::NEIGHBOUR),
    ("NEIGH_FAILED", drop_layer::NEIGHBOUR),
    ("NEIGH_QUEUEFULL", drop_layer::NEIGHBOUR),
    ("NEIGH_DEAD", drop_layer::NEIGHBOUR),
    ("TCP_CSUM", drop_layer::CHECKSUM),
    ("IP_CSUM", drop_layer::CHECKSUM),
    ("SKB_CSUM", drop_layer::CHECKSUM),
    ("TCP_MD5NOTFOUND", drop_layer::AUTH),
    ("TCP_MD5UNEXPECTED", drop_layer::AUTH),
    ("TCP_MD5FAILURE", drop_layer::AUTH),
    ("TCP_AONOTFOUND", drop_layer::AUTH),
    ("TCP_AOUNEXPECTED", drop_layer::AUTH),
    ("TCP_AOKEYNOTFOUND", drop_layer::AUTH),
    ("TCP_AOFAILURE", drop_layer::AUTH),
    ("XFRM_POLICY", drop_layer::AUTH),
    ("SOCKET_RCVBUFF", drop_layer::RECEIVE_BUFFER),
    ("PROTO_MEM", drop_layer::RECEIVE_BUFFER),
    ("SOCKET_BACKLOG", drop_layer::SOCKET_BACKLOG),
    ("FULL_RING", drop_layer::DEVICE),
    ("DEV_READY", drop_layer::DEVICE),
    ("DEV_HDR", drop_layer::DEVICE),
    ("NOMEM", drop_layer::DEVICE),
];

/// Functions of kernels without reasons in which nothing but a drop frees a packet.
const PLACES: &[(&str, u8)] = &[
    ("nf_hook_slow", drop_layer::NETFILTER),
    ("enqueue_to_backlog", drop_layer::CPU_BACKLOG),
    ("tcp_add_backlog", drop_layer::SOCKET_BACKLOG),
];

/// What the running kernel's reasons mean, in places of the eBPF side's map.
fn layers(reasons: &BTreeMap<u32, String>) -> Vec<(u32, u64)> {
    let layer = |name: &str| LAYERS.iter().find(|(known, _)| *known == name);
    reasons
        .iter()
        .filter(|(reason, _)| **reason < DROP_REASONS)
        .filter_map(|(reason, name)| Some((*reason, u64::from(layer(name)?.1))))
        .collect()
}

/// Fills the maps, before the first hook is attached.
pub(super) fn fill(ebpf: &mut Ebpf, reasons: &BTreeMap<u32, String>) -> Result<(), CannotTrace> {
    if reasons.is_empty() {
        return fill_places(ebpf);
    }
    let mut map = array::<u64>(ebpf, "DROP_LAYERS")?;
    for (reason, layer) in layers(reasons) {
        map.set(reason, layer, 0).map_err(failed)?;
    }
    Ok(())
}

fn fill_places(ebpf: &mut Ebpf) -> Result<(), CannotTrace> {
    let ranges = place::functions(PLACES).unwrap_or_else(|error| {
        log::warn!("reading /proc/kallsyms: {error}");
        Vec::new()
    });
    let mut places = [[0; 3]; DROP_PLACES_MOST];
    for (place, (range, layer)) in places.iter_mut().zip(ranges) {
        *place = [range.start, range.end, layer.into()];
    }
    let mut map = array::<[[u64; 3]; DROP_PLACES_MOST]>(ebpf, "DROP_PLACES")?;
    map.set(0, places, 0).map_err(failed)
}

fn array<'a, V: aya::Pod>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<Array<&'a mut MapData, V>, CannotTrace> {
    ebpf.map_mut(name)
        .and_then(|map| Array::try_from(map).ok())
        .ok_or(CannotTrace::Foreign(name))
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> CannotTrace {
    CannotTrace::Kernel {
        what: "telling the eBPF side which reasons are drops",
        source: io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_known_by_their_names_whatever_their_numbers() {
        let reasons = [
            (2, "NOT_SPECIFIED"),
            (12, "NETFILTER_DROP"),
            (40, "TCP_OLD_DATA"),
            (70, "TC_EGRESS"),
            (0x2_0001, "NETFILTER_DROP"),
        ];
        let reasons = reasons.map(|(number, name)| (number, name.to_owned()));
        let known = layers(&reasons.into_iter().collect());
        let expected = [
            (12, u64::from(drop_layer::NETFILTER)),
            (70, u64::from(drop_layer::TC_EGRESS)),
        ];
        assert_eq!(known, expected);
    }

    #[test]
    fn there_is_room_for_all_functions() {
        // More would be left out without a word.
        assert!(PLACES.len() <= DROP_PLACES_MOST);
    }
}
