//! What a graph does to its image before anything else reads it: an affine function of each channel, and movement.
//!
//! Models carry the normalisation of their training pipeline with them, as `(x / 255 - mean) / std` in whatever order, in front
//! of or behind the transpose that brings channels first. What it amounts to says what numbers the input wants, and becomes one
//! `normalize` where the first convolution can take it.

use vitc_ir::{Elem, Module, Op, ValueId};

use super::draft::Draft;
use super::fold;

/// Constants that constants compute are looked through so far.
const DEEPEST: usize = 8;

/// What stands between an image input and the first value that is more than an affine function of each channel.
pub(crate) struct Entrance {
    /// Its nodes, in order.
    pub(crate) nodes: Vec<usize>,
    /// Their result; the input itself where there are none.
    pub(crate) read: ValueId,
    /// The dimension of it that channels run along.
    pub(crate) axis: usize,
    /// Which channel of the input each channel of it is.
    pub(crate) order: Vec<usize>,
    /// What each channel is multiplied by, and what is added then.
    pub(crate) factor: Vec<f64>,
    pub(crate) summand: Vec<f64>,
}

impl Entrance {
    /// The entrance of an input whose channels run along `axis`.
    pub(crate) fn of(d: &mut Draft, input: ValueId, axis: usize) -> Option<Entrance> {
        let channels = d.shape(input).0.get(axis)?.as_fixed()?;
        let (factor, summand) = (vec![1.0; channels], vec![0.0; channels]);
        let order = (0..channels).collect();
        let mut entrance = Entrance { nodes: Vec::new(), read: input, axis, order, factor, summand };
        while entrance.step(d).is_some() {}
        Some(entrance)
    }

    /// Whether the graph takes its numbers as they come.
    pub(crate) fn is_plain(&self) -> bool {
        self.factor.iter().all(|f| *f == 1.0) && self.summand.iter().all(|s| *s == 0.0)
    }

    fn step(&mut self, d: &mut Draft) -> Option<()> {
        if !d.used_once(self.read) {
            return None;
        }
        let n = d.users(self.read)[0];
        let (op, operands, result) = (d.node(n).op.clone(), d.node(n).operands.clone(), d.node(n).result);
        match op {
            Op::Transpose { perm } => self.axis = perm.iter().position(|&p| p == self.axis)?,
            Op::Gather { axis, index } if axis == self.axis => self.reorder(&index)?,
            Op::Slice { axis, start, len, step: -1 } if axis == self.axis && start + 1 == len => {
                self.reorder(&(0..len).rev().collect::<Vec<_>>())?;
            }
            Op::Dequantize {} => {
                let quant = d.ty(self.read).quant.clone()?;
                self.scale(|_| quant.single(), |f| f)?;
                let zero = quant.single()? * f64::from(quant.zero_point);
                self.summand.iter_mut().for_each(|s| *s -= zero);
            }
            Op::Add {} | Op::Sub {} | Op::Mul {} | Op::Div {} if d.shape(result) == d.shape(self.read) => {
                self.arithmetic(d, &op, &operands)?;
            }
            _ => return None,
        }
        self.nodes.push(n);
        self.read = result;
        Some(())
    }

    /// Channels in another order; each once.
    fn reorder(&mut self, index: &[usize]) -> Option<()> {
        let mut seen = vec![false; self.factor.len()];
        index.iter().for_each(|&i| seen[i] = true);
        if index.len() != seen.len() || seen.contains(&false) {
            return None;
        }
        self.order = index.iter().map(|&i| self.order[i]).collect();
        self.factor = index.iter().map(|&i| self.factor[i]).collect();
        self.summand = index.iter().map(|&i| self.summand[i]).collect();
        Some(())
    }

    fn arithmetic(&mut self, d: &mut Draft, op: &Op, operands: &[ValueId]) -> Option<()> {
        let &[a, b] = operands else { return None };
        let commutes = matches!(op, Op::Add {} | Op::Mul {});
        let other = if a == self.read {
            b
        } else if commutes {
            a
        } else {
            return None;
        };
        let values = self.channels_of(d, other)?;
        let at = |c: usize| values[if values.len() == 1 { 0 } else { c }];
        match op {
            Op::Add {} => self.summand.iter_mut().enumerate().for_each(|(c, s)| *s += at(c)),
            Op::Sub {} => self.summand.iter_mut().enumerate().for_each(|(c, s)| *s -= at(c)),
            Op::Mul {} => self.scale(|c| Some(at(c)), |f| f)?,
            _ => self.scale(|c| Some(at(c)), f64::recip)?,
        }
        Some(())
    }

    fn scale(&mut self, by: impl Fn(usize) -> Option<f64>, as_factor: fn(f64) -> f64) -> Option<()> {
        let factors: Vec<f64> = (0..self.factor.len()).map(|c| by(c).map(as_factor)).collect::<Option<_>>()?;
        if !factors.iter().all(|f| f.is_finite() && *f > 0.0) {
            return None;
        }
        let each = self.factor.iter_mut().zip(&mut self.summand).zip(&factors);
        each.for_each(|((f, s), by)| (*f, *s) = (*f * by, *s * by));
        Some(())
    }

    /// A constant that is one number or one a channel.
    fn channels_of(&self, d: &mut Draft, v: ValueId) -> Option<Vec<f64>> {
        let v = constant(d, v, DEEPEST)?;
        let (dims, rank) = (d.shape(v).0.clone(), d.shape(self.read).rank());
        let c = d.constant_of(v).filter(|c| c.ty.elem == Elem::F32 && c.layout.is_none())?;
        let values: Vec<f64> = c.values::<f32>().iter().map(|&x| f64::from(x)).collect();
        let at = (self.axis + dims.len()).checked_sub(rank);
        let fits = values.len() == 1
            || (values.len() == self.factor.len()
                && at.is_some_and(|at| dims[at].as_fixed() == Some(self.factor.len())));
        (fits && values.iter().all(|v| v.is_finite())).then_some(values)
    }
}

/// A value that is constant, or that few ops compute from constants, as a constant.
fn constant(d: &mut Draft, v: ValueId, depth: usize) -> Option<ValueId> {
    if d.is_const(v) {
        return Some(v);
    }
    let n = d.def(v).filter(|_| depth > 0)?;
    let (op, operands) = (d.node(n).op.clone(), d.node(n).operands.clone());
    let parts = operands.iter().map(|&v| constant(d, v, depth - 1)).collect::<Option<Vec<_>>>()?;
    let copy = d.push(op, &parts, None)?;
    fold::evaluate(d, d.def(copy)?)
}

/// What an image input counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// The graph takes numbers as they come: normalised before, as torch's models are.
    Normalised,
    /// Fractions of the whole range, 0 to 1, which the graph normalises itself.
    Fractions,
    /// Pixels, 0 to 255, which the graph normalises itself.
    Pixels,
}

/// What the only input of an imported module counts in, its channels along `axis`: told by its type, else by what the graph's
/// own normalisation would make of pixels.
pub fn counts_in(module: &Module, axis: usize) -> Counts {
    let [input] = &module.inputs[..] else { return Counts::Normalised };
    if module.ty(input.value).elem == Elem::U8 {
        return Counts::Pixels;
    }
    let mut d = Draft::new(module.clone());
    match Entrance::of(&mut d, input.value, axis) {
        Some(entrance) if !entrance.is_plain() => counts(&entrance),
        _ => Counts::Normalised,
    }
}

/// Normalised images reach a few units and have their mean within their range. A factor that would take 255 far beyond, on a mean
/// below 1, is one of fractions.
fn counts(entrance: &Entrance) -> Counts {
    const WIDEST: f64 = 16.0;
    let of_pixels = |(factor, summand): (&f64, &f64)| 255.0 * factor <= WIDEST || -summand / factor > 2.0;
    match entrance.factor.iter().zip(&entrance.summand).all(of_pixels) {
        true => Counts::Pixels,
        false => Counts::Fractions,
    }
}
