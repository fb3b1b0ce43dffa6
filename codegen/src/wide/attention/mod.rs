//! Attention on 512-bit vectors and on tiles: leaves pack the keys and values of a head and run its rows through both products
//! and the softmax between them; the scores never leave the caches.
//!
//! ```text
//! for head                        Cranelift; copies rows of q first where the leaf cannot read them where they lie
//!   ../pack.rs  keys, values      as right sides of products
//!   rows.rs     for tile of rows  vectors: scores, softmax and values of six rows at a time
//! or, on tiles,
//!   for chunk of rows             whose weights stay in the second-level cache
//!     scores.rs for block of rows scores and softmax of sixteen rows at a time
//!     gemm.rs   the chunk         weights times values, requantized by each row's reciprocal: a product like others
//! ```
//!
//! Two phases on tiles, because loads of tiles wait long for the vector stores of the softmax.
//!
//! What a score has that is the same for a whole row (zero point of k) cancels in `max - score` and is never added. The
//! corrections for q's zero point start the sums; for keys that do not exist they start so low that no row's maximum is there.

mod rows;
mod scores;
mod softmax;

use cranelift_codegen::ir::{InstBuilder, Value};
use iced_x86::code_asm::registers::gpr64::rdi;
use iced_x86::code_asm::{AsmMemoryOperand, qword_ptr};
use vitc_ir::{Dim, Elem};

use self::rows::Rows;
use self::scores::{BLOCK, Cut, Scores};
use self::softmax::{Biases, Softmax};
use super::asm::{Asm, Assembled, at};
use super::dot::TILE;
use super::exp::Exp;
use super::gemm::{WideGemm, clear, flip_signs};
use super::lane::{LANES, ROW, is_supported};
use super::pack::{MOST, Matrix, Panels, Places};
use crate::attention::{Attention, biases_at};
use crate::copy::copy_factors;
use crate::emit::Emit;
use crate::gemm::{Reading, Weights};
use crate::lane::LaneSpec;
use crate::operand::{Columns, Operand, split_index};
use crate::rows::Work;
use crate::view::{Factor, Lin, merge};

/// Most keys.
const MOST_KEYS: usize = 4096;
/// Most and largest biases: scores with them stay above what those of no key are.
const MOST_BIASES: usize = 2;
pub(crate) const LARGEST_BIAS: i64 = 1 << 28;
/// Weights of a chunk of rows.
const CHUNK_BYTES: usize = 128 << 10;
/// The mask of the last keys' bytes.
const TAIL: u8 = 2;

/// Attention of heads. Arguments as those of [`Attention`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WideAttention {
    sizes: Vec<Dim>,
    heads: [Operand; 4],
    /// What is added to the scores of each head.
    biases: Vec<Operand>,
    reading: Reading,
    d: usize,
    keys: usize,
    columns: usize,
    /// Zero points as the products see them.
    q_zero: i64,
    v_zero: i64,
    /// Bytes from key to key of k, and of v.
    strides: [i64; 2],
    exp: Exp,
    numerator: i64,
    lane: LaneSpec,
    /// Weights times values as a product of its own, where the tile unit does both products. Its inputs from the second on are
    /// the rows' reciprocals and, where v has a zero point, what the sums start with.
    tiled: Option<Box<WideGemm>>,
}

/// Where in scratch a thread has the parts of a head.
struct Scratch {
    keys: Value,
    values: Value,
    corrections: Value,
    scores: Value,
    weights: Value,
    /// Of each row of a chunk the reciprocal, then of each what its sums of values start with.
    terms: Value,
    copies: Value,
    /// Of the product of weights and values.
    product: Value,
}

impl WideAttention {
    /// The same attention with leaves, if there can be some; `table` is that of the exponential. `tiled` is the lane program
    /// of [`Attention::values`] for tiles, on a tier that has them.
    pub(crate) fn of(a: &Attention, table: &[i64], table_bits: u32, tiled: Option<&LaneSpec>) -> Option<WideAttention> {
        let (Weights::Matrix { operand: k, k_stride: d_stride }, Weights::Matrix { operand: v, k_stride }) =
            (&a.scores.weights, &a.values.weights)
        else {
            return None;
        };
        let Work::Reciprocal { numerator } = a.reciprocal.work else { return None };
        let (d, keys, columns) = (a.scores.k, a.scores.n, a.values.n);
        let bytes = |o: &Operand| o.elem.bytes() == 1;
        let fits = bytes(&a.heads[0])
            && bytes(k)
            && bytes(v)
            && d.max(columns) <= MOST
            && keys <= MOST_KEYS
            && (*d_stride == 1 || d == 1)
            && (v.columns == Columns::Stride(1) || columns == 1)
            && a.values.out.columns == Columns::Stride(1)
            && a.biases.len() <= MOST_BIASES
            && a.biases.iter().all(|b| b.elem == Elem::I32 && (b.columns == Columns::Stride(1) || keys == 1))
            && !matches!(a.scores.reading, Reading::Direct { segments, run, .. } if segments * run != d)
            && is_supported(&a.values.lane);
        let exp = Exp::of(&a.exp.work, table, table_bits)?;
        let mut wide = WideAttention {
            sizes: a.sizes.clone(),
            heads: a.heads.clone(),
            biases: a.biases.clone(),
            reading: a.scores.reading.clone(),
            d,
            keys,
            columns,
            q_zero: a.scores.a_zero,
            v_zero: a.values.b_zero,
            strides: [k.column_stride(), *k_stride],
            exp,
            numerator,
            lane: a.values.lane.clone(),
            tiled: None,
        };
        if let Some(lane) = tiled {
            wide.tiled = Some(Box::new(wide.product(a, lane)));
            // The tile unit takes signed bytes as they are.
            wide.q_zero -= if a.heads[0].elem == Elem::I8 { 128 } else { 0 };
        }
        fits.then_some(wide)
    }

    /// Weights times values on tiles, over rows in scratch.
    fn product(&self, a: &Attention, lane: &LaneSpec) -> WideGemm {
        let row = &a.values.extras[0];
        let mut product = WideGemm {
            sizes: a.values.sizes.clone(),
            k: self.keys,
            n: self.columns,
            a: a.values.a.clone(),
            a_sizes: a.values.sizes.clone(),
            reading: a.values.reading.clone(),
            order: None,
            gathers: false,
            started: false,
            out: a.values.out.clone(),
            extras: vec![row.clone(); lane.program.inputs.len() - 1],
            lane: lane.clone(),
            constants: vec![false; lane.program.inputs.len() - 1],
            tiles: true,
            nibbles: false,
            computed: None,
            group: None,
            by_columns: false,
            copied_bytes: 0,
        };
        // Rows of weights are padded with zeros, so that they can be read where they lie.
        product.k = product.depth();
        product.a.rows = vec![Lin::fixed(product.k as i64)];
        product.reading = Reading::Direct { segments: 1, run: product.k, step: 0 };
        product
    }

    fn packed_keys(&self) -> Panels {
        Panels { steps: if self.tiled.is_some() { Cut::of(self.d).all_groups() } else { self.d.div_ceil(4) } }
    }

    fn packed_values(&self) -> Panels {
        Panels { steps: self.tiled.as_ref().map_or(self.keys, |product| product.k).div_ceil(4) }
    }

    /// Bytes of a row of scores.
    fn score_bytes(&self) -> usize {
        64 * self.keys.div_ceil(LANES)
    }

    /// Bytes of a row of weights.
    fn weight_bytes(&self) -> usize {
        self.tiled.as_ref().map_or(self.keys.next_multiple_of(ROW), |product| product.k)
    }

    /// Rows whose scores are in scratch at a time, and rows whose weights are.
    fn scratch_rows(&self) -> [usize; 2] {
        if self.tiled.is_none() {
            return [TILE; 2];
        }
        let (rows, most) = (self.rows(), (CHUNK_BYTES / self.weight_bytes()).max(BLOCK));
        [BLOCK, rows.div_ceil(rows.div_ceil(most)).next_multiple_of(BLOCK)]
    }

    /// Rows of a head.
    fn rows(&self) -> usize {
        self.sizes.last().map_or(1, |d| d.size)
    }

    /// Rows of q that the leaf cannot read where they lie are copied first: what is not consecutive, not whole steps, or has
    /// signs that the products cannot take.
    fn is_copied(&self) -> bool {
        let in_place = matches!(self.reading, Reading::Direct { segments: 1, run, .. } if run == self.d);
        !in_place || self.d != 4 * self.packed_keys().steps || self.flips_q()
    }

    fn flips_q(&self) -> bool {
        self.heads[0].elem == Elem::I8 && self.tiled.is_none()
    }

    /// Bytes from row to row of q as the leaf sees it.
    fn q_stride(&self) -> i64 {
        if self.is_copied() { 4 * self.packed_keys().steps as i64 } else { self.heads[0].row_stride() }
    }

    fn scratch_parts(&self) -> [usize; 8] {
        let [rows_of_scores, rows_of_weights] = self.scratch_rows();
        let parts = [
            self.packed_keys().bytes_of(self.keys),
            self.packed_values().bytes_of(self.columns),
            self.score_bytes(),
            rows_of_scores * self.score_bytes(),
            rows_of_weights * self.weight_bytes(),
            rows_of_weights * 8,
            if self.is_copied() { self.rows() * self.q_stride() as usize } else { 0 },
            self.tiled.as_ref().map_or(0, |product| product.scratch_bytes()),
        ];
        parts.map(|bytes| bytes.next_multiple_of(64))
    }

    /// Bytes of scratch the kernel uses.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch_parts().iter().sum()
    }

    /// Items of a step: rows. Threads share them at whole tiles.
    pub(crate) fn grain(&self) -> usize {
        if self.tiled.is_some() { BLOCK } else { TILE }
    }

    // ---- the kernel around the leaves

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let (&rows, heads) = self.sizes.split_last().expect("at least the rows of a head");
        let scratch = self.scratch(e);
        e.each_turn(rows, |e, head, from, count| {
            let lead = split_index(e, head, heads);
            let [q, k, v, out] = std::array::from_fn(|n| {
                let pointer = e.arg(n);
                self.heads[n].base(e, pointer, &lead)
            });
            let mut q = e.at(q, from, self.heads[0].row_stride());
            let out = e.at(out, from, self.heads[3].row_stride());
            let biases = biases_at(e, &self.biases, &lead, from);
            let s = &scratch;
            e.call_leaf(self.first_leaf(), &[k, v, s.keys, s.values, s.corrections]);
            if self.is_copied() {
                self.copy_rows(e, q, s.copies, count);
                q = s.copies;
            }
            match &self.tiled {
                Some(product) => self.chunks(e, product, [q, out, count], &biases, s),
                None => {
                    let mut block = vec![q, out, count, s.keys, s.values, s.corrections, s.scores, s.weights, s.terms];
                    block.extend(biases.iter().chain(&biases));
                    e.call_leaf(self.first_leaf() + 1, &block);
                }
            }
        });
    }

    fn scratch(&self, e: &mut Emit<'_>) -> Scratch {
        let mut next = e.scratch;
        let [keys, values, corrections, scores, weights, terms, copies, product] = self.scratch_parts().map(|bytes| {
            let part = next;
            next = e.add_imm(next, bytes as i64);
            part
        });
        Scratch { keys, values, corrections, scores, weights, terms, copies, product }
    }

    /// Both phases on tiles, chunk by chunk of rows.
    fn chunks(&self, e: &mut Emit<'_>, product: &WideGemm, [q, out, count]: [Value; 3], biases: &[Value], s: &Scratch) {
        let (zero, chunk) = (e.iconst(0), self.scratch_rows()[1] as i64);
        let starts = e.add_imm(s.terms, self.starts());
        e.for_range(zero, count, chunk, &[], |e, i, _| {
            let (left, most) = (e.b.ins().isub(count, i), e.iconst(chunk));
            let rows = e.b.ins().smin(left, most);
            let q = e.at(q, i, self.q_stride());
            let out = e.at(out, i, self.heads[3].row_stride());
            let mut block = vec![q, rows, s.keys, s.corrections, s.scores, s.weights, s.terms];
            block.resize(block.len() + scores::ROOM, zero);
            let biases: Vec<Value> = self.biases.iter().zip(biases).map(|(o, &b)| e.at(b, i, o.row_stride())).collect();
            block.extend(biases.iter().chain(&biases));
            e.call_leaf(self.first_leaf() + 1, &block);
            let args = [s.weights, s.values, out, out, s.terms, starts];
            e.part(&args, rows, s.product, |e| product.emit(e));
            Vec::new()
        });
    }

    /// Copies rows of q to scratch: consecutive, with signs as the leaf wants them, padded with zeros to whole steps.
    fn copy_rows(&self, e: &mut Emit<'_>, from: Value, to: Value, count: Value) {
        let factor = |size: usize, stride: i64| Factor { size: size.into(), stride: Lin::fixed(stride) };
        let factors = match &self.reading {
            Reading::Gathered(factors) => factors.clone(),
            Reading::Direct { segments, run, step } => merge([factor(*segments, *step), factor(*run, 1)].into_iter()),
        };
        let zero = e.iconst(0);
        e.for_range(zero, count, 1, &[from, to], |e, _, p| {
            copy_factors(e, &factors, 1, p[0], p[1]);
            if self.flips_q() {
                flip_signs(e, p[1], self.d);
            }
            clear(e, p[1], self.d, self.q_stride() as usize);
            vec![e.add_imm(p[0], self.heads[0].row_stride()), e.add_imm(p[1], self.q_stride())]
        });
    }

    // ---- leaves

    /// The code of the leaves: those of the product on tiles first, as it numbers them itself.
    pub(crate) fn leaves(&self) -> Assembled<Vec<Vec<u8>>> {
        let mut leaves = match &self.tiled {
            Some(product) => product.leaves()?,
            None => Vec::new(),
        };
        leaves.push(self.pack()?);
        leaves.push(match &self.tiled {
            Some(_) => self.scores().assemble()?,
            None => self.by_rows().assemble()?,
        });
        Ok(leaves)
    }

    /// The number of the packing leaf; the one over rows of q follows.
    fn first_leaf(&self) -> usize {
        if self.tiled.is_some() { WideGemm::TILED_LEAVES } else { 0 }
    }

    /// The leaf that packs the keys and values of a head. Its block: where they are, where they go, and what scores start with.
    fn pack(&self) -> Assembled<Vec<u8>> {
        let side = |n: usize, k, columns, panels| Matrix {
            k,
            columns,
            stride: self.strides[n - 1],
            flips: self.heads[n].elem == Elem::U8,
            panels,
        };
        let mut asm = Asm::leaf()?;
        let keys = side(1, self.d, self.keys, self.packed_keys());
        keys.pack_turned(&mut asm, Places { from: slot(0), to: slot(2) }, slot(4), self.q_zero)?;
        let values = side(2, self.keys, self.columns, self.packed_values());
        values.pack_straight(&mut asm, Places { from: slot(1), to: slot(3) })?;
        asm.finish()
    }

    /// Bytes from a row's reciprocal to what its sums start with.
    fn starts(&self) -> i64 {
        4 * self.scratch_rows()[1] as i64
    }

    fn softmax(&self) -> Softmax<'_> {
        Softmax {
            exp: &self.exp,
            keys: self.keys,
            score_bytes: self.score_bytes(),
            weight_bytes: self.weight_bytes(),
            v_zero: self.v_zero,
            starts: self.starts(),
            numerator: self.numerator,
            biases: if self.tiled.is_some() { self.biases(scores::BIASES) } else { Biases::default() },
        }
    }

    /// What is added to the scores, in the leaf's block from value `at` on.
    fn biases(&self, at: usize) -> Biases {
        Biases { strides: self.biases.iter().map(Operand::row_stride).collect(), at }
    }

    fn scores(&self) -> Scores<'_> {
        Scores {
            softmax: self.softmax(),
            cut: Cut::of(self.d),
            q_stride: self.q_stride(),
            q_is_signed: self.heads[0].elem == Elem::I8,
            packed_keys: self.packed_keys(),
        }
    }

    fn by_rows(&self) -> Rows<'_> {
        Rows {
            softmax: self.softmax(),
            biases: self.biases(rows::BIASES),
            q_stride: self.q_stride(),
            steps: [self.d.div_ceil(4), self.keys.div_ceil(4)],
            packed_keys: self.packed_keys(),
            packed_values: self.packed_values(),
            columns: self.columns,
            out: &self.heads[3],
            lane: &self.lane,
        }
    }
}

/// Value `n` of a leaf's block.
fn slot(n: usize) -> AsmMemoryOperand {
    qword_ptr(at(rdi, 8 * n as i64))
}
