//! How much quantization will cost, predicted: what the factors of a transform are chosen by.
//!
//! Rounding to steps of `d` adds an error of variance `d^2/12`; rounding to the `n` levels that fit values of variance `s^2` best adds
//! about `2.72 s^2 / n^2` (Panter and Dite 1951, for normal values). In a product it comes from both sides: the activation's error
//! times the weights, and the weights' error times the activation.

use super::channels::Channels;
use super::edit::{Filters, Product};
use crate::quantize::{QuantOptions, Width};

/// Levels on both sides: steps between the ends of an activation's range, and steps of the largest weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Levels {
    pub(crate) activation: f64,
    pub(crate) weight: f64,
    /// Whether the activation's levels lie where its values are.
    pub(crate) fitted: bool,
}

impl Levels {
    /// Those of a product of this name.
    pub(crate) fn of(name: &str, options: &QuantOptions) -> Levels {
        let (activation, weight) = (options.activations.at(name), options.weights.at(name).bits());
        Levels {
            activation: f64::from((1 << activation.bits()) - 1),
            weight: f64::from((1 << (weight - 1)) - 1),
            fitted: activation == Width::EIGHT || options.codes.at(name).fits(),
        }
    }

    /// The variance of an activation's rounding error, of values in a range and of a variance.
    pub(crate) fn activation_error(self, range: f64, variance: f64) -> f64 {
        const PANTER_DITE: f64 = 2.72;
        match self.fitted {
            true => PANTER_DITE * variance / (self.activation + 1.0).powi(2),
            false => (range / self.activation).powi(2) / 12.0,
        }
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

/// The variance of all elements of a tensor after a change.
fn variance(seen: &Channels, change: &Change) -> f64 {
    let channels = change.factor.len();
    let moved = |c: usize| (seen.mean[c] - change.centre[c]) / change.factor[c];
    let mean = (0..channels).map(moved).sum::<f64>() / channels as f64;
    let square = (0..channels).map(|c| power(seen, change, c)).sum::<f64>() / channels as f64;
    (square - mean * mean).max(0.0)
}

/// The predicted squared error of products, summed over their outputs. `map[k]` is the channel of input `k`.
pub(crate) fn of(products: &[(&Product, &[usize])], seen: &Channels, change: &Change, levels: Levels) -> f64 {
    let power = |c: usize| power(seen, change, c);
    let activation_error = levels.activation_error(range(seen, change), variance(seen, change));
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
        activation_error * squares + weight_steps * energy / 12.0
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
    let activation_error = levels.activation_error(range(seen, change), variance(seen, change));
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
        activation_error * squares + (largest / levels.weight).powi(2) * energy / 12.0
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Max 1960, table I: sixteen levels for normal values of variance one lose 0.009497.
    #[test]
    fn fitted_levels_lose_by_the_variance() {
        let levels = Levels { activation: 15.0, weight: 7.0, fitted: true };
        let error = levels.activation_error(40.0, 1.0);
        assert!((error / 0.009497 - 1.0).abs() < 0.15, "{error}");
        assert_eq!(levels.activation_error(80.0, 4.0), 4.0 * error, "whatever the range");
        let even = Levels { fitted: false, ..levels };
        assert_eq!(even.activation_error(30.0, 1.0), 4.0 / 12.0);
    }
}
