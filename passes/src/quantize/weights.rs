//! Weights: `i8`, symmetric, one scale per output channel, chosen for the least squared error. Those of 4 bits are `i8` as
//! well, of -8 to 7; what packs two to a byte finds out by looking.

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

/// Bits of a weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightBits {
    /// -127 to 127; -128 is not used, so that products of two weights are symmetric.
    #[default]
    Eight,
    /// -8 to 7.
    Four,
}

impl WeightBits {
    /// The least and the largest integer. The largest is what the range is divided by.
    fn levels(self) -> (f32, f32) {
        match self {
            WeightBits::Eight => (-127.0, 127.0),
            WeightBits::Four => (-8.0, 7.0),
        }
    }

    /// How many coarse shares are tried: with few levels it pays to clip far more.
    fn coarse(self) -> usize {
        match self {
            WeightBits::Eight => 12,
            WeightBits::Four => 19,
        }
    }
}

/// Bits of the weights of each matrix product. Products that read the image keep 8: they are small and see whole pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightChoice {
    /// Where no pattern matches.
    pub bits: WeightBits,
    /// By the name of the ONNX node, `*` standing for any characters; the last pattern that matches counts.
    pub of: Vec<(String, WeightBits)>,
}

impl WeightChoice {
    /// The bits for the weights of the node of this name.
    pub(crate) fn bits_of(&self, name: &str) -> WeightBits {
        self.of.iter().rev().find(|(pattern, _)| matches(pattern, name)).map_or(self.bits, |(_, bits)| *bits)
    }

    /// The first pattern that none of these names matches.
    pub(crate) fn unmatched<'n>(&self, names: impl Iterator<Item = &'n str> + Clone) -> Option<&str> {
        let mut patterns = self.of.iter().map(|(pattern, _)| pattern.as_str());
        patterns.find(|pattern| !names.clone().any(|name| matches(pattern, name)))
    }
}

/// Whether a name is one of a pattern, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|tail| {
            tail.char_indices().map(|(i, _)| i).chain([tail.len()]).any(|i| matches(rest, &tail[i..]))
        }),
    }
}

/// Shares of the largest weight that are tried as the range, coarse and then around the best.
const COARSE_STEP: f32 = 0.04;
const FINE: [f32; 4] = [-0.02, -0.01, 0.01, 0.02];

/// Quantizes with the scales of least squared error, none below `floor[c]`.
pub(crate) fn quantize(w: &[f32], shape: Channels, bits: WeightBits, floor: &[f64]) -> Weights {
    let largest = fold(w, shape, |acc: &mut f32, x, _| *acc = acc.max(x.abs()));
    let unit: Vec<f32> = largest.iter().map(|&m| if m > 0.0 { m } else { 1.0 }).collect();
    let mut best = vec![(f32::INFINITY, 1f32); shape.channels];
    for i in 0..bits.coarse() {
        let shares = vec![1.0 - COARSE_STEP * i as f32; shape.channels];
        improve(w, shape, bits, &unit, &shares, &mut best);
    }
    let centre: Vec<f32> = best.iter().map(|b| b.1).collect();
    for step in FINE {
        let shares: Vec<f32> = centre.iter().map(|c| (c + step).min(1.0)).collect();
        improve(w, shape, bits, &unit, &shares, &mut best);
    }
    let largest = f64::from(bits.levels().1);
    let scale = |c: usize| (f64::from(unit[c] * best[c].1) / largest).max(floor[c]);
    let scales: Vec<f64> = (0..shape.channels).map(scale).collect();
    Weights { ints: round(w, shape, bits, &scales), scales }
}

/// Keeps the share of the range for each channel where it makes the error smaller.
fn improve(w: &[f32], shape: Channels, bits: WeightBits, unit: &[f32], shares: &[f32], best: &mut [(f32, f32)]) {
    let (low, high) = bits.levels();
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
fn nearest(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

fn round(w: &[f32], shape: Channels, bits: WeightBits, scales: &[f64]) -> Vec<i8> {
    let (low, high) = bits.levels();
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
        for (inner, bits) in [1, 64].into_iter().flat_map(|i| [(i, WeightBits::Eight), (i, WeightBits::Four)]) {
            let shape = Channels { channels: 5, inner };
            let found = quantize(&w, shape, bits, &[0.0; 5]);
            let (low, high) = bits.levels();
            assert!(found.ints.iter().all(|&q| (low..=high).contains(&f32::from(q))));
            let largest = fold(&w, shape, |a, x, _| *a = a.max(x.abs()));
            let scales: Vec<f64> = largest.iter().map(|&m| f64::from(m / high)).collect();
            let plain = Weights { ints: round(&w, shape, bits, &scales), scales };
            let share = squared_error(&w, &found, shape) / squared_error(&w, &plain, shape);
            assert!(share <= if bits == WeightBits::Four { 0.95 } else { 1.0001 }, "{bits:?}: {share}");
        }
    }

    #[test]
    fn a_channel_of_zeros_and_a_floor() {
        let shape = Channels { channels: 2, inner: 1 };
        let q = quantize(&[0.0, 1e-9, 0.0, -1e-9], shape, WeightBits::Eight, &[0.0, 1e-3]);
        assert_eq!(q.ints, [0, 0, 0, 0]);
        assert!(q.scales[0] > 0.0 && q.scales[1] == 1e-3);
    }

    #[test]
    fn patterns_choose_by_name_and_the_last_one_counts() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("/head", "/head", true),
            ("/head", "/head/MatMul", false),
            ("/blocks.*/mlp/*", "/blocks.11/mlp/fc1/MatMul", true),
            ("/blocks.*/mlp/*", "/blocks.11/attn/qkv/MatMul", false),
            ("*fc2*", "/blocks.0/mlp/fc2/MatMul", true),
            ("*a*b", "xaayb", true),
            ("*a*b", "xaaybc", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        let of = vec![("*mlp*".to_string(), WeightBits::Four), ("*fc2*".to_string(), WeightBits::Eight)];
        let choice = WeightChoice { bits: WeightBits::Eight, of };
        assert_eq!(choice.bits_of("/mlp/fc1"), WeightBits::Four);
        assert_eq!(choice.bits_of("/mlp/fc2"), WeightBits::Eight);
        assert_eq!(choice.bits_of("/qkv"), WeightBits::Eight);
        assert_eq!(choice.unmatched(["/mlp/fc2"].into_iter()), None);
        assert_eq!(choice.unmatched(["/mlp/fc1", "/qkv"].into_iter()), Some("*fc2*"));
    }
}
