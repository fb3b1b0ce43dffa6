//! Attention without softmax: sizes that fill nothing, heads that lie in a wider tensor, both divisors.

use super::*;

/// The sizes of a head, and how q, k and v lie: rows or columns of tokens.
struct Case {
    heads: usize,
    tokens: [usize; 2],
    columns: [usize; 2],
    transposed: bool,
    k_zero: i64,
    v: Elem,
    log2: bool,
    to: Elem,
}

impl Case {
    fn check(&self, epsilon: i64) {
        let mut m = module();
        let ([t, u], [d, e]) = (self.tokens, self.columns);
        let operands: Vec<ValueId> = [(t, d, Elem::U8), (u, d, Elem::U8), (u, e, self.v)]
            .into_iter()
            .map(|(rows, columns, elem)| {
                if self.transposed {
                    let x = input(&mut m, elem, batched(&[self.heads, columns, rows]));
                    return view(&mut m, Op::Transpose { perm: vec![0, 1, 3, 2] }, &[x]);
                }
                let x = input(&mut m, elem, batched(&[rows, self.heads * columns]));
                let x = view(&mut m, Op::Reshape { shape: batched(&[rows, self.heads, columns]) }, &[x]);
                view(&mut m, Op::Transpose { perm: vec![0, 2, 1, 3] }, &[x])
            })
            .collect();
        let op = Op::IntLinearAttention {
            q_zero: if self.v == Elem::U8 { 128 } else { 0 },
            k_zero: self.k_zero,
            v_zero: if self.v == Elem::U8 { 131 } else { 0 },
            epsilon,
            numerator: (1 << 52) + 12_345_678_901,
            // From 54 on the zero point has no room beside the products.
            shift: if d % 2 == 1 { 55 } else { 52 },
            log2: self.log2,
            zero_point: if self.to == Elem::U8 { 120 } else { -3 },
            to: self.to,
        };
        let y = node(&mut m, op, &operands);
        check(&mut m, y, (t * 7 + d) as u64, &[]);
    }
}

const USUAL: Case = Case {
    heads: 2,
    tokens: [9, 9],
    columns: [16, 16],
    transposed: false,
    k_zero: 3,
    v: Elem::U8,
    log2: false,
    to: Elem::U8,
};

#[test]
fn sizes_that_fill_nothing() {
    for (tokens, columns) in [
        ([1, 1], [1, 1]),
        ([1, 2], [2, 3]),
        ([5, 3], [3, 5]),
        ([16, 16], [8, 8]),
        ([49, 49], [16, 16]),
        ([196, 196], [32, 32]),
        ([3, 7], [17, 33]),
    ] {
        Case { tokens, columns, ..USUAL }.check(0);
        Case { tokens, columns, transposed: true, heads: 3, ..USUAL }.check(1);
        Case { tokens, columns, k_zero: 140, heads: 1, ..USUAL }.check(0);
        Case { tokens, columns, k_zero: 0, v: Elem::I8, ..USUAL }.check(0);
    }
}

#[test]
fn heads_run_in_leaves() {
    for tier in Tier::available().into_iter().filter(|t| t.is_wide()) {
        let mut m = module();
        let [q, k, v] = [(); 3].map(|()| input(&mut m, Elem::U8, shape(&[2, 30, 16])));
        let op = Op::IntLinearAttention {
            q_zero: 0,
            k_zero: 0,
            v_zero: 128,
            epsilon: 0,
            numerator: 1 << 52,
            shift: 52,
            log2: false,
            zero_point: 128,
            to: Elem::U8,
        };
        let y = node(&mut m, op, &[q, k, v]);
        m.output("y", y);
        let compiled = compile(&m, &Options { tier, ..Options::default() }).unwrap();
        let mut leaves = compiled.kernels.iter().filter(|k| k.name.contains(".leaf"));
        let text = crate::disassemble(&leaves.next().map(|k| k.code[..k.instructions].to_vec()).unwrap());
        assert!(text.contains("vpdpwssd zmm") && text.contains("vpmullq zmm"), "{text}");
    }
}

#[test]
fn every_type_and_divisor() {
    for v in [Elem::U8, Elem::I8] {
        for to in [Elem::U8, Elem::I8, Elem::I16] {
            for log2 in [false, true] {
                Case { v, to, log2, ..USUAL }.check(5);
            }
        }
    }
}
