//! Constant weights with their bias while they are being quantized.

use std::borrow::Cow;

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Const, Diagnostic, Module, Node, Op, TensorType, ValueId};

use super::given::{self, LARGEST_BIAS};
use super::weights::{self, Channels};
use super::widths::{Groups, Width};

/// Constant weights as floats, also those that came as integers.
fn float_weights(module: &Module, v: ValueId) -> Option<Cow<'_, Const>> {
    if let Some(c) = module.const_of(v) {
        return Some(Cow::Borrowed(c));
    }
    let c = given::integers(module, v)?;
    let ty = TensorType::f32(c.ty.shape.clone());
    let x = Tensor::from_const(c).ok()?;
    let real = eval::eval_op(&Op::Dequantize {}, &[&x], &ty, &[&c.ty], &module.lanes).ok()?;
    Some(Cow::Owned(real.to_const(c.name.clone(), ty)))
}

/// Constant weights with their bias while they are being quantized.
pub(crate) struct FloatWeights {
    pub(crate) name: String,
    pub(crate) ty: TensorType,
    dims: Vec<usize>,
    pub(crate) values: Vec<f32>,
    /// Zeros where there is none.
    pub(crate) bias: Vec<f32>,
    pub(crate) shape: Channels,
}

impl FloatWeights {
    /// The weights of a product whose channels run along `axis`.
    pub(crate) fn of(module: &Module, node: &Node, axis: usize) -> Result<FloatWeights, Diagnostic> {
        let c = float_weights(module, node.operands[1]).ok_or_else(|| Diagnostic::new("internal", "no weights"))?;
        let dims = c.ty.shape.as_fixed().unwrap_or_default();
        let (channels, inner) = (dims[axis], dims[axis + 1..].iter().product());
        let bias = match node.operands.get(2).and_then(|&b| module.const_of(b)) {
            Some(b) if b.ty.shape.count().and_then(|d| d.as_fixed()) == Some(1) => vec![b.values::<f32>()[0]; channels],
            Some(b) => b.values::<f32>().into_owned(),
            None => vec![0.0; channels],
        };
        let values = c.values::<f32>().into_owned();
        if values.iter().chain(&bias).any(|x| !x.is_finite()) {
            let place = node.loc.as_deref().unwrap_or(&c.name).to_string();
            return Err(Diagnostic::new("weights", "a weight is infinite or not a number").at(place));
        }
        let shape = Channels { channels, inner };
        Ok(FloatWeights { name: c.name.clone(), ty: c.ty.clone(), dims, values, bias, shape })
    }

    /// The least scale of each channel at which its bias fits the accumulators.
    pub(crate) fn floor(&self, input_scale: f64) -> Vec<f64> {
        self.bias.iter().map(|b| f64::from(b.abs()) / (input_scale * LARGEST_BIAS)).collect()
    }

    /// Rounds to nearest, a matrix with steps of groups where these weights are to have them.
    pub(crate) fn quantize(&self, bits: Width, groups: Groups, input_scale: f64) -> weights::Weights {
        let floor = self.floor(input_scale);
        match groups.rows(bits).filter(|_| self.dims.len() == 2 && self.shape.inner == 1) {
            Some(rows) => weights::quantize_groups(&self.values, self.shape.channels, (bits, rows), &floor).0,
            None => weights::quantize(&self.values, self.shape, bits, &floor),
        }
    }

    /// Input channel of a convolution's weight: the image has one group.
    fn input_channel(&self, i: usize) -> usize {
        (i / (self.dims[2] * self.dims[3])) % self.dims[1]
    }

    /// Weights for pixels of 0 to 255 instead of normalised ones.
    pub(crate) fn divide_by_deviation(&mut self, normalize: &Node) {
        let Op::Normalize { std, .. } = &normalize.op else { return };
        for i in 0..self.values.len() {
            let divisor = 255.0 * std[self.input_channel(i)].0;
            self.values[i] = (f64::from(self.values[i]) / divisor) as f32;
        }
    }

    /// Undoes [`FloatWeights::divide_by_deviation`].
    pub(crate) fn multiply_by_deviation(&mut self, normalize: &Node) {
        let Op::Normalize { std, .. } = &normalize.op else { return };
        for i in 0..self.values.len() {
            let factor = 255.0 * std[self.input_channel(i)].0;
            self.values[i] = (f64::from(self.values[i]) * factor) as f32;
        }
    }

    /// The bias less what the weights, as quantized, make of the mean image: so their rounding errors act on deviations
    /// from the mean, not on whole pixels.
    pub(crate) fn bias_without_mean(&self, normalize: &Node, found: &weights::Weights) -> Vec<f32> {
        let Op::Normalize { mean, .. } = &normalize.op else { return self.bias.clone() };
        let mut bias: Vec<f64> = self.bias.iter().map(|&b| f64::from(b)).collect();
        for (i, &q) in found.ints.iter().enumerate() {
            let o = i / self.shape.inner;
            bias[o] -= f64::from(q) * found.scales[o] * 255.0 * mean[self.input_channel(i)].0;
        }
        bias.into_iter().map(|b| b as f32).collect()
    }
}
