//! The third room: calibration, and `quantize` + `dequantize` on every edge that will be integer.
//!
//! [`observe`] runs calibration images through the float graph and keeps ranges; [`observe_products`] does so once more for
//! the second moments of what products read, where weights are rounded by them; [`run`] decides a scale for every edge
//! by its role (the table in ARCHITECTURE.md) and makes the integers explicit. The simulation that the resulting module
//! evaluates to is what the integer graph will compute, up to the integer forms of the nonlinear ops; [`correct`] compares it with
//! the float graph and takes mean errors off biases.

mod bias;
#[cfg(test)]
mod bias_tests;
pub(crate) mod codes;
mod float_weights;
pub(crate) mod given;
mod gptq;
mod gram;
mod histogram;
mod insert;
pub(crate) mod narrow;
mod observe;
mod output;
#[cfg(test)]
mod output_tests;
mod parts;
#[cfg(test)]
mod parts_tests;
mod placed;
mod range;
mod rounding;
pub(crate) mod rows;
mod sites;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod through;
mod weights;
pub(crate) mod widths;

use std::collections::BTreeSet;

use vitc_ir::{Class, Diagnostic, Diagnostics, Elem, Module, Node, Op, Stage, ValueId};

pub use bias::{Corrected, correct, wants_correction};
pub(crate) use codes::logarithmic;
pub use codes::{Codes, CodesOf};
pub use observe::{Calibration, observe};
pub use placed::{Placed, RoundedRows};
pub use rounding::{Rounding, observe_products, wants_products};
pub(crate) use sites::{is_fine_hardswish, is_stream};
pub(crate) use stream::{doors, stream};
pub(crate) use weights::nearest;
pub use widths::{ByNode, Groups, Width, Widths};

/// How the range of an activation is chosen from what was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Observer {
    /// Everything seen at 8 bits, all but a hundred-thousandth at 6 and 7, the least mean squared error below; of what only a
    /// function such as GELU reads, the least error behind it.
    #[default]
    Auto,
    /// Everything seen: clipping at 8 bits costs more than it gains in these models.
    MinMax,
    /// This percentage of the values (for example 99.99) at either end.
    Percentile(f64),
    /// The range with the least mean squared error.
    Mse,
    /// As `Auto`, then refined by the error of what products make of it.
    Output,
}

/// What the quantize room is told.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantOptions {
    /// Ranges of 8-bit activations. The 16-bit residual stream always keeps everything seen, and weights are always
    /// searched for the least squared error, channel by channel.
    pub observer: Observer,
    /// Bits of the weights of products. Those that read the image keep 8 unless a pattern names them: they are small and see
    /// whole pixels.
    pub weights: Widths,
    /// Groups of rows of weights with steps of their own.
    pub groups: Groups,
    /// Bits of what products read, but for the image and, unless a pattern names it, what the classifier reads.
    pub activations: Widths,
    /// Which levels activations of fewer than 8 bits have, by the products that read them.
    pub codes: CodesOf,
    /// How weights are rounded.
    pub rounding: Rounding,
    /// Products, by the name of the ONNX node, that read all rows on one scale (`*` stands for any characters). Others read each
    /// row on a scale of its own, where that makes much less noise.
    pub without_rows: Vec<String>,
    /// Products, by the name of the ONNX node, whose bias [`correct`] leaves alone.
    pub without_bias: Vec<String>,
    /// Whether [`correct`] is wanted where all operands of products have 8 bits, too.
    pub bias_of_bytes: bool,
    /// Threads that calibrate; the result does not depend on it.
    pub threads: usize,
}

impl Default for QuantOptions {
    fn default() -> QuantOptions {
        let (weights, activations) = (Widths::default(), Widths::default());
        QuantOptions {
            observer: Observer::default(),
            weights,
            groups: Groups::default(),
            activations,
            codes: CodesOf::default(),
            rounding: Rounding::default(),
            without_rows: Vec::new(),
            without_bias: Vec::new(),
            bias_of_bytes: false,
            threads: 1,
        }
    }
}

impl QuantOptions {
    /// Whether anything is asked to have fewer than 8 bits.
    fn has_few_bits(&self) -> bool {
        self.weights.any_narrow() || self.activations.any_narrow()
    }

    /// Whether the range of a value alone does not tell its scale.
    fn wants_histogram(&self, module: &Module, v: ValueId) -> bool {
        match self.observer {
            Observer::Auto | Observer::Output => {
                self.activations.any_narrow() || through::Through::of(module, v).is_some()
            }
            Observer::MinMax => self.activations.any_narrow() && self.any_codes(|codes| codes != Codes::Uniform),
            Observer::Percentile(_) | Observer::Mse => true,
        }
    }

    /// Whether codes of a kind are chosen for anything.
    fn any_codes(&self, kind: impl Fn(Codes) -> bool) -> bool {
        self.codes.of.iter().map(|(_, codes)| *codes).chain([self.codes.default]).any(kind)
    }

    /// Whether levels of maps of softmax are chosen by what is seen of them.
    fn wants_maps(&self) -> bool {
        self.activations.any_narrow() && self.any_codes(Codes::looks_at_maps)
    }
}

/// Quantizes a module of stage `shape` with the ranges that [`observe`] saw on it.
pub fn run(module: &Module, calibration: &Calibration, options: &QuantOptions) -> Result<Module, Diagnostics> {
    run_placing(module, calibration, options).map(|(module, _)| module)
}

/// [`run`] that tells too what every activation became.
pub fn run_placing(
    module: &Module,
    calibration: &Calibration,
    options: &QuantOptions,
) -> Result<(Module, Vec<Placed>), Diagnostics> {
    check_patterns(module, options)?;
    let sites = parts::of(module, calibration);
    let grids = range::decide(module, &sites, calibration, options)?;
    let rounded = rounding::round(module, &sites, &grids, calibration, options)?;
    let mut inserted = insert::insert(module, &sites, &grids, rounded, options)?;
    note(module, &sites, &mut inserted.module);
    let placed = placed::all(module, &sites, &grids, &inserted);
    Ok((inserted.module, placed))
}

/// Key of the note of how many values of a quantized model keep the model's quantization.
const GIVEN_KEY: &str = "quantization.given";
/// Key of the note of how many values of a quantized model have a range from calibration.
const CALIBRATED_KEY: &str = "quantization.calibrated";

/// Notes what came from the model, when it came quantized.
fn note(module: &Module, sites: &sites::Sites, to: &mut Module) {
    if let Some(counts) = counts(module, sites) {
        to.meta.insert(GIVEN_KEY.into(), counts.given.to_string());
        to.meta.insert(CALIBRATED_KEY.into(), counts.calibrated.to_string());
    }
}

/// Where the quantization of the values of a quantized model comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// From the model.
    pub given: usize,
    /// From calibration, where there is one.
    pub calibrated: usize,
}

fn counts(module: &Module, sites: &sites::Sites) -> Option<Counts> {
    if !is_quantized(module) {
        return None;
    }
    let calibrated = range::to_observe(module, sites).len();
    let values: BTreeSet<_> = sites.values().filter(|&v| module.const_of(v).is_none()).collect();
    Some(Counts { given: values.len() - calibrated, calibrated })
}

/// The counts of a module of any stage; `None` when it did not come quantized, or is of a stage that cannot tell yet.
pub fn counts_of(module: &Module) -> Option<Counts> {
    if module.stage == Stage::Shape {
        return counts(module, &sites::Sites::of(module));
    }
    let number = |key: &str| module.meta.get(key)?.parse().ok();
    Some(Counts { given: number(GIVEN_KEY)?, calibrated: number(CALIBRATED_KEY)? })
}

/// Whether a module of stage `shape` or before came quantized: it has `quantize` or `dequantize` of its own. Pixels that a float
/// model reads are no sign of it.
pub fn is_quantized(module: &Module) -> bool {
    module.nodes.iter().any(|n| n.op.class() == Class::Quant && !reads_pixels(module, n))
}

/// Whether a node makes floats of an input's integers, moved or not.
fn reads_pixels(module: &Module, node: &Node) -> bool {
    let mut v = node.operands[0];
    while let Some(mover) = module.node_of(v).filter(|m| m.op.class() == Class::Move) {
        v = mover.operands[0];
    }
    let is_input = module.inputs.iter().any(|i| i.value == v);
    node.op == (Op::Dequantize {}) && is_input && module.ty(v).elem == Elem::U8
}

/// The names of the values of a module of stage `shape` whose range only calibration can tell. None of a float model's
/// are known; a quantized model brings some or all of them.
pub fn missing_ranges(module: &Module) -> Vec<String> {
    let sites = sites::Sites::of(module);
    range::without_range(module, &sites).into_iter().map(|v| range::place(module, v)).collect()
}

/// Whether calibration can tell anything about a module of stage `shape`.
pub fn wants_calibration(module: &Module) -> bool {
    !range::to_observe(module, &sites::Sites::of(module)).is_empty()
}

/// A pattern that no product matches is a slip of the pen, not a wish for nothing.
fn check_patterns(module: &Module, options: &QuantOptions) -> Result<(), Diagnostic> {
    let products = module.nodes.iter().filter(|n| widths::is_product(&n.op));
    let weighted = |n: &&Node| !matches!(n.op, Op::LinearAttention { .. }) && is_constant(module, n.operands[1]);
    let names = products.clone().filter_map(|n| n.loc.as_deref());
    if let Some(pattern) = options.weights.unmatched(products.filter(weighted).filter_map(|n| n.loc.as_deref())) {
        let message = format!("no product with weights has a name like `{pattern}`");
        return Err(Diagnostic::new("weight-bits", message));
    }
    if let Some(pattern) = options.codes.unmatched(names.clone()) {
        return Err(Diagnostic::new("codes", format!("no product has a name like `{pattern}`")));
    }
    if let Some(pattern) = options.activations.unmatched(names) {
        return Err(Diagnostic::new("activation-bits", format!("no product has a name like `{pattern}`")));
    }
    Ok(())
}

/// Whether a value is constant, as floats or as integers that are dequantized.
pub(crate) fn is_constant(module: &Module, v: ValueId) -> bool {
    module.const_of(v).is_some() || given::integers(module, v).is_some()
}
