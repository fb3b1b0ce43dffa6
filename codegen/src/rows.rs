//! Kernels over rows: each item is a row, its columns go by in groups of eight.
//!
//! ```text
//! for row
//!   pass over the groups            sums or the maximum, in vectors
//!   a few scalars                   integer square root, division
//!   pass over the groups            results, saturated on store
//! ```

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8X16, I16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, StackSlotData, StackSlotKind, Value};
use vitc_ir::{Dim, Elem};

use crate::emit::{Addr, Emit, flags};
use crate::lane::{self, GROUP, Lanes, Packed};
use crate::operand::{Columns, Operand, split_index};

/// Rows of `c` columns; operand `n` is argument `n`, the last one is the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Rows {
    /// Loops over rows, outermost first.
    pub sizes: Vec<Dim>,
    /// Columns of the first operand.
    pub c: usize,
    /// Operands and the result.
    pub operands: Vec<Operand>,
    /// What happens to a row.
    pub work: Work,
}

/// What happens to a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Work {
    /// `int.exp`; the second operand is a table of `entries` 16-bit numbers, 256 times the composed function of `t`.
    Exp { limit: i64, multiplier: i64, shift: u32, entries: usize },
    /// `int.reduce_sum` over the last dimension.
    Sum,
    /// `int.row_peak`.
    Peak { shift: u32, of: Elements },
    /// `int.row_codes`.
    Codes { levels: i64, zero_point: i64, shift: u32, of: Elements },
    /// `int.layernorm`.
    LayerNorm { epsilon: i64, centred: bool, guard: u32, norm_bits: u32, recip_bits: u32, shift: u32, zero_point: i64 },
    /// `int.shiftmax`.
    Shiftmax { one: i64, n: u32, bits: u32 },
    /// `int.shift_layernorm`.
    ShiftLayerNorm { shift: u32, zero_point: i64 },
    /// `int.reciprocal`, element by element.
    Reciprocal { numerator: i64 },
    /// `int.shift_gelu`, element by element.
    ShiftGelu { x_zero: i64, one: i64, n: u32, bits: u32 },
}

/// What the elements of a row with a grid of its own are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Elements {
    /// Themselves.
    Plain,
    /// Bytes that stand for the entries of a table, the second operand. Magnitudes of entries may fall and then rise (`valley`):
    /// the largest of a row is then that of its least or of its largest byte.
    Entries { valley: bool },
}

/// Entries of a table.
const ENTRIES: i64 = 256;

impl Rows {
    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let pointers: Vec<Value> = (0..self.operands.len()).map(|n| e.arg(n)).collect();
        let (begin, end) = (e.begin, e.end);
        e.for_range(begin, end, 1, &[], |e, row, _| {
            let indices = split_index(e, row, &self.sizes);
            let at: Vec<Value> = self.operands.iter().zip(&pointers).map(|(o, &p)| o.base(e, p, &indices)).collect();
            self.row(e, &at);
            Vec::new()
        });
    }

    fn row(&self, e: &mut Emit<'_>, at: &[Value]) {
        match self.work {
            Work::Exp { limit, multiplier, shift, entries } => self.exp(e, at, [limit, multiplier], shift, entries),
            Work::Sum => self.sum(e, at),
            Work::Peak { shift, of } => self.put_peak(e, at, shift, of),
            Work::Codes { levels, zero_point, shift, of } => self.codes(e, at, [levels, zero_point], (shift, of)),
            Work::LayerNorm { .. } => self.layernorm(e, at),
            Work::Shiftmax { one, n, bits } => self.shiftmax(e, at, ShiftExp { one, n }, bits),
            Work::ShiftLayerNorm { shift, zero_point } => self.shift_layernorm(e, at, shift, zero_point),
            Work::Reciprocal { numerator } => self.each_element(e, at, |e, x| reciprocal(e, x, numerator)),
            Work::ShiftGelu { x_zero, one, n, bits } => {
                self.each_element(e, at, |e, x| ShiftExp { one, n }.gelu(e, x, x_zero, bits));
            }
        }
    }

    /// The body for every group of columns: index of the first column and number of columns.
    fn each_group(
        &self,
        e: &mut Emit<'_>,
        carried: &[Value],
        mut body: impl FnMut(&mut Emit<'_>, Value, usize, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let whole = self.c / GROUP;
        let (zero, to) = (e.iconst(0), e.iconst((whole * GROUP) as i64));
        let mut carried = carried.to_vec();
        if whole > 0 {
            carried = e.for_range(zero, to, GROUP as i64, &carried, |e, i, c| body(e, i, GROUP, c));
        }
        if !self.c.is_multiple_of(GROUP) {
            carried = body(e, to, self.c % GROUP, &carried);
        }
        carried
    }

    /// The body for every column, in order.
    fn each_column(
        &self,
        e: &mut Emit<'_>,
        carried: &[Value],
        body: impl FnOnce(&mut Emit<'_>, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let (zero, to) = (e.iconst(0), e.iconst(self.c as i64));
        e.for_range(zero, to, 1, carried, body)
    }

    fn place(&self, e: &mut Emit<'_>, n: usize, at: &[Value], column: Value) -> Addr {
        Addr { base: e.at(at[n], column, self.operands[n].column_stride()), disp: 0 }
    }

    fn group(&self, e: &mut Emit<'_>, n: usize, at: &[Value], column: Value, count: usize) -> Lanes {
        let place = self.place(e, n, at, column);
        self.operands[n].load(e, place, count)
    }

    fn element(&self, e: &mut Emit<'_>, n: usize, at: &[Value], column: Value) -> Value {
        let place = self.place(e, n, at, column);
        e.load_elem(self.operands[n].elem, place)
    }

    fn put(&self, e: &mut Emit<'_>, at: &[Value], column: Value, v: Value) {
        let n = self.operands.len() - 1;
        let place = self.place(e, n, at, column);
        e.store_elem(self.operands[n].elem, v, place);
    }

    fn put_group(&self, e: &mut Emit<'_>, at: &[Value], column: Value, count: usize, v: Packed) {
        let n = self.operands.len() - 1;
        let place = self.place(e, n, at, column);
        self.operands[n].store(e, v, place, count);
    }

    fn each_element(&self, e: &mut Emit<'_>, at: &[Value], mut f: impl FnMut(&mut Emit<'_>, Value) -> Value) {
        self.each_column(e, &[], |e, i, _| {
            let x = self.element(e, 0, at, i);
            let y = f(e, x);
            self.put(e, at, i, y);
            Vec::new()
        });
    }

    /// Largest element of the first operand, as a 64-bit scalar.
    fn maximum(&self, e: &mut Emit<'_>, at: &[Value]) -> Value {
        let low = e.iconst(i32::MIN.into());
        let tail = self.c % GROUP;
        let first = e.iconst((self.c - tail) as i64);
        let mut max = low;
        for i in 0..tail {
            let column = e.add_imm(first, i as i64);
            let x = self.element(e, 0, at, column);
            max = e.b.ins().smax(max, x);
        }
        if self.c < GROUP {
            return max;
        }
        let least = e.constant(I32X4, i32::MIN.into());
        let zero = e.iconst(0);
        let both = e.for_range(zero, first, GROUP as i64, &[least, least], |e, i, m| {
            let x = self.group(e, 0, at, i, GROUP);
            let [lo, hi] = words(e, x);
            vec![e.b.ins().smax(m[0], lo), e.b.ins().smax(m[1], hi)]
        });
        let four = e.b.ins().smax(both[0], both[1]);
        for lane in 0..4 {
            let x = e.b.ins().extractlane(four, lane);
            let x = e.b.ins().sextend(I64, x);
            max = e.b.ins().smax(max, x);
        }
        max
    }

    fn exp(&self, e: &mut Emit<'_>, at: &[Value], [limit, multiplier]: [i64; 2], shift: u32, entries: usize) {
        let max = self.maximum(e, at);
        let max = e.b.ins().ireduce(I32, max);
        let max = e.b.ins().splat(I32X4, max);
        let table = at[1];
        // The difference of two `i32` fits an unsigned one.
        let limit = e.constant(I32X4, limit.min(u32::MAX.into()));
        let multiplier = e.constant(I32X4, multiplier);
        let by = e.b.ins().iconst(I32, i64::from(shift));
        let last = e.constant(I32X4, entries as i64 - 1);
        let slot = e.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, 32, 4));
        let slot = e.b.ins().stack_addr(I64, slot, 0);
        // Carried, or the splat and the reduction under it are made again for each group.
        self.each_group(e, &[max], |e, i, count, c| {
            let max = c[0];
            let x = self.group(e, 0, at, i, count);
            let indices = words(e, x).map(|x| {
                let d = e.b.ins().isub(max, x);
                let d = e.b.ins().umin(d, limit);
                let t = e.b.ins().imul(d, multiplier);
                let t = e.b.ins().ushr(t, by);
                e.b.ins().umin(t, last)
            });
            // Through memory: an index is then one load, its entry one more and a store.
            for (h, &v) in indices.iter().enumerate() {
                e.store(v, Addr { base: slot, disp: 16 * h as i32 });
            }
            for lane in 0..count {
                let index = e.b.ins().uload32(flags(), slot, 4 * lane as i32);
                let entry = e.b.ins().ishl_imm_u(index, 1);
                let entry = e.add(table, entry);
                let fine = e.b.ins().uload16(I64, flags(), entry, 0);
                e.b.ins().istore16(flags(), fine, slot, 2 * lane as i32);
            }
            let fine = e.load(I16X8, Addr { base: slot, disp: 0 });
            let rounded = self.dithered(e, fine, i);
            e.store(rounded, Addr { base: slot, disp: 0 });
            let n = self.operands.len() - 1;
            let to = self.place(e, n, at, i);
            for lane in 0..count {
                let y = e.load_elem(Elem::U8, Addr { base: slot, disp: lane as i32 });
                e.store_elem(Elem::U8, y, to.plus(lane as i64 * self.operands[n].column_stride()));
            }
            vec![max]
        });
    }

    /// Columns `i` and on in steps of 1/256 as bytes, rounded up by what [`vitc_ir::dither`] says of each column.
    fn dithered(&self, e: &mut Emit<'_>, fine: Value, i: Value) -> Value {
        let mut bytes = [0; 16];
        let beyond = |column| vitc_ir::dither(column).wrapping_sub(vitc_ir::dither(0));
        bytes.iter_mut().step_by(2).enumerate().for_each(|(lane, b)| *b = beyond(lane));
        let lanes = e.bytes16(bytes);
        let lanes = e.cast(I16X8, lanes);
        let first = e.b.ins().imul_imm_u(i, i64::from(beyond(1)));
        let first = e.add_imm(first, vitc_ir::dither(0).into());
        let first = e.b.ins().ireduce(I16, first);
        let first = e.b.ins().splat(I16X8, first);
        let dither = e.b.ins().iadd(first, lanes);
        let low = e.constant(I16X8, 0xff);
        let dither = e.b.ins().band(dither, low);
        let sum = e.b.ins().iadd(fine, dither);
        let y = e.b.ins().ushr_imm_u(sum, 8);
        e.b.ins().unarrow(y, y)
    }

    /// Sum of the first operand's elements, which have at most 16 bits.
    fn sum(&self, e: &mut Emit<'_>, at: &[Value]) {
        let consecutive = self.operands[0].columns == Columns::Stride(1);
        let sum = match self.operands[0].elem {
            elem @ (Elem::U8 | Elem::I8) if consecutive => self.sum_bytes(e, at[0], elem),
            _ => self.sums(e, at, false)[0],
        };
        let zero = e.iconst(0);
        self.put(e, at, zero, sum);
    }

    /// Sum of consecutive bytes: dot products with ones.
    fn sum_bytes(&self, e: &mut Emit<'_>, from: Value, elem: Elem) -> Value {
        let (ones, none) = (e.constant(I8X16, 1), e.constant(I32X4, 0));
        let dot = |e: &mut Emit<'_>, acc, x| if elem == Elem::U8 { e.dot(acc, x, ones) } else { e.dot(acc, ones, x) };
        let done = e.repeat(self.c / 16, &[none, from], |e, p| {
            let x = e.load(I8X16, Addr { base: p[1], disp: 0 });
            vec![dot(e, p[0], x), e.add_imm(p[1], 16)]
        });
        let (mut acc, at) = (done[0], Addr { base: done[1], disp: 0 });
        let mut tail = self.c % 16;
        let mut next = 0;
        for (bytes, ty, vector) in [(8, I64, I64X2), (4, I32, I32X4)] {
            if tail >= bytes {
                let x = e.load(ty, at.plus(next));
                let x = e.b.ins().scalar_to_vector(vector, x);
                let x = e.cast(I8X16, x);
                acc = dot(e, acc, x);
                (tail, next) = (tail - bytes, next + bytes as i64);
            }
        }
        let mut sum = e.iconst(0);
        for i in 0..tail {
            let x = e.load_elem(elem, at.plus(next + i as i64));
            sum = e.add(sum, x);
        }
        add_lanes(e, sum, acc)
    }

    /// Sum, and sum of squares if wanted, as 64-bit scalars.
    fn sums(&self, e: &mut Emit<'_>, at: &[Value], squares: bool) -> [Value; 2] {
        let (none, none_long) = (e.constant(I32X4, 0), e.constant(I64X2, 0));
        let totals = self.each_group(e, &[none, none_long], |e, i, count, c| {
            let x = self.group(e, 0, at, i, count);
            let x = halves(e, x);
            let pairs = e.pairwise_wide(x);
            let sum = e.add(c[0], pairs);
            if !squares {
                return vec![sum, c[1]];
            }
            // Two squares of -2^15 make 2^31: the pairs count as unsigned.
            let pairs = e.madd(x, x);
            let (lo, hi) = (e.b.ins().uwiden_low(pairs), e.b.ins().uwiden_high(pairs));
            let both = e.add(lo, hi);
            vec![sum, e.add(c[1], both)]
        });
        let zero = e.iconst(0);
        let sum = add_lanes(e, zero, totals[0]);
        let (a, b) = (e.b.ins().extractlane(totals[1], 0), e.b.ins().extractlane(totals[1], 1));
        [sum, e.add(a, b)]
    }

    /// Largest magnitude of a row in steps of `2^shift`, rounded up and 1 at least.
    fn peak(&self, e: &mut Emit<'_>, at: &[Value], shift: u32, of: Elements) -> Value {
        let max = match of {
            Elements::Plain => self.magnitude(e, at),
            Elements::Entries { valley: true } => {
                let [a, b] = self.ends(e, at).map(|index| magnitude_of_entry(e, at[1], index));
                e.b.ins().smax(a, b)
            }
            Elements::Entries { valley: false } => {
                let one = e.iconst(1);
                self.each_column(e, &[one], |e, i, m| {
                    let index = self.element(e, 0, at, i);
                    let entry = magnitude_of_entry(e, at[1], index);
                    vec![e.b.ins().smax(m[0], entry)]
                })[0]
            }
        };
        let one = e.iconst(1);
        let max = e.b.ins().smax(max, one);
        let max = e.add_imm(max, (1 << shift) - 1);
        let by = e.iconst(shift.into());
        e.b.ins().ushr(max, by)
    }

    /// Largest magnitude of the first operand's elements, or 1.
    fn magnitude(&self, e: &mut Emit<'_>, at: &[Value]) -> Value {
        let one = e.constant(I32X4, 1);
        let both = self.each_group(e, &[one, one], |e, i, count, m| {
            let x = self.group(e, 0, at, i, count);
            let [lo, hi] = words(e, x).map(|x| e.b.ins().iabs(x));
            vec![e.b.ins().smax(m[0], lo), e.b.ins().smax(m[1], hi)]
        });
        let four = e.b.ins().smax(both[0], both[1]);
        let mut max = e.iconst(1);
        for lane in 0..4 {
            let x = e.b.ins().extractlane(four, lane);
            let x = e.b.ins().sextend(I64, x);
            max = e.b.ins().smax(max, x);
        }
        max
    }

    /// The least and the largest of the first operand's elements, which are bytes.
    fn ends(&self, e: &mut Emit<'_>, at: &[Value]) -> [Value; 2] {
        let whole = self.c / GROUP * GROUP;
        let (zero, to) = (e.iconst(0), e.iconst(whole as i64));
        let mut ends = [255, 0].map(|v| e.iconst(v));
        if whole > 0 {
            let none = [255, 0].map(|v| e.constant(I16X8, v));
            let found = e.for_range(zero, to, GROUP as i64, &none, |e, i, m| {
                let x = self.group(e, 0, at, i, GROUP);
                let x = halves(e, x);
                vec![e.b.ins().smin(m[0], x), e.b.ins().smax(m[1], x)]
            });
            for lane in 0..GROUP as u8 {
                let [a, b] = [found[0], found[1]].map(|v| {
                    let x = e.b.ins().extractlane(v, lane);
                    e.b.ins().sextend(I64, x)
                });
                ends = [e.b.ins().smin(ends[0], a), e.b.ins().smax(ends[1], b)];
            }
        }
        for i in whole..self.c {
            let column = e.iconst(i as i64);
            let x = self.element(e, 0, at, column);
            ends = [e.b.ins().smin(ends[0], x), e.b.ins().smax(ends[1], x)];
        }
        ends
    }

    fn put_peak(&self, e: &mut Emit<'_>, at: &[Value], shift: u32, of: Elements) {
        let peak = self.peak(e, at, shift, of);
        let zero = e.iconst(0);
        self.put(e, at, zero, peak);
    }

    fn codes(&self, e: &mut Emit<'_>, at: &[Value], grid: [i64; 2], (peak_shift, of): (u32, Elements)) {
        let peak = self.peak(e, at, peak_shift, of);
        let r = reciprocal_of_peak(e, peak, grid[0], peak_shift);
        if of == Elements::Plain {
            self.each_group(e, &[r], |e, i, count, same| {
                let x = self.group(e, 0, at, i, count);
                let packed = codes_of(e, x, same[0], grid);
                self.put_group(e, at, i, count, packed);
                vec![same[0]]
            });
            return;
        }
        // the codes of all entries, then that of each element
        let slot = e.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, ENTRIES as u32, 4));
        let slot = e.b.ins().stack_addr(I64, slot, 0);
        let (zero, all) = (e.iconst(0), e.iconst(ENTRIES));
        e.for_range(zero, all, GROUP as i64, &[r], |e, i, same| {
            let entries = Addr { base: e.at(at[1], i, Elem::I16.bytes() as i64), disp: 0 };
            let x = lane::load(e, Elem::I16, entries, GROUP);
            let packed = codes_of(e, x, same[0], grid);
            let to = Addr { base: e.add(slot, i), disp: 0 };
            lane::store(e, packed, to, GROUP);
            vec![same[0]]
        });
        self.each_element(e, at, |e, index| {
            let entry = e.add(slot, index);
            e.load_elem(Elem::U8, Addr { base: entry, disp: 0 })
        });
    }

    fn layernorm(&self, e: &mut Emit<'_>, at: &[Value]) {
        let Work::LayerNorm { epsilon, centred, guard, norm_bits, recip_bits, shift, zero_point } = self.work else {
            return;
        };
        let [sum, squares] = self.sums(e, at, true);
        let sum = if centred { sum } else { e.iconst(0) };
        let scaled = e.mul_imm(squares, self.c as i64);
        let square = e.b.ins().imul(sum, sum);
        let v = e.b.ins().isub(scaled, square);
        let v = e.add_imm(v, epsilon);
        let one = e.iconst(1);
        let v = e.b.ins().smax(v, one);
        let sigma = square_root(e, v);
        let zeros = e.b.ins().clz(sigma);
        let none = e.iconst(0);
        let bits = e.iconst(64 + i64::from(guard) - 16);
        let shift_d = e.b.ins().isub(bits, zeros);
        let shift_d = e.b.ins().smax(shift_d, none);
        let raised = e.add_imm(shift_d, i64::from(norm_bits + recip_bits));
        let numerator = e.b.ins().ishl(one, raised);
        let half_sigma = e.b.ins().ushr(sigma, one);
        let numerator = e.add(numerator, half_sigma);
        let r = e.b.ins().udiv(numerator, sigma);
        let r = e.b.ins().ireduce(I32, r);
        let r = e.b.ins().splat(I32X4, r);
        // 2^(e-1), and 0 for e = 0.
        let round = e.b.ins().ishl(one, shift_d);
        let round = e.b.ins().ushr(round, one);
        let offset = e.b.ins().isub(round, sum);
        let offset = e.b.ins().ireduce(I32, offset);
        let offset = e.b.ins().splat(I32X4, offset);
        let shift_d = e.b.ins().ireduce(I32, shift_d);
        let c = e.constant(I32X4, self.c as i64);
        let half = e.constant(I32X4, 1 << (recip_bits - 1));
        let by_recip = e.b.ins().iconst(I32, i64::from(recip_bits));
        let by = e.b.ins().iconst(I32, i64::from(shift));
        let out = self.operands[3].elem;
        self.each_group(e, &[offset, r], |e, i, count, same| {
            let (offset, r) = (same[0], same[1]);
            let (x, gamma, beta) =
                (self.group(e, 0, at, i, count), self.group(e, 1, at, i, count), self.group(e, 2, at, i, count));
            let (x, gamma, beta) = (words(e, x), words(e, gamma), words(e, beta));
            let y = [0, 1].map(|h| {
                let d = e.b.ins().imul(x[h], c);
                let d = e.add(d, offset);
                let d = e.b.ins().sshr(d, shift_d);
                let n = e.b.ins().imul(d, r);
                let n = e.add(n, half);
                let n = e.b.ins().sshr(n, by_recip);
                let y = e.b.ins().imul(n, gamma[h]);
                let y = e.add(y, beta[h]);
                e.b.ins().sshr(y, by)
            });
            let y = shifted_zero(e, y, zero_point);
            let packed = saturate_words(e, y, out);
            self.put_group(e, at, i, count, packed);
            vec![offset, r]
        });
    }

    fn shiftmax(&self, e: &mut Emit<'_>, at: &[Value], exp: ShiftExp, bits: u32) {
        let max = self.maximum(e, at);
        let zero = e.iconst(0);
        let total = self.each_column(e, &[zero], |e, i, c| {
            let x = self.element(e, 0, at, i);
            let x = e.b.ins().isub(x, max);
            let y = exp.at(e, x);
            vec![e.add(c[0], y)]
        });
        let most = e.iconst(i32::MAX.into());
        let total = e.b.ins().smin(total[0], most);
        let factor = e.b.ins().sdiv(most, total);
        let by = e.iconst(i64::from(32 - bits));
        self.each_column(e, &[], |e, i, _| {
            let x = self.element(e, 0, at, i);
            let x = e.b.ins().isub(x, max);
            let y = exp.at(e, x);
            let y = e.b.ins().imul(y, factor);
            let y = e.b.ins().sshr(y, by);
            let y = e.saturate(y, Elem::I16);
            self.put(e, at, i, y);
            Vec::new()
        });
    }

    fn shift_layernorm(&self, e: &mut Emit<'_>, at: &[Value], shift: u32, zero_point: i64) {
        let [sum, squares] = self.sums(e, at, true);
        let mean = self.rounded_mean(e, sum);
        // sum (x - mean)^2 = sum x^2 - 2 mean sum x + C mean^2
        let twice = e.mul_imm(mean, 2);
        let cross = e.b.ins().imul(twice, sum);
        let square = e.b.ins().imul(mean, mean);
        let square = e.mul_imm(square, self.c as i64);
        let v = e.b.ins().isub(squares, cross);
        let v = e.add(v, square);
        let one = e.iconst(1);
        let v = e.b.ins().smax(v, one);
        let root = square_root(e, v);
        let most = e.iconst(i32::MAX.into());
        let factor = e.b.ins().sdiv(most, root);
        let by = e.iconst(shift.into());
        let out = self.operands[3].elem;
        self.each_column(e, &[], |e, i, _| {
            let x = self.element(e, 0, at, i);
            let d = e.b.ins().isub(x, mean);
            let n = e.b.ins().imul(d, factor);
            let n = e.b.ins().sshr(n, one);
            let gamma = self.element(e, 1, at, i);
            let beta = self.element(e, 2, at, i);
            let y = e.b.ins().imul(n, gamma);
            let y = e.add(y, beta);
            let y = e.b.ins().sshr(y, by);
            // Twice clamped, so that adding the zero point cannot wrap.
            let y = e.clamp(y, i64::from(i32::MIN) * 2, i64::from(i32::MAX) * 2);
            let y = e.add_imm(y, zero_point);
            let y = e.saturate(y, out);
            self.put(e, at, i, y);
            Vec::new()
        });
    }

    /// `sum / C`, ties to even.
    fn rounded_mean(&self, e: &mut Emit<'_>, sum: Value) -> Value {
        let c = e.iconst(self.c as i64);
        let one = e.iconst(1);
        let quotient = e.b.ins().sdiv(sum, c);
        let back = e.b.ins().imul(quotient, c);
        let rest = e.b.ins().isub(sum, back);
        // Towards minus infinity, so that the rest is in 0..C.
        let negative = e.b.ins().icmp_imm_s(IntCC::SignedLessThan, rest, 0);
        let negative = e.b.ins().uextend(I64, negative);
        let quotient = e.b.ins().isub(quotient, negative);
        let fix = e.b.ins().imul(negative, c);
        let rest = e.add(rest, fix);
        let twice = e.add(rest, rest);
        let odd = e.b.ins().band(quotient, one);
        // 2*rest > C, or equal and odd: 2*rest + odd > C.
        let twice = e.add(twice, odd);
        let up = e.b.ins().icmp(IntCC::SignedGreaterThan, twice, c);
        let up = e.b.ins().uextend(I64, up);
        e.add(quotient, up)
    }
}

/// The exponential of the shift forms, on 64-bit scalars.
#[derive(Clone, Copy)]
struct ShiftExp {
    one: i64,
    n: u32,
}

impl ShiftExp {
    fn at(self, e: &mut Emit<'_>, i: Value) -> Value {
        let (one, four) = (e.iconst(1), e.iconst(4));
        let half = e.b.ins().sshr(i, one);
        let sixteenth = e.b.ins().sshr(i, four);
        let p = e.add(i, half);
        let p = e.b.ins().isub(p, sixteenth);
        let least = e.iconst(-self.one * i64::from(self.n));
        let p = e.b.ins().smax(p, least);
        let p = e.b.ins().ineg(p);
        let size = e.iconst(self.one);
        let q = e.b.ins().udiv(p, size);
        let whole = e.b.ins().imul(q, size);
        let r = e.b.ins().isub(whole, p);
        let r = e.add_imm(r, 2 * self.one);
        let n = e.iconst(self.n.into());
        let by = e.b.ins().isub(n, q);
        let y = e.b.ins().ishl(r, by);
        e.b.ins().sshr(y, one)
    }

    fn gelu(self, e: &mut Emit<'_>, x: Value, x_zero: i64, bits: u32) -> Value {
        let zero = e.iconst(0);
        let i = e.add_imm(x, -x_zero);
        let m = e.b.ins().smax(i, zero);
        let below = e.b.ins().isub(i, m);
        let minus = e.b.ins().ineg(m);
        let (exp, other) = (self.at(e, below), self.at(e, minus));
        let sum = e.add(exp, other);
        let most = e.iconst(i32::MAX.into());
        let factor = e.b.ins().sdiv(most, sum);
        let product = e.b.ins().imul(exp, factor);
        let by = e.iconst(i64::from(32 - bits));
        let sigmoid = e.b.ins().sshr(product, by);
        e.b.ins().imul(i, sigmoid)
    }
}

/// The shift of `int.row_codes`: products of an element with the row's reciprocal then fit 31 bits.
pub(crate) fn code_shift(levels: i64) -> u32 {
    30 - (i64::BITS - levels.leading_zeros())
}

/// By what elements are multiplied, in every lane: levels over the row's peak.
fn reciprocal_of_peak(e: &mut Emit<'_>, peak: Value, levels: i64, peak_shift: u32) -> Value {
    let (one, by) = (e.iconst(1), e.iconst(peak_shift.into()));
    let peak = e.b.ins().ishl(peak, by);
    let half_peak = e.b.ins().ushr(peak, one);
    let numerator = e.add_imm(half_peak, levels << code_shift(levels));
    let r = e.b.ins().udiv(numerator, peak);
    let r = e.b.ins().ireduce(I32, r);
    e.b.ins().splat(I32X4, r)
}

/// The codes of a group of elements.
fn codes_of(e: &mut Emit<'_>, x: Lanes, r: Value, [levels, zero_point]: [i64; 2]) -> Packed {
    let shift = code_shift(levels);
    let half = e.constant(I32X4, 1 << (shift - 1));
    let by = e.b.ins().iconst(I32, i64::from(shift));
    let y = words(e, x).map(|x| {
        let y = e.b.ins().imul(x, r);
        let y = e.add(y, half);
        e.b.ins().sshr(y, by)
    });
    let y = shifted_zero(e, y, zero_point);
    saturate_words(e, y, Elem::U8)
}

/// The magnitude of an entry of a table of `i16`.
fn magnitude_of_entry(e: &mut Emit<'_>, table: Value, index: Value) -> Value {
    let entry = Addr { base: e.at(table, index, Elem::I16.bytes() as i64), disp: 0 };
    let entry = e.load_elem(Elem::I16, entry);
    e.b.ins().iabs(entry)
}

/// `sum` and the four lanes of an `i32x4`.
fn add_lanes(e: &mut Emit<'_>, mut sum: Value, lanes: Value) -> Value {
    for lane in 0..4 {
        let x = e.b.ins().extractlane(lanes, lane);
        let x = e.b.ins().sextend(I64, x);
        sum = e.add(sum, x);
    }
    sum
}

/// The quotient of magnitudes with the sign of `x`: `(v ^ s) - s` is `v` for `s = 0` and `-v` for `s = -1`.
fn reciprocal(e: &mut Emit<'_>, x: Value, numerator: i64) -> Value {
    let sign_bit = e.iconst(63);
    let sign = e.b.ins().sshr(x, sign_bit);
    let signed = |e: &mut Emit<'_>, v| {
        let flipped = e.b.ins().bxor(v, sign);
        e.b.ins().isub(flipped, sign)
    };
    let one = e.iconst(1);
    let magnitude = signed(e, x);
    let divisor = e.b.ins().smax(magnitude, one);
    let half = e.b.ins().ushr(divisor, one);
    let sum = e.add_imm(half, numerator);
    let quotient = e.b.ins().udiv(sum, divisor);
    signed(e, quotient)
}

/// Floor of the square root of a positive 64-bit value: Newton's steps from above until they no longer fall.
fn square_root(e: &mut Emit<'_>, v: Value) -> Value {
    let one = e.iconst(1);
    let zeros = e.b.ins().clz(v);
    let bits = e.iconst(65);
    let bits = e.b.ins().isub(bits, zeros);
    let half = e.b.ins().ushr(bits, one);
    let start = e.b.ins().ishl(one, half);
    let (head, done) = (e.b.create_block(), e.b.create_block());
    let x = e.b.append_block_param(head, I64);
    e.b.ins().jump(head, &[start.into()]);
    e.b.switch_to_block(head);
    let quotient = e.b.ins().udiv(v, x);
    let sum = e.add(x, quotient);
    let next = e.b.ins().ushr(sum, one);
    let falls = e.b.ins().icmp(IntCC::UnsignedLessThan, next, x);
    e.b.ins().brif(falls, head, &[next.into()], done, &[]);
    e.b.switch_to_block(done);
    x
}

/// Lanes as two vectors of 32 bits.
fn words(e: &mut Emit<'_>, v: Lanes) -> [Value; 2] {
    match v {
        Lanes::Const(c) => [e.constant(I32X4, c); 2],
        Lanes::I16(v) => [e.b.ins().swiden_low(v), e.b.ins().swiden_high(v)],
        Lanes::I32(v) => v,
        Lanes::I64(_) => unreachable!("row kernels read at most 32 bits"),
    }
}

/// Lanes of at most 16 bits as one vector.
fn halves(e: &mut Emit<'_>, v: Lanes) -> Value {
    match v {
        Lanes::I16(v) => v,
        other => {
            let [lo, hi] = words(e, other);
            e.b.ins().snarrow(lo, hi)
        }
    }
}

/// Adds a zero point to values that may be anywhere in 32 bits; the result saturates to 16 bits or less anyway.
fn shifted_zero(e: &mut Emit<'_>, y: [Value; 2], zero_point: i64) -> [Value; 2] {
    if zero_point == 0 {
        return y;
    }
    let zero = e.constant(I32X4, zero_point);
    let room = e.constant(I32X4, (1 << 30) - 1);
    let floor = e.constant(I32X4, -(1 << 30));
    y.map(|v| {
        let v = e.b.ins().smin(v, room);
        let v = e.b.ins().smax(v, floor);
        e.b.ins().iadd(v, zero)
    })
}

fn saturate_words(e: &mut Emit<'_>, [lo, hi]: [Value; 2], to: Elem) -> Packed {
    match to {
        Elem::I32 => Packed::Words([lo, hi]),
        Elem::I16 => Packed::Halves(e.b.ins().snarrow(lo, hi)),
        Elem::I8 => {
            let v = e.b.ins().snarrow(lo, hi);
            Packed::Bytes(e.b.ins().snarrow(v, v))
        }
        _ => {
            let v = e.b.ins().snarrow(lo, hi);
            Packed::Bytes(e.b.ins().unarrow(v, v))
        }
    }
}

/// The composed function of `int.exp` but for its rounding: `256 y` for every `t` as little-endian 16-bit numbers, up to the
/// first that is zero (kept once).
pub(crate) fn exp_table(table: &[i64], table_bits: u32, most: i64) -> Result<Vec<u16>, String> {
    let f = table.len().trailing_zeros();
    let mut out = Vec::new();
    for t in 0..=most {
        let h = (i64::from(table_bits) + (t >> f)).min(62);
        let fine = (table[t as usize & (table.len() - 1)] << 8) >> h;
        let fits = (0..=0xff00).contains(&fine);
        let entry = u16::try_from(fine).ok().filter(|_| fits);
        out.push(entry.ok_or_else(|| format!("the exponential is {}, which does not fit u8", fine >> 8))?);
        if t >> f >= 62 {
            break;
        }
    }
    while out.len() > 1 && out[out.len() - 2..] == [0, 0] {
        out.pop();
    }
    Ok(out)
}
