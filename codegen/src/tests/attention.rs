//! Attention as one kernel: every type of operand, sizes that fill nothing, heads that lie in a wider tensor.

use super::*;

/// The numbers of an exponential: `255 * 2^-(d * multiplier >> shift)/entries`, roughly.
#[derive(Clone, Copy)]
struct Exp {
    limit: i64,
    multiplier: i64,
    shift: u32,
    entries: usize,
    table_bits: u32,
}

/// As real models have it: differences and multiplier fit 16 bits.
const SHORT: Exp = Exp { limit: 40_000, multiplier: 32_000, shift: 21, entries: 64, table_bits: 16 };

impl Exp {
    fn table(self, m: &mut Module) -> ValueId {
        let first = 255i64 << self.table_bits;
        let values: Vec<i64> =
            (0..self.entries as i64).map(|i| first - first * i / (2 * self.entries as i64)).collect();
        constant(m, Elem::I32, &[self.entries], &values)
    }
}

/// An attention but for its operands.
struct Case {
    elems: [Elem; 3],
    zeros: [i64; 3],
    perm: Vec<usize>,
    exp: Exp,
    shift: u32,
    to: Elem,
}

impl Case {
    fn op(&self) -> Op {
        let Exp { limit, multiplier, shift, table_bits, .. } = self.exp;
        Op::FusedAttention {
            q_zero: self.zeros[0],
            k_zero: self.zeros[1],
            v_zero: self.zeros[2],
            limit,
            multiplier,
            exp_shift: shift,
            table_bits,
            numerator: 255 << 29,
            shift: self.shift,
            zero_point: if self.to == Elem::I8 { -3 } else { 100 },
            perm: self.perm.clone(),
            to: self.to,
        }
    }

    fn heads(&self, [tokens, heads, d]: [usize; 3]) {
        let (mut m, y) = self.split_heads([tokens, heads, d]);
        let ranges = self.elems.map(|e| if e == Elem::I16 { (-300, 300) } else { full(e) });
        check(&mut m, y, (tokens * 31 + d) as u64, &ranges);
    }

    /// Heads split out of `[N, tokens, heads * d]`, the result merged again, as transformers have it.
    fn split_heads(&self, [tokens, heads, d]: [usize; 3]) -> (Module, ValueId) {
        let mut m = module();
        let split = batched(&[tokens, heads, d]);
        let [q, k, v] = [(0, [0, 2, 1, 3]), (1, [0, 2, 3, 1]), (2, [0, 2, 1, 3])].map(|(n, perm)| {
            let x = input(&mut m, self.elems[n], batched(&[tokens, heads * d]));
            let x = view(&mut m, Op::Reshape { shape: split.clone() }, &[x]);
            view(&mut m, Op::Transpose { perm: perm.to_vec() }, &[x])
        });
        let table = self.exp.table(&mut m);
        let y = node(&mut m, self.op(), &[q, k, v, table]);
        (m, y)
    }
}

/// As transformers have it.
fn usual(exp: Exp) -> Case {
    let elems = [Elem::U8, Elem::I8, Elem::I8];
    Case { elems, zeros: [77, 0, 0], perm: vec![0, 2, 1, 3], exp, shift: 37, to: Elem::U8 }
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
        for size in [[13, 2, 10], [21, 1, 24]] {
            Case { elems, zeros, shift, to, ..usual(SHORT) }.heads(size);
        }
    }
}

#[test]
fn sizes_that_fill_nothing() {
    for size in [[1, 1, 1], [1, 3, 4], [2, 2, 7], [7, 1, 16], [16, 3, 8], [17, 2, 64], [61, 2, 33], [65, 1, 20]] {
        usual(SHORT).heads(size);
    }
    for size in [[64, 1, 12], [80, 1, 32], [128, 1, 4], [129, 1, 16], [11, 1, 130], [9, 1, 128]] {
        usual(SHORT).heads(size);
    }
    usual(SHORT).heads([197, 3, 64]);
    usual(SHORT).heads([1030, 1, 4]);
}

/// Both products on the tile unit: keys and d that fill no tile, several steps over d, keys in several chunks, signs, zero
/// points, a last block that computes rows again, more rows than have their weights in scratch at a time.
#[test]
fn tiles_of_every_size_and_sign() {
    use Elem::{I8, I16, U8};
    if Tier::AmxInt8.missing().is_some() {
        return;
    }
    let sizes = [[16, 2, 16], [17, 1, 80], [49, 2, 32], [50, 1, 72], [64, 1, 100], [33, 1, 130], [197, 1, 64]];
    let types = [
        ([U8, I8, I8], [120, 0, 0], U8, 37),
        ([I8, U8, U8], [-7, 99, 131], U8, 31),
        ([U8, U8, I8], [255, 128, -128], I16, 29),
        ([I8, I8, U8], [-128, 3, 128], I8, 36),
    ];
    for (i, [tokens, heads, d]) in sizes.into_iter().enumerate() {
        for j in 0..2 {
            let (elems, zeros, to, shift) = types[(i + 2 * j + i / 4) % 4];
            let case = Case { elems, zeros, shift, to, ..usual(SHORT) };
            let (mut m, y) = case.split_heads([tokens.max(32 * j), heads, d]);
            m.output("y", y);
            check_at(&m, Tier::AmxInt8, 1 + j, 1 + j, (tokens * 31 + d) as u64, &[]);
        }
    }
    let (mut m, y) = usual(SHORT).split_heads([530, 1, 17]);
    m.output("y", y);
    check_at(&m, Tier::AmxInt8, 1, 1, 3, &[]);
}

#[test]
fn attention_runs_on_tiles() {
    if Tier::AmxInt8.missing().is_some() {
        return;
    }
    for (elem, product) in [(Elem::U8, "tdpbusd"), (Elem::I8, "tdpbssd")] {
        let (mut m, y) = Case { elems: [elem, Elem::I8, Elem::I8], ..usual(SHORT) }.split_heads([197, 3, 64]);
        m.output("y", y);
        let compiled = compile(&m, &Options { tier: Tier::AmxInt8, ..Options::default() }).unwrap();
        let texts = compiled.kernels.iter().map(|k| crate::disassemble(&k.code[..k.instructions]));
        let texts: Vec<String> = texts.filter(|t| t.contains("tilerelease")).collect();
        let scores = texts.iter().find(|t| t.contains("vpermi2w")).expect("scores and softmax");
        assert_eq!(scores.matches(product).count(), 13);
        let values = texts.iter().find(|t| !t.contains("vpermi2w")).expect("values");
        assert_eq!(values.matches("tdpbusd").count(), 2 * 4 * 4, "a block without outputs and one with");
    }
}

#[test]
fn exponentials_that_need_more_than_sixteen_bits_or_have_other_tables() {
    for (limit, multiplier, shift) in [(70_000, 20_000, 21), (1_000, 2_000_000, 21), (60_000, 30_000, 15), (600, 1, 0)]
    {
        for (entries, table_bits) in [(64, 16), (16, 16), (1, 16), (64, 8), (32, 3), (64, 22), (256, 16)] {
            let exp = Exp { limit, multiplier, shift, entries, table_bits };
            usual(exp).heads([19, 1, 12]);
        }
    }
}

/// Relative positions of each head and masks of each window are added to the scores.
#[test]
fn biases_of_the_scores() {
    for (windows, heads, tokens, d) in [(1, 2, 5, 8), (3, 2, 49, 32), (4, 1, 64, 16), (2, 3, 17, 16), (2, 1, 70, 16)] {
        let mut m = module();
        let mut r = Random(tokens as u64);
        let case = Case { perm: vec![0, 1, 3, 2, 4], ..usual(SHORT) };
        let split = batched(&[windows, tokens, heads, d]);
        let [q, k, v] = [(0, [0, 1, 3, 2, 4]), (1, [0, 1, 3, 4, 2]), (2, [0, 1, 3, 2, 4])].map(|(n, perm)| {
            let x = input(&mut m, case.elems[n], batched(&[windows * tokens, heads * d]));
            let x = view(&mut m, Op::Reshape { shape: split.clone() }, &[x]);
            view(&mut m, Op::Transpose { perm: perm.to_vec() }, &[x])
        });
        let table = SHORT.table(&mut m);
        let positions = random_constant(&mut m, &mut r, Elem::I32, &[1, 1, heads, tokens, tokens], -40_000, 40_000);
        let masks = random_constant(&mut m, &mut r, Elem::I32, &[1, windows, 1, tokens, tokens], -(1 << 28), 0);
        let y = node(&mut m, case.op(), &[q, k, v, table, positions, masks]);
        check(&mut m, y, tokens as u64, &[]);
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
    let table = SHORT.table(&mut m);
    let case = Case { elems: [Elem::U8; 3], zeros: [99, 130, 128], perm: vec![0, 1, 2], ..usual(SHORT) };
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
    let table = SHORT.table(&mut m);
    let case = Case { zeros: [8, 0, 0], perm: vec![1, 0], shift: 35, to: Elem::I8, ..usual(SHORT) };
    let y = node(&mut m, case.op(), &[q, k, v, table]);
    check(&mut m, y, 5, &[]);
}

#[test]
fn attention_runs_in_leaves() {
    for tier in Tier::available().into_iter().filter(|t| t.is_wide()) {
        let mut m = module();
        let q = input(&mut m, Elem::U8, shape(&[20, 16]));
        let k = input(&mut m, Elem::I8, shape(&[20, 16]));
        let v = input(&mut m, Elem::I8, shape(&[20, 16]));
        let k = view(&mut m, Op::Transpose { perm: vec![1, 0] }, &[k]);
        let table = SHORT.table(&mut m);
        let y = node(&mut m, Case { perm: vec![0, 1], ..usual(SHORT) }.op(), &[q, k, v, table]);
        m.output("y", y);
        let compiled = compile(&m, &Options { tier, ..Options::default() }).unwrap();
        let texts = compiled.kernels.iter().filter(|k| k.name.contains(".leaf"));
        let texts: Vec<String> = texts.map(|k| crate::disassemble(&k.code[..k.instructions])).collect();
        assert!(texts.iter().any(|t| t.contains("vpermi2w zmm") && t.contains("vpmulhuw zmm")), "{texts:?}");
        assert!(texts.iter().any(|t| t.contains("vpunpcklwd zmm")), "{texts:?}");
    }
}
