//! Reads the kernel's BTF (Documentation/bpf/btf.rst): offsets of members, counts of parameters,
//! values of enumerators, all by name.
//!
//! Only what conntracer asks is decoded; the bytes are walked once to index the types. Total: any bytes
//! give an answer or an error. Not here: what to ask (`kernel::layout`), and loading programs against
//! BTF, which is aya's.

use std::collections::{BTreeMap, BTreeSet};

/// Why bytes are not usable BTF.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    #[error("not BTF: {0}")]
    Malformed(&'static str),
    #[error("BTF has no {0}")]
    NoType(String),
    #[error("BTF has no member {member} in {structure}")]
    NoMember { structure: String, member: String },
}

/// `BTF_KIND_*` (include/uapi/linux/btf.h), those that are looked at.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Bytes of `struct btf_type` before its kind-specific tail.
const TYPE_HEADER: usize = 12;
/// Types nested deeper than this are not walked: no kernel structure is, and bytes may lie.
const MAX_DEPTH: u32 = 16;

/// Names end before (`KSYM_NAME_LEN`): one without an end costs no more than a long one.
const MAX_NAME: usize = 512;

/// Where a member lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Bits from the start of the structure.
    pub(super) bit_offset: u32,
}

impl Place {
    /// The byte the member starts in.
    pub(super) const fn byte(self) -> u32 {
        self.bit_offset / 8
    }

    /// Its first bit within that byte: 0 but for bit-fields.
    pub(super) const fn bit(self) -> u8 {
        (self.bit_offset & 7) as u8
    }
}

/// An indexed BTF blob.
pub(super) struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Of a module's: how many types and bytes of strings the kernel's own has, which come before.
    base_types: usize,
    base_strings: usize,
    /// Offset into `types` of type id `index + 1` (id 0 is void).
    index: Vec<u32>,
    /// The same of every type of the kinds that are found by name, kind by kind: one look-up passes
    /// over a tenth of the types.
    by_kind: BTreeMap<u32, Vec<u32>>,
}

/// Kinds that are found by name.
const FOUND: [u32; 4] = [kind::STRUCT, kind::ENUM, kind::TYPEDEF, kind::FUNC];

/// One type's header, decoded.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    /// `size` or `type`, by kind.
    size: u32,
    /// Offset of the kind-specific tail.
    tail: usize,
}

impl Type {
    const fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    const fn vlen(self) -> usize {
        (self.info & 0xffff) as usize
    }

    const fn kind_flag(self) -> bool {
        self.info >> 31 != 0
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    bytes.get(at..end)?.try_into().ok().map(u32::from_ne_bytes)
}

impl<'a> Btf<'a> {
    /// Indexes a blob in the host's byte order, as in /sys/kernel/btf/vmlinux.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        Self::parse_behind(data, 0, 0)
    }

    /// The same of a module, whose types and strings go on where the kernel's own end. What those are is not looked up.
    pub(super) fn parse_module(data: &'a [u8], kernel: &Self) -> Result<Self, BtfError> {
        Self::parse_behind(data, kernel.index.len(), kernel.strings.len())
    }

    fn parse_behind(
        data: &'a [u8],
        base_types: usize,
        base_strings: usize,
    ) -> Result<Self, BtfError> {
        const MAGIC: [u8; 2] = 0xeb9f_u16.to_ne_bytes();
        if data.is_empty() {
            return Err(BtfError::Malformed("the file is empty"));
        }
        if data.get(..2) != Some(&MAGIC) {
            return Err(BtfError::Malformed("wrong magic number"));
        }
        let field = |at| word(data, at).map(|value| value as usize);
        let (Some(header), Some(type_off), Some(type_len), Some(string_off), Some(string_len)) =
            (field(4), field(8), field(12), field(16), field(20))
        else {
            return Err(BtfError::Malformed("truncated header"));
        };
        let section = |offset: usize, len: usize| {
            let start = header.checked_add(offset)?;
            data.get(start..start.checked_add(len)?)
        };
        let types = section(type_off, type_len).ok_or(BtfError::Malformed("truncated types"))?;
        let strings =
            section(string_off, string_len).ok_or(BtfError::Malformed("truncated strings"))?;
        let mut btf = Self {
            types,
            strings,
            base_types,
            base_strings,
            index: Vec::new(),
            by_kind: BTreeMap::new(),
        };
        let mut at = 0;
        while at < types.len() {
            let offset =
                u32::try_from(at).map_err(|_| BtfError::Malformed("more than 4 GiB of types"))?;
            let ty = btf.at(at).ok_or(BtfError::Malformed("truncated type"))?;
            btf.index.push(offset);
            if FOUND.contains(&ty.kind()) {
                btf.by_kind.entry(ty.kind()).or_default().push(offset);
            }
            at = ty.tail + tail_len(ty).ok_or(BtfError::Malformed("unknown kind of type"))?;
        }
        if at > types.len() {
            return Err(BtfError::Malformed("truncated type"));
        }
        Ok(btf)
    }

    fn at(&self, at: usize) -> Option<Type> {
        Some(Type {
            name: word(self.types, at)?,
            info: word(self.types, at + 4)?,
            size: word(self.types, at + 8)?,
            tail: at + TYPE_HEADER,
        })
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        let index = usize::try_from(id).ok()?.checked_sub(1)?;
        let index = index.checked_sub(self.base_types)?;
        self.at(*self.index.get(index)? as usize)
    }

    /// From an offset on; none of what is the kernel's own, of a module's.
    fn string(&self, offset: u32) -> Option<&'a [u8]> {
        let at = (offset as usize).checked_sub(self.base_strings)?;
        self.strings.get(at..)
    }

    fn name(&self, offset: u32) -> &'a [u8] {
        let rest = self.string(offset).unwrap_or_default();
        let rest = rest.get(..MAX_NAME).unwrap_or(rest);
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// Whether the name at an offset is this one, without looking for its end first.
    fn is_named(&self, offset: u32, name: &str) -> bool {
        self.string(offset)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first().is_none_or(|byte| *byte == 0))
    }

    /// All types of one of [`FOUND`].
    fn all(&self, wanted: u32) -> impl Iterator<Item = Type> {
        self.by_kind
            .get(&wanted)
            .into_iter()
            .flatten()
            .filter_map(|offset| self.at(*offset as usize))
    }

    fn find(&self, wanted: u32, name: &str) -> Option<Type> {
        self.all(wanted).find(|ty| self.is_named(ty.name, name))
    }

    /// Follows typedefs and qualifiers to the type itself.
    fn resolved(&self, mut id: u32) -> Option<Type> {
        for _ in 0..MAX_DEPTH {
            let ty = self.by_id(id)?;
            match ty.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = ty.size;
                }
                _ => return Some(ty),
            }
        }
        None
    }

    /// Where `path` (member names joined by dots) lies in `structure`; anonymous members are walked
    /// through.
    pub(super) fn place(&self, structure: &str, path: &str) -> Result<Place, BtfError> {
        let mut ty = self
            .find(kind::STRUCT, structure)
            .ok_or_else(|| BtfError::NoType(format!("struct {structure}")))?;
        let mut bits: u32 = 0;
        let mut last = None;
        for name in path.split('.') {
            if let Some(id) = last {
                ty = self
                    .resolved(id)
                    .ok_or(BtfError::Malformed("a member without a type"))?;
            }
            let (offset, id) = self
                .member(ty, name, 0, &mut BTreeSet::new())
                .ok_or_else(|| BtfError::NoMember {
                    structure: structure.to_owned(),
                    member: path.to_owned(),
                })?;
            bits = offset
                .checked_add(bits)
                .ok_or(BtfError::Malformed("a member lies beyond 512 MiB"))?;
            last = Some(id);
        }
        Ok(Place { bit_offset: bits })
    }

    /// Bit offset and type of a direct or anonymously nested member. `walked` are the types that do not have
    /// it: bytes that lie may lead into the same ones by any number of ways.
    fn member(
        &self,
        ty: Type,
        name: &str,
        depth: u32,
        walked: &mut BTreeSet<usize>,
    ) -> Option<(u32, u32)> {
        if depth > MAX_DEPTH
            || !matches!(ty.kind(), kind::STRUCT | kind::UNION)
            || !walked.insert(ty.tail)
        {
            return None;
        }
        (0..ty.vlen()).find_map(|member| {
            let at = ty.tail + member * 12;
            let member_name = word(self.types, at)?;
            let id = word(self.types, at + 4)?;
            let mut offset = word(self.types, at + 8)?;
            if ty.kind_flag() {
                // The upper 8 bits are the width of a bit-field.
                offset &= 0x00ff_ffff;
            }
            if self.is_named(member_name, name) {
                return Some((offset, id));
            }
            if self.is_named(member_name, "") {
                let (inner, id) = self.member(self.resolved(id)?, name, depth + 1, walked)?;
                return Some((offset.checked_add(inner)?, id));
            }
            None
        })
    }

    /// Parameters of a kernel function; `None` when BTF has no such function.
    pub(super) fn function_params(&self, name: &str) -> Option<usize> {
        let func = self.find(kind::FUNC, name)?;
        let proto = self.by_id(func.size)?;
        (proto.kind() == kind::FUNC_PROTO).then(|| proto.vlen())
    }

    /// Arguments of a tracepoint, without the hidden first one of its `btf_trace_` typedef; `None` when
    /// the kernel has no such tracepoint.
    pub(super) fn tracepoint_params(&self, name: &str) -> Option<usize> {
        let typedef = self.find(kind::TYPEDEF, &format!("btf_trace_{name}"))?;
        let pointer = self.by_id(typedef.size)?;
        if pointer.kind() != kind::PTR {
            return None;
        }
        let proto = self.by_id(pointer.size)?;
        if proto.kind() != kind::FUNC_PROTO {
            return None;
        }
        proto.vlen().checked_sub(1)
    }

    /// Values of the named enumerators, of whatever enum they are in (the SNMP counters' is anonymous).
    pub(super) fn enumerators(&self, names: &[&str]) -> BTreeMap<String, u32> {
        let mut found = BTreeMap::new();
        for ty in self.all(kind::ENUM) {
            for (name, value) in self.values(ty) {
                if let Some(name) = names.iter().find(|wanted| wanted.as_bytes() == name) {
                    found.entry((*name).to_owned()).or_insert(value);
                }
            }
        }
        found
    }

    /// All values of a named enum, without `prefix`; empty when the kernel has no such enum.
    pub(super) fn enumeration(&self, name: &str, prefix: &str) -> BTreeMap<u32, String> {
        let Some(ty) = self.find(kind::ENUM, name) else {
            return BTreeMap::new();
        };
        self.values(ty)
            .map(|(name, value)| {
                let name = String::from_utf8_lossy(name);
                (value, name.strip_prefix(prefix).unwrap_or(&name).to_owned())
            })
            .collect()
    }

    fn values(&self, ty: Type) -> impl Iterator<Item = (&'a [u8], u32)> {
        (0..ty.vlen()).filter_map(move |value| {
            let at = ty.tail + value * 8;
            Some((self.name(word(self.types, at)?), word(self.types, at + 4)?))
        })
    }
}

/// Bytes after a type's header; `None` for a kind this reader does not know, whose length it cannot
/// know either.
fn tail_len(ty: Type) -> Option<usize> {
    Some(match ty.kind() {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => ty.vlen() * 12,
        kind::ENUM | kind::FUNC_PROTO => ty.vlen() * 8,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG: the header is all.
        kind::PTR | 7..=kind::FUNC | 16 | kind::TYPE_TAG => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Builds BTF with just enough of the format for the reader's questions.
    #[derive(Default)]
    struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
        count: u32,
    }

    impl Builder {
        fn new() -> Self {
            Self {
                strings: vec![0],
                ..Self::default()
            }
        }

        fn string(&mut self, text: &str) -> u32 {
            if text.is_empty() {
                return 0;
            }
            let at = u32::try_from(self.strings.len()).unwrap();
            self.strings.extend(text.as_bytes());
            self.strings.push(0);
            at
        }

        fn ty(
            &mut self,
            name: &str,
            kind: u32,
            flag: bool,
            vlen: u32,
            size: u32,
            tail: &[u32],
        ) -> u32 {
            let name = self.string(name);
            let info = (u32::from(flag) << 31) | (kind << 24) | vlen;
            for word in [name, info, size].iter().chain(tail) {
                self.types.extend(word.to_ne_bytes());
            }
            self.count += 1;
            self.count
        }

        fn build(&self) -> Vec<u8> {
            let mut out = Vec::new();
            out.extend(0xeb9f_u16.to_ne_bytes());
            out.extend([1, 0]);
            let types = u32::try_from(self.types.len()).unwrap();
            let strings = u32::try_from(self.strings.len()).unwrap();
            for word in [24, 0, types, types, strings] {
                out.extend(u32::to_ne_bytes(word));
            }
            out.extend(&self.types);
            out.extend(&self.strings);
            out
        }
    }

    fn sample() -> Vec<u8> {
        let mut b = Builder::new();
        let int = b.ty("int", kind::INT, false, 0, 4, &[32]);
        let (inner, flags) = (b.string("inner"), b.string("flags"));
        let anonymous = b.ty(
            "",
            kind::UNION,
            true,
            2,
            8,
            &[inner, int, 32, flags, int, (7 << 24) | 0x29],
        );
        let number = b.string("number");
        let nested = b.ty("nested_t", kind::STRUCT, false, 1, 4, &[number, int, 64]);
        let alias = b.ty("alias", kind::TYPEDEF, false, 0, nested, &[]);
        let (first, deep) = (b.string("first"), b.string("deep"));
        b.ty(
            "outer",
            kind::STRUCT,
            false,
            3,
            32,
            &[first, int, 0, 0, anonymous, 64, deep, alias, 128],
        );
        let void_args = b.ty("", kind::FUNC_PROTO, false, 3, 0, &[0, 0, 0, int, 0, int]);
        b.ty("tcp_thing", kind::FUNC, false, 0, void_args, &[]);
        let pointer = b.ty("", kind::PTR, false, 0, void_args, &[]);
        b.ty("btf_trace_thing", kind::TYPEDEF, false, 0, pointer, &[]);
        let (a, z) = (b.string("REASON_A"), b.string("REASON_Z"));
        b.ty("reason", kind::ENUM, false, 2, 4, &[a, 3, z, 77]);
        b.build()
    }

    #[test]
    fn members_are_found_through_anonymous_and_named_nesting() {
        let data = sample();
        let btf = Btf::parse(&data).unwrap();
        assert_eq!(btf.place("outer", "first").unwrap().byte(), 0);
        assert_eq!(btf.place("outer", "inner").unwrap().byte(), 12);
        assert_eq!(btf.place("outer", "deep.number").unwrap().byte(), 24);
        let flags = btf.place("outer", "flags").unwrap();
        assert_eq!((flags.byte(), flags.bit()), (13, 1));
    }

    #[test]
    fn what_is_missing_is_named() {
        let data = sample();
        let btf = Btf::parse(&data).unwrap();
        assert_eq!(
            btf.place("outer", "deep.none").unwrap_err().to_string(),
            "BTF has no member deep.none in outer"
        );
        assert_eq!(
            btf.place("none", "x").unwrap_err().to_string(),
            "BTF has no struct none"
        );
    }

    #[test]
    fn functions_tracepoints_and_enums_are_found_by_name() {
        let data = sample();
        let btf = Btf::parse(&data).unwrap();
        assert_eq!(btf.function_params("tcp_thing"), Some(3));
        assert_eq!(btf.tracepoint_params("thing"), Some(2));
        assert_eq!(btf.tracepoint_params("other"), None);
        assert_eq!(btf.enumerators(&["REASON_Z"]).get("REASON_Z"), Some(&77));
        assert_eq!(
            btf.enumeration("reason", "REASON_")
                .get(&3)
                .map(String::as_str),
            Some("A")
        );
    }

    /// Eight ways from each of sixteen structures into the next one would be 2^48 in all.
    #[test]
    fn what_many_ways_lead_to_is_walked_once() {
        let mut b = Builder::new();
        let mut inner = b.ty("", kind::STRUCT, false, 0, 0, &[]);
        for depth in (0..MAX_DEPTH).rev() {
            let name = if depth == 0 { "outer" } else { "" };
            let members = [0, inner, 0].repeat(8);
            inner = b.ty(name, kind::STRUCT, false, 8, 0, &members);
        }
        let data = b.build();
        let btf = Btf::parse(&data).unwrap();
        assert!(matches!(
            btf.place("outer", "none"),
            Err(BtfError::NoMember { .. })
        ));
    }

    #[test]
    fn members_that_lie_too_far_out_are_an_error() {
        let mut b = Builder::new();
        let deep = b.string("deep");
        let inner = b.ty("", kind::STRUCT, false, 1, 0, &[deep, 0, u32::MAX]);
        let first = b.string("first");
        b.ty("outer", kind::STRUCT, false, 1, 0, &[first, inner, 1]);
        let data = b.build();
        let btf = Btf::parse(&data).unwrap();
        assert!(matches!(
            btf.place("outer", "first.deep"),
            Err(BtfError::Malformed(_))
        ));
    }

    #[test]
    fn an_empty_file_is_said_to_be_empty() {
        assert_eq!(
            Btf::parse(&[]).err(),
            Some(BtfError::Malformed("the file is empty"))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(btf) = Btf::parse(&data) {
                let _ = btf.place("outer", "deep.number");
            }
        }

        #[test]
        fn a_damaged_blob_gives_an_answer(at in 0usize..400, value in any::<u8>()) {
            let mut data = sample();
            let at = at % data.len();
            data[at] = value;
            if let Ok(btf) = Btf::parse(&data) {
                let _ = btf.place("outer", "deep.number");
                let _ = btf.tracepoint_params("thing");
                let _ = btf.enumeration("reason", "");
            }
        }
    }
}
