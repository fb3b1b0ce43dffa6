//! Ops over the last dimension: normalisation and softmax, float and integer, and the exponentials of the shift forms.

use std::borrow::Cow;

use super::int::{fit, range};
use super::tensor::{Data, View};
use super::{Call, Evaluated, Fault, math, misplaced};
use crate::dither::dither;
use crate::op::Op;
use crate::types::{Elem, Real};

/// Mean, then mean square of the differences: two passes over a row that is in the cache.
pub(super) fn layernorm(call: &Call, epsilon: Real, centred: bool) -> Evaluated {
    let (x, gamma, beta) = (call.operands[0], call.operands[1].f32()?, call.operands[2].f32()?);
    let c = x.last();
    let (gamma, beta) = (spread(gamma, c), spread(beta, c));
    let mut out = x.f32()?.to_vec();
    for row in out.chunks_exact_mut(c) {
        let mean = if centred { math::sum(row) / c as f32 } else { 0.0 };
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

/// The nearest of some codes in order, the smaller of two that are equally near; the code itself where there are none.
fn nearest(codes: &[usize], code: usize) -> usize {
    codes.iter().copied().min_by_key(|c| c.abs_diff(code)).unwrap_or(code)
}

/// Rows on grids of their own.
pub(super) fn round_rows(
    x: View,
    [lowest, step]: [Real; 2],
    (levels, signed): (i64, bool),
    codes: &[usize],
) -> Evaluated {
    let (lowest, levels) = (lowest.0 as f32, levels as f32);
    let least = if signed { -levels } else { 0.0 };
    let first = if signed { -levels - 1.0 } else { 0.0 };
    let near: Vec<f32> = (0..256).map(|code| nearest(codes, code) as f32 + first).collect();
    let used = |steps: f32| near[(steps - first) as usize];
    let mut out = x.f32()?.to_vec();
    for row in out.chunks_exact_mut(x.last()) {
        let most = row.iter().fold(0f32, |m, &v| m.max(if signed { (v - lowest).abs() } else { v - lowest }));
        // what is a multiple already stays one, whatever the last bits of a float
        let peak = (f64::from(most) / step.0 - 1e-4).ceil().max(1.0) * step.0;
        let grain = (peak / f64::from(levels)) as f32;
        row.iter_mut()
            .for_each(|v| *v = used(((*v - lowest) / grain).round_ties_even().clamp(least, levels)) * grain + lowest);
    }
    Ok(Data::F32(out))
}

// ---- integer

/// The integer ops over rows.
pub(super) fn eval(call: &Call) -> Evaluated {
    let x = call.operands[0];
    match call.op {
        Op::IntExp { .. } => exp_rows(call),
        Op::IntLayerNorm { .. } => layernorm_int(call),
        Op::IntRowPeak { shift } => {
            let values = elements_of_rows(call)?;
            Ok(Data::I32(values.chunks_exact(x.last()).map(|row| row_peak(row, *shift)).collect()))
        }
        Op::IntRowCodes { levels, zero_point, shift } => row_codes(call, *levels, *zero_point, *shift),
        Op::IntShiftmax { one, n, bits } => {
            let exp = ShiftExp { one: *one, n: *n };
            let values = x.i32()?;
            let rows = values.chunks_exact(x.last()).flat_map(|row| exp.softmax(row, *bits));
            Ok(Data::from_ints(Elem::I16, rows))
        }
        Op::IntShiftLayerNorm { shift, zero_point, to } => shift_layernorm(call, *shift, *zero_point, *to),
        _ => misplaced(call),
    }
}

fn row_peak(row: &[i32], shift: u32) -> i32 {
    let most = row.iter().fold(1, |m, v| m.max(v.abs()));
    (most + (1 << shift) - 1) >> shift
}

/// The first operand's elements, or the entries of a table that they stand for.
fn elements_of_rows<'a>(call: &'a Call) -> Result<Cow<'a, [i32]>, Fault> {
    let x = call.operands[0].i32()?;
    let Some(table) = call.operands.get(1) else { return Ok(x) };
    let table = table.i32()?;
    Ok(x.iter().map(|&i| table[i as usize]).collect())
}

fn row_codes(call: &Call, levels: i64, zero_point: i64, shift: u32) -> Evaluated {
    let by = 30 - bit_length(levels);
    let values = elements_of_rows(call)?;
    let codes = values.chunks_exact(call.operands[0].last()).flat_map(|row| {
        let peak = i64::from(row_peak(row, shift)) << shift;
        let reciprocal = ((levels << by) + peak / 2) / peak;
        row.iter().map(move |&x| ((i64::from(x) * reciprocal + (1 << (by - 1))) >> by) + zero_point)
    });
    Ok(Data::from_ints(Elem::U8, codes.map(|y| y.clamp(0, 255))))
}

fn exp_rows(call: &Call) -> Evaluated {
    let Op::IntExp { limit, multiplier, shift, table_bits } = *call.op else { return misplaced(call) };
    let (x, table) = (call.operands[0].i32()?, call.operands[1].i32()?);
    let fraction_bits = table.len().trailing_zeros();
    let one = |(key, v): (usize, i32), max: i32| {
        let t = ((i64::from(max) - i64::from(v)).min(limit) * multiplier) >> shift;
        let h = (i64::from(table_bits) + (t >> fraction_bits)).min(62);
        let fine = (i64::from(table[t as usize & (table.len() - 1)]) << 8) >> h;
        let y = (fine + i64::from(dither(key))) >> 8;
        u8::try_from(y).map_err(|_| Fault::overflow(format!("the exponential is {y}, which does not fit u8")))
    };
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(call.operands[0].last()) {
        let max = row.iter().copied().max().unwrap_or(0);
        for v in row.iter().copied().enumerate() {
            out.push(one(v, max)?);
        }
    }
    Ok(Data::U8(out))
}

/// Number of bits of a non-negative value; 0 for 0.
fn bit_length(v: i64) -> u32 {
    i64::BITS - v.leading_zeros()
}

/// What `int.layernorm` computes once a row: `s1`, the shift `e` of the differences and the reciprocal `r`.
struct Moments {
    sum: i64,
    e: u32,
    r: i64,
}

fn moments(op: &Op, row: &[i32]) -> Result<Moments, Fault> {
    let Op::IntLayerNorm { epsilon, centred, guard, norm_bits, recip_bits, .. } = *op else {
        return Err(Fault::eval("no layernorm"));
    };
    let c = row.len() as i64;
    let sum: i64 = if centred { row.iter().map(|&x| i64::from(x)).sum() } else { 0 };
    let squares: i64 = row.iter().map(|&x| i64::from(x) * i64::from(x)).sum();
    let v = (c * squares - sum * sum).checked_add(epsilon);
    let v = v.ok_or_else(|| Fault::overflow("the variance with epsilon does not fit i64"))?.max(1);
    let sigma = v.isqrt();
    let e = (bit_length(sigma) + guard).saturating_sub(16);
    let r = ((1i128 << (e + norm_bits + recip_bits)) + i128::from(sigma / 2)) / i128::from(sigma);
    // A reciprocal beyond i64 is harmless only where all differences are 0; elsewhere d*r is reported.
    Ok(Moments { sum, e, r: i64::try_from(r).unwrap_or(i64::MAX) })
}

fn layernorm_int(call: &Call) -> Evaluated {
    let Op::IntLayerNorm { recip_bits, shift, zero_point, to, .. } = *call.op else { return misplaced(call) };
    let (x, c) = (call.operands[0].i32()?, call.operands[0].last());
    let (gamma, beta) = (spread(&call.operands[1].i32()?, c), spread(&call.operands[2].i32()?, c));
    let (lo, hi) = range(to)?;
    let half = 1i64 << (recip_bits - 1);
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(c) {
        let Moments { sum, e, r } = moments(call.op, row)?;
        let round = if e == 0 { 0 } else { 1i64 << (e - 1) };
        for ((&x, &gamma), &beta) in row.iter().zip(&gamma).zip(&beta) {
            let d = (c as i64 * i64::from(x) - sum + round) >> e;
            let product = i64::from(fit(d.saturating_mul(r), "d*r")?);
            let n = i64::from(fit(product + half, "d*r with its rounding half")?) >> recip_bits;
            let y = fit(n * i64::from(gamma) + i64::from(beta), "n*gamma + beta")? >> shift;
            out.push(i64::from(y).saturating_add(zero_point).clamp(lo, hi) as i32);
        }
    }
    Ok(Data::narrow(to, out))
}

fn shift_layernorm(call: &Call, shift: u32, zero_point: i64, to: Elem) -> Evaluated {
    let (x, c) = (call.operands[0].i32()?, call.operands[0].last());
    let (gamma, beta) = (spread(&call.operands[1].i32()?, c), spread(&call.operands[2].i64()?, c));
    let (lo, hi) = range(to)?;
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(c) {
        let mean = round_half_even(row.iter().map(|&x| i64::from(x)).sum(), c as i64);
        let squares: i64 = row.iter().map(|&x| (i64::from(x) - mean).pow(2)).sum();
        let factor = i64::from(i32::MAX) / squares.isqrt().max(1);
        for ((&x, &gamma), &beta) in row.iter().zip(&gamma).zip(&beta) {
            let n = ((i64::from(x) - mean) * factor) >> 1;
            let sum = n.checked_mul(gamma.into()).and_then(|p| p.checked_add(beta));
            let y = sum.ok_or_else(|| Fault::overflow("n*gamma + beta does not fit i64"))? >> shift;
            out.push(y.saturating_add(zero_point).clamp(lo, hi) as i32);
        }
    }
    Ok(Data::narrow(to, out))
}

/// `a/b` to the nearest integer, ties to even, for positive `b`.
fn round_half_even(a: i64, b: i64) -> i64 {
    let (q, r) = (a.div_euclid(b), a.rem_euclid(b));
    if 2 * r > b || (2 * r == b && q % 2 != 0) { q + 1 } else { q }
}

/// The exponential of the shift forms (I-ViT section 3): integers at a scale of which `one` steps make 1.0.
#[derive(Clone, Copy)]
pub(super) struct ShiftExp {
    pub one: i64,
    pub n: u32,
}

impl ShiftExp {
    /// `2^n * one * exp(i / one)`, approximately, for `i <= 0`.
    fn at(self, i: i64) -> i64 {
        let x0 = -self.one;
        let p = (i + (i >> 1) - (i >> 4)).max(i64::from(self.n) * x0);
        let q = p / x0;
        let r = p - x0 * q;
        ((r - 2 * x0) << (i64::from(self.n) - q)) >> 1
    }

    /// Shiftmax of a row, at scale `2^-(bits-1)`.
    fn softmax(self, row: &[i32], bits: u32) -> impl Iterator<Item = i64> {
        let max = row.iter().copied().max().unwrap_or(0);
        let exps = row.iter().map(move |&x| self.at(i64::from(x) - i64::from(max)));
        let total = exps.clone().sum::<i64>().min(i32::MAX.into());
        let factor = i64::from(i32::MAX) / total;
        exps.map(move |e| (e * factor) >> (32 - bits))
    }

    /// ShiftGELU of an element.
    pub fn gelu(self, x: i32, x_zero: i64, bits: u32) -> Result<i32, Fault> {
        let i = i64::from(fit(i64::from(x).saturating_sub(x_zero), "x - x_zero")?);
        let m = i.max(0);
        let (e, other) = (self.at(i - m), self.at(-m));
        let factor = i64::from(i32::MAX) / (e + other);
        fit(i * ((e * factor) >> (32 - bits)), "i * sigmoid")
    }
}
