//! Operands of row-wise kernels: a pointer argument, how rows step through it and how columns do.

use cranelift_codegen::ir::{InstBuilder, Value};
use vitc_ir::{Dim, Elem};

use crate::emit::{Addr, Emit};
use crate::lane::{self, GROUP, LaneSpec, Lanes, Packed, Source};
use crate::view::{Factor, Lin};

/// How columns of an operand lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Columns {
    /// One value for all columns.
    Same,
    /// This many elements from one column to the next.
    Stride(i64),
    /// 256 table entries, no columns.
    Table,
}

impl Columns {
    /// The columns of a flattened dimension, when one stride describes them.
    pub(crate) fn of(factors: &[Factor]) -> Result<Columns, String> {
        match factors {
            [] => Ok(Columns::Same),
            [f] => match f.stride.as_fixed() {
                Some(0) => Ok(Columns::Same),
                Some(s) => Ok(Columns::Stride(s)),
                None => Err("columns whose stride depends on the batch".into()),
            },
            _ => Err("columns of a split dimension".into()),
        }
    }
}

/// An operand: an element type, an offset, a stride for each loop over rows, and columns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Operand {
    /// Element type.
    pub elem: Elem,
    /// First element.
    pub offset: Lin,
    /// Elements from one turn of each row loop to the next, outermost first.
    pub rows: Vec<Lin>,
    /// How columns lie.
    pub columns: Columns,
}

impl Operand {
    fn bytes(&self) -> i64 {
        self.elem.bytes() as i64
    }

    /// Bytes from row to row of the innermost loop.
    pub(crate) fn row_stride(&self) -> i64 {
        let stride = self.rows.last().copied().unwrap_or(Lin::ZERO);
        stride.as_fixed().expect("checked by `check_rows`") * self.bytes()
    }

    /// Bytes from column to column.
    pub(crate) fn column_stride(&self) -> i64 {
        match self.columns {
            Columns::Stride(s) => s * self.bytes(),
            Columns::Same | Columns::Table => 0,
        }
    }

    pub(crate) fn check_rows(&self) -> Result<(), String> {
        match self.rows.last().copied().unwrap_or(Lin::ZERO).as_fixed() {
            Some(s) if (s * self.bytes()).abs() < 1 << 24 => Ok(()),
            _ => Err("rows whose stride depends on the batch or is very large".into()),
        }
    }

    /// Address of row zero of the innermost loop for these indices of the outer loops.
    pub(crate) fn base(&self, e: &mut Emit<'_>, pointer: Value, outer: &[Value]) -> Value {
        let offset = e.lin(self.offset.scaled(self.bytes()));
        let mut at = e.add(pointer, offset);
        for (&i, &stride) in outer.iter().zip(&self.rows) {
            if stride != Lin::ZERO {
                let stride = e.lin(stride.scaled(self.bytes()));
                let step = e.b.ins().imul(i, stride);
                at = e.add(at, step);
            }
        }
        at
    }

    /// Loads `count` elements from column address `a`.
    pub(crate) fn load(&self, e: &mut Emit<'_>, a: Addr, count: usize) -> Lanes {
        match self.columns {
            Columns::Same => lane::load_splat(e, self.elem, a),
            Columns::Stride(1) => lane::load(e, self.elem, a, count),
            _ => {
                let addrs: Vec<Addr> = (0..count).map(|i| a.plus(i as i64 * self.column_stride())).collect();
                lane::load_each(e, self.elem, &addrs)
            }
        }
    }

    /// Stores `count` elements to column address `a`.
    pub(crate) fn store(&self, e: &mut Emit<'_>, v: Packed, a: Addr, count: usize) {
        if self.columns == Columns::Stride(1) {
            return lane::store(e, v, a, count);
        }
        let addrs: Vec<Addr> = (0..count).map(|i| a.plus(i as i64 * self.column_stride())).collect();
        lane::store_each(e, v, &addrs);
    }
}

/// Splits a flat index into the indices of loops of these sizes, outermost first.
pub(crate) fn split_index(e: &mut Emit<'_>, flat: Value, sizes: &[Dim]) -> Vec<Value> {
    let mut left = flat;
    let mut indices = Vec::new();
    for (i, &size) in sizes.iter().enumerate().rev() {
        if i == 0 {
            indices.push(left);
            break;
        }
        let size = e.lin(Lin::ZERO.plus(Lin::fixed(1)).times(size).expect("one times a dimension"));
        let quotient = e.b.ins().udiv(left, size);
        let whole = e.b.ins().imul(quotient, size);
        indices.push(e.b.ins().isub(left, whole));
        left = quotient;
    }
    indices.reverse();
    indices
}

/// A group of eight columns of one row as a lane program sees it.
pub(crate) struct RowGroup<'s> {
    /// The program's inputs; the first may be given in registers instead.
    pub inputs: &'s [Operand],
    /// Address of the group's first column in each input (of the first entry, for tables).
    pub at: &'s [Addr],
    /// Input 0, when it is not in memory.
    pub first: Option<Lanes>,
    /// Columns of the group.
    pub count: usize,
}

impl Source for RowGroup<'_> {
    fn load(&mut self, e: &mut Emit<'_>, n: usize) -> Lanes {
        match (n, self.first) {
            (0, Some(lanes)) => lanes,
            _ => self.inputs[n].load(e, self.at[n], self.count),
        }
    }

    fn table(&mut self, e: &mut Emit<'_>, n: usize) -> Value {
        e.add_imm(self.at[n].base, self.at[n].disp.into())
    }
}

/// Runs the lane program on one group and stores the result.
pub(crate) fn run_group(e: &mut Emit<'_>, lane: &LaneSpec, group: &mut RowGroup<'_>, out: &Operand, to: Addr) {
    debug_assert!((1..=GROUP).contains(&group.count));
    let count = group.count;
    if let Some(table) = lane.last_table() {
        let indices = lane::emit_indices(e, lane, count, group);
        let table = group.table(e, table);
        return look_up_in_place(e, indices, table, out, to, count);
    }
    let packed = match (group.first, lane.is_identity()) {
        (Some(Lanes::I32(v)), true) => Packed::Words(v),
        _ => lane::emit(e, lane, count, group),
    };
    out.store(e, packed, to, count);
}

/// Stores indices where the results go, then replaces each by its entry of a table of bytes: three instructions for each
/// element, where taking indices out of a vector and putting entries into one takes seven.
fn look_up_in_place(e: &mut Emit<'_>, indices: Packed, table: Value, out: &Operand, to: Addr, count: usize) {
    out.store(e, indices, to, count);
    for i in 0..count {
        let at = to.plus(i as i64 * out.column_stride());
        let index = e.load_elem(Elem::U8, at);
        let entry = Addr { base: e.add(table, index), disp: 0 };
        let v = e.load_elem(Elem::U8, entry);
        e.store_elem(Elem::U8, v, at);
    }
}
