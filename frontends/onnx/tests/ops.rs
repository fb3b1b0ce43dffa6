//! Every op that import claims: hand-built models, imported and evaluated, against results worked out by hand.

#[path = "ops/case.rs"]
mod case;
mod common;
#[path = "ops/masks.rs"]
mod masks;
#[path = "ops/norm.rs"]
mod norm;
#[path = "ops/vision.rs"]
mod vision;

use std::collections::BTreeSet;

use case::{Case, as_is, case, check, evaluate, seq};
use common::{Build, D, float, float_list, floats, int, int_list, ints, small_vit, tensor_attr, word};
use onnx_protobuf::AttributeProto;
use vitc_ir::{Dim, Shape};
use vitc_onnx::{BatchMode, ImportError, Options, import_bytes, supported_ops};

fn elementwise() -> Vec<Case> {
    let two = |op, f: fn(f32, f32) -> f32| {
        let x = vec![1.0, 2.0, 3.0, 4.0];
        let y = x.iter().zip([2.0, 0.5, 2.0, 0.5]).map(|(&a, b)| f(a, b)).collect();
        case(op, "x b", (&[2, 2], x), (&[2, 2], y)).floats("b", &[2], &[2.0, 0.5])
    };
    let one = |op, f: fn(f32) -> f32| {
        let x = vec![0.25, 1.0, 2.5, 4.0];
        let y = x.iter().map(|&v| f(v)).collect();
        case(op, "x", (&[1, 4], x), (&[1, 4], y))
    };
    let signed = |op, y: [f32; 4]| case(op, "x", (&[1, 4], vec![-4.0, -1.0, 0.5, 4.0]), (&[1, 4], y.to_vec()));
    vec![
        two("Add", |a, b| a + b),
        two("Sub", |a, b| a - b),
        two("Mul", |a, b| a * b),
        two("Div", |a, b| a / b),
        two("Pow", f32::powf),
        two("Min", f32::min),
        two("Max", f32::max),
        two("Sum", |a, b| a + b),
        two("Mean", |a, b| (a + b) / 2.0),
        one("Cos", f32::cos),
        one("Exp", f32::exp),
        one("Log", f32::ln),
        one("Sqrt", f32::sqrt),
        one("Reciprocal", f32::recip),
        one("Tanh", f32::tanh),
        one("Sigmoid", |v| 1.0 / (1.0 + (-v).exp())),
        one("Sin", f32::sin),
        signed("Abs", [4.0, 1.0, 0.5, 4.0]),
        signed("Neg", [4.0, 1.0, -0.5, -4.0]),
        signed("Relu", [0.0, 0.0, 0.5, 4.0]),
        signed("LeakyRelu", [-0.4, -0.1, 0.5, 4.0]).attr(float("alpha", 0.1)),
        signed("Elu", [-0.981_684_4, -0.632_120_6, 0.5, 4.0]),
        signed("Softplus", [0.018_149_9, 0.313_261_7, 0.974_077, 4.018_15]),
        signed("Mish", [-0.072_591_7, -0.303_401_5, 0.375_245_2, 3.997_412_8]).opset(18),
        signed("HardSwish", [0.0, -1.0 / 3.0, 0.5 * (0.5 / 6.0 + 0.5), 4.0]),
        signed("HardSigmoid", [0.0, 0.3, 0.6, 1.0]),
        signed("Erf", [-1.0, -0.842_700_8, 0.520_499_9, 1.0]),
        signed("Gelu", [-0.000_126_686, -0.158_655_26, 0.345_731_2, 3.999_873_4]).opset(20),
        signed("Gelu", [-0.000_070_23, -0.158_808, 0.345_714, 3.999_93]).opset(20).attr(word("approximate", "tanh")),
        case("Clip", "x lo hi", (&[1, 4], vec![-4.0, -1.0, 0.5, 4.0]), (&[1, 4], vec![-2.0, -1.0, 0.5, 3.0]))
            .floats("lo", &[], &[-2.0])
            .floats("hi", &[], &[3.0]),
        case("Clip", "x - hi", (&[1, 4], vec![-4.0, -1.0, 0.5, 4.0]), (&[1, 4], vec![-4.0, -1.0, 0.5, 1.0])).floats(
            "hi",
            &[],
            &[1.0],
        ),
        signed("Identity", [-4.0, -1.0, 0.5, 4.0]),
        signed("Dropout", [-4.0, -1.0, 0.5, 4.0]),
        signed("Cast", [-4.0, -1.0, 0.5, 4.0]).attr(int("to", 1)),
        case("CastLike", "x b", (&[2], vec![1.0, 2.0]), (&[2], vec![1.0, 2.0])).floats("b", &[1], &[0.0]),
    ]
}

fn movement() -> Vec<Case> {
    let m = |op, operands, y: (&'static [usize], Vec<f32>)| case(op, operands, (&[2, 3], seq(6)), y);
    let blocks = vec![0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
    vec![
        m("Reshape", "x s", (&[3, 2], seq(6))).ints("s", &[2], &[3, -1]),
        m("Reshape", "x s", (&[2, 3, 1], seq(6))).ints("s", &[3], &[0, 0, 1]),
        m("Flatten", "x", (&[1, 6], seq(6))).attr(int("axis", 0)),
        m("Unsqueeze", "x a", (&[1, 2, 3, 1], seq(6))).ints("a", &[2], &[0, -1]),
        case("Squeeze", "x a", (&[2, 1, 3], seq(6)), (&[2, 3], seq(6))).ints("a", &[1], &[-2]),
        case("Squeeze", "x", (&[2, 1, 3, 1], seq(6)), (&[2, 3], seq(6))),
        m("Transpose", "x", (&[3, 2], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0])),
        m("Transpose", "x", (&[2, 3], seq(6))).attr(int_list("perm", &[0, 1])),
        m("Expand", "x s", (&[2, 2, 3], [seq(6), seq(6)].concat())).ints("s", &[3], &[2, 1, 3]),
        m("Concat", "x b", (&[3, 3], [seq(6), vec![7.0; 3]].concat())).attr(int("axis", 0)).floats(
            "b",
            &[1, 3],
            &[7.0; 3],
        ),
        m("Tile", "x r", (&[4, 3], [seq(6), seq(6)].concat())).ints("r", &[2], &[2, 1]),
        m("Tile", "x r", (&[2, 6], vec![0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 3.0, 4.0, 5.0])).ints(
            "r",
            &[2],
            &[1, 2],
        ),
        m("Pad", "x p v", (&[2, 4], vec![9.0, 0.0, 1.0, 2.0, 9.0, 3.0, 4.0, 5.0]))
            .ints("p", &[4], &[0, 1, 0, 0])
            .floats("v", &[], &[9.0]),
        m("Pad", "x p - a", (&[2, 3], vec![1.0, 2.0, 0.0, 4.0, 5.0, 0.0])).ints("p", &[2], &[-1, 1]).ints(
            "a",
            &[1],
            &[1],
        ),
        case("DepthToSpace", "x", (&[1, 4, 1, 2], seq(8)), (&[1, 1, 2, 4], vec![0., 2., 1., 3., 4., 6., 5., 7.]))
            .attr(int("blocksize", 2)),
        case("DepthToSpace", "x", (&[1, 4, 1, 2], seq(8)), (&[1, 1, 2, 4], blocks.clone()))
            .attr(int("blocksize", 2))
            .attr(word("mode", "CRD")),
        case("Col2Im", "x i b", (&[1, 4, 2], seq(8)), (&[1, 1, 2, 4], vec![0., 2., 1., 3., 4., 6., 5., 7.]))
            .ints("i", &[2], &[2, 4])
            .ints("b", &[2], &[2, 2])
            .attr(int_list("strides", &[2, 2])),
        case("Col2Im", "x i b", (&[1, 2, 3], seq(6)), (&[1, 1, 1, 6], vec![0., 0., 1., 3., 2., 4.]))
            .ints("i", &[2], &[1, 6])
            .ints("b", &[2], &[1, 2])
            .attr(int_list("strides", &[1, 2]))
            .attr(int_list("dilations", &[1, 3]))
            .attr(int_list("pads", &[0, 0, 0, 2])),
        case("Col2Im", "x i b", (&[1, 1, 2], vec![3., 4.]), (&[1, 1, 1, 3], vec![3., 0., 4.]))
            .ints("i", &[2], &[1, 3])
            .ints("b", &[2], &[1, 1])
            .attr(int_list("strides", &[1, 2])),
        case("SpaceToDepth", "x", (&[1, 1, 2, 4], blocks), (&[1, 4, 1, 2], seq(8))).attr(int("blocksize", 2)),
        m("Slice", "x s e a t", (&[2, 2], vec![2.0, 0.0, 5.0, 3.0]))
            .ints("s", &[1], &[-1])
            .ints("e", &[1], &[i64::MIN])
            .ints("a", &[1], &[1])
            .ints("t", &[1], &[-2]),
        m("Slice", "x s e", (&[1, 2], vec![4.0, 5.0])).ints("s", &[2], &[1, 1]).ints("e", &[2], &[i64::MAX, 3]),
        m("Gather", "x i", (&[2], vec![2.0, 5.0])).ints("i", &[], &[-1]).attr(int("axis", 1)),
        m("Gather", "x i", (&[2, 1, 2], vec![2.0, 0.0, 5.0, 3.0])).ints("i", &[1, 2], &[2, 0]).attr(int("axis", 1)),
        m("Split", "x s", (&[2, 3], seq(6))).ints("s", &[1], &[3]).attr(int("axis", 1)),
    ]
}

fn linear() -> Vec<Case> {
    let eye = [1.0, 0.0, 0.0, 1.0];
    let x22 = vec![1.0, 2.0, 3.0, 4.0];
    let plane = |op, y: (&'static [usize], Vec<f32>)| {
        case(op, "x w", (&[1, 1, 3, 3], seq(9)), y).floats("w", &[1, 1, 2, 2], &[1.0; 4])
    };
    vec![
        case("MatMul", "x b", (&[2, 2], x22.clone()), (&[2], vec![3.0, 7.0])).floats("b", &[2], &[1.0, 1.0]),
        case("MatMul", "b x", (&[2, 2], x22.clone()), (&[2], vec![4.0, 6.0])).floats("b", &[2], &[1.0, 1.0]),
        case("MatMul", "x b", (&[2], vec![1.0, 2.0]), (&[], vec![5.0])).floats("b", &[2], &[1.0, 2.0]),
        case("MatMul", "x b", (&[2, 2], x22.clone()), (&[2, 2], x22.clone())).floats("b", &[2, 2], &eye),
        case("Gemm", "x b c", (&[2, 2], x22.clone()), (&[2, 2], vec![12.0, 26.0, 14.0, 28.0]))
            .floats("b", &[2, 2], &eye)
            .floats("c", &[2], &[5.0, 10.0])
            .attr(float("alpha", 2.0))
            .attr(float("beta", 2.0))
            .attr(int("transA", 1))
            .attr(int("transB", 1)),
        case("Gemm", "x b c", (&[2, 2], x22.clone()), (&[2, 2], vec![6.0, 7.0, 13.0, 14.0]))
            .floats("b", &[2, 2], &eye)
            .floats("c", &[2, 1], &[5.0, 10.0]),
        plane("Conv", (&[1, 1, 2, 2], vec![8.0, 12.0, 20.0, 24.0])),
        plane("Conv", (&[1, 1, 3, 3], vec![8.0, 12.0, 7.0, 20.0, 24.0, 13.0, 13.0, 15.0, 8.0]))
            .attr(word("auto_pad", "SAME_UPPER")),
        plane("Conv", (&[1, 1, 2, 2], vec![0.0, 3.0, 9.0, 24.0]))
            .attr(int_list("strides", &[2, 2]))
            .attr(int_list("pads", &[1, 1, 0, 0])),
        case("Conv", "x w b", (&[1, 2, 4], seq(8)), (&[1, 2, 3], vec![11.0, 13.0, 15.0, 29.0, 31.0, 33.0]))
            .floats("w", &[2, 1, 2], &[1.0; 4])
            .floats("b", &[2], &[10.0, 20.0])
            .attr(int("group", 2)),
    ]
}

fn reductions() -> Vec<Case> {
    let r = |op, y: [f32; 2]| {
        case(op, "x a", (&[2, 2], vec![3.0, 4.0, 6.0, 8.0]), (&[2], y.to_vec()))
            .ints("a", &[1], &[-1])
            .attr(int("keepdims", 0))
    };
    let pooled = |op, y: (&'static [usize], Vec<f32>)| case(op, "x", (&[1, 1, 2, 4], seq(8)), y);
    vec![
        r("ReduceMean", [3.5, 7.0]),
        r("ReduceSum", [7.0, 14.0]),
        r("ReduceMax", [4.0, 8.0]),
        r("ReduceMin", [3.0, 6.0]),
        r("ReduceL2", [5.0, 10.0]),
        r("ReduceSumSquare", [25.0, 100.0]),
        case("ReduceMean", "x", (&[2, 2], seq(4)), (&[2, 1], vec![0.5, 2.5])).opset(17).attr(int_list("axes", &[1])),
        case("ReduceSum", "x", (&[2, 2], seq(4)), (&[2, 2], seq(4))).attr(int("noop_with_empty_axes", 1)),
        pooled("GlobalAveragePool", (&[1, 1, 1, 1], vec![3.5])),
        pooled("GlobalMaxPool", (&[1, 1, 1, 1], vec![7.0])),
        pooled("AveragePool", (&[1, 1, 1, 2], vec![2.5, 4.5]))
            .attr(int_list("kernel_shape", &[2, 2]))
            .attr(int_list("strides", &[2, 2])),
    ]
}

#[test]
fn elementwise_ops_compute_what_onnx_says() {
    elementwise().iter().for_each(check);
}

#[test]
fn movement_ops_compute_what_onnx_says() {
    movement().iter().for_each(check);
}

#[test]
fn linear_ops_compute_what_onnx_says() {
    linear().iter().for_each(check);
}

#[test]
fn normalisations_compute_what_onnx_says() {
    norm::normalisation().iter().for_each(check);
}

#[test]
fn reductions_compute_what_onnx_says() {
    reductions().iter().for_each(check);
}

#[test]
fn activations_written_out_compute_what_onnx_says() {
    vision::activations().iter().for_each(check);
}

#[test]
fn resizes_and_paddings_compute_what_onnx_says() {
    vision::images().iter().for_each(check);
}

#[test]
fn pools_compute_what_onnx_says() {
    vision::pools().iter().for_each(check);
}

#[test]
fn einsums_and_attention_compute_what_onnx_says() {
    vision::products().iter().for_each(check);
    vision::rotations().iter().for_each(check);
}

/// The passes find attention by this chain.
#[test]
fn attention_is_the_chain_that_exporters_write() {
    let dims = [D::Named("batch"), D::Is(2), D::Is(3), D::Is(4)];
    let chain = |op: &str, inputs: &[&str], attrs| {
        let model = Build::new(23).input("q", &dims).input("k", &dims).input("v", &dims);
        let module = import_bytes(model.node(op, inputs, &["y"], attrs).output("y").bytes(), None, &as_is()).unwrap();
        module.nodes.iter().map(|n| n.op.name()).collect::<Vec<_>>()
    };
    let written = chain("Attention", &["q", "k", "v"], vec![]);
    assert_eq!(written, ["mul", "transpose", "matmul", "softmax", "matmul"]);
    let logits = chain("Einsum", &["q", "k"], vec![word("equation", "bhid,bhjd->bhij")]);
    assert_eq!(logits, ["transpose", "matmul"]);
}

#[test]
fn sums_and_gathers_compute_what_onnx_says() {
    vision::sums().iter().for_each(check);
}

#[test]
fn norms_of_every_form_compute_what_onnx_says() {
    vision::norms().iter().for_each(check);
}

#[test]
fn other_float_types_are_read_as_float32() {
    let types = [(10, "float16"), (11, "float64"), (16, "bfloat16")];
    for (elem, name) in types {
        let mut model = Build::new(18).tensor(vision::halves("h", elem == 16));
        model.graph().input.push(common::info("x", elem, &[D::Is(3)]));
        let model = model.node("Cast", &["h"], &["c"], vec![int("to", elem.into())]);
        let model = model.node("Mul", &["x", "c"], &["y"], vec![]).output("y");
        let module = import_bytes(model.bytes(), None, &as_is()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(module.meta["onnx.read_as_float32"], name);
        assert_eq!(evaluate(&module, (&[3], vec![2.0; 3])).1, [2.0, -4.0, 1.0]);
    }
}

/// Chains of shape arithmetic, each ending in the integer vector that `Reshape` wants or in floats added to `x` [1, 6].
fn arithmetic_model(build: impl FnOnce(Build) -> Build) -> Build {
    let model = Build::new(18).input("x", &[D::Named("batch"), D::Is(6)]);
    let model = model
        .ints("i0", &[], &[0])
        .ints("i1", &[], &[1])
        .ints("i2", &[], &[2])
        .ints("i7", &[], &[7])
        .ints("v0", &[1], &[0])
        .ints("v1", &[1], &[1])
        .ints("v3", &[1], &[3])
        .bools("yes", &[1], &[1])
        .bools("mask", &[6], &[1, 0, 1, 0, 1, 0])
        .floats("f", &[], &[2.5]);
    build(model).output("y")
}

fn reshaped_to(build: impl FnOnce(Build) -> Build) -> Shape {
    let model = arithmetic_model(|m| build(m).node("Reshape", &["x", "s"], &["y"], vec![]));
    let module = import_bytes(model.bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    module.ty(module.outputs[0].value).shape.clone()
}

/// A class token or a query is repeated once for each image.
#[test]
fn tile_repeats_as_often_as_there_are_images() {
    let build = Build::new(18)
        .input("x", &[D::Named("batch"), D::Is(2)])
        .floats("t", &[1, 1, 2], &[5.0, 6.0])
        .ints("v1", &[1], &[1])
        .node("Shape", &["x"], &["b"], vec![int("start", 0), int("end", 1)])
        .node("Concat", &["b", "v1", "v1"], &["r"], vec![int("axis", 0)])
        .node("Tile", &["t", "r"], &["tokens"], vec![])
        .node("Unsqueeze", &["x", "v1"], &["rows"], vec![])
        .node("Concat", &["tokens", "rows"], &["y"], vec![int("axis", 1)])
        .output("y");
    let module = import_bytes(build.bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let result = evaluate(&module, (&[2, 2], vec![1.0, 2.0, 3.0, 4.0]));
    assert_eq!(result, (vec![2, 2, 2], vec![5.0, 6.0, 1.0, 2.0, 5.0, 6.0, 3.0, 4.0]));
}

/// A mean over patches as torch's dynamo exporter writes it for a dynamic batch: a strided view of the flat means, whose positions
/// are made from the number of images.
#[test]
fn positions_that_count_the_images_take_each_images_own() {
    let model = |step: i64| {
        Build::new(18)
            .input("x", &[D::Named("batch"), D::Is(3)])
            .ints("start", &[], &[0])
            .ints("one", &[], &[1])
            .ints("step", &[], &[step])
            .ints("all", &[1], &[-1])
            .ints("axes", &[1], &[1])
            .ints("own", &[1, 2], &[2, 0])
            .node("Shape", &["x"], &["b"], vec![int("start", 0), int("end", 1)])
            .node("Squeeze", &["b"], &["n"], vec![])
            .node("Reshape", &["x", "all"], &["flat"], vec![])
            .node("Range", &["start", "n", "one"], &["images"], vec![])
            .node("Mul", &["images", "step"], &["first"], vec![])
            .node("Unsqueeze", &["first", "axes"], &["column"], vec![])
            .node("Add", &["own", "column"], &["positions"], vec![])
            .node("Gather", &["flat", "positions"], &["y"], vec![int("axis", 0)])
            .output("y")
    };
    let module = import_bytes(model(3).bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let result = evaluate(&module, (&[2, 3], seq(6)));
    assert_eq!(result, (vec![2, 2], vec![2.0, 0.0, 5.0, 3.0]));
    // elements of other images
    let problem = import_bytes(model(1).bytes(), None, &Options::default()).unwrap_err().to_string();
    assert!(problem.contains("count the images"), "{problem}");
}

/// `If` as the TorchScript exporter writes it around `squeeze` of a dimension that it does not know.
#[test]
fn the_branch_of_a_known_condition_is_taken() {
    let branch = |op: &str, name: &str| {
        let mut build = Build::new(18).node(op, &["x"], &[name], vec![]).output(name);
        let mut attribute = int(if op == "Neg" { "then_branch" } else { "else_branch" }, 0);
        attribute.type_ = onnx_protobuf::attribute_proto::AttributeType::GRAPH.into();
        attribute.g = Some(std::mem::take(build.graph())).into();
        attribute
    };
    let model = |size: i64| {
        Build::new(18)
            .input("x", &[D::Named("batch"), D::Is(2)])
            .ints("two", &[1], &[size])
            .node("Shape", &["x"], &["s"], vec![int("start", 1)])
            .node("Equal", &["s", "two"], &["c"], vec![])
            .node("If", &["c"], &["y"], vec![branch("Neg", "a"), branch("Identity", "b")])
            .output("y")
    };
    for (size, expected) in [(2, vec![-1.0, -2.0]), (3, vec![1.0, 2.0])] {
        let module = import_bytes(model(size).bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(evaluate(&module, (&[1, 2], vec![1.0, 2.0])), (vec![1, 2], expected));
    }
}

/// A part without elements of what has the batch is left out as well.
#[test]
fn an_empty_part_of_a_batch_is_left_out() {
    let build = Build::new(18)
        .input("x", &[D::Named("batch"), D::Is(2)])
        .ints("zero", &[1], &[0])
        .ints("one", &[1], &[1])
        .node("Slice", &["x", "zero", "zero", "one"], &["none"], vec![])
        .node("Concat", &["none", "x"], &["y"], vec![int("axis", 1)])
        .output("y");
    let module = import_bytes(build.bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(evaluate(&module, (&[2, 2], seq(4))), (vec![2, 2], seq(4)));
}

/// Scores that are masked with the lowest number become a sum, which has an integer form; bounds that are infinite have none.
#[test]
fn a_mask_of_lowest_numbers_is_added() {
    let build = Build::new(18)
        .input("x", &[D::Named("batch"), D::Is(2)])
        .bools("mask", &[1, 2], &[0, 1])
        .floats("lowest", &[], &[f32::MIN])
        .node("Where", &["mask", "lowest", "x"], &["y"], vec![])
        .output("y");
    let module = import_bytes(build.bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(module.nodes.iter().map(|n| n.op.name()).collect::<Vec<_>>(), ["add"]);
    let result = evaluate(&module, (&[2, 2], vec![1.0, 2.0, 3.0, 4.0]));
    assert_eq!(result, (vec![2, 2], vec![1.0, f32::MIN, 3.0, f32::MIN]));
}

/// Conditions on what is computed, and all that reads them.
#[test]
fn a_choice_by_the_value_itself_is_a_select() {
    let build = Build::new(18)
        .input("x", &[D::Named("batch"), D::Is(5)])
        .floats("one", &[], &[1.0])
        .floats("two", &[5], &[2.0; 5])
        .node("Neg", &["x"], &["n"], vec![])
        .node("Greater", &["x", "one"], &["above"], vec![])
        .node("Less", &["x", "two"], &["below"], vec![])
        .node("GreaterOrEqual", &["x", "one"], &["least"], vec![])
        .node("LessOrEqual", &["x", "two"], &["most"], vec![])
        .node("And", &["above", "below"], &["open"], vec![])
        .node("And", &["least", "most"], &["closed"], vec![])
        .node("Not", &["closed"], &["outside"], vec![])
        .node("Or", &["outside", "above"], &["any"], vec![])
        .node("Where", &["open", "x", "n"], &["y0"], vec![])
        .node("Where", &["closed", "x", "n"], &["y1"], vec![])
        .node("Cast", &["any"], &["y2"], vec![int("to", 1)])
        .output("y0")
        .output("y1")
        .output("y2");
    let module = import_bytes(build.bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let x = [0.0, 1.0, 1.5, 2.0, 3.0];
    let input = vitc_ir::eval::Tensor::f32(&[1, 5], x.to_vec());
    let got = vitc_ir::eval::run(&module, &[input]).unwrap();
    let want = [[0.0, -1.0, 1.5, -2.0, -3.0], [0.0, 1.0, 1.5, 2.0, -3.0], [1.0, 0.0, 1.0, 1.0, 1.0]];
    for (got, want) in got.iter().zip(want) {
        assert_eq!(got.data, vitc_ir::eval::Data::F32(want.to_vec()));
    }
    let read_otherwise = build.node("Neg", &["open"], &["bad"], vec![]).output("bad");
    let error = import_bytes(read_otherwise.bytes(), None, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("a condition on computed values"), "{error}");
}

/// No register tokens are concatenated: nothing stands for them.
#[test]
fn an_expanded_tensor_without_elements_is_left_out() {
    let build = Build::new(18)
        .input("x", &[D::Named("batch"), D::Is(1), D::Is(2)])
        .floats("none", &[1, 0, 2], &[])
        .ints("one", &[2], &[1, 1])
        .node("Shape", &["x"], &["b"], vec![int("start", 0), int("end", 1)])
        .node("Concat", &["b", "one"], &["s"], vec![int("axis", 0)])
        .node("Expand", &["none", "s"], &["e"], vec![])
        .node("Concat", &["e", "x"], &["y"], vec![int("axis", 1)])
        .output("y");
    let module = import_bytes(build.bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(evaluate(&module, (&[2, 1, 2], seq(4))), (vec![2, 1, 2], seq(4)));
}

#[test]
fn shape_arithmetic_is_evaluated_with_the_batch_as_a_symbol() {
    let expected = Shape(vec![Dim::N, Dim::fixed(3), Dim::fixed(2)]);
    let batch =
        |m: Build| {
            m.node("Shape", &["x"], &["b"], vec![int("start", 0), int("end", 1)])
                .node("Size", &["x"], &["n"], vec![])
                .node("Unsqueeze", &["n", "v0"], &["n1"], vec![])
        };
    let join = |m: Build, two: &str| m.node("Concat", &["b", "v3", two], &["s"], vec![int("axis", 0)]);
    // (batch * 6) / batch / 3
    let divided =
        |m| join(batch(m).node("Div", &["n1", "b"], &["d"], vec![]).node("Div", &["d", "v3"], &["two"], vec![]), "two");
    assert_eq!(reshaped_to(divided), expected);
    // 7 mod 3 + 1, through Range, Gather, Squeeze and ReduceMax
    let ranged = |m| {
        let m = batch(m)
            .node("Range", &["i0", "i7", "i2"], &["r"], vec![])
            .node("ReduceMax", &["r"], &["six"], vec![])
            .node("Mod", &["six", "v3"], &["zero"], vec![])
            .node("Add", &["zero", "v1"], &["one"], vec![])
            .node("Add", &["one", "one"], &["two"], vec![]);
        join(m, "two")
    };
    assert_eq!(reshaped_to(ranged), expected);
    // floor(2.5), through Cast, Floor, Min, Max, Clip and Identity
    let floored = |m| {
        let m = batch(m)
            .node("Floor", &["f"], &["f1"], vec![])
            .node("Cast", &["f1"], &["f2"], vec![int("to", 7)])
            .node("Max", &["f2", "v1"], &["f3"], vec![])
            .node("Min", &["f3", "v3"], &["f4"], vec![])
            .node("Clip", &["f4", "", "v3"], &["two"], vec![]);
        join(m, "two")
    };
    assert_eq!(reshaped_to(floored), expected);
    // floats bounded from below, as the padding of a convolution is that comes out as large as its input says
    let bounded = |m| {
        let m = batch(m)
            .node("Clip", &["f", "f"], &["k"], vec![])
            .node("Cast", &["k"], &["k1"], vec![int("to", 7)])
            .node("Reshape", &["k1", "v1"], &["two"], vec![]);
        join(m, "two")
    };
    assert_eq!(reshaped_to(bounded), expected);
    // ceil(2.5) - 1 = round(2.5) = 2
    let rounded = |m| {
        let m = batch(m)
            .node("Ceil", &["f"], &["c"], vec![])
            .node("Round", &["f"], &["r"], vec![])
            .node("Sign", &["f"], &["g"], vec![])
            .node("Sub", &["c", "g"], &["c1"], vec![])
            .node("Equal", &["c1", "r"], &["same"], vec![])
            .node("Where", &["same", "r", "f"], &["w"], vec![])
            .node("Cast", &["w"], &["w1"], vec![int("to", 7)])
            .node("Reshape", &["w1", "v1"], &["two"], vec![]);
        join(m, "two")
    };
    assert_eq!(reshaped_to(rounded), expected);
    // logic: batch > 0 and not (batch < 0), for every batch
    let logical = |m| {
        let m = batch(m)
            .node("Greater", &["b", "v0"], &["l0"], vec![])
            .node("Less", &["b", "v0"], &["l1"], vec![])
            .node("Not", &["l1"], &["l2"], vec![])
            .node("And", &["l0", "l2"], &["l3"], vec![])
            .node("GreaterOrEqual", &["b", "v1"], &["l4"], vec![])
            .node("LessOrEqual", &["b", "v0"], &["l5"], vec![])
            .node("Or", &["l3", "l5"], &["l6"], vec![])
            .node("Xor", &["l6", "l5"], &["l7"], vec![])
            .node("And", &["l7", "l4"], &["l8"], vec![])
            .node("Where", &["l8", "v1", "v3"], &["one"], vec![])
            .node("Add", &["one", "v1"], &["two"], vec![]);
        join(m, "two")
    };
    assert_eq!(reshaped_to(logical), expected);
    // ReduceProd, ReduceMin, ReduceSum, ConstantOfShape, ScatterND, Trilu
    let scattered = |m: Build| {
        let m = batch(m)
            .ints("at", &[1, 1], &[1])
            .node("ConstantOfShape", &["v3"], &["z"], vec![tensor_attr("value", ints("", &[1], &[1]))])
            .node("ScatterND", &["z", "at", "v3"], &["t"], vec![])
            .node("ReduceProd", &["t"], &["p"], vec![])
            .node("ReduceMin", &["t"], &["l"], vec![])
            .node("ReduceSum", &["z"], &["u"], vec![])
            .node("Concat", &["p", "l", "u"], &["q"], vec![int("axis", 0)])
            .node("Unsqueeze", &["q", "v0"], &["q1"], vec![])
            .node("Trilu", &["q1"], &["q2"], vec![int("upper", 0)])
            .node("ReduceMax", &["q2"], &["three"], vec![int("keepdims", 0)])
            .node("Sub", &["three", "i1"], &["two0"], vec![])
            .node("Unsqueeze", &["two0", "v0"], &["two"], vec![]);
        join(m, "two")
    };
    assert_eq!(reshaped_to(scattered), expected);
}

#[test]
fn constants_of_every_form_are_values() {
    let forms: Vec<(AttributeProto, [f32; 6])> = vec![
        (float("value_float", 2.0), [2.0; 6]),
        (float_list("value_floats", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        (tensor_attr("value", floats("", &[1], &[4.0])), [4.0; 6]),
    ];
    for (attr, added) in forms {
        let model =
            arithmetic_model(|m| m.node("Constant", &[], &["c"], vec![attr]).node("Add", &["x", "c"], &["y"], vec![]));
        let module = import_bytes(model.bytes(), None, &Options::default()).unwrap();
        assert_eq!(evaluate(&module, (&[1, 6], vec![0.0; 6])).1, added);
    }
    for attr in [int("value_int", 1), int_list("value_ints", &[1]), tensor_attr("value", ints("", &[1], &[1]))] {
        let model = arithmetic_model(|m| {
            m.node("Constant", &[], &["c"], vec![attr]).node("Unsqueeze", &["x", "c"], &["y"], vec![])
        });
        import_bytes(model.bytes(), None, &Options::default()).unwrap();
    }
}

#[test]
fn every_claimed_op_is_in_a_test() {
    use vision::{activations, images, norms, pools, products, rotations, sums};
    let cases = [elementwise(), movement(), linear(), norm::normalisation(), reductions()].concat_ops();
    let written_out = [activations(), images(), pools(), products(), rotations(), sums(), norms()].concat_ops();
    let here = "And Ceil Constant ConstantOfShape Equal EyeLike Floor Greater GreaterOrEqual If IsNaN Less LessOrEqual Mod Not OneHot Or Range \
                ReduceProd Round ScatterND Shape Sign Size Trilu Where Xor";
    // tests/quantized.rs
    let quantized =
        "ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear";
    let named = here.split_whitespace().chain(quantized.split_whitespace());
    let tested: BTreeSet<&str> = cases.into_iter().chain(written_out).chain(named).collect();
    let claimed: BTreeSet<&str> = supported_ops().into_iter().collect();
    assert_eq!(tested, claimed);
}

trait ConcatOps {
    fn concat_ops(self) -> Vec<&'static str>;
}

impl<const N: usize> ConcatOps for [Vec<Case>; N] {
    fn concat_ops(self) -> Vec<&'static str> {
        self.into_iter().flatten().map(|c| c.op).collect()
    }
}

#[test]
fn a_fixed_batch_becomes_free_and_each_image_keeps_its_result() {
    let image = |seed: usize| (0..64).map(|i| ((i * 31 + seed * 17) % 23) as f32 / 11.0 - 1.0).collect::<Vec<f32>>();
    let both = [image(1), image(2)].concat();
    let fixed = import_bytes(small_vit(18, D::Is(1)).bytes(), None, &as_is()).unwrap();
    let free = import_bytes(small_vit(18, D::Is(1)).bytes(), None, &Options::default()).unwrap();
    let dynamic = import_bytes(small_vit(18, D::Named("batch")).bytes(), None, &Options::default()).unwrap();
    let singles = [image(1), image(2)].map(|x| evaluate(&fixed, (&[1, 1, 8, 8], x)).1).concat();
    for module in [free, dynamic] {
        assert_eq!(module.ty(module.inputs[0].value).shape.0[0], Dim::N);
        let (shape, values) = evaluate(&module, (&[2, 1, 8, 8], both.clone()));
        assert_eq!(shape, [2, 3]);
        assert!(values.iter().zip(&singles).all(|(a, b)| (a - b).abs() < 1e-5), "{values:?} {singles:?}");
    }
}

#[test]
fn a_batch_that_cannot_be_free_stays_fixed_or_is_an_error() {
    let model = Build::new(18).input("x", &[D::Is(1), D::Is(4)]).node("Squeeze", &["x"], &["y"], vec![]).output("y");
    let module = import_bytes(model.bytes(), None, &Options::default()).unwrap();
    assert_eq!(module.ty(module.outputs[0].value).shape, Shape::fixed(&[4]));
    let options = Options { batch: BatchMode::Symbolic, ..Options::default() };
    assert!(matches!(import_bytes(model.bytes(), None, &options), Err(ImportError::Unsupported(_))));
}

#[test]
fn nodes_and_constants_carry_onnx_names() {
    let module = import_bytes(small_vit(18, D::Named("batch")).bytes(), None, &Options::default()).unwrap();
    assert_eq!(module.nodes[0].loc.as_deref(), Some("/Conv_0"));
    assert!(module.consts.iter().any(|c| c.name == "qkv.w"));
    assert_eq!(module.meta["onnx.opset"], "18");
    let mut unnamed = small_vit(18, D::Named("batch"));
    unnamed.graph().node[0].name.clear();
    let module = import_bytes(unnamed.bytes(), None, &Options::default()).unwrap();
    assert_eq!(module.nodes[0].loc.as_deref(), Some("Conv#0"));
}

#[test]
fn all_problems_are_reported_at_once() {
    let model = Build::new(18)
        .input("x", &[D::Named("batch"), D::Is(4)])
        .node("NonZero", &["x"], &["a"], vec![])
        .node("GridSample", &["a"], &["b"], vec![])
        .node("LSTM", &["x", "s"], &["c"], vec![])
        .floats("s", &[], &[1.0])
        .node("Relu", &["c"], &["d"], vec![])
        .node("Hardmax", &["d"], &["y"], vec![])
        .output("y");
    let error = import_bytes(model.bytes(), None, &Options::default()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    for expected in ["/NonZero_0", "/GridSample_1", "/LSTM_2", "/Hardmax_4", "opset 18", "[N, 4]", "help:"] {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
    assert_eq!(error.diagnostics().0.len(), 4, "{text}");
}

#[test]
fn opsets_domains_and_types_outside_are_refused_with_advice() {
    for opset in [6, 26] {
        let error = import_bytes(small_vit(opset, D::Is(1)).bytes(), None, &Options::default()).unwrap_err();
        assert!(error.to_string().contains(&format!("opset {opset} is not supported")), "{error}");
    }
    for opset in [11, 13, 14, 16, 17, 22, 25] {
        let model = small_vit(opset, D::Is(1));
        import_bytes(model.bytes(), None, &Options::default()).unwrap();
    }
    let mut contrib = small_vit(18, D::Is(1));
    contrib.graph().node[0].domain = "com.microsoft".into();
    assert!(
        import_bytes(contrib.bytes(), None, &Options::default()).unwrap_err().to_string().contains("com.microsoft")
    );
    let mut text = small_vit(18, D::Is(1));
    text.graph().input[0] = common::info("x", 8, &[D::Is(1), D::Is(1), D::Is(8), D::Is(8)]);
    let error = import_bytes(text.bytes(), None, &Options::default()).unwrap_err();
    assert!(error.to_string().contains("the element type is string"), "{error}");
}
