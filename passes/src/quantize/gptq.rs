//! Rounding of weights that looks at what they multiply (GPTQ, Frantar et al. 2023, also known as Babai's nearest plane).
//!
//! For inputs `X` of T rows and weights `W` of [K, N], nearest rounding makes each weight's error small; what counts is the
//! error of the product, `|X (W - Q)|^2 = tr (W - Q)^T H (W - Q)` with `H = X^T X`. The weights of a column are rounded one
//! after another, those of the strongest inputs first, and each takes over what the errors before it leave in its direction:
//!
//! ```text
//! H + damping = R R^T, R upper triangular, in the order of rounding
//! for i in 0..K:  Q[i] = round(W[i] + sum over j < i of R[j,i] / R[i,i] * (W[j] - Q[j]))
//! ```
//!
//! which is what GPTQ computes with the Cholesky factor of the inverse, without the inverse. Then the scale of a column is
//! fitted to its integers by least squares. Where the product has a bias, `H` is taken about the inputs' means, and the bias
//! takes over what the means make of the errors. Columns are independent; everything is in f64 and in one order, so the
//! result depends on nothing but the sums in [`Gram`].

use super::gram::Gram;
use super::weights::{self, Channels};
use super::widths::Width;

/// What is added to the diagonal, of its mean.
const DAMPING: f64 = 0.01;
/// Scales that are tried for each column, times that of least squared error of the weights alone.
const SCALES: [f64; 4] = [1.0, 0.92, 0.85, 1.08];
/// Columns that are rounded together: their errors stay in the second-level cache.
const COLUMNS: usize = 64;

/// Weights [K, N] of a product, row by row.
pub(crate) struct Problem<'a> {
    pub(crate) weights: &'a [f32],
    /// Columns, N.
    pub(crate) columns: usize,
    pub(crate) bits: Width,
    /// Rows of the groups that have steps of their own, if any do.
    pub(crate) group: Option<usize>,
    /// The least scale of each column.
    pub(crate) floor: &'a [f64],
    /// Second moments of the K inputs.
    pub(crate) gram: &'a Gram,
    /// Whether there is a bias that can take over the mean error.
    pub(crate) biased: bool,
}

/// Rounded weights, and what the bias takes over, in steps of the input.
pub(crate) struct Rounded {
    pub(crate) weights: weights::Weights,
    pub(crate) bias: Option<Vec<f64>>,
}

/// Rounds the weights of a product.
pub(crate) fn round(problem: &Problem<'_>) -> Rounded {
    let (mut found, factors) = match problem.group {
        Some(rows) => {
            let grid = (problem.bits, rows);
            let (found, factors) = weights::quantize_groups(problem.weights, problem.columns, grid, problem.floor);
            (found, Some(factors))
        }
        None => {
            let shape = Channels { channels: problem.columns, inner: 1 };
            (weights::quantize(problem.weights, shape, problem.bits, problem.floor), None)
        }
    };
    let factor = Factor::of(problem.gram, problem.biased);
    for from in (0..problem.columns).step_by(COLUMNS) {
        let columns = from..(from + COLUMNS).min(problem.columns);
        Columns::new(problem, &factor, columns, factors.as_ref()).round(&mut found);
    }
    let bias = problem.biased.then(|| mean_errors(problem, &found));
    Rounded { weights: found, bias }
}

/// What the mean input makes of the errors of each column.
fn mean_errors(problem: &Problem<'_>, found: &weights::Weights) -> Vec<f64> {
    let n = problem.columns;
    let mut errors = vec![0.0; n];
    for (i, (weights, ints)) in problem.weights.chunks_exact(n).zip(found.ints.chunks_exact(n)).enumerate() {
        let mean = problem.gram.mean(i);
        for c in 0..n {
            errors[c] += mean * (f64::from(weights[c]) - f64::from(ints[c]) * found.scales[c]);
        }
    }
    errors
}

/// The damped moments as `L L^T`, with the inputs in reverse order of rounding, which makes `R` of the module's doc lower
/// triangular.
struct Factor {
    /// Input of each row, the one rounded last first.
    input: Vec<usize>,
    /// Row-major; above the diagonal nothing is read.
    lower: Vec<f64>,
}

impl Factor {
    fn of(gram: &Gram, centred: bool) -> Factor {
        let k = gram.k();
        let diagonal: Vec<f64> = (0..k).map(|i| gram.moment(i, i, centred).max(0.0)).collect();
        let mut input: Vec<usize> = (0..k).collect();
        input.sort_by(|&a, &b| diagonal[a].total_cmp(&diagonal[b]).then(b.cmp(&a)));
        let mean = diagonal.iter().sum::<f64>() / k as f64;
        let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        let mut lower = vec![0.0; k * k];
        for a in 0..k {
            for b in 0..=a {
                lower[a * k + b] = gram.moment(input[a], input[b], centred);
            }
            lower[a * k + a] += damping;
        }
        cholesky(&mut lower, k, damping);
        Factor { input, lower }
    }

    fn k(&self) -> usize {
        self.input.len()
    }
}

/// The lower Cholesky factor in place, rows in blocks so that the rows above are read once for each block. No pivot is below
/// the root of `least`, which rounding alone could bring about.
fn cholesky(a: &mut [f64], k: usize, least: f64) {
    const BLOCK: usize = 16;
    for top in (0..k).step_by(BLOCK) {
        let bottom = (top + BLOCK).min(k);
        for j in 0..bottom {
            let (above, below) = a.split_at_mut(j.max(top) * k);
            if j < top {
                let pivots = &above[j * k..][..=j];
                for row in below.chunks_exact_mut(k).take(bottom - top) {
                    row[j] = (row[j] - dot(&row[..j], &pivots[..j])) / pivots[j];
                }
            } else {
                let (pivots, rest) = below.split_at_mut(k);
                pivots[j] = (pivots[j] - dot(&pivots[..j], &pivots[..j])).max(0.5 * least).sqrt();
                for row in rest.chunks_exact_mut(k).take(bottom - j - 1) {
                    row[j] = (row[j] - dot(&row[..j], &pivots[..j])) / pivots[j];
                }
            }
        }
    }
}

/// A sum of products in eight lanes, always the same ones.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    let mut sums = [0f64; 8];
    for (a, b) in a8.iter().zip(b8) {
        (0..8).for_each(|i| sums[i] += a[i] * b[i]);
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// Some columns of a problem, rows in the order of the factor.
struct Columns<'a> {
    problem: &'a Problem<'a>,
    factor: &'a Factor,
    range: std::ops::Range<usize>,
    weights: Vec<f64>,
    /// `L^T W`.
    product: Vec<f64>,
    /// Rows of a group, and for each group and column by how many scales a step is greater, and what that is one part of.
    groups: (usize, Vec<[f64; 2]>),
}

/// A try: integers row by row, a scale and an error for each column.
struct Try {
    ints: Vec<f64>,
    scales: Vec<f64>,
    errors: Vec<f64>,
}

impl<'a> Columns<'a> {
    fn new(
        problem: &'a Problem<'a>,
        factor: &'a Factor,
        range: std::ops::Range<usize>,
        steps: Option<&weights::Factors>,
    ) -> Columns<'a> {
        let row = |&i: &usize| problem.weights[i * problem.columns..][range.clone()].iter().map(|&w| f64::from(w));
        let weights: Vec<f64> = factor.input.iter().flat_map(row).collect();
        let (n, mut product) = (range.len(), vec![0.0; weights.len()]);
        for (b, w) in weights.chunks_exact(n).enumerate() {
            let lower = &factor.lower[b * factor.k()..][..=b];
            product.chunks_exact_mut(n).zip(lower).for_each(|(to, &l)| add_scaled(to, l, w));
        }
        let pair = |&f: &u8| [f64::from(f), 1.0 / f64::from(f)];
        let groups = match steps {
            Some(f) => {
                (f.rows, f.of.chunks(problem.columns).flat_map(|of| of[range.clone()].iter().map(pair)).collect())
            }
            None => (factor.k().max(1), vec![[1.0; 2]; n]),
        };
        Columns { problem, factor, range, weights, product, groups }
    }

    /// Puts the best of the tries in place of what nearest rounding found.
    fn round(&self, found: &mut weights::Weights) {
        let starts: Vec<f64> = found.scales[self.range.clone()].to_vec();
        let mut best: Option<Try> = None;
        for share in SCALES {
            let scales: Vec<f64> = starts.iter().zip(self.floor()).map(|(s, floor)| (s * share).max(*floor)).collect();
            let tried = self.attempt(&scales);
            best = Some(match best {
                None => tried,
                Some(best) => self.better(best, &tried),
            });
        }
        let Some(best) = best else { return };
        let n = self.range.len();
        for (c, column) in self.range.clone().enumerate() {
            found.scales[column] = best.scales[c];
            for (a, &i) in self.factor.input.iter().enumerate() {
                found.ints[i * self.problem.columns + column] = best.ints[a * n + c] as i8;
            }
        }
    }

    fn floor(&self) -> &[f64] {
        &self.problem.floor[self.range.clone()]
    }

    /// Column by column the one of less error.
    fn better(&self, mut best: Try, other: &Try) -> Try {
        let n = self.range.len();
        for c in 0..n {
            if other.errors[c] >= best.errors[c] {
                continue;
            }
            best.errors[c] = other.errors[c];
            best.scales[c] = other.scales[c];
            (0..self.factor.k()).for_each(|a| best.ints[a * n + c] = other.ints[a * n + c]);
        }
        best
    }

    /// Rounds with these scales, then fits them: `L^T Q s` is `L^T W` less what is left of each row, so
    /// `s' = s (v . u) / (v . v)` with `u = L^T W` and `v` that.
    fn attempt(&self, scales: &[f64]) -> Try {
        let n = self.range.len();
        let (ints, left) = self.ints(scales);
        let mut dots = vec![[0.0; 3]; n];
        for (u, left) in self.product.chunks_exact(n).zip(left.chunks_exact(n)) {
            for c in 0..n {
                let v = u[c] - left[c];
                let [uu, uv, vv] = &mut dots[c];
                (*uu, *uv, *vv) = (*uu + u[c] * u[c], *uv + u[c] * v, *vv + v * v);
            }
        }
        let (mut fitted, mut errors) = (scales.to_vec(), vec![0.0; n]);
        for (c, [uu, uv, vv]) in dots.into_iter().enumerate() {
            let share = if vv > 0.0 && uv > 0.0 { (uv / vv).max(self.floor()[c] / scales[c]) } else { 1.0 };
            fitted[c] = scales[c] * share;
            errors[c] = uu - 2.0 * share * uv + share * share * vv;
        }
        Try { ints, scales: fitted, errors }
    }

    /// The integers, and for each what of `L^T (W - Q)` is left in its row.
    fn ints(&self, scales: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (n, k) = (self.range.len(), self.factor.k());
        let (low, high) = self.problem.bits.weight_levels();
        let inverse: Vec<f64> = scales.iter().map(|s| 1.0 / s).collect();
        let [mut ints, mut errors, mut left] = std::array::from_fn(|_| vec![0.0; k * n]);
        for a in (0..k).rev() {
            let taken = &mut left[a * n..][..n];
            for b in a + 1..k {
                add_scaled(taken, self.factor.lower[b * k + a], &errors[b * n..][..n]);
            }
            let pivot = self.factor.lower[a * k + a];
            let group = &self.groups.1[self.factor.input[a] / self.groups.0 * n..][..n];
            for c in 0..n {
                let w = self.weights[a * n + c];
                let [step, per_step] = group[c];
                let q = nearest((w + taken[c] / pivot) * inverse[c] * per_step).clamp(low.into(), high.into()) * step;
                ints[a * n + c] = q;
                errors[a * n + c] = w - q * scales[c];
                taken[c] += pivot * errors[a * n + c];
            }
        }
        (ints, left)
    }
}

fn add_scaled(to: &mut [f64], factor: f64, x: &[f64]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
}

/// Rounds half to even without a call: adding 1.5 * 2^52 leaves no fraction bits. What is too large for that is clamped anyway.
fn nearest(x: f64) -> f64 {
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    (x.clamp(-1e6, 1e6) + MAGIC) - MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integerize::sample::Normal;

    const K: usize = 48;
    const N: usize = 70;
    const T: usize = 400;

    /// Inputs of a few directions and some noise, on a grid about a mean that is not zero.
    fn inputs(normal: &mut Normal) -> Vec<f32> {
        let mixing: Vec<f64> = (0..8 * K).map(|_| normal.next()).collect();
        let row = |normal: &mut Normal| {
            let causes: Vec<f64> = (0..8).map(|_| normal.next()).collect();
            let value = |c: usize| -> f64 { causes.iter().enumerate().map(|(i, x)| x * mixing[i * K + c]).sum() };
            let noise: Vec<f64> = (0..K).map(|_| normal.next()).collect();
            (0..K).map(|c| f64::round(20.0 + 8.0 * value(c) + 3.0 * noise[c]).clamp(-128.0, 127.0) as f32).collect()
        };
        (0..T).flat_map(|_| -> Vec<f32> { row(normal) }).collect()
    }

    /// Squared error of the product, less what the bias takes over.
    fn output_error(x: &[f32], w: &[f32], q: &weights::Weights, bias: Option<&[f64]>) -> f64 {
        let mut total = 0.0;
        for row in x.chunks_exact(K) {
            for c in 0..N {
                let error = |k: usize| f64::from(w[k * N + c]) - f64::from(q.ints[k * N + c]) * q.scales[c];
                let e = (0..K).map(|k| f64::from(row[k]) * error(k)).sum::<f64>();
                total += (e - bias.map_or(0.0, |b| b[c])).powi(2);
            }
        }
        total
    }

    #[test]
    fn the_product_is_closer_than_with_nearest_rounding() {
        let mut normal = Normal::new(11);
        let x = inputs(&mut normal);
        let w: Vec<f32> = (0..K * N).map(|_| 0.05 * normal.next() as f32).collect();
        let mut gram = Gram::new(K);
        gram.add(&x);
        let floor = vec![0.0; N];
        for bits in [2, 3, 4, 6, 8].map(|b| Width::of_weights(b).unwrap()) {
            let nearest = weights::quantize(&w, Channels { channels: N, inner: 1 }, bits, &floor);
            let before = output_error(&x, &w, &nearest, None);
            for (biased, share) in [(false, 0.6), (true, 0.5)] {
                let problem =
                    Problem { weights: &w, columns: N, bits, group: None, floor: &floor, gram: &gram, biased };
                let found = round(&problem);
                let (low, high) = bits.weight_levels();
                assert!(found.weights.ints.iter().all(|&q| (low..=high).contains(&q.into())));
                let after = output_error(&x, &w, &found.weights, found.bias.as_deref());
                assert!(after < share * before, "{bits:?} {biased}: {after} of {before}");
            }
        }
    }

    #[test]
    fn groups_bring_the_product_closer() {
        let mut normal = Normal::new(12);
        let x = inputs(&mut normal);
        let w: Vec<f32> = (0..K * N).map(|_| 0.05 * normal.next() as f32).collect();
        let mut gram = Gram::new(K);
        gram.add(&x);
        let (bits, floor) = (Width::of_weights(4).unwrap(), vec![0.0; N]);
        let error = |group| {
            let problem = Problem { weights: &w, columns: N, bits, group, floor: &floor, gram: &gram, biased: true };
            let found = round(&problem);
            output_error(&x, &w, &found.weights, found.bias.as_deref())
        };
        let (grouped, one) = (error(Some(16)), error(None));
        assert!(grouped < 0.85 * one, "{grouped} of {one}");
    }

    #[test]
    fn the_factor_is_that_of_the_damped_moments() {
        let mut normal = Normal::new(5);
        let mut gram = Gram::new(K);
        gram.add(&inputs(&mut normal));
        let factor = Factor::of(&gram, false);
        let lower = |a: usize, b: usize| if b <= a { factor.lower[a * K + b] } else { 0.0 };
        let diagonal: f64 = (0..K).map(|i| gram.moment(i, i, false)).sum();
        for a in 0..K {
            for b in 0..K {
                let product: f64 = (0..K).map(|c| lower(a, c) * lower(b, c)).sum();
                let damping = if a == b { DAMPING * diagonal / K as f64 } else { 0.0 };
                let expected = gram.moment(factor.input[a], factor.input[b], false) + damping;
                assert!((product - expected).abs() < 1e-9 * diagonal, "{a} {b}: {product} for {expected}");
            }
        }
    }

    #[test]
    fn inputs_that_are_always_zero_are_harmless() {
        let mut gram = Gram::new(3);
        gram.add(&[0.0; 6]);
        let floor = [1e-3; 2];
        let bits = Width::of_weights(4).unwrap();
        let weights = [0.5f32, 0.0, -0.3, 0.0, 0.2, 0.0];
        let group = None;
        let problem = Problem { weights: &weights, columns: 2, bits, group, floor: &floor, gram: &gram, biased: true };
        let found = round(&problem);
        assert_eq!(found.bias, Some(vec![0.0; 2]));
        let back = f64::from(found.weights.ints[0]) * found.weights.scales[0];
        assert!((back - 0.5).abs() < 0.04, "{back}");
        assert!(found.weights.scales.iter().all(|s| *s >= 1e-3));
    }
}
