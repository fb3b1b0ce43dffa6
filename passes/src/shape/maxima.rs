//! The largest along dimensions, as the larger of two halves until one element is left: what integers do pair by pair. Halves of an
//! odd number share the element in the middle, which changes no maximum.

use vitc_ir::{Op, ValueId};

use crate::clean::draft::{Draft, Rule};

/// The rule of this file.
pub(crate) const RULES: &[(&str, Rule)] = &[("max-of-halves", max_of_halves)];

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
}
