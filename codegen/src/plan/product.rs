//! Matrix products.

use std::sync::Arc;

use bytes::Bytes;
use cranelift_module::Module as Backend;
use vitc_ir::lane::{Access, Input, Inst, Program};
use vitc_ir::layout::Layout;
use vitc_ir::{Const, Elem, Node, Op, Shape, ValueId};
use vitc_runtime::{Buffer, Extent};

use super::{ALIGN, Call, Lowered, Planner, extent, flat_over, joint, lane_word, product_of, spread};
use crate::cost::{Choice, Core, Offer, Sizes, Split, Unit, copied_bytes, streams_nibbles};
use crate::gemm::{Gemm, Order, Reading, Weights};
use crate::kernel::Spec;
use crate::lane::check_access;
use crate::operand::{Columns, Operand};
use crate::view::{Factor, Lin, View, row_order};
use crate::wide::gemm::{PANEL, WideGemm, runs_are_short};

/// Bytes of copied rows that may be tried.
const COPIED_BYTES: [usize; 5] = [64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];

/// The parts of a product that do not depend on where b comes from.
pub(super) struct Parts {
    pub program: Program,
    pub extras: Vec<ValueId>,
}

impl Parts {
    /// The operands of the lane program's inputs; the first is computed.
    pub fn inputs(&self) -> Vec<Option<ValueId>> {
        std::iter::once(None).chain(self.extras.iter().map(|&v| Some(v))).collect()
    }
}

impl<M: Backend> Planner<'_, M> {
    /// The lane program and its operands from the second on.
    pub(super) fn parts(&self, node: &Node) -> Lowered<Parts> {
        let extras = node.operands[2..].to_vec();
        let program = if node.op.lane().is_some() { self.named_lane(node)? } else { bias_program(&extras) };
        if program.inputs.len() != extras.len() + 1 {
            return Err("the lane program has another number of inputs".into());
        }
        let known = [Access::Element, Access::Channel, Access::Row, Access::Scalar, Access::Table];
        check_access(&program, &known)?;
        Ok(Parts { program, extras })
    }

    pub(super) fn matmul(&mut self, node: &Node) -> Lowered {
        let (Op::FusedMatMul { a_zero, b_zero, .. } | Op::IntMatMul { a_zero, b_zero }) = node.op else {
            return Err("not a product".into());
        };
        let parts = self.parts(node)?;
        let result = self.module.ty(node.result).clone();
        let rank = result.shape.rank();
        let (a, b) = (self.module.ty(node.operands[0]).clone(), self.module.ty(node.operands[1]).clone());
        let k = a.shape.last_fixed().ok_or("K grows with the batch")?;
        let n = result.shape.last_fixed().ok_or("N grows with the batch")?;
        let with = |last: [vitc_ir::Dim; 2]| Shape(result.shape.0[..rank - 2].iter().copied().chain(last).collect());
        let order = row_order(self.module, node.operands[0]);
        let (a_buffer, a_view) = match &order {
            Some(order) => {
                let rows = with([result.shape.0[rank - 2], k.into()]);
                (self.buffer(order.base)?, View::contiguous(&rows).ok_or("the batch would be squared")?)
            }
            None => {
                let (buffer, view) = self.operand(node.operands[0])?;
                (buffer, view.broadcast(&a.shape, &with([result.shape.0[rank - 2], k.into()])))
            }
        };
        let zeros = zero_points(a.elem, a_zero, b.elem, b_zero)?;
        let single = b.shape.0[..b.shape.rank() - 2].iter().all(|&d| d == 1.into());
        let packed = self.const_of(node.operands[1]).filter(|_| single).map(|c| {
            let nibbles = matches!(c.layout, Some(Layout::Dot4Nibbles { .. })) && b_zero == 0;
            Right::Weights { bytes: c.data.clone(), layout: c.layout, elem: b.elem, nibbles }
        });
        let out = View::contiguous(&result.shape).ok_or("the batch would be squared")?;
        let rows: Vec<usize> = (0..rank - 1).collect();
        let mut builder = Product::new(&result.shape, &rows, rank - 1, 1);
        builder.push(&a_view, a.elem, Columns::Same);
        builder.push(&out, result.elem, Columns::of(&out.flat(rank - 1..rank))?);
        let right = match packed {
            Some(weights) => weights,
            None => {
                let (buffer, view) = self.operand(node.operands[1])?;
                let view = view.broadcast(&b.shape, &with([k.into(), n.into()]));
                let k_stride = single_stride(&view.dims[rank - 2])?;
                let columns = Columns::of(&view.flat(rank - 1..rank))?;
                let mut rows = view.clone();
                rows.dims[rank - 2] = Vec::new();
                builder.push(&rows, b.elem, columns);
                Right::Activation { buffer, k_stride }
            }
        };
        let macs = result.shape.count().map_or(0, |d| d.size as u64) * k as u64;
        let reading = reading(&a_view.flat(rank - 1..rank), k)?;
        let numbers = Numbers { k, n, zeros, macs, channel: rank - 1, group: None };
        let order = order.map(|o| o.index.to_vec());
        self.gemm(node, parts, builder, (a_buffer, right), numbers, (reading, order))
    }

    pub(super) fn gemm(
        &mut self,
        node: &Node,
        parts: Parts,
        mut p: Product,
        (a_buffer, right): (Buffer, Right),
        n: Numbers,
        (reading, order): (Reading, Option<Vec<usize>>),
    ) -> Lowered {
        let mut extra_buffers = Vec::new();
        for (&v, input) in parts.extras.iter().zip(&parts.program.inputs[1..]) {
            let (buffer, view) = self.operand(v)?;
            let view = spread(&view, &self.module.ty(v).shape, input.access, &p.whole, n.channel)?;
            let view = p.divided(view)?;
            let columns = if input.access == Access::Table {
                Columns::Table
            } else {
                Columns::of(&view.flat(p.columns..p.columns + 1))?
            };
            p.push(&view, input.elem, columns);
            extra_buffers.push(buffer);
        }
        let apart = p.apart();
        let (mut sizes, mut operands) = p.operands()?;
        // The kernel packs b once for each turn of the outer loops, so b must stay the same in the inner one.
        let matrix = matches!(right, Right::Activation { .. });
        let moves = matrix && operands[2].rows.last().is_some_and(|&s| s != Lin::ZERO);
        if moves || sizes.is_empty() {
            sizes.push(1.into());
            operands.iter_mut().for_each(|o| o.rows.push(Lin::ZERO));
        }
        operands.iter().try_for_each(Operand::check_rows)?;
        let mut operands = operands.into_iter();
        let (a, out) = (operands.next().ok_or("no a")?, operands.next().ok_or("no result")?);
        let weights = match &right {
            Right::Weights { .. } => Weights::Packed,
            Right::Activation { k_stride, .. } => {
                Weights::Matrix { operand: operands.next().ok_or("no b")?, k_stride: *k_stride }
            }
        };
        let lane = self.lane(&parts.program, &parts.inputs())?;
        let gemm = Gemm {
            k: n.k,
            n: n.n,
            a,
            reading,
            order: order.as_ref().map(|index| Order { rows: index.len(), arg: 4 + extra_buffers.len() }),
            weights,
            a_zero: n.zeros.0,
            b_zero: n.zeros.1,
            out,
            extras: operands.collect(),
            lane,
            sizes: sizes.clone(),
        };
        let word = lane_word(&parts.program);
        let key = format!("gemm_{}{word}__m{}k{}n{}", gemm.a.elem, n.rows(), n.k, n.n);
        let items = extent(product_of(&sizes)?);
        let made = match self.widened(&gemm, apart, &parts.extras, &right, (&n, &key))? {
            Some(Widened { mut wide, bias, kept }) => {
                extra_buffers = retained(&extra_buffers, &kept);
                wide.order.iter_mut().for_each(|order| order.arg = 4 + extra_buffers.len());
                let offer = self.offer(key, &wide, matches!(right, Right::Weights { nibbles: true, .. }));
                let (items, grain) = if wide.by_columns {
                    (Extent { per_batch: 0, fixed: n.n.div_ceil(PANEL) }, 1)
                } else {
                    (items, wide.grain())
                };
                let packing = Packing { layout: wide.layout(), depth: wide.depth() };
                Made { name: wide.name(&word), spec: Spec::WideGemm(wide), items, grain, packing, bias, offer }
            }
            None if n.group.is_some() => return Err("groups are side by side only in wide panels".into()),
            None => {
                let (mut gemm, columns) = (gemm, crate::gemm::PANEL);
                let mut layout = Layout::Dot4 { columns };
                if self.streams_nibbles(&right, &n, self.options.choices.of(&key)) {
                    (gemm.weights, layout) = (Weights::Nibbles, Layout::Dot4Nibbles { columns });
                }
                let packing = Packing { layout, depth: n.k };
                let (name, grain) = (gemm.name(&word), gemm.grain());
                Made { name, spec: Spec::Gemm(gemm), items, grain, packing, bias: None, offer: None }
            }
        };
        let Made { name, spec, items, grain, packing, bias, offer } = made;
        let (b_buffer, corrections) = match right {
            Right::Weights { bytes, layout, elem, .. } => {
                self.weights(&n, Given { bytes, layout, elem }, packing, bias)
            }
            Right::Activation { buffer, .. } => (buffer, None),
        };
        let to = self.buffer(node.result)?;
        let mut args = vec![a_buffer, b_buffer, to, corrections.unwrap_or(to)];
        args.extend(extra_buffers);
        if let Some(index) = order {
            args.push(self.rows_table(&index));
        }
        self.step_offering(Call { spec, name, args, items, grain, macs: n.macs }, offer)
    }

    /// The product as a kernel of the wide tiers, where that can do it, and the bias that its sums start with.
    fn widened(
        &mut self,
        gemm: &Gemm,
        apart: Lowered<Apart>,
        extras: &[ValueId],
        right: &Right,
        (n, key): (&Numbers, &str),
    ) -> Lowered<Option<Widened>> {
        let (choice, core) = (self.options.choices.of(key), Core::of(self.tier));
        // However few rows an image has, a batch may have enough.
        let unit = self.unit(choice, || core.unit(Sizes { rows: n.rows().max(16), k: n.k, n: n.n }));
        if unit == Unit::Portable {
            return Ok(None);
        }
        let mut gemm = gemm.clone();
        let constant = gemm.weights == Weights::Packed;
        let bias = if constant { self.take_bias(&mut gemm.lane.program, extras, gemm.n) } else { None };
        let kept = gemm.lane.drop_unread();
        gemm.extras = retained(&gemm.extras, &kept);
        let constants = retained(extras, &kept).iter().map(|&v| self.const_of(v).is_some()).collect();
        let mut wide = WideGemm::of(&gemm, unit, bias.is_some(), constants);
        // Copying rows together helps only where all else then goes straight through them.
        let straight = |apart: &Apart| !apart.sizes.is_empty() && !runs_are_short(&apart.sizes, n.k, n.n);
        let helps = n.group.is_none() && constant && apart.as_ref().is_ok_and(straight);
        wide.iter_mut().for_each(|wide| wide.gathers &= helps);
        let Some(mut wide) = wide.filter(|wide| n.group.is_none() || !wide.is_copied()) else { return Ok(None) };
        wide.group = n.group;
        wide.tiles &= n.group.is_none();
        wide.nibbles = self.streams_nibbles(right, n, choice);
        wide.copied_bytes = choice.copied_bytes.unwrap_or_else(|| copied_bytes(core));
        if let (true, Ok(apart)) = (constant && wide.is_copied(), apart) {
            apart.enter(&mut wide, &kept);
        }
        let split = choice.split.unwrap_or_else(|| core.split(unit, n.sizes(), wide.grain(), self.options.threads));
        wide.by_columns = split == Split::Columns && wide.has_columns_to_share();
        Ok(self.kernels.fits(&Spec::WideGemm(wide.clone()))?.then_some(Widened { wide, bias, kept }))
    }

    /// Takes a constant bias of `n` channels out of a lane program, for the sums to start with.
    pub(super) fn take_bias(&self, program: &mut Program, extras: &[ValueId], n: usize) -> Option<Vec<i64>> {
        let constants: Vec<Option<&Const>> = extras.iter().map(|&v| self.const_of(v)).collect();
        let (sum, bias) = bias_of(program, &constants)?;
        program.insts[sum] = Inst::Load(0);
        let values = bias.ints();
        Some(if values.len() == 1 { vec![values[0]; n] } else { values })
    }

    /// What the product could be instead.
    fn offer(&self, key: String, wide: &WideGemm, nibbles: bool) -> Option<Offer> {
        let unit = if wide.tiles { Unit::Tiles } else { Unit::Vectors };
        let split = if wide.by_columns { Split::Columns } else { Split::Rows };
        let streamed = nibbles.then_some(wide.nibbles);
        let chosen = Choice { unit: Some(unit), split: Some(split), copied_bytes: Some(wide.copied_bytes), streamed };
        let mut others: Vec<Choice> =
            self.units_but(unit)?.into_iter().map(|unit| Choice { unit: Some(unit), ..chosen }).collect();
        if self.options.threads > 1 && wide.has_columns_to_share() {
            let other = if wide.by_columns { Split::Rows } else { Split::Columns };
            others.push(Choice { split: Some(other), ..chosen });
        }
        if let Some(streamed) = streamed {
            others.push(Choice { streamed: Some(!streamed), ..chosen });
        }
        if wide.is_copied() {
            let sizes = COPIED_BYTES.into_iter().filter(|&bytes| bytes != wide.copied_bytes);
            others.extend(sizes.map(|bytes| Choice { copied_bytes: Some(bytes), ..chosen }));
        }
        Some(Offer { key, chosen, others })
    }

    /// Whether a kernel should read these weights two to a byte and unpack them in every pass.
    fn streams_nibbles(&self, right: &Right, of: &Numbers, choice: Choice) -> bool {
        let Right::Weights { nibbles: true, .. } = right else { return false };
        if let Some(streamed) = choice.streamed {
            return streamed;
        }
        let packed = self.module.consts.iter().filter(|c| c.layout.is_some());
        let all = packed.filter_map(|c| c.ty.shape.count()).map(|d| d.size).sum();
        streams_nibbles(self.tier, self.options.nibbles, of.sizes(), all)
    }

    /// Constant weights as the kernel reads them and, when a has a zero point or there is a bias, what the sums start with.
    fn weights(
        &mut self,
        of: &Numbers,
        given: Given,
        packing: Packing,
        bias: Option<Vec<i64>>,
    ) -> (Buffer, Option<Buffer>) {
        let Numbers { k, n, zeros, .. } = *of;
        let started = zeros.0 != 0 || bias.is_some();
        let (b, sums) = match packing.lies_in_place(&given, n) {
            true => (self.store(given.bytes.clone()), started.then(|| given.column_sums(k, n))),
            false => {
                let plain = given.row_major(k, n);
                (self.pool(packing.pack(n, &plain)), started.then(|| column_sums(&plain, n)))
            }
        };
        let Some(sums) = sums else { return (b, None) };
        let bias = bias.unwrap_or_else(|| vec![0; n]);
        // Modulo 2^32, like the sums: only their total has to fit.
        let first = |(sum, bias): (i64, i64)| (k as i64 * zeros.0 * zeros.1 - zeros.0 * sum + bias) as i32;
        let mut bytes: Vec<u8> = sums.into_iter().zip(bias).map(first).flat_map(i32::to_le_bytes).collect();
        bytes.resize(4 * n.next_multiple_of(packing.layout.columns()), 0);
        (b, Some(self.pool(bytes)))
    }

    /// Bytes that are used where they lie.
    fn store(&mut self, bytes: Bytes) -> Buffer {
        let len = bytes.len();
        self.stored.push(Arc::new(bytes));
        Buffer::Stored { index: self.stored.len() - 1, len }
    }
}

/// The right side of a product.
pub(super) enum Right {
    /// Constant, row-major or in a layout; whether a kernel could read them two to a byte.
    Weights { bytes: Bytes, layout: Option<Layout>, elem: Elem, nibbles: bool },
    /// Computed; `k_stride` elements from one k to the next.
    Activation { buffer: Buffer, k_stride: i64 },
}

/// How weights are packed, and K with the zeros behind it.
struct Packing {
    layout: Layout,
    depth: usize,
}

impl Packing {
    /// Whether weights lie in memory as the kernel reads them.
    fn lies_in_place(&self, given: &Given, n: usize) -> bool {
        given.layout == Some(self.layout)
            && given.elem == Elem::I8
            && given.bytes.len() == self.layout.packed_len(self.depth, n)
            && given.bytes.as_ptr().addr().is_multiple_of(ALIGN)
    }

    fn pack(&self, n: usize, plain: &[u8]) -> Vec<u8> {
        match plain.len() == self.depth * n {
            true => self.layout.pack(self.depth, n, plain),
            false => {
                let mut padded = plain.to_vec();
                padded.resize(self.depth * n, 0);
                self.layout.pack(self.depth, n, &padded)
            }
        }
    }
}

/// Constant weights as the module has them.
struct Given {
    bytes: Bytes,
    layout: Option<Layout>,
    elem: Elem,
}

impl Given {
    /// Signed bytes, row by row.
    fn row_major(&self, k: usize, n: usize) -> Vec<u8> {
        let mut plain = self.layout.map_or_else(|| self.bytes.to_vec(), |layout| layout.unpack(k, n, &self.bytes));
        if self.elem == Elem::U8 {
            plain.iter_mut().for_each(|b| *b ^= 0x80);
        }
        plain
    }

    /// The sum of each column, without unpacking where four k lie side by side; padding is zero.
    fn column_sums(&self, k: usize, n: usize) -> Vec<i64> {
        let Some(Layout::Dot4 { columns }) = self.layout else { return column_sums(&self.row_major(k, n), n) };
        let mut sums = vec![0i32; n.next_multiple_of(columns)];
        let panel_bytes = k.next_multiple_of(4) * columns;
        for (panel, sums) in self.bytes.chunks_exact(panel_bytes).zip(sums.chunks_exact_mut(columns)) {
            for group in panel.chunks_exact(4 * columns) {
                let fours = group.as_chunks::<4>().0;
                sums.iter_mut()
                    .zip(fours)
                    .for_each(|(sum, four)| *sum += four.iter().map(|&w| i32::from(w as i8)).sum::<i32>());
            }
        }
        sums.truncate(n);
        sums.into_iter().map(i64::from).collect()
    }
}

/// The sum of each column of signed bytes, row by row.
fn column_sums(plain: &[u8], n: usize) -> Vec<i64> {
    let mut sums = vec![0i64; n];
    for row in plain.chunks_exact(n) {
        sums.iter_mut().zip(row).for_each(|(sum, &w)| *sum += i64::from(w as i8));
    }
    sums
}

/// A product as a kernel of the wide tiers.
struct Widened {
    wide: WideGemm,
    /// What the sums start with.
    bias: Option<Vec<i64>>,
    /// Which inputs of the lane program from the second on it reads.
    kept: Vec<bool>,
}

/// Those of `all` that are kept.
fn retained<T: Clone>(all: &[T], kept: &[bool]) -> Vec<T> {
    all.iter().zip(kept).filter(|(_, kept)| **kept).map(|(x, _)| x.clone()).collect()
}

/// A product as a step.
struct Made {
    name: String,
    spec: Spec,
    items: Extent,
    grain: usize,
    packing: Packing,
    bias: Option<Vec<i64>>,
    offer: Option<Offer>,
}

pub(super) struct Numbers {
    pub k: usize,
    pub n: usize,
    pub zeros: (i64, i64),
    pub macs: u64,
    /// Dimension of the result that channels run along.
    pub channel: usize,
    /// Columns of a group that panels hold side by side, see [`WideGemm::group`].
    pub group: Option<usize>,
}

impl Numbers {
    /// Rows of an image.
    fn rows(&self) -> usize {
        self.macs as usize / (self.k * self.n).max(1)
    }

    fn sizes(&self) -> Sizes {
        Sizes { rows: self.rows(), k: self.k, n: self.n }
    }
}

/// Operands that walk the rows of a result together.
pub(super) struct Product {
    /// Dimensions of the result that are rows, and the one that is columns.
    rows: Vec<usize>,
    pub columns: usize,
    shape: Shape,
    /// The result's shape before its channels are divided into groups.
    whole: Shape,
    groups: usize,
    views: Vec<View>,
    elems: Vec<Elem>,
    inner: Vec<Columns>,
}

impl Product {
    /// With that shape, those rows, and columns along `columns`; with groups, the columns are those of one group, the groups
    /// are the outermost rows.
    pub fn new(shape: &Shape, rows: &[usize], columns: usize, groups: usize) -> Product {
        let mut p = Product {
            rows: rows.to_vec(),
            columns,
            shape: shape.clone(),
            whole: shape.clone(),
            groups,
            views: vec![],
            elems: vec![],
            inner: vec![],
        };
        if groups > 1 {
            p.rows.insert(0, columns);
            p.shape = divided(shape, groups);
            p.columns += 1;
        }
        p
    }

    /// A view of the whole result as one of groups.
    pub fn divided(&self, view: View) -> Lowered<View> {
        if self.groups == 1 {
            return Ok(view);
        }
        let dims = (0..view.dims.len()).map(|d| flat_over(&view, &self.whole, &[d])).collect();
        let repeated = View { offset: view.offset, dims };
        let divided = repeated.then(&Op::Reshape { shape: self.shape.clone() }, &self.whole, &self.shape)?;
        let moves = |f: &Factor| f.stride != Lin::ZERO;
        let keep = |dim: Vec<Factor>| if dim.iter().any(moves) { dim } else { Vec::new() };
        Ok(View { offset: divided.offset, dims: divided.dims.into_iter().map(keep).collect() })
    }

    pub fn push(&mut self, view: &View, elem: Elem, columns: Columns) {
        self.views.push(view.clone());
        self.elems.push(elem);
        self.inner.push(columns);
    }

    fn operands(&self) -> Lowered<(Vec<vitc_ir::Dim>, Vec<Operand>)> {
        let views: Vec<(&View, Elem)> = self.views.iter().zip(self.elems.iter().copied()).collect();
        joint(&views, &self.shape, &self.rows, &self.inner)
    }

    /// The rows of a by themselves, and those of the others, which then often are one loop.
    fn apart(&self) -> Lowered<Apart> {
        let views: Vec<(&View, Elem)> = self.views.iter().zip(self.elems.iter().copied()).collect();
        let (a_sizes, mut a) = joint(&views[..1], &self.shape, &self.rows, &self.inner[..1])?;
        let (sizes, others) = joint(&views[1..], &self.shape, &self.rows, &self.inner[1..])?;
        others.iter().try_for_each(Operand::check_rows)?;
        Ok(Apart { a_sizes, a: a.pop().ok_or("no a")?, sizes, others })
    }
}

/// Rows of a and rows of the result and the lane program's inputs, each with loops of their own.
struct Apart {
    a_sizes: Vec<vitc_ir::Dim>,
    a: Operand,
    sizes: Vec<vitc_ir::Dim>,
    others: Vec<Operand>,
}

impl Apart {
    fn enter(mut self, wide: &mut WideGemm, kept: &[bool]) {
        if self.sizes.is_empty() {
            return;
        }
        wide.extras = retained(&self.others.split_off(1), kept);
        wide.out = self.others.remove(0);
        (wide.a, wide.a_sizes, wide.sizes) = (self.a, self.a_sizes, self.sizes);
    }
}

/// A shape whose last dimension is divided into groups.
fn divided(shape: &Shape, groups: usize) -> Shape {
    let (last, rest) = shape.0.split_last().expect("a result has dimensions");
    Shape(rest.iter().copied().chain([groups.into(), (last.size / groups).into()]).collect())
}

/// The instruction that adds a constant bias to the sums, and the bias, when that is the only thing done with the sums.
fn bias_of<'c>(program: &Program, constants: &[Option<&'c Const>]) -> Option<(usize, &'c Const)> {
    let insts = &program.insts;
    let is_sums = |r: u32| insts[r as usize] == Inst::Load(0);
    let mut reads = insts.iter().enumerate().filter(|(_, i)| i.operands().into_iter().any(is_sums));
    let (sum, &Inst::Add(a, b)) = reads.next()? else { return None };
    if reads.next().is_some() || insts.last() == Some(&Inst::Load(0)) {
        return None;
    }
    let Inst::Load(n) = insts[if is_sums(a) { b } else { a } as usize] else { return None };
    let input = program.inputs.get(n as usize).filter(|i| i.access == Access::Channel && i.elem == Elem::I32);
    let constant = input.and_then(|_| constants[n as usize - 1]);
    constant.map(|c| (sum, c))
}

/// The lane program of a product that is not fused: adds the bias, if there is one.
pub(super) fn bias_program(extras: &[ValueId]) -> Program {
    let input = |access| Input { elem: Elem::I32, access };
    let mut program = Program { inputs: vec![input(Access::Element)], insts: vec![Inst::Load(0)], output: Elem::I32 };
    if !extras.is_empty() {
        program.inputs.push(input(Access::Channel));
        program.insts.extend([Inst::Load(1), Inst::Add(0, 1)]);
    }
    program
}

/// How the dot product sees the zero points: it takes a as unsigned and b as signed bytes.
pub(super) fn zero_points(a: Elem, a_zero: i64, b: Elem, b_zero: i64) -> Lowered<(i64, i64)> {
    let a_zero = match a {
        Elem::U8 | Elem::I16 => a_zero,
        Elem::I8 => a_zero + 128,
        _ => return Err(format!("a product with {a} on the left").into()),
    };
    match b {
        Elem::I8 => Ok((a_zero, b_zero)),
        Elem::U8 => Ok((a_zero, b_zero - 128)),
        _ => Err(format!("a product with {b} on the right").into()),
    }
}

pub(super) fn single(factors: &[Factor]) -> Lowered<Lin> {
    match factors {
        [] => Ok(Lin::ZERO),
        [f] => Ok(f.stride),
        _ => Err("a split dimension".into()),
    }
}

pub(super) fn single_stride(factors: &[Factor]) -> Lowered<i64> {
    single(factors)?.as_fixed().ok_or_else(|| "a stride that grows with the batch".into())
}

/// How the kernel reads a row of a.
pub(super) fn reading(factors: &[Factor], k: usize) -> Lowered<Reading> {
    let fixed = |f: &Factor| f.stride.as_fixed();
    match factors {
        [] => Ok(Reading::Direct { segments: 1, run: 1, step: 0 }),
        [f] if fixed(f) == Some(1) => Ok(Reading::Direct { segments: 1, run: k, step: 0 }),
        [outer, inner] if fixed(inner) == Some(1) && inner.size.size.is_multiple_of(4) && fixed(outer).is_some() => {
            let step = fixed(outer).unwrap_or(0);
            Ok(Reading::Direct { segments: outer.size.size, run: inner.size.size, step })
        }
        _ if factors.iter().all(|f| fixed(f).is_some() && !f.size.batch) => Ok(Reading::Gathered(factors.to_vec())),
        _ => Err("columns whose stride grows with the batch".into()),
    }
}
