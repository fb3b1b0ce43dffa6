//! Elementary functions on `f32`, written without branches so that loops over them vectorise, and exact in their results
//! on every machine (no fused multiply-add, no library calls).

/// `2^23 + 2^22`: adding and subtracting it rounds to the nearest integer, ties to even, below magnitude 2^22.
pub(super) const ROUNDER: f32 = 12_582_912.0;

/// Natural exponential within 2 ulp; results below 1e-37 are 0 (Cephes `expf`: Cody-Waite reduction, degree 5).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let clamped = if x > 89.0 { 89.0 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = clamped - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.0e-1;
    let y = p * (r * r) + r + 1.0;
    // 2^(n-1) from the low bits of the shifted sum, doubled afterwards so that n = 128 needs no special case.
    let exponent = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(126) << 23;
    let y = y * f32::from_bits(exponent) * 2.0;
    if x < -86.0 { 0.0 } else { y }
}

/// Error function, absolute error below 1.2e-7: a polynomial near zero, `1 - exp(polynomial)` beyond (N. Juffa's minimax
/// coefficients for `erff`).
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let t = x.abs();
    let t = if t > 4.0 { 4.0 } else { t };
    let s = t * t;
    let far = -1.728_534_7e-5 * t + 3.831_972e-4;
    let far = far * s + (-3.883_964_4e-3 * t + 2.425_462_2e-2);
    let far = far * t - 1.067_778_8e-1;
    let far = far * t - 6.348_467e-1;
    let far = far * t - 1.287_175_1e-1;
    let far = 1.0 - exp(far * t - t);
    let near = -5.967_617e-4;
    let near = near * s + 4.991_194e-3;
    let near = near * s - 2.676_813_5e-2;
    let near = near * s + 1.128_199_25e-1;
    let near = near * s - 3.761_253_4e-1;
    let near = near * s + 1.283_791_7e-1;
    let near = near * t + t;
    let magnitude = if t > 0.927_734_4 { far } else { near };
    magnitude.copysign(x)
}

/// `1/(1+exp(-x))`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x/2 (1 + erf(x/sqrt 2))`, error below `2e-7 max(1, |x|)`: the normal tail by the formula 7.1.26 of Abramowitz and
/// Stegun, which needs one exponential and no choice.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    let magnitude = x.abs();
    let magnitude = if magnitude > 1e4 { 1e4 } else { magnitude }; // the tail is 0 long before; keeps infinities right
    let t = 1.0 / (1.0 + 0.231_641_9 * magnitude);
    let p = 0.530_702_7 * t - 0.726_576;
    let p = p * t + 0.710_706_9;
    let p = p * t - 0.142_248_37;
    let p = p * t + 0.127_414_8;
    let tail = p * t * exp(-0.5 * x * x);
    let above = if x > 0.0 { x } else { 0.0 };
    above - magnitude * tail
}

/// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, by `1 + tanh(u) = 2 sigmoid(2u)`.
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    let u = 0.797_884_6 * (x + 0.044_715 * (x * x * x));
    x * sigmoid(2.0 * u)
}

/// Sum in sixteen partial sums.
pub(super) fn sum(xs: &[f32]) -> f32 {
    lanes(xs, 0.0, |a, b| a + b).iter().sum()
}

/// Sum of the squares in sixteen partial sums.
pub(super) fn sum_of_squares(xs: &[f32]) -> f32 {
    lanes(xs, 0.0, |a, b| a + b * b).iter().sum()
}

/// Largest element; minus infinity for none.
pub(super) fn max(xs: &[f32]) -> f32 {
    let larger = |a, b| if a > b { a } else { b };
    lanes(xs, f32::NEG_INFINITY, larger).into_iter().fold(f32::NEG_INFINITY, larger)
}

/// Folds in sixteen lanes.
#[inline(always)]
fn lanes(xs: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    let mut lanes = [start; 16];
    let chunks = xs.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane = f(*lane, x));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &x)| *lane = f(*lane, x));
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points() -> impl Iterator<Item = f32> {
        (-120_000..=120_000).map(|i| i as f32 * 1e-4)
    }

    #[test]
    fn exp_is_within_two_ulp() {
        for x in points().map(|x| x * 7.0) {
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2.4e-7, "{x}: {error}");
        }
        assert_eq!((exp(0.0), exp(-1e30), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!((exp(89.0), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
    }

    #[test]
    fn erf_and_gelu_are_within_their_stated_errors() {
        for x in points() {
            let want = libm::erf(x.into());
            assert!((f64::from(erf(x)) - want).abs() < 1.2e-7, "{x}");
            let wide = f64::from(x);
            let want = 0.5 * wide * (1.0 + libm::erf(wide / 2f64.sqrt()));
            assert!((f64::from(gelu(x)) - want).abs() < 2e-7 * wide.abs().max(1.0), "{x}");
        }
    }

    #[test]
    fn gelu_of_infinities_is_its_limit() {
        assert_eq!((gelu(f32::INFINITY), gelu(f32::NEG_INFINITY), gelu(0.0)), (f32::INFINITY, 0.0, 0.0));
        assert!(gelu(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_take_every_element() {
        for len in [0, 1, 15, 16, 17, 100] {
            let xs: Vec<f32> = (0..len).map(|i| i as f32).collect();
            assert_eq!(sum(&xs), (0..len).sum::<usize>() as f32);
            assert_eq!(max(&xs), xs.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
    }
}
