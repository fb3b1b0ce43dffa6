//! Sums over an axis that is not the last.
//!
//! ```text
//! for item = 64 columns of a row of results      one result where columns do not lie together
//!   for group of 8 columns                       two vectors of four sums
//!     for index of the axis
//! ```

use cranelift_codegen::ir::types::{I32, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use vitc_ir::Dim;

use crate::emit::{Addr, Emit};
use crate::lane::{self, GROUP, Lanes, Packed};
use crate::operand::{Operand, split_index};

/// Columns of an item.
pub(crate) const BLOCK: usize = 64;

/// Sums over an axis. Arguments: x, result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct AxisSum {
    /// Loops over results, but for columns.
    pub sizes: Vec<Dim>,
    /// Neighbouring results, where they and what is summed lie together.
    pub columns: usize,
    pub x: Operand,
    pub out: Operand,
    /// Length of the axis and elements from one index to the next.
    pub axis: (usize, i64),
}

impl AxisSum {
    /// Items for each row of results.
    pub(crate) fn blocks(&self) -> usize {
        self.columns.div_ceil(BLOCK)
    }

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let (from, to) = (e.arg(0), e.arg(1));
        let (begin, end) = (e.begin, e.end);
        e.for_range(begin, end, 1, &[], |e, item, _| {
            let blocks = e.iconst(self.blocks() as i64);
            let row = e.b.ins().udiv(item, blocks);
            let block = e.b.ins().urem(item, blocks);
            let at = split_index(e, row, &self.sizes);
            let (from, to) = (self.x.base(e, from, &at), self.out.base(e, to, &at));
            let first = e.mul_imm(block, BLOCK as i64);
            let all = e.iconst(self.columns as i64);
            let past = e.add_imm(first, BLOCK as i64);
            let past = e.b.ins().smin(past, all);
            let (rest, _) = e.while_room(first, past, GROUP as i64, GROUP as i64, &[], |e, column, _| {
                self.sum(e, from, to, column, GROUP);
                Vec::new()
            });
            e.for_range(rest, past, 1, &[], |e, column, _| {
                self.sum(e, from, to, column, 1);
                Vec::new()
            });
            Vec::new()
        });
    }

    /// The sums of eight columns, or of one.
    fn sum(&self, e: &mut Emit<'_>, from: Value, to: Value, column: Value, count: usize) {
        let size = self.x.elem.bytes() as i64;
        let from = e.at(from, column, size);
        let to = Addr { base: e.at(to, column, 4), disp: 0 };
        let zero = e.constant(if count == GROUP { I32X4 } else { I32 }, 0);
        let sums = if count == GROUP { vec![zero; 2] } else { vec![zero] };
        let carried: Vec<Value> = sums.iter().copied().chain([from]).collect();
        let done = e.repeat(self.axis.0, &carried, |e, c| {
            let (at, sums) = c.split_last().expect("a pointer and sums");
            let here = Addr { base: *at, disp: 0 };
            let values = if count == GROUP {
                let loaded = lane::load(e, self.x.elem, here, GROUP);
                words(e, loaded).to_vec()
            } else {
                let v = e.load_elem(self.x.elem, here);
                vec![e.b.ins().ireduce(I32, v)]
            };
            let mut next: Vec<Value> = sums.iter().zip(&values).map(|(&s, &v)| e.b.ins().iadd(s, v)).collect();
            next.push(e.add_imm(*at, self.axis.1 * size));
            next
        });
        if count == GROUP {
            return lane::store(e, Packed::Words([done[0], done[1]]), to, GROUP);
        }
        e.store(done[0], to);
    }
}

/// Eight elements of at most 32 bits as two vectors of four.
fn words(e: &mut Emit<'_>, lanes: Lanes) -> [Value; 2] {
    match lanes {
        Lanes::I16(v) => [e.b.ins().swiden_low(v), e.b.ins().swiden_high(v)],
        Lanes::I32(v) => v,
        Lanes::Const(_) | Lanes::I64(_) => unreachable!("what is loaded is narrow"),
    }
}
