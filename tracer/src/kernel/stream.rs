//! What every record passes on its way out of the kernel's wing: it learns where a SYN was dropped and who its
//! owner is, and shows which sockets are in trouble.

use std::io;

use aya::Ebpf;

use super::{
    names::OwnerNames,
    owners::OwnerSearch,
    place::Places,
    poll::{Feed, holder::HolderSearch},
};
use crate::host::Host;

pub(super) struct Stream {
    places: Places,
    holders: HolderSearch,
    names: OwnerNames,
}

impl Stream {
    pub(super) fn new(host: &Host) -> Self {
        let places = if host.drop_reasons.is_empty() {
            Places::read()
                .inspect_err(|error| log::warn!("reading /proc/kallsyms: {error}"))
                .unwrap_or_default()
        } else {
            Places::default()
        };
        Self {
            places,
            holders: HolderSearch::default(),
            names: OwnerNames::default(),
        }
    }

    pub(super) fn names(&mut self) -> &mut OwnerNames {
        &mut self.names
    }

    /// Hands a record on, with what is made of it.
    pub(super) fn pass(&mut self, record: &[u8], feed: Feed<'_>) {
        let Self {
            places,
            holders,
            names,
        } = self;
        places.name(record, &mut |record| {
            holders.meet(record);
            names.name(record, feed);
        });
    }

    /// Who holds the sockets in trouble, where it is time to search.
    pub(super) fn poll_holders(
        &mut self,
        ebpf: &mut Ebpf,
        owners: &mut OwnerSearch,
        feed: Feed<'_>,
    ) -> io::Result<()> {
        let names = &mut self.names;
        self.holders
            .poll(ebpf, owners, &mut |record| names.name(record, feed))
    }
}
