//! Packing of a right side that is an activation: into panels in this thread's scratch, with the sums of its columns.

use cranelift_codegen::ir::types::{I8, I8X16, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, Value};
use vitc_ir::Elem;

use super::{ARow, Gemm, PANEL};
use crate::emit::{Addr, Emit};
use crate::lane::GROUP;
use crate::operand::Operand;

impl Gemm {
    /// Packs an activation b into panels; rows past K and columns past N are zero.
    pub(super) fn pack_matrix(&self, e: &mut Emit<'_>, b: &Operand, k_stride: i64, from: Value, to: Value) {
        let n_stride = b.column_stride();
        if k_stride == 1 && b.elem.bytes() == 1 {
            self.pack_columns(e, b, n_stride, from, to);
        } else if n_stride == 1 {
            self.pack_rows(e, b, k_stride, from, to);
        } else {
            self.pack_scattered(e, b, k_stride, n_stride, from, to);
        }
        if !self.n.is_multiple_of(PANEL) && n_stride != 1 {
            self.clear_columns(e, to);
        }
    }

    fn flip(&self, b: &Operand) -> bool {
        b.elem == Elem::U8
    }

    /// Four consecutive k of a column are consecutive bytes (a transposed matrix of keys).
    fn pack_columns(&self, e: &mut Emit<'_>, b: &Operand, n_stride: i64, from: Value, to: Value) {
        let (zero, n) = (e.iconst(0), e.iconst(self.n as i64));
        e.for_range(zero, n, 1, &[], |e, column, _| {
            let source = e.at(from, column, n_stride);
            let target = self.column_address(e, to, column);
            let groups = self.k / 4;
            let whole = e.repeat(groups, &[source, target], |e, p| {
                let v = e.load(I32, Addr { base: p[0], disp: 0 });
                let v = self.flipped(e, b, v, 0x8080_8080);
                e.store(v, Addr { base: p[1], disp: 0 });
                vec![e.add_imm(p[0], 4), e.add_imm(p[1], 4 * PANEL as i64)]
            });
            if !self.k.is_multiple_of(4) {
                let tail = ARow { at: Addr { base: whole[0], disp: 0 }, bytes: self.k % 4 };
                let v = tail.load_bytes(e);
                let mask = 0x8080_8080u32 & ((1u32 << (8 * (self.k % 4))) - 1);
                let v = self.flipped(e, b, v, mask.into());
                e.store(v, Addr { base: whole[1], disp: 0 });
            }
            Vec::new()
        });
    }

    fn flipped(&self, e: &mut Emit<'_>, b: &Operand, v: Value, mask: i64) -> Value {
        if !self.flip(b) {
            return v;
        }
        let mask = e.constant(I32, mask);
        e.b.ins().bxor(v, mask)
    }

    /// Address of a column's first four k.
    fn column_address(&self, e: &mut Emit<'_>, to: Value, column: Value) -> Value {
        let three = e.iconst(3);
        let panel = e.b.ins().ushr(column, three);
        let to = e.at(to, panel, (self.k4() * PANEL) as i64);
        let seven = e.iconst(7);
        let within = e.b.ins().band(column, seven);
        e.at(to, within, 4)
    }

    /// Columns are consecutive bytes (a matrix of values): four rows at a time are interleaved.
    fn pack_rows(&self, e: &mut Emit<'_>, b: &Operand, k_stride: i64, from: Value, to: Value) {
        let full = self.n / PANEL;
        let (zero, end) = (e.iconst(0), e.iconst(full as i64));
        e.for_range(zero, end, 1, &[], |e, panel, _| {
            let source = e.at(from, panel, PANEL as i64);
            let target = e.at(to, panel, (self.k4() * PANEL) as i64);
            self.pack_panel(e, b, k_stride, source, target, PANEL);
            Vec::new()
        });
        if !self.n.is_multiple_of(PANEL) {
            let source = e.add_imm(from, (full * PANEL) as i64);
            let target = e.add_imm(to, (full * self.k4() * PANEL) as i64);
            self.pack_panel(e, b, k_stride, source, target, self.n % PANEL);
        }
    }

    fn pack_panel(&self, e: &mut Emit<'_>, b: &Operand, k_stride: i64, from: Value, to: Value, columns: usize) {
        let done = e.repeat(self.k / 4, &[from, to], |e, p| {
            self.interleave(e, b, k_stride, p[0], p[1], 4, columns);
            vec![e.add_imm(p[0], 4 * k_stride), e.add_imm(p[1], 4 * PANEL as i64)]
        });
        if !self.k.is_multiple_of(4) {
            self.interleave(e, b, k_stride, done[0], done[1], self.k % 4, columns);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn interleave(
        &self,
        e: &mut Emit<'_>,
        b: &Operand,
        stride: i64,
        from: Value,
        to: Value,
        rows: usize,
        columns: usize,
    ) {
        let zero = e.constant(I8X16, 0);
        let r: Vec<Value> = (0..4)
            .map(|i| {
                if i >= rows {
                    return zero;
                }
                let v = load_columns(e, Addr { base: from, disp: 0 }.plus(i as i64 * stride), columns);
                if !self.flip(b) {
                    return v;
                }
                // What is beyond the columns stays zero.
                let mask = match columns {
                    PANEL => e.constant(I8X16, -128),
                    _ => e.bytes16(std::array::from_fn(|i| if i < columns { 0x80 } else { 0 })),
                };
                e.b.ins().bxor(v, mask)
            })
            .collect();
        let low = |e: &mut Emit<'_>, a, b| interleave_low(e, a, b, 1);
        let (x, y) = (low(e, r[0], r[1]), low(e, r[2], r[3]));
        let first = interleave_low(e, x, y, 2);
        let second = interleave_high(e, x, y);
        e.store(first, Addr { base: to, disp: 0 });
        e.store(second, Addr { base: to, disp: 16 });
    }

    /// Any strides, byte by byte.
    fn pack_scattered(&self, e: &mut Emit<'_>, b: &Operand, k_stride: i64, n_stride: i64, from: Value, to: Value) {
        let (zero, n, k4) = (e.iconst(0), e.iconst(self.n as i64), e.iconst(self.k as i64));
        e.for_range(zero, n, 1, &[], |e, column, _| {
            let source = e.at(from, column, n_stride);
            let target = self.column_address(e, to, column);
            e.for_range(zero, k4, 1, &[], |e, k, _| {
                let at = e.at(source, k, k_stride);
                let v = e.load(I8, Addr { base: at, disp: 0 });
                let mask = e.constant(I8, if self.flip(b) { -128 } else { 0 });
                let v = e.b.ins().bxor(v, mask);
                let (two, three) = (e.iconst(2), e.iconst(3));
                let group = e.b.ins().ushr(k, two);
                let within = e.b.ins().band(k, three);
                let to = e.at(target, group, 4 * PANEL as i64);
                let to = e.add(to, within);
                e.store(v, Addr { base: to, disp: 0 });
                Vec::new()
            });
            for k in self.k..self.k4() {
                let none = e.constant(I8, 0);
                e.store(none, Addr { base: target, disp: ((k / 4) * 4 * PANEL + k % 4) as i32 });
            }
            Vec::new()
        });
    }

    fn clear_columns(&self, e: &mut Emit<'_>, to: Value) {
        let last = e.add_imm(to, ((self.panels() - 1) * self.k4() * PANEL) as i64);
        e.repeat(self.k4() / 4, &[last], |e, p| {
            let none = e.constant(I32, 0);
            for column in self.n % PANEL..PANEL {
                e.store(none, Addr { base: p[0], disp: 4 * column as i32 });
            }
            vec![e.add_imm(p[0], 4 * PANEL as i64)]
        });
    }

    /// The corrections of a packed matrix: `K*za*zb - za * sum_k b`.
    pub(super) fn sum_columns(&self, e: &mut Emit<'_>, packed: Value, to: Value) {
        let (zero, panels) = (e.iconst(0), e.iconst(self.panels() as i64));
        e.for_range(zero, panels, 1, &[], |e, panel, _| {
            let b = e.at(packed, panel, (self.k4() * PANEL) as i64);
            let to = e.at(to, panel, 4 * PANEL as i64);
            let (none, ones) = (e.constant(I32X4, 0), e.constant(I8X16, 1));
            let sums = e.repeat(self.k4() / 4, &[none, none, b], |e, p| {
                let w = [0, 16].map(|disp| e.load(I8X16, Addr { base: p[2], disp }));
                vec![e.dot(p[0], ones, w[0]), e.dot(p[1], ones, w[1]), e.add_imm(p[2], 4 * PANEL as i64)]
            });
            let zero_point = e.constant(I32X4, -self.a_zero);
            let constant = e.constant(I32X4, self.k as i64 * self.a_zero * self.b_zero);
            for (v, disp) in [(sums[0], 0), (sums[1], 16)] {
                let v = e.b.ins().imul(v, zero_point);
                let v = e.add(v, constant);
                e.store(v, Addr { base: to, disp });
            }
            Vec::new()
        });
    }
}

/// Up to eight bytes in the low half of a vector.
fn load_columns(e: &mut Emit<'_>, at: Addr, count: usize) -> Value {
    if count == GROUP {
        let v = e.load(I64, at);
        let v = e.b.ins().scalar_to_vector(I64X2, v);
        return e.cast(I8X16, v);
    }
    let mut v = e.constant(I8X16, 0);
    for i in 0..count {
        let x = e.load(I8, at.plus(i as i64));
        v = e.b.ins().insertlane(v, x, i as u8);
    }
    v
}

/// Units of `unit` bytes of the low halves of `a` and `b` in turn.
fn interleave_low(e: &mut Emit<'_>, a: Value, b: Value, unit: usize) -> Value {
    interleave(e, a, b, unit, 0)
}

/// Pairs of bytes of the high halves of `a` and `b` in turn.
fn interleave_high(e: &mut Emit<'_>, a: Value, b: Value) -> Value {
    interleave(e, a, b, 2, 8)
}

fn interleave(e: &mut Emit<'_>, a: Value, b: Value, unit: usize, from: usize) -> Value {
    let mask: Vec<u8> = (0..16)
        .map(|i| {
            let (pair, within) = (i / (2 * unit), i % unit);
            let source = if (i / unit).is_multiple_of(2) { 0 } else { 16 };
            (source + from + pair * unit + within) as u8
        })
        .collect();
    let mask = e.b.func.dfg.immediates.push(mask.into());
    e.b.ins().shuffle(a, b, mask)
}
