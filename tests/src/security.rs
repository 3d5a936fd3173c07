//! BPF programs that refuse in the place of a security module: they replace the answer of one of the kernel's
//! `security_*` functions (`BPF_MODIFY_RETURN`), which any kernel with BPF trampolines allows, whatever
//! modules it was booted with.
//!
//! Each acts on listeners of one port alone, which nobody else on the host should have, and goes when its
//! value is dropped.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};

use crate::{
    btf,
    program::{self, Purpose, bpf, lift_limit},
};

/// Programs attached for as long as this lives.
#[derive(Debug)]
pub struct Refusing {
    _links: Vec<OwnedFd>,
}

/// Refuses every SYN to a listener on `port`, as `security_inet_conn_request` would. `None` where programs
/// cannot be attached to functions.
pub fn refuse_requests(port: u16) -> Result<Option<Refusing>> {
    let refuses = [
        load_u64(R6, R1),
        load_port(R7, R6),
        set(R0, -libc::EACCES),
        skip_if_equal(R7, i32::from(port), 1),
        set(R0, 0),
        EXIT.to_vec(),
    ];
    attach(&[(
        BPF_MODIFY_RETURN,
        "security_inet_conn_request",
        refuses.concat(),
    )])
}

/// Makes no connection of the next `clients` third ACKs to a listener on `port`, as if there were no memory
/// for its socket (`sk_prot_alloc` asks `security_sk_alloc`). `None` as above.
pub fn refuse_children(port: u16, clients: u32) -> Result<Option<Refusing>> {
    // Not `tcp_v4/v6_syn_recv_sock`, whose seven parameters no trampoline of 6.1 takes.
    const FUNCTION: &str = "tcp_check_req";
    // Whether this CPU is looking at a third ACK for the listener: bottom halves are off from entry to exit.
    let looking = create_map(BPF_MAP_TYPE_PERCPU_ARRAY).context("making a per-CPU array")?;
    let count = create_map(BPF_MAP_TYPE_ARRAY).context("making an array")?;
    let begins = [
        load_u64(R6, R1),
        load_port(R7, R6),
        look_up(&looking),
        set(R1, 1),
        skip_if_equal(R7, i32::from(port), 1),
        set(R1, 0),
        store_u64(R0, R1),
        RETURN_0.to_vec(),
    ];
    let ends = [
        look_up(&looking),
        set(R1, 0),
        store_u64(R0, R1),
        RETURN_0.to_vec(),
    ];
    let refuses = [
        look_up(&looking),
        load_u64(R1, R0),
        skip_if_equal(R1, 1, RETURN),
        RETURN_0.to_vec(),
        look_up(&count),
        load_u64(R1, R0),
        skip_if_less(R1, i32::try_from(clients)?, RETURN),
        RETURN_0.to_vec(),
        add(R1, 1),
        store_u64(R0, R1),
        set(R0, -libc::ENOMEM),
        EXIT.to_vec(),
    ];
    attach(&[
        (BPF_TRACE_FENTRY, FUNCTION, begins.concat()),
        (BPF_TRACE_FEXIT, FUNCTION, ends.concat()),
        (BPF_MODIFY_RETURN, "security_sk_alloc", refuses.concat()),
    ])
}

/// Commands and types of bpf(2) (include/uapi/linux/bpf.h).
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PERCPU_ARRAY: u32 = 6;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_FENTRY: u32 = 24;
const BPF_TRACE_FEXIT: u32 = 25;
const BPF_MODIFY_RETURN: u32 = 26;

/// `union bpf_attr` for `BPF_MAP_CREATE`, as far as it is not 0.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The same for `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
#[derive(Default)]
struct RawTracepointOpen {
    name: u64,
    prog_fd: u32,
    pad: u32,
}

/// Attaches programs by type of attachment and function, in this order.
fn attach(programs: &[(u32, &str, Vec<u64>)]) -> Result<Option<Refusing>> {
    let names: Vec<&str> = programs.iter().map(|(_, function, _)| *function).collect();
    let mut links = Vec::new();
    for ((attach_type, function, instructions), id) in programs.iter().zip(btf::functions(&names)?)
    {
        let purpose = Purpose {
            prog_type: BPF_PROG_TYPE_TRACING,
            attach_type: *attach_type,
            function: id,
        };
        let attached = program::load(purpose, instructions).and_then(|program| open(&program));
        match attached {
            Ok(link) => links.push(link),
            Err(error) if is_not_for_here(&error) => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("attaching a program to {function}"));
            }
        }
    }
    Ok(Some(Refusing { _links: links }))
}

/// Without trampolines, or where a host forbids them. `ENOTSUPP` is the kernel's own, and in no header here.
fn is_not_for_here(error: &io::Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EOPNOTSUPP | ENOTSUPP)
    )
}

fn open(program: &OwnedFd) -> io::Result<OwnedFd> {
    let mut attr = RawTracepointOpen {
        prog_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        ..RawTracepointOpen::default()
    };
    bpf(BPF_RAW_TRACEPOINT_OPEN, &mut attr)
}

/// One value of 64 bits, which begins as 0.
fn create_map(map_type: u32) -> io::Result<OwnedFd> {
    lift_limit();
    let mut attr = MapCreate {
        map_type,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
    };
    bpf(BPF_MAP_CREATE, &mut attr)
}

/// Registers: the result, arguments, what calls preserve, and the frame.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R6: u8 = 6;
const R7: u8 = 7;
const FRAME: u8 = 10;

/// `exit`, and `r0 = 0; exit`, with its length in jumps.
const EXIT: [u64; 1] = [instruction(0x95, 0, 0, 0, 0)];
const RETURN_0: [u64; 2] = [instruction(0xb7, R0, 0, 0, 0), EXIT[0]];
const RETURN: i16 = 2;

/// `struct bpf_insn`.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | ((to | (from << 4)) as u64) << 8
        | (offset.cast_unsigned() as u64) << 16
        | (immediate.cast_unsigned() as u64) << 32
}

/// `to = value`.
fn set(to: u8, value: i32) -> Vec<u64> {
    vec![instruction(0xb7, to, 0, 0, value)]
}

/// `to += value`.
fn add(to: u8, value: i32) -> Vec<u64> {
    vec![instruction(0x07, to, 0, 0, value)]
}

/// `to = *(u64 *)from`: the first argument of a function, or a map's value.
fn load_u64(to: u8, from: u8) -> Vec<u64> {
    vec![instruction(0x79, to, from, 0, 0)]
}

/// `*(u64 *)to = from`.
fn store_u64(to: u8, from: u8) -> Vec<u64> {
    vec![instruction(0x7b, to, from, 0, 0)]
}

/// `to = sk->skc_num`, which lies at the same place in every kernel since 4.x.
fn load_port(to: u8, sk: u8) -> Vec<u64> {
    const SKC_NUM: i16 = 14;
    vec![instruction(0x69, to, sk, SKC_NUM, 0)]
}

/// `if value == other, skip`.
fn skip_if_equal(value: u8, other: i32, instructions: i16) -> Vec<u64> {
    vec![instruction(0x15, value, 0, instructions, other)]
}

/// `if value < other, skip`.
fn skip_if_less(value: u8, other: i32, instructions: i16) -> Vec<u64> {
    vec![instruction(0xa5, value, 0, instructions, other)]
}

/// `r0 = &map[0]`; returns 0 from the program when there is none, which the verifier cannot know.
fn look_up(map: &OwnedFd) -> Vec<u64> {
    const PSEUDO_MAP_FD: u8 = 1;
    const MAP_LOOKUP_ELEM: i32 = 1;
    const KEY: i16 = -4;
    let mut instructions = vec![
        instruction(0x62, FRAME, 0, KEY, 0),
        instruction(0x18, R1, PSEUDO_MAP_FD, 0, map.as_raw_fd()),
        0,
        instruction(0xbf, R2, FRAME, 0, 0),
        instruction(0x07, R2, 0, 0, KEY.into()),
        instruction(0x85, 0, 0, 0, MAP_LOOKUP_ELEM),
        instruction(0x55, R0, 0, RETURN, 0),
    ];
    instructions.extend(RETURN_0);
    instructions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_laid_out_as_the_kernel_reads_them() {
        assert_eq!(RETURN_0, [0xb7, 0x95]);
        assert_eq!(load_port(R7, R6), [0x000e_6769]);
        assert_eq!(set(R0, -13), [0xffff_fff3_0000_00b7]);
        assert_eq!(skip_if_equal(R7, 8080, 2), [0x1f90_0002_0715]);
    }
}
