//! Channels of a LayerNorm's output brought to one range, exactly: `(x - centre)/factor` goes into its gamma and beta, the
//! reverse into the products that read it.
//!
//! Three forms: SmoothQuant (arXiv 2211.10438: factors between the ranges of activation and weights), SQ-b (MPTQ-ViT: the same
//! about every channel's centre), RepQ (RepQ-ViT: every channel its own scale and zero point, which is SQ-b without regard to
//! the weights). How much of a range goes over to the weights is chosen for each LayerNorm by the predicted error.

use vitc_ir::{Module, Op, ValueId};

use super::channels::Channels;
use super::edit::{Norm, Product};
use super::flow::{self, Reader};
use super::noise::{self, Change, Levels};

/// Which form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Smoothing {
    /// No centre: factors only.
    SmoothQuant,
    /// Centre and factor.
    #[default]
    SqB,
    /// Every channel its whole range.
    RepQ,
}

/// How much of the range goes to the weights.
const ALPHAS: [f64; 8] = [0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// No factor is further than this from their geometric mean: gamma keeps its digits.
const FARTHEST: f64 = 256.0;
/// A weight that small counts as this (SmoothQuant's own guard).
const LEAST_WEIGHT: f64 = 1e-5;

/// A LayerNorm and the products that read it.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) node: usize,
    readers: Vec<Reader>,
}

/// The LayerNorms of a module whose channels only products with float weights read.
pub(crate) fn subjects(module: &Module) -> Vec<Subject> {
    let norms = (0..module.nodes.len()).filter(|&n| matches!(module.nodes[n].op, Op::LayerNorm { .. }));
    norms
        .filter_map(|node| Some(Subject { node, readers: flow::readers(module, module.nodes[node].result)? }))
        .collect()
}

impl Subject {
    /// A product that reads the channels: its widths are those the factors are chosen for.
    pub(crate) fn reader(&self) -> usize {
        self.readers[0].node
    }

    /// The value whose channels must be known.
    pub(crate) fn seen(&self, module: &Module) -> ValueId {
        module.nodes[self.node].result
    }

    /// Rewrites gamma, beta and the weights; returns the predicted errors before and after, or `None` when nothing is better
    /// than what there is.
    pub(crate) fn apply(
        &self,
        module: &mut Module,
        seen: &Channels,
        form: Smoothing,
        levels: Levels,
    ) -> Option<(f64, f64)> {
        let channels = seen.min.len();
        let norm = Norm::of(module, self.node)?;
        let mut products: Vec<Product> =
            self.readers.iter().map(|r| Product::of(module, r.node)).collect::<Option<_>>()?;
        let maps = || self.readers.iter().map(|r| r.channel.as_slice());
        let view: Vec<(&Product, &[usize])> = products.iter().zip(maps()).collect();
        let weights = largest_weights(&view, channels);
        let before = noise::of(&view, seen, &Change::none(channels), levels);
        let (change, after) = noise::least(candidates(form, seen, &weights), &view, seen, levels)?;
        if after >= before {
            return None;
        }
        for (product, map) in products.iter_mut().zip(maps()) {
            for (k, &c) in map.iter().enumerate() {
                product.absorb(k, change.centre[c]);
                product.scale_row(k, change.factor[c]);
            }
        }
        norm.give_output(module, &change.factor, &change.centre);
        products.into_iter().for_each(|p| p.store(module));
        Some((before, after))
    }
}

/// The largest weight that each channel meets.
pub(crate) fn largest_weights(products: &[(&Product, &[usize])], channels: usize) -> Vec<f64> {
    let mut largest = vec![LEAST_WEIGHT; channels];
    for (product, map) in products {
        for (k, &c) in map.iter().enumerate() {
            largest[c] = product.row(k).iter().fold(largest[c], |m, w| m.max(w.abs()));
        }
    }
    largest
}

fn candidates<'a>(form: Smoothing, seen: &'a Channels, weights: &'a [f64]) -> impl Iterator<Item = Change> + 'a {
    let ends = || seen.min.iter().zip(&seen.max);
    let centre: Vec<f64> = match form {
        Smoothing::SmoothQuant => vec![0.0; weights.len()],
        Smoothing::SqB | Smoothing::RepQ => ends().map(|(lo, hi)| (lo + hi) / 2.0).collect(),
    };
    let reach: Vec<f64> = ends().zip(&centre).map(|((lo, hi), c)| (hi - c).max(c - lo)).collect();
    let alphas = if form == Smoothing::RepQ { &ALPHAS[ALPHAS.len() - 1..] } else { &ALPHAS[..] };
    alphas.iter().map(move |&alpha| Change { factor: factors(&reach, weights, alpha), centre: centre.clone() })
}

/// SmoothQuant's factors, `reach^alpha / weight^(1 - alpha)`, about a geometric mean of one. A channel that never moves keeps
/// its own: whatever is done to it costs nothing.
pub(crate) fn factors(reach: &[f64], weights: &[f64], alpha: f64) -> Vec<f64> {
    let raw = || reach.iter().zip(weights).map(|(r, w)| r.powf(alpha) / w.powf(1.0 - alpha));
    let is_alive = |f: &f64| *f > 0.0 && f.is_finite();
    let (sum, count) = raw().filter(is_alive).fold((0.0, 0usize), |(s, n), f| (s + f.ln(), n + 1));
    let mean = (sum / count.max(1) as f64).exp();
    let one = |f: f64| if is_alive(&f) { (f / mean).clamp(1.0 / FARTHEST, FARTHEST) } else { 1.0 };
    raw().map(one).collect()
}
