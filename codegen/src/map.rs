//! Elementwise kernels: a lane program over a nest of loops, eight elements of the innermost loop at a time.
//!
//! ```text
//! for row                 all loops but the innermost; none when every operand runs straight through memory
//!   for group of 8        then the rest one by one
//! ```

use cranelift_codegen::ir::Value;
use vitc_ir::Dim;

use crate::emit::{Addr, Emit};
use crate::lane::{GROUP, LaneSpec};
use crate::operand::{Operand, RowGroup, run_group, split_index};

/// Threads share single elements by as many as make a cache line, at least.
const LINE: usize = 64;
/// Elements that are moved one by one in a turn of a loop.
const TURN: i64 = 8;

/// A lane program over all elements of a result. Arguments: the inputs, then the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Map {
    /// Loops over rows; the innermost loop is over columns.
    pub sizes: Vec<Dim>,
    /// Columns; `None` when there are no rows and items are columns.
    pub columns: Option<usize>,
    pub inputs: Vec<Operand>,
    pub out: Operand,
    pub lane: LaneSpec,
}

impl Map {
    pub(crate) fn grain(&self) -> usize {
        if self.columns.is_none() { LINE } else { 1 }
    }

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let inputs: Vec<Value> = (0..self.inputs.len()).map(|n| e.arg(n)).collect();
        let out = e.arg(self.inputs.len());
        let (begin, end) = (e.begin, e.end);
        match self.columns {
            None => {
                let inputs: Vec<Value> = self.inputs.iter().zip(&inputs).map(|(o, &p)| o.base(e, p, &[])).collect();
                let out = self.out.base(e, out, &[]);
                self.columns(e, begin, end, &inputs, out);
            }
            Some(n) => {
                e.for_range(begin, end, 1, &[], |e, row, _| {
                    let at = split_index(e, row, &self.sizes);
                    let inputs: Vec<Value> = self.inputs.iter().zip(&inputs).map(|(o, &p)| o.base(e, p, &at)).collect();
                    let out = self.out.base(e, out, &at);
                    let (zero, n) = (e.iconst(0), e.iconst(n as i64));
                    self.columns(e, zero, n, &inputs, out);
                    Vec::new()
                });
            }
        }
    }

    /// Columns `from..to` of a row.
    pub(crate) fn columns(&self, e: &mut Emit<'_>, from: Value, to: Value, inputs: &[Value], out: Value) {
        let (rest, _) = e.while_room(from, to, GROUP as i64, GROUP as i64, &[], |e, i, _| {
            self.group(e, i, GROUP, inputs, out);
            Vec::new()
        });
        e.for_range(rest, to, 1, &[], |e, i, _| {
            self.group(e, i, 1, inputs, out);
            Vec::new()
        });
    }

    fn group(&self, e: &mut Emit<'_>, column: Value, count: usize, inputs: &[Value], out: Value) {
        let place = |e: &mut Emit<'_>, o: &Operand, p| Addr { base: e.at(p, column, o.column_stride()), disp: 0 };
        let at: Vec<Addr> = self.inputs.iter().zip(inputs).map(|(o, &p)| place(e, o, p)).collect();
        let to = place(e, &self.out, out);
        let mut group = RowGroup { inputs: &self.inputs, at: &at, first: None, count };
        run_group(e, &self.lane, &mut group, &self.out, to);
    }
}

/// Elements rearranged as they are. Arguments: source, target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Copy {
    /// Loops over rows.
    pub sizes: Vec<Dim>,
    /// Elements of the innermost loop; `None` when there are no rows and items are elements.
    pub columns: Option<usize>,
    pub from: Operand,
    pub to: Operand,
}

impl Copy {
    pub(crate) fn grain(&self) -> usize {
        if self.columns.is_none() { LINE } else { 1 }
    }

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let (from, to) = (e.arg(0), e.arg(1));
        let (begin, end) = (e.begin, e.end);
        let Some(n) = self.columns else {
            let (from, to) = (self.from.base(e, from, &[]), self.to.base(e, to, &[]));
            return self.straight(e, from, to, begin, end);
        };
        e.for_range(begin, end, 1, &[], |e, row, _| {
            let at = split_index(e, row, &self.sizes);
            let (from, to) = (self.from.base(e, from, &at), self.to.base(e, to, &at));
            let size = self.from.elem.bytes() as i64;
            if (self.from.column_stride(), self.to.column_stride()) == (size, size) {
                crate::copy::copy_run(e, n * size as usize, from, to);
            } else {
                let (zero, n) = (e.iconst(0), e.iconst(n as i64));
                self.each(e, from, to, zero, n);
            }
            Vec::new()
        });
    }

    /// Elements `begin..end` of two runs (or strided ones).
    fn straight(&self, e: &mut Emit<'_>, from: Value, to: Value, begin: Value, end: Value) {
        let size = self.from.elem.bytes() as i64;
        if (self.from.column_stride(), self.to.column_stride()) != (size, size) {
            return self.each(e, from, to, begin, end);
        }
        let per_vector = 16 / size;
        let (rest, _) = e.while_room(begin, end, per_vector, per_vector, &[], |e, i, _| {
            let (from, to) = (e.at(from, i, size), e.at(to, i, size));
            crate::copy::copy_run(e, 16, from, to);
            Vec::new()
        });
        self.each(e, from, to, rest, end);
    }

    /// Elements one by one, eight to a turn.
    fn each(&self, e: &mut Emit<'_>, from: Value, to: Value, begin: Value, end: Value) {
        let (step, width) = (self.from.column_stride(), self.to.column_stride());
        let start = [e.at(from, begin, step), e.at(to, begin, width)];
        let turn = |e: &mut Emit<'_>, p: &[Value], count: i64| {
            for i in 0..count {
                let v = e.load_elem(self.from.elem, Addr { base: p[0], disp: 0 }.plus(i * step));
                e.store_elem(self.to.elem, v, Addr { base: p[1], disp: 0 }.plus(i * width));
            }
            vec![e.add_imm(p[0], count * step), e.add_imm(p[1], count * width)]
        };
        let (rest, at) = e.while_room(begin, end, TURN, TURN, &start, |e, _, p| turn(e, p, TURN));
        e.for_range(rest, end, 1, &at, |e, _, p| turn(e, p, 1));
    }
}
