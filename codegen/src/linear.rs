//! Attention without softmax: for every head what its keys and values come to, then its rows.
//!
//! ```text
//! for head                           items; a thread takes whole heads
//!   pack k, v                        pairs of tokens as i16 pairs, less their zero points
//!   s = k^T v, n = k^T 1             for each of d: all pairs of tokens, 4 columns a vector
//!   w = s >> h                       h from the largest |s|; pairs of d as i16 pairs
//!   for row of q
//!     a = q w                        4 columns a vector, pairs of d
//!     r = numerator / (q n)          one 64-bit division
//!     out = a r >> shift             column by column
//! ```
//!
//! Sums are products of i16 pairs (`pmaddwd`): both sides have more than 8 bits. Everything but q, k, v and the result stays in
//! this thread's scratch.

use cranelift_codegen::ir::types::{I8X16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, Value};
use vitc_ir::{Dim, Elem};

use crate::emit::{Addr, Emit};
use crate::operand::{Columns, Operand, split_index};

/// Linear attention. Arguments: q, k, v, out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LinearAttention {
    /// Loops over heads, outermost first.
    pub sizes: Vec<Dim>,
    /// q, k, v and the result; each has a stride for the rows of a head behind those for the heads.
    pub sides: [Operand; 4],
    /// Rows of q, rows of k and v.
    pub tokens: [usize; 2],
    /// Columns of q and k, columns of v.
    pub columns: [usize; 2],
    /// What counts as zero; q and k below it as well.
    pub q_zero: i64,
    pub k_zero: i64,
    pub v_zero: i64,
    pub epsilon: i64,
    pub numerator: i64,
    pub shift: u32,
    pub log2: bool,
    pub zero_point: i64,
}

/// Pointers into scratch.
struct Scratch {
    keys: Value,
    values: Value,
    sums: Value,
    counts: Value,
    weights: Value,
    row: Value,
}

/// A matrix to pack: where it begins, its rows and columns.
struct Packed<'a> {
    side: &'a Operand,
    from: Value,
    rows: usize,
    columns: usize,
    zero: i64,
    /// Whether what lies below the zero point counts as zero.
    cut: bool,
}

impl LinearAttention {
    /// Columns of v, in whole vectors.
    fn width(&self) -> usize {
        self.columns[1].next_multiple_of(4)
    }

    fn scratch_parts(&self) -> [usize; 6] {
        let ([d, _], pairs, width) = (self.columns, self.tokens[1].div_ceil(2), self.width());
        let even = d.next_multiple_of(2);
        [pairs * d * 4, pairs * width * 4, even * width * 4, d * 8, even / 2 * width * 4, width * 4]
            .map(|bytes| bytes.next_multiple_of(64))
    }

    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch_parts().iter().sum()
    }

    /// `linear_attention_u8u8_u8__d16e16t196`.
    pub(crate) fn name(&self) -> String {
        let [_, _, v, out] = self.sides.each_ref().map(|o| o.elem.name().replace('i', "s"));
        let ([d, e], [t, _]) = (self.columns, self.tokens);
        format!("linear_attention_u8{v}_{out}__d{d}e{e}t{t}")
    }

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let scratch = self.scratch(e);
        self.each_head(e, |e, [q, k, v, out]| {
            self.pack_head(e, [k, v], [scratch.keys, scratch.values], [self.columns[0], self.width()]);
            let largest = self.sum(e, &scratch);
            let halvings = self.halvings(e, largest);
            self.weigh(e, &scratch, halvings);
            self.rows(e, &scratch, q, out, halvings);
        });
    }

    /// Runs `body` for every head of the thread's with where its sides begin.
    pub(crate) fn each_head(&self, e: &mut Emit<'_>, body: impl FnOnce(&mut Emit<'_>, [Value; 4])) {
        let (begin, end) = (e.begin, e.end);
        e.for_range(begin, end, 1, &[], |e, head, _| {
            let lead = split_index(e, head, &self.sizes);
            let sides = std::array::from_fn(|n| {
                let pointer = e.arg(n);
                self.sides[n].base(e, pointer, &lead)
            });
            body(e, sides);
            Vec::new()
        });
    }

    /// Packs the keys and the values of a head into rows of these widths.
    pub(crate) fn pack_head(&self, e: &mut Emit<'_>, [k, v]: [Value; 2], to: [Value; 2], widths: [usize; 2]) {
        let ([d, columns], rows) = (self.columns, self.tokens[1]);
        let keys = Packed { side: &self.sides[1], from: k, rows, columns: d, zero: self.k_zero, cut: true };
        let values = Packed { side: &self.sides[2], from: v, rows, columns, zero: self.v_zero, cut: false };
        self.pack(e, &keys, to[0], widths[0]);
        self.pack(e, &values, to[1], widths[1]);
    }

    fn scratch(&self, e: &mut Emit<'_>) -> Scratch {
        let mut next = e.scratch;
        let [keys, values, sums, counts, weights, row] = self.scratch_parts().map(|bytes| {
            let part = next;
            next = e.add_imm(next, bytes as i64);
            part
        });
        Scratch { keys, values, sums, counts, weights, row }
    }

    /// Packs pairs of rows: `to[pair][column]` holds the elements of both rows as `i16`. What is beyond is zero.
    fn pack(&self, e: &mut Emit<'_>, x: &Packed<'_>, to: Value, width: usize) {
        let stride = x.side.row_stride();
        let next = e.repeat(x.rows / 2, &[x.from, to], |e, p| {
            self.pack_pair(e, x, p[0], p[1], true);
            vec![e.add_imm(p[0], 2 * stride), e.add_imm(p[1], 4 * width as i64)]
        });
        if x.rows % 2 == 1 {
            self.pack_pair(e, x, next[0], next[1], false);
        }
        if width > x.columns {
            let none = e.constant(I32, 0);
            e.repeat(x.rows.div_ceil(2), &[to], |e, p| {
                (x.columns..width).for_each(|c| e.store(none, Addr { base: p[0], disp: 4 * c as i32 }));
                vec![e.add_imm(p[0], 4 * width as i64)]
            });
        }
    }

    fn pack_pair(&self, e: &mut Emit<'_>, x: &Packed<'_>, from: Value, to: Value, both: bool) {
        let (stride, step) = (x.side.row_stride(), x.side.column_stride());
        let vectors = if x.side.columns == Columns::Stride(1) { x.columns / 8 } else { 0 };
        let next = e.repeat(vectors, &[from, to], |e, p| {
            let first = self.eight(e, x, Addr { base: p[0], disp: 0 });
            let second = match both {
                true => self.eight(e, x, Addr { base: p[0], disp: 0 }.plus(stride)),
                false => e.constant(I16X8, 0),
            };
            for (part, disp) in [(0, 0), (8, 16)] {
                let pairs = interleave(e, first, second, part);
                e.store(pairs, Addr { base: p[1], disp });
            }
            vec![e.add_imm(p[0], 8), e.add_imm(p[1], 32)]
        });
        e.repeat(x.columns - 8 * vectors, &next, |e, p| {
            let mut pair = e.iconst(0);
            for row in 0..if both { 2 } else { 1 } {
                let v = e.load_elem(x.side.elem, Addr { base: p[0], disp: 0 }.plus(row * stride));
                let v = less(e, v, x.zero, x.cut);
                pair = join(e, pair, v, row);
            }
            let pair = e.b.ins().ireduce(I32, pair);
            e.store(pair, Addr { base: p[1], disp: 0 });
            vec![e.add_imm(p[0], step), e.add_imm(p[1], 4)]
        });
    }

    /// Eight consecutive elements less the zero point.
    fn eight(&self, e: &mut Emit<'_>, x: &Packed<'_>, at: Addr) -> Value {
        let v = e.load(I64, at);
        let v = e.b.ins().scalar_to_vector(I64X2, v);
        let v = e.cast(I8X16, v);
        let wide = if x.side.elem == Elem::U8 { e.b.ins().uwiden_low(v) } else { e.b.ins().swiden_low(v) };
        if x.zero == 0 {
            return wide;
        }
        let zero = e.constant(I16X8, x.zero);
        let less = e.b.ins().isub(wide, zero);
        if !x.cut {
            return less;
        }
        let none = e.constant(I16X8, 0);
        e.b.ins().smax(less, none)
    }

    /// `s` and `n`; returns the largest `|s|`.
    fn sum(&self, e: &mut Emit<'_>, s: &Scratch) -> Value {
        let ([d, _], pairs, width) = (self.columns, self.tokens[1].div_ceil(2), self.width());
        let none = e.constant(I32X4, 0);
        let each = e.repeat(d, &[s.keys, s.sums, s.counts, none], |e, p| {
            let (keys, sums, counts) = (p[0], p[1], p[2]);
            let mut largest = p[3];
            let ones = e.constant(I16X8, 1);
            let zero = e.constant(I32X4, 0);
            for first in (0..width).step_by(16) {
                let vectors = (width - first).min(16) / 4;
                let values = e.add_imm(s.values, 4 * first as i64);
                let with_count = first == 0;
                let mut carried = vec![zero; vectors + usize::from(with_count)];
                carried.extend([keys, values]);
                let count = carried.len() - 2;
                let done = e.repeat(pairs, &carried, |e, p| {
                    let key = e.load(I32, Addr { base: p[count], disp: 0 });
                    let key = e.b.ins().splat(I32X4, key);
                    let key = e.cast(I16X8, key);
                    let mut next: Vec<Value> = (0..vectors)
                        .map(|i| {
                            let v = e.load(I16X8, Addr { base: p[count + 1], disp: 16 * i as i32 });
                            let pair = e.madd(key, v);
                            e.add(p[i], pair)
                        })
                        .collect();
                    if with_count {
                        let pair = e.madd(key, ones);
                        next.push(e.add(p[vectors], pair));
                    }
                    next.push(e.add_imm(p[count], 4 * d as i64));
                    next.push(e.add_imm(p[count + 1], 4 * width as i64));
                    next
                });
                for (i, &sum) in done[..vectors].iter().enumerate() {
                    e.store(sum, Addr { base: sums, disp: (4 * first + 16 * i) as i32 });
                    let size = e.b.ins().iabs(sum);
                    largest = e.b.ins().smax(largest, size);
                }
                if with_count {
                    let lane = e.b.ins().extractlane(done[vectors], 0);
                    let lane = e.b.ins().uextend(I64, lane);
                    e.store(lane, Addr { base: counts, disp: 0 });
                }
            }
            vec![e.add_imm(keys, 4), e.add_imm(sums, 4 * width as i64), e.add_imm(counts, 8), largest]
        });
        let lanes: Vec<Value> = (0..4).map(|i| e.b.ins().extractlane(each[3], i)).collect();
        let most = lanes.into_iter().reduce(|a, b| e.b.ins().smax(a, b)).expect("four lanes");
        e.b.ins().uextend(I64, most)
    }

    /// `max(0, bits(largest) - 14)`.
    fn halvings(&self, e: &mut Emit<'_>, largest: Value) -> Value {
        let leading = e.b.ins().clz(largest);
        let most = e.iconst(64 - 14);
        let over = e.b.ins().isub(most, leading);
        let none = e.iconst(0);
        e.b.ins().smax(over, none)
    }

    /// `w = s + half >> h` as pairs of d.
    fn weigh(&self, e: &mut Emit<'_>, s: &Scratch, halvings: Value) {
        let (d, width) = (self.columns[0], self.width());
        let one = e.iconst(1);
        let half = e.b.ins().ishl(one, halvings);
        let half = e.b.ins().ushr(half, one); // zero without halvings
        let half = e.b.ins().ireduce(I32, half);
        let half = e.b.ins().splat(I32X4, half);
        let by = e.b.ins().ireduce(I32, halvings);
        let low = e.constant(I32X4, 0xffff);
        let sixteen = e.constant(I32, 16);
        let shifted = |e: &mut Emit<'_>, at: Addr| {
            let v = e.load(I32X4, at);
            let v = e.add(v, half);
            e.b.ins().sshr(v, by)
        };
        let pair = |e: &mut Emit<'_>, p: &[Value], both: bool| {
            let first = shifted(e, Addr { base: p[0], disp: 0 });
            let mut pairs = e.b.ins().band(first, low);
            if both {
                let second = shifted(e, Addr { base: p[0], disp: 4 * width as i32 });
                let second = e.b.ins().ishl(second, sixteen);
                pairs = e.b.ins().bor(pairs, second);
            }
            e.store(pairs, Addr { base: p[1], disp: 0 });
            vec![e.add_imm(p[0], 16), e.add_imm(p[1], 16)]
        };
        let next = e.repeat(d / 2, &[s.sums, s.weights], |e, p| {
            let done = e.repeat(width / 4, p, |e, p| pair(e, p, true));
            vec![e.add_imm(done[0], 4 * width as i64), done[1]]
        });
        if d % 2 == 1 {
            e.repeat(width / 4, &next, |e, p| pair(e, p, false));
        }
    }

    fn rows(&self, e: &mut Emit<'_>, s: &Scratch, q: Value, out: Value, halvings: Value) {
        let shift = e.iconst(i64::from(self.shift));
        let shift = e.b.ins().isub(shift, halvings);
        let (one, less) = (e.iconst(1), e.add_imm(shift, -1));
        let half = e.b.ins().ishl(one, less);
        let [from, to] = [&self.sides[0], &self.sides[3]].map(Operand::row_stride);
        e.repeat(self.tokens[0], &[q, out], |e, p| {
            let divisor = self.multiply(e, s, p[0]);
            let r = self.reciprocal(e, divisor);
            e.repeat(self.columns[1], &[s.row, p[1]], |e, p| {
                let a = e.load_elem(Elem::I32, Addr { base: p[0], disp: 0 });
                let y = e.b.ins().imul(a, r);
                let y = e.add(y, half);
                let y = e.b.ins().sshr(y, shift);
                let y = e.add_imm(y, self.zero_point);
                let y = e.saturate(y, self.sides[3].elem);
                e.store_elem(self.sides[3].elem, y, Addr { base: p[1], disp: 0 });
                vec![e.add_imm(p[0], 4), e.add_imm(p[1], self.sides[3].column_stride())]
            });
            vec![e.add_imm(p[0], from), e.add_imm(p[1], to)]
        });
    }

    /// A row of q times `w`, into scratch, and times `n`.
    fn multiply(&self, e: &mut Emit<'_>, s: &Scratch, q: Value) -> Value {
        let ([d, _], width, step) = (self.columns, self.width(), self.sides[0].column_stride());
        let mut divisor = e.iconst(self.epsilon);
        let zero = e.constant(I32X4, 0);
        for first in (0..width).step_by(16) {
            let vectors = (width - first).min(16) / 4;
            let weights = e.add_imm(s.weights, 4 * first as i64);
            let mut carried = vec![zero; vectors];
            carried.extend([q, weights, s.counts, divisor]);
            let turn = |e: &mut Emit<'_>, p: &[Value], columns: usize| {
                let mut pair = e.iconst(0);
                let mut divisor = p[vectors + 3];
                for i in 0..columns {
                    let v = e.load_elem(Elem::U8, Addr { base: p[vectors], disp: 0 }.plus(i as i64 * step));
                    let v = less(e, v, self.q_zero, true);
                    pair = join(e, pair, v, i as i64);
                    if first == 0 {
                        let n = e.load(I64, Addr { base: p[vectors + 2], disp: 8 * i as i32 });
                        let term = e.b.ins().imul(v, n);
                        divisor = e.add(divisor, term);
                    }
                }
                let pair = e.b.ins().ireduce(I32, pair);
                let pair = e.b.ins().splat(I32X4, pair);
                let pair = e.cast(I16X8, pair);
                let mut next: Vec<Value> = (0..vectors)
                    .map(|i| {
                        let w = e.load(I16X8, Addr { base: p[vectors + 1], disp: 16 * i as i32 });
                        let sum = e.madd(pair, w);
                        e.add(p[i], sum)
                    })
                    .collect();
                next.push(e.add_imm(p[vectors], 2 * step));
                next.push(e.add_imm(p[vectors + 1], 4 * width as i64));
                next.push(e.add_imm(p[vectors + 2], 16));
                next.push(divisor);
                next
            };
            let mut done = e.repeat(d / 2, &carried, |e, p| turn(e, p, 2));
            if d % 2 == 1 {
                done = turn(e, &done, 1);
            }
            for (i, &a) in done[..vectors].iter().enumerate() {
                e.store(a, Addr { base: s.row, disp: (4 * first + 16 * i) as i32 });
            }
            divisor = done[vectors + 3];
        }
        let one = e.iconst(1);
        e.b.ins().smax(divisor, one)
    }

    fn reciprocal(&self, e: &mut Emit<'_>, divisor: Value) -> Value {
        let numerator = e.iconst(self.numerator);
        let one = e.iconst(1);
        if !self.log2 {
            let half = e.b.ins().ushr(divisor, one);
            let sum = e.add(numerator, half);
            return e.b.ins().sdiv(sum, divisor);
        }
        // the leading one and, unless it is the lowest bit, the bit below it
        let leading = e.b.ins().clz(divisor);
        let top = e.iconst(63);
        let i = e.b.ins().isub(top, leading);
        let doubled = e.b.ins().ishl(divisor, one);
        let below = e.b.ins().ushr(doubled, i);
        let below = e.b.ins().band(below, one);
        let by = e.add(i, below);
        e.b.ins().sshr(numerator, by)
    }
}

/// A byte less a zero point, perhaps no less than zero.
fn less(e: &mut Emit<'_>, v: Value, zero: i64, cut: bool) -> Value {
    if zero == 0 {
        return v;
    }
    let v = e.add_imm(v, -zero);
    let none = e.iconst(0);
    if cut { e.b.ins().smax(v, none) } else { v }
}

/// `pair` with the low 16 bits of `v` as its half `index`.
fn join(e: &mut Emit<'_>, pair: Value, v: Value, index: i64) -> Value {
    if index == 0 {
        let low = e.iconst(0xffff);
        return e.b.ins().band(v, low);
    }
    let by = e.iconst(16);
    let high = e.b.ins().ishl(v, by);
    e.b.ins().bor(pair, high)
}

/// Lanes of `a` and `b` in turn: those of the low (`from` 0) or high (`from` 8) halves.
fn interleave(e: &mut Emit<'_>, a: Value, b: Value, from: usize) -> Value {
    let (a, b) = (e.cast(I8X16, a), e.cast(I8X16, b));
    let mask: Vec<u8> = (0..16).map(|i| (from + i / 4 * 2 + i % 2 + if i % 4 < 2 { 0 } else { 16 }) as u8).collect();
    let mask = e.b.func.dfg.immediates.push(mask.into());
    e.b.ins().shuffle(a, b, mask)
}
