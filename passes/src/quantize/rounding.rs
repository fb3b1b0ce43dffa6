//! Which weights are rounded by what they multiply, what calibration must see for that, and the rounding, several products at
//! a time.

use std::collections::BTreeMap;
use std::sync::Mutex;

use vitc_ir::eval::{Data, Tensor};
use vitc_ir::{Diagnostic, Diagnostics, Module, Op, ValueId};

use super::float_weights::FloatWeights;
use super::given::{self, Grid};
use super::gptq::{self, Problem};
use super::gram::Gram;
use super::observe::Calibration;
use super::rows::RowGrid;
use super::sites::{self, Demand, Role, Sites, demand};
use super::stream::stream;
use super::weights::Weights;
use super::widths::{self, Width};
use super::{QuantOptions, range, rows};
use crate::parallel::parallel;

/// How weights are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// By GPTQ those of 6 bits and fewer of matrix products, where there are calibration inputs; others to nearest.
    #[default]
    Auto,
    /// To nearest.
    Nearest,
    /// By GPTQ those of matrix products, of 8 bits too.
    Gptq,
}

/// Weights of a product, and its bias where the rounding changes it.
pub(crate) struct RoundedBias {
    pub(crate) weights: Weights,
    pub(crate) bias: Option<Vec<f32>>,
}

/// Grids by group of sites.
type Grids = BTreeMap<usize, Grid>;

/// Whether the rounding asked for must see what products read: then [`observe_products`] comes before [`super::run`].
pub fn wants_products(module: &Module, options: &QuantOptions) -> bool {
    (0..module.nodes.len()).any(|n| is_candidate(module, n, options))
}

/// Runs the inputs through a module once more, now that the grids are known, and collects the second moments of what products
/// read. The result does not depend on the number of threads.
pub fn observe_products(
    module: &Module,
    calibration: &mut Calibration,
    inputs: impl Iterator<Item = Result<Vec<Tensor>, Diagnostic>>,
    options: &QuantOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<(), Diagnostics> {
    let sites = super::parts::of(module, calibration);
    let grids = range::decide(module, &sites, calibration, options)?;
    let mut wanted: BTreeMap<ValueId, (Grid, Mutex<Gram>)> = BTreeMap::new();
    for n in (0..module.nodes.len()).filter(|&n| is_candidate(module, n, options)) {
        let x = module.nodes[n].operands[0];
        let k = module.ty(x).shape.last_fixed();
        if let (Some(grid), Some(k)) = (grid_of(module, &sites, &grids, x), k) {
            wanted.insert(x, (grid, Mutex::new(Gram::new(k))));
        }
    }
    let see = |_: &mut (), _: usize, v: ValueId, tensor: &Tensor| {
        if let (Some((grid, gram)), Data::F32(values)) = (wanted.get(&v), &tensor.data) {
            let ints = grid.integers(values);
            // a panic of another worker ends the whole pass
            gram.lock().unwrap_or_else(|e| e.into_inner()).add(&ints);
        }
    };
    stream(module, inputs, options.threads, (|| (), see), progress)?;
    let grams = wanted.into_iter().map(|(v, (_, gram))| (v, gram.into_inner().unwrap_or_else(|e| e.into_inner())));
    calibration.grams = grams.filter(|(_, gram)| !gram.is_empty()).collect();
    Ok(())
}

/// Whether a node is a product of a matrix with float weights that are to be rounded by what they multiply.
fn is_candidate(module: &Module, n: usize, options: &QuantOptions) -> bool {
    let node = &module.nodes[n];
    let most = match options.rounding {
        Rounding::Nearest => return false,
        Rounding::Auto => 6,
        Rounding::Gptq => 8,
    };
    let bits = |module| widths::of_weights(module, n, &options.weights);
    let given = |v| given::integers(module, v).is_some();
    matches!(node.op, Op::MatMul {})
        && matches!(demand(module, n, 1), Demand::Weights { .. })
        && module.ty(node.operands[1]).shape.rank() == 2
        && demand(module, n, 0) == Demand::Integer(Role::Unsigned)
        && bits(module).bits() <= most
        && (bits(module) < Width::EIGHT || !given(node.operands[1]))
}

/// The grid of bytes of what a product reads; one over all rows, where each has its own.
fn grid_of(module: &Module, sites: &Sites, grids: &Grids, x: ValueId) -> Option<Grid> {
    let origin = sites::origins(module, x).into_iter().next()?;
    let grid = grids.get(&sites.group((origin, Role::Unsigned))?)?;
    match &grid.rows {
        Some(rows) => {
            let levels = if rows.signed { 127 } else { 255 };
            Some(rows::of_largest(grid, &RowGrid { levels, ..rows.clone() }))
        }
        None => grid.is_narrow().then(|| grid.clone()),
    }
}

/// Rounds what is to be rounded so, by node.
pub(crate) fn round(
    module: &Module,
    sites: &Sites,
    grids: &Grids,
    calibration: &Calibration,
    options: &QuantOptions,
) -> Result<BTreeMap<usize, RoundedBias>, Diagnostics> {
    let nodes: Vec<usize> = (0..module.nodes.len()).filter(|&n| is_candidate(module, n, options)).collect();
    let work = |i: usize, _: &dyn Fn()| rounded(module, nodes[i], (sites, grids), calibration, options);
    let done = parallel(nodes.len(), options.threads, work, &mut |_| {});
    let (mut all, mut problems) = (BTreeMap::new(), Diagnostics::default());
    for (n, rounded) in nodes.into_iter().zip(done) {
        match rounded {
            Ok(Some(rounded)) => drop(all.insert(n, rounded)),
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
    }
    problems.or(all)
}

/// The weights of one product; `None` where nothing was seen of what it reads.
fn rounded(
    module: &Module,
    n: usize,
    (sites, grids): (&Sites, &Grids),
    calibration: &Calibration,
    options: &QuantOptions,
) -> Result<Option<RoundedBias>, Diagnostic> {
    let node = &module.nodes[n];
    let x = node.operands[0];
    let (Some(gram), Some(grid)) = (calibration.grams.get(&x), grid_of(module, sites, grids, x)) else {
        return match options.rounding {
            Rounding::Gptq => Err(nothing_seen(module, n)),
            _ => Ok(None),
        };
    };
    let real = FloatWeights::of(module, node, 1)?;
    let scale = grid.quant.scale_at(0);
    let biased = node.operands.get(2).is_some_and(|&b| module.const_of(b).is_some());
    let bits = widths::of_weights(module, n, &options.weights);
    let found = gptq::round(&Problem {
        weights: &real.values,
        columns: real.shape.channels,
        bits,
        group: options.groups.rows(bits),
        floor: &real.floor(scale),
        gram,
        biased,
    });
    let corrected = |errors: Vec<f64>| {
        let bias = real.bias.iter().zip(errors);
        bias.map(|(&b, error)| (f64::from(b) + error * scale) as f32).collect()
    };
    Ok(Some(RoundedBias { weights: found.weights, bias: found.bias.map(corrected) }))
}

fn nothing_seen(module: &Module, n: usize) -> Diagnostic {
    let message = "rounding by what weights multiply needs calibration inputs";
    let place = module.nodes[n].loc.as_deref().unwrap_or("matmul").to_string();
    Diagnostic::new("rounding", message).at(place).help("give images to calibrate on, or round to nearest")
}
