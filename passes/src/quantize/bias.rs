//! Bias correction (Nagel et al. 2019, section 4.2): rounding leaves a mean error in each output channel of a product or
//! convolution, and the bias takes it off.
//!
//! Calibration inputs go through the float graph and the quantized one side by side, from product to product: at each, the
//! mean difference of a channel over rows and images is what its bias takes over before both go on. So a product is
//! corrected for what it reads as it will read it, with the products before it corrected, and errors of roundings, clipping and
//! bounds of functions in between count as those of weights do.
//!
//! Rows count by the inverse of their noise, as for a mean of what is measured with different precision: of tokens a few have
//! values, and errors, many times those of the rest, and would decide for all. A mean over few images is uncertain, and a
//! correction by chance is an error. Of a mean `m` with standard error `s` over images the share `1 - s^2 / m^2` is taken, if
//! positive: the share of least expected squared error.

use std::sync::Mutex;

use vitc_ir::eval::{Steps, Tensor};
use vitc_ir::{Const, Diagnostic, Diagnostics, ImageLayout, Module, Node, Op, Shape, TensorType, ValueId};

use super::QuantOptions;
use super::stream::doors;
use crate::parallel::parallel;
use crate::pattern;

/// Most images that are looked at, evenly spaced among all: each keeps its values in both graphs.
const IMAGES: usize = 64;
/// The least share of a product's error that is worth a correction.
const WORTH: f64 = 0.005;
/// No row counts for more than one with this share of the mean noise.
const CLEAN: f64 = 0.01;

/// What was corrected at a product.
#[derive(Clone, Debug, PartialEq)]
pub struct Corrected {
    /// Name of the ONNX node.
    pub node: String,
    /// Noise of its output on the calibration inputs, in decibels saved.
    pub gain: f64,
}

/// A product with constant weights in the float graph and in the quantized one.
#[derive(Clone, Copy, Debug)]
struct Pair {
    float: usize,
    quantized: usize,
}

/// Whether the biases of a module of stage `shape` are to be corrected: below 8 bits, or where it is asked for. A model that came
/// quantized keeps its own: the mean of what the two graphs differ by on its grids is mostly chance, and moves values across
/// their steps.
pub fn wants_correction(module: &Module, options: &QuantOptions) -> bool {
    let left_out = options.without_bias.iter().any(|p| p == "*");
    (options.has_few_bits() || options.bias_of_bytes) && !left_out && !super::is_quantized(module)
}

/// Corrects the biases of what [`super::run`] made of `module`. The result does not depend on the number of threads.
pub fn correct(
    module: &Module,
    quantized: Module,
    inputs: impl Iterator<Item = Result<Vec<Tensor>, Diagnostic>>,
    options: &QuantOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<(Module, Vec<Corrected>), Diagnostics> {
    let inputs = spread(inputs.collect::<Result<_, _>>()?);
    let simulation = with_whole_maps(&quantized);
    let integers = inputs.iter().map(|x| doors(&quantized, x)).collect::<Result<Vec<_>, _>>()?;
    let both = inputs.iter().zip(&integers);
    let walks = both.map(|(x, q)| Ok(Mutex::new((Steps::new(module, x)?, Steps::new(&simulation, q)?))));
    let walks = walks.collect::<Result<Vec<_>, Diagnostic>>()?;
    let (mut corrections, mut report) = (Vec::new(), Vec::new());
    let pairs = pairs(module, &quantized, options);
    for (p, &pair) in pairs.iter().enumerate() {
        progress(walks.len() * p / pairs.len());
        let work = |i: usize, _: &dyn Fn()| {
            // a panic of another worker ends the whole pass
            let (float, simulated) = &mut *walks[i].lock().unwrap_or_else(|e| e.into_inner());
            error_at(pair, (module, float), (&quantized, simulated))
        };
        let errors = parallel(walks.len(), options.threads, work, &mut |_| {});
        let Some(found) = Correction::of(&errors.into_iter().collect::<Result<Vec<_>, _>>()?) else { continue };
        for walk in &walks {
            let (_, simulated) = &mut *walk.lock().unwrap_or_else(|e| e.into_inner());
            found.add_to(&quantized.nodes[pair.quantized], simulated);
        }
        let node = module.nodes[pair.float].loc.as_deref().unwrap_or_default().to_string();
        report.push(Corrected { node, gain: found.gain });
        corrections.push((pair.quantized, found.bias));
    }
    progress(walks.len());
    drop(walks);
    let mut quantized = quantized;
    corrections.into_iter().for_each(|(n, bias)| add_to_bias(&mut quantized, n, &bias));
    Ok((quantized, report))
}

/// The module with maps of softmax as they are before they are rounded evenly: to nearest many small weights of a row are lost, which
/// the integer graph keeps by thresholds of its own (`vitc_ir::dither`), without a mean error.
fn with_whole_maps(quantized: &Module) -> Module {
    let mut simulation = quantized.clone();
    let from = |v: ValueId, name: &str| quantized.node_of(v).filter(|n| n.op.name() == name).map(|n| n.operands[0]);
    let map = |v: ValueId| {
        let map = from(from(v, "dequantize")?, "quantize")?;
        quantized.node_of(map).is_some_and(|n| matches!(n.op, Op::Softmax {})).then_some(map)
    };
    for operand in simulation.nodes.iter_mut().flat_map(|n| &mut n.operands) {
        *operand = map(*operand).unwrap_or(*operand);
    }
    simulation
}

/// So many inputs that they can all be kept.
fn spread(mut inputs: Vec<Vec<Tensor>>) -> Vec<Vec<Tensor>> {
    let count = inputs.len();
    let mut i = 0;
    inputs.retain(|_| {
        i += 1;
        count <= IMAGES || i * IMAGES / count > (i - 1) * IMAGES / count
    });
    inputs
}

/// The products whose bias may change. Quantization keeps products and their order.
fn pairs(module: &Module, quantized: &Module, options: &QuantOptions) -> Vec<Pair> {
    let products = |m: &Module| -> Vec<usize> {
        let is_product = |n: &Node| matches!(n.op, Op::MatMul {} | Op::Conv2d { .. });
        (0..m.nodes.len()).filter(|&n| is_product(&m.nodes[n])).collect()
    };
    let all = products(module).into_iter().zip(products(quantized));
    let pairs = all.map(|(float, quantized)| Pair { float, quantized });
    let named = |n: usize| module.nodes[n].loc.as_deref().unwrap_or_default();
    let left_out = |n: usize| options.without_bias.iter().any(|p| pattern::matches(p, named(n)));
    pairs.filter(|p| has_own_bias(quantized, p.quantized) && !left_out(p.float)).collect()
}

/// Whether weights are constant and so is the bias, one for each channel, where there is one.
fn has_own_bias(quantized: &Module, n: usize) -> bool {
    let node = &quantized.nodes[n];
    let weights = quantized.node_of(node.operands[1]).filter(|d| matches!(d.op, Op::Dequantize {}));
    let bias = || node.operands.get(2).is_none_or(|&b| quantized.const_of(b).is_some_and(|c| c.ty.shape.rank() == 1));
    let channels_last = !matches!(node.op, Op::Conv2d { layout: ImageLayout::ChannelsFirst, .. });
    channels_last && weights.is_some_and(|d| quantized.const_of(d.operands[0]).is_some()) && bias()
}

/// What one input has to say of a product's error.
pub(crate) struct Errors {
    /// The mean of each channel over rows, the less a row counts the more noise it has.
    pub(crate) mean: Vec<f64>,
    /// The mean weight of a row.
    weight: f64,
}

/// Brings both evaluations to a product and compares its results.
fn error_at(
    pair: Pair,
    (module, float): (&Module, &mut Steps<'_>),
    (quantized, simulated): (&Module, &mut Steps<'_>),
) -> Result<Errors, Diagnostic> {
    let unknown = || Diagnostic::new("internal", "the result of a product is used by nothing");
    float.through(pair.float + 1, &mut |_, _| {})?;
    simulated.through(pair.quantized + 1, &mut |_, _| {})?;
    let wanted = float.result_mut(module.nodes[pair.float].result).ok_or_else(unknown)?;
    let found = simulated.result_mut(quantized.nodes[pair.quantized].result).ok_or_else(unknown)?;
    let channels = wanted.shape.last().copied().unwrap_or(1);
    Ok(Errors::of(wanted.as_f32().unwrap_or_default(), found.as_f32().unwrap_or_default(), channels))
}

impl Errors {
    /// By rows of so many channels.
    pub(crate) fn of(wanted: &[f32], found: &[f32], channels: usize) -> Errors {
        let rows = || wanted.chunks_exact(channels).zip(found.chunks_exact(channels));
        let error = |(x, y): (&f32, &f32)| f64::from(*x) - f64::from(*y);
        let power = |(x, y): (&[f32], &[f32])| x.iter().zip(y).map(|e| error(e).powi(2)).sum::<f64>() / channels as f64;
        let powers: Vec<f64> = rows().map(power).collect();
        let count = powers.len().max(1) as f64;
        let least = CLEAN * powers.iter().sum::<f64>() / count;
        let weight = |power: f64| if least > 0.0 { 1.0 / power.max(least) } else { 0.0 };
        let total: f64 = powers.iter().map(|&p| weight(p)).sum();
        let mut mean = vec![0.0; channels];
        for ((x, y), &power) in rows().zip(&powers) {
            let share = weight(power) / total;
            mean.iter_mut().zip(x.iter().zip(y)).for_each(|(mean, e)| *mean += share * error(e));
        }
        Errors { mean, weight: total / count }
    }
}

/// What is added to a bias.
pub(crate) struct Correction {
    pub(crate) bias: Vec<f32>,
    /// In decibels.
    gain: f64,
}

impl Correction {
    /// By the errors of each input; `None` where it is worth nothing.
    pub(crate) fn of(errors: &[Errors]) -> Option<Correction> {
        let (inputs, channels) = (errors.len() as f64, errors.first()?.mean.len());
        let mean = |c: usize| errors.iter().map(|e| e.mean[c]).sum::<f64>() / inputs;
        let share = |c: usize| {
            let m = mean(c);
            let scatter: f64 = errors.iter().map(|e| (e.mean[c] - m).powi(2)).sum();
            let uncertain = scatter / (inputs * (inputs - 1.0)).max(1.0);
            if m * m > uncertain { m - uncertain / m } else { 0.0 }
        };
        let bias: Vec<f64> = (0..channels).map(share).collect();
        let saved = |e: &Errors| {
            let each = bias.iter().zip(&e.mean).map(|(b, m)| b * (2.0 * m - b));
            e.weight * each.sum::<f64>() / channels as f64
        };
        let saved = errors.iter().map(saved).sum::<f64>() / inputs;
        let worth = errors.len() > 1 && saved > WORTH && bias.iter().all(|b| b.is_finite());
        let gain = -10.0 * (1.0 - saved).max(f64::MIN_POSITIVE).log10();
        worth.then(|| Correction { bias: bias.iter().map(|&b| b as f32).collect(), gain })
    }

    /// Corrects what was evaluated without it.
    fn add_to(&self, node: &Node, simulated: &mut Steps<'_>) {
        let Some(tensor) = simulated.result_mut(node.result) else { return };
        let rows = tensor.as_f32_mut().unwrap_or_default().chunks_exact_mut(self.bias.len());
        rows.for_each(|row| row.iter_mut().zip(&self.bias).for_each(|(y, b)| *y += b));
    }
}

fn add_to_bias(module: &mut Module, n: usize, correction: &[f32]) {
    let node = &module.nodes[n];
    let known = node.operands.get(2).and_then(|&b| module.const_of(b));
    let old = known.map_or(vec![0.0], |c| c.values::<f32>().into_owned());
    let values: Vec<f32> = correction.iter().enumerate().map(|(c, x)| old[c % old.len()] + x).collect();
    let name = known.map_or_else(|| format!("{}.bias", node.loc.as_deref().unwrap_or("product")), |c| c.name.clone());
    let ty = TensorType::f32(Shape::fixed(&[values.len()]));
    let v = module.constant(Const::new(name, ty, &values));
    let operands = &mut module.nodes[n].operands;
    operands.truncate(2);
    operands.push(v);
}
