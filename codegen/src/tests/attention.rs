//! Attention as one kernel: every type of operand, sizes that fill nothing, heads that lie in a wider tensor.

use super::*;

/// `2^16 * 255 * 2^(-i/64)`, roughly; only its first entry matters for staying within a byte.
fn exp_table(m: &mut Module) -> ValueId {
    let values: Vec<i64> = (0..64).map(|i| (255 << 16) - i * 130_000).collect();
    constant(m, Elem::I32, &[64], &values)
}

/// An attention over q, k and v as they are, k transposed; scores far apart enough to reach every part of the table.
struct Case {
    elems: [Elem; 3],
    zeros: [i64; 3],
    perm: Vec<usize>,
    shift: u32,
    to: Elem,
}

impl Case {
    fn op(&self) -> Op {
        Op::FusedAttention {
            q_zero: self.zeros[0],
            k_zero: self.zeros[1],
            v_zero: self.zeros[2],
            limit: 40_000,
            multiplier: 50_000,
            exp_shift: 21,
            table_bits: 16,
            numerator: 255 << 29,
            shift: self.shift,
            zero_point: if self.to == Elem::I8 { -3 } else { 100 },
            perm: self.perm.clone(),
            to: self.to,
        }
    }
}

/// Heads split out of `[N, tokens, heads * d]`, the result merged again, as transformers have it.
fn heads(elems: [Elem; 3], zeros: [i64; 3], [tokens, heads, d]: [usize; 3], to: Elem, shift: u32) {
    let mut m = module();
    let split = batched(&[tokens, heads, d]);
    let [q, k, v] = [(0, [0, 2, 1, 3]), (1, [0, 2, 3, 1]), (2, [0, 2, 1, 3])].map(|(n, perm)| {
        let x = input(&mut m, elems[n], batched(&[tokens, heads * d]));
        let x = view(&mut m, Op::Reshape { shape: split.clone() }, &[x]);
        view(&mut m, Op::Transpose { perm: perm.to_vec() }, &[x])
    });
    let table = exp_table(&mut m);
    let case = Case { elems, zeros, perm: vec![0, 2, 1, 3], shift, to };
    let y = node(&mut m, case.op(), &[q, k, v, table]);
    let ranges = case.elems.map(|e| if e == Elem::I16 { (-300, 300) } else { full(e) });
    check(&mut m, y, (tokens * 31 + d) as u64, &ranges);
}

#[test]
fn every_pair_of_types_and_zero_points() {
    use Elem::{I8, I16, U8};
    let cases = [
        ([U8, I8, I8], [120, 0, 0], U8, 37),
        ([U8, I8, I8], [0, 0, 5], I8, 33),
        ([I8, U8, U8], [-7, 99, 131], U8, 31),
        ([I8, I8, U8], [0, 3, 128], I8, 36),
        ([U8, U8, I8], [255, 128, -128], I16, 29),
        ([I16, I8, I8], [0, 0, 0], U8, 36),
    ];
    for (elems, zeros, to, shift) in cases {
        heads(elems, zeros, [13, 2, 10], to, shift);
    }
}

#[test]
fn sizes_that_fill_nothing() {
    for size in [[1, 1, 1], [1, 3, 4], [2, 2, 7], [7, 1, 16], [16, 3, 8], [17, 2, 64], [61, 2, 33], [65, 1, 20]] {
        heads([Elem::U8, Elem::I8, Elem::I8], [77, 0, 0], size, Elem::U8, 37);
    }
}

/// Queries, keys and values of different lengths, slices of one tensor, no batch, no transpose.
#[test]
fn cross_attention_over_slices() {
    let mut m = module();
    let x = input(&mut m, Elem::U8, shape(&[3, 9, 40]));
    let y = input(&mut m, Elem::U8, shape(&[3, 14, 40]));
    let part = |m: &mut Module, x, start, len| view(m, Op::Slice { axis: 2, start, len, step: 1 }, &[x]);
    let (q, k, v) = (part(&mut m, x, 3, 12), part(&mut m, y, 8, 12), part(&mut m, y, 21, 19));
    let k = view(&mut m, Op::Transpose { perm: vec![0, 2, 1] }, &[k]);
    let table = exp_table(&mut m);
    let case = Case { elems: [Elem::U8; 3], zeros: [99, 130, 128], perm: vec![0, 1, 2], shift: 37, to: Elem::U8 };
    let y = node(&mut m, case.op(), &[q, k, v, table]);
    check(&mut m, y, 5, &[]);
}

/// One matrix, its result transposed: columns of the result are not consecutive.
#[test]
fn a_transposed_result() {
    let mut m = module();
    let q = input(&mut m, Elem::U8, shape(&[50, 6]));
    let k = input(&mut m, Elem::I8, shape(&[6, 21]));
    let v = input(&mut m, Elem::I8, shape(&[21, 9]));
    let table = exp_table(&mut m);
    let elems = [Elem::U8, Elem::I8, Elem::I8];
    let case = Case { elems, zeros: [8, 0, 0], perm: vec![1, 0], shift: 35, to: Elem::I8 };
    let y = node(&mut m, case.op(), &[q, k, v, table]);
    check(&mut m, y, 5, &[]);
}
