//! What is lost: of one knob at one width in the float graph, and of a whole state in the quantized simulation.

use std::collections::BTreeMap;

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Diagnostic, Diagnostics, Module};

use super::knobs::{Kind, Knob, Knobs};
use super::replay::{Change, Changes, Replay};
use crate::parallel::parallel;
use crate::quantize::given::Grid;
use crate::quantize::narrow::{self, NarrowWeights};
use crate::quantize::{self, Calibration, QuantOptions, Width, Widths};

/// How far logits are from those of the float graph.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Kullback-Leibler divergence from the float graph's distribution, in nats: the mean over images.
    pub divergence: f64,
    /// Share of the images with the float graph's first class, in percent.
    pub agreement: f64,
}

/// The loss of logits, image by image, against those of the float graph.
pub fn loss_of(float: &[Tensor], other: &[Tensor]) -> Result<Loss, Diagnostic> {
    let rows = float.iter().zip(other).map(|(f, o)| distance(f, o)).collect::<Result<Vec<_>, _>>()?;
    let mean = |f: &dyn Fn(&(f64, f64)) -> f64| rows.iter().map(f).sum::<f64>() / rows.len().max(1) as f64;
    Ok(Loss { divergence: mean(&|r| r.0), agreement: 100.0 * mean(&|r| r.1) })
}

/// Divergence and agreement of one output, each the mean over the rows of its last axis.
fn distance(float: &Tensor, other: &Tensor) -> Result<(f64, f64), Diagnostic> {
    let floats = |t: &Tensor| t.as_f32().map(<[f32]>::to_vec);
    let (Some(f), Some(o)) = (floats(float), floats(other)) else {
        return Err(Diagnostic::new(
            "mixed",
            "the model's first output is no float tensor, so there are no logits to compare",
        ));
    };
    let classes = float.shape.last().copied().unwrap_or(1).max(1);
    let rows = (f.len() / classes).max(1) as f64;
    let (mut divergence, mut agreement) = (0.0, 0.0);
    for (f, o) in f.chunks_exact(classes).zip(o.chunks_exact(classes)) {
        divergence += kl(f, o);
        agreement += f64::from(u8::from(first(f) == first(o)));
    }
    Ok((divergence / rows, agreement / rows))
}

/// `sum p (log p - log q)` of the softmaxes of two rows.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (log_p, log_q) = (log_softmax(p), log_softmax(q));
    let sum: f64 = log_p.iter().zip(&log_q).map(|(p, q)| p.exp() * (p - q)).sum();
    sum.max(0.0)
}

fn log_softmax(x: &[f32]) -> Vec<f64> {
    let max = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let log_sum = x.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln() + max;
    x.iter().map(|&x| f64::from(x) - log_sum).collect()
}

/// The largest element; of equals the first.
fn first(x: &[f32]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}

/// The first outputs of a module of stage `shape` or `quantize`, for inputs of the float graph.
pub fn logits(
    module: &Module,
    inputs: &[Vec<Tensor>],
    threads: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Tensor>, Diagnostics> {
    let run = |i: usize, report: &dyn Fn()| {
        let outputs = eval::run(module, &quantize::doors(module, &inputs[i])?)?;
        report();
        outputs.into_iter().next().ok_or_else(|| Diagnostic::new("mixed", "the model has no output"))
    };
    Ok(parallel(inputs.len(), threads, run, progress).into_iter().collect::<Result<_, Diagnostic>>()?)
}

/// Losses of a knob by its bits.
pub type Losses = Vec<(u32, f64)>;

/// How many losses [`measure`] measures on so many images.
pub fn measurements(knobs: &Knobs, images: usize) -> usize {
    knobs.all.iter().map(|knob| knob.kind.widths().len() * images).sum()
}

/// The loss of each knob at each of its widths, alone in the float graph, on some images. `calibration` is of the float graph
/// with histograms; `inputs` are all it was taken from, `images` the numbers of those to measure on. The result does not
/// depend on the number of threads.
pub fn measure(
    module: &Module,
    knobs: &Knobs,
    (calibration, inputs): (&Calibration, &[Vec<Tensor>]),
    images: &[usize],
    options: &QuantOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Losses>, Diagnostics> {
    let mut table = vec![Vec::new(); knobs.all.len()];
    let replay = Replay::new(module)?;
    let products = with_products(module, calibration, inputs, options)?;
    let mut done = 0;
    for kind in [Kind::Weights, Kind::Inputs] {
        for &bits in kind.widths() {
            let narrow = Narrow::of(module, &products, kind, bits, options)?;
            let here = (0..knobs.all.len()).filter(|&k| knobs.all[k].kind == kind);
            let variants: Vec<(usize, Changes<'_>)> = here.map(|k| (k, narrow.changes(&knobs.all[k]))).collect();
            let losses = losses(&replay, &variants, inputs, images, options.threads, &mut |n| progress(done + n))?;
            done += variants.len() * images.len();
            variants.iter().zip(losses).for_each(|((k, _), loss)| table[*k].push((bits, loss)));
        }
    }
    Ok(table)
}

/// Every product named, so that none keeps 8 bits for what it reads or is.
fn everywhere(kind: Kind, bits: u32) -> Widths {
    let width = match kind {
        Kind::Weights => Width::of_weights(bits),
        Kind::Inputs => Width::of_activations(bits),
    };
    Widths { of: width.into_iter().map(|w| ("*".to_string(), w)).collect(), ..Widths::default() }
}

/// The calibration with the second moments of what products read at 8 bits, where rounding looks at them.
fn with_products(
    module: &Module,
    calibration: &Calibration,
    inputs: &[Vec<Tensor>],
    options: &QuantOptions,
) -> Result<Calibration, Diagnostics> {
    let options =
        QuantOptions { weights: everywhere(Kind::Weights, 4), activations: Widths::default(), ..options.clone() };
    let mut calibration = calibration.clone();
    if quantize::wants_products(module, &options) {
        let inputs = inputs.iter().cloned().map(Ok);
        quantize::observe_products(module, &mut calibration, inputs, &options, &mut |_| {})?;
    }
    Ok(calibration)
}

/// All operands of one kind at one width.
enum Narrow {
    Weights(BTreeMap<usize, NarrowWeights>),
    Inputs(BTreeMap<(usize, usize), Grid>),
}

impl Narrow {
    fn of(
        module: &Module,
        calibration: &Calibration,
        kind: Kind,
        bits: u32,
        options: &QuantOptions,
    ) -> Result<Narrow, Diagnostics> {
        let mut options =
            QuantOptions { weights: Widths::default(), activations: Widths::default(), ..options.clone() };
        match kind {
            Kind::Weights => {
                options.weights = everywhere(kind, bits);
                Ok(Narrow::Weights(narrow::weights(module, calibration, &options)?))
            }
            Kind::Inputs => {
                options.activations = everywhere(kind, bits);
                Ok(Narrow::Inputs(narrow::inputs(module, calibration, &options)?))
            }
        }
    }

    fn changes(&self, knob: &Knob) -> Changes<'_> {
        let mut changes = Changes::new();
        for &(n, i) in &knob.operands {
            match self {
                Narrow::Weights(all) => {
                    let Some(narrow) = all.get(&n) else { continue };
                    changes.push(((n, 1), Change::Constant(&narrow.weights)));
                    changes.extend(narrow.bias.as_ref().map(|bias| ((n, 2), Change::Constant(bias))));
                }
                Narrow::Inputs(all) => changes.extend(all.get(&(n, i)).map(|grid| ((n, i), Change::Grid(grid)))),
            }
        }
        changes
    }
}

/// The mean divergence of each variant, images in their order.
fn losses(
    replay: &Replay<'_>,
    variants: &[(usize, Changes<'_>)],
    inputs: &[Vec<Tensor>],
    images: &[usize],
    threads: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f64>, Diagnostic> {
    let run = |i: usize, report: &dyn Fn()| {
        let values = replay.whole(&inputs[images[i]])?;
        let float = replay.output(&values, &[])?;
        let loss = |(_, changes): &(usize, Changes<'_>)| {
            let loss = distance(float, &replay.changed(&values, changes)?)?.0;
            report();
            Ok(loss)
        };
        variants.iter().map(loss).collect::<Result<Vec<f64>, Diagnostic>>()
    };
    let mut sums = vec![0.0; variants.len()];
    for image in parallel(images.len(), threads, run, progress) {
        sums.iter_mut().zip(image?).for_each(|(sum, loss)| *sum += loss);
    }
    Ok(sums.into_iter().map(|sum| sum / images.len().max(1) as f64).collect())
}

#[cfg(test)]
mod tests {
    use vitc_ir::eval::Data;

    use super::*;

    #[test]
    fn divergence_is_zero_for_shifted_logits_and_known_for_a_coin() {
        let row = |x: &[f32]| vec![Tensor::f32(&[1, x.len()], x.to_vec())];
        let same = loss_of(&row(&[1.0, 2.0, 3.0]), &row(&[101.0, 102.0, 103.0])).unwrap();
        assert!(same.divergence < 1e-9 && same.agreement == 100.0);
        let loss = loss_of(&row(&[0.0, 0.0]), &row(&[3f32.ln(), 0.0])).unwrap();
        let known = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((loss.divergence - known).abs() < 1e-6, "{loss:?}");
        assert_eq!(loss_of(&row(&[0.0, 1.0]), &row(&[1.0, 0.0])).unwrap().agreement, 0.0);
        let ints = vec![Tensor { shape: vec![1], data: Data::I32(vec![1]) }];
        assert!(loss_of(&ints, &ints).is_err());
    }
}
