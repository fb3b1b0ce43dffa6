//! Ranges by the error of products' outputs (`Observer::Output`): as in RepQuant and PTQ4ViT what counts is not how far a value is from its
//! rounding but how far the product is, and the product itself says so without a Hessian. On sampled rows `A` of the left operand
//! and sampled columns `B` of the right one, the error of a grid is
//!
//! ```text
//! |(A - Q(A)) B|^2    of a left operand
//! |A (B - Q(B))|^2    of a right one
//! ```
//!
//! summed over all products that read the value. Weights are their own sample; of products of two activations both sides
//! are taken from the same matrix of the same input.

use std::collections::BTreeMap;

use ndarray::ArrayView2;
use vitc_ir::eval::{Data, Tensor};
use vitc_ir::{Module, Op, ValueId};

use super::given::Grid;
use super::sites::{self, Demand, Site, demand};

/// Inputs that are sampled: the first ones.
const INPUTS: usize = 64;
/// Rows of what meets weights, of each input.
const ROWS: usize = 4;
/// Rows and columns of what meets another activation, of each input.
const SIDES: usize = 8;
/// Columns of weights.
const COLUMNS: usize = 64;

/// Rows of K elements by input; of right operands those are columns.
type Rows = BTreeMap<usize, Vec<f32>>;

/// Sampled operands of products, by node and operand.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Samples(BTreeMap<(usize, usize), Rows>);

impl Samples {
    /// Adds a value as the products in `read` have it.
    pub(crate) fn add(&mut self, module: &Module, read: &[(usize, usize)], input: usize, x: &Tensor) {
        if input >= INPUTS {
            return;
        }
        for &(n, i) in read {
            let count = if meets_weights(module, n) { ROWS } else { SIDES };
            let rows = sampled(x, i, input, count);
            rows.into_iter().for_each(|rows| drop(self.0.entry((n, i)).or_default().insert(input, rows)));
        }
    }

    /// Adds the share of another worker.
    pub(crate) fn merge(&mut self, other: Samples) {
        other.0.into_iter().for_each(|(key, rows)| self.0.entry(key).or_default().extend(rows));
    }
}

/// The products that read each value and say what its ranges cost.
pub(crate) fn readers(module: &Module) -> BTreeMap<ValueId, Vec<(usize, usize)>> {
    let mut all: BTreeMap<ValueId, Vec<(usize, usize)>> = BTreeMap::new();
    for (n, node) in module.nodes.iter().enumerate().filter(|(_, n)| matches!(n.op, Op::MatMul {})) {
        let sampled = (0..2).filter(|&i| matches!(demand(module, n, i), Demand::Integer(_)));
        sampled.for_each(|i| all.entry(node.operands[i]).or_default().push((n, i)));
    }
    all
}

fn meets_weights(module: &Module, n: usize) -> bool {
    matches!(demand(module, n, 1), Demand::Weights { .. })
}

/// Some rows of one matrix of a left operand, some columns of a right one. Which matrix follows from the number of the input, so that
/// both operands of a product tell of the same one. The first is that of the largest element: few rows reach the ends of the range,
/// and a sample without them would have them clipped.
fn sampled(x: &Tensor, operand: usize, input: usize, count: usize) -> Option<Vec<f32>> {
    let Data::F32(values) = &x.data else { return None };
    let [rows, columns] = *x.shape.last_chunk::<2>()?;
    let mut matrices = values.chunks_exact((rows * columns).max(1));
    let matrix = matrices.nth(input % matrices.len().max(1))?;
    let spread = |of: usize| (1..count.min(of)).map(move |k| (input + k * of / count.min(of)) % of);
    let row = |r: usize| -> Vec<f32> { matrix[r * columns..][..columns].to_vec() };
    let column = |c: usize| -> Vec<f32> { matrix[c..].iter().step_by(columns).copied().collect() };
    let at = matrix.iter().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).map_or(0, |(at, _)| at);
    Some(match operand {
        0 => std::iter::once(at / columns).chain(spread(rows)).flat_map(row).collect(),
        _ => std::iter::once(at % columns).chain(spread(columns)).flat_map(column).collect(),
    })
}

/// What the grid of a group of sites costs its products.
pub(crate) struct OutputError {
    /// Rows of the operand, and of what they meet: both of K elements each.
    meetings: Vec<(Vec<f32>, Vec<f32>, usize)>,
}

impl OutputError {
    /// `None` where no product tells.
    pub(crate) fn of(module: &Module, members: &[Site], samples: &Samples) -> Option<OutputError> {
        let role = members.first()?.1;
        let mine = |n: usize, i: usize| {
            let origins = sites::origins(module, module.nodes[n].operands[i]);
            demand(module, n, i) == Demand::Integer(role) && origins.iter().any(|&o| members.contains(&(o, role)))
        };
        let read = samples.0.iter().filter(|((n, i), _)| mine(*n, *i));
        let meetings: Vec<_> = read.flat_map(|((n, i), rows)| meetings(module, (*n, *i), rows, samples)).collect();
        (!meetings.is_empty()).then_some(OutputError { meetings })
    }

    /// The squared error on a grid.
    pub(crate) fn on(&self, grid: &Grid) -> f64 {
        self.meetings.iter().map(|meeting| error_of(meeting, grid)).sum()
    }

    /// The grid of least error around one that serves: shares of its range, then of either end.
    pub(crate) fn refine(&self, start: Grid, make: impl Fn((f64, f64)) -> Grid) -> Grid {
        const SHARES: [f64; 9] = [1.1, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4];
        let (low, high) = start.levels();
        let range = (start.real(low), start.real(high));
        let mut best = (self.on(&start), range, start);
        for (of_low, of_high) in [(true, true), (false, true), (true, false)] {
            let around = best.1;
            for share in SHARES {
                let scaled = |end: f64, moves: bool| if moves { end * share } else { end };
                let range = (scaled(around.0, of_low), scaled(around.1, of_high));
                let grid = make(range);
                let error = self.on(&grid);
                if error < best.0 {
                    best = (error, range, grid);
                }
            }
        }
        best.2
    }
}

/// An operand's rows with what they meet: weights all rows at once, another activation input by input.
fn meetings(
    module: &Module,
    (n, i): (usize, usize),
    rows: &Rows,
    samples: &Samples,
) -> Vec<(Vec<f32>, Vec<f32>, usize)> {
    let v = module.nodes[n].operands[i];
    let shape = &module.ty(v).shape.at(1);
    let k = if i == 0 { shape.last() } else { shape.iter().nth_back(1) }.copied().unwrap_or(1);
    if i == 0 && meets_weights(module, n) {
        let all: Vec<f32> = rows.values().flatten().copied().collect();
        return columns_of_weights(module, n).map(|columns| (all, columns, k)).into_iter().collect();
    }
    let Some(others) = samples.0.get(&(n, 1 - i)) else { return Vec::new() };
    let pairs = rows.iter().filter_map(|(input, mine)| Some((mine.clone(), others.get(input)?.clone(), k)));
    pairs.collect()
}

/// Some columns of a constant matrix, one after another.
fn columns_of_weights(module: &Module, n: usize) -> Option<Vec<f32>> {
    let weights = module.const_of(module.nodes[n].operands[1])?;
    let [_, columns] = *weights.ty.shape.as_fixed()?.last_chunk::<2>()?;
    let values = weights.values::<f32>();
    let taken = (0..columns).step_by(columns.div_ceil(COLUMNS).max(1));
    Some(taken.flat_map(|c| values[c..].iter().step_by(columns).copied().collect::<Vec<_>>()).collect())
}

fn error_of((rows, others, k): &(Vec<f32>, Vec<f32>, usize), grid: &Grid) -> f64 {
    let scale = grid.quant.scale_at(0) as f32;
    let errors: Vec<f32> = rows.iter().zip(grid.integers(rows)).map(|(x, q)| x - q * scale).collect();
    let matrix = |values: &[f32]| ArrayView2::from_shape((values.len() / k, *k), values).map(|m| m.to_owned());
    let (Ok(errors), Ok(others)) = (matrix(&errors), matrix(others)) else { return 0.0 };
    errors.dot(&others.t()).iter().map(|e| f64::from(*e).powi(2)).sum()
}
