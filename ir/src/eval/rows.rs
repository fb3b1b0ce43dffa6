//! Ops over the last dimension: normalisation and softmax, float and integer, and the exponentials of the shift forms.

use super::tensor::{Data, View};
use super::{Call, Evaluated, math};
use crate::types::Real;

/// Mean, then mean square of the differences: two passes over a row that is in the cache.
pub(super) fn layernorm(call: &Call, epsilon: Real) -> Evaluated {
    let (x, gamma, beta) = (call.operands[0], call.operands[1].f32()?, call.operands[2].f32()?);
    let c = x.last();
    let (gamma, beta) = (spread(gamma, c), spread(beta, c));
    let mut out = x.f32()?.to_vec();
    for row in out.chunks_exact_mut(c) {
        let mean = math::sum(row) / c as f32;
        row.iter_mut().for_each(|v| *v -= mean);
        let variance = math::sum_of_squares(row) / c as f32;
        let factor = (1.0 / (f64::from(variance) + epsilon.0).sqrt()) as f32;
        row.iter_mut().zip(&gamma).zip(&beta).for_each(|((v, g), b)| *v = *v * factor * g + b);
    }
    Ok(Data::F32(out))
}

/// One value for each channel, from as many or from one.
fn spread<T: Copy>(values: &[T], channels: usize) -> Vec<T> {
    if values.len() == channels { values.to_vec() } else { vec![values[0]; channels] }
}

pub(super) fn softmax(x: View) -> Evaluated {
    let mut out = x.f32()?.to_vec();
    for row in out.chunks_exact_mut(x.last()) {
        let max = math::max(row);
        row.iter_mut().for_each(|v| *v = math::exp(*v - max));
        let factor = 1.0 / math::sum(row);
        row.iter_mut().for_each(|v| *v *= factor);
    }
    Ok(Data::F32(out))
}
