//! Matrix products on 512-bit vectors: `vpdpbusd` register tiles under a whole panel pass.
//!
//! ```text
//! for lead                         Cranelift: outer loops over rows in which some operand is not affine
//!   pack b                         a leaf of its own (pack.rs): only when b is computed, into this thread's scratch
//!   for chunk of rows              Cranelift: only when rows of a have to be copied together first
//!     leaf
//!       for panel of 64 columns    K*64 bytes of weights, which stay in the caches while all rows pass; the first
//!                                  tile unpacks those that lie two to a byte
//!         for tile of 6 rows       the last tile of fewer rows starts earlier and computes some rows again
//!           for k in steps of 4    24 products; one line of the next panel is fetched every four steps
//!           for row of the tile    lane program on 64 outputs
//! ```
//!
//! Registers: those of a tile (see `dot.rs`). Each step is 24 products for 10 loads, so products bound it at any width of the
//! load unit; 64 columns make the bytes of a row of outputs one line.
//!
//! The leaf's block: see [`Slot`].

use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::code_asm::registers::gpr64::{r8, r9, r12, r13, r14, r15, rbp, rbx, rcx, rdi, rdx, rsi};
use iced_x86::code_asm::{AsmRegister64, ptr, qword_ptr, zmmword_ptr};
use vitc_ir::layout::Layout;
use vitc_ir::{Dim, Elem};

use super::asm::{Asm, Assembled, at, z};
use super::dot::{self, RIGHT, Right, Runs, TILE, Tile, sum};
use super::lane::{
    Arrangement, Feed, Group, LANES, Pins, ROW, VECTORS, emit as emit_lane, emit_rows, feed, is_supported, masks,
};
use super::pack::{self, Matrix, Panels, Places};
use super::tiles;
use crate::copy::copy_factors;
use crate::cost::Unit;
use crate::emit::{Addr, Emit};
use crate::gemm::{self, Gemm, Order, Reading};
use crate::lane::LaneSpec;
use crate::operand::{Columns, Operand, split_index};
use crate::view::{Factor, Lin};

/// Columns of a panel of packed weights.
pub(crate) const PANEL: usize = ROW;
/// Most runs that the k of a row of a lie in, when it is read in place: their loops are laid out one after another.
const MOST_RUNS: usize = 16;
/// The registers that walk the lane program's inputs.
pub(super) const EXTRAS: [AsmRegister64; 5] = [r12, r13, r14, r15, rbp];
/// The register that walks unpacked weights: that of the corrections, from which the sums have started by then.
const UNPACK_TO: AsmRegister64 = r9;

/// The leaf's block of 64-bit values.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    /// First row of a.
    A,
    /// First panel of weights.
    B,
    /// First output.
    Out,
    /// Corrections of the first panel.
    Corrections,
    /// Rows.
    Rows,
    /// Whole panels that are still to do.
    Panels,
    /// Scratch for unpacked weights.
    Unpacked,
    /// Whether the columns end in a panel of fewer than 64: asked only where threads share columns.
    Narrow,
    /// Input of the lane program, from its second on.
    Extra(usize),
}

impl Slot {
    fn index(self) -> usize {
        match self {
            Slot::A => 0,
            Slot::B => 1,
            Slot::Out => 2,
            Slot::Corrections => 3,
            Slot::Rows => 4,
            Slot::Panels => 5,
            Slot::Unpacked => 6,
            Slot::Narrow => 7,
            Slot::Extra(n) => 8 + n,
        }
    }

    pub(super) fn offset(self) -> i64 {
        8 * self.index() as i64
    }
}

/// A right side that is computed: each turn of the outer loops packs it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Computed {
    /// Its columns.
    operand: Operand,
    /// Bytes from k to k.
    k_stride: i64,
    /// Zero point of a as the product sees it, which the sums of columns are corrected for.
    zero: i64,
}

impl Computed {
    /// Bytes that the packing leaf can read: on one side of the matrix one after another.
    fn of(g: &Gemm, operand: &Operand, k_stride: i64) -> Option<Computed> {
        let computed = Computed { operand: operand.clone(), k_stride, zero: g.a_zero };
        let reads = if computed.is_turned() { g.k } else { g.n };
        let fits = matches!(operand.elem, Elem::U8 | Elem::I8)
            && (k_stride == 1 || operand.columns == Columns::Stride(1))
            && operand.columns != Columns::Table
            && reads <= pack::MOST;
        fits.then_some(computed)
    }

    /// Whether the k of each column lie together.
    fn is_turned(&self) -> bool {
        self.operand.columns != Columns::Stride(1)
    }
}

/// A matrix product. Arguments: a, b, out, corrections, then the lane program's inputs from the second on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WideGemm {
    /// Loops over rows, outermost first; the last one runs inside the leaf.
    pub sizes: Vec<Dim>,
    pub k: usize,
    pub n: usize,
    /// Rows of a; its columns are described by `reading`.
    pub a: Operand,
    /// Loops over rows of a when they are copied first, which have then nothing to do with those of the others.
    pub a_sizes: Vec<Dim>,
    pub reading: Reading,
    /// Rows of a that are not read in their order, but copied into it.
    pub order: Option<Order>,
    /// Whether rows of a are copied together because few of them lie one after another.
    pub gathers: bool,
    /// Whether the sums start with something: corrections for a's zero point, a bias, or both.
    pub started: bool,
    pub out: Operand,
    /// Inputs of the lane program from the second on.
    pub extras: Vec<Operand>,
    pub lane: LaneSpec,
    /// Which of `extras` are constants; the pool has room behind each.
    pub constants: Vec<bool>,
    /// Whether the tile unit does what has 16 rows and more.
    pub tiles: bool,
    /// Whether the weights lie two to a byte in memory.
    pub nibbles: bool,
    /// The right side, where it is no constant.
    pub computed: Option<Computed>,
    /// Columns that share k elements of a row, the next ones the next k: groups of a convolution. All share all without.
    pub group: Option<usize>,
    /// Whether threads share panels of columns instead of rows; then there is one loop over rows at most.
    pub by_columns: bool,
    /// Bytes of copied rows at a time.
    pub copied_bytes: usize,
}

/// Whether runs of rows in the inner loop fill their tiles so badly that copying them together costs less: cycles that the last tile
/// of a run computes again, against those of copying the run.
pub(crate) fn runs_are_short(sizes: &[Dim], k: usize, n: usize) -> bool {
    const CYCLES_A_COPY: usize = 16;
    const CYCLES_A_CALL: usize = 100;
    let Some(rows) = sizes.last().and_then(|d| d.as_fixed()).filter(|_| sizes.len() > 1) else { return false };
    let again = match rows % TILE {
        rest @ 0..=dot::FEW => rest, // as long alone as two in a tile
        rest => TILE - rest,
    };
    again * k * n.next_multiple_of(LANES) / ROW + CYCLES_A_CALL > rows * (k / LANES + CYCLES_A_COPY)
}

/// Panels that a call of the leaf does, of which right side, and what sums start with.
struct Part {
    b: Value,
    corrections: Value,
    first: Value,
    /// Whole ones, and whether the last one follows, which has fewer columns.
    panels: Value,
    narrow: Value,
}

impl WideGemm {
    /// The same product with a leaf, if there can be one; its code has still to fit the registers.
    pub(crate) fn of(g: &Gemm, unit: Unit, biased: bool, constants: Vec<bool>) -> Option<WideGemm> {
        let straight = |o: &Operand| matches!(o.columns, Columns::Same | Columns::Table | Columns::Stride(1));
        let computed = match &g.weights {
            gemm::Weights::Packed => None,
            gemm::Weights::Nibbles => return None,
            gemm::Weights::Matrix { operand, k_stride } => Some(Computed::of(g, operand, *k_stride)?),
        };
        let fits = g.b_zero == 0
            && matches!(g.a.elem, Elem::U8 | Elem::I8)
            && g.out.columns == Columns::Stride(1)
            && g.extras.len() <= EXTRAS.len()
            && g.extras.iter().all(straight)
            && is_supported(&g.lane);
        fits.then(|| WideGemm {
            sizes: g.sizes.clone(),
            k: g.k,
            n: g.n,
            a: g.a.clone(),
            a_sizes: g.sizes.clone(),
            reading: g.reading.clone(),
            order: g.order,
            gathers: computed.is_none() && runs_are_short(&g.sizes, g.k, g.n),
            started: g.a_zero != 0 || biased,
            out: g.out.clone(),
            extras: g.extras.clone(),
            lane: g.lane.clone(),
            constants,
            tiles: unit == Unit::Tiles,
            nibbles: false,
            computed,
            group: None,
            by_columns: false,
            copied_bytes: 0,
        })
    }

    /// The fewest rows that a thread gets: a whole tile.
    pub(crate) fn grain(&self) -> usize {
        if self.tiles { tiles::BLOCK } else { TILE }
    }

    /// Whether panels can hold groups of so many columns and rows of k elements of each: no vector of sums has two.
    pub(crate) fn holds_groups(k: usize, columns: usize) -> bool {
        matches!(columns, 16 | 32 | 64) && k.is_multiple_of(4)
    }

    /// Bytes of a row from those of a panel's first column to those of column `column`.
    fn group_offset(&self, column: usize) -> i64 {
        self.group.map_or(0, |columns| (column / columns * self.k) as i64)
    }

    /// Whether threads could share columns: one loop over rows, and more than one panel.
    pub(crate) fn has_columns_to_share(&self) -> bool {
        self.group.is_none() && self.computed.is_none() && self.sizes.len() <= 1 && self.n > PANEL
    }

    /// K as the leaves see it, padded with zeros to whole steps.
    pub(crate) fn depth(&self) -> usize {
        if self.tiles { tiles::depth(self.k) } else { self.k.next_multiple_of(4) }
    }

    /// Rows of a that are not few runs of whole steps, or signed, or of which only few follow each other, are copied first.
    pub(crate) fn is_copied(&self) -> bool {
        let in_place = match self.reading {
            Reading::Direct { segments: 1, run, .. } => run == self.k,
            Reading::Direct { segments, run, .. } => {
                segments * run == self.k
                    && run.is_multiple_of(4)
                    && segments <= MOST_RUNS
                    && !self.tiles
                    && !self.nibbles
            }
            Reading::Gathered(_) => false,
        };
        !in_place || self.gathers || self.k != self.depth() || self.a.elem == Elem::I8 || self.order.is_some()
    }

    /// A row of a as the leaf sees it.
    fn runs(&self) -> Runs {
        match self.reading {
            Reading::Direct { segments: count, run, step: stride } if count > 1 && !self.is_copied() => {
                Runs { count, steps: run / 4, stride }
            }
            _ => Runs::one(self.depth() / 4),
        }
    }

    /// Bytes from row to row of a as the leaf sees it.
    pub(super) fn a_stride(&self) -> i64 {
        if self.is_copied() { self.depth() as i64 } else { self.a.row_stride() }
    }

    /// Most rows that a leaf gets, where there is a limit: their copies, or their sums, should stay in the caches.
    fn most_rows(&self) -> Option<usize> {
        let copied = self.is_copied().then(|| (self.copied_bytes / self.depth()).clamp(16, 1024) / 16 * 16);
        let summed = if self.tiles { tiles::most_rows(self.k) } else { None };
        copied.into_iter().chain(summed).min()
    }

    /// The layout of the weights in memory.
    pub(crate) fn layout(&self) -> Layout {
        if self.nibbles { Layout::Dot4Nibbles { columns: PANEL } } else { Layout::Dot4 { columns: PANEL } }
    }

    /// Bytes of scratch for sums of the tile unit; copied rows lie behind them.
    fn sums_bytes(&self) -> usize {
        if self.tiles { tiles::sums_bytes(self.k, self.most_rows().unwrap_or(0)) } else { 0 }
    }

    /// Bytes of scratch the kernel uses; an unpacked panel of weights, or all of a right side with what sums start with, lies behind
    /// everything else.
    pub(crate) fn scratch_bytes(&self) -> usize {
        match self.computed {
            Some(_) => self.corrections_at() + 4 * self.n.next_multiple_of(PANEL),
            None => self.unpacked_at() + if self.nibbles { self.depth() * PANEL } else { 0 },
        }
    }

    /// A packed right side.
    fn panels(&self) -> Panels {
        Panels { steps: self.depth() / 4 }
    }

    /// Where in scratch a right side is packed to.
    fn packed_at(&self) -> usize {
        self.unpacked_at().next_multiple_of(64)
    }

    /// Where in scratch lies what the sums of a packed right side start with.
    fn corrections_at(&self) -> usize {
        self.packed_at() + self.panels().bytes_of(self.n)
    }

    /// Where in scratch weights are unpacked to.
    fn unpacked_at(&self) -> usize {
        let copied = self.most_rows().filter(|_| self.is_copied());
        self.sums_bytes() + copied.map_or(0, |rows| rows * self.depth())
    }

    /// `gemm_u8s8_<lane>__k192n768`.
    pub(crate) fn name(&self, lane: &str) -> String {
        let copied = match (self.group, self.is_copied()) {
            (Some(_), _) => "_groups",
            (None, true) => "_copy",
            (None, false) => "",
        };
        let b = match &self.computed {
            Some(computed) if computed.operand.elem == Elem::U8 => "u8act",
            Some(_) => "s8act",
            None if self.nibbles => "s4",
            None => "s8",
        };
        format!("gemm_{}{b}{lane}{copied}__k{}n{}", self.a.elem.name().replace('i', "s"), self.k, self.n)
    }

    // ---- the kernel around the leaf

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        if self.by_columns {
            return self.columns(e);
        }
        let (inner, outer) = match self.sizes.split_last() {
            Some((&inner, outer)) => (inner, outer),
            None => (Dim::fixed(1), &[][..]),
        };
        if outer.is_empty() && self.computed.is_none() {
            let (begin, end) = (e.begin, e.end);
            let count = e.b.ins().isub(end, begin);
            let part = self.all_panels(e, &[]);
            return self.rows(e, &part, &[], (begin, begin), count);
        }
        e.each_turn(inner, |e, turn, from, count| {
            let indices = split_index(e, turn, outer);
            let size = e.lin(Lin::fixed(1).times(inner).expect("one times a dimension"));
            let before = e.b.ins().imul(turn, size);
            let first = e.add(before, from);
            let part = self.all_panels(e, &indices);
            self.rows(e, &part, &indices, (from, first), count);
        });
    }

    /// The right side of a turn of the outer loops, which is packed first if it is computed.
    fn all_panels(&self, e: &mut Emit<'_>, outer: &[Value]) -> Part {
        let (panels, zero) = (e.iconst((self.n / PANEL) as i64), e.iconst(0));
        let (mut b, mut corrections) = (e.arg(1), e.arg(3));
        if let Some(computed) = &self.computed {
            let from = computed.operand.base(e, b, outer);
            b = e.add_imm(e.scratch, self.packed_at() as i64);
            corrections = e.add_imm(e.scratch, self.corrections_at() as i64);
            e.call_leaf(1 + usize::from(self.tiles), &[from, b, corrections]);
        }
        Part { b, corrections, first: zero, panels, narrow: zero }
    }

    /// All rows of the panels that are this thread's.
    fn columns(&self, e: &mut Emit<'_>) {
        let rows = self.sizes.first().copied().unwrap_or(Dim::fixed(1));
        let rows = e.lin(Lin::fixed(1).times(rows).expect("one times a dimension"));
        let (begin, end, whole, zero) = (e.begin, e.end, e.iconst((self.n / PANEL) as i64), e.iconst(0));
        let last = e.b.ins().smin(end, whole);
        let (panels, narrow) = (e.b.ins().isub(last, begin), e.b.ins().isub(end, last));
        let (b, corrections) = (e.arg(1), e.arg(3));
        let b = e.at(b, begin, self.panel_bytes());
        let corrections = e.at(corrections, begin, 4 * PANEL as i64);
        self.rows(e, &Part { b, corrections, first: begin, panels, narrow }, &[], (zero, zero), rows);
    }

    /// `count` rows of one turn of the outer loops, from row `from` of that turn, which is row `first` of all.
    fn rows(&self, e: &mut Emit<'_>, part: &Part, outer: &[Value], (from, first): (Value, Value), count: Value) {
        let start = |e: &mut Emit<'_>, arg: usize, o: &Operand| {
            let pointer = e.arg(arg);
            let base = o.base(e, pointer, outer);
            let base = e.at(base, from, o.row_stride());
            if self.by_columns && arg != 0 { e.at(base, part.first, o.column_stride() * PANEL as i64) } else { base }
        };
        let out = start(e, 2, &self.out);
        let extras: Vec<Value> = self.extras.iter().enumerate().map(|(i, o)| start(e, 4 + i, o)).collect();
        let Some(rows) = self.most_rows() else {
            let a = start(e, 0, &self.a);
            return self.call(e, part, a, out, &extras, count);
        };
        let (zero, rows) = (e.iconst(0), rows as i64);
        e.for_range(zero, count, rows, &[], |e, i, _| {
            let left = e.b.ins().isub(count, i);
            let rows = e.iconst(rows);
            let size = e.b.ins().smin(left, rows);
            let a = if self.is_copied() {
                let from = e.add(first, i);
                self.copy_rows(e, from, size)
            } else {
                let a = start(e, 0, &self.a);
                e.at(a, i, self.a.row_stride())
            };
            let out = e.at(out, i, self.out.row_stride());
            let extras: Vec<Value> =
                self.extras.iter().zip(&extras).map(|(o, &x)| e.at(x, i, o.row_stride())).collect();
            self.call(e, part, a, out, &extras, size);
            Vec::new()
        });
    }

    /// Copies rows to scratch: consecutive, unsigned, padded with zeros to whole steps; returns where they are.
    fn copy_rows(&self, e: &mut Emit<'_>, first: Value, count: Value) -> Value {
        let (end, scratch, a) = (e.add(first, count), e.scratch, e.arg(0));
        let to = e.add_imm(scratch, self.sums_bytes() as i64);
        let factors = self.factors();
        e.for_range(first, end, 1, &[to], |e, row, p| {
            let row = self.order.map_or(row, |order| order.of(e, row));
            let indices = split_index(e, row, &self.a_sizes);
            let from = self.a.base(e, a, &indices);
            copy_factors(e, &factors, 1, from, p[0]);
            if self.a.elem == Elem::I8 {
                flip_signs(e, p[0], self.k);
            }
            clear(e, p[0], self.k, self.depth());
            vec![e.add_imm(p[0], self.depth() as i64)]
        });
        to
    }

    fn factors(&self) -> Vec<Factor> {
        let factor = |size: usize, stride: i64| Factor { size: size.into(), stride: Lin::fixed(stride) };
        match &self.reading {
            Reading::Gathered(factors) => factors.clone(),
            Reading::Direct { segments: 1, run, .. } if *run == self.k => vec![factor(*run, 1)],
            Reading::Direct { segments, run, step } if segments * run == self.k => {
                vec![factor(*segments, *step), factor(*run, 1)]
            }
            // One element for all of k.
            Reading::Direct { .. } => vec![factor(self.k, 0)],
        }
    }

    fn call(&self, e: &mut Emit<'_>, part: &Part, a: Value, out: Value, extras: &[Value], count: Value) {
        let unpacked = e.add_imm(e.scratch, self.unpacked_at() as i64);
        let mut block = vec![a, part.b, out, part.corrections, count, part.panels, unpacked, part.narrow];
        block.extend(extras);
        if !self.tiles {
            return e.call_leaf(0, &block);
        }
        let unused = e.iconst(0);
        let mut wide = block.clone();
        wide.resize(Slot::Extra(EXTRAS.len()).index(), unused);
        wide.push(e.scratch);
        wide.resize(wide.len() + tiles::STATES - 1, unused);
        e.if_less(count, tiles::BLOCK as i64, |e| e.call_leaf(0, &block), |e| e.call_leaf(1, &wide));
    }

    // ---- the leaf

    /// Leaves of a product on tiles.
    pub(super) const TILED_LEAVES: usize = 2;

    /// The code of the leaves that the kernel calls.
    pub(crate) fn leaves(&self) -> Assembled<Vec<Vec<u8>>> {
        let mut leaves = vec![self.assemble()?];
        if self.tiles {
            leaves.push(tiles::assemble(self)?);
        }
        if let Some(computed) = &self.computed {
            leaves.push(self.pack(computed)?);
        }
        Ok(leaves)
    }

    /// The code of the leaf that packs a right side. Its block: where that is, where it goes, and what sums start with.
    fn pack(&self, computed: &Computed) -> Assembled<Vec<u8>> {
        let [from, to, corrections] = [0, 1, 2].map(|n| qword_ptr(at(rdi, 8 * n)));
        let turned = computed.is_turned();
        let matrix = Matrix {
            k: self.k,
            columns: self.n,
            stride: if turned { computed.operand.column_stride() } else { computed.k_stride },
            flips: computed.operand.elem == Elem::U8,
            panels: self.panels(),
        };
        let mut asm = Asm::leaf()?;
        if turned {
            matrix.pack_turned(&mut asm, Places { from, to }, corrections, computed.zero)?;
        } else {
            matrix.pack_straight(&mut asm, Places { from, to })?;
            if self.started {
                matrix.correct(&mut asm, to, corrections, computed.zero)?;
            }
        }
        asm.finish()
    }

    /// The code of the leaf for any number of rows.
    fn assemble(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        masks(&mut asm, self.n % PANEL)?;
        let (mut narrow, mut done) = (asm.c.create_label(), asm.c.create_label());
        if self.n >= PANEL {
            let mut panel = asm.c.create_label();
            if self.by_columns {
                asm.c.cmp(slot(Slot::Panels), 0i32)?;
                asm.c.je(narrow)?;
            }
            asm.c.set_label(&mut panel)?;
            self.panel(&mut asm, PANEL)?;
            self.next_panel(&mut asm)?;
            asm.c.dec(slot(Slot::Panels))?;
            asm.c.jnz(panel)?;
        }
        asm.c.set_label(&mut narrow)?;
        asm.c.nop()?;
        if !self.n.is_multiple_of(PANEL) {
            if self.by_columns {
                asm.c.cmp(slot(Slot::Narrow), 0i32)?;
                asm.c.je(done)?;
            }
            self.panel(&mut asm, self.n % PANEL)?;
        }
        asm.c.set_label(&mut done)?;
        asm.finish()
    }

    /// All rows of one panel.
    fn panel(&self, asm: &mut Asm, columns: usize) -> Assembled {
        self.load_pointers(asm)?;
        if self.nibbles {
            self.first_tile(asm, columns)?;
        }
        let walkers = self.walkers();
        dot::each_tile(asm, slot(Slot::Rows), &walkers, |asm, rows| self.tile(asm, rows, columns, Right::Bytes))
    }

    /// The first rows of a panel whose weights lie two to a byte: they unpack it for those behind them.
    fn first_tile(&self, asm: &mut Asm, columns: usize) -> Assembled {
        let (mut few, mut done) = (asm.c.create_label(), asm.c.create_label());
        asm.c.cmp(rsi, TILE as i32)?;
        asm.c.jl(few)?;
        self.tile(asm, TILE, columns, Right::Nibbles { to: UNPACK_TO })?;
        dot::advance(asm, &self.walkers(), TILE as i64)?;
        asm.c.sub(rsi, TILE as i32)?;
        asm.c.jmp(done)?;
        asm.c.set_label(&mut few)?;
        self.tile(asm, 1, columns, Right::Nibbles { to: UNPACK_TO })?;
        dot::advance(asm, &self.walkers(), 1)?;
        asm.c.dec(rsi)?;
        asm.c.set_label(&mut done)?;
        Ok(asm.c.mov(rdx, slot(Slot::Unpacked))?)
    }

    /// Pointers of the panel at hand: rcx rows of a, rdx weights, r8 out, r9 corrections, rbx the line to fetch next.
    fn load_pointers(&self, asm: &mut Asm) -> Assembled {
        for (register, from) in
            [(rcx, Slot::A), (rdx, Slot::B), (r8, Slot::Out), (r9, Slot::Corrections), (rsi, Slot::Rows)]
        {
            asm.c.mov(register, slot(from))?;
        }
        for (i, &register) in EXTRAS.iter().enumerate().take(self.extras.len()) {
            asm.c.mov(register, slot(Slot::Extra(i)))?;
        }
        asm.c.lea(rbx, ptr(at(rdx, self.panel_bytes())))?;
        Ok(())
    }

    /// Bytes of a panel in memory.
    fn panel_bytes(&self) -> i64 {
        self.layout().packed_len(self.depth(), PANEL) as i64
    }

    /// Moves the block on to the next panel.
    pub(super) fn next_panel(&self, asm: &mut Asm) -> Assembled {
        let columns = PANEL as i64;
        let mut steps = vec![(Slot::B, self.panel_bytes()), (Slot::Out, self.out.column_stride() * columns)];
        steps.push((Slot::Corrections, 4 * columns));
        steps.push((Slot::A, self.group_offset(PANEL)));
        steps.extend(self.extras.iter().enumerate().map(|(i, o)| (Slot::Extra(i), o.column_stride() * columns)));
        for (at, bytes) in steps {
            if bytes != 0 {
                asm.c.add(slot(at), bytes as i32)?;
            }
        }
        Ok(())
    }

    /// Registers that walk the rows, and how far apart those are.
    fn walkers(&self) -> Vec<(AsmRegister64, i64)> {
        let extras = EXTRAS.into_iter().zip(self.extras.iter().map(Operand::row_stride));
        [(rcx, self.a_stride()), (r8, self.out.row_stride())].into_iter().chain(extras).collect()
    }

    fn tile(&self, asm: &mut Asm, rows: usize, columns: usize, right: Right) -> Assembled {
        let vectors = columns.div_ceil(LANES);
        for row in 0..rows {
            for v in 0..vectors {
                let sum = z(sum(row, v));
                if self.started {
                    asm.c.vmovdqu32(sum, zmmword_ptr(at(r9, 64 * v as i64)))?;
                } else {
                    asm.c.vpxord(sum, sum, sum)?;
                }
            }
        }
        self.products(asm, rows, vectors, right)?;
        self.epilogue(asm, rows, columns)
    }

    /// Sums over all of k.
    fn products(&self, asm: &mut Asm, rows: usize, vectors: usize, right: Right) -> Assembled {
        let a = (rcx, self.a_stride());
        let offsets = std::array::from_fn(|v| self.group_offset(v * LANES));
        let tile = Tile { rows, vectors, runs: self.runs(), a, offsets, b: rdx, right, fetch: Some(rbx) };
        if right == Right::Bytes {
            return tile.multiply(asm);
        }
        asm.c.mov(UNPACK_TO, slot(Slot::Unpacked))?;
        tile.multiply(asm)?;
        Ok(asm.c.mov(UNPACK_TO, slot(Slot::Corrections))?)
    }

    /// The lane program on the rows of the tile.
    fn epilogue(&self, asm: &mut Asm, rows: usize, columns: usize) -> Assembled {
        let sums = |row: usize| Feed::Registers(std::array::from_fn(|v| sum(row, v)));
        let inputs: Vec<Vec<Feed>> = (0..rows).map(|row| self.feeds(sums(row), row)).collect();
        // The registers of the rows before are free as well, when rows come one after the other.
        let free: Vec<Vec<u8>> = (0..rows).map(|row| (0..(row * VECTORS) as u8).chain(RIGHT..32).collect()).collect();
        let group = |row: usize| Group {
            inputs: &inputs[row],
            columns,
            out: self.place(row),
            free: &free[row],
            arrangement: Arrangement::Rows,
        };
        emit_rows(asm, &self.lane, &(0..rows).map(group).collect::<Vec<_>>(), &Pins::default())
    }

    /// Where the results of a row go, `row` rows on from where outputs are.
    fn place(&self, row: usize) -> (AsmRegister64, i64) {
        (r8, row as i64 * self.out.row_stride())
    }

    /// The inputs of the lane program on that row.
    fn feeds(&self, sums: Feed, row: usize) -> Vec<Feed> {
        let extras = self.extras.iter().zip(EXTRAS).zip(&self.constants);
        let extras = extras.map(|((o, base), &constant)| feed(o, base, row as i64 * o.row_stride(), constant));
        [sums].into_iter().chain(extras).collect()
    }

    /// The lane program on sums of one row, `row` rows on from where outputs and inputs are.
    pub(super) fn outputs(&self, asm: &mut Asm, sums: Feed, row: usize, columns: usize, free: &[u8]) -> Assembled {
        let group = Group {
            inputs: &self.feeds(sums, row),
            columns,
            out: self.place(row),
            free,
            arrangement: Arrangement::Rows,
        };
        emit_lane(asm, &self.lane, &group)
    }
}

pub(super) fn slot(s: Slot) -> iced_x86::code_asm::AsmMemoryOperand {
    qword_ptr(at(rdi, s.offset()))
}

/// Zeros in the bytes `from..to` of `at`.
pub(super) fn clear(e: &mut Emit<'_>, at: Value, from: usize, to: usize) {
    let mut from = from;
    while from < to {
        let (ty, bytes) = if to - from >= 8 { (types::I64, 8) } else { (types::I8, 1) };
        let none = e.constant(ty, 0);
        e.store(none, Addr { base: at, disp: from as i32 });
        from += bytes;
    }
}

/// Adds 128 to each of `count` bytes.
pub(crate) fn flip_signs(e: &mut Emit<'_>, at: Value, count: usize) {
    let flip = e.constant(types::I8X16, -128);
    let done = e.repeat(count / 16, &[at], |e, p| {
        let v = e.load(types::I8X16, Addr { base: p[0], disp: 0 });
        let v = e.b.ins().bxor(v, flip);
        e.store(v, Addr { base: p[0], disp: 0 });
        vec![e.add_imm(p[0], 16)]
    });
    let byte = e.constant(types::I8, -128);
    for i in 0..count % 16 {
        let at = Addr { base: done[0], disp: i as i32 };
        let v = e.load(types::I8, at);
        let v = e.b.ins().bxor(v, byte);
        e.store(v, at);
    }
}
