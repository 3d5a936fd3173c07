//! The functions of an eBPF object: their instructions, stack and calls. Knows BPF's encoding
//! (Documentation/bpf/standardization/instruction-set.rst) as far as the rules of `check-object`
//! need it; whether a program is safe is the verifier's to say.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, bail};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex,
    SectionKind, SymbolKind,
};

/// Bytes of one instruction slot; a 64-bit immediate takes two.
const SLOT_SIZE: usize = 8;

/// The section of functions that programs share; every other one with code holds programs.
const SHARED_SECTION: &str = ".text";

/// The frame pointer.
const R10: usize = 10;

/// The kernel rounds each frame up to this (`check_max_stack_depth` in kernel/bpf/verifier.c).
const FRAME_ALIGNMENT: u32 = 32;

/// One function of the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Whether it is a program, not a function that programs call.
    pub(crate) is_program: bool,
    /// Instruction slots, as the kernel counts them.
    pub(crate) instructions: u32,
    /// Bytes below the frame pointer that it touches.
    pub(crate) stack_bytes: u32,
    /// Functions it calls or takes the address of; undefined ones are named too.
    pub(crate) calls: BTreeSet<String>,
}

/// All functions of an object, by name.
#[derive(Debug, Default)]
pub(crate) struct Functions(BTreeMap<String, Function>);

impl Functions {
    pub(crate) fn new(functions: impl IntoIterator<Item = Function>) -> Self {
        Self(
            functions
                .into_iter()
                .map(|function| (function.name.clone(), function))
                .collect(),
        )
    }

    /// Reads the functions of the ELF `object`.
    pub(crate) fn parse(object: &[u8]) -> Result<Self> {
        let file = object::File::parse(object).context("parsing the eBPF object")?;
        let symbols = FunctionSymbols::of(&file)?;
        let mut functions = Vec::new();
        for section in file.sections() {
            if section.kind() != SectionKind::Text {
                continue;
            }
            let code = section.data()?;
            let relocated = relocated_calls(&file, &section, code, &symbols)?;
            for (start, size, name) in symbols.in_section(section.index()) {
                let body = code
                    .get(start..start + size)
                    .with_context(|| format!("{name} reaches past its section"))?;
                let slots = decode(body);
                functions.push(Function {
                    name: name.to_owned(),
                    is_program: section.name()? != SHARED_SECTION,
                    instructions: u32::try_from(size / SLOT_SIZE)?,
                    stack_bytes: stack_bytes(&slots),
                    calls: calls(start, &slots, section.index(), &relocated, &symbols)?,
                });
            }
        }
        Ok(Self::new(functions))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Function> {
        self.0.values()
    }

    pub(crate) fn programs(&self) -> impl Iterator<Item = &Function> {
        self.iter().filter(|function| function.is_program)
    }

    /// Instructions of `program` and of each function it reaches: what the kernel loads for it.
    pub(crate) fn loaded_instructions(&self, program: &Function) -> u32 {
        let mut reached = BTreeSet::new();
        let mut pending = vec![program.name.as_str()];
        while let Some(name) = pending.pop() {
            if let Some(function) = self.0.get(name)
                && reached.insert(name)
            {
                pending.extend(function.calls.iter().map(String::as_str));
            }
        }
        reached.iter().map(|name| self.0[*name].instructions).sum()
    }

    /// The deepest stack of `program`, all frames of the deepest chain of calls together.
    pub(crate) fn chain_stack_bytes(&self, program: &Function) -> Result<u32> {
        self.deepest(program, &mut Vec::new())
    }

    fn deepest<'a>(&'a self, function: &'a Function, chain: &mut Vec<&'a str>) -> Result<u32> {
        if chain.contains(&function.name.as_str()) {
            bail!(
                "{} calls itself, by way of {}",
                function.name,
                chain.join(", ")
            );
        }
        chain.push(&function.name);
        let mut deepest_callee = 0;
        for callee in function.calls.iter().filter_map(|name| self.0.get(name)) {
            deepest_callee = deepest_callee.max(self.deepest(callee, chain)?);
        }
        chain.pop();
        // A leaf program's own frame is held against the limit unrounded.
        let own = if chain.is_empty() && deepest_callee == 0 {
            function.stack_bytes
        } else {
            function
                .stack_bytes
                .max(1)
                .next_multiple_of(FRAME_ALIGNMENT)
        };
        Ok(own + deepest_callee)
    }
}

/// Where functions begin: (section, byte offset) to (size, name).
struct FunctionSymbols<'a>(BTreeMap<(usize, usize), (usize, &'a str)>);

impl<'a> FunctionSymbols<'a> {
    fn of(file: &object::File<'a>) -> Result<Self> {
        let mut starts = BTreeMap::new();
        for symbol in file.symbols() {
            if symbol.kind() == SymbolKind::Text
                && let Some(section) = symbol.section_index()
            {
                let start = usize::try_from(symbol.address())?;
                let size = usize::try_from(symbol.size())?;
                starts.insert((section.0, start), (size, symbol.name()?));
            }
        }
        Ok(Self(starts))
    }

    fn in_section(&self, section: SectionIndex) -> impl Iterator<Item = (usize, usize, &'a str)> {
        self.0
            .range((section.0, 0)..=(section.0, usize::MAX))
            .map(|((_, start), (size, name))| (*start, *size, *name))
    }

    fn at(&self, section: SectionIndex, offset: i64) -> Option<&'a str> {
        let offset = usize::try_from(offset).ok()?;
        self.0.get(&(section.0, offset)).map(|(_, name)| *name)
    }
}

/// Functions named by relocations of `section`, by the byte offset of the instruction.
fn relocated_calls(
    file: &object::File<'_>,
    section: &object::Section<'_, '_>,
    code: &[u8],
    symbols: &FunctionSymbols<'_>,
) -> Result<HashMap<usize, String>> {
    let mut calls = HashMap::new();
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            continue;
        };
        let offset = usize::try_from(offset)?;
        let symbol = file.symbol_by_index(index)?;
        let Some(target_section) = symbol.section_index() else {
            // Undefined: whatever it is, it has to be named.
            calls.insert(offset, symbol.name()?.to_owned());
            continue;
        };
        let is_code = file.section_by_index(target_section)?.kind() == SectionKind::Text;
        let Some(slot) = code.get(offset..offset + SLOT_SIZE).filter(|_| is_code) else {
            continue;
        };
        let slot = Slot::decode(slot);
        // A call counts slots from the one after it; an address counts bytes.
        let addend = if slot.is_call() {
            (i64::from(slot.immediate) + 1) * i64::try_from(SLOT_SIZE)?
        } else {
            i64::from(slot.immediate)
        };
        let target = i64::try_from(symbol.address())? + addend;
        let name = symbols
            .at(target_section, target)
            .with_context(|| format!("a relocation at {offset} points into no function"))?;
        calls.insert(offset, name.to_owned());
    }
    Ok(calls)
}

fn calls(
    start: usize,
    slots: &[Slot],
    section: SectionIndex,
    relocated: &HashMap<usize, String>,
    symbols: &FunctionSymbols<'_>,
) -> Result<BTreeSet<String>> {
    let mut calls = BTreeSet::new();
    for (index, slot) in slots.iter().enumerate() {
        let offset = start + index * SLOT_SIZE;
        if let Some(name) = relocated.get(&offset) {
            if slot.is_call() || slot.is_wide() {
                calls.insert(name.clone());
            }
        } else if slot.is_call() && slot.source == PSEUDO_CALL {
            let target = i64::try_from(offset)?
                + (i64::from(slot.immediate) + 1) * i64::try_from(SLOT_SIZE)?;
            let name = symbols
                .at(section, target)
                .with_context(|| format!("a call at {offset} goes into no function"))?;
            calls.insert(name.to_owned());
        }
    }
    Ok(calls)
}

/// The source register of a call to a function of the object, not to a helper of the kernel.
const PSEUDO_CALL: usize = 1;

/// One instruction slot.
#[derive(Debug, Clone, Copy)]
struct Slot {
    opcode: u8,
    destination: usize,
    source: usize,
    offset: i16,
    immediate: i32,
}

impl Slot {
    const WIDE_LOAD: u8 = 0x18;
    const CALL: u8 = 0x85;
    const MOVE_64: u8 = 0xbf;
    const ADD_64_IMMEDIATE: u8 = 0x07;

    /// `bytes` are those of one slot.
    fn decode(bytes: &[u8]) -> Self {
        Self {
            opcode: bytes[0],
            destination: usize::from(bytes[1] & 0xf),
            source: usize::from(bytes[1] >> 4),
            offset: i16::from_le_bytes([bytes[2], bytes[3]]),
            immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    fn is_call(self) -> bool {
        self.opcode == Self::CALL
    }

    fn is_wide(self) -> bool {
        self.opcode == Self::WIDE_LOAD
    }
}

fn decode(code: &[u8]) -> Vec<Slot> {
    code.chunks_exact(SLOT_SIZE).map(Slot::decode).collect()
}

/// The lowest byte below the frame pointer that `slots` read, write or point to. Follows copies of
/// the frame pointer down the listing, not along jumps: compilers rebuild such a copy in the block
/// that uses it.
fn stack_bytes(slots: &[Slot]) -> u32 {
    let mut frame: [Option<i32>; 16] = [None; 16];
    frame[R10] = Some(0);
    let mut lowest = 0;
    let mut slots = slots.iter();
    while let Some(slot) = slots.next() {
        let class = slot.opcode & 0x07;
        match class {
            0 => {
                frame[slot.destination] = None;
                if slot.is_wide() {
                    slots.next();
                }
            }
            1 => {
                if let Some(base) = frame[slot.source] {
                    lowest = lowest.min(base.saturating_add(slot.offset.into()));
                }
                frame[slot.destination] = None;
            }
            2 | 3 => {
                if let Some(base) = frame[slot.destination] {
                    lowest = lowest.min(base.saturating_add(slot.offset.into()));
                }
            }
            4 | 7 => match slot.opcode {
                Slot::MOVE_64 => frame[slot.destination] = frame[slot.source],
                Slot::ADD_64_IMMEDIATE => {
                    if let Some(base) = &mut frame[slot.destination] {
                        *base = base.saturating_add(slot.immediate);
                        lowest = lowest.min(*base);
                    }
                }
                _ => frame[slot.destination] = None,
            },
            _ => {
                if slot.is_call() {
                    // Calls leave nothing in the argument and result registers.
                    frame[..=5].fill(None);
                }
            }
        }
        frame[R10] = Some(0);
    }
    lowest.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(opcode: u8, destination: usize, source: usize, offset: i16, immediate: i32) -> Slot {
        Slot {
            opcode,
            destination,
            source,
            offset,
            immediate,
        }
    }

    fn function(name: &str, instructions: u32, stack_bytes: u32, calls: &[&str]) -> Function {
        Function {
            name: name.to_owned(),
            is_program: name.starts_with("program"),
            instructions,
            stack_bytes,
            calls: calls.iter().map(|call| (*call).to_owned()).collect(),
        }
    }

    #[test]
    fn slots_are_decoded_as_the_kernel_does() {
        // r2 = *(u64 *)(r10 - 8)
        let slot = Slot::decode(&[0x79, 0xa2, 0xf8, 0xff, 0, 0, 0, 0]);
        assert_eq!((slot.destination, slot.source, slot.offset), (2, 10, -8));
    }

    #[test]
    fn stack_is_the_lowest_access() {
        let slots = [
            slot(0x7b, 10, 1, -16, 0), // *(u64 *)(r10 - 16) = r1
            slot(0x79, 1, 10, -24, 0), // r1 = *(u64 *)(r10 - 24)
            slot(0x79, 3, 1, -400, 0), // r3 = *(u64 *)(r1 - 400): not the stack
        ];
        assert_eq!(stack_bytes(&slots), 24);
    }

    #[test]
    fn copies_of_the_frame_pointer_are_followed() {
        let slots = [
            slot(0xbf, 2, 10, 0, 0),    // r2 = r10
            slot(0x07, 2, 0, 0, -480),  // r2 += -480
            slot(0x7b, 2, 1, -40, 0),   // *(u64 *)(r2 - 40) = r1
            slot(0x85, 0, 0, 0, 1),     // call
            slot(0x7b, 2, 1, -2000, 0), // r2 is something else by now
        ];
        assert_eq!(stack_bytes(&slots), 520);
    }

    #[test]
    fn immediate_of_a_wide_load_is_no_instruction() {
        let slots = [
            slot(0x18, 1, 0, 0, 0),
            // Second half, whose bytes would read as an access.
            slot(0x7b, 10, 1, -500, 0),
        ];
        assert_eq!(stack_bytes(&slots), 0);
    }

    #[test]
    fn shared_functions_count_once_for_each_program() {
        let functions = Functions::new([
            function("program", 100, 8, &["left", "right"]),
            function("left", 20, 0, &["leaf"]),
            function("right", 30, 0, &["leaf"]),
            function("leaf", 5, 0, &[]),
        ]);
        let program = functions.programs().next().unwrap();
        assert_eq!(functions.loaded_instructions(program), 155);
    }

    #[test]
    fn stack_adds_up_along_the_deepest_chain() {
        let functions = Functions::new([
            function("program", 1, 40, &["shallow", "deep"]),
            function("shallow", 1, 8, &[]),
            function("deep", 1, 100, &[]),
        ]);
        let program = functions.programs().next().unwrap();
        assert_eq!(functions.chain_stack_bytes(program).unwrap(), 64 + 128);
    }

    #[test]
    fn recursion_is_an_error() {
        let functions = Functions::new([function("program", 1, 8, &["program"])]);
        let program = functions.programs().next().unwrap();
        assert!(functions.chain_stack_bytes(program).is_err());
    }
}
