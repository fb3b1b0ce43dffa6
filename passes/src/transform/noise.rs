//! How much quantization will cost, predicted: what the factors of a transform are chosen by.
//!
//! Rounding to steps of `d` adds an error of variance `d^2/12`. In a product it comes from both sides: the activation's error
//! times the weights, and the weights' error times the activation.

use super::channels::Channels;
use super::edit::{Filters, Product};
use crate::quantize::QuantOptions;

/// Levels on both sides: steps between the ends of an activation's range, and steps of the largest weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Levels {
    pub(crate) activation: f64,
    pub(crate) weight: f64,
}

impl Levels {
    /// Those of a product of this name.
    pub(crate) fn of(name: &str, options: &QuantOptions) -> Levels {
        let (activation, weight) = (options.activations.at(name).bits(), options.weights.at(name).bits());
        Levels { activation: f64::from((1 << activation) - 1), weight: f64::from((1 << (weight - 1)) - 1) }
    }
}

/// A choice for every channel: it becomes `(x - centre) / factor`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) factor: Vec<f64>,
    pub(crate) centre: Vec<f64>,
}

impl Change {
    pub(crate) fn none(channels: usize) -> Change {
        Change { factor: vec![1.0; channels], centre: vec![0.0; channels] }
    }
}

/// The range of a tensor after a change, widened to hold zero.
fn range(seen: &Channels, change: &Change) -> f64 {
    let end = |ends: &[f64], pick: fn(f64, f64) -> f64| {
        let moved = ends.iter().zip(&change.centre).zip(&change.factor).map(|((x, c), f)| (x - c) / f);
        moved.fold(0.0, pick)
    };
    end(&seen.max, f64::max) - end(&seen.min, f64::min)
}

/// The predicted squared error of products, summed over their outputs. `map[k]` is the channel of input `k`.
pub(crate) fn of(products: &[(&Product, &[usize])], seen: &Channels, change: &Change, levels: Levels) -> f64 {
    let step = range(seen, change) / levels.activation;
    let power = |c: usize| power(seen, change, c);
    let of_product = |(product, map): &(&Product, &[usize])| {
        let energy: f64 = map.iter().map(|&c| power(c)).sum();
        let (mut squares, mut largest) = (0.0, vec![0f64; product.columns]);
        for (k, &c) in map.iter().enumerate() {
            for (most, w) in largest.iter_mut().zip(product.row(k)) {
                let w = (w * change.factor[c]).abs();
                squares += w * w;
                *most = most.max(w);
            }
        }
        let weight_steps: f64 = largest.iter().map(|m| (m / levels.weight).powi(2)).sum();
        (step * step * squares + weight_steps * energy) / 12.0
    };
    products.iter().map(of_product).sum()
}

/// The mean square of a channel after a change.
fn power(seen: &Channels, change: &Change, c: usize) -> f64 {
    let z = change.centre[c];
    ((seen.power[c] - 2.0 * z * seen.mean[c] + z * z) / change.factor[c].powi(2)).max(0.0)
}

/// The predicted squared error of a convolution at one position, summed over its filters, each with a scale of its own.
pub(crate) fn of_filters(f: &Filters, seen: &Channels, change: &Change, levels: Levels) -> f64 {
    let step = range(seen, change) / levels.activation;
    let of_filter = |o: usize| {
        let (mut squares, mut largest, mut energy) = (0.0, 0f64, 0.0);
        for i in 0..f.depth {
            let c = f.channel(o, i);
            for w in f.taps_of(o, i).iter().map(|w| w * change.factor[c]) {
                squares += w * w;
                largest = largest.max(w.abs());
            }
            energy += f.taps as f64 * power(seen, change, c);
        }
        (step * step * squares + (largest / levels.weight).powi(2) * energy) / 12.0
    };
    (0..f.filters).map(of_filter).sum()
}

/// The candidate of least predicted error, with its error; the first one when none is better.
pub(crate) fn least(
    candidates: impl Iterator<Item = Change>,
    products: &[(&Product, &[usize])],
    seen: &Channels,
    levels: Levels,
) -> Option<(Change, f64)> {
    let scored = candidates.map(|change| {
        let error = of(products, seen, &change, levels);
        (change, error)
    });
    scored.min_by(|a, b| a.1.total_cmp(&b.1))
}
