//! The tile unit in software, for tests on CPUs without one: a handler of SIGILL decodes the AMX instruction that the CPU
//! refused, does what Intel's manual says on the tiles of the thread, and goes on behind it.
//!
//! An instruction that a real unit would refuse as well (bad configuration, tiles whose sizes do not fit) ends the process
//! with a message. Nothing here allocates: the handler may interrupt any code.

use std::cell::RefCell;
use std::io;
use std::sync::Once;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};

/// Bytes of a row and rows of a tile in palette 1.
const ROW: usize = 64;
const ROWS: usize = 16;
const TILES: usize = 8;

/// The state of the unit as one thread sees it.
struct Unit {
    /// As `ldtilecfg` reads it: palette, start row, bytes per row at 16, rows at 48. All zero: not configured.
    config: [u8; 64],
    tiles: [[[u8; ROW]; ROWS]; TILES],
}

/// Why a real unit would refuse the instruction.
type Refusal = &'static str;

const CLEAR: [[[u8; ROW]; ROWS]; TILES] = [[[0; ROW]; ROWS]; TILES];

thread_local! {
    static UNIT: RefCell<Unit> = const { RefCell::new(Unit { config: [0; 64], tiles: CLEAR }) };
}

static INSTALLED: Once = Once::new();

/// Makes AMX instructions work in this process, slowly; from then on the tier `amx-int8` is available in it.
pub fn emulate_tiles() {
    INSTALLED.call_once(install);
}

/// Whether [`emulate_tiles`] has been called.
pub(crate) fn is_installed() -> bool {
    INSTALLED.is_completed()
}

/// Whether this thread has emulated tiles that it should have released.
#[cfg(test)]
pub(crate) fn holds_tiles() -> bool {
    UNIT.with_borrow(|unit| unit.config[0] != 0)
}

impl Unit {
    fn rows(&self, tile: usize) -> usize {
        self.config[48 + tile].into()
    }

    /// Bytes of a row.
    fn width(&self, tile: usize) -> usize {
        u16::from_le_bytes([self.config[16 + 2 * tile], self.config[17 + 2 * tile]]).into()
    }

    fn configure(&mut self, config: [u8; 64]) -> Result<(), Refusal> {
        *self = Unit { config: [0; 64], tiles: CLEAR };
        if config[0] == 0 {
            return Ok(());
        }
        let next = Unit { config, tiles: CLEAR };
        let reserved = [&config[2..16], &config[32..48], &config[56..64]];
        if config[0] != 1 {
            return Err("a palette other than 1");
        }
        if reserved.into_iter().flatten().any(|&b| b != 0) {
            return Err("reserved bytes of a configuration that are not zero");
        }
        for tile in 0..TILES {
            if next.rows(tile) > ROWS || next.width(tile) > ROW {
                return Err("a tile of more than 16 rows of 64 bytes");
            }
            if (next.rows(tile) == 0) != (next.width(tile) == 0) {
                return Err("a tile with rows but no columns, or columns but no rows");
            }
        }
        *self = next;
        Ok(())
    }

    fn check(&self, tile: usize) -> Result<(), Refusal> {
        match (self.config[0], self.rows(tile)) {
            (0, _) => Err("tiles that are not configured"),
            (_, 0) => Err("a tile without rows"),
            _ => Ok(()),
        }
    }

    /// # Safety
    /// What a tile load needs: readable rows, as many and as wide as the tile's.
    unsafe fn load(&mut self, tile: usize, base: u64, stride: u64) -> Result<(), Refusal> {
        self.check(tile)?;
        let (rows, width, start) = (self.rows(tile), self.width(tile), usize::from(self.config[1]));
        for (row, into) in self.tiles[tile].iter_mut().enumerate().skip(start) {
            *into = [0; ROW];
            if row < rows {
                let from = base.wrapping_add(stride.wrapping_mul(row as u64)) as *const u8;
                // SAFETY: the interrupted program may read this row; if not, it faults here as it would there.
                unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), width) };
            }
        }
        self.config[1] = 0;
        Ok(())
    }

    /// # Safety
    /// What a tile store needs: writable rows, as many and as wide as the tile's.
    unsafe fn store(&mut self, tile: usize, base: u64, stride: u64) -> Result<(), Refusal> {
        self.check(tile)?;
        let start = usize::from(self.config[1]);
        for row in start..self.rows(tile) {
            let to = base.wrapping_add(stride.wrapping_mul(row as u64)) as *mut u8;
            // SAFETY: the interrupted program may write this row; if not, it faults here as it would there.
            unsafe { to.copy_from_nonoverlapping(self.tiles[tile][row].as_ptr(), self.width(tile)) };
        }
        self.config[1] = 0;
        Ok(())
    }

    fn zero(&mut self, tile: usize) -> Result<(), Refusal> {
        self.check(tile)?;
        self.tiles[tile] = CLEAR[0];
        Ok(())
    }

    /// `c[m][n] += sum of a[m][4k + i] * b[k][4n + i]`, wrapping.
    fn multiply(&mut self, [c, a, b]: [usize; 3], signs: [bool; 2]) -> Result<(), Refusal> {
        self.check_product(c, a, b)?;
        let extend = |byte: u8, signed: bool| if signed { i32::from(byte as i8) } else { i32::from(byte) };
        let mut sums = CLEAR[0];
        for (m, row) in sums.iter_mut().enumerate().take(self.rows(c)) {
            let (left, olds) = (&self.tiles[a][m], &self.tiles[c][m]);
            for n in (0..self.width(c)).step_by(4) {
                let mut sum = i32::from_le_bytes([olds[n], olds[n + 1], olds[n + 2], olds[n + 3]]);
                for k in (0..self.width(a)).step_by(4) {
                    let right = &self.tiles[b][k / 4];
                    let product = |i| extend(left[k + i], signs[0]) * extend(right[n + i], signs[1]);
                    sum = (0..4).fold(sum, |sum, i| sum.wrapping_add(product(i)));
                }
                row[n..n + 4].copy_from_slice(&sum.to_le_bytes());
            }
        }
        self.tiles[c] = sums;
        self.config[1] = 0;
        Ok(())
    }

    fn check_product(&self, c: usize, a: usize, b: usize) -> Result<(), Refusal> {
        for tile in [c, a, b] {
            self.check(tile)?;
            if !self.width(tile).is_multiple_of(4) {
                return Err("a factor whose rows are not whole groups of four");
            }
        }
        if c == a || c == b || a == b {
            return Err("a product of a tile with itself");
        }
        if self.rows(c) != self.rows(a) || self.width(c) != self.width(b) || self.width(a) / 4 != self.rows(b) {
            return Err("a product of tiles whose sizes do not fit");
        }
        Ok(())
    }

    /// # Safety
    /// The instruction is about to run in the program whose registers `register` gives.
    unsafe fn execute(&mut self, i: &Instruction, register: impl Fn(Register) -> u64) -> Result<(), Refusal> {
        let scaled = |r| register(r).wrapping_mul(i.memory_index_scale().into());
        // Instructions on tiles take the index register for the distance of rows.
        let (base, stride) = match i.is_ip_rel_memory_operand() {
            true => (i.memory_displacement64(), 0),
            false => (register(i.memory_base()).wrapping_add(i.memory_displacement64()), scaled(i.memory_index())),
        };
        let config = base.wrapping_add(stride) as *mut [u8; 64];
        let [first, second, third] = [i.op0_register(), i.op1_register(), i.op2_register()].map(tile_number);
        match i.mnemonic() {
            // SAFETY: as far as the interrupted program may read there; otherwise it faults as it would.
            Mnemonic::Ldtilecfg => self.configure(unsafe { config.read_unaligned() }),
            Mnemonic::Sttilecfg => {
                // SAFETY: as far as the interrupted program may write there; otherwise it faults as it would.
                unsafe { config.write_unaligned(self.config) };
                Ok(())
            }
            Mnemonic::Tilerelease => self.configure([0; 64]),
            Mnemonic::Tilezero => self.zero(first),
            // SAFETY: the address is that of the interrupted program's load.
            Mnemonic::Tileloadd | Mnemonic::Tileloaddt1 => unsafe { self.load(first, base, stride) },
            // SAFETY: the address is that of the interrupted program's store.
            Mnemonic::Tilestored => unsafe { self.store(second, base, stride) },
            Mnemonic::Tdpbssd => self.multiply([first, second, third], [true, true]),
            Mnemonic::Tdpbsud => self.multiply([first, second, third], [true, false]),
            Mnemonic::Tdpbusd => self.multiply([first, second, third], [false, true]),
            Mnemonic::Tdpbuud => self.multiply([first, second, third], [false, false]),
            _ => Err("an instruction that neither the CPU nor the emulator knows"),
        }
    }
}

/// The index of a tile register; of any other, a number that is not used.
fn tile_number(register: Register) -> usize {
    if register.is_tmm() { register.number() } else { 0 }
}

fn install() {
    // The decoder builds its tables at first use, which allocates.
    decode(&[0x90], 0);
    // SAFETY: a plain structure of numbers; all zero means no flags and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_illegal_instruction;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and lives as long as the process.
    let status = unsafe { libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
}

fn decode(code: &[u8], ip: u64) -> Instruction {
    Decoder::with_ip(64, code, ip, DecoderOptions::NONE).decode()
}

/// The instruction at `ip`, read without touching the next page unless the instruction reaches into it.
///
/// # Safety
/// The CPU has just decoded an instruction there.
unsafe fn instruction_at(ip: u64) -> Instruction {
    const LONGEST: usize = 15;
    let here = LONGEST.min(4096 - (ip % 4096) as usize);
    // SAFETY: these bytes are on the page of the instruction's first byte.
    let instruction = decode(unsafe { std::slice::from_raw_parts(ip as *const u8, here) }, ip);
    if !instruction.is_invalid() {
        return instruction;
    }
    // SAFETY: an instruction that is not complete on its first page continues on the next.
    decode(unsafe { std::slice::from_raw_parts(ip as *const u8, LONGEST) }, ip)
}

extern "C" fn on_illegal_instruction(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the state of the interrupted thread, which is ours to change until the return.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let ip = registers[libc::REG_RIP as usize] as u64;
    // SAFETY: the CPU refused the instruction at this address.
    let instruction = unsafe { instruction_at(ip) };
    let value = |register| greg(register).map_or(0, |n| registers[n] as u64);
    // SAFETY: the instruction is the one that comes next, with these registers.
    let done = UNIT.with_borrow_mut(|unit| unsafe { unit.execute(&instruction, value) });
    match done {
        Ok(()) => registers[libc::REG_RIP as usize] += instruction.len() as libc::greg_t,
        Err(refusal) => refuse(refusal),
    }
}

/// Where the context of a signal has a general register.
fn greg(register: Register) -> Option<usize> {
    const ORDER: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    register.is_gpr64().then(|| ORDER[register.number()] as usize)
}

fn refuse(refusal: Refusal) -> ! {
    for part in ["illegal instruction: ", refusal, "\n"] {
        // SAFETY: writes the bytes of a string.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    std::process::abort()
}

#[cfg(test)]
mod tests;
