//! Masks and other constants that exporters compute in the graph.

use vitc_onnx::{Options, import_bytes};

use super::arithmetic_model;
use super::case::{evaluate, seq};
use super::common::{Build, D, floats, int, ints};

/// A mask that transformers repeat over the batch: one image's content is known, and the batch is that of the shape.
#[test]
fn masks_repeated_over_the_batch_are_known() {
    let model = |inverted: bool, add: bool| {
        let mut m = Build::new(18).input("x", &[D::Named("N"), D::Is(1), D::Is(2), D::Is(2)]);
        m = m
            .tensor(ints("one", &[1], &[1]))
            .tensor(ints("two", &[1], &[2]))
            .tensor(ints("rows", &[2, 1], &[0, 1]))
            .tensor(ints("columns", &[2], &[0, 1]))
            .floats("zero", &[], &[0.0])
            .floats("far", &[], &[-1e9])
            .node("GreaterOrEqual", &["rows", "columns"], &["causal"], vec![])
            .node("Shape", &["x"], &["batch"], vec![int("start", 0), int("end", 1)])
            .node("Concat", &["batch", "one", "two", "two"], &["shape"], vec![int("axis", 0)])
            .node("Expand", &["causal", "shape"], &["e"], vec![])
            .node("Not", &["e"], &["not"], vec![])
            .node("And", &["e", "e"], &["and"], vec![]);
        let mask = if inverted { ["not", "far", "zero"] } else { ["and", "zero", "far"] };
        m = m.node("Where", &mask, &["bias"], vec![]);
        match add {
            true => m.node("Add", &["x", "bias"], &["y"], vec![]).output("y"),
            false => m.node("Where", &["e", "x", "far"], &["y"], vec![]).output("y"),
        }
    };
    for (inverted, add) in [(false, true), (true, true), (false, false)] {
        let module = import_bytes(model(inverted, add).bytes(), None, &Options::default()).unwrap();
        let (shape, y) = evaluate(&module, (&[3, 1, 2, 2], seq(12)));
        assert_eq!(shape, [3, 1, 2, 2]);
        let want: Vec<f32> = (0..12).map(|i| if i % 4 == 1 { -1e9 } else { i as f32 }).collect();
        assert!(y.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()), "{y:?}");
    }
}

/// Selected from constants alone, a mask still has the batch.
#[test]
fn a_selection_of_constants_by_a_repeated_mask_has_the_batch() {
    let model = Build::new(18)
        .input("x", &[D::Named("N"), D::Is(2)])
        .tensor(ints("two", &[1], &[2]))
        .tensor(ints("columns", &[2], &[0, 1]))
        .floats("zero", &[], &[0.0])
        .floats("far", &[], &[-5.0])
        .node("Equal", &["columns", "columns"], &["all"], vec![])
        .node("Shape", &["x"], &["batch"], vec![int("start", 0), int("end", 1)])
        .node("Concat", &["batch", "two"], &["shape"], vec![int("axis", 0)])
        .node("Expand", &["all", "shape"], &["e"], vec![])
        .node("Where", &["e", "far", "zero"], &["w"], vec![])
        .node("Concat", &["x", "w"], &["y"], vec![int("axis", 1)])
        .output("y");
    let module = import_bytes(model.bytes(), None, &Options::default()).unwrap();
    let (shape, y) = evaluate(&module, (&[2, 2], seq(4)));
    assert_eq!((shape, y), (vec![2, 4], vec![0.0, 1.0, -5.0, -5.0, 2.0, 3.0, -5.0, -5.0]));
}

#[test]
fn masks_select_exactly() {
    let x = (&[1usize, 6][..], vec![1.0, -2.0, 3.0, -4.0, 5.0, -6.0]);
    for (low, keep) in [(f32::NEG_INFINITY, true), (f32::MIN, true), (-1.5, true), (-1.5, false)] {
        let operands: &[&str] = if keep { &["mask", "x", "low"] } else { &["mask", "low", "x"] };
        let model = arithmetic_model(|m| m.floats("low", &[], &[low]).node("Where", operands, &["y"], vec![]));
        let module = import_bytes(model.bytes(), None, &Options::default()).unwrap();
        let expected: Vec<f32> =
            x.1.iter().enumerate().map(|(i, &v)| if (i % 2 == 0) == keep { v } else { low }).collect();
        assert_eq!(evaluate(&module, x.clone()).1, expected);
    }
    let model =
        arithmetic_model(|m| m.node("Neg", &["x"], &["n"], vec![]).node("Where", &["mask", "x", "n"], &["y"], vec![]));
    let module = import_bytes(model.bytes(), None, &Options::default()).unwrap();
    assert_eq!(evaluate(&module, x).1, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
}

/// The guard against rows that are masked throughout is the softmax itself; asked of anything else, it is refused.
#[test]
fn guards_of_a_softmax_are_the_softmax() {
    let guarded = |op: &str| {
        let model =
            arithmetic_model(|m| {
                m.floats("none", &[], &[0.0])
                    .node(op, &["x"], &["p"], vec![])
                    .node("IsNaN", &["p"], &["bad"], vec![])
                    .node("Where", &["bad", "none", "p"], &["y"], vec![])
            });
        import_bytes(model.bytes(), None, &Options::default())
    };
    let module = guarded("Softmax").unwrap();
    assert_eq!(module.nodes.iter().map(|n| n.op.name()).collect::<Vec<_>>(), ["softmax"]);
    assert!(guarded("Neg").unwrap_err().to_string().contains("of a softmax only"));
}

/// As windows of images are told apart: regions are numbered in a plane of zeros, and where two numbers differ there is a
/// large negative bias. All of it is more than a few constants, and none of it depends on the image.
#[test]
fn masks_computed_from_constants_are_known() {
    let model = Build::new(18)
        .input("x", &[D::Named("n"), D::Is(9), D::Is(9)])
        .ints("plane", &[2], &[9, 9])
        .ints("at", &[2, 1], &[1, 8])
        .floats("two", &[2, 9], &[2.0; 18])
        .ints("first", &[1], &[0])
        .ints("row", &[1], &[0])
        .ints("column", &[1], &[1])
        .floats("zero", &[], &[0.0])
        .floats("far", &[], &[-100.0])
        .node("ConstantOfShape", &["plane"], &["p0"], vec![])
        .node("ScatterND", &["p0", "at", "two"], &["p1"], vec![])
        .node("Gather", &["p1", "first"], &["g"], vec![int("axis", 1)])
        .node("Reshape", &["g", "nine"], &["v"], vec![])
        .ints("nine", &[1], &[9])
        .node("Unsqueeze", &["v", "row"], &["a"], vec![])
        .node("Unsqueeze", &["v", "column"], &["b"], vec![])
        .node("Sub", &["a", "b"], &["d"], vec![])
        .node("Equal", &["d", "zero"], &["same"], vec![])
        .node("Not", &["same"], &["other"], vec![])
        .node("Where", &["other", "far", "d"], &["m0"], vec![])
        .node("Equal", &["m0", "zero"], &["none"], vec![])
        .node("Where", &["none", "zero", "m0"], &["m"], vec![])
        .node("Add", &["x", "m"], &["y"], vec![])
        .output("y");
    let module = import_bytes(model.bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let (_, values) = evaluate(&module, (&[1, 9, 9], vec![1.0; 81]));
    let marked = |i: usize| i == 1 || i == 8;
    let expected = |i: usize| if marked(i / 9) == marked(i % 9) { 1.0 } else { -99.0 };
    assert_eq!(values, (0..81).map(expected).collect::<Vec<_>>());
}

/// The diagonal is left out of attention, as in a ViT for small datasets (arXiv:2112.13492, section 3.2).
#[test]
fn a_diagonal_is_known() {
    for (dtype, k) in [(9, 0), (7, 1), (1, -1)] {
        let model = Build::new(18)
            .input("x", &[D::Named("n"), D::Is(3), D::Is(3)])
            .ints("square", &[2], &[3, 3])
            .node("ConstantOfShape", &["square"], &["none"], vec![])
            .node("EyeLike", &["none"], &["eye"], vec![int("dtype", dtype), int("k", k)])
            .node("Cast", &["eye"], &["mask"], vec![int("to", 9)])
            .floats("far", &[], &[-100.0])
            .node("Where", &["mask", "far", "x"], &["y"], vec![])
            .output("y");
        let module = import_bytes(model.bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let y = evaluate(&module, (&[1, 3, 3], seq(9))).1;
        let expected = |i: i64| if i % 3 - i / 3 == k { -100.0 } else { i as f32 };
        assert_eq!(y, (0..9).map(expected).collect::<Vec<_>>());
    }
}

/// One number among others: along every axis, counted from the end, and none where the class is out of range.
#[test]
fn one_hot_numbers_are_known() {
    let eight = [[5.0, 2.0, 2.0], [2.0, 2.0, 5.0]];
    for (axis, shape, expected) in
        [(-1, [2, 3], eight.concat()), (1, [2, 3], eight.concat()), (0, [3, 2], vec![5.0, 2.0, 2.0, 2.0, 2.0, 5.0])]
    {
        let model = Build::new(18)
            .input("x", &[D::Named("n"), D::Is(shape[0]), D::Is(shape[1])])
            .ints("classes", &[2], &[0, -1])
            .ints("depth", &[], &[3])
            .floats("values", &[2], &[2.0, 5.0])
            .node("OneHot", &["classes", "depth", "values"], &["o"], vec![int("axis", axis)])
            .node("Add", &["x", "o"], &["y"], vec![])
            .output("y");
        let module = import_bytes(model.bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let dims = [1, shape[0] as usize, shape[1] as usize];
        assert_eq!(evaluate(&module, (&dims, vec![0.0; 6])).1, expected, "axis {axis}");
    }
}

/// How often something is repeated, as the TorchScript exporter writes `repeat` by a number of images.
#[test]
fn repetitions_may_be_one_hot() {
    let model = Build::new(18)
        .input("x", &[D::Named("n"), D::Is(2)])
        .tensor(ints("one", &[1], &[1]))
        .ints("first", &[1], &[0])
        .ints("two", &[], &[2])
        .tensor(floats("row", &[1, 2], &[1.0, 2.0]))
        .node("Shape", &["x"], &["n"], vec![int("start", 0), int("end", 1)])
        .node("Concat", &["one", "n"], &["values"], vec![int("axis", 0)])
        .node("OneHot", &["first", "two", "values"], &["o"], vec![])
        .node("Reshape", &["o", "flat"], &["often"], vec![])
        .ints("flat", &[1], &[-1])
        .node("Tile", &["row", "often"], &["rows"], vec![])
        .node("Add", &["x", "rows"], &["y"], vec![])
        .output("y");
    let module = import_bytes(model.bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(evaluate(&module, (&[2, 2], seq(4))).1, [1.0, 3.0, 3.0, 5.0]);
}
