//! How the levels of activations of few bits lie among the 256 of a byte.
//!
//! A code of `b` bits decodes to a byte, and bytes are what products multiply: so any `2^b` levels can be had with the kernels
//! of 8 bits, and what rounds to them is one look-up in a table of 256 (`int.table` behind the `quantize`). Levels that lie where
//! the values are lose far less than evenly spaced ones:
//!
//! | codes | levels | decoded by |
//! |---|---|---|
//! | `uniform` | evenly spaced | nothing |
//! | `opt-m` | two regions with steps `d` and `2^m d` (OPT-m of MPTQ-ViT, V-2SF, PTQ4ViT); `m` and `d` by the least error | a shift |
//! | `lloyd` | those of least squared error (Lloyd 1957, Max 1960) | a table |
//! | `log2`, `log-sqrt2` | `255 * 2^(-k/f)` with `f` 1 or 2 (FQ-ViT, RepQ-ViT), for maps of softmax | a shift, and for odd `k` a constant |

use vitc_ir::{Elem, Quant};

use super::given::Grid;
use super::histogram::Histogram;
use super::output::OutputError;
use super::sites::Role;
use super::widths::{ByNode, Width};

/// Which levels activations of fewer than 8 bits have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codes {
    /// What loses least, as measured (docs/accuracy.md): logarithmic for maps of softmax, `lloyd` elsewhere.
    #[default]
    Auto,
    /// Evenly spaced.
    Uniform,
    /// Two regions whose steps are a power of two apart.
    OptM,
    /// Of least squared error.
    Lloyd,
    /// Powers of two for maps of softmax, `auto` elsewhere.
    Log2,
    /// Powers of the root of two for maps of softmax, `auto` elsewhere.
    LogSqrt2,
}

impl Codes {
    /// Every kind with its word.
    pub const WORDS: [(Codes, &'static str); 6] = [
        (Codes::Auto, "auto"),
        (Codes::Uniform, "uniform"),
        (Codes::OptM, "opt-m"),
        (Codes::Lloyd, "lloyd"),
        (Codes::Log2, "log2"),
        (Codes::LogSqrt2, "log-sqrt2"),
    ];

    /// The grid of values of a role that were seen, or `None` where levels are evenly spaced. Regions are chosen by the error of
    /// products where that is to be had.
    pub(crate) fn of_values(
        self,
        seen: &Histogram,
        (role, width): (Role, Width),
        output: Option<&OutputError>,
    ) -> Option<Grid> {
        match self {
            Codes::Uniform => None,
            Codes::OptM => two_regions(seen, (role, width), output),
            Codes::Auto | Codes::Lloyd | Codes::Log2 | Codes::LogSqrt2 => lloyd(seen, role, width),
        }
    }

    /// The grid of a map of softmax, or `None` where levels are evenly spaced. `seen` holds weights over the largest of their row.
    pub(crate) fn of_map(self, seen: Option<&Histogram>, width: Width) -> Option<Grid> {
        let levels = match self {
            Codes::Uniform => return None,
            Codes::Auto => logarithmic(1 << (width.bits() - 4)),
            Codes::Log2 => logarithmic(1),
            Codes::LogSqrt2 => largest(logarithmic(2), 1 << width.bits()),
            Codes::OptM => two_regions_of_map(seen?, width)?,
            Codes::Lloyd => lloyd_of_map(seen?, width),
        };
        let quant = Quant::per_tensor(1.0 / *levels.last()? as f64, 0);
        Some(Grid { levels: Some(Levels(levels)), ..Grid::narrow(Elem::U8, quant, width) })
    }

    /// Whether levels lie where values are.
    pub(crate) fn fits(self) -> bool {
        !matches!(self, Codes::Uniform | Codes::OptM)
    }

    /// Whether the choice of levels of a map needs to have seen it.
    pub(crate) fn looks_at_maps(self) -> bool {
        matches!(self, Codes::OptM | Codes::Lloyd)
    }
}

/// Codes by node: of what the product of that name reads.
pub type CodesOf = ByNode<Codes>;

/// Some of the integers of a byte, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Levels(Vec<i64>);

impl Levels {
    pub(crate) fn new(mut levels: Vec<i64>) -> Levels {
        levels.sort_unstable();
        levels.dedup();
        Levels(levels)
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[i64] {
        &self.0
    }

    /// The least and the largest.
    pub(crate) fn ends(&self) -> (i64, i64) {
        (self.0.first().copied().unwrap_or(0), self.0.last().copied().unwrap_or(0))
    }

    /// The nearest level, the smaller of two that are equally near.
    pub(crate) fn nearest(&self, q: i64) -> i64 {
        let above = self.0.partition_point(|&level| level < q);
        let near = &self.0[above.saturating_sub(1)..(above + 1).min(self.0.len())];
        near.iter().copied().min_by_key(|level| level.abs_diff(q)).unwrap_or(q)
    }

    /// The nearest level of every value of a byte.
    pub(crate) fn table(&self, elem: Elem) -> Vec<i64> {
        let (low, high) = elem.range().unwrap_or((0, -1));
        (low..=high).map(|q| self.nearest(q)).collect()
    }
}

/// `255 * 2^(-k / per_octave)` down to one, and zero: what logarithmic codes of a map decode to.
pub(crate) fn logarithmic(per_octave: usize) -> Vec<i64> {
    let level = |k: usize| (255.0 * 2f64.powf(-(k as f64) / per_octave as f64)).round() as i64;
    let mut levels: Vec<i64> = (0..8 * per_octave).map(level).chain([1, 0]).collect();
    levels.reverse();
    levels.dedup();
    levels
}

/// The largest levels, with zero, so many in all.
fn largest(levels: Vec<i64>, count: usize) -> Vec<i64> {
    let from = levels.len().saturating_sub(count - 1);
    let mut kept = vec![0];
    kept.extend(levels[from..].iter().filter(|&&level| level != 0));
    kept
}

/// The levels of two regions in steps of the finer: one bit says which, the others count. The finer one is below zero and the
/// coarser one above (post-GELU values), or the finer one also has small values above, or both lie about zero.
fn regions(width: Width, m: u32) -> [Vec<i64>; 3] {
    let (count, half) = (1i64 << (width.bits() - 1), 1i64 << (width.bits() - 2));
    let coarse = |from: i64, to: i64| (from..to).map(move |k| k << m);
    let by_sign = (1 - count..=0).chain(coarse(0, count));
    let by_size = (1 - half / 2..=count - half / 2).chain(coarse(0, count));
    let about_zero = (-half..half).chain(coarse(-half, half));
    [by_sign.collect(), by_size.collect(), about_zero.collect()]
}

/// Shares of what was seen that the coarser region is tried to reach.
fn shares() -> impl Iterator<Item = f64> {
    (1..=40).map(|i| f64::from(i) / 40.0)
}

/// The two regions of least squared error, of the values or of the products that read them.
fn two_regions(seen: &Histogram, (role, width): (Role, Width), output: Option<&OutputError>) -> Option<Grid> {
    /// What is tried around the scale that suits the values.
    const AROUND: [f64; 3] = [0.85, 1.0, 1.15];
    let all = (0..8).flat_map(|m| regions(width, m)).filter_map(|levels| best_scale(seen, role, Levels::new(levels)));
    let grid = |scale: f64, zero: i64, levels: &Levels| {
        let quant = Quant::per_tensor(scale, zero as i32);
        let levels = Levels(levels.0.iter().map(|q| q + zero).collect());
        Grid { levels: Some(levels), ..Grid::narrow(role.elem(), quant, width) }
    };
    let scored: Vec<(f64, Grid)> = match output {
        None => all.map(|(error, scale, zero, levels)| (error, grid(scale, zero, &levels))).collect(),
        Some(output) => {
            let around = |(_, scale, zero, levels): (f64, f64, i64, Levels)| {
                AROUND.map(|share| grid(scale * share, zero, &levels)).map(|grid| (output.on(&grid), grid))
            };
            all.flat_map(around).collect()
        }
    };
    scored.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, grid)| grid)
}

/// The scale and zero point at which levels have the least squared error, with that error.
fn best_scale(seen: &Histogram, role: Role, levels: Levels) -> Option<(f64, f64, i64, Levels)> {
    let (least, most) = role.elem().range()?;
    let reach = seen.points().map(|(x, _)| x.abs()).fold(0.0, f64::max);
    let (low, high) = levels.ends();
    let zero = if role == Role::Unsigned { -low } else { 0 };
    if low + zero < least || high + zero > most {
        return None;
    }
    let error = |share: f64| {
        let scale = reach * share / high as f64;
        let nearest = |x: f64| levels.nearest((x / scale).round_ties_even() as i64) as f64 * scale;
        (seen.error(nearest), scale)
    };
    let (error, scale) = shares().map(error).min_by(|a, b| a.0.total_cmp(&b.0)).filter(|(_, s)| s.is_normal())?;
    Some((error, scale, zero, levels))
}

/// The two regions of a map: both start from zero, and the coarser one reaches the row's maximum. The finer one is rounded by
/// thresholds (`ir/src/dither.rs`), which costs `f (1 - f)` at a fraction `f` of a step.
fn two_regions_of_map(seen: &Histogram, width: Width) -> Option<Vec<i64>> {
    let last = (1i64 << (width.bits() - 1)) - 1;
    let fitting = (0..8).take_while(|m| last << m <= 255);
    let error = |levels: &Levels| {
        let peak = levels.ends().1 as f64;
        let cost = |x: f64| {
            let y = x * peak;
            let f = y - y.floor();
            if y < last as f64 { f * (1.0 - f) } else { (y - levels.nearest(y.round() as i64) as f64).powi(2) }
        };
        seen.points().map(|(x, count)| count * cost(x)).sum::<f64>() / (peak * peak)
    };
    let all = fitting.map(|m| Levels::new((0..=last).chain((0..=last).map(|k| k << m)).collect()));
    let best = all.map(|levels| (error(&levels), levels)).min_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, levels)| levels.0)
}

/// The levels of least squared error of a map, with zero and the row's maximum, 255.
fn lloyd_of_map(seen: &Histogram, width: Width) -> Vec<i64> {
    let means = fitted(seen.points(), (1 << width.bits()) - 2);
    let levels = means.iter().map(|x| (255.0 * x).round().clamp(0.0, 255.0) as i64);
    Levels::new(levels.chain([0, 255]).collect()).0
}

/// The levels of least squared error on the finest grid that holds them.
fn lloyd(seen: &Histogram, role: Role, width: Width) -> Option<Grid> {
    let means = fitted(seen.points(), 1 << width.bits());
    let (low, high) = (means.first()?.min(0.0), means.last()?.max(0.0));
    let (scale, zero) = match role {
        Role::Unsigned => ((high - low) / 255.0, (-low / ((high - low) / 255.0)).round_ties_even()),
        _ => (high.max(-low) / 127.0, 0.0),
    };
    if !scale.is_normal() {
        return None;
    }
    let (least, most) = role.elem().range()?;
    let level = |x: &f64| ((x / scale).round_ties_even() + zero).clamp(least as f64, most as f64) as i64;
    let levels = Levels::new(means.iter().map(level).collect());
    let quant = Quant::per_tensor(scale, zero as i32);
    Some(Grid { levels: Some(levels), ..Grid::narrow(role.elem(), quant, width) })
}

/// The means of so many runs of values, in order, from which the values differ least: exactly, by dynamic programming over the
/// bins, given as values in order with their weights. Where the best last run begins rises with where it ends, so that halving finds all beginnings in `n log n` (Wu 1991).
pub(crate) fn fitted(seen: impl Iterator<Item = (f64, f64)>, count: usize) -> Vec<f64> {
    let runs = Runs::of(seen);
    let n = runs.len();
    let mut errors: Vec<f64> = (0..=n).map(|end| runs.error(0, end)).collect();
    let mut begins: Vec<Vec<usize>> = vec![vec![0; n + 1]];
    for _ in 1..count.min(n) {
        let mut next = vec![(f64::INFINITY, 0); n + 1];
        next[0] = (0.0, 0);
        extend(&runs, &errors, &mut next, (1, n), (0, n));
        errors = next.iter().map(|(error, _)| *error).collect();
        begins.push(next.iter().map(|(_, begin)| *begin).collect());
    }
    let (mut means, mut end) = (Vec::new(), n);
    for begins in begins.iter().rev().take_while(|_| n > 0) {
        let begin = begins[end];
        if begin < end {
            means.push(runs.mean(begin, end));
        }
        end = begin;
    }
    means.reverse();
    means
}

/// The best last run for every end within `ends`, which begins within `begins`.
fn extend(runs: &Runs, errors: &[f64], next: &mut [(f64, usize)], ends: (usize, usize), begins: (usize, usize)) {
    if ends.0 > ends.1 {
        return;
    }
    let end = usize::midpoint(ends.0, ends.1);
    let candidates = (begins.0..=begins.1.min(end)).map(|begin| (errors[begin] + runs.error(begin, end), begin));
    let Some(best) = candidates.min_by(|a, b| a.0.total_cmp(&b.0)) else { return };
    next[end] = best;
    extend(runs, errors, next, (ends.0, end - 1), (begins.0, best.1));
    extend(runs, errors, next, (end + 1, ends.1), (best.1, begins.1));
}

/// Sums over the bins before each.
struct Runs {
    weight: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Runs {
    fn of(seen: impl Iterator<Item = (f64, f64)>) -> Runs {
        let mut sums = Runs { weight: vec![0.0], first: vec![0.0], second: vec![0.0] };
        let mut total = [0.0; 3];
        for (x, count) in seen {
            total = [total[0] + count, total[1] + count * x, total[2] + count * x * x];
            sums.weight.push(total[0]);
            sums.first.push(total[1]);
            sums.second.push(total[2]);
        }
        sums
    }

    fn len(&self) -> usize {
        self.weight.len() - 1
    }

    fn mean(&self, begin: usize, end: usize) -> f64 {
        (self.first[end] - self.first[begin]) / (self.weight[end] - self.weight[begin])
    }

    /// Squared distances from the mean.
    fn error(&self, begin: usize, end: usize) -> f64 {
        if begin >= end {
            return 0.0;
        }
        let first = self.first[end] - self.first[begin];
        (self.second[end] - self.second[begin] - first * first / (self.weight[end] - self.weight[begin])).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integerize::sample::Normal;

    fn histogram(values: &[f32]) -> Histogram {
        Histogram::of(values, values.iter().fold(0f32, |a, x| a.max(x.abs())))
    }

    /// Squared error on a grid, by way of its bytes.
    fn error_on(values: &[f32], grid: &Grid) -> f64 {
        let (low, high) = grid.elem.range().unwrap();
        let integer = |x: f64| {
            let q = (x / grid.quant.scale_at(0)).round_ties_even() as i64 + i64::from(grid.quant.zero_point);
            grid.levels.as_ref().unwrap().nearest(q.clamp(low, high))
        };
        values.iter().map(|&x| (f64::from(x) - grid.real(integer(x.into()))).powi(2)).sum()
    }

    /// The least squared error of evenly spaced levels over shares of the range.
    fn uniform_error(values: &[f32], bits: u32) -> f64 {
        let ends = values.iter().fold((0f32, 0f32), |(a, b), &x| (a.min(x), b.max(x)));
        let error = |share: f64| {
            let (low, high) = (f64::from(ends.0) * share, f64::from(ends.1) * share);
            let step = (high - low) / f64::from((1 << bits) - 1);
            let near = |x: f64| ((x.clamp(low, high) - low) / step).round() * step + low;
            values.iter().map(|&x| (f64::from(x) - near(x.into())).powi(2)).sum::<f64>()
        };
        (1..=40).map(|i| error(f64::from(i) / 40.0)).fold(f64::INFINITY, f64::min)
    }

    /// What GELU makes of normal values, some of them large.
    fn gelu(normal: &mut Normal) -> Vec<f32> {
        let one = |x: f64| x / (1.0 + (-1.702 * x).exp());
        (0..20_000).map(|i| one(normal.next() * if i % 50 == 0 { 4.0 } else { 1.0 }) as f32).collect()
    }

    #[test]
    fn a_few_values_are_levels_themselves() {
        let values = [0.0f32, 1.0, 1.0, 2.5, 2.5, 2.5, -1.5];
        let means = fitted(histogram(&values).points(), 16);
        assert_eq!(means.len(), 4);
        assert!(means.iter().zip([-1.5, 0.0, 1.0, 2.5]).all(|(m, x)| (m - x).abs() < 2e-3), "{means:?}");
    }

    #[test]
    fn fitted_levels_are_the_best_of_all() {
        let values: Vec<f32> = [0.0, 0.1, 0.2, 3.0, 3.1, 7.0, 7.4, 7.5].to_vec();
        let seen = histogram(&values);
        let found = fitted(seen.points(), 3);
        let points: Vec<f64> = seen.points().map(|(x, _)| x).collect();
        let cost = |run: &[f64]| {
            let mean = run.iter().sum::<f64>() / run.len() as f64;
            run.iter().map(|x| (x - mean).powi(2)).sum::<f64>()
        };
        let mut least = f64::INFINITY;
        for a in 1..points.len() - 1 {
            for b in a + 1..points.len() {
                least = least.min(cost(&points[..a]) + cost(&points[a..b]) + cost(&points[b..]));
            }
        }
        let near = |x: &f64| found.iter().map(|m| (x - m).powi(2)).fold(f64::INFINITY, f64::min);
        let error: f64 = points.iter().map(near).sum();
        assert!((error - least).abs() < 1e-9, "{error} for {least}");
    }

    #[test]
    fn codes_that_fit_the_values_lose_less() {
        let mut normal = Normal::new(3);
        let positive = gelu(&mut normal);
        let both: Vec<f32> = positive.iter().enumerate().map(|(i, x)| if i % 2 == 0 { *x } else { -*x }).collect();
        for (values, role) in [(&positive, Role::Unsigned), (&both, Role::Unsigned), (&both, Role::Signed)] {
            for bits in [4, 5, 6] {
                let width = Width::of_activations(bits).unwrap();
                let seen = histogram(values);
                let of = |codes: Codes| codes.of_values(&seen, (role, width), None).unwrap();
                let (two, fitted) = (error_on(values, &of(Codes::OptM)), error_on(values, &of(Codes::Lloyd)));
                let even = uniform_error(values, bits);
                // of 5 bits and more, a byte has little room between two regions
                assert!(
                    (bits > 4 || two < 0.95 * even) && fitted < 0.6 * even,
                    "{role:?} {bits}: {two} {fitted} {even}"
                );
                for codes in [Codes::OptM, Codes::Lloyd] {
                    let levels = of(codes).levels.unwrap();
                    assert!(levels.0.len() <= 1 << bits, "{role:?} {bits} {codes:?}");
                }
            }
        }
    }

    #[test]
    fn maps_have_as_many_levels_as_codes() {
        let values: Vec<f32> = (0..5000).map(|i| (-(i as f32) / 500.0).exp()).collect();
        for bits in 4..8 {
            let width = Width::of_activations(bits).unwrap();
            for codes in [Codes::OptM, Codes::Lloyd, Codes::Log2, Codes::LogSqrt2] {
                let grid = codes.of_map(Some(&histogram(&values)), width).unwrap();
                let levels = grid.levels.unwrap().0;
                assert!(levels.len() <= 1 << bits && levels[0] == 0, "{codes:?} of {bits} bits: {levels:?}");
                assert_eq!((1.0 / grid.quant.scale_at(0)).round() as i64, levels[levels.len() - 1]);
            }
        }
        assert_eq!(logarithmic(1), [0, 1, 2, 4, 8, 16, 32, 64, 128, 255]);
        assert_eq!(largest(logarithmic(2), 16).len(), 16);
    }

    #[test]
    fn the_nearest_level_of_every_byte() {
        let levels = Levels::new(vec![10, 0, 255, 13]);
        assert_eq!([0, 4, 5, 6, 11, 12, 134, 135, 255].map(|q| levels.nearest(q)), [0, 0, 0, 10, 10, 13, 13, 255, 255]);
        assert_eq!(levels.table(Elem::U8).len(), 256);
    }
}
