//! What has the batch in unusual places or comes as bytes: pixels that the graph casts, borders of pooling, masks and gathers over a
//! dynamic batch.

mod common;

use common::{Build, D, int, int_list};
use vitc_ir::eval::{self, Data, Tensor};
use vitc_onnx::{ImportError, Options, import_bytes};

/// Pixels come as bytes, are moved as such and become floats; integers of other kinds are refused with advice.
#[test]
fn bytes_that_the_graph_casts() {
    let model = |elem: i32, to: i64| {
        let mut build = Build::new(17).ints("perm", &[4], &[0, 3, 1, 2]);
        build.graph().input.push(common::info("x", elem, &[D::Named("n"), D::Is(1), D::Is(2), D::Is(3)]));
        build
            .node("Transpose", &["x"], &["t"], vec![int_list("perm", &[0, 3, 1, 2])])
            .node("Cast", &["t"], &["y"], vec![int("to", to)])
            .output("y")
    };
    let module = import_bytes(model(2, 1).bytes(), None, &Options::default()).unwrap();
    let x = Tensor { shape: vec![1, 1, 2, 3], data: Data::U8(vec![0, 50, 255, 1, 2, 3]) };
    let y = eval::run(&module, &[x]).unwrap();
    assert_eq!(
        (y[0].shape.as_slice(), y[0].as_f32().unwrap()),
        (&[1, 3, 1, 2][..], &[0.0, 1.0, 50.0, 2.0, 255.0, 3.0][..])
    );
    for (elem, to, word) in [(6, 1, "int32"), (3, 1, "int8"), (2, 3, "a cast of computed integers")] {
        let Err(ImportError::Unsupported(found)) = import_bytes(model(elem, to).bytes(), None, &Options::default())
        else {
            panic!("type {elem} to {to}")
        };
        assert!(found.0.iter().any(|d| d.message.contains(word) && d.help.is_some()), "{found}");
    }
}

/// A border of the lowest numbers around the largest of windows is padding, which no integers have to hold.
#[test]
fn a_border_of_lowest_numbers_is_padding_of_a_maximum() {
    let model = |border: f32| {
        Build::new(17)
            .input("x", &[D::Named("n"), D::Is(1), D::Is(3), D::Is(3)])
            .ints("pads", &[8], &[0, 0, 0, 0, 0, 0, 1, 1])
            .floats("low", &[], &[border])
            .node("Pad", &["x", "pads", "low"], &["p"], vec![])
            .node("MaxPool", &["p"], &["y"], vec![int_list("kernel_shape", &[2, 2]), int_list("strides", &[2, 2])])
            .output("y")
    };
    for (border, pads) in [(f32::NEG_INFINITY, 0), (f32::MIN, 0), (0.0, 1)] {
        let module = import_bytes(model(border).bytes(), None, &Options::default()).unwrap();
        let values: Vec<f32> = (1..=9).map(|v| -(v as f32)).collect();
        let y = eval::run(&module, &[Tensor { shape: vec![1, 1, 3, 3], data: Data::F32(values) }]).unwrap();
        let wanted = if border < -1.0 { [-1.0, -3.0, -7.0, -9.0] } else { [-1.0, 0.0, 0.0, 0.0] };
        assert_eq!(y[0].as_f32().unwrap(), wanted);
        let read = |v| module.nodes.iter().any(|n| n.op.name() != "pad" && n.operands.contains(&v));
        let padded = module.nodes.iter().filter(|n| n.op.name() == "pad" && read(n.result)).count();
        assert_eq!(padded, pads, "{border}");
    }
}

/// A mask of nothing for each image of a dynamic batch, made of floats, as positions are counted from one.
#[test]
fn masks_made_of_floats_for_every_image() {
    let build = Build::new(17)
        .input("x", &[D::Named("n"), D::Is(3)])
        .ints("axis", &[1], &[1])
        .node("Shape", &["x"], &["s"], vec![])
        .node("ConstantOfShape", &["s"], &["zeros"], vec![])
        .node("Cast", &["zeros"], &["masked"], vec![int("to", 9)])
        .node("Not", &["masked"], &["kept"], vec![])
        .node("Cast", &["kept"], &["ones"], vec![int("to", 1)])
        .node("CumSum", &["ones", "axis"], &["count"], vec![])
        .node("Add", &["x", "count"], &["y"], vec![])
        .output("y");
    let module = import_bytes(build.bytes(), None, &Options::default()).unwrap();
    let x = Tensor { shape: vec![2, 3], data: Data::F32(vec![0.0, 0.0, 0.0, 10.0, 20.0, 30.0]) };
    let y = eval::run(&module, &[x]).unwrap();
    assert_eq!(y[0].as_f32().unwrap(), [1.0, 2.0, 3.0, 11.0, 22.0, 33.0]);
}

/// Pixels at constant places, the batch behind them.
#[test]
fn elements_before_the_batch_are_gathered() {
    let model = |perm: &[i64]| {
        Build::new(17)
            .input("x", &[D::Named("n"), D::Is(2), D::Is(3)])
            .ints("at", &[2, 2], &[1, 0, 0, -1])
            .node("Transpose", &["x"], &["t"], vec![int_list("perm", perm)])
            .node("GatherND", &["t", "at"], &["g"], vec![])
            .node("Transpose", &["g"], &["y"], vec![int_list("perm", &[1, 0])])
            .output("y")
    };
    let module = import_bytes(model(&[1, 2, 0]).bytes(), None, &Options::default()).unwrap();
    let x = Tensor { shape: vec![2, 2, 3], data: Data::F32((0..12).map(|v| v as f32).collect()) };
    assert_eq!(eval::run(&module, &[x]).unwrap()[0].as_f32().unwrap(), [3.0, 2.0, 9.0, 8.0]);
    // one dimension is gathered, the batch between two others
    let build = Build::new(17)
        .input("x", &[D::Named("n"), D::Is(2), D::Is(3)])
        .ints("at", &[2, 1], &[1, 0])
        .node("Transpose", &["x"], &["t"], vec![int_list("perm", &[1, 0, 2])])
        .node("GatherND", &["t", "at"], &["g"], vec![])
        .node("Transpose", &["g"], &["y"], vec![int_list("perm", &[1, 0, 2])])
        .output("y");
    let module = import_bytes(build.bytes(), None, &Options::default()).unwrap();
    let x = Tensor { shape: vec![2, 2, 3], data: Data::F32((0..12).map(|v| v as f32).collect()) };
    let swapped = [3.0, 4.0, 5.0, 0.0, 1.0, 2.0, 9.0, 10.0, 11.0, 6.0, 7.0, 8.0];
    assert_eq!(eval::run(&module, &[x]).unwrap()[0].as_f32().unwrap(), swapped);
    let error = import_bytes(model(&[0, 1, 2]).bytes(), None, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("elements of the batch are gathered"), "{error}");
}

/// `x[:, rows, columns] = -x[...]`, as the TorchScript exporter writes it: an index of three coordinates for each element, the first
/// of which counts the images of a dynamic batch.
#[test]
fn slices_of_a_batch_are_assigned() {
    let model = |batch: D, rows: [i64; 2], columns: [i64; 2]| {
        let mut build = Build::new(17).input("x", &[batch, D::Is(3), D::Is(4)]);
        for (name, values) in [("i0", vec![0]), ("i1", vec![1]), ("i2", vec![2]), ("last", vec![-1])] {
            build = build.ints(name, &[1], &values);
        }
        build = build
            .ints("zero", &[], &[0])
            .ints("one", &[], &[1])
            .ints("axes", &[2], &[1, 2])
            .ints("from", &[2], &[rows[0], columns[0]])
            .ints("to", &[2], &[rows[1], columns[1]])
            .node("Slice", &["x", "from", "to", "axes"], &["part"], vec![])
            .node("Neg", &["part"], &["new"], vec![])
            .node("Shape", &["x"], &["shape"], vec![])
            .node("Gather", &["shape", "zero"], &["n"], vec![])
            .node("Range", &["zero", "n", "one"], &["images"], vec![])
            .node("Unsqueeze", &["images", "axes"], &["image"], vec![])
            .ints("rows", &[1, rows[1] - rows[0], 1], &(rows[0]..rows[1]).collect::<Vec<_>>())
            .ints("columns", &[1, 1, columns[1] - columns[0]], &(columns[0]..columns[1]).collect::<Vec<_>>())
            .node("Shape", &["part"], &["box"], vec![]);
        for name in ["image", "rows", "columns"] {
            let (wide, column) = (format!("{name}.wide"), format!("{name}.column"));
            build = build.node("Expand", &[name, "box"], &[&wide], vec![]).node(
                "Unsqueeze",
                &[&wide, "last"],
                &[&column],
                vec![],
            );
        }
        build
            .node("Concat", &["image.column", "rows.column", "columns.column"], &["index"], vec![int("axis", -1)])
            .node("ScatterND", &["x", "index", "new"], &["y"], vec![])
            .output("y")
    };
    for batch in [D::Named("n"), D::Is(2)] {
        for (rows, columns) in [([0, 3], [0, 4]), ([1, 3], [0, 4]), ([1, 2], [1, 3]), ([0, 2], [3, 4])] {
            let options = Options { batch: vitc_onnx::BatchMode::AsIs, ..Options::default() };
            let module = import_bytes(model(batch, rows, columns).bytes(), None, &options);
            let module = module.unwrap_or_else(|e| panic!("{e}"));
            let values: Vec<f32> = (1..=24).map(|v| v as f32).collect();
            let within = |i: usize| {
                let (row, column) = ((i / 4 % 3) as i64, (i % 4) as i64);
                (rows[0]..rows[1]).contains(&row) && (columns[0]..columns[1]).contains(&column)
            };
            let expected: Vec<f32> = values.iter().enumerate().map(|(i, &v)| if within(i) { -v } else { v }).collect();
            let y = eval::run(&module, &[Tensor { shape: vec![2, 3, 4], data: Data::F32(values) }]).unwrap();
            assert_eq!(y[0].as_f32().unwrap(), expected, "{rows:?} {columns:?}");
        }
    }
}

/// An index that names image 0 means that image alone, unless the model has no other.
#[test]
fn one_image_of_a_batch_cannot_be_assigned() {
    let model = |batch: D| {
        Build::new(17)
            .input("x", &[batch, D::Is(2)])
            .ints("index", &[1, 1, 2], &[0, 1])
            .ints("column", &[1], &[1])
            .node("Gather", &["x", "column"], &["new"], vec![int("axis", 1)])
            .node("Neg", &["new"], &["r"], vec![])
            .node("ScatterND", &["x", "index", "r"], &["y"], vec![])
            .output("y")
    };
    let refused = import_bytes(model(D::Named("n")).bytes(), None, &Options::default()).unwrap_err();
    assert!(refused.to_string().contains("of the batch"), "{refused}");
    let module = import_bytes(model(D::Is(1)).bytes(), None, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let x = Tensor { shape: vec![2, 2], data: Data::F32(vec![1.0, 2.0, 3.0, 4.0]) };
    let y = eval::run(&module, &[x]).map(|y| y[0].as_f32().map(<[f32]>::to_vec));
    assert_eq!(y.unwrap(), Some(vec![1.0, -2.0, 3.0, -4.0]));
}
