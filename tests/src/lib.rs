//! Witnesses: tests that cross a crate. This library holds what they share: the models at hand, how to run them, and how a
//! test that cannot run says so.
//!
//! `VITC_SHARED` names a folder with `models/` and `data/` that are not part of the repository; without it the tests that
//! need them are skipped by name.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use vitc::io::image::{Filter, load_pixels};
use vitc::io::labels::list_images;
use vitc::model::Emitted;
use vitc::{Calibration, Compiler, Preprocess};
use vitc_codegen::Tier;
use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Elem, Module, Op, ValueId};
use vitc_runtime::{OutputForm, Program, Session, SessionOptions, TensorView};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Says past the test runner's capture that a test, or a part of it, does not run here.
pub fn skip(test: &str, why: &str) {
    // a test runner without standard error has nobody to tell
    let _ = writeln!(std::io::stderr(), "{test}: skipped: {why}");
}

/// The folder of `VITC_SHARED`, or a word that the test is skipped.
pub fn shared(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("VITC_SHARED").map(PathBuf::from);
    if folder.is_none() {
        skip(test, "VITC_SHARED is not set");
    }
    folder
}

/// A model with what it takes to compile and run it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Name for messages.
    pub name: &'static str,
    /// The ONNX file.
    pub model: PathBuf,
    /// Folder of calibration images.
    pub calib: PathBuf,
    /// Folder of test images, with `labels.txt`.
    pub eval: PathBuf,
    /// How images become its input.
    pub preprocess: Preprocess,
}

impl Sample {
    /// A compiler that calibrates on `images` images.
    pub fn compiler(&self, images: usize) -> Compiler {
        Compiler::new()
            .calibration(Calibration::Images { folder: self.calib.clone(), limit: images })
            .preprocess(self.preprocess.clone())
    }

    /// The first `count` test images as pixels, one after another.
    pub fn pixels(&self, count: usize) -> Result<Vec<u8>> {
        let files = list_images(&self.eval)?;
        let images: Vec<Vec<u8>> =
            files.iter().take(count).map(|f| load_pixels(f, &self.preprocess)).collect::<Result<_>>()?;
        Ok(images.concat())
    }
}

/// The model that lies in the repository.
pub fn bundled() -> Sample {
    let demo = root().join("driver/demo");
    let half = vec![0.5; 3];
    let module = Compiler::new().import(demo.join("model.onnx")).expect("the bundled model imports");
    let shape = module.ty(module.inputs[0].value).shape.at(1);
    let (height, width) = (shape[2], shape[3]);
    Sample {
        name: "bundled",
        model: demo.join("model.onnx"),
        calib: demo.join("calib"),
        eval: demo.join("eval"),
        preprocess: Preprocess {
            resize: height.min(width),
            mean: half.clone(),
            std: half,
            ..Preprocess::for_input(height, width, 3)
        },
    }
}

/// DeiT-tiny with its real weights, through the TorchScript exporter.
pub fn deit(test: &str) -> Option<Sample> {
    let shared = shared(test)?;
    Some(Sample {
        name: "deit-tiny",
        model: shared.join("models/deit_tiny_imagenet.ts.matmul.onnx"),
        calib: shared.join("data/imagenet/calib"),
        eval: shared.join("data/imagenet/eval"),
        preprocess: Preprocess { resize: 248, ..Preprocess::for_input(224, 224, 3) },
    })
}

/// The real models that vitc is expected to compile.
pub fn real(test: &str) -> Vec<Sample> {
    let Some(first) = deit(test) else { return Vec::new() };
    let shared = std::env::var_os("VITC_SHARED").map(PathBuf::from).unwrap_or_default();
    let dynamo = Sample {
        name: "deit-tiny, dynamo",
        model: shared.join("models/deit_tiny_imagenet.dynamo.sdpa.onnx"),
        ..first.clone()
    };
    let digits = |name, file: &str| Sample {
        name,
        model: shared.join("models/vit_mnist").join(file),
        calib: shared.join("data/mnist/calib"),
        eval: shared.join("data/mnist/eval"),
        preprocess: Preprocess {
            resize: 28,
            filter: Filter::Bilinear,
            mean: vec![0.1307],
            std: vec![0.3081],
            ..Preprocess::for_input(28, 28, 1)
        },
    };
    let ts = digits("mnist", "vit_mnist_researchase_MIT.ts.onnx");
    vec![first, dynamo, ts, digits("mnist, dynamo", "vit_mnist_researchase_MIT.dynamo.onnx")]
}

/// The bytes as the only input of a plan, for `images` images. Any bytes are integers that the plan must take.
pub fn plan_input(plan: &Module, bytes: &[u8], images: usize) -> Result<Tensor> {
    let [input] = plan.inputs.as_slice() else { bail!("{} inputs", plan.inputs.len()) };
    let ty = plan.ty(input.value);
    if ty.elem != Elem::U8 {
        bail!("the plan's input is {ty}, not bytes");
    }
    Tensor::new(&ty.shape.at(images), Data::U8(bytes.to_vec())).context("as many bytes as the input has elements")
}

/// The integers of the first output by the evaluator.
pub fn evaluated(plan: &Module, input: &Tensor) -> Result<Vec<i64>> {
    let wanted = integers_behind(plan, plan.outputs[0].value);
    let mut found = None;
    eval::trace(plan, std::slice::from_ref(input), &mut |value, tensor| {
        if value == wanted {
            found = Some(tensor.to_ints());
        }
    })?;
    found.context("the output is computed")
}

/// The operand of the `dequantize` at the door.
fn integers_behind(plan: &Module, value: ValueId) -> ValueId {
    match plan.node_of(value) {
        Some(node) if matches!(node.op, Op::Dequantize {}) => node.operands[0],
        _ => value,
    }
}

/// The program of a plan on this machine.
pub fn program(plan: &Module) -> Result<Arc<Program>> {
    program_on(plan, Tier::best())
}

/// The program of a plan on a tier.
pub fn program_on(plan: &Module, tier: Tier) -> Result<Arc<Program>> {
    Ok(Emitted::of(plan, tier)?.program)
}

/// The tiers whose kernels can be run here: those of the machine, and `amx-int8` in software where it has AVX-512.
pub fn tiers() -> Vec<Tier> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if Tier::Avx512Vnni.missing().is_none() && Tier::AmxInt8.missing().is_some() {
        vitc_codegen::emulate_tiles();
    }
    Tier::available()
}

/// The integers of the first output by the compiled code.
pub fn executed(program: &Arc<Program>, input: &Tensor, threads: usize) -> Result<Vec<i64>> {
    let mut session = Session::new(Arc::clone(program), SessionOptions { threads, ..SessionOptions::default() })?;
    let view = TensorView::new(vitc_runtime::Elem::U8, &input.shape, input.data.as_bytes())?;
    let outputs = session.run(&[view], OutputForm::Raw)?;
    let first = outputs.first().context("the program has an output")?;
    Ok(match first.elem() {
        vitc_runtime::Elem::U8 => first.to_vec::<u8>()?.into_iter().map(i64::from).collect(),
        vitc_runtime::Elem::I8 => first.to_vec::<i8>()?.into_iter().map(i64::from).collect(),
        vitc_runtime::Elem::I16 => first.to_vec::<i16>()?.into_iter().map(i64::from).collect(),
        vitc_runtime::Elem::I32 => first.to_vec::<i32>()?.into_iter().map(i64::from).collect(),
        other => bail!("an output of {other}"),
    })
}
