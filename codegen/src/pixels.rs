//! Planes of bytes as an image of pixels of four bytes with a border: what the first convolution of a model reads.
//!
//! ```text
//! for row of the padded image      items
//!   border above or below          one value
//!   else
//!     border to the left
//!     for sixteen pixels           a load from each plane, two interleavings, four stores; the last sixteen overlap those before
//!     border to the right
//! ```

use cranelift_codegen::ir::types::{I8X16, I32};
use cranelift_codegen::ir::{InstBuilder, Value};
use vitc_ir::Elem;

use crate::emit::{Addr, Emit};
use crate::operand::Operand;

/// Bytes of a pixel.
pub(crate) const PIXEL: usize = 4;
/// Pixels of a turn.
const TURN: usize = 16;

/// Planes as pixels. Arguments: x, out. An item is a row of the padded image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pixels {
    /// Loops over images and rows; pixels of a row are consecutive.
    pub x: Operand,
    /// How many planes there are, and bytes from one to the next; what is missing to four has the border's value.
    pub planes: usize,
    pub plane: i64,
    /// Rows and columns of the image, of the border before it, and of both with the border behind.
    pub size: [usize; 2],
    pub before: [usize; 2],
    pub padded: [usize; 2],
    /// The border's value as a byte.
    pub value: u8,
}

impl Pixels {
    pub(crate) fn name(&self) -> String {
        format!("pixels__h{}w{}", self.padded[0], self.padded[1])
    }

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let (begin, end) = (e.begin, e.end);
        let [x, out] = [e.arg(0), e.arg(1)];
        let [height, width] = self.padded;
        e.for_range(begin, end, 1, &[], |e, item, _| {
            let rows = e.iconst(height as i64);
            let image = e.b.ins().udiv(item, rows);
            let first = e.b.ins().imul(image, rows);
            let row = e.b.ins().isub(item, first);
            let row = e.add_imm(row, -(self.before[0] as i64));
            let to = e.at(out, item, (PIXEL * width) as i64);
            e.if_less(
                row,
                0,
                |e| self.border(e, to, width),
                |e| {
                    e.if_less(
                        row,
                        self.size[0] as i64,
                        |e| {
                            let from = self.x.base(e, x, &[image, row]);
                            self.row(e, from, to);
                        },
                        |e| self.border(e, to, width),
                    );
                },
            );
            Vec::new()
        });
    }

    fn row(&self, e: &mut Emit<'_>, from: Value, to: Value) {
        let (left, width) = (self.before[1], self.size[1]);
        self.border(e, to, left);
        let to = e.add_imm(to, (PIXEL * left) as i64);
        if width < TURN {
            e.repeat(width, &[from, to], |e, p| {
                self.pixel(e, p[0], p[1]);
                vec![e.add_imm(p[0], 1), e.add_imm(p[1], PIXEL as i64)]
            });
        } else {
            e.repeat(width / TURN, &[from, to], |e, p| {
                self.turn(e, p[0], p[1]);
                vec![e.add_imm(p[0], TURN as i64), e.add_imm(p[1], (PIXEL * TURN) as i64)]
            });
            if !width.is_multiple_of(TURN) {
                let last = (width - TURN) as i64;
                let (from, to) = (e.add_imm(from, last), e.add_imm(to, PIXEL as i64 * last));
                self.turn(e, from, to);
            }
        }
        let behind = e.add_imm(to, (PIXEL * width) as i64);
        self.border(e, behind, self.padded[1] - left - width);
    }

    /// So many pixels of the border.
    fn border(&self, e: &mut Emit<'_>, to: Value, pixels: usize) {
        let (turn, pixel) = (e.constant(I8X16, self.value.into()), e.constant(I32, self.word()));
        let whole = PIXEL * pixels / 16;
        let done = e.repeat(whole, &[to], |e, p| {
            e.store(turn, Addr { base: p[0], disp: 0 });
            vec![e.add_imm(p[0], 16)]
        });
        for i in 0..pixels - 16 / PIXEL * whole {
            e.store(pixel, Addr { base: done[0], disp: (PIXEL * i) as i32 });
        }
    }

    /// A pixel of the border.
    fn word(&self) -> i64 {
        i64::from(u32::from_ne_bytes([self.value; PIXEL]))
    }

    fn turn(&self, e: &mut Emit<'_>, from: Value, to: Value) {
        let planes: [Value; PIXEL] = std::array::from_fn(|n| match n < self.planes {
            true => e.load(I8X16, Addr { base: from, disp: 0 }.plus(n as i64 * self.plane)),
            false => e.constant(I8X16, self.value.into()),
        });
        for half in 0..2 {
            let pairs = [0, 2].map(|n| interleave(e, planes[n], planes[n + 1], 1, half));
            for quarter in 0..2 {
                let pixels = interleave(e, pairs[0], pairs[1], 2, quarter);
                e.store(pixels, Addr { base: to, disp: 16 * (2 * half + quarter) as i32 });
            }
        }
    }

    fn pixel(&self, e: &mut Emit<'_>, from: Value, to: Value) {
        for n in 0..PIXEL {
            let byte = match n < self.planes {
                true => e.load_elem(Elem::U8, Addr { base: from, disp: 0 }.plus(n as i64 * self.plane)),
                false => e.iconst(self.value.into()),
            };
            e.store_elem(Elem::U8, byte, Addr { base: to, disp: n as i32 });
        }
    }
}

/// Parts of so many bytes of two vectors in turn: those of their first (`half` 0) or last halves.
fn interleave(e: &mut Emit<'_>, a: Value, b: Value, bytes: usize, half: usize) -> Value {
    let part =
        |i: usize| 8 * half + i / (2 * bytes) * bytes + i % bytes + if (i / bytes).is_multiple_of(2) { 0 } else { 16 };
    let mask: Vec<u8> = (0..16).map(|i| part(i) as u8).collect();
    let mask = e.b.func.dfg.immediates.push(mask.into());
    e.b.ins().shuffle(a, b, mask)
}
