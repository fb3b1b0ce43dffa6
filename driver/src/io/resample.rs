//! Image resampling with antialias, equal to Pillow's 8-bit `Image.resize` to the bit.
//!
//! Two passes, horizontal then vertical. The filter is widened by the downscale factor; its weights are normalised in
//! f64, rounded to 22-bit fixed point, and each pass rounds and clips to u8 (Pillow, `src/libImaging/Resample.c`).
//! This is Pillow up to 12; Pillow 13 takes the vertical pass first for images much taller than wide, and for such an
//! image a pixel may differ.
//! Only the pixels of a window of the output are computed, so an image of extreme aspect ratio costs no more memory
//! than its crop.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// Fraction bits of a weight: 8 bits for the pixel and 2 of headroom for negative lobes leave 22 of 32.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The kernel with which an image is resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Cubic convolution with a = -0.5, four taps wide.
    Bicubic,
    /// Triangle, two taps wide.
    Bilinear,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bicubic => 2.0,
            Filter::Bilinear => 1.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Filter::Bicubic => cubic(x),
            Filter::Bilinear => (1.0 - x).max(0.0),
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Filter::Bicubic => "bicubic",
            Filter::Bilinear => "bilinear",
        })
    }
}

/// Keys' kernel; the order of operations is Pillow's, since the weights must round alike.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// An 8-bit image, rows top-down, channels interleaved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pixels {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    pub data: Vec<u8>,
}

/// The source pixels of one output pixel along one axis, and their fixed-point weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Resizes to `width` x `height` and returns the window `columns` x `rows` of the result.
pub(crate) fn resize_window(
    image: &Pixels,
    (width, height): (usize, usize),
    (columns, rows): (Range<usize>, Range<usize>),
    filter: Filter,
) -> Pixels {
    let vertical = taps(image.height, height, rows, filter);
    let used = used_span(&vertical);
    let horizontal = taps(image.width, width, columns, filter);
    let narrow = resample_columns(image, &horizontal, used.clone());
    resample_rows(&narrow, &vertical, used.start)
}

/// The taps of the output pixels `window` when `input` pixels become `output`.
fn taps(input: usize, output: usize, window: Range<usize>, filter: Filter) -> Vec<Taps> {
    if input == output {
        return window.map(|first| Taps { first, weights: vec![1 << PRECISION_BITS] }).collect();
    }
    let scale = input as f64 / output as f64;
    window.map(|at| taps_at((at as f64 + 0.5) * scale, scale.max(1.0), input, filter)).collect()
}

/// The taps around `center`, a position in source pixels, with the filter stretched by `stretch`.
fn taps_at(center: f64, stretch: f64, input: usize, filter: Filter) -> Taps {
    let support = filter.support() * stretch;
    let inverse = 1.0 / stretch;
    let first = (center - support + 0.5).max(0.0) as usize;
    let end = ((center + support + 0.5) as usize).min(input);
    let exact: Vec<f64> = (first..end).map(|x| filter.weight((x as f64 - center + 0.5) * inverse)).collect();
    let sum: f64 = exact.iter().sum();
    let weights = exact.iter().map(|w| fixed_point(if sum == 0.0 { *w } else { w / sum })).collect();
    Taps { first, weights }
}

/// Rounds half away from zero to 22 fraction bits.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// The source rows that any of `taps` reads.
fn used_span(taps: &[Taps]) -> Range<usize> {
    let start = taps.iter().map(|t| t.first).min().unwrap_or(0);
    let end = taps.iter().map(|t| t.first + t.weights.len()).max().unwrap_or(0);
    start..end
}

/// Horizontal pass over the source rows `rows`.
fn resample_columns(image: &Pixels, taps: &[Taps], rows: Range<usize>) -> Pixels {
    let channels = image.channels;
    let mut data = Vec::with_capacity(rows.len() * taps.len() * channels);
    for y in rows.clone() {
        let row = &image.data[y * image.width * channels..][..image.width * channels];
        for tap in taps {
            let source = &row[tap.first * channels..][..tap.weights.len() * channels];
            match channels {
                3 => data.extend_from_slice(&blend::<3>(source, &tap.weights)),
                _ => data.extend_from_slice(&blend::<1>(source, &tap.weights)),
            }
        }
    }
    Pixels { width: taps.len(), height: rows.len(), channels, data }
}

/// One output pixel of `C` interleaved channels.
fn blend<const C: usize>(source: &[u8], weights: &[i32]) -> [u8; C] {
    let mut sums = [ROUND; C];
    for (pixel, weight) in source.chunks_exact(C).zip(weights) {
        for (sum, value) in sums.iter_mut().zip(pixel) {
            *sum += i32::from(*value) * weight;
        }
    }
    sums.map(clip)
}

/// Vertical pass; row 0 of `image` is source row `offset`.
fn resample_rows(image: &Pixels, taps: &[Taps], offset: usize) -> Pixels {
    let stride = image.width * image.channels;
    let mut data = Vec::with_capacity(taps.len() * stride);
    let mut sums = vec![0i32; stride];
    for tap in taps {
        sums.fill(ROUND);
        for (y, weight) in (tap.first - offset..).zip(&tap.weights) {
            for (sum, value) in sums.iter_mut().zip(&image.data[y * stride..][..stride]) {
                *sum += i32::from(*value) * weight;
            }
        }
        data.extend(sums.iter().map(|sum| clip(*sum)));
    }
    Pixels { width: image.width, height: taps.len(), channels: image.channels, data }
}

/// One half in the fixed-point format: the start of every sum, so that the final shift rounds.
const ROUND: i32 = 1 << (PRECISION_BITS - 1);

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test pattern of testdata/generate.py: blocks, edges and noise, so that over- and undershoot clip.
    fn pattern(width: usize, height: usize, channels: usize) -> Pixels {
        let mut state = 1u32;
        let mut data = Vec::new();
        for at in 0..width * height * channels {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (x, y) = ((at / channels) % width, at / channels / width);
            let noise = (state >> 24) as u8;
            data.push(if (x / 5 + y / 3) % 2 == 0 { noise } else { (noise & 1) * 255 });
        }
        Pixels { width, height, channels, data }
    }

    fn fnv1a(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
    }

    fn whole(image: &Pixels, width: usize, height: usize, filter: Filter) -> Pixels {
        resize_window(image, (width, height), (0..width, 0..height), filter)
    }

    #[test]
    fn equals_pillow_to_the_bit() {
        let mut cases = 0;
        for line in include_str!("testdata/resize.txt").lines().filter(|l| !l.starts_with('#')) {
            let word: Vec<&str> = line.split_whitespace().collect();
            let size: Vec<usize> = word[..5].iter().map(|w| w.parse().unwrap()).collect();
            let filter = if word[5] == "bicubic" { Filter::Bicubic } else { Filter::Bilinear };
            let got = whole(&pattern(size[0], size[1], size[2]), size[3], size[4], filter);
            assert_eq!(format!("{:016x}", fnv1a(&got.data)), word[6], "{line}");
            cases += 1;
        }
        assert!(cases >= 40, "only {cases} golden lines");
    }

    #[test]
    fn a_window_is_a_cut_of_the_whole() {
        let image = pattern(61, 47, 3);
        for (width, height) in [(30, 20), (61, 20), (100, 47), (90, 80)] {
            let full = whole(&image, width, height, Filter::Bicubic);
            let part = resize_window(&image, (width, height), (5..17, 3..19), Filter::Bicubic);
            let cut: Vec<u8> = (3..19).flat_map(|y| full.data[(y * width + 5) * 3..][..12 * 3].to_vec()).collect();
            assert_eq!(part.data, cut, "{width}x{height}");
        }
    }

    #[test]
    fn sums_of_full_range_pixels_stay_in_i32() {
        for (input, output) in [(1, 7), (2, 9), (3, 2), (5, 4), (16384, 1), (16384, 3), (3, 16384)] {
            for tap in taps(input, output, 0..output, Filter::Bicubic) {
                let reach: i64 = tap.weights.iter().map(|w| i64::from(w.abs())).sum();
                assert!(reach * 255 + i64::from(ROUND) < i64::from(i32::MAX), "{input} -> {output}");
            }
        }
    }

    #[test]
    fn the_same_size_is_a_copy() {
        let image = pattern(9, 8, 1);
        assert_eq!(whole(&image, 9, 8, Filter::Bilinear), image);
    }
}
