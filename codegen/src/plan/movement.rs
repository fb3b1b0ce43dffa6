//! Copies: movement nodes with a place, concatenation, gather, padding, and outputs that are views.

use cranelift_module::Module as Backend;
use vitc_ir::lane::{Inst, Program, Width};
use vitc_ir::{Dim, Elem, Node, Op, Shape, ValueId};
use vitc_runtime::Buffer;

use super::product::single;
use super::{Call, Lowered, Planner, extent, product_of};
use crate::copy::GatherRows;
use crate::kernel::Spec;
use crate::map::{Copy, Map};
use crate::operand::{Columns, Operand};
use crate::pixels::{PIXEL, Pixels};
use crate::view::{Lin, Nest, View, is_view_node};

/// Runs of a gather that are copied one by one.
const MOST_RUNS: usize = 4;

impl<M: Backend> Planner<'_, M> {
    /// A movement node: nothing when it is a view, otherwise a copy.
    pub(super) fn rearrange(&mut self, node: &Node) -> Lowered {
        if is_view_node(self.module, node) && !self.buffers.contains_key(&node.result) {
            return Ok(());
        }
        let (from, view) = self.operand(node.operands[0])?;
        let (x, result) = (self.module.ty(node.operands[0]), self.module.ty(node.result));
        let view = view.then(&node.op, &x.shape, &result.shape)?;
        let to = self.buffer(node.result)?;
        let target = View::contiguous(&result.shape).ok_or("the batch would be squared")?;
        self.copy(result.elem, (from, &view), (to, &target), &result.shape.clone())
    }

    pub(super) fn copy_output(&mut self, value: ValueId, to: Buffer) -> Lowered {
        let (from, view) = self.operand(value)?;
        let ty = self.module.ty(value).clone();
        let target = View::contiguous(&ty.shape).ok_or("the batch would be squared")?;
        self.copy(ty.elem, (from, &view), (to, &target), &ty.shape)
    }

    /// Copies all elements of `shape` from one view to another.
    fn copy(&mut self, elem: Elem, from: (Buffer, &View), to: (Buffer, &View), shape: &Shape) -> Lowered {
        let rank = shape.rank();
        let all: Vec<usize> = (0..rank).collect();
        let lists = [from.1, to.1].map(|v| super::flat_over(v, shape, &all));
        let nest = Nest::joint(&lists)?.with_long_columns();
        let (sizes, columns) = split(&nest)?;
        let operand = |i: usize, offset| operand_of(&nest, i, elem, offset);
        let spec =
            Copy { sizes: sizes.clone(), columns, from: operand(0, from.1.offset)?, to: operand(1, to.1.offset)? };
        let items = if columns.is_none() { nest.sizes[0] } else { product_of(&sizes)? };
        let name = format!("copy_{}{}", elem.name(), columns.map_or(String::new(), |n| format!("__n{n}")));
        let grain = spec.grain();
        self.step(Call { spec: Spec::Copy(spec), name, args: vec![from.0, to.0], items: extent(items), grain, macs: 0 })
    }

    pub(super) fn concat(&mut self, node: &Node, axis: usize) -> Lowered {
        let result = self.module.ty(node.result).clone();
        let whole = View::contiguous(&result.shape).ok_or("the batch would be squared")?;
        let to = self.buffer(node.result)?;
        let mut start = 0;
        for &x in &node.operands {
            let shape = self.module.ty(x).shape.clone();
            let len = shape.0[axis].as_fixed().ok_or("concatenation along the batch")?;
            let part = whole.then(&Op::Slice { axis, start, len, step: 1 }, &result.shape, &shape)?;
            let (from, view) = self.operand(x)?;
            self.copy(result.elem, (from, &view), (to, &part), &shape)?;
            start += len;
        }
        Ok(())
    }

    /// Row numbers as a constant.
    pub(super) fn rows_table(&mut self, index: &[usize]) -> Buffer {
        let bytes: Vec<u8> = index.iter().flat_map(|&i| (i as u32).to_le_bytes()).collect();
        self.pool(bytes)
    }

    /// Nothing when the users read rows in another order. One copy for each run of evenly spaced indices where those are few,
    /// else one copy by a table.
    pub(super) fn gather(&mut self, node: &Node, axis: usize, index: &[usize]) -> Lowered {
        if is_view_node(self.module, node) && !self.buffers.contains_key(&node.result) {
            return Ok(());
        }
        let straight = View::contiguous(&self.module.ty(node.operands[0]).shape);
        if runs(index).len() > MOST_RUNS && straight == Some(self.operand(node.operands[0])?.1) {
            return self.gather_by_table(node, axis, index);
        }
        let result = self.module.ty(node.result).clone();
        let x = self.module.ty(node.operands[0]).shape.clone();
        let whole = View::contiguous(&result.shape).ok_or("the batch would be squared")?;
        let to = self.buffer(node.result)?;
        let (from, view) = self.operand(node.operands[0])?;
        for Run { at, every, start, len, step } in runs(index) {
            let mut shape = result.shape.clone();
            shape.0[axis] = Dim::fixed(len);
            let part = whole.then(&Op::Slice { axis, start: at, len, step: every }, &result.shape, &shape)?;
            let source = view.then(&Op::Slice { axis, start, len, step }, &x, &shape)?;
            self.copy(result.elem, (from, &source), (to, &part), &shape)?;
        }
        Ok(())
    }

    fn gather_by_table(&mut self, node: &Node, axis: usize, index: &[usize]) -> Lowered {
        let (x, result) = (self.module.ty(node.operands[0]).clone(), self.module.ty(node.result).clone());
        let (from, _) = self.operand(node.operands[0])?;
        let inner = product_of(&x.shape.0[axis + 1..])?.as_fixed().ok_or("a gather along the batch")?;
        let rows = x.shape.0[axis].as_fixed().ok_or("a gather along the batch")?;
        let bytes = inner * result.elem.bytes();
        let spec = GatherRows { rows, taken: index.len(), bytes };
        let items = product_of(&result.shape.0[..=axis])?;
        let to = self.buffer(node.result)?;
        let args = vec![from, self.rows_table(index), to];
        let name = format!("gather__b{bytes}n{}", index.len());
        self.step(Call { spec: Spec::GatherRows(spec), name, args, items: extent(items), grain: 16, macs: 0 })
    }

    /// Planes that become pixels of four bytes on the way go in one pass. Otherwise fills everything, then copies the middle.
    pub(super) fn pad(&mut self, node: &Node, before: &[usize], value: f64) -> Lowered {
        if let Some(pixels) = self.pixels(node, before, value)? {
            let (name, items) = (pixels.name(), product_of(&self.module.ty(node.result).shape.0[..2])?);
            let args = vec![self.operand(node.operands[0])?.0, self.buffer(node.result)?];
            let spec = Spec::Pixels(pixels);
            return self.step(Call { spec, name, args, items: extent(items), grain: 4, macs: 0 });
        }
        let result = self.module.ty(node.result).clone();
        let to = self.buffer(node.result)?;
        self.fill(&result.shape, result.elem, value as i64, to)?;
        let mut part = View::contiguous(&result.shape).ok_or("the batch would be squared")?;
        let mut shape = result.shape.clone();
        let x = self.module.ty(node.operands[0]).shape.clone();
        for (axis, &start) in before.iter().enumerate() {
            if x.0[axis] == shape.0[axis] {
                continue;
            }
            let len = x.0[axis].as_fixed().ok_or("padding of the batch")?;
            let from = shape.clone();
            shape.0[axis] = Dim::fixed(len);
            part = part.then(&Op::Slice { axis, start, len, step: 1 }, &from, &shape)?;
        }
        let (from, view) = self.operand(node.operands[0])?;
        self.copy(result.elem, (from, &view), (to, &part), &x)
    }

    fn pixels(&mut self, node: &Node, before: &[usize], value: f64) -> Lowered<Option<Pixels>> {
        let (_, view) = self.operand(node.operands[0])?;
        let (x, result) = (self.module.ty(node.operands[0]), self.module.ty(node.result));
        let fixed = |shape: &Shape| [1, 2, 3].map(|d| shape.0[d].as_fixed().unwrap_or(0));
        if result.shape.rank() != 4 || result.elem.bytes() != 1 || x.shape.0[0] != result.shape.0[0] {
            return Ok(None);
        }
        let ([height, width, planes], [rows, columns, channels]) = (fixed(&x.shape), fixed(&result.shape));
        let strides: Vec<Lin> = view.dims.iter().filter_map(|d| single(d).ok()).collect();
        let &[images, down, across, apart] = &strides[..] else { return Ok(None) };
        let Some(plane) = apart.as_fixed().filter(|_| across == Lin::fixed(1)) else { return Ok(None) };
        if channels != PIXEL || before[3] != 0 || height == 0 || width == 0 {
            return Ok(None);
        }
        let columns_of_x = Columns::Stride(1);
        let x = Operand { elem: x.elem, offset: view.offset, rows: vec![images, down], columns: columns_of_x };
        Ok(x.check_rows().is_ok().then_some(Pixels {
            x,
            planes,
            plane,
            size: [height, width],
            before: [before[1], before[2]],
            padded: [rows, columns],
            value: value as i64 as u8,
        }))
    }

    fn fill(&mut self, shape: &Shape, elem: Elem, value: i64, to: Buffer) -> Lowered {
        let width = if elem == Elem::I64 { Width::W64 } else { Width::W32 };
        let program = Program { inputs: vec![], insts: vec![Inst::Const(value, width)], output: elem };
        let lane = self.lane(&program, &[])?;
        let out = Operand { elem, offset: Lin::ZERO, rows: vec![], columns: Columns::Stride(1) };
        let map = Map { sizes: vec![], columns: None, inputs: vec![], out, lane };
        let items = extent(shape.count().ok_or("too many elements")?);
        let (grain, name) = (map.grain(), format!("fill_{}", elem.name()));
        self.step(Call { spec: Spec::Map(map), name, args: vec![to], items, grain, macs: 0 })
    }
}

/// Loops over rows and the innermost loop of a nest; a nest of one loop has no rows.
pub(super) fn split(nest: &Nest) -> Lowered<(Vec<Dim>, Option<usize>)> {
    match &nest.sizes[..] {
        [] => Ok((vec![], Some(1))),
        [_] => Ok((vec![], None)),
        [rows @ .., columns] => {
            Ok((rows.to_vec(), Some(columns.as_fixed().ok_or("columns that grow with the batch")?)))
        }
    }
}

pub(super) fn operand_of(nest: &Nest, i: usize, elem: Elem, offset: Lin) -> Lowered<Operand> {
    let strides = &nest.strides[i];
    let (columns, rows) = match strides.split_last() {
        None => (Columns::Same, vec![]),
        Some((last, rows)) => {
            let stride = last.as_fixed().ok_or("columns whose stride grows with the batch")?;
            (if stride == 0 { Columns::Same } else { Columns::Stride(stride) }, rows.to_vec())
        }
    };
    Ok(Operand { elem, offset, rows, columns })
}

/// Indices `start, start + step, ...`: the result's from place `at` on, of every `every`-th place.
struct Run {
    at: usize,
    every: i64,
    start: usize,
    len: usize,
    step: i64,
}

/// Splits indices into runs: one behind the other or, where those are many, a few in turn.
fn runs(index: &[usize]) -> Vec<Run> {
    let straight = even_runs(index, 0, 1);
    if straight.len() <= MOST_RUNS {
        return straight;
    }
    let in_turn = |turns: usize| {
        let part = |j: usize| even_runs(&index.iter().skip(j).step_by(turns).copied().collect::<Vec<_>>(), j, turns);
        let runs: Vec<Run> = (0..turns).flat_map(part).collect();
        (runs.len() == turns).then_some(runs)
    };
    (2..=MOST_RUNS).find_map(in_turn).unwrap_or(straight)
}

/// Splits indices, of every `every`-th place from place `first` on, into runs.
fn even_runs(index: &[usize], first: usize, every: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (n, &i) in index.iter().enumerate() {
        if let Some(Run { start, len, step, .. }) = runs.last_mut() {
            let last = *start as i64 + (*len as i64 - 1) * *step;
            let next = i as i64 - last;
            if *len == 1 || next == *step {
                *step = next;
                *len += 1;
                continue;
            }
        }
        runs.push(Run { at: first + n * every, every: every as i64, start: i, len: 1, step: 1 });
    }
    runs
}
