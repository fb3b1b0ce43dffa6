//! Numbers of integer arithmetic: dyadic multipliers, integer constants of LayerNorm and softmax.

use crate::quantize::logarithmic;

/// Multipliers `m[c]` and a common shift `s` with `m[c] * 2^-s` next to `ratio[c]` (I-ViT section 3.2; the largest
/// multiplier has 31 bits, so a channel `2^k` smaller keeps `31 - k`). `None` when a ratio is not finite, all are zero, or
/// the largest is 2^30 or more.
pub fn dyadic(ratios: &[f64]) -> Option<(Vec<i32>, u32)> {
    dyadic_of(ratios, 31)
}

/// The same with multipliers of 15 bits, whose products with 16 bits fit 32 bits; `None` as well where a channel would keep fewer
/// than 11.
pub fn dyadic15(ratios: &[f64]) -> Option<(Vec<i32>, u32)> {
    const FEWEST_BITS: i32 = 11;
    let (multipliers, shift) = dyadic_of(ratios, 15)?;
    multipliers.iter().all(|m| m.abs() >= 1 << (FEWEST_BITS - 1)).then_some((multipliers, shift))
}

fn dyadic_of(ratios: &[f64], bits: i32) -> Option<(Vec<i32>, u32)> {
    let largest = ratios.iter().fold(0f64, |a, r| a.max(r.abs()));
    if !(largest > 0.0 && ratios.iter().all(|r| r.is_finite())) {
        return None;
    }
    let mut shift = (bits - 1 - exponent(largest)).min(62);
    if (largest * 2f64.powi(shift)).round() >= 2f64.powi(bits) {
        shift -= 1;
    }
    if shift < 1 {
        return None;
    }
    let scale = 2f64.powi(shift);
    Some((ratios.iter().map(|r| (r * scale).round() as i32).collect(), shift as u32))
}

/// `e` with `2^e <= x < 2^(e+1)` for positive finite `x`.
pub fn exponent(x: f64) -> i32 {
    let e = x.log2().floor() as i32;
    // log2 is not exact next to powers of two
    if 2f64.powi(e) > x {
        e - 1
    } else if 2f64.powi(e + 1) <= x {
        e + 1
    } else {
        e
    }
}

/// Constants of `int.exp` for scores of that scale: (`limit`, `multiplier`, `shift`, `table_bits`, table). The result is `peak`
/// at the row's maximum, 255 at most, and 0 from sixteen halvings on.
pub fn exp_constants(scale: f64, peak: u8) -> Option<(i64, i64, u32, u32, Vec<i32>)> {
    const FRACTION_BITS: u32 = 6; // a step of the exponent is 1.1 %, half of that the largest error; 8-bit rounding is 0.4 % at best
    const TABLE_BITS: u32 = 16;
    // From 16 halvings on, nothing is left of 255 * 2^-h in 256 steps. The limit lies four steps beyond, so that no rounding of
    // the multiplier leaves what is clamped to it at more: that would give some far keys of every row a weight.
    const HALVINGS: f64 = 16.0 + 4.0 / (1u32 << FRACTION_BITS) as f64;
    let halvings_per_step = scale * std::f64::consts::LOG2_E;
    let limit = (HALVINGS / halvings_per_step).ceil();
    if !(halvings_per_step.is_finite() && halvings_per_step > 0.0) {
        return None;
    }
    // steps so fine that no difference of 31 bits makes 16 halvings: what accumulators can differ by makes none
    let limit = limit.clamp(1.0, f64::from(i32::MAX));
    let unit = halvings_per_step * f64::from(1u32 << FRACTION_BITS);
    let mut shift = 31u32;
    while shift > 0 && limit * (unit * 2f64.powi(shift as i32)).round() > f64::from(i32::MAX) {
        shift -= 1;
    }
    let multiplier = ((unit * 2f64.powi(shift as i32)).round() as i64).max(1);
    if multiplier < 1 || limit as i64 * multiplier > i64::from(i32::MAX) {
        return None;
    }
    let steps = 1 << FRACTION_BITS;
    let entry = |i: usize| f64::from(peak) * 2f64.powf(-(i as f64) / f64::from(steps)) * f64::from(1 << TABLE_BITS);
    let table = (0..steps as usize).map(|i| entry(i).round() as i32).collect();
    Some((limit as i64, multiplier, shift, TABLE_BITS, table))
}

/// The same with weights of these levels alone, `peak` the largest. Logarithmic levels are steps of the exponent, so that the table
/// stays that of one halving, and a weight is rounded by its key like those of 8 bits. Of other levels the table holds every
/// exponent: the first that follow one another are rounded by the key, the others to the nearest.
pub fn coded_exp_constants(scale: f64, peak: u8, levels: &[i64]) -> Option<(i64, i64, u32, u32, Vec<i32>)> {
    let (limit, multiplier, shift, table_bits, table) = exp_constants(scale, peak)?;
    let steps = table.len();
    for per_octave in [1, 2, 4, 8] {
        if levels == logarithmic(per_octave) {
            let rounded = |i: usize| (i * per_octave) as f64 / steps as f64;
            let entry = |i: usize| f64::from(table[0]) * 2f64.powf(-rounded(i).round() / per_octave as f64);
            return Some((limit, multiplier, shift, table_bits, (0..steps).map(|i| entry(i).round() as i32).collect()));
        }
    }
    const BITS: u32 = 8;
    let last = (limit * multiplier) >> shift;
    let in_a_row = levels.iter().enumerate().take_while(|(i, level)| **level == *i as i64).count() as f64 - 1.0;
    let entry = |t: i64| {
        let y = f64::from(peak) * 2f64.powf(-(t as f64) / steps as f64);
        let nearest = levels.iter().map(|&level| level as f64).min_by(|a, b| (a - y).abs().total_cmp(&(b - y).abs()));
        let y = if y < in_a_row { y } else { nearest.unwrap_or(y) };
        (y * f64::from(1 << BITS)).round() as i32
    };
    let length = (last as usize + 1).next_power_of_two();
    Some((limit, multiplier, shift, BITS, (0..length as i64).map(|t| if t < last { entry(t) } else { 0 }).collect()))
}

/// What `epsilon * (C / scale)^2` of a LayerNorm must stay below, beside which its moments still fit 64 bits.
const MOST_EPSILON: f64 = (1u64 << 61) as f64;

/// The finest scale of what a LayerNorm over so many channels reads. Finer steps would tell apart what its epsilon makes nothing of.
pub(crate) fn finest_norm_scale(channels: usize, epsilon: f64) -> f64 {
    channels as f64 * (epsilon / MOST_EPSILON).sqrt() * (1.0 + 1e-9)
}

/// The finest scale of what a LayerNorm yields, by its gamma and beta. Where that is less than a millionth of gamma, the rows have nothing
/// that its epsilon does not swallow; finer steps would leave no room for gamma in 32 bits.
pub(crate) fn finest_norm_result(gamma: f64, beta: f64) -> f64 {
    (gamma * 2f64.powi(-20)).max(beta * 2f64.powi(-22))
}

/// Constants of `int.layernorm`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// `epsilon * (C / scale)^2`.
    pub epsilon: i64,
    /// See the op.
    pub guard: u32,
    /// See the op.
    pub norm_bits: u32,
    /// See the op.
    pub recip_bits: u32,
    /// See the op.
    pub shift: u32,
    /// gamma in output steps.
    pub gamma: Vec<i32>,
    /// beta in output steps, with the rounding half.
    pub beta: Vec<i32>,
}

/// Constants of `int.layernorm` over `gamma.len()` channels from input scale to output scale; `None` when a magnitude
/// leaves 32 bits. The widths are those that the overflow proof in the op's doc needs: `|n| <= 2^(guard+norm_bits)`.
pub fn layernorm_constants(
    gamma: &[f64],
    beta: &[f64],
    epsilon: f64,
    scale_in: f64,
    scale_out: f64,
) -> Option<LayerNorm> {
    let channels = gamma.len() as f64;
    let guard = channels.sqrt().log2().ceil() as u32 + 1;
    let norm_bits = 12u32;
    let recip_bits = 30u32.checked_sub(norm_bits + guard)?;
    let eps = epsilon * (channels / scale_in).powi(2);
    let largest = |v: &[f64]| v.iter().fold(0f64, |a, x| a.max(x.abs())) / scale_out;
    let n_max = 2f64.powi((guard + norm_bits) as i32);
    let mut shift = 30u32;
    loop {
        let unit = 2f64.powi(shift as i32);
        let g = (largest(gamma) * unit / 2f64.powi(norm_bits as i32)).round();
        let b = (largest(beta) * unit).round() + unit;
        if g * n_max + b < f64::from(i32::MAX) {
            break;
        }
        shift = shift.checked_sub(1)?;
    }
    // what little is left of gamma for small shifts, the form's error on samples tells
    if shift < 1 || !eps.is_finite() || eps >= MOST_EPSILON {
        return None;
    }
    let unit = 2f64.powi(shift as i32);
    let half = 1i64 << (shift - 1);
    Some(LayerNorm {
        epsilon: (eps.round() as i64).max(0),
        guard,
        norm_bits,
        recip_bits,
        shift,
        gamma: gamma.iter().map(|g| (g / scale_out * unit / 2f64.powi(norm_bits as i32)).round() as i32).collect(),
        beta: beta.iter().map(|b| ((b / scale_out * unit).round() as i64 + half) as i32).collect(),
    })
}

/// Constants of `int.shift_layernorm`: (gamma, beta, shift). The normalised value has 30 fraction bits times `sqrt(C)`.
pub fn shift_layernorm_constants(gamma: &[f64], beta: &[f64], scale_out: f64) -> Option<(Vec<i32>, Vec<i64>, u32)> {
    let root = (gamma.len() as f64).sqrt();
    let largest = gamma.iter().fold(0f64, |a, g| a.max(g.abs())) * root / scale_out;
    if !(largest > 0.0 && largest.is_finite()) {
        return None;
    }
    // gamma at 2^(shift-30) steps has at most 30 bits; |n| <= 2^30, so the product stays below 2^60
    let shift = (30 + 29 - exponent(largest)).clamp(1, 61);
    let unit = 2f64.powi(shift - 30);
    let g = gamma.iter().map(|g| (g * root / scale_out * unit).round() as i32).collect();
    let half = 1i64 << (shift - 1);
    let steps: Vec<f64> = beta.iter().map(|b| b / scale_out * 2f64.powi(shift)).collect();
    if !steps.iter().all(|s| s.abs() < 2f64.powi(61)) {
        return None;
    }
    Some((g, steps.iter().map(|s| s.round() as i64 + half).collect(), shift as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_too_fine_to_matter_have_constants() {
        // accumulators of operands of 2^-24 a step: all weights of a row are the same
        let (limit, multiplier, shift, _, _) = exp_constants(2f64.powi(-48), 255).unwrap();
        assert!(limit * multiplier <= i64::from(i32::MAX));
        assert_eq!(((1 << 22) * multiplier) >> shift, 0);
        let (gamma, beta) = ([1.0; 384], [0.0; 384]);
        let finest = finest_norm_scale(384, 1e-6);
        assert!(layernorm_constants(&gamma, &beta, 1e-6, finest, 1e-4).is_some());
        assert!(layernorm_constants(&gamma, &beta, 1e-6, 0.99 * finest, 1e-4).is_none());
        for (g, b) in [(1.0, 0.0), (3.0, 40.0), (1e-3, 5.0), (200.0, 1e-6)] {
            for channels in [2, 48, 768, 4096] {
                let (gamma, beta, finest) = (vec![g; channels], vec![-b; channels], finest_norm_result(g, b));
                let k = layernorm_constants(&gamma, &beta, 1e-6, 1e-3, finest).unwrap();
                assert!(f64::from(k.gamma[0]).abs() >= 64.0 || b > g, "{k:?}");
            }
        }
    }

    #[test]
    fn dyadic_multipliers_are_within_half_a_step() {
        for ratio in [1.0, 0.5, 0.3, 1e-6, 7.77e-4, 1023.9, 2f64.powi(-20)] {
            let (m, s) = dyadic(&[ratio, ratio / 3.0]).unwrap();
            assert!(m[0] >= 1 << 29, "{ratio}: {m:?}");
            assert!((f64::from(m[0]) * 2f64.powi(-(s as i32)) / ratio - 1.0).abs() < 1e-8);
            assert!((f64::from(m[1]) * 2f64.powi(-(s as i32)) / ratio * 3.0 - 1.0).abs() < 1e-8);
        }
        assert_eq!(dyadic(&[0.0]), None);
        assert_eq!(dyadic(&[f64::NAN, 1.0]), None);
        assert_eq!(dyadic(&[2f64.powi(31)]), None);
        assert!(dyadic(&[1e-30]).is_some());
    }

    #[test]
    fn short_multipliers_leave_products_room() {
        for ratio in [1.0, 0.3, 15.99, 2f64.powi(-10), 8191.9] {
            let (m, s) = dyadic15(&[ratio, ratio / 13.0]).unwrap();
            assert!((1 << 14..1 << 15).contains(&m[0]), "{ratio}: {m:?}");
            assert!((f64::from(m[1]) * 2f64.powi(-(s as i32)) / ratio * 13.0 - 1.0).abs() < 2f64.powi(-11));
        }
        assert_eq!(dyadic15(&[1.0, 2f64.powi(-5)]), None);
    }

    #[test]
    fn exponents_of_powers_of_two() {
        for e in -40..40 {
            assert_eq!(exponent(2f64.powi(e)), e);
            assert_eq!(exponent(2f64.powi(e) * 1.999), e);
        }
    }

    #[test]
    fn exp_constants_fit_32_bits_over_all_scales() {
        for e in -27..6 {
            let scale = 2f64.powi(e) * 1.37;
            let Some((limit, multiplier, shift, bits, table)) = exp_constants(scale, 255) else { panic!("{scale}") };
            assert!(limit * multiplier <= i64::from(i32::MAX));
            assert_eq!((table.len(), table[0]), (64, 255 << 16));
            let t = (limit * multiplier) >> shift;
            let h = bits + (t / 64) as u32;
            let left = if h >= 32 { 0 } else { (table[(t % 64) as usize] + (1 << (h - 1))) >> h };
            assert_eq!(left, 0, "what is beyond the limit counts nothing");
        }
    }
}
