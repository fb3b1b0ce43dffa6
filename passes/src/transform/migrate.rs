//! Channels brought to one range between convolutions and products of single pixels (Trio-ViT, arXiv 2405.03882 sections III-A and
//! III-B): channel-wise migration divides a channel by a factor that its readers' weights take over, filter-wise shifting
//! subtracts a centre that their biases take over.
//!
//! ```text
//! made by                        factor                            centre
//! product, convolution           divides its columns or filters    leaves its bias
//! LayerNorm that one reads       divides gamma and beta            leaves beta
//! the same through ReLU, sums    the same for all that add up      none
//! HardSwish in 16 bits           `mul` behind it                   `add` behind it
//! ```
//!
//! What HardSwish yields cannot be scaled before it. Behind it the factor costs nothing: it becomes the requantize's, one
//! multiplier for each channel. What a depthwise convolution reads so has a scale for each channel, for each of its filters
//! reads one. A function that is a table (GELU, SiLU, HardSwish of bytes) is left alone: its 256 results for all channels are no
//! finer for a finer scale behind it.
//!
//! A border of zeros is not the border of shifted channels: there the bias holds more than the taps inside the image can give
//! back. What is too much depends on the position, and is zero where no tap is beyond the border; `conv(centre map) - bias`,
//! which Trio-ViT's code computes as a convolution of the constant map. Once all is moved ([`mend_border`]) it is taken off by an
//! `add` of a constant [rows, columns, channels] right behind the convolution, and that joins its accumulators as integers.

use std::collections::BTreeSet;

use vitc_ir::{Def, Elem, Module, Node, Op, ValueId};

use super::channels::Channels;
use super::edit::{self, Filters, Norm, Product, index_of};
use super::flow;
use super::noise::{self, Change, Levels};
use super::smooth::factors;
use crate::quantize;

/// How much of a range goes to the weights of the readers; all of it where those have a scale for each channel.
const ALPHAS: [f64; 8] = [0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// No factor behind a curve is further than this from the geometric mean: a requantize of 15 bits keeps 9 for the smallest.
const FARTHEST_BEHIND_CURVE: f64 = 5.6;
/// Predicted noise must shrink to this at least by factors, and to that by centres, which cost a sum: gains of less than a
/// decibel were losses as often, measured. Where borders have to be mended, centres cost a map in memory as well, of which four
/// bytes are read for each output of one: there the noise must also be more than a hundredth of what the readers tell apart,
/// for sites that are cleaner gained a tenth of a decibel at most, and a tenth of the time went.
const WORTH: f64 = 0.98;
const WORTH_A_SUM: f64 = 0.8;
const WORTH_A_MAP: f64 = 0.5;
const NOISY: f64 = 1e-2;

/// Values whose channels have one factor, what makes them and what reads them. Nodes are told by their results, for nodes are
/// put between them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    members: BTreeSet<ValueId>,
    /// Products and convolutions that yield members.
    makers: Vec<ValueId>,
    /// LayerNorms that yield members.
    norms: Vec<ValueId>,
    /// Members that are others moved.
    moved: usize,
    /// The function that yields the one member, when no product does.
    curve: Option<ValueId>,
    /// Members and the products or convolutions that read them.
    readers: Vec<(ValueId, ValueId)>,
}

/// What may be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    pub(crate) migrate: bool,
    pub(crate) shift: bool,
}

/// What was done: predicted noise before, with factors alone, and with centres where they were taken too.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Done {
    pub(crate) before: f64,
    pub(crate) migrated: Option<f64>,
    pub(crate) shifted: Option<f64>,
    /// Convolutions whose borders no longer hold what their input's channels have as zero.
    pub(crate) borders: Vec<Border>,
    /// What became of the channels.
    pub(crate) change: Change,
}

/// A convolution by its result, and what is too little in the channels beyond its border.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Border {
    conv: ValueId,
    lacking: Vec<f64>,
}

/// Takes off what the bias of a convolution holds for taps that lie beyond the border. After all other rewriting, for it is
/// computed from the weights as they are.
pub(crate) fn mend_border(module: &mut Module, border: &Border) -> Option<()> {
    let node = index_of(module, border.conv)?;
    let (dims, map) = Filters::of(module, node)?.beyond_border(&border.lacking);
    behind(module, node, Op::Add {}, "border", &dims, map.iter().map(|x| -x as f32).collect());
    Some(())
}

/// Everything whose channels can be moved, but what goes from one product to another without more: that is `values`.
pub(crate) fn subjects(module: &Module) -> Vec<Subject> {
    let results = module.nodes.iter().map(|n| n.result);
    results.filter_map(|v| Subject::around(module, v).filter(|s| s.members.first() == Some(&v))).collect()
}

impl Subject {
    /// The group of values that a value must be scaled with.
    fn around(module: &Module, v: ValueId) -> Option<Subject> {
        let mut subject = Subject::default();
        let mut open = vec![v];
        while let Some(v) = open.pop() {
            if subject.members.insert(v) {
                subject.made_by(module, v, &mut open)?;
                subject.read_by(module, v, &mut open)?;
            }
        }
        let alone = subject.is_alone();
        let is_conv = |v: &ValueId| module.node_of(*v).is_some_and(|n| matches!(n.op, Op::Conv2d { .. }));
        let mut readers = subject.readers.iter().map(|(_, r)| r);
        let fits = match subject.curve {
            Some(_) => alone,
            // what only products read of a LayerNorm is for `smooth`
            None if !subject.norms.is_empty() => readers.any(is_conv),
            None => !alone || subject.makers.iter().chain(readers).any(is_conv),
        };
        (fits && !subject.readers.is_empty()).then_some(subject)
    }

    /// Whether it is one value, which may be moved.
    fn is_alone(&self) -> bool {
        self.members.len() == self.moved + 1
    }

    fn made_by(&mut self, module: &Module, v: ValueId, open: &mut Vec<ValueId>) -> Option<()> {
        let Def::Node(n) = module.values[v.0 as usize].def else { return None };
        let node = &module.nodes[n];
        match node.op {
            Op::MatMul {} | Op::Conv2d { .. } => {
                Weights::of(module, n)?;
                self.makers.push(v);
            }
            Op::Add {} if is_sum(module, n) => open.extend(&node.operands),
            Op::Relu {} => open.push(node.operands[0]),
            Op::HardSwish {} if quantize::is_fine_hardswish(module, node) => self.curve = Some(v),
            Op::LayerNorm { .. } => {
                Norm::of(module, n)?;
                self.norms.push(v);
            }
            _ if keeps_channels(module, node) => {
                self.moved += 1;
                open.push(node.operands[0]);
            }
            _ => return None,
        }
        Some(())
    }

    fn read_by(&mut self, module: &Module, v: ValueId, open: &mut Vec<ValueId>) -> Option<()> {
        if module.outputs.iter().any(|o| o.value == v) {
            return None;
        }
        for (n, node) in module.nodes.iter().enumerate().filter(|(_, n)| n.operands.contains(&v)) {
            match node.op {
                Op::MatMul {} | Op::Conv2d { .. } if node.operands[0] == v => {
                    Weights::of(module, n)?;
                    self.readers.push((v, node.result));
                }
                Op::Add {} if is_sum(module, n) => open.push(node.result),
                Op::Relu {} => open.push(node.result),
                _ if keeps_channels(module, node) => open.push(node.result),
                _ => return None,
            }
        }
        Some(())
    }

    /// The node whose name is the subject's.
    pub(crate) fn node(&self, module: &Module) -> usize {
        let makers = self.makers.iter().chain(&self.norms).copied();
        let first = self.curve.or(makers.min()).and_then(|v| index_of(module, v));
        first.unwrap_or_default()
    }

    /// The values whose channels must be known.
    pub(crate) fn seen(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.readers.iter().map(|(v, _)| *v)
    }

    /// Whether a value's channels are among those that move.
    pub(crate) fn holds(&self, v: ValueId) -> bool {
        self.members.contains(&v)
    }

    /// Rewrites makers and readers where the predicted noise becomes smaller.
    pub(crate) fn apply<'s>(
        &self,
        module: &mut Module,
        seen: impl Fn(ValueId) -> Option<&'s Channels>,
        levels: impl Fn(&Module, usize) -> Levels,
        allowed: Allowed,
    ) -> Option<Done> {
        let mut reads = Vec::new();
        for (v, reader) in &self.readers {
            let node = index_of(module, *reader)?;
            let weights = Weights::of(module, node)?;
            reads.push(Read { seen: seen(*v)?, weights, levels: levels(module, node) });
        }
        let channels = reads.first()?.seen.min.len();
        let noise = |change: &Change| reads.iter().map(|r| r.weights.noise(r.seen, change, r.levels)).sum::<f64>();
        let least = |candidates: Vec<Change>| {
            let scored = candidates.into_iter().map(|c| (noise(&c), c));
            scored.min_by(|a, b| a.0.total_cmp(&b.0))
        };
        let none = Change::none(channels);
        let before = noise(&none);
        let mut done = Done { before, migrated: None, shifted: None, borders: Vec::new(), change: none.clone() };
        let mut best = (before, none.clone());
        let plain = if allowed.migrate { self.factored(&reads, &none.centre) } else { Vec::new() };
        if let Some(found) = least(plain).filter(|f| f.0 < WORTH * best.0) {
            done.migrated = Some(found.0);
            best = found;
        }
        // a sum or ReLU has no place for a centre
        if allowed.shift && self.is_alone() {
            let centre: Vec<f64> =
                reads[0].seen.min.iter().zip(&reads[0].seen.max).map(|(lo, hi)| (lo + hi) / 2.0).collect();
            let mut candidates = vec![Change { centre: centre.clone(), ..none.clone() }];
            if allowed.migrate {
                candidates.extend(self.factored(&reads, &centre));
            }
            let signal = || reads.iter().map(|r| r.weights.signal(r.seen)).sum::<f64>();
            let worth = match reads.iter().any(|r| r.weights.is_padded()) {
                true if best.0 < NOISY * signal() => 0.0,
                true => WORTH_A_MAP,
                false => WORTH_A_SUM,
            };
            if let Some(found) = least(candidates).filter(|f| f.0 < worth * best.0) {
                done.shifted = Some(found.0);
                best = found;
            }
        }
        if done.migrated.is_none() && done.shifted.is_none() {
            return None;
        }
        self.rewrite(module, &best.1)?;
        if done.shifted.is_some() {
            done.borders = self.borders(&reads, &best.1);
        }
        done.change = best.1;
        Some(done)
    }

    /// The padded convolutions among the readers, after a change with centres.
    fn borders(&self, reads: &[Read<'_>], change: &Change) -> Vec<Border> {
        let lacking: Vec<f64> = change.centre.iter().zip(&change.factor).map(|(c, f)| c / f).collect();
        let padded = self.readers.iter().zip(reads).filter(|(_, read)| read.weights.is_padded());
        padded.map(|((_, conv), _)| Border { conv: *conv, lacking: lacking.clone() }).collect()
    }

    /// Candidates with that centre: SmoothQuant's factors between the ranges of the channels and the weights that they meet.
    fn factored(&self, reads: &[Read<'_>], centre: &[f64]) -> Vec<Change> {
        let mut reach = vec![0f64; centre.len()];
        let mut weights = vec![1e-5f64; centre.len()];
        for read in reads {
            for (c, r) in reach.iter_mut().enumerate() {
                *r = r.max(read.seen.max[c] - centre[c]).max(centre[c] - read.seen.min[c]);
            }
            read.weights.largest(&mut weights);
        }
        let bound = if self.curve.is_some() { FARTHEST_BEHIND_CURVE } else { f64::INFINITY };
        let factor = |alpha: f64| {
            let all = factors(&reach, &weights, alpha);
            all.into_iter().map(|f| f.clamp(1.0 / bound, bound)).collect()
        };
        ALPHAS.iter().map(|&alpha| Change { factor: factor(alpha), centre: centre.to_vec() }).collect()
    }

    fn rewrite(&self, module: &mut Module, change: &Change) -> Option<()> {
        for (_, reader) in &self.readers {
            let mut weights = Weights::of(module, index_of(module, *reader)?)?;
            weights.take_input(change);
            weights.store(module);
        }
        for maker in &self.makers {
            let mut weights = Weights::of(module, index_of(module, *maker)?)?;
            weights.give_output(change);
            weights.store(module);
        }
        for norm in &self.norms {
            Norm::of(module, index_of(module, *norm)?)?.give_output(module, &change.factor, &change.centre);
        }
        let Some(curve) = self.curve else { return Some(()) };
        let mut node = index_of(module, curve)?;
        if change.centre.iter().any(|c| *c != 0.0) {
            let centre = change.centre.iter().map(|c| -c as f32).collect();
            behind(module, node, Op::Add {}, "centre", &[change.centre.len()], centre);
            node += 1;
        }
        let factor = change.factor.iter().map(|f| (1.0 / f) as f32).collect();
        behind(module, node, Op::Mul {}, "factor", &[change.factor.len()], factor);
        Some(())
    }
}

/// Puts an op with a constant of these dimensions behind a node.
fn behind(module: &mut Module, node: usize, op: Op, what: &str, dims: &[usize], values: Vec<f32>) {
    let constant = edit::constant_at(module, node, what, dims, &values);
    edit::insert_behind(module, node, op, constant);
}

/// A sum of two activations, element by element.
fn is_sum(module: &Module, n: usize) -> bool {
    let node = &module.nodes[n];
    let shape = &module.ty(node.result).shape;
    node.operands.iter().all(|&v| module.const_of(v).is_none() && module.ty(v).shape == *shape)
}

/// Movement of whole rows of channels.
fn keeps_channels(module: &Module, node: &Node) -> bool {
    let [from, to] = [node.operands[0], node.result].map(|v| &module.ty(v).shape);
    let last = to.rank().saturating_sub(1);
    match &node.op {
        Op::Reshape { .. } => from.last_fixed().is_some() && from.last_fixed() == to.last_fixed(),
        Op::Transpose { perm } => perm.last() == Some(&last),
        Op::Slice { axis, .. } | Op::Gather { axis, .. } => *axis != last,
        _ => false,
    }
}

/// A value as it was seen, and the weights that read it.
struct Read<'s> {
    seen: &'s Channels,
    weights: Weights,
    levels: Levels,
}

/// Weights whose inputs and outputs are channels.
enum Weights {
    Matrix(Product),
    Filters(Filters),
}

impl Weights {
    fn of(module: &Module, node: usize) -> Option<Weights> {
        let n = &module.nodes[node];
        let weights = *n.operands.get(1)?;
        module.const_of(weights).filter(|c| c.ty.elem == Elem::F32)?;
        match n.op {
            Op::MatMul {} if flow::float_matrix(module, weights) => Product::of(module, node).map(Weights::Matrix),
            Op::Conv2d { .. } => Filters::of(module, node).map(Weights::Filters),
            _ => None,
        }
    }

    fn is_padded(&self) -> bool {
        matches!(self, Weights::Filters(f) if f.is_padded())
    }

    /// Raises `largest` to the largest weight that each channel meets, as a share of its filter's where a filter reads one
    /// channel: its scale follows the factor, so there is nothing to weigh.
    fn largest(&self, largest: &mut [f64]) {
        match self {
            Weights::Matrix(p) => {
                for (k, most) in largest.iter_mut().enumerate() {
                    *most = p.row(k).iter().fold(*most, |m, w| m.max(w.abs()));
                }
            }
            Weights::Filters(f) if f.depth == 1 => largest.iter_mut().for_each(|most| *most = most.max(1.0)),
            Weights::Filters(f) => {
                for o in 0..f.filters {
                    for i in 0..f.depth {
                        let most = &mut largest[f.channel(o, i)];
                        *most = f.taps_of(o, i).iter().fold(*most, |m, w| m.max(w.abs()));
                    }
                }
            }
        }
    }

    fn noise(&self, seen: &Channels, change: &Change, levels: Levels) -> f64 {
        match self {
            Weights::Matrix(p) => {
                let all: Vec<usize> = (0..p.rows).collect();
                noise::of(&[(p, &all)], seen, change, levels)
            }
            Weights::Filters(f) => noise::of_filters(f, seen, change, levels),
        }
    }

    /// The variance of the outputs, summed, of channels that do not depend on each other.
    fn signal(&self, seen: &Channels) -> f64 {
        let variance = |c: usize| (seen.power[c] - seen.mean[c].powi(2)).max(0.0);
        let squares = |w: &[f64]| w.iter().map(|w| w * w).sum::<f64>();
        match self {
            Weights::Matrix(p) => (0..p.rows).map(|k| squares(p.row(k)) * variance(k)).sum(),
            Weights::Filters(f) => {
                let of_filter =
                    |o| (0..f.depth).map(|i| squares(f.taps_of(o, i)) * variance(f.channel(o, i))).sum::<f64>();
                (0..f.filters).map(of_filter).sum()
            }
        }
    }

    fn take_input(&mut self, change: &Change) {
        match self {
            Weights::Matrix(p) => {
                for k in 0..p.rows {
                    p.absorb(k, change.centre[k]);
                    p.scale_row(k, change.factor[k]);
                }
            }
            Weights::Filters(f) => f.take_input(&change.factor, &change.centre),
        }
    }

    fn give_output(&mut self, change: &Change) {
        match self {
            Weights::Matrix(p) => {
                for n in 0..p.columns {
                    p.shift_column(n, -change.centre[n]);
                    p.scale_column(n, 1.0 / change.factor[n]);
                }
            }
            Weights::Filters(f) => f.give_output(&change.factor, &change.centre),
        }
    }

    fn store(self, module: &mut Module) {
        match self {
            Weights::Matrix(p) => p.store(module),
            Weights::Filters(f) => f.store(module),
        }
    }
}
