//! What userspace fills in before load, and freezes: the verifier sees constants and prunes the branches
//! not taken.

use conntracer_common::{
    filter::{Filter, Read},
    layout::{KernelFacts, KernelLayout},
    options::Options,
};

use crate::table::read_once;

macro_rules! globals {
    ($($name:ident: $type:ident = $value:ident;)*) => {
        $(
            #[unsafe(no_mangle)]
            pub(crate) static $name: $type = $type::$value;
        )*
    };
}

globals! {
    LAYOUT: KernelLayout = UNRESOLVED;
    FACTS: KernelFacts = UNRESOLVED;
    FILTER: Filter = NONE;
    OPTIONS: Options = NONE;
}

/// Reads one field of a global, as LLVM may not: it would take the value that is compiled in.
macro_rules! global {
    ($global:ident $(. $field:ident)?) => {
        $crate::table::read_once(&$crate::globals::$global $(. $field)?)
    };
}
pub(crate) use global;

/// How the parts of a global are read one by one: a copy of the whole would not fit on the stack.
pub(crate) struct Injected;

impl Read for Injected {
    #[inline(always)]
    fn read<T: Copy>(place: &T) -> T {
        read_once(place)
    }
}
