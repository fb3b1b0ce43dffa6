//! Attention without softmax, in floats and in integers.

use super::gemm::accumulate;
use super::int::{fit, range};
use super::tensor::Data;
use super::{Call, Evaluated, Fault, misplaced};
use crate::op::Op;

/// Sizes of one matrix: rows of q, of k and v, columns of q and k, columns of v.
#[derive(Clone, Copy)]
struct Sizes {
    t: usize,
    u: usize,
    d: usize,
    e: usize,
}

impl Sizes {
    fn of(call: &Call) -> Sizes {
        let last = |i: usize| {
            let shape = call.operands[i].shape;
            (shape[shape.len() - 2], shape[shape.len() - 1])
        };
        let ((t, d), (u, e)) = (last(0), last(2));
        Sizes { t, u, d, e }
    }

    /// The matrices of q, k and v, one after another.
    fn each<'a, T>(self, q: &'a [T], k: &'a [T], v: &'a [T]) -> impl Iterator<Item = [&'a [T]; 3]> {
        let parts = q.chunks_exact(self.t * self.d).zip(k.chunks_exact(self.u * self.d));
        parts.zip(v.chunks_exact(self.u * self.e)).map(|((q, k), v)| [q, k, v])
    }
}

fn transposed<T: Copy>(x: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| x.iter().skip(c).step_by(columns).copied()).collect()
}

pub(super) fn float(call: &Call, epsilon: f64) -> Evaluated {
    let size @ Sizes { t, u, d, e } = Sizes::of(call);
    let [q, k, v] = [call.operands[0].f32()?, call.operands[1].f32()?, call.operands[2].f32()?];
    let mut out = Vec::with_capacity(call.shape.iter().product());
    for [q, k, v] in size.each(q, k, v) {
        let (mut sums, mut rows) = (vec![0.0; d * e], vec![0.0; t * e]);
        accumulate([d, u, e], &transposed(k, d), v, &mut sums);
        accumulate([t, d, e], q, &sums, &mut rows);
        let weights: Vec<f32> = (0..d).map(|c| k.iter().skip(c).step_by(d).sum()).collect();
        for (row, q) in rows.chunks_exact_mut(e).zip(q.chunks_exact(d)) {
            let divisor = q.iter().zip(&weights).map(|(q, w)| q * w).sum::<f32>() + epsilon as f32;
            row.iter_mut().for_each(|y| *y /= divisor);
        }
        out.extend(rows);
    }
    Ok(Data::F32(out))
}

pub(super) fn int(call: &Call) -> Evaluated {
    let Op::IntLinearAttention { q_zero, k_zero, v_zero, epsilon, numerator, shift, log2, zero_point, to } = *call.op
    else {
        return misplaced(call);
    };
    let size = Sizes::of(call);
    let (lo, hi) = range(to)?;
    let above = |n: usize, zero: i64| -> Result<Vec<i32>, Fault> {
        Ok(call.operands[n].i32()?.iter().map(|&x| (i64::from(x) - zero).max(0) as i32).collect())
    };
    let (q, k, v) = (above(0, q_zero)?, above(1, k_zero)?, call.operands[2].i32()?);
    let mut out = Vec::with_capacity(call.shape.iter().product());
    for [q, k, v] in size.each(&q, &k, &v) {
        let head = Head::of(size, k, v, v_zero)?;
        for q in q.chunks_exact(size.d) {
            let divisor = (head.dot(q) + epsilon).max(1);
            let r = if log2 { numerator >> log2_of(divisor) } else { (numerator + divisor / 2) / divisor };
            for column in 0..size.e {
                let product = i64::from(head.sum(q, column)?).checked_mul(r);
                let half = 1i64 << (shift - head.halvings - 1);
                let rounded = product.and_then(|p| p.checked_add(half));
                let y = rounded.ok_or_else(|| Fault::overflow("the product with the reciprocal leaves i64"))?;
                out.push((y >> (shift - head.halvings)).saturating_add(zero_point).clamp(lo, hi) as i32);
            }
        }
    }
    Ok(Data::narrow(to, out))
}

/// The position of the leading one, plus the bit below it.
fn log2_of(x: i64) -> u32 {
    let i = 63 - x.leading_zeros();
    i + if i > 0 { (x >> (i - 1) & 1) as u32 } else { 0 }
}

/// What a head's keys and values come to.
struct Head {
    /// `w` [d, e].
    weights: Vec<i32>,
    /// `n` [d].
    sums: Vec<i64>,
    /// `h`.
    halvings: u32,
    e: usize,
}

impl Head {
    fn of(size: Sizes, k: &[i32], v: &[i32], v_zero: i64) -> Result<Head, Fault> {
        let Sizes { d, e, .. } = size;
        let mut products = vec![0i64; d * e];
        let mut sums = vec![0i64; d];
        for (k, v) in k.chunks_exact(d).zip(v.chunks_exact(e)) {
            for (i, &k) in k.iter().enumerate() {
                sums[i] += i64::from(k);
                for (p, &v) in products[i * e..].iter_mut().zip(v) {
                    *p += i64::from(k) * (i64::from(v) - v_zero);
                }
            }
        }
        products.iter().try_for_each(|&p| fit(p, "a sum over the tokens").map(|_| ()))?;
        let most = products.iter().map(|p| p.unsigned_abs()).max().unwrap_or(0);
        let halvings = (64 - most.leading_zeros()).saturating_sub(14);
        let half = if halvings > 0 { 1i64 << (halvings - 1) } else { 0 };
        let weights = products.into_iter().map(|p| ((p + half) >> halvings) as i32).collect();
        Ok(Head { weights, sums, halvings, e })
    }

    fn dot(&self, q: &[i32]) -> i64 {
        q.iter().zip(&self.sums).map(|(&q, n)| i64::from(q) * n).sum()
    }

    fn sum(&self, q: &[i32], column: usize) -> Result<i32, Fault> {
        let weights = self.weights[column..].iter().step_by(self.e);
        fit(q.iter().zip(weights).map(|(&q, &w)| i64::from(q) * i64::from(w)).sum(), "a sum over the channels")
    }
}
