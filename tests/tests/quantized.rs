//! A quantized model through the whole walk: the bundled model with pairs of quantization around its products, as tools
//! write them, is compiled without calibration, computes in integers what the evaluator says, and finds the classes that its
//! own arithmetic finds.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use onnx_protobuf::{GraphProto, Message, ModelProto, NodeProto, TensorProto};
use vitc::accuracy::Reference;
use vitc::io::image::{load_pixels, normalize};
use vitc::io::labels::list_images;
use vitc::model::top_k;
use vitc::{Calibration, Compiler, Model};
use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Module, Stage};
use vitc_passes::quantize::counts_of;
use vitc_passes::transform::Transform;
use vitc_tests::{Sample, bundled, evaluated, executed, plan_input, program_on, tiers};

/// Range of what each ONNX node yields, and of the input under the empty name.
type Ranges = HashMap<String, (f32, f32)>;

fn ranges(sample: &Sample, module: &Module) -> Ranges {
    let mut found = Ranges::new();
    let mut add = |name: &str, values: &[f32]| {
        let range = found.entry(name.to_string()).or_insert((0.0, 0.0));
        values.iter().for_each(|&v| *range = (range.0.min(v), range.1.max(v)));
    };
    for file in list_images(&sample.calib).unwrap().into_iter().take(12) {
        let x = normalize(&load_pixels(&file, &sample.preprocess).unwrap(), &sample.preprocess);
        add("", &x);
        let shape = module.ty(module.inputs[0].value).shape.at(1);
        eval::trace(module, &[Tensor { shape, data: Data::F32(x) }], &mut |v, tensor| {
            if let (Some(loc), Data::F32(values)) = (module.node_of(v).and_then(|n| n.loc.as_ref()), &tensor.data) {
                add(loc, values);
            }
        })
        .unwrap();
    }
    found
}

/// Writes quantization into a graph: around the operands and the result of every product.
struct Writer<'a> {
    ranges: &'a Ranges,
    /// The node that makes a value; an input has none.
    makers: HashMap<String, String>,
    done: HashSet<String>,
    nodes: Vec<NodeProto>,
    tensors: Vec<TensorProto>,
}

impl Writer<'_> {
    fn scalar(&mut self, name: &str, scale: f32, data_type: i32, zero: i32) -> [String; 2] {
        let names = [format!("{name}_scale"), format!("{name}_zero")];
        let raw_data = scale.to_le_bytes().to_vec();
        self.tensors.push(TensorProto { name: names[0].clone(), data_type: 1, raw_data, ..Default::default() });
        let int32_data = vec![zero];
        self.tensors.push(TensorProto { name: names[1].clone(), data_type, int32_data, ..Default::default() });
        names
    }

    fn push(&mut self, op: &str, input: Vec<String>, output: String) {
        let (op_type, name) = (op.to_string(), format!("{output}_{op}"));
        self.nodes.push(NodeProto { op_type, name, input, output: vec![output], ..Default::default() });
    }

    /// A pair from one name to another, on `u8`.
    fn pair(&mut self, from: &str, to: &str, (low, high): (f32, f32)) {
        let scale = ((high - low) / 255.0).max(1e-6);
        let zero = (-low / scale).round() as i32;
        let [s, z] = self.scalar(to, scale, 2, zero);
        let integers = format!("{to}_integers");
        self.push("QuantizeLinear", vec![from.into(), s.clone(), z.clone()], integers.clone());
        self.push("DequantizeLinear", vec![integers, s, z], to.into());
    }

    /// The name of an operand's dequantized integers.
    fn operand(&mut self, name: &str) -> String {
        let quantized = format!("{name}_kept");
        let maker = self.makers.get(name).cloned().unwrap_or_default();
        if !self.done.insert(quantized.clone()) {
            return quantized;
        }
        let range = self.ranges.get(&maker).copied().unwrap_or_else(|| panic!("{name} of {maker} has no range"));
        self.pair(name, &quantized, range);
        quantized
    }

    /// Weights as `i8` with one scale.
    fn weights(&mut self, tensor: &TensorProto) -> String {
        let name = format!("{}_kept", tensor.name);
        let values: Vec<f32> =
            tensor.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let scale = values.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        let [s, z] = self.scalar(&name, scale, 3, 0);
        let raw_data = values.iter().map(|v| (v / scale).round() as i8 as u8).collect();
        let integers = format!("{name}_integers");
        let dims = tensor.dims.clone();
        self.tensors.push(TensorProto { name: integers.clone(), dims, data_type: 3, raw_data, ..Default::default() });
        self.push("DequantizeLinear", vec![integers, s, z], name.clone());
        name
    }

    fn product(&mut self, mut node: NodeProto, graph: &GraphProto) {
        for operand in &mut node.input[..2] {
            let known = graph.initializer.iter().find(|t| t.name == *operand);
            *operand = match known {
                Some(tensor) => self.weights(tensor),
                None => self.operand(operand),
            };
        }
        let result = node.output[0].clone();
        let range = self.ranges[&node.name];
        node.output[0] = format!("{result}_raw");
        let raw = node.output[0].clone();
        self.nodes.push(node);
        self.pair(&raw, &result, range);
    }
}

/// The bundled model with quantization of its own, as a file. `pairs` says which products get some.
fn quantized(sample: &Sample, folder: &Path, pairs: impl Fn(&str) -> bool) -> PathBuf {
    let float = Compiler::new().import(&sample.model).unwrap();
    let ranges = ranges(sample, &float);
    let mut model = ModelProto::parse_from_bytes(&std::fs::read(&sample.model).unwrap()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let before = graph.clone();
    let makers = before.node.iter().flat_map(|n| n.output.iter().map(|o| (o.clone(), n.name.clone()))).collect();
    let mut writer = Writer { ranges: &ranges, makers, done: HashSet::new(), nodes: Vec::new(), tensors: Vec::new() };
    for node in before.node.iter().cloned() {
        match node.op_type.as_str() {
            "MatMul" | "Conv" | "Gemm" if pairs(&node.name) => writer.product(node, &before),
            _ => writer.nodes.push(node),
        }
    }
    graph.node = writer.nodes;
    graph.initializer.extend(writer.tensors);
    let path = folder.join("quantized.onnx");
    std::fs::write(&path, model.write_to_bytes().unwrap()).unwrap();
    path
}

#[test]
fn a_quantized_model_needs_no_calibration_and_keeps_its_classes() {
    let (sample, folder) = (bundled(), tempfile::tempdir().unwrap());
    let path = quantized(&sample, folder.path(), |_| true);
    let compiler = Compiler::new().calibration(Calibration::Given).preprocess(sample.preprocess.clone());
    let compiled = compiler.compile_file(&path).unwrap();
    assert_eq!(compiled.journal.calibration_images, 0);
    assert!(counts_of(&compiled.module).unwrap().given > 20);
    equals_the_evaluator(&sample, &compiled.module);

    let mut model = Model::load(&compiled, 1).unwrap();
    assert_eq!(model.float_instructions(), 0);
    let reference = Reference::load(&path, &sample.preprocess).unwrap();
    let images = list_images(&sample.eval).unwrap();
    let mut same = |file: &PathBuf| {
        let pixels = load_pixels(file, &sample.preprocess).unwrap();
        let (have, want) = (model.classify(&pixels).unwrap(), reference.logits(&pixels).unwrap());
        top_k(&have, 1)[0].0 == top_k(&want, 1)[0].0
    };
    let count = images.len().min(60);
    let alike = images[..count].iter().filter(|f| same(f)).count();
    assert!(100 * alike >= 97 * count, "{alike} of {count}");
}

fn equals_the_evaluator(sample: &Sample, plan: &Module) {
    for image in sample.pixels(3).unwrap().chunks(sample.preprocess.pixels()) {
        let input = plan_input(plan, image, 1).unwrap();
        let want = evaluated(plan, &input).unwrap();
        for tier in tiers() {
            let have = executed(&program_on(plan, tier).unwrap(), &input, 2).unwrap();
            assert!(want == have, "differs from the evaluator on {tier:?}");
        }
    }
}

#[test]
fn what_has_no_range_is_named() {
    let (sample, folder) = (bundled(), tempfile::tempdir().unwrap());
    let path = quantized(&sample, folder.path(), |name| !name.contains("fc2"));
    let compiler = Compiler::new().calibration(Calibration::Given).preprocess(sample.preprocess.clone());
    let error = format!("{:#}", compiler.compile_file(&path).unwrap_err());
    assert!(error.contains("--calibrate") && error.contains("no range"), "{error}");
    // with images, what the model does not say is calibrated
    let compiled = sample.compiler(8).compile_file(&path).unwrap();
    let counts = counts_of(&compiled.module).unwrap();
    assert!(counts.given > 0 && counts.calibrated > 0, "{counts:?}");
    equals_the_evaluator(&sample, &compiled.module);
}

/// A GELU between pairs around the products beside it is computed in 16 bits, on every tier alike.
#[test]
fn a_gate_of_16_bits_equals_the_evaluator() {
    let (sample, folder) = (bundled(), tempfile::tempdir().unwrap());
    let path = quantized(&sample, folder.path(), |name| !name.contains("fc1"));
    let compiled = sample.compiler(8).compile_file(&path).unwrap();
    let sites = compiled.journal.integerized.as_ref().unwrap().sites.iter();
    assert!(sites.filter(|s| (s.op, s.form, s.chosen) == ("wide gelu", "gated", true)).count() > 0);
    // and it keeps its biases
    assert!(compiled.journal.transformed.iter().all(|a| a.transform != Transform::Bias));
    equals_the_evaluator(&sample, &compiled.module);
}

#[test]
fn pairs_survive_the_text_of_every_stage() {
    let (sample, folder) = (bundled(), tempfile::tempdir().unwrap());
    let path = quantized(&sample, folder.path(), |_| true);
    let compiler = Compiler::new().calibration(Calibration::Given).preprocess(sample.preprocess.clone());
    let mut module = compiler.import(&path).unwrap();
    for stage in [Stage::Import, Stage::Clean, Stage::Shape, Stage::Quantize, Stage::Integerize] {
        module = compiler.advance(module, stage).unwrap().0;
        let printed = vitc_ir::text::print(&module);
        let parsed = vitc_ir::text::parse(&printed.text, printed.blob.clone().into()).unwrap();
        assert!(vitc_ir::text::print(&parsed).text == printed.text, "{}", stage.word());
        module = parsed;
    }
}
