//! Copies of every shape, and maps that broadcast.

use super::*;

#[test]
fn movement_with_a_place_is_a_copy() {
    for elem in [Elem::U8, Elem::I16, Elem::I32, Elem::I64] {
        let mut m = module();
        let x = input(&mut m, elem, batched(&[4, 6, 5]));
        let t = node(&mut m, Op::Transpose { perm: vec![0, 3, 1, 2] }, &[x]);
        let r = view(&mut m, Op::Reshape { shape: batched(&[10, 12]) }, &[t]);
        let s = view(&mut m, Op::Slice { axis: 1, start: 9, len: 5, step: -2 }, &[r]);
        let s = node(&mut m, Op::Slice { axis: 2, start: 1, len: 7, step: 1 }, &[s]);
        let g = node(&mut m, Op::Gather { axis: 1, index: vec![4, 2, 0, 0, 1, 2, 3, 3] }, &[s]);
        let c = constant(&mut m, elem, &[1, 2, 7], &(0..14).collect::<Vec<_>>());
        let n = Shape(vec![Dim::N, 2.into(), 7.into()]);
        let e = view(&mut m, Op::Expand { shape: n }, &[c]);
        let y = node(&mut m, Op::Concat { axis: 1 }, &[e, g, s]);
        let pad = Op::Pad { before: vec![0, 1, 2], after: vec![0, 3, 0], value: 7.0.into() };
        let y = node(&mut m, pad, &[y]);
        let y = view(&mut m, Op::Transpose { perm: vec![0, 2, 1] }, &[y]);
        check(&mut m, y, 3, &[]);
    }
}

/// Planes as pixels with a border: rows shorter than a turn, of one and a half and of whole ones, every number of planes.
#[test]
fn planes_become_pixels() {
    for (planes, width, border) in [(3, 5, [1, 1]), (3, 24, [0, 2]), (1, 32, [3, 0]), (4, 17, [1, 1]), (2, 16, [0, 0])]
    {
        for (elem, value) in [(Elem::U8, 200.0), (Elem::I8, -7.0)] {
            let mut m = module();
            let x = input(&mut m, elem, batched(&[planes, 6, width]));
            let x = view(&mut m, Op::Transpose { perm: vec![0, 2, 3, 1] }, &[x]);
            let [before, after] = border;
            let pad = Op::Pad {
                before: vec![0, before, after, 0],
                after: vec![0, after, before, 4 - planes],
                value: value.into(),
            };
            let y = node(&mut m, pad, &[x]);
            check(&mut m, y, 3, &[]);
        }
    }
}

#[test]
fn reshapes_that_share_a_place_cost_nothing() {
    let mut m = module();
    let x = input(&mut m, Elem::U8, batched(&[4, 6]));
    let y = node(&mut m, Op::Transpose { perm: vec![0, 2, 1] }, &[x]);
    let z = view(&mut m, Op::Reshape { shape: batched(&[24]) }, &[y]);
    let place = m.nodes[0].place;
    m.nodes[1].place = place;
    m.output("y", z);
    let compiled = compile(&m, &Options::default()).unwrap();
    assert_eq!(compiled.parts.steps.len(), 1);
    m.outputs.clear();
    check(&mut m, z, 3, &[]);
}

#[test]
fn maps_broadcast_like_numpy() {
    let mut m = module();
    let x = input(&mut m, Elem::I16, batched(&[7, 13]));
    let p = input(&mut m, Elem::I16, shape(&[1, 7, 13]));
    let c = input(&mut m, Elem::I8, shape(&[13]));
    let r = input(&mut m, Elem::I32, batched(&[7, 1]));
    let s = input(&mut m, Elem::I32, shape(&[1]));
    let inputs = [
        (Elem::I16, Access::Element),
        (Elem::I16, Access::Element),
        (Elem::I8, Access::Channel),
        (Elem::I32, Access::Row),
        (Elem::I32, Access::Scalar),
    ];
    let insts = vec![
        Inst::Load(0),
        Inst::Load(1),
        Inst::Add(0, 1),
        Inst::Load(2),
        Inst::Mul(2, 3),
        Inst::Load(3),
        Inst::SelectLess(4, 5, 2, 5),
        Inst::Load(4),
        Inst::Max(6, 7),
        Inst::Shl(3, 9),
        Inst::Min(8, 9),
        Inst::Sub(10, 3),
        Inst::Widen(11),
        Inst::Const(1 << 40, Width::W64),
        Inst::Add(12, 13),
        Inst::Shr(14, 7),
        Inst::RoundShr(15, 3),
    ];
    let l = lane(&mut m, &inputs, insts, Elem::I16);
    let y = node(&mut m, Op::FusedMap { shape: batched(&[7, 13]), lane: l, to: Elem::I16 }, &[x, p, c, r, s]);
    check(&mut m, y, 1, &[(-32768, 32767), (-32768, 32767), (-128, 127), (-100000, 100000), (-500, 500)]);
}

#[test]
fn straight_maps_run_in_one_piece() {
    for n in [1usize, 7, 8, 100] {
        let mut m = module();
        let x = input(&mut m, Elem::I32, batched(&[n]));
        let y = input(&mut m, Elem::I16, batched(&[n]));
        let insts = vec![Inst::Load(0), Inst::Shr(0, 8), Inst::Load(1), Inst::Sub(1, 2)];
        let l = lane(&mut m, &[(Elem::I32, Access::Element), (Elem::I16, Access::Element)], insts, Elem::I8);
        let z = node(&mut m, Op::FusedMap { shape: batched(&[n]), lane: l, to: Elem::I8 }, &[x, y]);
        check(&mut m, z, 1, &[]);
    }
}

/// Channels of two blocks in turn, as convolutions with a depth multiplier leave them, and of three backwards.
#[test]
fn rows_in_turn_are_a_few_copies() {
    let blocks = |n: usize, turns: usize| (0..n).flat_map(move |i| (0..turns).map(move |j| j * n + i));
    for (turns, index) in [
        (2, blocks(20, 2).collect::<Vec<_>>()),
        (3, blocks(11, 3).map(|i| 32 - i).collect()),
        // the last block is shorter
        (2, blocks(20, 2).take(39).collect()),
    ] {
        let mut m = module();
        let x = input(&mut m, Elem::U8, batched(&[40, 3]));
        let x = node(&mut m, Op::Transpose { perm: vec![0, 2, 1] }, &[x]);
        let y = node(&mut m, Op::Gather { axis: 2, index }, &[x]);
        let copies = |m: &Module| compile(m, &Options::default()).unwrap().parts.steps.len();
        m.output("y", y);
        let all = copies(&m);
        assert!(all <= turns + 1, "{all} copies");
        m.outputs.clear();
        check(&mut m, y, 3, &[]);
    }
}
