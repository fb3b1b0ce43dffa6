//! Tensors whose content is known at import: constants of the model and the results of the exporter's shape arithmetic.
//! An element is linear in the batch, so that `Shape` of a batched tensor is known too.

use vitc_ir::Dim;

use crate::problem::{Fallible, invalid, unsupported};

/// `batch * N + constant` for a batch of `N >= 1`. Integers are exact up to 2^53; larger ones (`INT64_MAX` as the end of a
/// slice) are rounded, which no meaningful dimension can notice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Linear {
    pub batch: f64,
    pub constant: f64,
}

impl From<f64> for Linear {
    fn from(constant: f64) -> Linear {
        Linear { batch: 0.0, constant }
    }
}

impl From<Dim> for Linear {
    fn from(d: Dim) -> Linear {
        let size = d.size as f64;
        if d.batch { Linear { batch: size, constant: 0.0 } } else { size.into() }
    }
}

impl Linear {
    /// The number, when the batch does not matter.
    pub(crate) fn fixed(self) -> Option<f64> {
        (self.batch == 0.0).then_some(self.constant)
    }

    /// The dimension this stands for.
    pub(crate) fn dim(self) -> Option<Dim> {
        let (size, batch) = match (self.batch, self.constant) {
            (0.0, size) => (size, false),
            (size, 0.0) => (size, true),
            _ => return None,
        };
        let whole = size >= 0.0 && size <= (1u64 << 53) as f64 && size.fract() == 0.0;
        whole.then_some(Dim { size: size as usize, batch })
    }

    pub(crate) fn add(self, o: Linear) -> Linear {
        Linear { batch: self.batch + o.batch, constant: self.constant + o.constant }
    }

    pub(crate) fn sub(self, o: Linear) -> Linear {
        self.add(o.scale(-1.0))
    }

    pub(crate) fn scale(self, by: f64) -> Linear {
        // A zero factor times an absent part stays zero, also for infinite factors.
        let part = |v: f64| if v == 0.0 && by.is_infinite() { 0.0 } else { v * by };
        Linear { batch: part(self.batch), constant: self.constant * by }
    }

    pub(crate) fn mul(self, o: Linear) -> Option<Linear> {
        match (self.fixed(), o.fixed()) {
            (_, Some(by)) => Some(self.scale(by)),
            (Some(by), _) => Some(o.scale(by)),
            _ => None,
        }
    }

    /// Real quotient.
    pub(crate) fn div(self, o: Linear) -> Option<Linear> {
        match o.fixed() {
            Some(by) => {
                let batch = if self.batch == 0.0 { 0.0 } else { self.batch / by };
                Some(Linear { batch, constant: self.constant / by })
            }
            None => (self.constant == 0.0 && o.constant == 0.0).then(|| (self.batch / o.batch).into()),
        }
    }

    /// A rounding function applied to the quotient or sum; the batch part must be whole already.
    pub(crate) fn round(self, f: impl Fn(f64) -> f64) -> Option<Linear> {
        (self.batch.fract() == 0.0).then(|| Linear { batch: self.batch, constant: f(self.constant) })
    }

    /// Integer quotient, rounded towards zero.
    pub(crate) fn div_int(self, o: Linear) -> Option<Linear> {
        if o == Linear::from(0.0) {
            return None;
        }
        let quotient = self.div(o)?;
        if quotient.batch == 0.0 {
            return Some(quotient.constant.trunc().into());
        }
        // With a batch part, rounding towards zero is rounding down for positive values only.
        (quotient.batch > 0.0 && quotient.constant >= 0.0).then(|| quotient.round(f64::floor)).flatten()
    }

    /// Remainder with the sign of the divisor (ONNX `Mod`, fmod = 0).
    pub(crate) fn rem(self, o: Linear) -> Option<Linear> {
        let by = o.fixed().filter(|&by| by != 0.0)?;
        (self.batch % by == 0.0).then(|| (self.constant - by * (self.constant / by).floor()).into())
    }

    /// Whether this is at least the other, when that is the same for every batch.
    pub(crate) fn at_least(self, o: Linear) -> Option<bool> {
        let Linear { batch, constant } = self.sub(o);
        let at_one = batch + constant;
        match batch {
            0.0 => self.constant.partial_cmp(&o.constant).map(std::cmp::Ordering::is_ge),
            _ if batch > 0.0 && at_one >= 0.0 => Some(true),
            _ if batch < 0.0 && at_one < 0.0 => Some(false),
            _ => None,
        }
    }
}

/// Element type of known content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Int,
    F32,
    /// `float64`, alive only between constants.
    F64,
}

impl Kind {
    pub(crate) fn is_float(self) -> bool {
        matches!(self, Kind::F32 | Kind::F64)
    }

    /// A result rounded to what this type can hold.
    pub(crate) fn round(self, v: Linear) -> Linear {
        match self {
            Kind::F32 => Linear { batch: f64::from(v.batch as f32), constant: f64::from(v.constant as f32) },
            _ => v,
        }
    }
}

/// A tensor with known content, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Known {
    pub kind: Kind,
    pub dims: Vec<usize>,
    pub data: Vec<Linear>,
}

/// Bytes of one element of [`Known`].
pub(crate) const ELEMENT_BYTES: usize = size_of::<Linear>();

impl Known {
    pub(crate) fn scalar(kind: Kind, v: impl Into<Linear>) -> Known {
        Known { kind, dims: Vec::new(), data: vec![v.into()] }
    }

    pub(crate) fn vector(kind: Kind, data: Vec<Linear>) -> Known {
        Known { kind, dims: vec![data.len()], data }
    }

    /// The same elements with other dimensions of the same count.
    pub(crate) fn with_dims(&self, dims: Vec<usize>) -> Known {
        Known { kind: self.kind, dims, data: self.data.clone() }
    }

    /// The only element.
    pub(crate) fn single(&self) -> Option<Linear> {
        match self.data.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }

    /// Elements as numbers; an error when one depends on the batch.
    pub(crate) fn numbers(&self) -> Fallible<Vec<f64>> {
        let dependent = || unsupported("a value that depends on the batch where a constant is needed");
        self.data.iter().map(|v| v.fixed().ok_or_else(dependent)).collect()
    }

    /// Elements as integers.
    pub(crate) fn integers(&self) -> Fallible<Vec<i64>> {
        if self.kind.is_float() {
            return Err(invalid("floats where integers are needed"));
        }
        // `as` saturates: INT64_MAX stays INT64_MAX.
        Ok(self.numbers()?.into_iter().map(|v| v as i64).collect())
    }
}

/// Number of elements of concrete dimensions.
pub(crate) fn count(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |acc, &d| acc.checked_mul(d))
}

/// The numpy broadcast of concrete dimensions.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |s: &[usize], i: usize| match (i + s.len()).checked_sub(rank) {
        Some(j) => s.get(j).copied().unwrap_or(1),
        None => 1,
    };
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Row-major strides.
pub(crate) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides: Vec<usize> = dims
        .iter()
        .rev()
        .scan(1usize, |acc, &d| {
            let s = *acc;
            *acc = acc.saturating_mul(d);
            Some(s)
        })
        .collect();
    strides.reverse();
    strides
}

/// Strides that read `from` as if it had the shape `to` it broadcasts to.
pub(crate) fn broadcast_strides(from: &[usize], to: &[usize]) -> Vec<usize> {
    let missing = to.len().saturating_sub(from.len());
    let own = strides(from).into_iter().zip(from).map(|(s, &d)| if d == 1 { 0 } else { s });
    std::iter::repeat_n(0, missing).chain(own).collect()
}

/// Visits the flat source position `offset + sum index * stride` of every index of `dims` in row-major order.
pub(crate) fn walk(dims: &[usize], steps: &[i64], offset: i64) -> impl Iterator<Item = usize> + use<> {
    let total = count(dims).unwrap_or(0);
    let mut index = vec![0usize; dims.len()];
    let dims = dims.to_vec();
    let steps = steps.to_vec();
    let mut at = offset;
    (0..total).map(move |_| {
        let here = at;
        for ((i, &d), &s) in index.iter_mut().zip(&dims).zip(&steps).rev() {
            *i += 1;
            at += s;
            if *i < d {
                break;
            }
            at -= s * d as i64;
            *i = 0;
        }
        usize::try_from(here).unwrap_or(usize::MAX)
    })
}

/// The elements of `x` at these flat positions.
pub(crate) fn pick(x: &Known, positions: impl Iterator<Item = usize>) -> Fallible<Vec<Linear>> {
    positions.map(|p| x.data.get(p).copied().ok_or_else(|| invalid("an index is out of range"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(batch: f64, constant: f64) -> Linear {
        Linear { batch, constant }
    }

    #[test]
    fn quotients_of_batch_multiples_are_exact_or_refused() {
        assert_eq!(n(4.0, 0.0).div_int(4.0.into()), Some(n(1.0, 0.0)));
        assert_eq!(n(4.0, 6.0).div_int(4.0.into()), Some(n(1.0, 1.0)));
        assert_eq!(n(4.0, 0.0).div_int(8.0.into()), None);
        assert_eq!(n(8.0, 0.0).div_int(n(2.0, 0.0)), Some(4.0.into()));
        assert_eq!(Linear::from(-7.0).div_int(2.0.into()), Some((-3.0).into()));
        assert_eq!(n(1.0, 0.0).div_int(0.0.into()), None);
        assert_eq!(n(4.0, -1.0).rem(4.0.into()), Some(3.0.into()));
        assert_eq!(n(3.0, 0.0).rem(4.0.into()), None);
    }

    #[test]
    fn comparisons_hold_for_every_batch_or_are_refused() {
        assert_eq!(n(1.0, 0.0).at_least((-1.0).into()), Some(true));
        assert_eq!(n(1.0, 0.0).at_least(1.0.into()), Some(true));
        assert_eq!(Linear::from(1.0).at_least(n(1.0, 0.0)), None);
        assert_eq!(n(-1.0, 0.0).at_least(0.0.into()), Some(false));
        assert_eq!(n(2.0, 1.0).at_least(n(2.0, 1.0)), Some(true));
        assert_eq!(n(1.0, 0.0).at_least(2.0.into()), None);
    }

    #[test]
    fn walking_with_strides_reads_a_transpose() {
        let positions: Vec<_> = walk(&[3, 2], &[1, 3], 0).collect();
        assert_eq!(positions, [0, 3, 1, 4, 2, 5]);
        assert_eq!(walk(&[], &[], 7).collect::<Vec<_>>(), [7]);
        assert_eq!(walk(&[0, 2], &[2, 1], 0).count(), 0);
        assert_eq!(broadcast_strides(&[3, 1], &[2, 3, 4]), [0, 1, 0]);
    }
}
