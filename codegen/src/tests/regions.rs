//! Steps without a barrier between them: which ones they are, and that threads far apart do not disturb each other.

use super::*;
use crate::Compiled;

const ROWS: usize = 29;
const WIDTH: usize = 24;

fn layernorm(m: &mut Module, x: ValueId, r: &mut Random) -> ValueId {
    let gamma = random_constant(m, r, Elem::I32, &[WIDTH], -5000, 5000);
    let beta = random_constant(m, r, Elem::I32, &[WIDTH], -100_000, 100_000);
    let op = Op::IntLayerNorm {
        epsilon: 1000,
        centred: true,
        guard: 4,
        norm_bits: 9,
        recip_bits: 13,
        shift: 12,
        zero_point: 120,
        to: Elem::U8,
    };
    node(m, op, &[x, gamma, beta])
}

/// A product with weights; a requantize to `to`, and the addition of `residual`.
fn linear(m: &mut Module, x: ValueId, n: usize, to: Elem, residual: Option<ValueId>, r: &mut Random) -> ValueId {
    let k = m.ty(x).shape.last_fixed().unwrap();
    let w = random_constant(m, r, Elem::I8, &[k, n], -128, 127);
    let mut inputs = vec![(Elem::I32, Access::Element)];
    let mut insts = vec![Inst::Load(0), Inst::RoundShr(0, 9)];
    let mut operands = vec![x, w];
    if let Some(residual) = residual {
        operands.push(residual);
        inputs.push((m.ty(residual).elem, Access::Element));
        insts.extend([Inst::Load(1), Inst::Add(1, 2)]);
    }
    let l = lane(m, &inputs, insts, to);
    node(m, Op::FusedMatMul { a_zero: 100, b_zero: 0, lane: l, to }, &operands)
}

/// What a transformer does with its tokens, to queries and keys, and then with its queries: seven steps each.
fn block() -> Module {
    let (mut m, r) = (module(), &mut Random(11));
    let x = input(&mut m, Elem::I16, batched(&[ROWS, WIDTH]));
    let y = layernorm(&mut m, x, r);
    let y = linear(&mut m, y, 3 * WIDTH, Elem::U8, None, r);
    let x = linear(&mut m, y, WIDTH, Elem::I16, Some(x), r);
    let x = node(&mut m, Op::IntClamp { lo: -30_000, hi: 30_000 }, &[x]);
    let y = layernorm(&mut m, x, r);
    let q = linear(&mut m, y, WIDTH, Elem::U8, None, r);
    let k = linear(&mut m, y, WIDTH, Elem::I8, None, r);
    let tokens = m.nodes.len();
    let keys = view(&mut m, Op::Transpose { perm: vec![0, 2, 1] }, &[k]);
    let l = lane(&mut m, &[(Elem::I32, Access::Element)], vec![Inst::Load(0)], Elem::I32);
    let scores = node(&mut m, Op::FusedMatMul { a_zero: 77, b_zero: 0, lane: l, to: Elem::I32 }, &[q, keys]);
    let table = constant(&mut m, Elem::I32, &[16], &(0..16).map(|i| (255 << 16) - (i << 19)).collect::<Vec<_>>());
    let e = node(&mut m, Op::IntExp { limit: 90_000, multiplier: 40, shift: 12, table_bits: 16 }, &[scores, table]);
    let sum = node(&mut m, Op::IntReduceSum { axis: 2, keep: true }, &[e]);
    let factor = node(&mut m, Op::IntReciprocal { numerator: 1 << 30 }, &[sum]);
    let inputs = [(Elem::I32, Access::Element), (Elem::I32, Access::Row)];
    let insts = vec![Inst::Load(0), Inst::Load(1), Inst::MulWide(0, 1), Inst::RoundShr(2, 30), Inst::Shl(3, 1)];
    let l = lane(&mut m, &inputs, insts, Elem::U8);
    let z = node(&mut m, Op::FusedMatMul { a_zero: 0, b_zero: 0, lane: l, to: Elem::U8 }, &[e, k, factor]);
    let x = linear(&mut m, z, WIDTH, Elem::I16, Some(x), r);
    let y = layernorm(&mut m, x, r);
    m.output("y", y);
    for (i, n) in m.nodes.iter_mut().enumerate().filter(|(_, n)| n.place.is_some()) {
        n.region = Some(if i < tokens { 1 } else { 2 });
    }
    m
}

fn compiled(m: &Module, tier: Tier) -> Compiled {
    compile(m, &Options { tier, ..Options::default() }).unwrap()
}

/// Bytes of the input and of the result for a batch.
fn example(m: &Module, batch: usize) -> (Vec<u8>, Vec<u8>) {
    let shape = m.ty(m.inputs[0].value).shape.at(batch);
    let (data, bytes) = data(&mut Random(5), Elem::I16, shape.iter().product(), (-20_000, 20_000));
    let expected = eval::run(m, &[eval::Tensor { shape, data }]).unwrap();
    (bytes, bytes_of(&expected[0]))
}

/// Whether the compiled module gives the evaluator's bits when threads are as far apart as they can be.
fn bears_skew(m: &Module, tier: Tier, batch: usize, order: &[usize]) -> bool {
    let (given, want) = example(m, batch);
    guarded::skewed(&compiled(m, tier), &[&given], &[want.len()], batch, order)[0] == want
}

#[test]
fn only_the_last_step_of_a_region_has_a_barrier() {
    let m = block();
    vitc_ir::verify::verify(&m).unwrap();
    for tier in Tier::available() {
        let compiled = compiled(&m, tier);
        let barriers: Vec<usize> =
            compiled.parts.steps.iter().enumerate().filter_map(|(i, s)| s.barrier.then_some(i)).collect();
        assert_eq!(barriers, [6, 13]);
        for region in compiled.parts.steps.chunk_by(|step, _| !step.barrier) {
            let rows = region[0].grain;
            for step in region {
                let per_row = step.items.per_batch / ROWS;
                assert_eq!((step.items.per_batch, step.grain), (ROWS * per_row, rows * per_row), "{}", step.name);
            }
        }
    }
}

#[test]
fn threads_far_apart_give_the_same_bits() {
    let m = block();
    for tier in Tier::available() {
        for (batch, threads) in [(1, 1), (1, 2), (1, 3), (2, 2), (3, 5), (3, 8)] {
            let forth: Vec<usize> = (0..threads).collect();
            let back: Vec<usize> = (0..threads).rev().collect();
            assert!(bears_skew(&m, tier, batch, &forth), "{tier:?}, batch {batch}, {threads} threads");
            assert!(bears_skew(&m, tier, batch, &back), "{tier:?}, batch {batch}, {threads} threads, last one first");
        }
    }
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let m = block();
    for tier in Tier::available() {
        let program = Arc::new(compiled(&m, tier).into_program().unwrap());
        for threads in 1..=8 {
            let mut session =
                Session::new(Arc::clone(&program), SessionOptions { threads, ..SessionOptions::default() }).unwrap();
            for batch in [1, 2, 5] {
                let (given, want) = example(&m, batch);
                let dims = [batch, ROWS, WIDTH];
                for _ in 0..20 {
                    let view = TensorView::new(vitc_runtime::Elem::I16, &dims, &given).unwrap();
                    let out = session.run(&[view], OutputForm::Raw).unwrap();
                    assert!(out[0].view().bytes() == want, "{tier:?}, batch {batch}, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn a_region_that_is_none_gives_other_bits() {
    // The queries in one region with the tokens whose keys they read.
    let mut mixed = block();
    mixed.nodes.iter_mut().filter(|n| n.region.is_some()).for_each(|n| n.region = Some(1));
    assert!(vitc_ir::verify::verify(&mixed).is_err());
    assert!(bears_skew(&mixed, Tier::Portable, 1, &[0]));
    assert!(!bears_skew(&mixed, Tier::Portable, 1, &[0, 1, 2]));

    // Memory used again inside a region: what layernorm writes for one thread's rows, over another's of the first product.
    let mut reused = block();
    let (first, last) = (reused.nodes[1].place, reused.nodes[5].place);
    assert!(first != last);
    reused.nodes[3].place = first;
    assert!(vitc_ir::verify::verify(&reused).is_err());
    assert!(bears_skew(&reused, Tier::Portable, 1, &[0]));
    assert!(!bears_skew(&reused, Tier::Portable, 1, &[1, 0]));
}
