//! Just enough of `bpf(2)` to run a program on a frame many times, and to write two that only a bench needs:
//! one that does nothing, and one that makes every run another connection.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use nix::libc;

/// `TC_ACT_UNSPEC`: what an attached program returns to let a packet on.
pub const NEXT: u32 = u32::MAX;
/// `TC_ACT_SHOT`
pub const SHOT: u32 = 2;

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const MAP_TYPE_PROG_ARRAY: u32 = 3;
const MAP_TYPE_LRU_HASH: u32 = 9;

/// Offsets in `__sk_buff`.
const SKB_DATA: i16 = 76;
const SKB_DATA_END: i16 = 80;
const MAP_LOOKUP: i32 = 1;
const TAIL_CALL: i32 = 12;

/// How long each of many runs took, and what the last one returned.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    pub returned: u32,
    /// Nanoseconds per run.
    pub each: f64,
}

/// Runs a TC program `repeat` times on one frame, as if received on loopback. What it writes to the frame
/// stays for the next run.
pub fn run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<Runs> {
    /// `struct { ... } test` of `union bpf_attr`.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        program: u32,
        returned: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context: [u64; 4],
    }
    let mut attributes = Attributes {
        program: number(program)?,
        data_size_in: u32::try_from(frame.len())?,
        data_in: frame.as_ptr() as u64,
        repeat,
        ..Attributes::default()
    };
    let begun = Instant::now();
    // SAFETY: the frame outlives the call, and nothing is to be written out.
    unsafe { bpf(PROG_TEST_RUN, &mut attributes) }.context("BPF_PROG_TEST_RUN")?;
    // The kernel's own figure is in whole nanoseconds; over enough runs the clock around them says more.
    Ok(Runs { returned: attributes.returned, each: begun.elapsed().as_secs_f64() * 1e9 / f64::from(repeat) })
}

/// Returns at once: what a run costs without any program of ours.
pub fn nothing() -> Result<OwnedFd> {
    load(&[mov_imm(0, -1), EXIT])
}

/// Looks one key of `key_size` bytes (a multiple of 8, at most 64) up in a table like those of connections, and
/// finds it: the least that following a connection can cost on this machine.
pub fn lookup(key_size: u16, entries: u32) -> Result<OwnedFd> {
    let map = create(MAP_TYPE_LRU_HASH, key_size.into(), 64, entries)?;
    put(map.as_fd(), &[0; 64], &[0; 64])?;
    let [address, address_high] = map_address(1, map.as_raw_fd());
    let offset = -key_size.cast_signed();
    let mut program = vec![mov_imm(6, 0)];
    program.extend((offset..0).step_by(8).map(|at| store_double(10, 6, at)));
    program.extend([mov(2, 10), add_imm(2, offset.into()), address, address_high, call(MAP_LOOKUP)]);
    // Found: -1, NEXT. Otherwise 0, which is neither verdict.
    program.extend([mov(1, 0), mov_imm(0, 0), jump_if_equal(1, 0, 1), mov_imm(0, -1), EXIT]);
    load(&program) // the program holds the map
}

/// Adds one to the 16 bits at `offset` of the frame and goes on with the program behind it.
pub struct Renumber {
    program: OwnedFd,
    _next: OwnedFd,
}

impl Renumber {
    pub fn before(next: BorrowedFd<'_>, offset: u8) -> Result<Self> {
        let slot = one_program(next)?;
        let [map, map_high] = map_address(2, slot.as_raw_fd());
        let offset = i16::from(offset);
        let program = load(&[
            mov(6, 1),
            load_word(2, 1, SKB_DATA),
            load_word(3, 1, SKB_DATA_END),
            mov(4, 2),
            add_imm(4, i32::from(offset) + 2),
            jump_if_greater(4, 3, 8),
            load_half(5, 2, offset),
            add_imm(5, 1),
            store_half(2, 5, offset),
            mov(1, 6),
            map,
            map_high,
            mov_imm(3, 0),
            call(TAIL_CALL),
            mov_imm(0, 0), // neither NEXT nor SHOT: the frame was too short, or nothing was behind
            EXIT,
        ])?;
        Ok(Self { program, _next: slot })
    }
}

impl AsFd for Renumber {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

fn load(instructions: &[u64]) -> Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        program_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u64; 2],
        kernel_version: u32,
        flags: u32,
    }
    let mut attributes = Attributes {
        program_type: PROG_TYPE_SCHED_CLS,
        count: u32::try_from(instructions.len())?,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..Attributes::default()
    };
    // SAFETY: instructions and licence outlive the call.
    let fd =
        unsafe { bpf(PROG_LOAD, &mut attributes) }.context("the kernel refuses a program of the bench")?;
    owned(fd)
}

/// A program array with this one program.
fn one_program(program: BorrowedFd<'_>) -> Result<OwnedFd> {
    let map = create(MAP_TYPE_PROG_ARRAY, 4, 4, 1)?;
    put(map.as_fd(), &0_u32.to_ne_bytes(), &number(program)?.to_ne_bytes())?;
    Ok(map)
}

/// Sizes in bytes.
fn create(map_type: u32, key_size: u32, value_size: u32, max_entries: u32) -> Result<OwnedFd> {
    let mut shape = [map_type, key_size, value_size, max_entries, 0, 0];
    // SAFETY: the head of `union bpf_attr` for this command, without pointers.
    owned(unsafe { bpf(MAP_CREATE, &mut shape) }.context("the kernel refuses a map of the bench")?)
}

/// Key and value must be at least as large as the map's.
fn put(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> Result<()> {
    let mut element = [u64::from(number(map)?), key.as_ptr() as u64, value.as_ptr() as u64, 0];
    // SAFETY: laid out as for this command; key and value are large enough, and outlive the call.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut element) }.context("cannot fill a map of the bench")?;
    Ok(())
}

/// # Safety
/// `attributes` is laid out as `union bpf_attr` is for `command`, and its addresses are valid for it.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the caller's promise; the kernel reads and writes no more than the size given.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(answer).map_err(io::Error::other)
}

fn owned(fd: RawFd) -> Result<OwnedFd> {
    ensure!(fd >= 0, "the kernel gave no descriptor");
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> Result<u32> {
    Ok(u32::try_from(fd.as_raw_fd())?)
}

// `struct bpf_insn` as one word, on a little-endian machine: code, registers, offset, immediate.
const EXIT: u64 = 0x95;

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (destination as u64) << 8
        | (source as u64) << 12
        | (offset.cast_unsigned() as u64) << 16
        | (immediate.cast_unsigned() as u64) << 32
}

const fn mov(destination: u8, source: u8) -> u64 {
    instruction(0xbf, destination, source, 0, 0)
}

const fn mov_imm(destination: u8, value: i32) -> u64 {
    instruction(0xb7, destination, 0, 0, value)
}

const fn add_imm(destination: u8, value: i32) -> u64 {
    instruction(0x07, destination, 0, 0, value)
}

const fn load_word(destination: u8, source: u8, offset: i16) -> u64 {
    instruction(0x61, destination, source, offset, 0)
}

const fn load_half(destination: u8, source: u8, offset: i16) -> u64 {
    instruction(0x69, destination, source, offset, 0)
}

const fn store_half(destination: u8, source: u8, offset: i16) -> u64 {
    instruction(0x6b, destination, source, offset, 0)
}

const fn store_double(destination: u8, source: u8, offset: i16) -> u64 {
    instruction(0x7b, destination, source, offset, 0)
}

const fn jump_if_equal(left: u8, value: i32, over: i16) -> u64 {
    instruction(0x15, left, 0, over, value)
}

const fn jump_if_greater(left: u8, right: u8, over: i16) -> u64 {
    instruction(0x2d, left, right, over, 0)
}

const fn call(helper: i32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

/// Two words; register 1 as source marks the immediate as a map's descriptor.
const fn map_address(destination: u8, map: RawFd) -> [u64; 2] {
    [instruction(0x18, destination, 1, 0, map), 0]
}

#[cfg(test)]
mod tests {
    use super::{add_imm, call, instruction, jump_if_greater, map_address, mov_imm};

    /// As `llvm-objdump` shows them.
    #[test]
    fn instructions_are_encoded_as_the_kernel_reads_them() {
        assert_eq!(mov_imm(0, -1), u64::from_le_bytes([0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]));
        assert_eq!(add_imm(4, 36), u64::from_le_bytes([0x07, 4, 0, 0, 36, 0, 0, 0]));
        assert_eq!(jump_if_greater(4, 3, 8), u64::from_le_bytes([0x2d, 0x34, 8, 0, 0, 0, 0, 0]));
        assert_eq!(call(12), u64::from_le_bytes([0x85, 0, 0, 0, 12, 0, 0, 0]));
        assert_eq!(map_address(2, 7), [u64::from_le_bytes([0x18, 0x12, 0, 0, 7, 0, 0, 0]), 0]);
        assert_eq!(instruction(0x69, 5, 2, -2, 0), u64::from_le_bytes([0x69, 0x25, 0xfe, 0xff, 0, 0, 0, 0]));
    }
}
