//! Weights: `i8`, symmetric, one scale per output channel, chosen for the least squared error. Those of fewer bits are `i8` as
//! well, of fewer levels; what packs them finds out by looking.
//!
//! A matrix of few bits can have steps of its own for each group of rows of a column ([`quantize_groups`]): its codes times a small whole
//! number. So the weights are still `i8` on one scale for a column, which products and accumulators never learn about, and the
//! numbers are all that is kept beside the codes ([`vitc_ir::layout::Layout::Groups`]).

use vitc_ir::layout::LARGEST_FACTOR;

use super::widths::Width;

/// Quantized weights.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weights {
    pub(crate) ints: Vec<i8>,
    pub(crate) scales: Vec<f64>,
}

/// A tensor seen as `outer` blocks of `channels` runs of `inner` elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub(crate) channels: usize,
    pub(crate) inner: usize,
}

/// Shares of the largest weight that are tried as the range, coarse and then around the best.
const COARSE_STEP: f32 = 0.04;
const FINE: [f32; 4] = [-0.02, -0.01, 0.01, 0.02];

/// How many coarse shares are tried: the fewer the levels, the more it pays to clip.
fn coarse(bits: Width) -> usize {
    match bits.bits() {
        8 => 12,
        4..8 => 19,
        _ => 23,
    }
}

fn levels(bits: Width) -> (f32, f32) {
    let (low, high) = bits.weight_levels();
    (low as f32, high as f32)
}

/// Quantizes with the scales of least squared error, none below `floor[c]`.
pub(crate) fn quantize(w: &[f32], shape: Channels, bits: Width, floor: &[f64]) -> Weights {
    let largest = fold(w, shape, |acc: &mut f32, x, _| *acc = acc.max(x.abs()));
    let unit: Vec<f32> = largest.iter().map(|&m| if m > 0.0 { m } else { 1.0 }).collect();
    let mut best = vec![(f32::INFINITY, 1f32); shape.channels];
    for i in 0..coarse(bits) {
        let shares = vec![1.0 - COARSE_STEP * i as f32; shape.channels];
        improve(w, shape, bits, &unit, &shares, &mut best);
    }
    let centre: Vec<f32> = best.iter().map(|b| b.1).collect();
    for step in FINE {
        let shares: Vec<f32> = centre.iter().map(|c| (c + step).min(1.0)).collect();
        improve(w, shape, bits, &unit, &shares, &mut best);
    }
    let largest = f64::from(levels(bits).1);
    let scale = |c: usize| (f64::from(unit[c] * best[c].1) / largest).max(floor[c]);
    let scales: Vec<f64> = (0..shape.channels).map(scale).collect();
    Weights { ints: round(w, shape, bits, &scales), scales }
}

/// Keeps the share of the range for each channel where it makes the error smaller.
fn improve(w: &[f32], shape: Channels, bits: Width, unit: &[f32], shares: &[f32], best: &mut [(f32, f32)]) {
    let (low, high) = levels(bits);
    let scales: Vec<f32> = unit.iter().zip(shares).map(|(u, s)| u * s / high).collect();
    let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
    let errors = fold(w, shape, |acc: &mut f32, x, c| {
        let q = nearest((x * inverse[c]).clamp(low, high));
        let e = x - q * scales[c];
        *acc += e * e;
    });
    for c in 0..shape.channels {
        if errors[c] < best[c].0 {
            best[c] = (errors[c], shares[c]);
        }
    }
}

/// By how many scales a weight's step is greater than one, for each column of a group of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Factors {
    /// Rows of a group.
    pub(crate) rows: usize,
    /// Group by group, a number for each column.
    pub(crate) of: Vec<u8>,
}

/// The largest factor for codes of so many bits: the largest code times it is a byte, and so is its negation.
fn largest_factor(bits: Width) -> u8 {
    let (low, _) = bits.weight_levels();
    (127 / low.unsigned_abs()).min(u32::from(LARGEST_FACTOR)) as u8
}

/// Shares of the range of a column that are tried with groups.
const GROUPED_SHARES: [f32; 4] = [1.0, 0.9, 0.8, 0.7];

/// Quantizes a matrix of so many columns with a step for each group of rows, of least squared error, as a whole number of scales.
pub(crate) fn quantize_groups(
    w: &[f32],
    columns: usize,
    (bits, rows): (Width, usize),
    floor: &[f64],
) -> (Weights, Factors) {
    let shape = Channels { channels: columns, inner: 1 };
    let largest = fold(w, shape, |acc: &mut f32, x, _| *acc = acc.max(x.abs()));
    let most = f32::from(largest_factor(bits));
    let (low, high) = levels(bits);
    let groups = w.len().div_ceil((rows * columns).max(1));
    let mut best = vec![(f32::INFINITY, 1f32); columns];
    let mut factors = Factors { rows, of: vec![1; groups * columns] };
    for share in GROUPED_SHARES {
        let unit = |&m: &f32| if m > 0.0 { share * m } else { 1.0 };
        let scales: Vec<f32> = largest.iter().map(|m| unit(m) / (high * most)).collect();
        let tried: Vec<Vec<(f32, u8)>> =
            w.chunks((rows * columns).max(1)).map(|group| steps(group, &scales, bits, (low, high))).collect();
        for c in 0..columns {
            let error = tried.iter().map(|group| group[c].0).sum::<f32>();
            if error < best[c].0 {
                best[c] = (error, scales[c]);
                tried.iter().enumerate().for_each(|(g, group)| factors.of[g * columns + c] = group[c].1);
            }
        }
    }
    let scales: Vec<f64> = best.iter().zip(floor).map(|(b, &floor)| f64::from(b.1).max(floor)).collect();
    let factor = |i: usize| f64::from(factors.of[i / (rows * columns) * columns + i % columns]);
    let whole = |(i, &x): (usize, &f32)| {
        let code = (f64::from(x) / (factor(i) * scales[i % columns])).round_ties_even();
        code.clamp(low.into(), high.into()) * factor(i)
    };
    let ints = w.iter().enumerate().map(|x| whole(x) as i8).collect();
    (Weights { ints, scales }, factors)
}

/// The factor of least squared error for each column of a group, with that error.
fn steps(group: &[f32], scales: &[f32], bits: Width, (low, high): (f32, f32)) -> Vec<(f32, u8)> {
    let shape = Channels { channels: scales.len(), inner: 1 };
    let mut best = vec![(f32::INFINITY, 1); scales.len()];
    for factor in 1..=largest_factor(bits) {
        let steps: Vec<f32> = scales.iter().map(|s| s * f32::from(factor)).collect();
        let inverse: Vec<f32> = steps.iter().map(|s| 1.0 / s).collect();
        let errors = fold(group, shape, |acc: &mut f32, x, c| {
            let e = x - nearest((x * inverse[c]).clamp(low, high)) * steps[c];
            *acc += e * e;
        });
        for (best, error) in best.iter_mut().zip(errors) {
            if error < best.0 {
                *best = (error, factor);
            }
        }
    }
    best
}

/// One accumulator for each channel.
fn fold(w: &[f32], shape: Channels, f: impl Fn(&mut f32, f32, usize)) -> Vec<f32> {
    let mut acc = vec![0f32; shape.channels];
    if shape.inner == 1 {
        for row in w.chunks_exact(shape.channels) {
            (0..shape.channels).for_each(|c| f(&mut acc[c], row[c], c));
        }
    } else {
        for (i, run) in w.chunks_exact(shape.inner.max(1)).enumerate() {
            let c = i % shape.channels;
            run.iter().for_each(|&x| f(&mut acc[c], x, c));
        }
    }
    acc
}

/// Rounds a small number half to even, without a call: adding 1.5 * 2^23 leaves no fraction bits.
pub(crate) fn nearest(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

fn round(w: &[f32], shape: Channels, bits: Width, scales: &[f64]) -> Vec<i8> {
    let (low, high) = levels(bits);
    let channel = |i: usize| (i / shape.inner) % shape.channels;
    let whole = |(i, &x): (usize, &f32)| (f64::from(x) / scales[channel(i)]).round_ties_even();
    w.iter().enumerate().map(|x| whole(x).clamp(low.into(), high.into()) as i8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squared_error(w: &[f32], q: &Weights, shape: Channels) -> f64 {
        let back = |i: usize| f64::from(q.ints[i]) * q.scales[(i / shape.inner) % shape.channels];
        w.iter().enumerate().map(|(i, &x)| (f64::from(x) - back(i)).powi(2)).sum()
    }

    #[test]
    fn the_search_beats_the_largest_weight_as_range() {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let w: Vec<f32> = (0..64 * 5).map(|_| (0..6).map(|_| next()).sum()).collect();
        for (inner, bits) in
            [1, 64].into_iter().flat_map(|i| [8, 6, 5, 4, 3, 2].map(|bits| (i, Width::of_weights(bits).unwrap())))
        {
            let shape = Channels { channels: 5, inner };
            let found = quantize(&w, shape, bits, &[0.0; 5]);
            let (low, high) = levels(bits);
            assert!(found.ints.iter().all(|&q| (low..=high).contains(&f32::from(q))));
            let largest = fold(&w, shape, |a, x, _| *a = a.max(x.abs()));
            let scales: Vec<f64> = largest.iter().map(|&m| f64::from(m / high)).collect();
            let plain = Weights { ints: round(&w, shape, bits, &scales), scales };
            let share = squared_error(&w, &found, shape) / squared_error(&w, &plain, shape);
            assert!(share <= if bits.bits() <= 4 { 0.95 } else { 1.0001 }, "{bits:?}: {share}");
        }
    }

    #[test]
    fn steps_of_groups_make_less_error_and_leave_codes_of_their_bits() {
        let (k, n) = (200, 5);
        let mut normal = crate::integerize::sample::Normal::new(3);
        let w: Vec<f32> = (0..k * n).map(|_| normal.next() as f32).collect();
        for (bits, rows, share) in [(2, 16, 0.95), (3, 16, 0.85), (4, 16, 0.7), (4, 64, 0.9), (5, 16, 0.8)] {
            let (width, shape) = (Width::of_weights(bits).unwrap(), Channels { channels: n, inner: 1 });
            let (found, factors) = quantize_groups(&w, n, (width, rows), &vec![0.0; n]);
            let one = quantize(&w, shape, width, &vec![0.0; n]);
            let (less, more) = (squared_error(&w, &found, shape), squared_error(&w, &one, shape));
            assert!(less < share * more, "{bits} bits, groups of {rows}: {less} of {more}");
            let (low, high) = width.weight_levels();
            for (i, &q) in found.ints.iter().enumerate() {
                let factor = i32::from(factors.of[i / (rows * n) * n + i % n]);
                assert!(i32::from(q) % factor == 0 && (low..=high).contains(&(i32::from(q) / factor)));
            }
            let bytes: Vec<u8> = found.ints.iter().map(|&q| q as u8).collect();
            let layout = vitc_ir::layout::Layout::narrowest(8, (k, n), &bytes);
            assert_eq!(layout.bits(), bits, "what packs them sees it");
        }
    }

    #[test]
    fn a_channel_of_zeros_and_a_floor() {
        let shape = Channels { channels: 2, inner: 1 };
        let q = quantize(&[0.0, 1e-9, 0.0, -1e-9], shape, Width::EIGHT, &[0.0, 1e-3]);
        assert_eq!(q.ints, [0, 0, 0, 0]);
        assert!(q.scales[0] > 0.0 && q.scales[1] == 1e-3);
    }
}
