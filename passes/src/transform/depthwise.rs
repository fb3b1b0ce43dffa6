//! A scale for each channel of what a depthwise convolution reads of a stream (Trio-ViT, arXiv 2405.03882 section III-A: its
//! channel-wise migration, where nothing before the stream can take the factors over).
//!
//! Each filter of such a convolution reads one channel, so a factor for each channel changes nothing but the scale of the filter.
//! A residual stream has other readers and cannot be scaled; but what goes from its 16 bits to the bytes of the convolution is requantized
//! anyway, and a `mul` before it becomes that requantize's multipliers, one for each channel.

use vitc_ir::{Module, Op, ValueId};

use super::channels::Channels;
use super::edit::{self, Filters};
use super::noise::{self, Change, Levels};
use super::smooth::factors;
use crate::quantize;

/// No factor is further than this from the geometric mean: a requantize of 15 bits keeps 8 for the smallest.
const FARTHEST: f64 = 11.3;
/// Predicted noise must shrink to this at least.
const WORTH: f64 = 0.98;

/// A depthwise convolution, by its result, and the stream that it reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    conv: ValueId,
    stream: ValueId,
}

/// The depthwise convolutions with float weights that read what has 16 bits for others as well.
pub(crate) fn subjects(module: &Module) -> Vec<Subject> {
    let reads = |n: usize| {
        let (conv, stream) = (module.nodes[n].result, *module.nodes[n].operands.first()?);
        let depthwise = Filters::of(module, n).is_some_and(|f| f.depth == 1);
        let alone = depthwise && quantize::is_stream(module, stream);
        alone.then_some(Subject { conv, stream })
    };
    (0..module.nodes.len()).filter_map(reads).collect()
}

impl Subject {
    /// The convolution's node.
    pub(crate) fn node(&self, module: &Module) -> usize {
        edit::index_of(module, self.conv).unwrap_or_default()
    }

    /// The value whose channels must be known.
    pub(crate) fn seen(&self) -> ValueId {
        self.stream
    }

    /// Puts the factors between the stream and the convolution where the predicted noise becomes smaller; returns it before and after.
    pub(crate) fn apply(&self, module: &mut Module, seen: &Channels, levels: Levels) -> Option<(f64, f64)> {
        let node = edit::index_of(module, self.conv)?;
        let mut filters = Filters::of(module, node)?;
        let reach: Vec<f64> = seen.min.iter().zip(&seen.max).map(|(lo, hi)| hi.max(-lo)).collect();
        let even = vec![1.0; reach.len()];
        let factor = factors(&reach, &even, 1.0).into_iter().map(|f| f.clamp(1.0 / FARTHEST, FARTHEST)).collect();
        // bytes of one scale, whatever the values
        let levels = Levels { fitted: false, ..levels };
        let (none, change) = (Change::none(reach.len()), Change { factor, centre: vec![0.0; reach.len()] });
        let [before, after] = [&none, &change].map(|change| noise::of_filters(&filters, seen, change, levels));
        if after >= WORTH * before {
            return None;
        }
        filters.take_input(&change.factor, &change.centre);
        filters.store(module);
        let factor: Vec<f32> = change.factor.iter().map(|f| (1.0 / f) as f32).collect();
        let constant = edit::constant_at(module, node, "factor", &[factor.len()], &factor);
        edit::insert_before(module, node, Op::Mul {}, constant);
        Some((before, after))
    }
}
