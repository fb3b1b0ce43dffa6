//! The integer forms of I-BERT (Kim et al. 2021, arXiv 2101.01321, sections 3.4 to 3.6): polynomials of second order. A
//! polynomial `a (x + b)^2 + c` of `x = S I` is `(I + floor(b/S))^2 + floor((c/a)/S^2)` at scale `a S^2`.
//!
//! Guards, each of which keeps the arithmetic: the argument is requantized to a scale that is a power of two first, as for the
//! shift forms, so that the constants do not round away at 8-bit scales; what the papers shift by a number meant for inputs of
//! 22 bits is shifted by what these inputs need; exponentials are shifted right by their halvings instead of left by what is
//! left of 30, which leaves 32 bits; the map has 16 bits.

use egg::Id;
use vitc_ir::{Elem, Op, Quant, TensorType};

use super::fine_softmax::{self, Exponential, is_of_a_model};
use super::forms::{integer_layernorm, quantize_target, requantized, widened};
use crate::integerize::rule::{Match, Ops};
use crate::integerize::{Nonlinear, arith, cost, sample};

/// Steps of one in the argument of a polynomial.
const ONE: f64 = 256.0;

/// `erf(x) = sgn(x) (A (min(|x|, -B) + B)^2 + C)`, the published constants with `C` = 1.
const ERF_A: f64 = -0.2888;
const ERF_B: f64 = -1.769;

/// The integers of i-GELU for an argument at one scale.
struct Gelu {
    /// Scale of the argument.
    scale: f64,
    /// `floor(b / S')` with `S' = S / sqrt 2`: where the error function is one, negative.
    b: i64,
    /// `floor(1 / (a S'^2))`: the constant 1 of the polynomial, negative.
    c: i64,
    /// What the polynomial is shifted right by so that it, and one more, fits 16 bits.
    shift: u32,
}

impl Gelu {
    /// For arguments of magnitude `reach` at most: as fine as fits 16 bits, which the last product then keeps to 32 bits.
    fn of(reach: f64) -> Gelu {
        let one = ONE.min(2f64.powi(14 - arith::exponent(reach.max(1.0))));
        let scale = 1.0 / one;
        let inner = scale / std::f64::consts::SQRT_2;
        let (b, c) = ((ERF_B / inner).floor(), (1.0 / (ERF_A * inner * inner)).floor());
        let shift = (arith::exponent(-c) - 13).max(1);
        Gelu { scale, b: b as i64, c: c as i64, shift: shift as u32 }
    }

    /// Scale of the result, negative as `a` is.
    fn result_scale(&self) -> f64 {
        let inner = self.scale / std::f64::consts::SQRT_2;
        self.scale * ERF_A * inner * inner * 2f64.powi(self.shift as i32) / 2.0
    }

    /// `y = sgn ((min(|I|, -b) + b)^2 + c) >> n`, then `I (y + (c >> n))`.
    fn ops<O: Ops>(&self, ops: &mut O, x: O::Value, axis: usize) -> Option<O::Value> {
        let product = Op::IntMul { a_zero: 0, b_zero: 0 };
        let sum = |to| Op::IntAdd { to };
        let sign = ops.op(Op::IntClamp { lo: -1, hi: 1 }, None, &[x])?;
        let magnitude = ops.op(product.clone(), None, &[x, sign])?;
        let magnitude = ops.op(Op::IntClamp { lo: 0, hi: -self.b }, None, &[magnitude])?;
        let (b, c) = (ops.vector("b", &[self.b as i32]), ops.vector("c", &[self.c as i32]));
        let from_end = ops.op(sum(Elem::I16), None, &[magnitude, b])?;
        let square = ops.op(product.clone(), None, &[from_end, from_end])?;
        let polynomial = ops.op(sum(Elem::I32), None, &[square, c])?;
        let unit = ops.vector("unit", &[1]);
        let shifted = Op::IntRequant { axis, x_zero: 0, shift: self.shift, zero_point: 0, to: Elem::I16 };
        let polynomial = ops.op(shifted, None, &[polynomial, unit])?;
        let erf = ops.op(product.clone(), None, &[sign, polynomial])?;
        let one = ops.vector("one", &[(self.c >> self.shift) as i32]);
        let twice_cdf = ops.op(sum(Elem::I16), None, &[erf, one])?;
        ops.op(product, None, &[x, twice_cdf])
    }
}

/// i-GELU of bytes: a function of one byte, so that `fuse` folds it into the table of its own values.
pub(super) fn gelu(m: &mut Match<'_>) -> Option<Id> {
    let (to, target) = quantize_target(m)?;
    let x = m.ty("?x")?;
    let error = sample::error_over_bytes(&m.attrs("?m")?.op, &x, (to, &target), |sample, input, x| {
        gelu_ops(sample, input, x, (to, &target))
    })?;
    if !m.admit("gelu", "ibert", cost::shift_gelu(&x), error) {
        return None;
    }
    let operand = m.var("?x")?;
    gelu_ops(m, operand, &x, (to, &target))
}

fn gelu_ops<O: Ops>(ops: &mut O, operand: O::Value, x: &TensorType, target: (Elem, &Quant)) -> Option<O::Value> {
    let quant = x.quant.as_ref()?;
    let (least, most) = x.elem.range()?;
    let zero = i64::from(quant.zero_point);
    let reach = quant.single()? * (most - zero).abs().max((least - zero).abs()) as f64;
    let form = Gelu::of(reach);
    let widened = widened(ops, operand, x, form.scale)?;
    let y = form.ops(ops, widened, x.shape.rank().checked_sub(1)?)?;
    requantized(ops, y, (x, form.result_scale()), target)
}

/// i-LayerNorm, whose integers are those of I-LayerNorm.
pub(super) fn layernorm(m: &mut Match<'_>) -> Option<Id> {
    integer_layernorm(m, "ibert")
}

/// i-exp of `-t` steps of 1/256, of 16 bits: `L(r) = r (r + floor(b/S)) + floor(c/S^2)` of the remainder of `ln 2`, halved as often
/// as `ln 2` goes into the argument.
fn exponential(t: i64) -> i64 {
    const A: f64 = 0.358_151_47;
    const B: f64 = 0.969_632_38 / A;
    const C: f64 = 1.0 / A;
    #[allow(clippy::approx_constant)] // as published
    const LN_2: f64 = 0.6931;
    let (b, c, ln_2) = ((B * ONE).floor() as i64, (C * ONE * ONE).floor() as i64, (LN_2 * ONE).ceil() as i64);
    let (q, r) = (t / ln_2, -(t % ln_2));
    ((r * (r + b) + c) * fine_softmax::PEAK as i64 / c) >> q.min(62)
}

/// i-softmax with a map of 16 bits: `int.exp` takes any table, and these hold i-exp of every argument.
pub(super) fn softmax(m: &mut Match<'_>) -> Option<Id> {
    let map = m.attrs("?qp")?.quant?;
    if is_of_a_model(&map) && m.options().nonlinear == Nonlinear::Auto {
        return None; // a map on a grid of the model's own is rounded to it, unless somebody asks for this form
    }
    let scores = m.ty("?s")?;
    let last = fine_softmax::ENTRIES as i64 - 1;
    let (multiplier, shift, limit) = steps(scores.quant.as_ref()?.single()? * ONE, last)?;
    let entries: Vec<i32> = (0..=last).map(|t| exponential(t) as i32).collect();
    let exponential = Exponential::new((limit, multiplier, shift), &entries);
    if !exponential.admit(m, "ibert", &scores)? {
        return None;
    }
    // as many bits as the sums of the product behind have room for
    let length = scores.shape.last_fixed()? as f64;
    let bits = (23 - arith::exponent(length)).clamp(7, 15);
    let map = exponential.map(m, &scores, (Elem::I16, Quant::per_tensor(2f64.powi(-bits), 0)))?;
    m.dequantize(map)
}

/// `(multiplier, shift, limit)` that make `ratio` steps of every one, `last` at most: `limit * multiplier` fits 31 bits.
fn steps(ratio: f64, last: i64) -> Option<(i64, u32, i64)> {
    let limit = (last as f64 / ratio).floor().max(1.0);
    let multiplier = |shift: u32| (ratio * 2f64.powi(shift as i32)).round();
    let shift = (0..=31).rev().find(|&s| limit * multiplier(s) <= f64::from(i32::MAX))?;
    let fits = limit < f64::from(i32::MAX) && multiplier(shift) >= 1.0;
    fits.then(|| (multiplier(shift) as i64, shift, limit as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomial_follows_the_exponential() {
        for t in 0..2000 {
            let (have, want) = (exponential(t) as f64 / fine_softmax::PEAK, (-(t as f64) / ONE).exp());
            assert!((have - want).abs() < 4e-3, "{t}: {have} for {want}");
        }
        assert_eq!((exponential(0), exponential(4095)), (65535, 0));
    }

    #[test]
    fn arguments_of_any_size_keep_to_their_bits() {
        for reach in [0.3, 1.0, 7.9, 8.1, 60.0, 500.0, 3000.0] {
            let form = Gelu::of(reach);
            let twice_cdf = -2 * (form.c >> form.shift);
            assert!(twice_cdf <= 32768 && -form.b < 32768 && reach / form.scale < 32767.0, "{reach}");
        }
    }
}
