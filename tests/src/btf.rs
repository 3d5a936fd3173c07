//! The running kernel's BTF, as far as a program must name a function by it.

use std::fs;

use anyhow::{Context, Result};

const PATH: &str = "/sys/kernel/btf/vmlinux";
/// `BTF_KIND_FUNC` (include/uapi/linux/btf.h).
const FUNC: u32 = 12;

/// The ids of functions of the kernel, in the order of their names. One pass for all: the file has 100,000
/// types and more, and a kernel that is emulated takes its time.
pub fn functions(names: &[&str]) -> Result<Vec<u32>> {
    let data = fs::read(PATH).with_context(|| format!("reading {PATH}"))?;
    let found = find(&data, names).with_context(|| format!("{PATH} is cut short"))?;
    names
        .iter()
        .zip(found)
        .map(|(name, id)| id.with_context(|| format!("{PATH} has no function {name}")))
        .collect()
}

fn find(data: &[u8], names: &[&str]) -> Option<Vec<Option<u32>>> {
    let field = |at| word(data, at).and_then(|value| usize::try_from(value).ok());
    let (header, strings) = (field(4)?, field(16)?);
    let start = header + field(8)?;
    let types = data.get(start..start + field(12)?)?;
    let strings = data.get(header + strings..)?;
    let mut found = vec![None; names.len()];
    // Id 0 is void, which is in no table.
    let (mut at, mut id) = (0, 1);
    while at < types.len() {
        let info = word(types, at + 4)?;
        let kind = (info >> 24) & 0x1f;
        if kind == FUNC {
            let text = strings.get(usize::try_from(word(types, at)?).ok()?..)?;
            for (found, name) in found.iter_mut().zip(names) {
                let rest = text.strip_prefix(name.as_bytes());
                if rest.is_some_and(|rest| rest.first() == Some(&0)) {
                    *found = Some(id);
                }
            }
        }
        at += 12 + tail(kind, usize::try_from(info & 0xffff).ok()?);
        id += 1;
    }
    Some(found)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)?
        .try_into()
        .ok()
        .map(u32::from_ne_bytes)
}

/// Bytes behind a type's header, by its kind and number of members.
const fn tail(kind: u32, members: usize) -> usize {
    match kind {
        // INT, VAR and DECL_TAG.
        1 | 14 | 17 => 4,
        // ARRAY.
        3 => 12,
        // STRUCT, UNION, DATASEC and ENUM64.
        4 | 5 | 15 | 19 => 12 * members,
        // ENUM and FUNC_PROTO.
        6 | 13 => 8 * members,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_found_behind_other_types() {
        let words: [u32; 13] = [
            // A struct of one member, a type of that name, and the function.
            1,
            (4 << 24) | 1,
            4,
            1,
            1,
            0, //
            1,
            8 << 24,
            1, //
            1,
            12 << 24,
            0, //
            0,
        ];
        let types: Vec<u8> = words[..12]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let strings = b"\0open\0opened\0";
        let header = [24, 0, types.len(), types.len(), strings.len()];
        let mut data = vec![0x9f, 0xeb, 1, 0];
        for field in header {
            data.extend(u32::try_from(field).unwrap().to_ne_bytes());
        }
        data.extend(types);
        data.extend(strings);
        let found = find(&data, &["ope", "open", "opened", "open"]);
        assert_eq!(found, Some(vec![None, Some(3), None, Some(3)]));
    }
}
