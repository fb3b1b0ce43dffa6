//! Softmax that a quantized model rounds to a grid of its own. Rounding the exponentials to 8 bits first, as the other forms
//! do, would round twice, and what the model computes would not come out. So they are made with 16 bits, in two bytes:
//! `int.exp` takes any table, and one has the high bytes, the other the low ones.

use egg::Id;
use vitc_ir::{Elem, Op, Quant, TensorType};

use super::forms::{normalised, quantize_target, scores_in_i16};
use super::qdq::vector;
use crate::integerize::rule::Match;
use crate::integerize::{Nonlinear, arith, cost, sample};

/// The exponential of a row's maximum.
pub(super) const PEAK: f64 = 65535.0;
/// Entries of a table of wide scores.
pub(super) const ENTRIES: usize = 4096;

/// `int.exp` of 16 bits: the two tables for the op.
pub(super) struct Exponential {
    op: Op,
    high: Vec<i32>,
    low: Vec<i32>,
}

/// Whether a model can have made this scale: its own are `f32`, and ours are quotients of 64 bits, as 1/255 is.
pub(super) fn is_of_a_model(quant: &Quant) -> bool {
    quant.single().is_some_and(|scale| f64::from(scale as f32) == scale)
}

/// Constants for scores of that scale. The difference to the maximum is an index: of narrow scores as it is, of wide ones
/// in 4095 steps down to where less than half of the last bit is left.
fn exponential(scores: &TensorType) -> Option<Exponential> {
    let scale = scores.quant.as_ref()?.single()?;
    let reach = (2.0 * PEAK).ln() / scale;
    if !(reach.is_finite() && reach < f64::from(i32::MAX)) {
        return None;
    }
    let narrow = matches!(scores.elem, Elem::U8 | Elem::I8);
    let last = if narrow { 255 } else { ENTRIES as i64 - 1 };
    let limit = if narrow { last } else { (reach.ceil() as i64).max(1) };
    let mut shift = 0;
    let mut multiplier = 1;
    if limit > last {
        let steps = |shift: i32| (last as f64 / limit as f64 * 2f64.powi(shift)).floor();
        shift = (0..=31).rev().find(|&s| limit as f64 * steps(s) <= f64::from(i32::MAX))?;
        multiplier = steps(shift) as i64;
    }
    if multiplier < 1 {
        return None;
    }
    // the middle of the differences that share an index, but for the maximum itself
    let step = 2f64.powi(shift) / multiplier as f64;
    let middle = |t: i64| if t == 0 || limit <= last { t as f64 } else { (t as f64 + 0.5) * step };
    let entries = if narrow { 256 } else { ENTRIES as i64 };
    let value = |t: i64| (PEAK * (-scale * middle(t)).exp()).round() as i32;
    let values: Vec<i32> = (0..entries).map(value).collect();
    Some(Exponential::new((limit, multiplier, shift as u32), &values))
}

/// The map on the model's grid.
pub(super) fn fine_softmax(m: &mut Match<'_>) -> Option<Id> {
    let (to, target) = quantize_target(m)?;
    if !is_of_a_model(&target) || m.options().nonlinear != Nonlinear::Auto {
        return None;
    }
    let scores = m.ty("?s")?;
    let exponential = exponential(&scores)?;
    if !exponential.admit(m, "fine", &scores)? {
        return None;
    }
    exponential.map(m, &scores, (to, target))
}

impl Exponential {
    /// `int.exp` with these `limit`, `multiplier` and `shift`, and entries of 16 bits.
    pub(super) fn new((limit, multiplier, shift): (i64, i64, u32), entries: &[i32]) -> Exponential {
        // an entry is twice what `int.exp` makes of it with one fraction bit
        let op = Op::IntExp { limit, multiplier, shift, table_bits: 1 };
        let high = entries.iter().map(|v| (v >> 8) * 2).collect();
        Exponential { op, high, low: entries.iter().map(|v| (v & 255) * 2).collect() }
    }

    /// Notes the form with its error and says whether it may be chosen.
    pub(super) fn admit(&self, m: &mut Match<'_>, form: &'static str, scores: &TensorType) -> Option<bool> {
        let error = sample::exp_error(&self.op, [&self.high, &self.low], scores)?;
        Some(m.admit("softmax", form, 2 * cost::softmax(scores), error))
    }

    /// Rows of exponentials over their sums, on a grid.
    pub(super) fn map(&self, m: &mut Match<'_>, scores: &TensorType, (to, target): (Elem, Quant)) -> Option<Id> {
        let operand = scores_in_i16(m, scores)?;
        let byte = |m: &mut Match<'_>, name: &str, table: &[i32]| {
            let table = m.constant_of(name, vector(Elem::I32, table.len()), table);
            m.apply(self.op.clone(), None, &[operand, table])
        };
        let (high, low) = (byte(m, "exp.high", &self.high)?, byte(m, "exp.low", &self.low)?);
        let axis = scores.shape.rank() - 1;
        let sum = |m: &mut Match<'_>, x: Id| m.apply(Op::IntReduceSum { axis, keep: true }, None, &[x]);
        let (high_sum, low_sum) = (sum(m, high)?, sum(m, low)?);
        let sums = joined(m, high_sum, low_sum, axis)?;
        let exponentials = joined(m, high, low, axis)?;
        normalised(m, exponentials, sums, 1.0 / target.single()?, arith::exponent(PEAK) as u32, (to, target))
    }
}

/// `256 high + low` in 32 bits.
fn joined(m: &mut Match<'_>, high: Id, low: Id, axis: usize) -> Option<Id> {
    let factor = m.i32_vector("byte", &[512]);
    let shifted = Op::IntRequant { axis, x_zero: 0, shift: 1, zero_point: 0, to: Elem::I32 };
    let shifted = m.apply(shifted, None, &[high, factor])?;
    m.apply(Op::IntAdd { to: Elem::I32 }, None, &[shifted, low])
}
