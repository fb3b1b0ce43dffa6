//! The limit that kernels are measured against: how many multiply-accumulates one thread can do in a second.
//!
//! Each tier has a loop of its dot products on registers alone, and one with the loads of a matrix product whose data lies in
//! L1. The data is not zeros: with zeros a CPU clocks higher than any model lets it.
//!
//! ```text
//! amx-int8      16 rows x 64 columns, K 384: for every 64 k a tile of a, four tiles of b and four products
//! avx512-vnni    6 rows x 64 columns, K 256: for every 4 k four vectors of b, six broadcasts of a and 24 dot products
//! portable       6 rows x 16 columns, likewise
//! ```
//!
//! A loop is a function of the kernel ABI: `rdx` turns, and at `rdi` the addresses of the tile configuration, a and b. B is a
//! panel of 64 columns as the kernels have it, 256 bytes for every four k; the rows of a lie side by side.

use std::hint::black_box;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};
use vitc_runtime::{CodeMemory, KernelFn};

use crate::{CodegenError, Tier};

/// How long a timed run takes at least: the clock must have settled under the load.
const RUN: Duration = Duration::from_millis(10);
/// Bytes of four k of a panel.
const GROUP: usize = 256;
/// K of the block of tiles; what a panel of 64 columns leaves room for in L1.
const TILE_K: usize = 384;
/// K of the block of vectors.
const VECTOR_K: usize = 256;
/// Rows and vectors of columns of the block of vectors: 24 accumulators.
const BLOCK: (usize, usize) = (6, 4);

/// Multiply-accumulates in a second, of 8-bit numbers, on one thread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// With everything in registers.
    pub registers: f64,
    /// Fed by loads from L1, as in a matrix product.
    pub loaded: f64,
}

/// The peak of a tier, each figure that of the fastest run that fits the time; none for a tier whose dot product of bytes
/// takes more than one instruction.
///
/// # Errors
/// [`CodegenError::Tier`] for a tier that this machine cannot run, or what the system says about memory for the code.
pub fn peak(tier: Tier, time: Duration) -> Result<Option<Peak>, CodegenError> {
    let rate = |block: Block, loaded| Loop::new(block, loaded).map(|l| l.rate(time));
    Block::of(tier.checked()?)
        .map(|block| Ok(Peak { registers: rate(block, false)?, loaded: rate(block, true)? }))
        .transpose()
}

/// What a loop multiplies in a turn.
#[derive(Clone, Copy)]
enum Block {
    Tiles,
    Vectors(&'static Vectors),
}

/// Registers and instructions of one vector length.
struct Vectors {
    first: Register,
    bytes: usize,
    load: Code,
    broadcast: Code,
    dot: Code,
}

const ZMM: Vectors = Vectors {
    first: Register::ZMM0,
    bytes: 64,
    load: Code::EVEX_Vmovdqu32_zmm_k1z_zmmm512,
    broadcast: Code::EVEX_Vpbroadcastd_zmm_k1z_xmmm32,
    dot: Code::EVEX_Vpdpbusd_zmm_k1z_zmm_zmmm512b32,
};

const XMM: Vectors = Vectors {
    first: Register::XMM0,
    bytes: 16,
    load: Code::EVEX_Vmovdqu32_xmm_k1z_xmmm128,
    broadcast: Code::EVEX_Vpbroadcastd_xmm_k1z_xmmm32,
    dot: Code::EVEX_Vpdpbusd_xmm_k1z_xmm_xmmm128b32,
};

impl Block {
    fn of(tier: Tier) -> Option<Block> {
        match tier {
            Tier::AmxInt8 => Some(Block::Tiles),
            Tier::Avx512Vnni => Some(Block::Vectors(&ZMM)),
            Tier::Portable if Tier::Avx512Vnni.missing().is_none() => Some(Block::Vectors(&XMM)),
            _ => None,
        }
    }

    fn macs(self) -> usize {
        match self {
            Block::Tiles => 16 * 64 * TILE_K,
            Block::Vectors(v) => BLOCK.0 * BLOCK.1 * v.bytes / 4 * VECTOR_K,
        }
    }

    fn assemble(self, loaded: bool) -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        match self {
            Block::Tiles => tiles(&mut a, loaded)?,
            Block::Vectors(v) => vectors(&mut a, v, loaded)?,
        }
        a.assemble(0)
    }
}

/// C in tmm0-3, a in tmm4-5, b in tmm6-7.
fn tiles(a: &mut CodeAssembler, loaded: bool) -> Result<(), IcedError> {
    const SUMS: [AsmRegisterTmm; 4] = [tmm0, tmm1, tmm2, tmm3];
    const LEFT: [AsmRegisterTmm; 2] = [tmm4, tmm5];
    const RIGHT: [AsmRegisterTmm; 2] = [tmm6, tmm7];
    a.mov(rax, ptr(rdi))?;
    a.ldtilecfg(ptr(rax))?;
    a.mov(rax, ptr(rdi + 8))?;
    a.mov(r8, ptr(rdi + 16))?;
    a.mov(r9, TILE_K as u64)?;
    a.mov(r10, GROUP as u64)?;
    for tile in SUMS {
        a.tilezero(tile)?;
    }
    for n in 0..2 {
        a.tileloadd(LEFT[n], ptr(rax + r9 + 64 * n))?;
        a.tileloadd(RIGHT[n], ptr(r8 + r10 + 64 * n))?;
    }
    let mut turn = a.create_label();
    a.set_label(&mut turn)?;
    for step in 0..TILE_K / 64 {
        let left = LEFT[step % 2];
        if loaded {
            a.tileloadd(left, ptr(rax + r9 + 64 * step))?;
        }
        for (column, sum) in SUMS.into_iter().enumerate() {
            let right = RIGHT[column % 2];
            if loaded {
                a.tileloadd(right, ptr(r8 + r10 + (16 * GROUP * step + 64 * column)))?;
            }
            a.tdpbusd(sum, left, right)?;
        }
    }
    a.dec(rdx)?;
    a.jnz(turn)?;
    a.tilerelease()?;
    a.ret()
}

/// Accumulators in registers 0-23, b in 24-27, a in 28-31.
fn vectors(a: &mut CodeAssembler, v: &Vectors, loaded: bool) -> Result<(), IcedError> {
    /// Steps of four k that are written out.
    const STEPS: usize = 4;
    let register = |n: usize| v.first + n as u32;
    let (right, left) = (|column: usize| register(24 + column), |row: usize| register(28 + row % 4));
    let memory = |base, disp: usize| MemoryOperand::with_base_displ(base, disp as i64);
    a.mov(rax, ptr(rdi + 8))?;
    a.mov(r8, ptr(rdi + 16))?;
    for n in 24..32 {
        a.add_instruction(Instruction::with2(v.load, register(n), memory(Register::R8, GROUP * n))?)?;
    }
    let (mut turn, mut steps) = (a.create_label(), a.create_label());
    a.set_label(&mut turn)?;
    a.mov(r9, rax)?;
    a.mov(r10, r8)?;
    a.mov(ecx, (VECTOR_K / 4 / STEPS) as u32)?;
    a.set_label(&mut steps)?;
    for step in 0..STEPS {
        for column in (0..BLOCK.1).filter(|_| loaded) {
            let from = memory(Register::R10, GROUP * step + v.bytes * column);
            a.add_instruction(Instruction::with2(v.load, right(column), from)?)?;
        }
        for row in 0..BLOCK.0 {
            if loaded {
                let from = memory(Register::R9, VECTOR_K * row + 4 * step);
                a.add_instruction(Instruction::with2(v.broadcast, left(row), from)?)?;
            }
            for column in 0..BLOCK.1 {
                let sum = register(BLOCK.1 * row + column);
                a.add_instruction(Instruction::with3(v.dot, sum, left(row), right(column))?)?;
            }
        }
    }
    a.add(r9, 4 * STEPS as i32)?;
    a.add(r10, (GROUP * STEPS) as i32)?;
    a.dec(ecx)?;
    a.jnz(steps)?;
    a.dec(rdx)?;
    a.jnz(turn)?;
    a.vzeroupper()?;
    a.ret()
}

/// Bytes that start at a line of the cache.
#[repr(align(64))]
struct Lines<const N: usize>([u8; N]);

/// Bytes without a pattern that arithmetic could profit from.
fn scrambled<const N: usize>() -> Box<Lines<N>> {
    Box::new(Lines(std::array::from_fn(|i| ((i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)))
}

/// A loop with the memory it reads.
struct Loop {
    code: CodeMemory,
    macs: usize,
    config: Lines<64>,
    a: Box<Lines<{ 16 * TILE_K }>>,
    b: Box<Lines<{ TILE_K / 4 * GROUP }>>,
}

impl Loop {
    fn new(block: Block, loaded: bool) -> Result<Loop, CodegenError> {
        let backend = |e: IcedError| CodegenError::Backend { kernel: "peak".into(), reason: e.to_string() };
        let code = CodeMemory::new(&block.assemble(loaded).map_err(backend)?)?;
        let mut config = Lines([0; 64]);
        config.0[0] = 1;
        for tile in 0..8 {
            (config.0[16 + 2 * tile], config.0[48 + tile]) = (64, 16);
        }
        Ok(Loop { code, macs: block.macs(), config, a: scrambled(), b: scrambled() })
    }

    fn run(&self, turns: i64) {
        let args = [self.config.0.as_ptr(), self.a.0.as_ptr(), self.b.0.as_ptr()].map(<*const u8>::cast_mut);
        // SAFETY: a function of this type starts at the code's first byte.
        let entry: Option<KernelFn> = unsafe { self.code.kernel(0) };
        if let Some(entry) = entry {
            // SAFETY: the loops only read, within the 16 rows of a and the panel b, and the tier was found available.
            unsafe { entry(black_box(args.as_ptr()), 0, turns, 1, std::ptr::null_mut()) };
        }
    }

    fn timed(&self, turns: i64) -> Duration {
        let started = Instant::now();
        self.run(turns);
        started.elapsed()
    }

    /// Multiply-accumulates per second of the fastest run.
    fn rate(&self, time: Duration) -> f64 {
        let started = Instant::now();
        let mut turns = 1;
        while self.timed(turns) < RUN {
            turns *= 2;
        }
        let mut fastest = self.timed(turns);
        while started.elapsed() < time {
            fastest = fastest.min(self.timed(turns));
        }
        self.macs as f64 * turns as f64 / fastest.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_runs_and_ends() {
        for block in Tier::available().into_iter().filter_map(Block::of) {
            for loaded in [false, true] {
                Loop::new(block, loaded).unwrap().run(2);
            }
        }
    }

    #[test]
    fn a_peak_is_a_rate() {
        let Some(peak) = peak(Tier::Portable, Duration::from_millis(30)).unwrap() else { return };
        assert!(peak.registers > 1e9 && peak.loaded > 1e9, "{peak:?}");
    }
}
