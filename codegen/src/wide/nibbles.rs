//! Weights of four bits: what lies two to a byte in memory becomes bytes in scratch, once for each pass over a panel or a
//! chunk of it, and the products read it there.
//!
//! Per group of four k: two lines of 64 bytes give their low halves to the first two lines of the group and their high
//! halves to the last two. One shuffle of a table with the signed values extends the signs.

use iced_x86::code_asm::registers::gpr64::{rax, rcx, rsi};
use iced_x86::code_asm::{AsmRegister64, ptr, xmmword_ptr, zmmword_ptr};

use super::asm::{Asm, Assembled, at, z};
use super::lane::{ROW, VECTORS};

/// Bytes of a group of four k of a panel, unpacked.
pub(super) const GROUP: i64 = 4 * ROW as i64;
/// The same group in memory.
pub(super) const PACKED_GROUP: i64 = GROUP / 2;

/// How far ahead of unpacking packed lines are fetched: of a pass with few rows nobody has fetched them before.
const AHEAD: i64 = 2048;

/// Where [`unpack`] finds what to unpack and where it puts it; it counts in a third register, and all three change.
pub(super) const FROM: AsmRegister64 = rax;
pub(super) const TO: AsmRegister64 = rcx;
const COUNT: AsmRegister64 = rsi;

/// The vector registers that hold what every group needs.
#[derive(Clone, Copy)]
pub(super) struct Constants {
    pub mask: u8,
    pub signed: u8,
}

impl Constants {
    pub(super) fn load(self, asm: &mut Asm) -> Assembled {
        let values: Vec<u8> = (0..8).chain(-8..0).map(|v: i8| v as u8).collect();
        for (register, bytes) in [(self.mask, vec![0x0f; 16]), (self.signed, values)] {
            let bytes = asm.bytes(&bytes);
            asm.c.vbroadcasti32x4(z(register), xmmword_ptr(bytes))?;
        }
        Ok(())
    }

    /// Unpacks one group into these registers, and from them to memory.
    pub(super) fn group(
        self,
        asm: &mut Asm,
        from: (AsmRegister64, i64),
        to: (AsmRegister64, i64),
        lines: [u8; VECTORS],
    ) -> Assembled {
        for (i, pair) in [[0, 2], [1, 3]].into_iter().enumerate() {
            let [low, high] = pair.map(|line| z(lines[line]));
            asm.c.prefetcht0(ptr(at(from.0, from.1 + AHEAD + 64 * i as i64)))?;
            asm.c.vmovdqu64(low, zmmword_ptr(at(from.0, from.1 + 64 * i as i64)))?;
            asm.c.vpsrlw(high, low, 4)?;
            for line in pair {
                let half = z(lines[line]);
                asm.c.vpandd(half, half, z(self.mask))?;
                asm.c.vpshufb(half, z(self.signed), half)?;
                asm.c.vmovdqu64(zmmword_ptr(at(to.0, to.1 + 64 * line as i64)), half)?;
            }
        }
        Ok(())
    }
}

/// Unpacks `depth` rows of k of a panel; the first vector registers change.
pub(super) fn unpack(asm: &mut Asm, depth: usize) -> Assembled {
    let constants = Constants { mask: 0, signed: 1 };
    constants.load(asm)?;
    asm.c.mov(COUNT, (depth / 4) as u64)?;
    asm.repeat(COUNT, |asm| {
        constants.group(asm, (FROM, 0), (TO, 0), [2, 3, 4, 5])?;
        asm.advance(FROM, PACKED_GROUP)?;
        asm.advance(TO, GROUP)
    })
}
