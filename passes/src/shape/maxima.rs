//! Reductions as integers do them. The largest along dimensions is the larger of two halves until one element is left; halves of an
//! odd number share the element in the middle, which changes no maximum. Sums and means are of neighbouring dimensions.

use vitc_ir::{Op, ValueId};

use crate::clean::draft::{Draft, Rule};

/// The rules of this file.
pub(crate) const RULES: &[(&str, Rule)] = &[("max-of-halves", max_of_halves), ("sum-of-neighbours", sum_of_neighbours)];

fn max_of_halves(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::ReduceMax { axes, .. } = d.node(n).op.clone() else { return None };
    let (mut x, loc, shape) = (d.node(n).operands[0], d.loc(n), d.shape(d.node(n).result).clone());
    let lens = axes.iter().map(|&axis| d.shape(x).0[axis].as_fixed()).collect::<Option<Vec<_>>>()?;
    for (axis, mut len) in axes.into_iter().zip(lens) {
        while len > 1 {
            let half = len.div_ceil(2);
            let mut part = |start| d.push(Op::Slice { axis, start, len: half, step: 1 }, &[x], loc.clone());
            let (first, second) = (part(0)?, part(len - half)?);
            x = d.push(Op::Max {}, &[first, second], loc.clone())?;
            len = half;
        }
    }
    d.push(Op::Reshape { shape }, &[x], loc)
}

/// A sum or mean along dimensions that are not neighbours: along the last ones first.
fn sum_of_neighbours(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (mean, mut axes) = match &d.node(n).op {
        Op::ReduceMean { axes, .. } => (true, axes.clone()),
        Op::ReduceSum { axes, .. } => (false, axes.clone()),
        _ => return None,
    };
    axes.sort_unstable();
    let split = axes.windows(2).rposition(|w| w[1] != w[0] + 1)? + 1;
    let last = axes.split_off(split);
    let (x, loc, shape) = (d.node(n).operands[0], d.loc(n), d.shape(d.node(n).result).clone());
    let mut along = |x: ValueId, axes: Vec<usize>| {
        let op = if mean { Op::ReduceMean { axes, keep: true } } else { Op::ReduceSum { axes, keep: true } };
        d.push(op, &[x], loc.clone())
    };
    let inner = along(x, last)?;
    let outer = along(inner, axes)?;
    d.push(Op::Reshape { shape }, &[outer], loc)
}

#[cfg(test)]
mod tests {
    use vitc_ir::Op;

    use crate::clean::testing::{Build, count, inputs, outputs};

    #[test]
    fn a_maximum_over_odd_and_even_lengths_is_that_of_pairs() {
        let mut b = Build::new(3);
        let x = b.input(&[7, 5, 4]);
        let all = b.op(Op::ReduceMax { axes: vec![1, 3], keep: false }, &[x]);
        let kept = b.op(Op::ReduceMax { axes: vec![2], keep: true }, &[x]);
        b.m.output("all", all);
        b.m.output("kept", kept);
        let after = super::super::run(&b.m).unwrap();
        let images = inputs(&b.m, 5);
        assert_eq!(outputs(&b.m, &images), outputs(&after, &images));
        // 7, 4, 2 and 4, 2 elements to one, and 5, 3, 2
        assert_eq!((count(&after, "reduce_max"), count(&after, "max")), (0, 8));
    }

    #[test]
    fn sums_are_of_neighbours() {
        for keep in [false, true] {
            let mut b = Build::new(4);
            let x = b.input(&[3, 2, 5, 2]);
            let mean = b.op(Op::ReduceMean { axes: vec![2, 4], keep }, &[x]);
            let sum = b.op(Op::ReduceSum { axes: vec![4, 3, 1], keep }, &[x]);
            let whole = b.op(Op::ReduceSum { axes: vec![3, 2], keep }, &[x]);
            for (name, v) in [("mean", mean), ("sum", sum), ("whole", whole)] {
                b.m.output(name, v);
            }
            let after = super::super::run(&b.m).unwrap();
            let images = inputs(&b.m, 5);
            let (have, want) = (outputs(&after, &images), outputs(&b.m, &images));
            assert!(have.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{have:?} instead of {want:?}");
            assert_eq!((count(&after, "reduce_mean"), count(&after, "reduce_sum")), (2, 3));
        }
    }
}
