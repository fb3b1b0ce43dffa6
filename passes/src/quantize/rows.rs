//! Scales of rows: what a product reads, rounded row by row to a grid as large as the row.
//!
//! One scale for a whole tensor must reach its largest row, and is too coarse for all others: of GELU's output a few tokens
//! hold values ten times those of the rest. Such a value is kept on a fine grid of 16 bits instead (`i16`), and what the
//! product reads are codes of each row in steps of its own peak (`int.row_codes`); the accumulators are multiplied by the peak
//! (`int.row_peak`) behind the product. All of it is integer arithmetic, and exact as soon as the codes are.
//!
//! Of few bits the codes are some of those of 8, the ones that fit what rows hold best, as [`super::codes`] fits levels to whole
//! tensors: a table behind the codes (`int.table`) finds the nearest.

use std::collections::{BTreeMap, BTreeSet};

use vitc_ir::eval::Tensor;
use vitc_ir::{Elem, Module, Op, Quant, ValueId};

use super::QuantOptions;
use super::codes::{self, Levels};
use super::given::{self, Grid};
use super::histogram::Histogram;
use super::observe::Seen;
use super::range::{self, HEADROOM};
use super::sites::{self, Demand, Role, Sites, demand};
use super::widths::Width;
use crate::pattern;

/// How the rows of a value are rounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowGrid {
    /// Steps from the grid's lowest value to a row's largest; of a signed grid on either side of zero.
    pub(crate) levels: i64,
    /// Whether rows reach below the grid's zero.
    pub(crate) signed: bool,
    /// The codes that are used, where they are not all of them: those that fit what rows hold.
    pub(crate) fitted: Option<Levels>,
}

/// The code of zero in a grid of so many levels.
pub(crate) fn zero_point(levels: i64, signed: bool) -> i64 {
    if signed { levels + 1 } else { 0 }
}

impl RowGrid {
    /// The rounding of reals that a fine grid holds.
    pub(crate) fn op(&self, grid: &Grid) -> Op {
        let step = grid.quant.scale_at(0) * f64::from(1 << PEAK_SHIFT);
        let codes = self.fitted.iter().flat_map(Levels::all).map(|&code| code as usize).collect();
        let (lowest, step) = (grid.real(0).into(), step.into());
        Op::RoundRows { lowest, step, levels: self.levels, signed: self.signed, codes }
    }

    /// The zero point of the codes.
    fn zero_point(&self) -> i64 {
        zero_point(self.levels, self.signed)
    }

    /// The least and the largest code.
    pub(crate) fn codes(&self) -> (i64, i64) {
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
const GAIN_OF_FEW_BITS: f64 = 0.5;
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
    /// Elements over the largest magnitude of their row, by the half-octave in which that lies; where levels are fitted.
    shares: BTreeMap<i32, Histogram>,
}

impl Peaks {
    /// Those of the rows of a tensor; `None` where an element is not finite.
    pub(crate) fn of(x: &Tensor, shares: bool) -> Option<Peaks> {
        let columns = *x.shape.last()?;
        let rows = || x.as_f32().unwrap_or_default().chunks_exact(columns.max(1));
        let largest: Vec<f32> = rows().map(|r| r.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect();
        let magnitude: Vec<f32> = rows().map(|r| r.iter().fold(0f32, |m, x| m.max(x.abs()))).collect();
        let most = magnitude.iter().copied().fold(0f32, f32::max);
        let finite = most.is_finite() && largest.iter().all(|x| x.is_finite());
        let power = |r: &[f32]| (r.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / columns as f64).sqrt() as f32;
        let power: Vec<f32> = rows().map(power).collect();
        let of = |values: &[f32]| Histogram::of(values, most);
        let shares = if shares && finite { Peaks::shares(rows().zip(&magnitude)) } else { BTreeMap::new() };
        finite.then(|| Peaks { largest: of(&largest), magnitude: of(&magnitude), power: of(&power), shares })
    }

    fn shares<'r>(rows: impl Iterator<Item = (&'r [f32], &'r f32)>) -> BTreeMap<i32, Histogram> {
        let mut shares: BTreeMap<i32, Vec<f32>> = BTreeMap::new();
        for (row, &magnitude) in rows.filter(|(_, magnitude)| **magnitude > 0.0) {
            let of = shares.entry((2.0 * magnitude.log2()).floor() as i32).or_default();
            of.extend(row.iter().map(|x| x / magnitude));
        }
        shares.into_iter().map(|(octave, values)| (octave, Histogram::of(&values, 1.0))).collect()
    }

    /// Elements over the magnitudes of their rows, with how often they were seen times the mean square of these magnitudes.
    fn weighted(&self) -> Vec<(f64, f64)> {
        let mut points: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
        for (&octave, shares) in &self.shares {
            // the middle of the squares of a half-octave; exact ones choose more sites, and lost at 5 and 6 bits, measured
            let square = 1.5 * f64::from(octave).exp2();
            for (x, count) in shares.points() {
                points.entry((x * 4096.0).floor() as i64).or_insert((x, 0.0)).1 += count * square;
            }
        }
        points.into_values().collect()
    }

    pub(crate) fn merge(&mut self, other: &Peaks) {
        self.largest.merge(&other.largest);
        self.magnitude.merge(&other.magnitude);
        self.power.merge(&other.power);
        for (octave, shares) in &other.shares {
            match self.shares.get_mut(octave) {
                Some(known) => known.merge(shares),
                None => drop(self.shares.insert(*octave, shares.clone())),
            }
        }
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
/// `seen` was seen. `fits`: whether levels are to lie where the values are.
pub(crate) fn better(plain: &Grid, seen: &Seen, (peaks, columns): &(Peaks, usize), fits: bool) -> Option<Grid> {
    let width = plain.width.unwrap_or(Width::EIGHT);
    let (low, high) = (f64::from(seen.min).min(0.0), f64::from(seen.max).max(0.0));
    let (unsigned, signed) = (unsigned(low, high, width, peaks), signed(low.abs().max(high), width, peaks));
    // a new image may reach below what was seen: only what hardly has a lower side can be cut off there
    let one_sided = -low * 4.0 <= high && unsigned.0 < signed.0;
    let even = if one_sided { unsigned } else { signed };
    let fitted = if fits { fitted(low.abs().max(high), width, peaks) } else { None };
    let (noise, grid) = fitted.filter(|(noise, _)| *noise < even.0).unwrap_or(even);
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
    let rows = RowGrid { levels: (1 << width.bits()) - 1, signed: false, fitted: None };
    with_noise(mean(&peaks.largest, |x| (x - low).powi(2)), rows, quant)
}

/// Rows on both sides of zero, and their predicted noise.
fn signed(reach: f64, width: Width, peaks: &Peaks) -> (f64, Grid) {
    let rows = RowGrid { levels: (1 << (width.bits() - 1)) - 1, signed: true, fitted: None };
    with_noise(mean(&peaks.magnitude, |x| x * x), rows, range::symmetric(reach * HEADROOM, FINE))
}

/// Rows on both sides of zero with the codes of 8 bits that fit them best, and their predicted noise.
fn fitted(reach: f64, width: Width, peaks: &Peaks) -> Option<(f64, Grid)> {
    const LEVELS: i64 = 127;
    let points = peaks.weighted();
    let code = |x: &f64| (x * LEVELS as f64).round() as i64 + zero_point(LEVELS, true);
    let levels = Levels::new(codes::fitted(points.iter().copied(), 1 << width.bits()).iter().map(code).collect());
    let found = |x: f64| (levels.nearest(code(&x)) - zero_point(LEVELS, true)) as f64 / LEVELS as f64;
    let error: f64 = points.iter().map(|&(x, weight)| weight * (x - found(x)).powi(2)).sum();
    let count: f64 = peaks.shares.values().flat_map(Histogram::points).map(|(_, count)| count).sum();
    let rows = RowGrid { levels: LEVELS, signed: true, fitted: Some(levels) };
    let quant = range::symmetric(reach * HEADROOM, FINE);
    let noise = error / count + quant.scale_at(0).powi(2) / 12.0;
    (noise > 0.0).then(|| (noise, Grid { rows: Some(rows), ..Grid::whole(Elem::I16, quant) }))
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
pub(crate) fn of_largest(grid: &Grid, rows: &RowGrid) -> Grid {
    let scale = grid.quant.scale_at(0) * FINE / HEADROOM / rows.levels as f64;
    let lowest = (f64::from(grid.quant.zero_point) * grid.quant.scale_at(0) / scale).round() as i32;
    let zero = if rows.signed { rows.zero_point() as i32 } else { lowest };
    Grid::whole(Elem::U8, Quant::per_tensor(scale, zero))
}
