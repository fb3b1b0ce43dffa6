//! How the dimensions of a reshape correspond.

use std::ops::Range;

use vitc_ir::{Dim, Shape};

/// A run of dimensions of the operand that becomes a run of dimensions of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) from: Range<usize>,
    pub(crate) to: Range<usize>,
}

/// The finest correspondence between two shapes of the same count; `None` when they do not correspond (zero sizes).
/// Dimensions of one join the group before them, leading ones the first.
pub(crate) fn groups(from: &Shape, to: &Shape) -> Option<Vec<Group>> {
    let mut groups = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.rank() && j < to.rank() {
        let (i0, j0) = (i, j);
        let (mut a, mut b) = (from.0[i], to.0[j]);
        (i, j) = (i + 1, j + 1);
        while a != b {
            let (side, k, shape) = if behind(a, b) { (&mut a, &mut i, from) } else { (&mut b, &mut j, to) };
            *side = side.times(*shape.0.get(*k)?)?;
            *k += 1;
        }
        groups.push(Group { from: i0..i, to: j0..j });
    }
    let last: &mut Group = groups.last_mut()?;
    let unit = |d: &Dim| *d == Dim::fixed(1);
    if !from.0[i..].iter().all(unit) || !to.0[j..].iter().all(unit) {
        return None;
    }
    last.from.end = from.rank();
    last.to.end = to.rank();
    Some(groups)
}

/// A dimension, not one, that both shapes are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) dim: Dim,
    /// The dimension of the result that it belongs to.
    pub(crate) to: usize,
}

/// The fewest dimensions that both shapes are merges of; `None` where they have none (6 as 2 and 3, then as 3 and 2).
pub(crate) fn parts(from: &Shape, to: &Shape) -> Option<Vec<Part>> {
    let unit = Dim::fixed(1);
    let mut sources = from.0.iter().copied().filter(|d| *d != unit);
    let mut left = unit;
    let mut parts = Vec::new();
    for (to, &dim) in to.0.iter().enumerate() {
        let mut open = dim;
        while open != unit {
            if left == unit {
                left = sources.next()?;
            }
            let dim = if left.div_exact(open).is_some() { open } else { left };
            (left, open) = (left.div_exact(dim)?, open.div_exact(dim)?);
            parts.push(Part { dim, to });
        }
    }
    (left == unit && sources.next().is_none()).then_some(parts)
}

/// Whether the first product must grow to meet the second.
fn behind(a: Dim, b: Dim) -> bool {
    (a.size, a.batch) < (b.size, b.batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(dims: &[usize], batch_at: Option<usize>) -> Shape {
        let mut s = Shape::fixed(dims);
        if let Some(i) = batch_at {
            s.0[i].batch = true;
        }
        s
    }

    #[test]
    fn parts_are_what_both_shapes_merge() {
        let found = |from: &Shape, to: &Shape| parts(from, to).map(|p| p.iter().map(|p| (p.dim.size, p.to)).collect());
        let merged = shape(&[16, 4, 12], Some(1));
        assert_eq!(found(&shape(&[16, 1, 48], Some(1)), &merged), Some(vec![(16, 0), (1, 1), (4, 1), (12, 2)]));
        assert_eq!(found(&merged, &shape(&[16, 1, 48], Some(1))), Some(vec![(16, 0), (1, 1), (4, 2), (12, 2)]));
        assert_eq!(found(&shape(&[2, 1, 3], None), &shape(&[6, 1], None)), Some(vec![(2, 0), (3, 0)]));
        assert_eq!(found(&shape(&[2, 3], None), &shape(&[3, 2], None)), None);
        assert_eq!(found(&shape(&[1, 6], Some(0)), &shape(&[6, 1], Some(1))), None, "the batch is outermost");
    }

    #[test]
    fn groups_are_the_finest_correspondence() {
        let g = groups(&shape(&[1, 197, 576], Some(0)), &shape(&[1, 197, 3, 3, 64], Some(0))).unwrap();
        assert_eq!(g.iter().map(|g| g.to.clone()).collect::<Vec<_>>(), [0..1, 1..2, 2..5]);
        let g = groups(&shape(&[1, 3, 197], Some(0)), &shape(&[3, 197], Some(0))).unwrap();
        assert_eq!(g, [Group { from: 0..2, to: 0..1 }, Group { from: 2..3, to: 1..2 }]);
        let g = groups(&shape(&[1, 5, 1], Some(0)), &shape(&[1, 1, 5], Some(0))).unwrap();
        assert_eq!(g.len(), 2);
        assert!(groups(&shape(&[2, 3], None), &shape(&[7], None)).is_none());
    }
}
