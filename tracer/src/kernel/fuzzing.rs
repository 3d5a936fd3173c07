//! What `crate::fuzzing` does with the parsers of this wing: BTF, /proc, and whatever looks at a record's bytes.

use super::{
    btf::Btf,
    layout, missed, names,
    place::Places,
    poll::{holder::HolderSearch, seed},
    ring,
};

/// Symbols as /proc/kallsyms has them.
const SYMBOLS: &str = "\
ffffffff81000100 t ip_rcv_finish_core.isra.0
ffffffff81000300 T tcp_v4_rcv
ffffffff81000400 T after
";

/// All that is asked of a kernel's BTF.
pub(crate) fn btf(data: &[u8]) {
    let Ok(btf) = Btf::parse(data) else {
        return;
    };
    let _resolved = layout::resolve(&btf, None);
    for function in ["tcp_connect", "tcp_v4_conn_request", "inet_csk_accept"] {
        let _counted = btf.function_params(function);
    }
}

pub(crate) fn proc(text: &[u8]) {
    if let Ok(places) = Places::parse(text) {
        places.name(&[], &mut |_| ());
    }
    missed::fuzz(&String::from_utf8_lossy(text));
}

/// One record on its way from a ring to `decode`; and many, as a walk over all sockets writes them.
pub(crate) fn ring(record: &[u8]) {
    seed::each(record, &mut |each| assert!(!each.is_empty()));
    let record = ring::trimmed(record);
    let places = Places::parse(SYMBOLS.as_bytes()).expect("symbols");
    places.name(record, &mut |_named| ());
    HolderSearch::default().meet(record);
    let _owner = names::owner(record);
}
