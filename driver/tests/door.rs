//! Models that take an image in another way than normalised channel planes: channels last, pixels as bytes, and a normalisation in
//! the graph. Whatever the way, one image gives one answer.

use vitc::accuracy::Reference;
use vitc::{Calibration, Compiler, Model, Preprocess};
use vitc_ir::{Const, Dim, Elem, ImageLayout, Module, Op, Quant, Shape, Stage, TensorType, ValueId};

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// How a model takes its image.
#[derive(Clone, Copy, Debug)]
struct Way {
    bytes: bool,
    channels_last: bool,
    /// What the graph divides by before it takes the mean off; it does neither where there is nothing.
    whole: Option<f32>,
    pads: [usize; 4],
}

struct Build(Module);

impl Build {
    fn op(&mut self, op: Op, operands: &[ValueId]) -> ValueId {
        let loc = format!("{}_{}", op.name(), self.0.nodes.len());
        self.0.push(op, operands, Some(loc.as_str().into())).unwrap()
    }

    fn floats(&mut self, dims: &[usize], values: &[f32]) -> ValueId {
        self.0.constant(Const::new("c", TensorType::f32(Shape::fixed(dims)), values))
    }

    fn noise(&mut self, dims: &[usize]) -> ValueId {
        self.floats(dims, &vitc::calibrate::noise(dims.len() as u64, dims))
    }
}

/// A convolution, ReLU and mean over the image of a model that takes it in that way.
fn model(way: Way) -> Module {
    let mut b = Build(Module::new("door", Stage::Import));
    let dims = if way.channels_last { [16, 16, 3] } else { [3, 16, 16] };
    let shape = Shape([Dim::N].into_iter().chain(dims.map(Dim::fixed)).collect());
    let mut x = match way.bytes {
        true => {
            let x = b.0.input("image", TensorType::new(Elem::U8, shape).with_quant(Quant::per_tensor(1.0, 0)));
            b.op(Op::Dequantize {}, &[x])
        }
        false => b.0.input("image", TensorType::f32(shape)),
    };
    if let Some(whole) = way.whole {
        let channels: &[usize] = if way.channels_last { &[3] } else { &[3, 1, 1] };
        let (whole, mean, std) = (b.floats(&[], &[whole]), b.floats(channels, &MEAN), b.floats(channels, &STD));
        x = b.op(Op::Div {}, &[x, whole]);
        x = b.op(Op::Sub {}, &[x, mean]);
        x = b.op(Op::Div {}, &[x, std]);
    }
    if way.channels_last {
        x = b.op(Op::Transpose { perm: vec![0, 3, 1, 2] }, &[x]);
    }
    let (w, bias) = (b.noise(&[8, 3, 4, 4]), b.noise(&[8]));
    let layout = ImageLayout::ChannelsFirst;
    let conv = Op::Conv2d { strides: [4, 4], pads: way.pads, dilations: [1, 1], groups: 1, layout };
    let y = b.op(conv, &[x, w, bias]);
    let y = b.op(Op::Relu {}, &[y]);
    let y = b.op(Op::ReduceMean { axes: vec![2, 3], keep: false }, &[y]);
    b.0.output("logits", y);
    b.0
}

fn image() -> Vec<u8> {
    let wave = |i: usize| 128.0 + 60.0 * (i as f32 * 0.11).sin() + 50.0 * (i as f32 * 0.023).cos();
    (0..3 * 16 * 16).map(|i| wave(i) as u8).collect()
}

fn woven(planes: &[u8]) -> Vec<u8> {
    (0..planes.len()).map(|i| planes[i % 3 * 256 + i / 3]).collect()
}

/// The integer logits and those of the float graph.
fn logits(way: Way) -> (Vec<f32>, Vec<f32>) {
    let module = model(way);
    let preprocess = Preprocess::of_input(&module).unwrap();
    let compiled = Compiler::new().calibration(Calibration::Synthetic { images: 4 }).compile(module.clone()).unwrap();
    let mut model = Model::load(&compiled, 1).unwrap();
    assert_eq!(model.float_instructions(), 0);
    let pixels = if way.channels_last { woven(&image()) } else { image() };
    let float = Reference::of(module, &preprocess).unwrap().logits(&pixels).unwrap();
    (model.classify(&pixels).unwrap(), float)
}

#[test]
fn an_image_gives_one_answer_whatever_way_it_enters() {
    let usual = Way { bytes: false, channels_last: false, whole: None, pads: [0; 4] };
    for pads in [[0; 4], [1; 4]] {
        let (_, expected) = logits(Way { pads, ..usual });
        for (bytes, whole) in [(false, None), (false, Some(1.0)), (false, Some(255.0)), (true, Some(255.0))] {
            for channels_last in [false, true] {
                let way = Way { bytes, channels_last, whole, pads };
                let (integer, float) = logits(way);
                let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
                for ((i, f), e) in integer.iter().zip(&float).zip(&expected) {
                    assert!((f - e).abs() < 1e-4 * largest, "{way:?}: float {float:?} instead of {expected:?}");
                    assert!((i - e).abs() < 0.03 * largest, "{way:?}: {integer:?} instead of {expected:?}");
                }
            }
        }
    }
}

#[test]
fn what_is_asked_of_an_image_is_said() {
    let shown = |way: Way| Preprocess::of_input(&model(way)).unwrap().to_string();
    let way = Way { bytes: false, channels_last: true, whole: Some(255.0), pads: [0; 4] };
    assert!(shown(way).ends_with("numbers 0 to 255, channels last"), "{}", shown(way));
    assert!(shown(Way { bytes: true, ..way }).ends_with("numbers 0 to 255, channels last"));
    assert!(shown(Way { whole: Some(1.0), channels_last: false, ..way }).ends_with("numbers 0 to 1"));
    assert!(shown(Way { whole: None, ..way }).ends_with("std 0.229,0.224,0.225, channels last"));
}

/// Means and deviations given for pixels that the graph normalises would normalise them twice.
#[test]
fn declared_pixels_are_not_normalised_before() {
    let way = Way { bytes: true, channels_last: true, whole: Some(255.0), pads: [0; 4] };
    let module = model(way);
    let preprocess = Preprocess { mean: MEAN.to_vec(), std: STD.to_vec(), ..Preprocess::of_input(&module).unwrap() };
    let compiler = Compiler::new().calibration(Calibration::Synthetic { images: 1 }).preprocess(preprocess);
    let error = format!("{:#}", compiler.compile(module).unwrap_err());
    assert!(error.contains("leave out --mean and --std"), "{error}");
}
