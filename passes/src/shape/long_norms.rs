//! LayerNorm of rows longer than the exact integer moments of one are: a norm over a whole image, as group norms of one group make
//! it. It is written out: means by halves of the row, differences, their squares, a root and a quotient, each an op of its own.

use vitc_ir::infer::LONGEST_NORM;
use vitc_ir::{Dim, Op, Shape, ValueId};

use crate::clean::draft::{Draft, Rule};

/// The rule of this file.
pub(crate) const RULES: &[(&str, Rule)] = &[("long-norm", write_out)];

fn write_out(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::LayerNorm { epsilon, centred } = d.node(n).op else { return None };
    let &[x, gamma, beta] = &d.node(n).operands[..] else { return None };
    let (shape, loc) = (d.shape(x).clone(), d.loc(n));
    let channels = shape.last_fixed().filter(|&c| c > LONGEST_NORM)?;
    // a sum of so many elements of 16 bits fits 32 bits
    let width =
        (1..=channels.isqrt()).rev().find(|w| channels.is_multiple_of(*w)).filter(|w| channels / w <= LONGEST_NORM)?;
    let rank = shape.rank();
    let mut halves = shape.clone();
    halves.0.truncate(rank - 1);
    halves.0.extend([Dim::fixed(width), Dim::fixed(channels / width)]);
    let push = |d: &mut Draft, op: Op, operands: &[ValueId]| d.push(op, operands, loc.clone());
    let mean = |d: &mut Draft, v: ValueId| {
        let v = push(d, Op::ReduceMean { axes: vec![rank], keep: true }, &[v])?;
        push(d, Op::ReduceMean { axes: vec![rank - 1], keep: true }, &[v])
    };
    let whole = d.push(Op::Reshape { shape: halves }, &[x], loc.clone())?;
    let rest = match centred {
        true => {
            let m = mean(d, whole)?;
            d.push(Op::Sub {}, &[whole, m], loc.clone())?
        }
        false => whole,
    };
    let square = d.push(Op::Mul {}, &[rest, rest], loc.clone())?;
    let variance = mean(d, square)?;
    let epsilon = d.floats("epsilon", &[], &[epsilon.0 as f32]);
    let variance = d.push(Op::Add {}, &[variance, epsilon], loc.clone())?;
    let deviation = d.push(Op::Sqrt {}, &[variance], loc.clone())?;
    let mut y = d.push(Op::Div {}, &[rest, deviation], loc.clone())?;
    y = d.push(Op::Reshape { shape: Shape(shape.0) }, &[y], loc.clone())?;
    if d.uniform(gamma) != Some(1.0) {
        y = d.push(Op::Mul {}, &[y, gamma], loc.clone())?;
    }
    if d.uniform(beta) != Some(0.0) {
        y = d.push(Op::Add {}, &[y, beta], loc)?;
    }
    Some(y)
}

#[cfg(test)]
mod tests {
    use vitc_ir::{Op, Real, infer::LONGEST_NORM};

    use crate::clean::testing::{Build, count, difference, inputs, outputs};

    #[test]
    fn rows_beyond_the_longest_are_written_out() {
        for (c, kept) in [(LONGEST_NORM, 1), (LONGEST_NORM + 2, 0), (LONGEST_NORM + 3, 1)] {
            for centred in [false, true] {
                let mut b = Build::new(7);
                let x = b.input(&[1, c]);
                let (gamma, beta) = (b.weights(&[c], 1.0), b.weights(&[c], 1.0));
                let y = b.op(Op::LayerNorm { epsilon: Real(1e-5), centred }, &[x, gamma, beta]);
                let m = b.done(y);
                let after = super::super::run(&m).unwrap();
                // 32771 is a prime: there are no halves of it
                assert_eq!(count(&after, "layernorm"), kept, "{c}");
                let images = inputs(&m, 3);
                assert!(difference(&outputs(&m, &images), &outputs(&after, &images)) < 1e-4);
            }
        }
    }
}
