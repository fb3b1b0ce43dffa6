//! What fewer bits make of the operands of single products while all else stays float: so that the loss of each can be told apart.

use std::collections::{BTreeMap, BTreeSet};

use vitc_ir::eval::Tensor;
use vitc_ir::{Diagnostic, Diagnostics, Module, Op};

use super::float_weights::FloatWeights;
use super::given::{self, Grid};
use super::observe::Calibration;
use super::rounding::{self, RoundedBias};
use super::sites::{self, Demand, Role, Sites, demand};
use super::widths::{self, Width};
use super::{QuantOptions, Widths, range};

/// Weights of a product after rounding, as the reals that they stand for.
pub(crate) struct NarrowWeights {
    pub(crate) weights: Tensor,
    /// Where the rounding changes it.
    pub(crate) bias: Option<Tensor>,
}

/// The weights of every product that has constant ones, rounded as `options` say, by node.
pub(crate) fn weights(
    module: &Module,
    calibration: &Calibration,
    options: &QuantOptions,
) -> Result<BTreeMap<usize, NarrowWeights>, Diagnostics> {
    let sites = Sites::of(module);
    let grids = range::decide(module, &sites, calibration, options)?;
    let mut rounded = rounding::round(module, &sites, &grids, calibration, options)?;
    let mut all = BTreeMap::new();
    for (n, axis) in weighted(module) {
        let scale = input_grid(module, &sites, &grids, n, 0).map_or(1.0, |grid| grid.quant.scale_at(0));
        let narrow = narrow_weights(module, (n, axis), rounded.remove(&n), scale, options)?;
        all.insert(n, narrow);
    }
    Ok(all)
}

fn narrow_weights(
    module: &Module,
    (n, axis): (usize, usize),
    rounded: Option<RoundedBias>,
    scale: f64,
    options: &QuantOptions,
) -> Result<NarrowWeights, Diagnostic> {
    let node = &module.nodes[n];
    let mut real = FloatWeights::of(module, node, axis)?;
    let image = module.node_of(node.operands[0]).filter(|m| matches!(m.op, Op::Normalize { .. }));
    if let Some(image) = image {
        real.divide_by_deviation(image);
    }
    let (found, bias) = match rounded {
        Some(RoundedBias { weights, bias }) => (weights, bias),
        None => (real.quantize(widths::of_weights(module, n, &options.weights), options.groups, scale), None),
    };
    let channel = |i: usize| (i / real.shape.inner) % real.shape.channels;
    let reals = found.ints.iter().enumerate().map(|(i, &q)| (f64::from(q) * found.scales[channel(i)]) as f32);
    real.values = reals.collect();
    if let Some(image) = image {
        real.multiply_by_deviation(image);
    }
    let dims = real.ty.shape.as_fixed().unwrap_or_default();
    let bias = bias.map(|bias| Tensor::f32(&[bias.len()], bias));
    Ok(NarrowWeights { weights: Tensor::f32(&dims, real.values), bias })
}

/// The grids of what products read, by node and operand.
pub(crate) fn inputs(
    module: &Module,
    calibration: &Calibration,
    options: &QuantOptions,
) -> Result<BTreeMap<(usize, usize), Grid>, Diagnostics> {
    let sites = Sites::of(module);
    let grids = range::decide(module, &sites, calibration, options)?;
    let operands = (0..module.nodes.len()).flat_map(|n| (0..module.nodes[n].operands.len()).map(move |i| (n, i)));
    let products = operands.filter(|&(n, _)| widths::is_product(&module.nodes[n].op));
    let read = products.filter_map(|(n, i)| Some(((n, i), input_grid(module, &sites, &grids, n, i)?.clone())));
    Ok(read.collect())
}

fn input_grid<'g>(
    module: &Module,
    sites: &Sites,
    grids: &'g BTreeMap<usize, Grid>,
    n: usize,
    i: usize,
) -> Option<&'g Grid> {
    grids.get(&input_group(module, sites, n, i)?)
}

fn input_group(module: &Module, sites: &Sites, n: usize, i: usize) -> Option<usize> {
    let Demand::Integer(role @ (Role::Unsigned | Role::Signed)) = demand(module, n, i) else { return None };
    let origin = sites::origins(module, module.nodes[n].operands[i]).into_iter().next()?;
    sites.group((origin, role))
}

/// The products with constant weights, with the axis of their scales.
pub(crate) fn weighted(module: &Module) -> Vec<(usize, usize)> {
    let axis = |n: usize| match demand(module, n, 1) {
        Demand::Weights { axis } => Some((n, axis)),
        _ => None,
    };
    let products = (0..module.nodes.len()).filter(|&n| matches!(module.nodes[n].op, Op::MatMul {} | Op::Conv2d { .. }));
    products.filter_map(axis).collect()
}

/// The operands of products whose bits can be chosen, by node and operand, with the group that shares a grid.
pub(crate) fn lowerable(module: &Module) -> BTreeMap<(usize, usize), usize> {
    let sites = Sites::of(module);
    let least = Width::of_activations(4).map(|width| ("*".to_string(), width));
    let widths = Widths { of: least.into_iter().collect(), ..Widths::default() };
    let mut groups: BTreeSet<usize> = widths::of_groups(module, &sites, &widths).into_keys().collect();
    let members = sites.groups();
    groups.retain(|g| members.get(g).is_some_and(|m| given::grid_of_group(module, m).is_none()));
    let products = (0..module.nodes.len()).filter(|&n| widths::is_product(&module.nodes[n].op));
    let operands = products.flat_map(|n| (0..module.nodes[n].operands.len()).map(move |i| (n, i)));
    let chosen = operands.filter_map(|(n, i)| Some(((n, i), input_group(module, &sites, n, i)?)));
    chosen.filter(|(_, group)| groups.contains(group)).collect()
}
