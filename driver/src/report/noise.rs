//! How far the values of a module are from those of the float graph: powers of signal and error, summed in `f64` in the order
//! of the inputs, so that threads do not change them.
//!
//! Transforms rescale channels. A value is compared with the float value that was quantized, rescaled like it, and its error
//! is then brought back to the channel as the model has it: the factor is the slope of the model's own values over the rescaled
//! ones. So one signal stands behind the figures of all stages.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Elem, Module, Op, Quant, TensorType, ValueId};

use super::data::Noise;
use crate::accuracy::parallel;
use crate::io::progress::Progress;

/// What is measured: a module made from a float graph, and where in it the values of that graph are.
pub(crate) struct Subject<'m> {
    /// The model's float graph, of stage `shape`.
    pub(crate) origin: &'m Module,
    /// The same after the transforms, with the same ids of values.
    pub(crate) float: &'m Module,
    /// What was made of that.
    pub(crate) module: &'m Module,
    /// Values to compare.
    pub(crate) probes: Vec<Probe>,
}

/// A value of a module that stands for one of the float graph.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    /// The float value.
    pub(crate) truth: ValueId,
    /// The one that stands for it.
    pub(crate) found: ValueId,
    /// What its elements stand for, when they are integers.
    pub(crate) quant: Option<Quant>,
}

/// What was measured.
pub(crate) struct Measured {
    /// Of every probe.
    pub(crate) probes: Vec<Value>,
    /// Of all outputs together.
    pub(crate) outputs: Option<Noise>,
}

/// What was measured of a value.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) noise: Noise,
    /// The least and the largest float value, rescaled by the transforms.
    pub(crate) seen: [f64; 2],
    /// What each channel, the last dimension, is to be multiplied by to be the model's own.
    pub(crate) factors: Vec<f64>,
}

/// Runs the inputs through all three modules, as many at a time as there are threads.
pub(crate) fn measure(
    subject: &Subject<'_>,
    inputs: &[Vec<Tensor>],
    threads: usize,
    progress: &Progress,
) -> Result<Measured> {
    let mut all = Share { values: vec![Channels::default(); subject.probes.len()], outputs: Sums::default() };
    for part in inputs.chunks(threads.max(1)) {
        for share in parallel(part, threads, |input| share_of(subject, input)) {
            all.add(&share?);
            progress.advance(1);
        }
    }
    let outputs = (all.outputs.count > 0.0).then(|| Noise::of(all.outputs.signal(), all.outputs.error()));
    Ok(Measured { probes: all.values.iter().map(Channels::value).collect(), outputs })
}

/// One input's share of the sums.
struct Share {
    values: Vec<Channels>,
    outputs: Sums,
}

impl Share {
    fn add(&mut self, other: &Share) {
        self.values.iter_mut().zip(&other.values).for_each(|(a, b)| a.add(b));
        self.outputs.add(&other.outputs);
    }
}

fn share_of(subject: &Subject<'_>, input: &[Tensor]) -> Result<Share> {
    let wanted: Vec<ValueId> = subject.probes.iter().map(|p| p.truth).collect();
    let (origin, outputs) = floats(subject.origin, input, &wanted)?;
    let (float, _) = floats(subject.float, input, &wanted)?;
    let mut by_found: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    for (i, probe) in subject.probes.iter().enumerate() {
        by_found.entry(probe.found).or_default().push(i);
    }
    let mut values = vec![Channels::default(); subject.probes.len()];
    let mut compare = |v: ValueId, tensor: &Tensor| {
        for &i in by_found.get(&v).into_iter().flatten() {
            let probe = &subject.probes[i];
            let (Some(x), Some(t)) = (origin.get(&probe.truth), float.get(&probe.truth)) else { continue };
            if let Some(found) = reals(tensor, subject.module.ty(v), probe.quant.as_ref()) {
                values[i] = Channels::of(x, t, &found, tensor.shape.last().copied().unwrap_or(1));
            }
        }
    };
    let entering = entering(subject.module, input)?;
    let found =
        eval::trace(subject.module, &entering, &mut compare).context("the quantized graph cannot be evaluated")?;
    let mut sums = Sums::default();
    for (x, y) in outputs.iter().zip(&found) {
        if let (Data::F32(x), Data::F32(y)) = (&x.data, &y.data) {
            x.iter().zip(y).for_each(|(&x, &y)| sums.note(x.into(), x.into(), y.into()));
        }
    }
    Ok(Share { values, outputs: sums })
}

/// Values by their ids in a float module.
type Floats = BTreeMap<ValueId, Vec<f32>>;

/// The float values asked for, and the outputs, at one input.
pub(super) fn floats(module: &Module, input: &[Tensor], wanted: &[ValueId]) -> Result<(Floats, Vec<Tensor>)> {
    let mut held = Floats::new();
    let outputs = eval::trace(module, input, &mut |v, tensor| {
        if let (true, Data::F32(values)) = (wanted.contains(&v), &tensor.data) {
            held.insert(v, values.clone());
        }
    });
    Ok((held, outputs.context("the float graph cannot be evaluated")?))
}

/// The inputs as a module takes them: floats are quantized where it wants integers.
fn entering(module: &Module, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let enter = |(input, tensor): (&vitc_ir::graph::Input, &Tensor)| {
        let ty = module.ty(input.value);
        if tensor.elem() == ty.elem {
            return Ok(tensor.clone());
        }
        let float = TensorType::f32(ty.shape.clone());
        eval::eval_op(&Op::Quantize { to: ty.elem }, &[tensor], ty, &[&float], &module.lanes)
            .map_err(|e| anyhow::anyhow!("input '{}' cannot be quantized: {e}", input.name))
    };
    module.inputs.iter().zip(inputs).map(enter).collect()
}

/// The reals that a value stands for.
fn reals(tensor: &Tensor, ty: &TensorType, quant: Option<&Quant>) -> Option<Vec<f32>> {
    let real = match (&tensor.data, quant) {
        (Data::F32(values), _) => return Some(values.clone()),
        (_, None) => return None,
        (_, Some(quant)) => {
            let meant = TensorType::new(tensor.elem(), ty.shape.clone()).with_quant(quant.clone());
            let float = TensorType::new(Elem::F32, ty.shape.clone());
            eval::eval_op(&Op::Dequantize {}, &[tensor], &float, &[&meant], &BTreeMap::new()).ok()?
        }
    };
    real.as_f32().map(<[f32]>::to_vec)
}

/// Sums over elements: of the model's float values `x`, of the same rescaled `t`, and of the errors against `t`.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    count: f64,
    x: f64,
    t: f64,
    xx: f64,
    xt: f64,
    tt: f64,
    errors: f64,
}

impl Sums {
    fn note(&mut self, x: f64, t: f64, found: f64) {
        self.count += 1.0;
        self.x += x;
        self.t += t;
        self.xx += x * x;
        self.xt += x * t;
        self.tt += t * t;
        self.errors += (found - t).powi(2);
    }

    fn add(&mut self, other: &Sums) {
        self.count += other.count;
        self.x += other.x;
        self.t += other.t;
        self.xx += other.xx;
        self.xt += other.xt;
        self.tt += other.tt;
        self.errors += other.errors;
    }

    fn signal(&self) -> f64 {
        self.xx / self.count.max(1.0)
    }

    fn error(&self) -> f64 {
        self.errors / self.count.max(1.0)
    }

    /// The slope of `x` over `t`; one where `t` hardly varies, and so tells nothing.
    fn factor(&self) -> f64 {
        let n = self.count.max(1.0);
        let (covariance, variance) = (self.xt - self.x * self.t / n, self.tt - self.t * self.t / n);
        let slope = covariance / variance;
        if variance > 1e-9 * self.tt && slope > 0.0 && slope.is_finite() { slope } else { 1.0 }
    }
}

/// Sums of every channel of a value.
#[derive(Clone, Debug, Default)]
struct Channels {
    sums: Vec<Sums>,
    seen: [f32; 2],
}

impl Channels {
    fn of(x: &[f32], t: &[f32], found: &[f32], channels: usize) -> Channels {
        let mut sums = vec![Sums::default(); channels];
        let mut seen = [f32::INFINITY, f32::NEG_INFINITY];
        for (i, ((&x, &t), &found)) in x.iter().zip(t).zip(found).enumerate() {
            sums[i % channels].note(x.into(), t.into(), found.into());
            seen = [seen[0].min(t), seen[1].max(t)];
        }
        Channels { sums, seen }
    }

    fn add(&mut self, other: &Channels) {
        if self.sums.is_empty() {
            *self = other.clone();
            return;
        }
        self.sums.iter_mut().zip(&other.sums).for_each(|(a, b)| a.add(b));
        self.seen = [self.seen[0].min(other.seen[0]), self.seen[1].max(other.seen[1])];
    }

    fn value(&self) -> Value {
        let mut all = Sums::default();
        self.sums.iter().for_each(|s| all.add(s));
        // float rounding aside, most values are what they were
        let moved = all.xx - 2.0 * all.xt + all.tt > 1e-8 * all.xx;
        let factor = |s: &Sums| if moved { s.factor() } else { 1.0 };
        let factors: Vec<f64> = self.sums.iter().map(factor).collect();
        let errors: f64 = self.sums.iter().zip(&factors).map(|(s, f)| f * f * s.errors).sum();
        let noise = Noise::of(all.signal(), errors / all.count.max(1.0));
        Value { noise, seen: self.seen.map(f64::from), factors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(x: &[f32], t: &[f32], found: &[f32], channels: usize) -> Value {
        Channels::of(x, t, found, channels).value()
    }

    #[test]
    fn errors_are_mean_squares() {
        let v = value(&[3.0, 4.0], &[3.0, 4.0], &[3.0, 4.5], 2);
        assert_eq!((v.noise.signal, v.noise.noise, v.factors.as_slice()), (12.5, 0.125, &[1.0, 1.0][..]));
        assert!((v.noise.sqnr_db.unwrap() - 20.0).abs() < 1e-9);
        assert_eq!(v.seen, [3.0, 4.0]);
    }

    #[test]
    fn errors_of_rescaled_channels_count_as_the_models_own() {
        // channel 0 was halved, channel 1 doubled and shifted, channel 2 is constant
        let x = [2.0, 1.0, 5.0, 4.0, 2.0, 5.0, 6.0, 3.0, 5.0];
        let t = [1.0, 1.0, 5.0, 2.0, 3.0, 5.0, 3.0, 5.0, 5.0];
        let found: Vec<f32> = t.iter().map(|t| t + 0.5).collect();
        let v = value(&x, &t, &found, 3);
        assert_eq!(v.factors, [2.0, 0.5, 1.0]);
        assert!((v.noise.noise - 0.25 * (4.0 + 0.25 + 1.0) / 3.0).abs() < 1e-12, "{v:?}");
    }

    #[test]
    fn shares_add_up() {
        let (a, b) = (Channels::of(&[1.0], &[1.0], &[2.0], 1), Channels::of(&[3.0], &[3.0], &[3.0], 1));
        let mut all = Channels::default();
        all.add(&a);
        all.add(&b);
        let v = all.value();
        assert_eq!((v.noise.signal, v.noise.noise, v.seen), (5.0, 0.5, [1.0, 3.0]));
    }
}
