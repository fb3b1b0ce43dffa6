//! Fused kernels.

use proptest::prelude::*;

use super::*;
use crate::attr::ImageLayout;
use crate::attr::LaneName;
use crate::lane::{Access, Input, Inst, Program};

/// `op` with the lane program `p`, alone in a module.
fn fused(op: Op, program: Program, operands: &[Tensor]) -> Result<Tensor, Diagnostic> {
    let mut m = Module::new("fused", Stage::Fuse);
    let ids: Vec<_> = operands.iter().enumerate().map(|(i, t)| m.input(format!("x{i}"), type_of(t))).collect();
    m.lanes.insert("p".into(), program);
    let y = m.push(op, &ids, None).unwrap();
    m.output("y", y);
    run(&m, operands).map(|mut outputs| outputs.remove(0))
}

fn name() -> LaneName {
    LaneName("p".into())
}

fn input(elem: Elem, access: Access) -> Input {
    Input { elem, access }
}

fn requant(shift: u32, access: Access, output: Elem) -> Program {
    Program {
        inputs: vec![input(Elem::I32, Access::Element), input(Elem::I32, access)],
        insts: vec![Inst::Load(0), Inst::Load(1), Inst::MulWide(0, 1), Inst::RoundShr(2, shift)],
        output,
    }
}

#[test]
fn a_fused_product_equals_the_product_and_the_requantize() {
    let (a, b) = (spread(Elem::U8, &[2, 3, 40]), spread(Elem::I8, &[40, 300]));
    let m = Tensor::ints(Elem::I32, &[300], (0..300).map(|i| 100_000 + i * 77));
    let acc = eval(Op::IntMatMul { a_zero: 7, b_zero: 0 }, &[a.clone(), b.clone()]).unwrap();
    let plain = Op::IntRequant { axis: 2, x_zero: 0, shift: 28, zero_point: 0, to: Elem::I8 };
    let want = eval(plain, &[acc, m.clone()]).unwrap();
    let op = Op::FusedMatMul { a_zero: 7, b_zero: 0, lane: name(), to: Elem::I8 };
    assert_eq!(fused(op, requant(28, Access::Channel, Elem::I8), &[a, b, m]).unwrap(), want);
}

#[test]
fn the_channel_of_a_convolution_is_where_its_layout_says() {
    for (layout, axis, shape) in
        [(ImageLayout::ChannelsFirst, 1, [2, 3, 5, 4]), (ImageLayout::ChannelsLast, 3, [2, 5, 4, 3])]
    {
        let (x, w) = (spread(Elem::U8, &shape), spread(Elem::I8, &[6, 3, 2, 2]));
        let m = Tensor::ints(Elem::I32, &[6], (0..6).map(|i| 1000 - i * 300));
        let (strides, pads, dilations, groups, x_zero) = ([1, 1], [1, 0, 0, 1], [1, 1], 1, 9);
        let conv = Op::IntConv2d { strides, pads, dilations, groups, layout, x_zero };
        let acc = eval(conv, &[x.clone(), w.clone()]).unwrap();
        let plain = Op::IntRequant { axis, x_zero: 0, shift: 20, zero_point: 0, to: Elem::I16 };
        let want = eval(plain, &[acc, m.clone()]).unwrap();
        let op = Op::FusedConv2d { strides, pads, dilations, groups, layout, x_zero, lane: name(), to: Elem::I16 };
        assert_eq!(fused(op, requant(20, Access::Channel, Elem::I16), &[x, w, m]).unwrap(), want);
    }
}

#[test]
fn maps_read_every_kind_of_input() {
    let program = Program {
        inputs: vec![
            input(Elem::I16, Access::Element),
            input(Elem::U8, Access::Element),
            input(Elem::I32, Access::Channel),
            input(Elem::I32, Access::Row),
            input(Elem::I64, Access::Scalar),
            input(Elem::I8, Access::Table),
        ],
        insts: vec![
            Inst::Load(0),
            Inst::Load(1),
            Inst::Table { input: 5, index: 1, bias: 0 },
            Inst::Load(2),
            Inst::Load(3),
            Inst::Add(0, 2),
            Inst::Add(5, 3),
            Inst::Add(6, 4),
            Inst::Widen(7),
            Inst::Load(4),
            Inst::Add(8, 9),
        ],
        output: Elem::I64,
    };
    let x = spread(Elem::I16, &[2, 2, 3]);
    let y = Tensor::ints(Elem::U8, &[2, 1], [1, 200]);
    let channel = Tensor::ints(Elem::I32, &[3], [10, 20, 30]);
    let row = Tensor::ints(Elem::I32, &[2, 2, 1], [100, 200, 300, 400]);
    let scalar = Tensor::ints(Elem::I64, &[], [1 << 40]);
    let table = Tensor::ints(Elem::I8, &[256], (0..256).map(|i| i / 2 - 64));
    let mut want = Vec::new();
    for (i, x) in x.to_ints().into_iter().enumerate() {
        let looked_up = [0, 100][i / 3 % 2] - 64;
        want.push(x + looked_up + [10, 20, 30][i % 3] + [100, 200, 300, 400][i / 3] + (1 << 40));
    }
    let op = Op::FusedMap { shape: Shape::fixed(&[2, 2, 3]), lane: name(), to: Elem::I64 };
    let operands = [x, y, channel, row, scalar, table];
    assert_eq!(fused(op.clone(), program.clone(), &operands).unwrap().to_ints(), want);

    let mut few = program.clone();
    few.inputs.pop();
    assert_eq!(fused(op.clone(), few, &operands).unwrap_err().code, "eval");
    for wrong in [Access::Channel, Access::Row, Access::Scalar, Access::Table] {
        let mut other = program.clone();
        other.inputs[0].access = wrong;
        assert_eq!(fused(op.clone(), other, &operands).unwrap_err().code, "eval", "{wrong:?}");
    }
    let mut narrow = program;
    narrow.output = Elem::I32;
    assert_eq!(fused(op, narrow, &operands).unwrap_err().code, "eval");
}

#[test]
fn what_does_not_fit_is_reported_with_its_instruction() {
    let double = Program {
        inputs: vec![input(Elem::I32, Access::Element)],
        insts: vec![Inst::Load(0), Inst::Add(0, 0)],
        output: Elem::I32,
    };
    let x = Tensor::ints(Elem::I32, &[2], [5, i32::MAX.into()]);
    let op = Op::FusedMap { shape: Shape::fixed(&[2]), lane: name(), to: Elem::I32 };
    let error = fused(op, double, &[x]).unwrap_err();
    assert_eq!((error.code, error.place.as_deref()), ("overflow", Some("node 0")));
    assert!(error.message.contains("instruction 1"), "{error}");
}

#[test]
fn a_missing_program_is_an_error() {
    let op = Op::FusedMap { shape: Shape::fixed(&[1]), lane: LaneName("other".into()), to: Elem::I8 };
    let x = Tensor::ints(Elem::I8, &[1], [1]);
    assert_eq!(fused(op, requant(1, Access::Channel, Elem::I8), &[x]).unwrap_err().code, "eval");
}

/// An instruction that refers to earlier registers, from four numbers.
fn inst(at: u32, (kind, a, b, v): (u8, u32, u32, i64)) -> Inst {
    let (a, b, s) = (a % at, b % at, (v.unsigned_abs() % 20 + 1) as u32);
    match kind % 16 {
        0 => Inst::Add(a, b),
        1 => Inst::Sub(a, b),
        2 => Inst::Mul(a, b),
        3 => Inst::MulWide(a, b),
        4 => Inst::Widen(a),
        5 => Inst::Truncate(a),
        6 => Inst::Shl(a, s),
        7 => Inst::Shr(a, s),
        8 => Inst::RoundShr(a, s),
        9 => Inst::Min(a, b),
        10 => Inst::Max(a, b),
        11 => Inst::SelectLess(a, b, b, a),
        12 => Inst::Clamp(a, -v.abs(), v.abs()),
        13 => Inst::MulHigh15(a, b),
        14 => Inst::Table { input: 2, index: a, bias: -128 },
        _ => Inst::Const(v, crate::lane::Width::W32),
    }
}

proptest! {
    #[test]
    fn blocks_agree_with_the_definition(
        seeds in prop::collection::vec((any::<u8>(), any::<u32>(), any::<u32>(), -100_000i64..100_000), 1..12),
        values in prop::collection::vec(-40_000i64..40_000, 600),
        to in prop::sample::select(vec![Elem::U8, Elem::I8, Elem::I16, Elem::I32, Elem::I64]),
    ) {
        let inputs = vec![
            input(Elem::I32, Access::Element),
            input(Elem::I16, Access::Channel),
            input(Elem::I8, Access::Table),
        ];
        let mut program = Program { inputs, insts: vec![Inst::Load(0), Inst::Load(1)], output: to };
        for seed in seeds {
            program.insts.push(inst(program.insts.len() as u32, seed));
            if program.widths().is_err() {
                program.insts.pop();
            }
        }
        let x = Tensor::ints(Elem::I32, &[2, 300], values);
        let channel = spread(Elem::I16, &[300]);
        let table = spread(Elem::I8, &[256]);
        let (xs, cs, ts) = (x.to_ints(), channel.to_ints(), table.to_ints());
        let want: Result<Vec<i64>, String> = (0..600)
            .map(|i| program.eval(|n| if n == 0 { xs[i] } else { cs[i % 300] }, |_, e| ts[e]))
            .collect();
        let op = Op::FusedMap { shape: Shape::fixed(&[2, 300]), lane: name(), to };
        let got = fused(op, program, &[x, channel, table]).map(|t| t.to_ints());
        prop_assert_eq!(got.map_err(|e| e.message.replace("fused.map: ", "")), want);
    }
}
