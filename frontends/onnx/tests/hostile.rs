//! Damaged and hostile models: mutants (T1), prefixes (T2), external data (T3), limits (T4).

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Build, D, external, floats, int, int_list, ints, small_vit, tensor_attr, word};
use onnx_protobuf::Message;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use vitc_onnx::{ImportError, Limits, Options, import_bytes, import_file, inspect_file};

fn small_limits() -> Options {
    let limits = Limits { elements: 1 << 20, fold_bytes: 4 << 20, fold_floor_bytes: 1 << 16, ..Limits::default() };
    Options { limits, ..Options::default() }
}

fn seeds() -> Vec<Build> {
    let conv = Build::new(17)
        .input("x", &[D::Named("n"), D::Is(2), D::Is(6), D::Is(6)])
        .floats("w", &[4, 1, 3, 3], &[0.1; 36])
        .floats("s", &[4], &[1.0; 4])
        .ints("p", &[8], &[0, 0, 0, 0, 0, 0, 1, 1])
        .ints("z", &[2], &[0, -1])
        .node("Conv", &["x", "w"], &["a"], vec![int("group", 2), int_list("pads", &[1, 1, 1, 1])])
        .node("BatchNormalization", &["a", "s", "s", "s", "s"], &["b"], vec![])
        .node("HardSwish", &["b"], &["c"], vec![])
        .node("Pad", &["c", "p"], &["d"], vec![])
        .node("AveragePool", &["d"], &["e"], vec![int_list("kernel_shape", &[2, 2])])
        .node("ReduceMean", &["e"], &["f"], vec![int_list("axes", &[2, 3])])
        .node("Reshape", &["f", "z"], &["y"], vec![])
        .output("y");
    let shapes = Build::new(18)
        .input("x", &[D::Is(1), D::Is(4), D::Is(8)])
        .ints("k", &[3], &[1, 2, 2])
        .ints("i", &[2], &[3, 0])
        .ints("three", &[1], &[3])
        .ints("one", &[1], &[1])
        .node("ConstantOfShape", &["three"], &["c"], vec![tensor_attr("value", ints("", &[1], &[2]))])
        .node("Mul", &["c", "k"], &["m"], vec![])
        .node("Tile", &["x", "m"], &["t"], vec![])
        .node("Gather", &["x", "i"], &["g"], vec![int("axis", 1)])
        .node("Slice", &["g", "one", "three", "one"], &["s"], vec![])
        .node("Split", &["g"], &["u", "v"], vec![int("axis", 2)])
        .node("Concat", &["u", "v"], &["w"], vec![int("axis", 1)])
        .node("Flatten", &["w"], &["y"], vec![])
        .output("y");
    vec![small_vit(18, D::Is(1)), small_vit(17, D::Named("b")), conv, shapes, images(), tokens()]
}

/// Ops on images that are written out as others.
fn images() -> Build {
    Build::new(19)
        .input("x", &[D::Named("n"), D::Is(2), D::Is(6), D::Is(6)])
        .floats("w", &[2, 1, 3, 3], &[0.1; 18])
        .floats("s", &[4], &[1.0, 1.0, 2.0, 0.5])
        .ints("z", &[2], &[5, 7])
        .ints("p", &[8], &[0, 0, 1, 2, 0, 0, 1, -1])
        .ints("axis", &[], &[3])
        .ints("last", &[1], &[-1])
        .node("MaxPool", &["x"], &["a"], vec![int_list("kernel_shape", &[3, 2]), int_list("pads", &[1, 0, 1, 1])])
        .node("Resize", &["a", "", "s"], &["b"], vec![])
        .node("Resize", &["b", "", "", "z"], &["c"], vec![int_list("axes", &[2, 3]), word("mode", "cubic")])
        .node("ConvTranspose", &["c", "w"], &["d"], vec![int("group", 2), int_list("strides", &[2, 1])])
        .node("Pad", &["d", "p"], &["e"], vec![word("mode", "reflect")])
        .node("AveragePool", &["e"], &["f"], vec![int_list("kernel_shape", &[2, 2]), int("ceil_mode", 1)])
        .node("CumSum", &["f", "axis"], &["g"], vec![])
        .node("ReduceProd", &["g", "last"], &["y"], vec![int("keepdims", 0)])
        .output("y")
}

/// Ops on tokens that are written out as others.
fn tokens() -> Build {
    Build::new(23)
        .input("x", &[D::Is(1), D::Is(3), D::Is(4)])
        .floats("g", &[4], &[1.0; 4])
        .ints("i", &[1, 2], &[0, 2])
        .ints("e", &[1, 3, 1], &[0, 3, -1])
        .bools("m", &[3, 3], &[1, 0, 0, 1, 1, 0, 1, 1, 1])
        .node("RMSNormalization", &["x", "g"], &["a"], vec![])
        .node("Attention", &["a", "a", "a", "m"], &["b"], vec![int("q_num_heads", 2), int("kv_num_heads", 2)])
        .node(
            "Attention",
            &["b", "b", "b"],
            &["b2"],
            vec![int("q_num_heads", 4), int("kv_num_heads", 4), int("is_causal", 1)],
        )
        .node("Einsum", &["b2", "x"], &["c"], vec![word("equation", "bij,bkj->bik")])
        .node("Trilu", &["c"], &["d"], vec![])
        .node("GatherElements", &["x", "e"], &["h"], vec![int("axis", 2)])
        .node("GatherND", &["d", "i"], &["y"], vec![])
        .output("y")
}

/// Numbers that break arithmetic.
fn nasty() -> impl Strategy<Value = i64> {
    let edges = [i64::MIN, i64::MIN + 1, -(1 << 40), -2, -1, 0, 1, 2, 3, 7, 64, 1 << 20, 1 << 31, 1 << 53, i64::MAX];
    prop_oneof![4 => proptest::sample::select(edges.to_vec()), 1 => any::<i64>()]
}

#[derive(Clone, Debug)]
enum Mutation {
    Dim(usize, usize, i64),
    Int(usize, usize, i64),
    Type(usize, i32),
    Operand(usize, usize, usize),
    Attr(usize, usize, i64),
    AttrList(usize, usize, Vec<i64>),
    DropAttr(usize),
    Op(usize, usize),
    Swap(usize, usize),
    DropNode(usize),
    DuplicateNode(usize),
    DropOperand(usize),
    InputDim(usize, i64),
    Float(usize, f32),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = 0usize..1000;
    let list = proptest::collection::vec(nasty(), 0..10);
    prop_oneof![
        (at.clone(), at.clone(), nasty()).prop_map(|(a, b, c)| Mutation::Dim(a, b, c)),
        (at.clone(), at.clone(), nasty()).prop_map(|(a, b, c)| Mutation::Int(a, b, c)),
        (at.clone(), 0i32..25).prop_map(|(a, b)| Mutation::Type(a, b)),
        (at.clone(), at.clone(), at.clone()).prop_map(|(a, b, c)| Mutation::Operand(a, b, c)),
        (at.clone(), at.clone(), nasty()).prop_map(|(a, b, c)| Mutation::Attr(a, b, c)),
        (at.clone(), at.clone(), list).prop_map(|(a, b, c)| Mutation::AttrList(a, b, c)),
        at.clone().prop_map(Mutation::DropAttr),
        (at.clone(), at.clone()).prop_map(|(a, b)| Mutation::Op(a, b)),
        (at.clone(), at.clone()).prop_map(|(a, b)| Mutation::Swap(a, b)),
        at.clone().prop_map(Mutation::DropNode),
        at.clone().prop_map(Mutation::DuplicateNode),
        at.clone().prop_map(Mutation::DropOperand),
        (at.clone(), nasty()).prop_map(|(a, b)| Mutation::InputDim(a, b)),
        (at, any::<f32>()).prop_map(|(a, b)| Mutation::Float(a, b)),
    ]
}

fn pick<T>(list: &mut [T], at: usize) -> Option<&mut T> {
    let len = list.len();
    if len == 0 { None } else { list.get_mut(at % len) }
}

fn mutate(build: &mut Build, mutation: Mutation) -> Option<()> {
    let graph = build.graph();
    let names: Vec<String> = graph
        .node
        .iter()
        .flat_map(|n| n.output.clone())
        .chain(graph.initializer.iter().map(|t| t.name.clone()))
        .collect();
    let ops = vitc_onnx::supported_ops();
    match mutation {
        Mutation::Dim(t, d, v) => *pick(&mut pick(&mut graph.initializer, t)?.dims, d)? = v,
        Mutation::Int(t, d, v) => {
            let mut with_ints: Vec<_> = graph.initializer.iter_mut().filter(|t| !t.int64_data.is_empty()).collect();
            *pick(&mut pick(&mut with_ints, t)?.int64_data, d)? = v;
        }
        Mutation::Type(t, v) => pick(&mut graph.initializer, t)?.data_type = v,
        Mutation::Operand(n, i, v) => {
            *pick(&mut pick(&mut graph.node, n)?.input, i)? = names.get(v % names.len())?.clone()
        }
        Mutation::Attr(n, a, v) => pick(&mut pick(&mut graph.node, n)?.attribute, a)?.i = v,
        Mutation::AttrList(n, a, v) => pick(&mut pick(&mut graph.node, n)?.attribute, a)?.ints = v,
        Mutation::DropAttr(n) => {
            pick(&mut graph.node, n)?.attribute.pop();
        }
        Mutation::Op(n, op) => pick(&mut graph.node, n)?.op_type = ops.get(op % ops.len())?.to_string(),
        Mutation::Swap(a, b) => {
            let len = graph.node.len();
            graph.node.swap(a % len, b % len);
        }
        Mutation::DropNode(n) => {
            let len = graph.node.len();
            graph.node.remove(n % len);
        }
        Mutation::DuplicateNode(n) => {
            let node = pick(&mut graph.node, n)?.clone();
            graph.node.push(node);
        }
        Mutation::DropOperand(n) => {
            pick(&mut graph.node, n)?.input.pop();
        }
        Mutation::InputDim(d, v) => {
            let tensor = graph.input[0].type_.as_mut()?.mut_tensor_type();
            pick(&mut tensor.shape.as_mut()?.dim, d)?.set_dim_value(v);
        }
        Mutation::Float(t, v) => {
            let tensor = pick(&mut graph.initializer, t)?;
            let bytes = v.to_le_bytes();
            tensor.raw_data.chunks_exact_mut(4).for_each(|c| c.copy_from_slice(&bytes));
        }
    }
    Some(())
}

/// Imports, and checks what holds for any bytes: no panic, no long wait, a verified module or at least one diagnostic.
fn survive(bytes: Bytes, options: &Options) -> bool {
    let start = Instant::now();
    let result = import_bytes(bytes, None, options);
    assert!(start.elapsed() < Duration::from_secs(5), "import took {:?}", start.elapsed());
    match result {
        Ok(module) => {
            vitc_ir::verify::verify(&module).unwrap_or_else(|e| panic!("an imported module is wrong:\n{e}"));
            true
        }
        Err(e) => {
            assert!(!e.diagnostics().0.is_empty());
            assert!(e.to_string().len() < 1 << 20);
            false
        }
    }
}

#[test]
fn structured_mutants_never_panic_or_hang() {
    let (options, seeds) = (small_limits(), seeds());
    let mut runner = TestRunner::deterministic();
    let strategy = (0..seeds.len(), proptest::collection::vec(mutation(), 1..6));
    let (mut imported, mut refused) = (0, 0);
    for _ in 0..16_000 {
        let (seed, mutations) = strategy.new_tree(&mut runner).unwrap().current();
        let mut build = seeds[seed].clone();
        for m in mutations {
            mutate(&mut build, m);
        }
        if survive(build.bytes(), &options) { imported += 1 } else { refused += 1 }
    }
    println!("{imported} mutants imported, {refused} refused");
    assert!(imported > 50 && refused > 50);
}

#[test]
fn byte_mutants_never_panic_or_hang() {
    let (options, seeds) = (small_limits(), seeds());
    let mut runner = TestRunner::deterministic();
    let strategy = (0..seeds.len(), proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8));
    for _ in 0..4_000 {
        let (seed, edits) = strategy.new_tree(&mut runner).unwrap().current();
        let mut bytes = seeds[seed].bytes().to_vec();
        let len = bytes.len();
        edits.into_iter().for_each(|(at, byte)| bytes[at % len] = byte);
        survive(bytes.into(), &options);
    }
}

#[test]
fn every_prefix_is_a_diagnostic() {
    for seed in seeds() {
        let bytes = seed.bytes();
        assert!(survive(bytes.clone(), &Options::default()));
        for len in 0..bytes.len() {
            assert!(!survive(bytes.slice(..len), &Options::default()), "a prefix of {len} bytes was imported");
        }
    }
}

#[test]
fn noise_is_a_diagnostic() {
    let mut runner = TestRunner::deterministic();
    let noise = proptest::collection::vec(any::<u8>(), 0..300);
    for _ in 0..2000 {
        survive(noise.new_tree(&mut runner).unwrap().current().into(), &Options::default());
    }
    assert!(matches!(import_file("no such file.onnx", &Options::default()), Err(ImportError::Io(_))));
    assert!(matches!(import_file(".", &Options::default()), Err(ImportError::Io(_))));
}

// ---- external data

fn with_external(entries: &[(&str, &str)]) -> Build {
    Build::new(18)
        .input("x", &[D::Named("n"), D::Is(4)])
        .tensor(external("w", &[4], entries))
        .node("Add", &["x", "w"], &["y"], vec![])
        .output("y")
}

fn write(path: impl AsRef<Path>, bytes: &[u8]) {
    std::fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn external_data_is_mapped_from_beside_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
    write(folder.path().join("w.bin"), &data);
    write(folder.path().join("sub/w.bin"), &data);
    for location in ["w.bin", "./w.bin", "sub/w.bin"] {
        let model = with_external(&[("location", location), ("offset", "16"), ("length", "16"), ("checksum", "x")]);
        write(folder.path().join("m.onnx"), &model.bytes());
        for read_into_memory in [false, true] {
            let options = Options { read_into_memory, ..Options::default() };
            let module = import_file(folder.path().join("m.onnx"), &options).unwrap();
            assert_eq!(*module.consts[0].values::<f32>(), [4.0, 5.0, 6.0, 7.0]);
        }
    }
    let without_length = with_external(&[("location", "w.bin")]);
    assert!(import_bytes(without_length.bytes(), Some(folder.path()), &Options::default()).is_ok());
    assert!(import_bytes(without_length.bytes(), None, &Options::default()).is_err());
}

#[test]
fn external_data_attacks_are_refused() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("model");
    let decoy: Vec<u8> = [1234.5f32; 4].iter().flat_map(|v| v.to_le_bytes()).collect();
    write(outer.path().join("decoy.bin"), &decoy);
    write(folder.join("w.bin"), &decoy);
    write(folder.join("short.bin"), &decoy[..15]);
    write(folder.join("empty.bin"), &[]);
    write(folder.join("sub/inner.bin"), &decoy);
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink(outer.path().join("decoy.bin"), folder.join("link.bin")).unwrap();
        symlink("w.bin", folder.join("near.bin")).unwrap();
        symlink(outer.path(), folder.join("linkdir")).unwrap();
        symlink("sub", folder.join("neardir")).unwrap();
        symlink("loop.bin", folder.join("loop.bin")).unwrap();
        symlink("/dev/zero", folder.join("zero.bin")).unwrap();
        let fifo = folder.join("fifo.bin");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    }
    let absolute = outer.path().join("decoy.bin").display().to_string();
    let long = "a/".repeat(5000) + "w.bin";
    let locations = [
        "",
        ".",
        "./",
        "..",
        "../decoy.bin",
        "sub/../../decoy.bin",
        "sub/../w.bin",
        "./../decoy.bin",
        "..//decoy.bin",
        "sub/..",
        "/etc/passwd",
        "//decoy.bin",
        &absolute,
        "C:\\decoy.bin",
        "C:/decoy.bin",
        "C:decoy.bin",
        "\\\\host\\share\\decoy.bin",
        "..\\decoy.bin",
        "sub\\inner.bin",
        "file:///etc/passwd",
        "w.bin:stream",
        "w.bin\0",
        "w.bin\0.onnx",
        "sub//inner.bin",
        "sub/inner.bin/",
        "w.bin/",
        "w.bin/x",
        "sub",
        "missing.bin",
        "link.bin",
        "near.bin",
        "linkdir/decoy.bin",
        "neardir/inner.bin",
        "loop.bin",
        "zero.bin",
        "fifo.bin",
        "empty.bin",
        "short.bin",
        &long,
    ];
    for location in locations {
        refuse(&folder, &[("location", location)]);
    }
    let numbers =
        ["-1", "+0", " 0", "0 ", "1e1", "0x0", "", "18446744073709551616", "18446744073709551615", "1", "16", "one"];
    for number in numbers {
        refuse(&folder, &[("location", "w.bin"), ("offset", number)]);
        if number != "16" {
            refuse(&folder, &[("location", "w.bin"), ("length", number)]);
        }
    }
    refuse(&folder, &[("offset", "0")]);
    let scarce = Limits { external_bytes: 15, ..Limits::default() };
    let model = with_external(&[("location", "w.bin")]);
    assert!(import_bytes(model.bytes(), Some(&folder), &Options { limits: scarce, ..Options::default() }).is_err());
}

fn refuse(folder: &Path, entries: &[(&str, &str)]) {
    let model = with_external(entries);
    let error = match import_bytes(model.bytes(), Some(folder), &Options::default()) {
        Ok(_) => panic!("{entries:?} was read"),
        Err(e) => e,
    };
    assert!(error.to_string().contains("external data"), "{entries:?}: {error}");
    assert!(!error.to_string().contains("1234.5"));
}

// ---- limits

/// `model` is imported under `fits` and refused for a limit under `exceeded`.
fn at_and_beyond(model: &Build, fits: Limits, exceeded: Limits) {
    let import = |limits| import_bytes(model.bytes(), None, &Options { limits, ..Options::default() });
    import(fits.clone()).unwrap_or_else(|e| panic!("{fits:?}: {e}"));
    assert!(import(exceeded.clone()).is_err(), "{exceeded:?}");
}

#[test]
fn each_limit_holds_at_its_value_and_not_one_beyond() {
    let model = small_vit(18, D::Named("n"));
    let base = Limits::default();
    let len = model.bytes().len() as u64;
    at_and_beyond(&model, Limits { file_bytes: len, ..base.clone() }, Limits { file_bytes: len - 1, ..base.clone() });
    let graph = model.0.graph.as_ref().unwrap();
    let (nodes, weights) = (graph.node.len(), graph.initializer.len());
    at_and_beyond(&model, Limits { nodes, ..base.clone() }, Limits { nodes: nodes - 1, ..base.clone() });
    at_and_beyond(
        &model,
        Limits { initializers: weights, ..base.clone() },
        Limits { initializers: weights - 1, ..base.clone() },
    );
    at_and_beyond(&model, Limits { rank: 5, ..base.clone() }, Limits { rank: 4, ..base.clone() });
    // The largest tensor is the qkv weight matrix.
    at_and_beyond(&model, Limits { elements: 192, ..base.clone() }, Limits { elements: 191, ..base.clone() });
    let emitted = import_bytes(model.bytes(), None, &Options::default()).unwrap().nodes.len();
    at_and_beyond(
        &model,
        Limits { emitted_nodes: emitted, ..base.clone() },
        Limits { emitted_nodes: emitted - 1, ..base.clone() },
    );
    let long = "/LayerNormalization_13".len();
    at_and_beyond(&model, Limits { name_bytes: long, ..base.clone() }, Limits { name_bytes: long - 1, ..base.clone() });
    let (mut low, mut high) = (0, 1 << 20);
    while low + 1 < high {
        let fields = (low + high) / 2;
        let options = Options { limits: Limits { fields, ..base.clone() }, ..Options::default() };
        if import_bytes(model.bytes(), None, &options).is_ok() { high = fields } else { low = fields }
    }
    assert!((200..2000).contains(&high), "{high} fields");
}

#[test]
fn the_file_limit_holds_for_files() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bytes) = (folder.path().join("m.onnx"), small_vit(18, D::Is(1)).bytes());
    write(&path, &bytes);
    for read_into_memory in [false, true] {
        let with = |file_bytes| Options {
            limits: Limits { file_bytes, ..Limits::default() },
            read_into_memory,
            ..Options::default()
        };
        assert!(import_file(&path, &with(bytes.len() as u64)).is_ok());
        assert!(matches!(import_file(&path, &with(bytes.len() as u64 - 1)), Err(ImportError::Io(_))));
        assert!(inspect_file(&path, &with(bytes.len() as u64)).unwrap().unsupported.0.is_empty());
    }
}

fn folding(op: &str, inputs: &[&str], consts: impl FnOnce(Build) -> Build) -> Build {
    let model = consts(Build::new(18).input("x", &[D::Named("n"), D::Is(4)]));
    model
        .node(op, inputs, &["k"], vec![])
        .node("Size", &["k"], &["s"], vec![])
        .node("Relu", &["x"], &["y"], vec![])
        .output("y")
}

#[test]
fn small_models_cannot_ask_for_large_memory() {
    let huge = 1i64 << 27;
    let models = [
        folding("ConstantOfShape", &["d"], |b| b.ints("d", &[2], &[1 << 20, 1 << 20])),
        folding("Expand", &["v", "d"], |b| b.ints("v", &[1], &[1]).ints("d", &[1], &[huge])),
        folding("Range", &["a", "b", "c"], |b| b.ints("a", &[], &[0]).ints("b", &[], &[huge]).ints("c", &[], &[1])),
        folding("Range", &["a", "b", "c"], |b| b.ints("a", &[], &[0]).ints("b", &[], &[1]).ints("c", &[], &[0])),
        folding("Add", &["a", "b"], |b| b.ints("a", &[4096, 1], &[1; 4096]).ints("b", &[1, 4096], &[1; 4096])),
        folding("Gather", &["a", "b"], |b| b.ints("a", &[2, 500], &[0; 1000]).ints("b", &[10_000], &[0; 10_000])),
        folding("Expand", &["x", "d"], |b| b.ints("d", &[3], &[1 << 30, 1, 4])),
        folding("Tile", &["x", "d"], |b| b.ints("d", &[2], &[1, 1 << 40])),
        folding("Pad", &["x", "d"], |b| b.ints("d", &[4], &[0, 0, 0, i64::MAX])),
        folding("Add", &["x", "a"], |b| b.tensor(floats("a", &[1 << 20, 1 << 20, 1 << 20, 1 << 20], &[]))),
        folding("Add", &["x", "a"], |b| b.tensor(floats("a", &[-1], &[]))),
        folding("Add", &["x", "a"], |b| b.tensor(floats("a", &[1 << 31], &[1.0]))),
        folding("Add", &["x", "a"], |b| b.tensor(floats("a", &[1; 9], &[1.0]))),
    ];
    for (i, model) in models.iter().enumerate() {
        assert!(!survive(model.bytes(), &Options::default()), "model {i} was imported");
    }
    // Doubling again and again: each step is small, all together are not.
    let mut doubling = Build::new(18).input("x", &[D::Named("n"), D::Is(4)]).ints("v0", &[2], &[1, 1]);
    for i in 0..40 {
        let (from, to) = (format!("v{i}"), format!("v{}", i + 1));
        doubling = doubling.node("Concat", &[&from, &from], &[&to], vec![int("axis", 0)]);
    }
    assert!(!survive(doubling.node("Relu", &["x"], &["y"], vec![]).output("y").bytes(), &Options::default()));
    // Two bytes a node.
    let mut graph = Vec::new();
    (0..300_000).for_each(|_| graph.extend([0x0a, 0x00]));
    let mut many = vec![0x3a];
    prost::encoding::encode_varint(graph.len() as u64, &mut many);
    many.extend(graph);
    assert!(!survive(many.into(), &Options::default()));
}

#[test]
fn both_readers_see_the_same_model() {
    for seed in seeds() {
        let bytes = seed.bytes();
        let read = onnx_protobuf::ModelProto::parse_from_bytes(&bytes).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        write(&path, &bytes);
        let seen = inspect_file(&path, &Options::default()).unwrap();
        let graph = read.graph.as_ref().unwrap();
        assert_eq!(seen.opset, read.opset_import[0].version);
        assert_eq!((seen.ir_version, seen.producer.as_str()), (read.ir_version, "test"));
        assert_eq!(seen.op_histogram.values().sum::<usize>(), graph.node.len());
        assert_eq!(seen.inputs[0].name, graph.input[0].name);
        assert_eq!(seen.outputs[0].name, graph.output[0].name);
        // Booleans are the only elements in the 32-bit field.
        let bytes_of = |t: &onnx_protobuf::TensorProto| t.raw_data.len() + 8 * t.int64_data.len() + t.int32_data.len();
        assert_eq!(seen.initializer_bytes, graph.initializer.iter().map(bytes_of).sum::<usize>() as u64);
        let module = vitc_onnx::import_file(&path, &Options::default()).unwrap();
        for constant in &module.consts {
            if let Some(tensor) = graph.initializer.iter().find(|t| t.name == constant.name) {
                assert_eq!(tensor.raw_data, constant.data);
            }
        }
    }
}
