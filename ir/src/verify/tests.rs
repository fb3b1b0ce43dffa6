//! One sound module for each kind of stage; each violation is one edit of it.

use bytes::Bytes;

use super::{limits, verify};
use crate::graph::{Def, Input, Module, Output, Value, ValueId};
use crate::op::Op;
use crate::text::parse;
use crate::types::{Dim, Elem, Quant, Real, Shape, TensorType};

const FLOAT: &str = r#"
module "m" stage clean {
  const @w : tensor<4x2xf32> = [1, 2, 3, 4, 5, 6, 7, 8]
  graph (%x: tensor<Nx3x2x2xu8>) -> (%3 "y") {
    %0 = normalize %x {mean = [0, 0, 0], std = [1, 1, 1]} : tensor<Nx3x2x2xf32>
    %1 = reshape %0 {shape = [N, 3, 4]} : tensor<Nx3x4xf32> loc("/flat")
    %2 = matmul %1, @w : tensor<Nx3x2xf32> loc("/fc")
    %3 = softmax %2 : tensor<Nx3x2xf32>
  }
}
"#;

const INTEGER: &str = r#"
module "m" stage integerize {
  scale @s0 = [0x1p-4, 0x1p-5]
  const @w : tensor<4x2xi8, q(@s0, 0, axis=1)> = [1, 2, 3, 4, 5, 6, 7, 8]
  const @f : tensor<1x3x2xf32> = [1, 2, 3, 4, 5, 6]
  graph (%x: tensor<Nx3x4xf32>, %u: tensor<Nx3x2xf32>) -> (%4 "y", %1 "copy", %5 "u") {
    %0 = quantize %x {to = u8} : tensor<Nx3x4xu8, q(0x1p-4, 128)>
    %1 = transpose %0 {perm = [0, 2, 1]} : tensor<Nx4x3xu8, q(0x1p-4, 128)>
    %2 = int.matmul %0, @w {a_zero = 128, b_zero = 0} : tensor<Nx3x2xi32, q(0x1p-8, 0)>
    %3 = dequantize %2 : tensor<Nx3x2xf32>
    %4 = reshape %3 {shape = [N, 6]} : tensor<Nx6xf32>
    %5 = quantize %u {to = i8} : tensor<Nx3x2xi8, q(0x1p-4, 0)>
  }
}
"#;

const PLAN: &str = r#"
module "m" stage plan {
  arena 128
  const @w : tensor<16x8xi8> layout dot4(8) = blob(0x0, 128)
  const @m : tensor<8xi32> = [1, 2, 3, 4, 5, 6, 7, 8]
  const @r : tensor<1x3x1xi32> = [1, 2, 3]
  const @t : tensor<256xi16> = blob(0x0, 512)
  const @one : tensor<i32> = [1]
  lane @rq (i32 element, i32 channel) -> i8 {
    %0 = load 0
    %1 = load 1
    %2 = mulwide %0, %1
    %3 = roundshr %2, 20
  }
  lane @map (i8 element, i32 channel, i32 row, i32 scalar, i16 table) -> i8 {
    %0 = load 0
    %1 = table 4, %0, -128
  }
  graph (%x: tensor<Nx3x16xf32>, %rows: tensor<Nx3x1xi32>) -> (%6 "y") {
    %0 = quantize %x {to = u8} : tensor<Nx3x16xu8, q(0x1p-4, 128)>
    %1 = fused.matmul %0, @w, @m {a_zero = 128, b_zero = 0, lane = @rq, to = i8} : tensor<Nx3x8xi8> at 0
    %2 = fused.map %1, @m, %rows, @one, @t {shape = [N, 3, 8], lane = @map, to = i8} : tensor<Nx3x8xi8> at 32
    %3 = reshape %2 {shape = [N, 24]} : tensor<Nx24xi8> at 32
    %4 = slice %3 {axis = 1, start = 0, len = 16, step = 1} : tensor<Nx16xi8>
    %5 = int.mul %4, %4 {a_zero = 0, b_zero = 0} : tensor<Nx16xi32, q(0x1p-8, 0)> at 64
    %6 = dequantize %5 : tensor<Nx16xf32>
  }
}
"#;

fn module(text: &str) -> Module {
    parse(text, Bytes::from_static(&[0; 512])).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The codes of the violations, in order.
fn codes(m: &Module) -> Vec<&'static str> {
    verify(m).err().unwrap_or_default().0.into_iter().map(|d| d.code).collect()
}

/// Each edit of the text `base`, `from` to `to`, gives exactly these violations.
fn check(base: &str, cases: &[(&str, &str, &[&str])]) {
    assert_eq!(verify(&module(base)), Ok(()));
    for (from, to, wanted) in cases {
        assert_eq!(base.matches(from).count(), 1, "{from}");
        assert_eq!(codes(&module(&base.replace(from, to))), *wanted, "{from} -> {to}");
    }
}

#[test]
fn float_stages() {
    check(
        FLOAT,
        &[
            ("stage clean", "stage shape", &[]),
            ("stage clean", "stage quantize", &[]),
            ("stage clean", "stage import", &["stage-op"]),
            ("stage clean {", "stage clean {\n  arena 64", &["place-early"]),
            ("softmax %2 : tensor<Nx3x2xf32>", "softmax %2 : tensor<Nx3x2xf32> at 64", &["place-early"]),
            ("softmax %2 :", "int.clamp %2 {lo = 0, hi = 1} :", &["stage-op", "type-rule"]),
            ("softmax %2", "softmax %2, %2", &["operand-count"]),
            ("softmax %2", "add %2", &["operand-count"]),
            ("matmul %1, @w", "matmul @w, %1", &["type-rule"]),
            ("%2 : tensor<Nx3x2xf32>", "%2 : tensor<Nx6xf32>", &["result-type"]),
            ("%2 : tensor<Nx3x2xf32>", "%2 : tensor<Nx3x2xi8>", &["result-type"]),
            ("%2 : tensor<Nx3x2xf32>", "%2 : tensor<Nx3x2xf32, q(1, 0)>", &["quant-elem"]),
        ],
    );
}

#[test]
fn quantizations() {
    check(
        INTEGER,
        &[
            ("q(0x1p-8, 0)", "q(0, 0)", &["quant-scale"]),
            ("q(0x1p-8, 0)", "q(-1, 0)", &["quant-scale"]),
            ("q(0x1p-8, 0)", "q(inf, 0)", &["quant-scale"]),
            ("q(0x1p-8, 0)", "q(nan, 0)", &["quant-scale"]),
            ("q(0x1p-8, 0)", "q(@s0, 0, axis=2)", &[]),
            ("q(0x1p-8, 0)", "q(@s0, 0, axis=1)", &["quant-axis"]),
            ("q(0x1p-8, 0)", "q(@s0, 0, axis=3)", &["quant-axis"]),
            ("q(0x1p-8, 0)", "q(@s0, 0, axis=0)", &["quant-axis"]),
            ("q(0x1p-8, 0)", "q(@s0, 0)", &["quant-axis"]),
            ("q(@s0, 0, axis=1)", "q(@s0, 128, axis=1)", &["quant-zero-point"]),
            ("q(@s0, 0, axis=1)", "q(@s0, -128, axis=1)", &[]),
            ("u8, q(0x1p-4, 128)>\n    %1", "u8, q(0x1p-4, 0)>\n    %1", &["movement-quant"]),
            ("i8, q(0x1p-4, 0)>", "i8>", &["missing-quant"]),
        ],
    );
}

#[test]
fn integer_stages_keep_floats_at_the_doors() {
    check(
        INTEGER,
        &[
            ("stage integerize", "stage fuse", &[]),
            ("stage integerize", "stage quantize", &["stage-op"]),
            ("stage integerize", "stage clean", &["stage-op"]),
            (
                "%4 = reshape %3 {shape = [N, 6]} : tensor<Nx6xf32>",
                "%4 = exp %3 : tensor<Nx3x2xf32>",
                &["stage-op", "float-inside"],
            ),
            ("%4 = reshape %3", "%4 = reshape %u", &["float-inside", "float-inside"]),
            ("quantize %u", "quantize %3", &["float-inside"]),
            ("-> (%4 \"y\", %1", "-> (%3 \"y\", %1", &[]),
            ("-> (%4 \"y\", %1", "-> (%0 \"y\", %1", &["float-inside"]),
            (
                "%4 = reshape %3 {shape = [N, 6]} : tensor<Nx6xf32>",
                "%4 = expand @f {shape = [1, 3, 2]} : tensor<1x3x2xf32>",
                &["float-inside", "float-inside"],
            ),
        ],
    );
}

#[test]
fn lane_programs() {
    check(
        PLAN,
        &[
            ("%3 = roundshr %2, 20", "%3 = roundshr %2, 64", &["lane-form"]),
            ("i16 table) -> i8", "f32 table) -> i8", &["lane-form", "lane-input"]),
            ("%1 = load 1", "%1 = load 2", &["lane-form"]),
            ("lane = @rq", "lane = @none", &["lane-missing"]),
            ("(i32 element, i32 channel) -> i8", "(i32 element, i32 channel) -> i16", &["lane-output"]),
            ("%0, @w, @m {", "%0, @w, @m, @m {", &["lane-inputs"]),
            ("%0, @w, @m {", "%0, @w {", &["lane-inputs"]),
            ("(i32 element, i32 channel) -> i8", "(i16 element, i32 channel) -> i8", &["lane-input"]),
            ("(i32 element, i32 channel) -> i8", "(i32 row, i32 channel) -> i8", &["lane-input"]),
            ("(i32 element, i32 channel) -> i8", "(i32 element, i16 channel) -> i8", &["lane-input"]),
            ("%0, @w, @m {", "%0, @w, @r {", &["lane-input"]),
            ("%1, @m, %rows, @one, @t {", "@t, @m, %rows, @one, @t {", &["lane-input"]),
            ("%1, @m, %rows, @one, @t {", "%1, @r, %rows, @one, @t {", &["lane-input"]),
            ("%1, @m, %rows, @one, @t {", "%1, @m, @r, @one, @t {", &["lane-input"]),
            ("%1, @m, %rows, @one, @t {", "%1, @m, %rows, @m, @t {", &["lane-input"]),
            ("%1, @m, %rows, @one, @t {", "%1, @m, %rows, @one, @one {", &["lane-input"]),
        ],
    );
}

#[test]
fn channels_of_a_convolution_are_its_second_dimension() {
    let text = r#"
module "m" stage fuse {
  const @w : tensor<2x3x2x2xi8> = blob(0x0, 24)
  const @m : tensor<2xi32> = [1, 2]
  lane @rq (i32 element, i32 channel) -> i32 {
    %0 = load 0
    %1 = load 1
    %2 = mul %0, %1
  }
  graph (%x: tensor<Nx3x8x8xu8>) -> (%0 "y") {
    %0 = fused.conv2d %x, @w, @m {strides = [2, 2], pads = [0, 0, 0, 0], dilations = [1, 1], groups = 1, layout = nchw, x_zero = 0, lane = @rq, to = i32} : tensor<Nx2x4x4xi32>
  }
}
"#;
    check(text, &[("tensor<2xi32> = [1, 2]", "tensor<4xi32> = [1, 2, 3, 4]", &["lane-input"])]);
}

#[test]
fn places() {
    check(
        PLAN,
        &[
            ("stage plan", "stage fuse", &["place-early"; 5]),
            ("arena 128", "arena 127", &["place-range"]),
            ("arena 128", "arena 4294967296", &[]),
            ("arena 128", "arena 4294967297", &["limit-arena"]),
            ("at 64", "at 9223372036854775807", &["place-range"]),
            ("tensor<Nx3x8xi8> at 0", "tensor<Nx3x8xi8>", &["no-place"]),
            ("tensor<Nx3x8xi8> at 0", "tensor<Nx3x8xi8> at 8", &[]),
            ("tensor<Nx3x8xi8> at 0", "tensor<Nx3x8xi8> at 9", &["place-overlap"]),
            ("tensor<Nx3x8xi8> at 0", "tensor<Nx3x8xi8> at 56", &[]),
            ("tensor<Nx3x8xi8> at 0", "tensor<Nx3x8xi8> at 55", &["place-overlap"]),
            ("tensor<Nx24xi8> at 32", "tensor<Nx24xi8> at 33", &["place-overlap"]),
            ("tensor<Nx24xi8> at 32", "tensor<Nx24xi8> at 0", &[]),
            ("tensor<Nx24xi8> at 32", "tensor<Nx24xi8>", &[]),
            // The slice is a view of the reshape, which is a view of %2: %5 may not lie there yet.
            ("q(0x1p-8, 0)> at 64", "q(0x1p-8, 0)> at 55", &["place-overlap"]),
            ("tensor<Nx16xi8>", "tensor<Nx16xi8> at 0", &[]),
            // An output stays in use to the end.
            ("(%6 \"y\")", "(%6 \"y\", %1 \"z\")", &[]),
            ("(%6 \"y\")", "(%6 \"y\", %2 \"z\")", &[]),
        ],
    );
    let moved = PLAN
        .replace("q(0x1p-8, 0)> at 64", "q(0x1p-8, 0)> at 56")
        .replace("tensor<Nx3x8xi8> at 0", "tensor<Nx3x8xi8> at 56");
    assert_eq!(codes(&module(&moved)), [""; 0]);
    assert_eq!(codes(&module(&moved.replace("(%6 \"y\")", "(%6 \"y\", %1 \"z\")"))), ["place-overlap"]);
    let outside =
        PLAN.replace("tensor<Nx3x8xi8> at 0", "tensor<Nx3x8xi8>").replace("(%6 \"y\")", "(%6 \"y\", %1 \"z\")");
    assert_eq!(codes(&module(&outside)), [""; 0], "an output need not lie in the arena");
    let reused = PLAN.replace(
        "q(0x1p-8, 0)> at 64",
        "q(0x1p-8, 0)> at 64\n    %7 = int.clamp %5 {lo = 0, hi = 1} : tensor<Nx16xi32> at 64",
    );
    assert_eq!(codes(&module(&reused)), ["place-overlap"], "%5 is dequantized at the door, after the last node");
    let fits = reused.replace("arena 128", "arena 192").replace("tensor<Nx16xi32> at 64", "tensor<Nx16xi32> at 128");
    assert_eq!(codes(&module(&fits)), [""; 0]);
}

#[test]
fn regions() {
    let rows_kept =
        PLAN.replace("i8> at 0", "i8> at 0 region 1").replace("Nx3x8xi8> at 32", "Nx3x8xi8> at 32 region 1");
    let early: &[&str] =
        &["place-early", "place-early", "region-early", "place-early", "region-early", "place-early", "place-early"];
    check(
        &rows_kept,
        &[
            ("at 32 region 1", "at 32 region 2", &[]),
            ("at 32 region 1", "at 32", &[]),
            ("stage plan", "stage fuse", early),
            // Of other rows; no step; not in one piece.
            ("q(0x1p-8, 0)> at 64", "q(0x1p-8, 0)> at 64 region 1", &["region"]),
            ("tensor<Nx24xi8> at 32", "tensor<Nx24xi8> at 32 region 1", &["region"]),
            (
                "%2 = fused.map %1",
                "%8 = int.clamp %1 {lo = 0, hi = 1} : tensor<Nx3x8xi8> at 88\n    %2 = fused.map %1",
                &["region"],
            ),
            // A thread may be at %2 while another is at %1.
            ("Nx3x8xi8> at 32 region", "Nx3x8xi8> at 23 region", &["place-overlap"]),
        ],
    );
    // The map reads its rows in another order, and all of one row, and a row of its own.
    let mixed = |by: &str, operand: &str| {
        let text =
            rows_kept.replace("%2 = fused.map %1, @m, %rows, @one", &format!("{by}    %2 = fused.map {operand}"));
        codes(&module(&text))
    };
    let transposed = "%8 = transpose %1 {perm = [0, 2, 1]} : tensor<Nx8x3xi8>\n    %9 = reshape %8 {shape = [N, 3, 8]} : tensor<Nx3x8xi8>\n";
    assert_eq!(mixed(transposed, "%9, @m, %rows, @one"), ["region"]);
    let sums = "%8 = int.reduce_sum %1 {axis = 2, keep = true} : tensor<Nx3x1xi32> at 96 region 1\n";
    assert_eq!(mixed(sums, "%1, @m, %8, @one"), [""; 0]);
    let flat = "%8 = reshape %1 {shape = [N, 3, 8]} : tensor<Nx3x8xi8> at 0\n";
    assert_eq!(mixed(flat, "%8, @m, %rows, @one"), [""; 0]);
}

/// A change of a sound module and the violations it gives.
fn broken(base: &str, change: impl FnOnce(&mut Module)) -> Vec<&'static str> {
    let mut m = module(base);
    change(&mut m);
    codes(&m)
}

#[test]
fn ids_and_definitions() {
    let none = ValueId(99);
    assert_eq!(broken(FLOAT, |m| m.nodes[2].operands[0] = none), ["value-id"]);
    assert_eq!(broken(FLOAT, |m| m.outputs[0].value = none), ["value-id"]);
    assert_eq!(broken(FLOAT, |m| m.nodes[2].result = none), ["value-def", "value-id"]);
    assert_eq!(broken(FLOAT, |m| m.inputs[0].value = none), ["value-id", "value-def"]);
    assert_eq!(broken(FLOAT, |m| m.values[0].def = Def::Const(7)), ["value-def"; 2]);
    assert_eq!(broken(FLOAT, |m| m.values[1].def = Def::Node(7)), ["value-def", "value-def", "order"]);
    assert_eq!(broken(FLOAT, |m| m.values[0].ty.elem = Elem::I32), ["value-def", "type-rule"]);
    let twice = |m: &mut Module| m.values.push(Value { def: Def::Const(0), ty: m.consts[0].ty.clone() });
    assert_eq!(broken(FLOAT, twice), ["value-def"]);
    let swapped = |m: &mut Module| m.nodes[3].operands[0] = m.nodes[3].result;
    assert_eq!(broken(FLOAT, swapped), ["order"]);
}

#[test]
fn names_are_unique_and_short() {
    let again = |m: &mut Module| {
        let value = m.input("x", TensorType::f32(Shape::fixed(&[1])));
        m.outputs.push(Output { name: "y".into(), value });
    };
    assert_eq!(broken(FLOAT, again), ["duplicate-name"]);
    assert_eq!(broken(INTEGER, |m| m.consts[1].name = "w".into()), ["duplicate-name"]);
    assert_eq!(broken(FLOAT, |m| m.outputs[0].name = "y".repeat(limits::NAME)), [""; 0]);
    assert_eq!(broken(FLOAT, |m| m.outputs[0].name = "y".repeat(limits::NAME + 1)), ["limit-name"]);
}

#[test]
fn constants_have_the_bytes_of_their_type() {
    let set = |c: usize, len: usize| move |m: &mut Module| m.consts[c].data = vec![0; len].into();
    assert_eq!(broken(FLOAT, set(0, 31)), ["const-data"]);
    assert_eq!(broken(PLAN, set(0, 127)), ["const-data"]);
    assert_eq!(broken(PLAN, set(0, 129)), ["const-data"]);
    let batch = |m: &mut Module| {
        m.consts[1].ty.shape = Shape(vec![Dim::N]);
        m.values[1].ty = m.consts[1].ty.clone();
    };
    assert_eq!(broken(INTEGER, batch), ["const-data"]);
}

#[test]
fn sizes_have_limits() {
    let input = |dims: Vec<Dim>| {
        move |m: &mut Module| {
            m.input("big", TensorType::f32(Shape(dims)));
        }
    };
    let one = Dim::fixed(1);
    assert_eq!(broken(FLOAT, input(vec![one; 8])), [""; 0]);
    assert_eq!(broken(FLOAT, input(vec![one; 9])), ["limit-rank"]);
    assert_eq!(broken(FLOAT, input(vec![Dim { size: 1 << 31, batch: true }])), [""; 0]);
    assert_eq!(broken(FLOAT, input(vec![Dim::fixed((1 << 31) + 1)])), ["limit-elements"]);
    assert_eq!(broken(FLOAT, input(vec![Dim::fixed(1 << 16), Dim::fixed((1 << 15) + 1)])), ["limit-elements"]);
    assert_eq!(broken(FLOAT, input(vec![Dim::fixed(usize::MAX); 3])), ["limit-elements"]);
    assert_eq!(broken(FLOAT, input(vec![Dim::fixed(0), Dim::fixed(usize::MAX)])), ["limit-elements"]);
    assert_eq!(broken(FLOAT, input(vec![Dim::N, Dim::N])), ["limit-elements"]);
}

#[test]
fn counts_have_limits() {
    let chain = |extra: usize| {
        move |m: &mut Module| {
            for _ in 0..limits::NODES - m.nodes.len() + extra {
                m.push_typed(Op::Exp {}, &[m.nodes[3].result], m.ty(m.nodes[3].result).clone(), None);
            }
        }
    };
    assert_eq!(broken(FLOAT, chain(0)), [""; 0]);
    assert_eq!(broken(FLOAT, chain(1)), ["limit-nodes"]);
    let inputs = |extra: usize| {
        move |m: &mut Module| {
            let ty = TensorType::f32(Shape::default());
            for i in m.inputs.len()..limits::CONSTS + extra {
                let value = ValueId(m.values.len() as u32);
                m.values.push(Value { def: Def::Input(i), ty: ty.clone() });
                m.inputs.push(Input { name: format!("i{i}"), value });
            }
        }
    };
    assert_eq!(broken(FLOAT, inputs(0)), [""; 0]);
    assert_eq!(broken(FLOAT, inputs(1)), ["limit-consts"]);
}

#[test]
fn an_empty_scale_list_is_a_violation_and_no_panic() {
    let quant = |scale: Vec<Real>, axis| Some(Quant { scale: scale.into(), zero_point: 0, axis });
    assert_eq!(broken(PLAN, |m| m.values[0].ty.quant = quant(vec![], None)), ["value-def", "quant-axis"]);
}

#[test]
fn all_violations_are_found_with_their_places() {
    let text = FLOAT.replace("stage clean", "stage import").replace("matmul %1, @w", "matmul @w, %1");
    let found = verify(&module(&text)).unwrap_err().0;
    let places: Vec<_> = found.iter().map(|d| d.place.clone().unwrap_or_default()).collect();
    assert_eq!(places, ["%0 normalize", "%2 matmul (/fc)"]);
}

#[test]
fn a_module_of_nothing_is_sound() {
    assert_eq!(verify(&module("module \"m\" stage plan { graph () -> () {} }")), Ok(()));
}
