//! Movement kernels: strided copies with contiguous inner runs.

use cranelift_codegen::ir::types::{I8, I8X16, I16, I32, I64};
use cranelift_codegen::ir::{InstBuilder, Value};

use crate::emit::{Addr, Emit};
use crate::view::Factor;

/// Copies the elements of `factors` (outermost first, strides fixed, in elements of `size` bytes) to consecutive storage.
pub(crate) fn copy_factors(e: &mut Emit<'_>, factors: &[Factor], size: usize, from: Value, to: Value) {
    let sizes: Vec<usize> = factors.iter().map(|f| f.size.size).collect();
    let strides: Vec<i64> = factors.iter().map(|f| f.stride.as_fixed().expect("fixed strides")).collect();
    copy_nest(e, &sizes, &strides, size, from, to);
}

fn copy_nest(e: &mut Emit<'_>, sizes: &[usize], strides: &[i64], size: usize, from: Value, to: Value) {
    match (sizes, strides) {
        ([], _) => copy_run(e, size, from, to),
        ([n], [1]) => copy_run(e, n * size, from, to),
        ([n, sizes @ ..], [s, strides @ ..]) => {
            let inner = sizes.iter().product::<usize>() * size;
            e.repeat(*n, &[from, to], |e, p| {
                copy_nest(e, sizes, strides, size, p[0], p[1]);
                vec![e.add_imm(p[0], s * size as i64), e.add_imm(p[1], inner as i64)]
            });
        }
        _ => unreachable!("as many strides as sizes"),
    }
}

/// Copies `bytes` consecutive bytes.
pub(crate) fn copy_run(e: &mut Emit<'_>, bytes: usize, from: Value, to: Value) {
    let (mut from, mut to) = (from, to);
    let whole = bytes / 16;
    let mut at = 0i64;
    if whole > 8 {
        let done = e.repeat(whole, &[from, to], |e, p| {
            let v = e.load(I8X16, Addr { base: p[0], disp: 0 });
            e.store(v, Addr { base: p[1], disp: 0 });
            vec![e.add_imm(p[0], 16), e.add_imm(p[1], 16)]
        });
        (from, to) = (done[0], done[1]);
    } else {
        for _ in 0..whole {
            move_piece(e, I8X16, from, to, at);
            at += 16;
        }
    }
    for (ty, size) in [(I64, 8), (I32, 4), (I16, 2), (I8, 1)] {
        if bytes & size != 0 {
            move_piece(e, ty, from, to, at);
            at += size as i64;
        }
    }
}

fn move_piece(e: &mut Emit<'_>, ty: cranelift_codegen::ir::Type, from: Value, to: Value, at: i64) {
    let v = e.load(ty, Addr { base: from, disp: 0 }.plus(at));
    e.store(v, Addr { base: to, disp: 0 }.plus(at));
}

/// Rows taken by a table: of every `rows` rows of x, `taken` rows of the result. Arguments: x, the table of `u32`, out. An item is a
/// row of the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct GatherRows {
    pub rows: usize,
    pub taken: usize,
    /// Of a row.
    pub bytes: usize,
}

impl GatherRows {
    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let (begin, end) = (e.begin, e.end);
        let [x, table, out] = std::array::from_fn(|n| e.arg(n));
        e.for_range(begin, end, 1, &[], |e, item, _| {
            let taken = e.iconst(self.taken as i64);
            let turn = e.b.ins().udiv(item, taken);
            let before = e.b.ins().imul(turn, taken);
            let within = e.b.ins().isub(item, before);
            let entry = e.at(table, within, 4);
            let row = e.load_elem(vitc_ir::Elem::I32, Addr { base: entry, disp: 0 });
            let first = e.mul_imm(turn, self.rows as i64);
            let row = e.add(first, row);
            let from = e.at(x, row, self.bytes as i64);
            let to = e.at(out, item, self.bytes as i64);
            copy_run(e, self.bytes, from, to);
            Vec::new()
        });
    }
}
