//! All contact with the running kernel: BTF, layout, load, attach, rings, maps.

pub mod host;
pub mod plan;
