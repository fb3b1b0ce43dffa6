//! Second moments of what products read, on its grid: the Gram matrix `X^T X` of the integers `x - zero_point`, and their sums,
//! over all calibration inputs.
//!
//! They are exact integers, so that neither order nor threads matter. Only the lower triangle is kept, row by row.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};

/// Rows whose products `f32` sums exactly, in any order and with any rounding: 256 * 255^2 < 2^24.
const ROWS: usize = 256;
/// Rows of the matrix that are made at a time.
const PANEL: usize = 256;

/// Second moments of a matrix product's left operand, of `k` columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gram {
    k: usize,
    /// Element (i, j) with `j <= i` at `i (i + 1) / 2 + j`.
    products: Vec<i64>,
    sums: Vec<i64>,
    rows: u64,
}

impl Gram {
    pub(crate) fn new(k: usize) -> Gram {
        Gram { k, products: vec![0; k * (k + 1) / 2], sums: vec![0; k], rows: 0 }
    }

    /// Columns.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// Whether nothing was seen.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds whole rows of integers, `zero_point` taken off; none is beyond 255.
    pub(crate) fn add(&mut self, x: &[f32]) {
        let mut panel = vec![0f32; PANEL.min(self.k) * self.k];
        for rows in x.chunks(ROWS * self.k) {
            for top in (0..self.k).step_by(PANEL) {
                self.add_panel(rows, top, &mut panel);
            }
            for row in rows.chunks_exact(self.k) {
                self.sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x as i64);
            }
            self.rows += (rows.len() / self.k) as u64;
        }
    }

    /// Adds rows `top` and on of `x^T x`, as far as the diagonal.
    fn add_panel(&mut self, x: &[f32], top: usize, panel: &mut [f32]) {
        let (rows, bottom) = (x.len() / self.k, (top + PANEL).min(self.k));
        let x = ArrayView2::from_shape((rows, self.k), x).expect("whole rows of k elements");
        let size = (bottom - top, bottom);
        let mut panel = ArrayViewMut2::from_shape(size, &mut panel[..size.0 * size.1]).expect("a panel holds its rows");
        let columns = |range: std::ops::Range<usize>| x.slice_axis(Axis(1), range.into());
        general_mat_mul(1.0, &columns(top..bottom).t(), &columns(0..bottom), 0.0, &mut panel);
        for (i, row) in (top..bottom).zip(panel.rows()) {
            let to = &mut self.products[i * (i + 1) / 2..][..=i];
            to.iter_mut().zip(row).for_each(|(to, &x)| *to += x as i64);
        }
    }

    /// The mean product of columns `i` and `j`; about their means where `centred`.
    pub(crate) fn moment(&self, i: usize, j: usize, centred: bool) -> f64 {
        let (i, j) = (i.max(j), i.min(j));
        let mean = self.products[i * (i + 1) / 2 + j] as f64 / self.rows as f64;
        if centred { mean - self.mean(i) * self.mean(j) } else { mean }
    }

    /// The mean of column `i`, in steps from the zero point.
    pub(crate) fn mean(&self, i: usize) -> f64 {
        self.sums[i] as f64 / self.rows as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact_in_any_order() {
        let k = 300;
        let rows = |from: i32, n: i32| (0..n * k).map(|i| ((from + i) * 7919 % 511 - 255) as f32).collect::<Vec<_>>();
        let parts = [rows(0, 9), rows(1000, 1), rows(70, 290)];
        let gram = |order: [usize; 3]| {
            let mut all = Gram::new(k as usize);
            order.iter().for_each(|&i| all.add(&parts[i]));
            all
        };
        let one = gram([0, 1, 2]);
        assert_eq!(one, gram([2, 1, 0]));
        assert_eq!(one.moment(3, 20, false), one.moment(20, 3, false));
        let all = parts.concat();
        let direct =
            |i: usize, j: usize| all.chunks(k as usize).map(|r| r[i] as i64 * r[j] as i64).sum::<i64>() as f64 / 300.0;
        for (i, j) in [(0, 0), (299, 0), (270, 17), (299, 299)] {
            assert_eq!(one.moment(i, j, false), direct(i, j));
        }
    }
}
