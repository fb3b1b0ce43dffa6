//! Matrix products: float through a vectorised gemm, integer exactly by the same means.
//!
//! An integer product is computed on floats that cannot round: operands are integers, and K is cut into pieces so short
//! that no partial sum leaves the 24 (`f32`) or 53 (`f64`) bits in which floats are exact. The pieces are added in `i64`.
//! Order of summation and fused multiply-add then make no difference, and the result is the sum that the op table states.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, LinalgScalar};

use super::tensor::View;
use super::{Evaluated, Fault};
use crate::eval::Data;

/// `c += a * b` for row-major `a` [m, k], `b` [k, n], `c` [m, n].
pub(super) fn accumulate<T: LinalgScalar>([m, k, n]: [usize; 3], a: &[T], b: &[T], c: &mut [T]) {
    if k == 0 {
        return;
    }
    let a = ArrayView2::from_shape((m, k), a).expect("a has m*k elements");
    let b = ArrayView2::from_shape((k, n), b).expect("b has k*n elements");
    let mut c = ArrayViewMut2::from_shape((m, n), c).expect("c has m*n elements");
    general_mat_mul(T::one(), &a, &b, T::one(), &mut c);
}

/// A batched product with broadcast leading dimensions, as a list of plain ones.
pub(super) struct Plan {
    /// Rows, depth and columns of each product.
    pub sizes: [usize; 3],
    /// Offsets into `a` and `b`; the results follow one another.
    pub offsets: Vec<(usize, usize)>,
}

impl Plan {
    pub fn new(a: &[usize], b: &[usize], result: &[usize]) -> Plan {
        let ([a_outer @ .., m, k], [b_outer @ .., _, n]) = (a, b) else {
            return Plan { sizes: [0; 3], offsets: Vec::new() };
        };
        let outer = &result[..result.len() - 2];
        if b_outer.iter().all(|&d| d == 1) && a_outer.len() == outer.len() {
            let rows = outer.iter().product::<usize>() * m;
            return Plan { sizes: [rows, *k, *n], offsets: vec![(0, 0)] };
        }
        let offsets = offsets(a_outer, outer, m * k).into_iter().zip(offsets(b_outer, outer, k * n)).collect();
        Plan { sizes: [*m, *k, *n], offsets }
    }
}

/// Where each matrix of the broadcast starts.
fn offsets(from: &[usize], to: &[usize], matrix: usize) -> Vec<usize> {
    let mut list = vec![0];
    let added = to.len() - from.len();
    for (i, &size) in to.iter().enumerate() {
        let own = i.checked_sub(added).map_or(1, |j| from[j]);
        let step = |o: usize, at: usize| if own == 1 { o } else { o * own + at };
        list = list.iter().flat_map(|&o| (0..size).map(move |at| step(o, at))).collect();
    }
    list.iter().map(|o| o * matrix).collect()
}

/// Rows that start as the bias: one value, one for each column, or zeros.
pub(super) fn bias_rows<T: Copy>(bias: Option<&[T]>, zero: T, columns: usize, count: usize) -> Vec<T> {
    match bias {
        None | Some([]) => vec![zero; count],
        Some([one]) => vec![*one; count],
        Some(row) if columns > 0 => row.iter().copied().cycle().take(count / columns * columns).collect(),
        Some(_) => Vec::new(),
    }
}

/// `matmul`.
pub(super) fn matmul(operands: &[View], shape: &[usize]) -> Evaluated {
    let (a, b) = (operands[0].f32()?, operands[1].f32()?);
    let bias = operands.get(2).map(View::f32).transpose()?;
    let plan = Plan::new(operands[0].shape, operands[1].shape, shape);
    let [m, k, n] = plan.sizes;
    let mut out = bias_rows(bias, 0.0, n, shape.iter().product());
    for (&(at, bt), c) in plan.offsets.iter().zip(out.chunks_exact_mut(m * n)) {
        accumulate(plan.sizes, &a[at..at + m * k], &b[bt..bt + k * n], c);
    }
    Ok(Data::F32(out))
}

/// `int.matmul` on `a - a_zero` and `b - b_zero`: the `i32` accumulators.
pub(super) fn matmul_int(
    a: &View,
    b: &View,
    bias: Option<&[i32]>,
    zeros: [i64; 2],
    shape: &[usize],
) -> Result<Vec<i32>, Fault> {
    let plan = Plan::new(a.shape, b.shape, shape);
    let [m, k, n] = plan.sizes;
    let (a, b) = (Centred::new(a, zeros[0])?, Centred::new(b, zeros[1])?);
    let mut out = Vec::with_capacity(shape.iter().product());
    let product = Exact::of(a.values(), b.values(), a.most() * b.most());
    for (at, bt) in plan.offsets {
        let sums = product.run(plan.sizes, at..at + m * k, bt..bt + k * n);
        narrow(&sums, |i| bias.map_or(0, |v| v[if v.len() == 1 { 0 } else { i % n }]), &mut out)?;
    }
    Ok(out)
}

/// Adds the bias and checks that the sums fit `i32`.
pub(super) fn narrow(sums: &[i64], bias: impl Fn(usize) -> i32, out: &mut Vec<i32>) -> Result<(), Fault> {
    for (i, &sum) in sums.iter().enumerate() {
        let sum = sum.saturating_add(bias(i).into());
        out.push(i32::try_from(sum).map_err(|_| Fault::overflow(format!("the accumulator {sum} does not fit i32")))?);
    }
    Ok(())
}

/// An integer operand less its zero point.
pub(super) struct Centred {
    values: Vec<i32>,
    /// Largest magnitude, at least 1.
    most: i64,
}

impl Centred {
    pub fn new(x: &View, zero: i64) -> Result<Centred, Fault> {
        let zero = i32::try_from(zero)
            .ok()
            .filter(|z| z.unsigned_abs() <= 1 << 16)
            .ok_or_else(|| Fault::overflow(format!("the zero point {zero} is beyond 2^16")))?;
        if !super::narrow(x.elem()) {
            return Err(Fault::eval(format!("a product of {}", x.elem())));
        }
        let values: Vec<i32> = x.i32()?.iter().map(|v| v - zero).collect();
        let most = values.iter().fold(1, |most, v| v.unsigned_abs().max(most)).into();
        Ok(Centred { values, most })
    }

    pub fn values(&self) -> &[i32] {
        &self.values
    }

    /// The largest magnitude.
    pub fn most(&self) -> i64 {
        self.most
    }
}

/// How to multiply two operands exactly.
pub(super) enum Exact {
    /// In `f32`, K in pieces of this length.
    Single { a: Vec<f32>, b: Vec<f32>, piece: usize },
    /// In `f64`.
    Double { a: Vec<f64>, b: Vec<f64>, piece: usize },
}

impl Exact {
    /// For values whose products are at most `most`.
    pub fn of(a: &[i32], b: &[i32], most: i64) -> Exact {
        let single = (1i64 << 24) / most;
        if single >= 64 {
            let float = |x: &[i32]| x.iter().map(|&v| v as f32).collect();
            Exact::Single { a: float(a), b: float(b), piece: single as usize }
        } else {
            let float = |x: &[i32]| x.iter().map(|&v| v.into()).collect();
            Exact::Double { a: float(a), b: float(b), piece: ((1i64 << 53) / most) as usize }
        }
    }

    /// The sums of one product of parts of the operands.
    pub fn run(&self, sizes: [usize; 3], a: std::ops::Range<usize>, b: std::ops::Range<usize>) -> Vec<i64> {
        match self {
            Exact::Single { a: x, b: y, piece } => pieces(sizes, &x[a], &y[b], *piece, |v| v as i64),
            Exact::Double { a: x, b: y, piece } => pieces(sizes, &x[a], &y[b], *piece, |v| v as i64),
        }
    }
}

fn pieces<T: LinalgScalar>(
    [m, k, n]: [usize; 3],
    a: &[T],
    b: &[T],
    piece: usize,
    exact: impl Fn(T) -> i64,
) -> Vec<i64> {
    let mut sums = vec![0i64; m * n];
    let mut partial = vec![T::zero(); m * n];
    let a = ArrayView2::from_shape((m, k), a).expect("a has m*k elements");
    for start in (0..k).step_by(piece) {
        let end = k.min(start + piece);
        let b = ArrayView2::from_shape((end - start, n), &b[start * n..end * n]).expect("b has k*n elements");
        let mut c = ArrayViewMut2::from_shape((m, n), &mut partial).expect("c has m*n elements");
        general_mat_mul(T::one(), &a.slice_axis(Axis(1), (start..end).into()), &b, T::zero(), &mut c);
        sums.iter_mut().zip(&partial).for_each(|(sum, &v)| *sum += exact(v));
    }
    sums
}
