//! What the integers cost on the real DeiT-tiny: against onnxruntime, and against the float graph on labelled images.

use std::path::Path;
use std::process::Command;

use vitc::accuracy::{Reference, Score, evaluate};
use vitc::calibrate::DEFAULT_IMAGES;
use vitc::io::image::{load_pixels, normalize};
use vitc::io::labels::{list_images, read_labels};
use vitc::io::npy::{read_npy, write_npy_f32};
use vitc::io::progress::Progress;
use vitc::walk::available_threads;
use vitc::{Compiler, Model};
use vitc_ir::eval::{self, Tensor};
use vitc_passes::integerize::Nonlinear;
use vitc_tests::{deit, skip};

const RUN_ONNX: &str = "import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
feed = {session.get_inputs()[0].name: numpy.load(sys.argv[2])}
numpy.save(sys.argv[3], session.run(None, feed)[0])
";

fn onnxruntime(python: &Path, args: [&Path; 3]) {
    let output = Command::new(python).arg("-c").arg(RUN_ONNX).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_float_graph_of_real_deit_is_that_of_onnxruntime() {
    const NAME: &str = "the_float_graph_of_real_deit_is_that_of_onnxruntime";
    let Some(sample) = deit(NAME) else { return };
    let Some(python) = std::env::var_os("VITC_PYTHON") else {
        return skip(NAME, "VITC_PYTHON, a python with onnxruntime, is not set");
    };
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (dir.path().join("x.npy"), dir.path().join("y.npy"));
    let module = Compiler::new().import(&sample.model).unwrap();
    let shape = module.ty(module.inputs[0].value).shape.at(1);
    let image = &list_images(&sample.eval).unwrap()[0];
    let values = normalize(&load_pixels(image, &sample.preprocess).unwrap(), &sample.preprocess);
    write_npy_f32(&x, &shape, &values).unwrap();
    onnxruntime(Path::new(&python), [sample.model.as_path(), x.as_path(), y.as_path()]);
    let want = read_npy(&y).unwrap().elements.to_f32();
    let have = eval::run(&module, &[Tensor::f32(&shape, values)]).unwrap();
    let have = have[0].as_f32().unwrap();
    assert_eq!(want.len(), have.len());
    let worst = want.iter().zip(have).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst < 1e-3, "a logit differs by {worst}");
}

/// Calibrated on the default number of images, evaluated on all, beside the float graph.
fn score(name: &str, nonlinear: Nonlinear) -> Option<Score> {
    let sample = deit(name)?;
    let imported = Compiler::new().import(&sample.model).unwrap();
    let reference = Reference::of(imported.clone(), &sample.preprocess).unwrap();
    let compiled = sample.compiler(DEFAULT_IMAGES).nonlinear(nonlinear).compile(imported).unwrap();
    let mut model = Model::load(&compiled, 1).unwrap();
    let images = read_labels(&sample.eval.join("labels.txt"), &sample.eval).unwrap();
    let progress = Progress::new("evaluating", images.len(), true);
    Some(evaluate(&mut model, Some(&reference), &images, available_threads(), &progress).unwrap())
}

/// Top-1 of the integers, of floats, agreement (all in percent) and logit SQNR in decibels.
fn figures(score: &Score) -> (f64, f64, f64, f64) {
    let float = score.reference.as_ref().unwrap();
    (score.percent(score.top1), score.percent(float.top1), score.percent(float.agreement), float.sqnr_db())
}

#[test]
fn auto_forms_keep_the_accuracy_of_real_deit() {
    let Some(score) = score("auto_forms_keep_the_accuracy_of_real_deit", Nonlinear::Auto) else { return };
    let (top1, float, agreement, sqnr) = figures(&score);
    let kept = top1 >= float - 1.0 && agreement >= 94.0 && sqnr >= 16.0;
    assert!(kept, "top-1 {top1:.1} % of {float:.1} %, agreement {agreement:.1} %, logit SQNR {sqnr:.1} dB");
}

#[test]
fn shift_forms_reach_the_published_accuracy_of_real_deit() {
    let Some(score) = score("shift_forms_reach_the_published_accuracy_of_real_deit", Nonlinear::Shift) else { return };
    let (top1, float, agreement, sqnr) = figures(&score);
    let reached = top1 >= 76.5 && agreement >= 83.0;
    assert!(reached, "top-1 {top1:.1} % of {float:.1} %, agreement {agreement:.1} %, logit SQNR {sqnr:.1} dB");
}
