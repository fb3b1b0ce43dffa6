//! Weights: `i8`, symmetric, one scale per output channel, chosen for the least squared error.

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

/// The largest integer; -128 is not used, so that products of two weights are symmetric.
const LEVELS: f32 = 127.0;
/// Shares of the largest weight that are tried as the range, coarse and then around the best.
const COARSE: usize = 12;
const COARSE_STEP: f32 = 0.04;
const FINE: [f32; 4] = [-0.02, -0.01, 0.01, 0.02];

/// Quantizes with the scales of least squared error, none below `floor[c]`.
pub(crate) fn quantize(w: &[f32], shape: Channels, floor: &[f64]) -> Weights {
    let largest = fold(w, shape, |acc: &mut f32, x, _| *acc = acc.max(x.abs()));
    let unit: Vec<f32> = largest.iter().map(|&m| if m > 0.0 { m } else { 1.0 }).collect();
    let mut best = vec![(f32::INFINITY, 1f32); shape.channels];
    for i in 0..COARSE {
        let shares = vec![1.0 - COARSE_STEP * i as f32; shape.channels];
        improve(w, shape, &unit, &shares, &mut best);
    }
    let centre: Vec<f32> = best.iter().map(|b| b.1).collect();
    for step in FINE {
        let shares: Vec<f32> = centre.iter().map(|c| (c + step).min(1.0)).collect();
        improve(w, shape, &unit, &shares, &mut best);
    }
    let scale = |c: usize| (f64::from(unit[c] * best[c].1) / f64::from(LEVELS)).max(floor[c]);
    let scales: Vec<f64> = (0..shape.channels).map(scale).collect();
    Weights { ints: round(w, shape, &scales), scales }
}

/// Keeps the share of the range for each channel where it makes the error smaller.
fn improve(w: &[f32], shape: Channels, unit: &[f32], shares: &[f32], best: &mut [(f32, f32)]) {
    let scales: Vec<f32> = unit.iter().zip(shares).map(|(u, s)| u * s / LEVELS).collect();
    let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
    let errors = fold(w, shape, |acc: &mut f32, x, c| {
        let q = nearest(x * inverse[c]);
        let e = x - q * scales[c];
        *acc += e * e;
    });
    for c in 0..shape.channels {
        if errors[c] < best[c].0 {
            best[c] = (errors[c], shares[c]);
        }
    }
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

/// Round half to even and clamp, without a call: adding 1.5 * 2^23 leaves no fraction bits.
fn nearest(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    let clamped = x.clamp(-LEVELS, LEVELS);
    (clamped + MAGIC) - MAGIC
}

fn round(w: &[f32], shape: Channels, scales: &[f64]) -> Vec<i8> {
    let levels = f64::from(LEVELS);
    let channel = |i: usize| (i / shape.inner) % shape.channels;
    let one =
        |(i, &x): (usize, &f32)| (f64::from(x) / scales[channel(i)]).round_ties_even().clamp(-levels, levels) as i8;
    w.iter().enumerate().map(one).collect()
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
        for inner in [1, 64] {
            let shape = Channels { channels: 5, inner };
            let found = quantize(&w, shape, &[0.0; 5]);
            let largest = fold(&w, shape, |a, x, _| *a = a.max(x.abs()));
            let scales: Vec<f64> = largest.iter().map(|&m| f64::from(m) / 127.0).collect();
            let plain = Weights { ints: round(&w, shape, &scales), scales };
            assert!(squared_error(&w, &found, shape) <= squared_error(&w, &plain, shape) * 1.0001);
        }
    }

    #[test]
    fn a_channel_of_zeros_and_a_floor() {
        let q = quantize(&[0.0, 1e-9, 0.0, -1e-9], Channels { channels: 2, inner: 1 }, &[0.0, 1e-3]);
        assert_eq!(q.ints, [0, 0, 0, 0]);
        assert!(q.scales[0] > 0.0 && q.scales[1] == 1e-3);
    }
}
