//! A histogram that grows: bins are powers of two wide and aligned at zero, so that widening merges whole bins and the
//! result does not depend on the order in which tensors, or histograms, came.

/// Bins on each side of zero.
const HALF: usize = 2048;

/// Counts of values in bins `[i*width, (i+1)*width)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Histogram {
    /// The width of a bin is `2^exponent`.
    exponent: i32,
    /// `HALF` bins below zero, then as many above.
    counts: Vec<u64>,
}

impl Histogram {
    /// Counts of finite values, in bins just wide enough for their largest magnitude.
    pub(crate) fn of(values: &[f32], magnitude: f32) -> Histogram {
        let exponent = exponent_for(f64::from(magnitude));
        let scale = (-f64::from(exponent)).exp2() as f32;
        let mut counts = vec![0u64; 2 * HALF];
        for &x in values {
            let bin = (x * scale).floor() as i64 + HALF as i64;
            counts[bin.clamp(0, 2 * HALF as i64 - 1) as usize] += 1;
        }
        Histogram { exponent, counts }
    }

    /// Adds another's counts.
    pub(crate) fn merge(&mut self, other: &Histogram) {
        let mut other = other.clone();
        while self.exponent < other.exponent {
            self.widen();
        }
        while other.exponent < self.exponent {
            other.widen();
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
    }

    fn widen(&mut self) {
        let mut counts = vec![0; 2 * HALF];
        for (i, &count) in self.counts.iter().enumerate() {
            counts[i / 2 + HALF / 2] += count;
        }
        *self = Histogram { exponent: self.exponent + 1, counts };
    }

    fn width(&self) -> f64 {
        f64::from(self.exponent).exp2()
    }

    fn left(&self, bin: usize) -> f64 {
        (bin as f64 - HALF as f64) * self.width()
    }

    /// Values below which, and above which, lies at most the fraction `tail` of all.
    pub(crate) fn cut(&self, tail: f64) -> (f64, f64) {
        let allowed = tail * self.counts.iter().sum::<u64>() as f64;
        let low = self.passed(allowed, 0..2 * HALF);
        let high = self.passed(allowed, (0..2 * HALF).rev());
        (self.left(low), self.left(high) + self.width())
    }

    /// The first bin at which more than `allowed` values have been passed.
    fn passed(&self, allowed: f64, mut bins: impl Iterator<Item = usize>) -> usize {
        let mut sum = 0.0;
        let over = |&b: &usize| {
            sum += self.counts[b] as f64;
            sum > allowed
        };
        bins.find(over).unwrap_or(HALF)
    }

    /// Squared error when every value is replaced by `f(value)`, values taken at the middle of their bins.
    pub(crate) fn error(&self, f: impl Fn(f64) -> f64) -> f64 {
        self.points().map(|(x, count)| count * (x - f(x)).powi(2)).sum()
    }

    /// The middles of bins that are not empty, with what they count.
    pub(crate) fn points(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let bins = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        bins.map(|(b, &count)| (self.left(b) + self.width() / 2.0, count as f64))
    }
}

/// The smallest exponent whose bins reach a magnitude.
fn exponent_for(magnitude: f64) -> i32 {
    if magnitude <= 0.0 {
        return -126;
    }
    let e = (magnitude / HALF as f64).log2().floor() as i32 - 1;
    (e..e + 4).find(|&e| magnitude < HALF as f64 * f64::from(e).exp2()).unwrap_or(e + 4).max(-126)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_does_not_depend_on_order() {
        let parts = [vec![0.1f32, -0.3, 0.7], vec![5.0, -9.0], vec![0.0], vec![100.0, 1e-6]];
        let magnitude = |v: &Vec<f32>| v.iter().fold(0f32, |m, x| m.max(x.abs()));
        let build = |order: &[usize]| {
            let mut h = Histogram::of(&parts[order[0]], magnitude(&parts[order[0]]));
            order[1..].iter().for_each(|&i| h.merge(&Histogram::of(&parts[i], magnitude(&parts[i]))));
            h
        };
        assert_eq!(build(&[0, 1, 2, 3]), build(&[3, 2, 1, 0]));
        let all: Vec<f32> = parts.concat();
        assert_eq!(build(&[1, 3, 0, 2]), Histogram::of(&all, 100.0));
    }

    #[test]
    fn the_cut_leaves_the_tails() {
        let values: Vec<f32> = (0..1000).map(|i| i as f32 / 1000.0).collect();
        let (low, high) = Histogram::of(&values, 1.0).cut(0.1);
        assert!((low - 0.1).abs() < 0.01 && (high - 0.9).abs() < 0.01, "{low} {high}");
    }
}
