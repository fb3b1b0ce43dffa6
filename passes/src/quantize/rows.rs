//! Scales of rows: what a product reads, rounded row by row to a grid as large as the row.
//!
//! One scale for a whole tensor must reach its largest row, and is too coarse for all others: of GELU's output a few tokens
//! hold values ten times those of the rest. Such a value is kept on a fine grid of 16 bits instead (`i16`), and what the
//! product reads are codes of each row in steps of its own peak (`int.row_codes`); the accumulators are multiplied by the peak
//! (`int.row_peak`) behind the product. All of it is integer arithmetic, and exact as soon as the codes are.

use std::collections::{BTreeMap, BTreeSet};

use vitc_ir::eval::Tensor;
use vitc_ir::{Elem, Module, Op, Quant, ValueId};

use super::QuantOptions;
use super::given::{self, Grid};
use super::histogram::Histogram;
use super::observe::Seen;
use super::range::{self, HEADROOM};
use super::sites::{self, Demand, Role, Sites, demand};
use super::widths::Width;
use crate::pattern;

/// How the rows of a value are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowGrid {
    /// Steps from the grid's lowest value to a row's largest; of a signed grid on either side of zero.
    pub(crate) levels: i64,
    /// Whether rows reach below the grid's zero.
    pub(crate) signed: bool,
}

impl RowGrid {
    /// The rounding of reals that a fine grid holds.
    pub(crate) fn op(self, grid: &Grid) -> Op {
        let step = grid.quant.scale_at(0) * f64::from(1 << PEAK_SHIFT);
        Op::RoundRows { lowest: grid.real(0).into(), step: step.into(), levels: self.levels, signed: self.signed }
    }

    /// The zero point of the codes.
    pub(crate) fn zero_point(self) -> i64 {
        if self.signed { self.levels + 1 } else { 0 }
    }

    /// The least and the largest code.
    pub(crate) fn codes(self) -> (i64, i64) {
        (if self.signed { 1 } else { 0 }, self.zero_point() + self.levels)
    }
}

/// Bits that the peaks of rows give up, so that their product with accumulators fits 32 bits. Of 15, 10 are left: the grid of
/// a row a tenth as large as the largest is too large by half a per cent in the mean.
pub(crate) const PEAK_SHIFT: u32 = 5;

/// The largest integer of the fine grid.
const FINE: f64 = 32767.0;

/// So much less noise, in decibels, is worth a pass over the rows at 8 bits.
const GAIN: f64 = 3.0;
/// And where there are fewer, for their noise is what counts.
const GAIN_OF_FEW_BITS: f64 = 1.0;
/// What has so many decibels with one scale for all rows needs no better one at 8 bits.
const CLEAN: f64 = 39.5;
/// With fewer columns of weights behind it, a pass over a row is too much beside the product.
const COLUMNS: usize = 128;

/// What was seen of the rows of a value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Peaks {
    /// Largest elements of rows.
    largest: Histogram,
    /// Largest magnitudes of rows.
    magnitude: Histogram,
    /// Root mean squares of rows.
    power: Histogram,
}

impl Peaks {
    /// Those of the rows of a tensor; `None` where an element is not finite.
    pub(crate) fn of(x: &Tensor) -> Option<Peaks> {
        let columns = *x.shape.last()?;
        let rows = || x.as_f32().unwrap_or_default().chunks_exact(columns.max(1));
        let largest: Vec<f32> = rows().map(|r| r.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect();
        let magnitude: Vec<f32> = rows().map(|r| r.iter().fold(0f32, |m, x| m.max(x.abs()))).collect();
        let most = magnitude.iter().copied().fold(0f32, f32::max);
        let finite = most.is_finite() && largest.iter().all(|x| x.is_finite());
        let power = |r: &[f32]| (r.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / columns as f64).sqrt() as f32;
        let power: Vec<f32> = rows().map(power).collect();
        let of = |values: &[f32]| Histogram::of(values, most);
        finite.then(|| Peaks { largest: of(&largest), magnitude: of(&magnitude), power: of(&power) })
    }

    pub(crate) fn merge(&mut self, other: &Peaks) {
        self.largest.merge(&other.largest);
        self.magnitude.merge(&other.magnitude);
        self.power.merge(&other.power);
    }
}

/// The mean of `f` over what a histogram holds.
fn mean(h: &Histogram, f: impl Fn(f64) -> f64) -> f64 {
    let (sum, count) = h.points().fold((0.0, 0.0), |(sum, count), (x, n)| (sum + n * f(x), count + n));
    if count > 0.0 { sum / count } else { 0.0 }
}

/// The mean squared error on a grid of what a histogram holds.
fn error_on(grid: &Grid, h: &Histogram) -> f64 {
    let (points, counts): (Vec<f32>, Vec<f64>) = h.points().map(|(x, n)| (x as f32, n)).unzip();
    let found = grid.integers(&points).into_iter().map(|q| f64::from(q) * grid.quant.scale_at(0));
    let errors = points.iter().zip(found).zip(&counts).map(|((&x, y), n)| n * (f64::from(x) - y).powi(2));
    errors.sum::<f64>() / counts.iter().sum::<f64>().max(1.0)
}

/// What may have scales of rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Candidate {
    /// What products read of it.
    pub(crate) read: BTreeSet<ValueId>,
    /// Columns of all their weights.
    pub(crate) columns: usize,
}

impl Candidate {
    fn add(&mut self, read: ValueId, columns: Option<usize>) {
        self.read.insert(read);
        self.columns += columns.unwrap_or(0);
    }
}

/// The groups of sites whose rows may have scales of their own: nothing but products with constant weights reads them, and
/// their grid is not the model's own.
pub(crate) fn candidates(module: &Module, sites: &Sites, options: &QuantOptions) -> BTreeMap<usize, Candidate> {
    let mut read: BTreeMap<usize, Candidate> = BTreeMap::new();
    let mut barred: BTreeSet<usize> = BTreeSet::new();
    for (n, node) in module.nodes.iter().enumerate() {
        for (i, &v) in node.operands.iter().enumerate() {
            let Demand::Integer(role) = demand(module, n, i) else { continue };
            let groups: BTreeSet<usize> =
                sites::origins(module, v).into_iter().filter_map(|o| sites.group((o, role))).collect();
            match i == 0 && role == Role::Unsigned && takes_rows(module, n, options) {
                true => {
                    let columns = module.ty(node.result).shape.last_fixed();
                    groups.into_iter().for_each(|g| read.entry(g).or_default().add(v, columns));
                }
                false => barred.extend(groups),
            }
        }
    }
    let members = sites.groups();
    let open = |g: &usize| {
        let members = members.get(g).map_or(&[][..], |m| m);
        given::grid_of_group(module, members).is_none() && members.iter().all(|(v, _)| module.node_of(*v).is_some())
    };
    read.retain(|g, _| !barred.contains(g) && open(g));
    read
}

/// Whether a node is a product of rows with a constant matrix that may have them rounded one by one.
fn takes_rows(module: &Module, n: usize, options: &QuantOptions) -> bool {
    let node = &module.nodes[n];
    let name = node.loc.as_deref().unwrap_or_default();
    matches!(node.op, Op::MatMul {})
        && matches!(demand(module, n, 1), Demand::Weights { .. })
        && module.ty(node.operands[1]).shape.rank() == 2
        && node.operands.get(2).is_none_or(|&b| module.const_of(b).is_some())
        && !options.without_rows.iter().any(|p| pattern::matches(p, name))
}

/// The grid with scales of rows for products of so many columns, where that makes much less noise than `plain`, of which
/// `seen` was seen.
pub(crate) fn better(plain: &Grid, seen: &Seen, (peaks, columns): &(Peaks, usize)) -> Option<Grid> {
    let width = plain.width.unwrap_or(Width::EIGHT);
    let (low, high) = (f64::from(seen.min).min(0.0), f64::from(seen.max).max(0.0));
    let (unsigned, signed) = (unsigned(low, high, width, peaks), signed(low.abs().max(high), width, peaks));
    // a new image may reach below what was seen: only what hardly has a lower side can be cut off there
    let one_sided = -low * 4.0 <= high && unsigned.0 < signed.0;
    let (noise, grid) = if one_sided { unsigned } else { signed };
    let of_plain =
        seen.histogram.as_ref().map_or_else(|| plain.quant.scale_at(0).powi(2) / 12.0, |h| error_on(plain, h));
    let decibels = |ratio: f64| 10.0 * ratio.log10();
    let gain = decibels(of_plain / noise);
    let is_worth = match width == Width::EIGHT {
        true => gain >= GAIN && *columns >= COLUMNS && decibels(mean(&peaks.power, |x| x * x) / of_plain) < CLEAN,
        false => gain >= GAIN_OF_FEW_BITS,
    };
    (noise > 0.0 && is_worth).then_some(grid)
}

/// Rows from `low` up, and their predicted noise.
fn unsigned(low: f64, high: f64, width: Width, peaks: &Peaks) -> (f64, Grid) {
    let scale = range::step(high - low, FINE / HEADROOM);
    let quant = Quant::per_tensor(scale, (-low / scale).round_ties_even() as i32);
    let rows = RowGrid { levels: (1 << width.bits()) - 1, signed: false };
    with_noise(mean(&peaks.largest, |x| (x - low).powi(2)), rows, quant)
}

/// Rows on both sides of zero, and their predicted noise.
fn signed(reach: f64, width: Width, peaks: &Peaks) -> (f64, Grid) {
    let rows = RowGrid { levels: (1 << (width.bits() - 1)) - 1, signed: true };
    with_noise(mean(&peaks.magnitude, |x| x * x), rows, range::symmetric(reach * HEADROOM, FINE))
}

/// A grid with the noise of its codes, of rows whose peaks have this mean square, and of the integers under them.
fn with_noise(peaks: f64, rows: RowGrid, quant: Quant) -> (f64, Grid) {
    let codes = peaks / (rows.levels * rows.levels) as f64;
    let noise = (codes + quant.scale_at(0).powi(2)) / 12.0;
    (noise, Grid { rows: Some(rows), ..Grid::whole(Elem::I16, quant) })
}

/// The least that a step of accumulators times peaks may stand for, in steps of weights.
pub(crate) fn least_step(scale: f64, levels: i64) -> f64 {
    scale * f64::from(1 << PEAK_SHIFT) / levels as f64
}

/// The codes' grid in the largest row that was seen: for second moments, which need no finer steps, and for reports.
pub(crate) fn of_largest(grid: &Grid, rows: RowGrid) -> Grid {
    let scale = grid.quant.scale_at(0) * FINE / HEADROOM / rows.levels as f64;
    let lowest = (f64::from(grid.quant.zero_point) * grid.quant.scale_at(0) / scale).round() as i32;
    let zero = if rows.signed { rows.zero_point() as i32 } else { lowest };
    Grid::whole(Elem::U8, Quant::per_tensor(scale, zero))
}
