//! Matrix products: `out[m, n] = lane(sum_k (a[m, k] - a_zero) * (b[k, n] - b_zero), extras)`.
//!
//! ```text
//! for lead                        outer loops over rows (heads, images) in which some operand is not affine
//!   pack b                        only when b is an activation: into this thread's scratch, with column sums
//!   for chunk of rows             6 to 48 rows, so that their spread copy stays in L1
//!     spread rows of a            into scratch: every four k of a row fill a vector, K padded with zeros
//!     for panel of 8 columns      of b, K*8 bytes, streamed from L2 once for each chunk; weights of four bits, two to a byte,
//!                                 are unpacked into scratch first
//!       for tile of 6 rows        (then 4, 2, 1 for the rest)
//!         for k in steps of 4
//! ```
//!
//! Registers of the byte kernel, of 16: 6 rows x 2 vectors of four `i32` accumulators, 2 vectors of b (four k of four
//! columns each), 1 vector of a. A step is 12 dot products for 8 loads. With `i16` a the products are `i16` pairs: 3 rows x
//! 2 vectors x 2 halves of accumulators, joined pairwise at the end.
//!
//! Why rows are spread: Cranelift has no broadcasting load whose result has several uses, and a broadcast through a general
//! register costs three instructions where a load of the spread copy costs one. The copy is made once for all panels.
//!
//! Signs: the dot product multiplies unsigned by signed bytes. A signed a is taken as `a + 128`, an unsigned b as `b - 128`,
//! and the zero points are shifted alike. With `a' - za` and `b' - zb`,
//! `sum = sum a'b' - za * sum_k b' - zb * sum_k a' + K*za*zb`; the second and fourth terms are a row of corrections with
//! which the accumulators start, the third takes row sums and a smaller tile.

mod pack;

use cranelift_codegen::ir::types::{I8X16, I16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, StackSlotData, StackSlotKind, Value};
use vitc_ir::lane::Inst;
use vitc_ir::layout::Layout;
use vitc_ir::{Dim, Elem};

use crate::emit::{Addr, Emit};
use crate::lane::{LaneSpec, Lanes};
use crate::operand::{Operand, RowGroup, run_group, split_index};
use crate::view::{Factor, Lin};

/// Columns of a panel of packed weights.
pub(crate) const PANEL: usize = 8;
/// Bytes of spread rows that should stay in L1 beside a panel.
const CHUNK_BYTES: usize = 18 << 10;
/// Extras of a lane program up to which the sums of a tile stay in registers beside it. With more, the register allocator
/// would keep a sum in memory in the middle of the products; so it does with as many beside some gates, which costs more than the way
/// through memory from so many k on.
const LIGHT_EXTRAS: usize = 3;
const GATED_K: usize = 128;
/// Most rows of a chunk.
const CHUNK_ROWS: usize = 48;
/// Bytes that four k of one row take when spread.
const SPREAD: usize = 16;

/// The layout in which constant weights of a `[k, n]` product are stored: that of the wide tiers, which then read them where
/// they lie, unless so few columns would be padded much.
pub fn weight_layout(_k: usize, n: usize) -> Layout {
    let wide = crate::wide::gemm::PANEL;
    let columns = if n.next_multiple_of(wide) <= n + n / 4 { wide } else { PANEL };
    Layout::Dot4 { columns }
}

/// How rows of a are read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reading {
    /// In place: `segments` runs of `run` consecutive elements, `step` elements apart.
    Direct { segments: usize, run: usize, step: i64 },
    /// Copied to scratch first, element by element of these factors.
    Gathered(Vec<Factor>),
}

/// Rows of a in another order: of every `rows` rows, row `i` is where row `table[i]` would lie. The table, of `u32`, is argument
/// `arg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Order {
    pub rows: usize,
    pub arg: usize,
}

impl Order {
    /// The row to read for row `row` of all.
    pub(crate) fn of(self, e: &mut Emit<'_>, row: Value) -> Value {
        let (table, rows) = (e.arg(self.arg), e.iconst(self.rows as i64));
        let turn = e.b.ins().udiv(row, rows);
        let first = e.b.ins().imul(turn, rows);
        let within = e.b.ins().isub(row, first);
        let entry = e.at(table, within, 4);
        let moved = e.load_elem(Elem::I32, Addr { base: entry, disp: 0 });
        e.add(first, moved)
    }
}

/// Where b comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Weights {
    /// A constant, packed in panels.
    Packed,
    /// A constant of four bits, packed in panels two to a byte: each pass over a panel unpacks it into scratch, where it stays in
    /// L1 for all rows of a chunk.
    Nibbles,
    /// An activation, packed for each turn of the outer loops; `operand.columns` are those of n.
    Matrix { operand: Operand, k_stride: i64 },
}

/// A matrix product. Arguments: a, b, out, corrections, then the lane program's inputs from the second on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Gemm {
    /// Loops over rows, outermost first; the last one runs inside the kernel's row tiles.
    pub sizes: Vec<Dim>,
    pub k: usize,
    pub n: usize,
    /// Rows of a; its columns are described by `reading`.
    pub a: Operand,
    pub reading: Reading,
    /// Rows of a that are not read in their order.
    pub order: Option<Order>,
    pub weights: Weights,
    /// Zero point of a as the dot product sees it; the constant's corrections already hold it.
    pub a_zero: i64,
    /// Zero point of b as the dot product sees it.
    pub b_zero: i64,
    pub out: Operand,
    /// Inputs of the lane program from the second on.
    pub extras: Vec<Operand>,
    pub lane: LaneSpec,
}

/// A packed right side: its panels, and the row that the accumulators start with, if they do not start at zero.
#[derive(Clone, Copy)]
pub(crate) struct Right {
    b: Value,
    corrections: Option<Value>,
}

/// Pointers that stay the same within one turn of the outer loops.
struct Bases {
    /// The first row of a; of all rows, where they are read in another order.
    a: Value,
    /// The first row's number among all.
    first: Value,
    b: Value,
    corrections: Option<Value>,
    out: Value,
    extras: Vec<Value>,
}

/// Pointers of one tile: row zero of the tile, column zero of the panel.
struct Tile {
    rows: usize,
    count: usize,
    a: Value,
    b: Value,
    corrections: Option<Value>,
    out: Value,
    extras: Vec<Value>,
}

impl Gemm {
    fn k4(&self) -> usize {
        self.k.next_multiple_of(4)
    }

    fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    fn wide(&self) -> bool {
        self.a.elem == Elem::I16
    }

    fn is_matrix(&self) -> bool {
        matches!(self.weights, Weights::Matrix { .. })
    }

    /// Bytes of a panel, whole bytes.
    fn panel_bytes(&self) -> usize {
        self.k4() * PANEL
    }

    /// Bytes of one packed matrix.
    fn packed_bytes(&self) -> usize {
        self.k4() * self.panels() * PANEL
    }

    fn has_corrections(&self) -> bool {
        self.a_zero != 0
    }

    /// Row tiles, largest first.
    fn tiles(&self) -> &'static [usize] {
        match (self.wide(), self.b_zero != 0) {
            (false, false) => &[5, 2, 1],
            (false, true) => &[4, 1],
            (true, false) => &[3, 1],
            (true, true) => &[2, 1],
        }
    }

    /// Rows spread at a time.
    pub(crate) fn chunk_rows(&self) -> usize {
        let tile = self.tiles()[0];
        let fit = CHUNK_BYTES / (self.k4() / 4 * SPREAD * tile);
        fit.clamp(1, CHUNK_ROWS / tile) * tile
    }

    /// Bytes of one spread row.
    fn spread_bytes(&self) -> usize {
        self.k4() / 4 * SPREAD
    }

    /// Scratch: packed b or a panel of it, its corrections, one gathered row of a, spread rows of a.
    fn scratch_parts(&self) -> [usize; 4] {
        let matrix = self.is_matrix();
        let b = match self.weights {
            Weights::Packed => 0,
            Weights::Nibbles => self.panel_bytes(),
            Weights::Matrix { .. } => self.packed_bytes(),
        };
        let gathered = matches!(self.reading, Reading::Gathered(_));
        let parts = [
            b,
            if matrix { self.panels() * PANEL * 4 } else { 0 },
            if gathered { self.k * self.a.elem.bytes() } else { 0 },
            self.chunk_rows() * self.spread_bytes(),
        ];
        parts.map(|bytes| bytes.next_multiple_of(64))
    }

    /// Bytes of scratch the kernel uses.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch_parts().iter().sum()
    }

    /// `gemm_u8s8_<lane>__k192n768`.
    pub(crate) fn name(&self, lane: &str) -> String {
        let b = match &self.weights {
            Weights::Packed => "s8",
            Weights::Nibbles => "s4",
            Weights::Matrix { operand, .. } if operand.elem == Elem::U8 => "u8act",
            Weights::Matrix { .. } => "s8act",
        };
        let gathered = if matches!(self.reading, Reading::Gathered(_)) { "_gather" } else { "" };
        let a = self.a.elem.name().replace('i', "s");
        format!("gemm_{a}{b}{lane}{gathered}__k{}n{}", self.k, self.n)
    }

    /// Items of a step: rows. Threads share them at whole tiles.
    pub(crate) fn grain(&self) -> usize {
        12
    }

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let (inner, outer) = match self.sizes.split_last() {
            Some((&inner, outer)) => (inner, outer),
            None => (Dim::fixed(1), &[][..]),
        };
        if outer.is_empty() && !self.is_matrix() {
            let (begin, end) = (e.begin, e.end);
            let count = e.b.ins().isub(end, begin);
            return self.rows(e, &[], (begin, begin), count);
        }
        e.each_turn(inner, |e, turn, from, count| {
            let indices = split_index(e, turn, outer);
            let size = e.lin(Lin::fixed(1).times(inner).expect("one times a dimension"));
            let before = e.b.ins().imul(turn, size);
            let first = e.add(before, from);
            self.rows(e, &indices, (from, first), count);
        });
    }

    /// Rows `from .. from + count` of one turn of the outer loops; row `from` is row `first` of all.
    fn rows(&self, e: &mut Emit<'_>, outer: &[Value], (from, first): (Value, Value), count: Value) {
        let right = self.right(e, outer);
        self.multiply(e, outer, &right, (from, first), count);
    }

    /// The packed right side: the constant's panels, or those of an activation, which this packs into scratch.
    pub(crate) fn right(&self, e: &mut Emit<'_>, outer: &[Value]) -> Right {
        let [packed, ..] = self.scratch_parts();
        let b_arg = e.arg(1);
        match &self.weights {
            Weights::Packed | Weights::Nibbles => {
                Right { b: b_arg, corrections: self.has_corrections().then(|| e.arg(3)) }
            }
            Weights::Matrix { operand, k_stride } => {
                let source = operand.base(e, b_arg, outer);
                let scratch = e.scratch;
                self.pack_matrix(e, operand, *k_stride, source, scratch);
                let to = e.add_imm(scratch, packed as i64);
                if self.has_corrections() {
                    self.sum_columns(e, scratch, to);
                }
                Right { b: scratch, corrections: self.has_corrections().then_some(to) }
            }
        }
    }

    /// Multiplies rows `from .. from + count` with a packed right side.
    pub(crate) fn multiply(
        &self,
        e: &mut Emit<'_>,
        outer: &[Value],
        right: &Right,
        (from, first): (Value, Value),
        count: Value,
    ) {
        let start = |e: &mut Emit<'_>, arg: usize, o: &Operand| {
            let pointer = e.arg(arg);
            let base = o.base(e, pointer, outer);
            e.at(base, from, o.row_stride())
        };
        let a = match self.order {
            Some(_) => {
                let pointer = e.arg(0);
                self.a.base(e, pointer, &[])
            }
            None => start(e, 0, &self.a),
        };
        let out = start(e, 2, &self.out);
        let extras = self.extras.iter().enumerate().map(|(i, o)| start(e, 4 + i, o)).collect();
        let bases = Bases { a, first, b: right.b, corrections: right.corrections, out, extras };
        self.chunks(e, &bases, count);
    }

    fn chunks(&self, e: &mut Emit<'_>, bases: &Bases, count: Value) {
        let zero = e.iconst(0);
        let rows = self.chunk_rows() as i64;
        let before: usize = self.scratch_parts()[..3].iter().sum();
        let scratch = e.scratch;
        let spread = e.add_imm(scratch, before as i64);
        e.for_range(zero, count, rows, &[], |e, i, _| {
            let left = e.b.ins().isub(count, i);
            let rows = e.iconst(rows);
            let size = e.b.ins().smin(left, rows);
            let first = e.add(bases.first, i);
            let a = if self.order.is_some() { bases.a } else { e.at(bases.a, i, self.a.row_stride()) };
            self.spread_rows(e, (a, first), spread, size);
            let inner = Bases {
                a: spread,
                first,
                b: bases.b,
                corrections: bases.corrections,
                out: e.at(bases.out, i, self.out.row_stride()),
                extras: (self.extras.iter().zip(&bases.extras)).map(|(o, &x)| e.at(x, i, o.row_stride())).collect(),
            };
            self.all_panels(e, &inner, size);
            Vec::new()
        });
    }

    /// Runs `body` for every tile of rows: its first row and its number of rows.
    fn each_tile(&self, e: &mut Emit<'_>, count: Value, mut body: impl FnMut(&mut Emit<'_>, Value, usize)) {
        let mut row = e.iconst(0);
        for &rows in self.tiles() {
            let (next, _) = e.while_room(row, count, rows as i64, rows as i64, &[], |e, row, _| {
                body(e, row, rows);
                Vec::new()
            });
            row = next;
        }
    }

    /// Spreads rows, tile by tile: for each four k, one vector for each row of the tile.
    fn spread_rows(&self, e: &mut Emit<'_>, (a, start): (Value, Value), to: Value, count: Value) {
        self.each_tile(e, count, |e, first, rows| {
            let to = e.at(to, first, self.spread_bytes() as i64);
            if let Some(order) = self.order {
                let row = e.add(start, first);
                e.repeat(rows, &[row, to], |e, p| {
                    let row = order.of(e, p[0]);
                    let from = e.at(a, row, self.a.row_stride());
                    self.spread_row(e, from, p[1], (rows * SPREAD) as i64);
                    vec![e.add_imm(p[0], 1), e.add_imm(p[1], SPREAD as i64)]
                });
                return;
            }
            let from = e.at(a, first, self.a.row_stride());
            e.repeat(rows, &[from, to], |e, p| {
                self.spread_row(e, p[0], p[1], (rows * SPREAD) as i64);
                vec![e.add_imm(p[0], self.a.row_stride()), e.add_imm(p[1], SPREAD as i64)]
            });
        });
    }

    /// Spreads one row: vectors `step` bytes apart.
    fn spread_row(&self, e: &mut Emit<'_>, from: Value, to: Value, step: i64) {
        let size = self.a.elem.bytes();
        match &self.reading {
            Reading::Direct { segments, run, step: jump } => {
                e.repeat(*segments, &[from, to], |e, p| {
                    self.spread_run(e, p[0], p[1], step, *run);
                    let groups = run.div_ceil(4) as i64;
                    vec![e.add_imm(p[0], jump * size as i64), e.add_imm(p[1], groups * step)]
                });
            }
            Reading::Gathered(factors) => {
                let before: usize = self.scratch_parts()[..2].iter().sum();
                let scratch = e.scratch;
                let row = e.add_imm(scratch, before as i64);
                crate::copy::copy_factors(e, factors, size, from, row);
                self.spread_run(e, row, to, step, self.k);
            }
        }
    }

    /// Spreads consecutive elements; a last group of fewer than four is padded with zeros.
    fn spread_run(&self, e: &mut Emit<'_>, from: Value, to: Value, step: i64, run: usize) {
        let size = self.a.elem.bytes();
        let (per_vector, lane) = if self.wide() { (2, I64X2) } else { (4, I32X4) };
        let flip = (self.a.elem == Elem::I8).then(|| e.constant(I8X16, -128));
        let groups = run / 4;
        let vectors = groups / per_vector;
        let done = e.repeat(vectors, &[from, to], |e, p| {
            let mut v = e.load(I8X16, Addr { base: p[0], disp: 0 });
            if let Some(flip) = flip {
                v = e.b.ins().bxor(v, flip);
            }
            for g in 0..per_vector {
                let one = splat_lane(e, v, g, SPREAD / per_vector);
                e.store(one, Addr { base: p[1], disp: 0 }.plus(g as i64 * step));
            }
            vec![e.add_imm(p[0], 16), e.add_imm(p[1], per_vector as i64 * step)]
        });
        let (from, to) = (done[0], done[1]);
        for g in vectors * per_vector..run.div_ceil(4) {
            let k = (run - 4 * g).min(4);
            let at = g - vectors * per_vector;
            let row = ARow { at: Addr { base: from, disp: (at * 4 * size) as i32 }, bytes: k };
            let scalar = if self.wide() { row.load_halves(e) } else { row.load_bytes(e) };
            let v = e.b.ins().splat(lane, scalar);
            let mut v = e.cast(I8X16, v);
            if flip.is_some() {
                let kept: [u8; 16] = std::array::from_fn(|i| if i % 4 < k { 0x80 } else { 0 });
                let kept = e.bytes16(kept);
                v = e.b.ins().bxor(v, kept);
            }
            e.store(v, Addr { base: to, disp: 0 }.plus(at as i64 * step));
        }
    }

    fn all_panels(&self, e: &mut Emit<'_>, bases: &Bases, count: Value) {
        let full = self.n / PANEL;
        if full > 0 {
            let (zero, to) = (e.iconst(0), e.iconst(full as i64));
            e.for_range(zero, to, 1, &[], |e, panel, _| {
                self.panel(e, bases, count, panel, PANEL);
                Vec::new()
            });
        }
        if !self.n.is_multiple_of(PANEL) {
            let panel = e.iconst(full as i64);
            self.panel(e, bases, count, panel, self.n % PANEL);
        }
    }

    /// All rows of one panel of columns.
    fn panel(&self, e: &mut Emit<'_>, bases: &Bases, count: Value, panel: Value, columns: usize) {
        let width = PANEL as i64;
        let b = match self.weights {
            Weights::Nibbles => {
                let from = e.at(bases.b, panel, self.panel_bytes() as i64 / 2);
                self.unpack_panel(e, from)
            }
            _ => e.at(bases.b, panel, self.panel_bytes() as i64),
        };
        let corrections = bases.corrections.map(|c| e.at(c, panel, 4 * width));
        let out = e.at(bases.out, panel, self.out.column_stride() * width);
        let extras: Vec<Value> =
            self.extras.iter().zip(&bases.extras).map(|(o, &x)| e.at(x, panel, o.column_stride() * width)).collect();
        self.each_tile(e, count, |e, row, rows| {
            let tile = Tile {
                rows,
                count: columns,
                a: e.at(bases.a, row, self.spread_bytes() as i64),
                b,
                corrections,
                out: e.at(out, row, self.out.row_stride()),
                extras: (self.extras.iter().zip(&extras)).map(|(o, &x)| e.at(x, row, o.row_stride())).collect(),
            };
            self.tile(e, &tile);
        });
    }

    /// Unpacks a panel of four bits into scratch: of every 16 bytes the low halves, then the high ones, are a group of four k.
    fn unpack_panel(&self, e: &mut Emit<'_>, from: Value) -> Value {
        let to = e.scratch;
        e.repeat(self.k4() / 4, &[from, to], |e, p| {
            let pairs = e.load(I8X16, Addr { base: p[0], disp: 0 });
            let (mask, sign) = (e.constant(I8X16, 0x0f), e.constant(I8X16, 8));
            let words = e.cast(I16X8, pairs);
            let four = e.iconst(4);
            let words = e.b.ins().ushr(words, four);
            let high = e.cast(I8X16, words);
            for (half, disp) in [(pairs, 0), (high, 16)] {
                // of four bits in two's complement, (x ^ 8) - 8 is the value
                let half = e.b.ins().band(half, mask);
                let half = e.b.ins().bxor(half, sign);
                let half = e.b.ins().isub(half, sign);
                e.store(half, Addr { base: p[1], disp });
            }
            vec![e.add_imm(p[0], 2 * PANEL as i64), e.add_imm(p[1], 4 * PANEL as i64)]
        });
        to
    }

    fn tile(&self, e: &mut Emit<'_>, tile: &Tile) {
        let sums = if self.wide() { self.multiply_halves(e, tile) } else { self.multiply_bytes(e, tile) };
        let kept = self.keeps_sums().then(|| self.keep(e, &sums));
        for (row, acc) in sums.into_iter().enumerate() {
            let acc = match kept {
                Some(slot) => [0, 16].map(|disp| e.load(I32X4, Addr { base: slot, disp: 32 * row as i32 + disp })),
                None => acc,
            };
            let at: Vec<Addr> = std::iter::once((tile.out, 0))
                .chain(tile.extras.iter().zip(&self.extras).map(|(&x, o)| (x, o.row_stride())))
                .map(|(base, stride)| Addr { base, disp: 0 }.plus(row as i64 * stride))
                .collect();
            let inputs: Vec<Operand> = std::iter::once(&self.out).chain(&self.extras).cloned().collect();
            let to = Addr { base: tile.out, disp: 0 }.plus(row as i64 * self.out.row_stride());
            let mut group = RowGroup { inputs: &inputs, at: &at, first: Some(Lanes::I32(acc)), count: tile.count };
            run_group(e, &self.lane, &mut group, &self.out, to);
        }
    }

    /// Whether the sums of a tile wait in memory for the lane program.
    fn keeps_sums(&self) -> bool {
        let is_gated = || self.lane.program.insts.iter().any(|i| matches!(i, Inst::MulHigh15(..)));
        match self.extras.len() {
            LIGHT_EXTRAS => self.k >= GATED_K && is_gated(),
            extras => extras > LIGHT_EXTRAS,
        }
    }

    /// Puts the sums of a tile into memory, where they wait for their row's turn.
    fn keep(&self, e: &mut Emit<'_>, sums: &[[Value; 2]]) -> Value {
        let bytes = 32 * sums.len() as u32;
        let slot = e.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 4));
        let slot = e.b.ins().stack_addr(I64, slot, 0);
        for (i, &v) in sums.iter().flatten().enumerate() {
            e.store(v, Addr { base: slot, disp: 16 * i as i32 });
        }
        slot
    }

    /// Runs `step(sums, rows of a, b)` for every group of four k.
    ///
    /// A turn is one group: values are computed where a block's end needs them, so a longer block would hold all its loads
    /// before the first product. Twelve products hide the loop.
    fn each_group(
        &self,
        e: &mut Emit<'_>,
        tile: &Tile,
        mut sums: Vec<Value>,
        mut step: impl FnMut(&mut Emit<'_>, &mut Vec<Value>, Addr, Addr),
    ) -> Vec<Value> {
        let n = sums.len();
        sums.extend([tile.a, tile.b]);
        sums = e.repeat(self.k4() / 4, &sums, |e, carried| {
            let (mut sums, a, b) = (carried[..n].to_vec(), carried[n], carried[n + 1]);
            step(e, &mut sums, Addr { base: a, disp: 0 }, Addr { base: b, disp: 0 });
            sums.push(e.add_imm(a, (tile.rows * SPREAD) as i64));
            sums.push(e.add_imm(b, 4 * PANEL as i64));
            sums
        });
        sums.truncate(n);
        sums
    }

    /// The byte kernel: two vectors of sums for each row.
    fn multiply_bytes(&self, e: &mut Emit<'_>, tile: &Tile) -> Vec<[Value; 2]> {
        let start = match tile.corrections {
            Some(base) => [0, 16].map(|disp| e.load(I32X4, Addr { base, disp })),
            None => [e.constant(I32X4, 0); 2],
        };
        let with_sums = self.b_zero != 0;
        let mut acc: Vec<Value> = (0..tile.rows).flat_map(|_| start).collect();
        if with_sums {
            let zero = e.constant(I32X4, 0);
            acc.extend(vec![zero; tile.rows]);
        }
        acc = self.each_group(e, tile, acc, |e, acc, a, b| {
            let weights = [0, 16].map(|d| e.load(I8X16, b.plus(d)));
            let ones = with_sums.then(|| e.constant(I8X16, 1));
            for row in 0..tile.rows {
                let four = e.load_late(I8X16, a.plus((row * SPREAD) as i64));
                for (v, &w) in weights.iter().enumerate() {
                    acc[2 * row + v] = e.dot(acc[2 * row + v], four, w);
                }
                if let Some(ones) = ones {
                    acc[2 * tile.rows + row] = e.dot(acc[2 * tile.rows + row], four, ones);
                }
            }
        });
        let sums = acc.split_off(2 * tile.rows);
        let rows = acc.chunks(2).map(|c| [c[0], c[1]]);
        if with_sums { rows.zip(sums).map(|(r, s)| self.take_row_sum(e, r, s)).collect() } else { rows.collect() }
    }

    /// The kernel for `i16` a: products of pairs, then pairs joined.
    fn multiply_halves(&self, e: &mut Emit<'_>, tile: &Tile) -> Vec<[Value; 2]> {
        let with_sums = self.b_zero != 0;
        let zero = e.constant(I32X4, 0);
        let per_row = if with_sums { 5 } else { 4 };
        let acc = self.each_group(e, tile, vec![zero; tile.rows * per_row], |e, acc, a, b| {
            let weights: Vec<Value> = [0, 16]
                .into_iter()
                .flat_map(|d| {
                    let w = e.load(I8X16, b.plus(d));
                    [e.b.ins().swiden_low(w), e.b.ins().swiden_high(w)]
                })
                .collect();
            for row in 0..tile.rows {
                let four = e.load_late(I16X8, a.plus((row * SPREAD) as i64));
                for (v, &w) in weights.iter().enumerate() {
                    let pairs = e.madd(four, w);
                    acc[row * per_row + v] = e.add(acc[row * per_row + v], pairs);
                }
                if with_sums {
                    // The second half of the vector repeats the first, so two of the four lanes are the whole sum.
                    let pairs = e.pairwise_wide(four);
                    acc[row * per_row + 4] = e.add(acc[row * per_row + 4], pairs);
                }
            }
        });
        let start = tile.corrections.map(|base| [0, 16].map(|disp| e.load(I32X4, Addr { base, disp })));
        acc.chunks(per_row)
            .map(|c| {
                let mut sums = [e.b.ins().iadd_pairwise(c[0], c[1]), e.b.ins().iadd_pairwise(c[2], c[3])];
                if let Some(start) = start {
                    sums = [e.add(sums[0], start[0]), e.add(sums[1], start[1])];
                }
                if with_sums {
                    let both = e.b.ins().iadd_pairwise(c[4], c[4]);
                    sums = self.take_row_sum(e, sums, both);
                }
                sums
            })
            .collect()
    }

    /// `row - b_zero * sum`, every lane of `sum` holding the row sum.
    fn take_row_sum(&self, e: &mut Emit<'_>, row: [Value; 2], sum: Value) -> [Value; 2] {
        let zero_point = e.constant(I32X4, self.b_zero);
        let term = e.b.ins().imul(sum, zero_point);
        row.map(|v| e.b.ins().isub(v, term))
    }
}

/// Up to four consecutive elements.
#[derive(Clone, Copy)]
struct ARow {
    at: Addr,
    bytes: usize,
}

impl ARow {
    /// The bytes as one `i32`, missing ones zero.
    fn load_bytes(self, e: &mut Emit<'_>) -> Value {
        let at = self.at;
        if self.bytes == 4 {
            return e.load(I32, at);
        }
        let parts: Vec<Value> = (0..self.bytes)
            .map(|i| {
                let v = e.load_elem(Elem::U8, at.plus(i as i64));
                let by = e.iconst(8 * i as i64);
                e.b.ins().ishl(v, by)
            })
            .collect();
        let all = parts.into_iter().reduce(|a, b| e.b.ins().bor(a, b)).expect("at least one byte");
        e.b.ins().ireduce(I32, all)
    }

    /// Four `i16` as one `i64`, missing ones zero.
    fn load_halves(self, e: &mut Emit<'_>) -> Value {
        let at = self.at;
        if self.bytes == 4 {
            return e.load(I64, at);
        }
        let parts: Vec<Value> = (0..self.bytes)
            .map(|i| {
                let v = e.load(I16, at.plus(2 * i as i64));
                let v = e.b.ins().uextend(I64, v);
                let by = e.iconst(16 * i as i64);
                e.b.ins().ishl(v, by)
            })
            .collect();
        parts.into_iter().reduce(|a, b| e.b.ins().bor(a, b)).expect("at least one element")
    }
}

/// Part `index` of a vector, `bytes` long, repeated.
fn splat_lane(e: &mut Emit<'_>, v: Value, index: usize, bytes: usize) -> Value {
    let mask: Vec<u8> = (0..16).map(|i| (index * bytes + i % bytes) as u8).collect();
    let mask = e.b.func.dfg.immediates.push(mask.into());
    e.b.ins().shuffle(v, v, mask)
}

#[cfg(test)]
mod tests;
