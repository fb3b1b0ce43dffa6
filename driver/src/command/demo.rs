//! `vitc demo`: the whole walk on the bundled model and images.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::source::NonlinearFlag;
use super::{Global, say};
use crate::accuracy::{Reference, Score, evaluate, median_ms};
use crate::calibrate::Calibration;
use crate::compiler::{Compiled, Compiler};
use crate::io::image::Preprocess;
use crate::io::labels::{Labelled, read_class_names, read_labels};
use crate::io::progress::Progress;
use crate::io::table::{Cell, Record, Table};
use crate::model::{Model, softmax, top_k};
use crate::walk::available_threads;

/// Images whose classes are shown.
const SHOWN: usize = 6;

/// Arguments of `vitc demo`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Imports the bundled ViT (ONNX), calibrates it on the bundled images, lowers it to integers, compiles it to machine
code and classifies the bundled test images with it and with the float graph."
)]
pub struct Args {
    /// Folder of the demo: model.onnx, classes.txt, calib/, eval/.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Integer forms of GELU, softmax and LayerNorm.
    #[arg(long, value_enum, default_value_t = NonlinearFlag::Auto)]
    nonlinear: NonlinearFlag,
}

/// What lies in the folder of the demo.
struct Bundle {
    model: PathBuf,
    calibration: PathBuf,
    classes: Vec<String>,
    images: Vec<Labelled>,
}

impl Bundle {
    fn open(dir: Option<PathBuf>) -> Result<Bundle> {
        let dir = dir.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("demo"));
        ensure!(
            dir.join("model.onnx").is_file(),
            "there is no demo in '{}'; run from a checkout of vitc, or give its driver/demo with --dir",
            dir.display()
        );
        Ok(Bundle {
            model: dir.join("model.onnx"),
            calibration: dir.join("calib"),
            classes: read_class_names(&dir.join("classes.txt"))?,
            images: read_labels(&dir.join("eval").join("labels.txt"), &dir.join("eval"))?,
        })
    }
}

/// The preprocessing that the bundled model was trained with: pixels to -1..1, no resizing.
fn preprocess_of(module: &vitc_ir::Module) -> Result<Preprocess> {
    let input = module.inputs.first().context("the model has no input")?;
    let shape = module.ty(input.value).shape.at(1);
    let [_, 3, height, width] = *shape.as_slice() else {
        anyhow::bail!("the model's input is not a colour image");
    };
    let half = vec![0.5; 3];
    let resize = height.min(width);
    Ok(Preprocess { resize, mean: half.clone(), std: half, ..Preprocess::for_input(height, width, 3) })
}

/// Runs the verb.
pub fn run(args: Args, global: Global) -> Result<u8> {
    let bundle = Bundle::open(args.dir)?;
    let started = Instant::now();
    let imported = Compiler::new().import(&bundle.model)?;
    let preprocess = preprocess_of(&imported)?;
    let reference = Reference::of(imported.clone(), &preprocess)?;
    let compiled = Compiler::new()
        .calibration(Calibration::images(&bundle.calibration))
        .preprocess(preprocess)
        .nonlinear(args.nonlinear.into())
        .progress(!global.quiet && !global.json)
        .compile(imported)?;
    // One thread, like the float evaluator, so that the two latencies compare.
    let mut model = Model::load(&compiled, 1)?;
    let compile_time = started.elapsed();
    let progress = Progress::new("classifying", bundle.images.len(), global.quiet || global.json);
    let score = evaluate(&mut model, Some(&reference), &bundle.images, available_threads(), &progress)?;
    drop(progress);
    let guesses = guesses(&mut model, &bundle)?;
    let outcome = outcome(&bundle, &compiled, &model, &score, compile_time)?;
    if global.json {
        let mut report = outcome.to_json();
        report["examples"] = guesses.to_json();
        say(&format!("{report:#}"))?;
    } else {
        say(&format!("{guesses}\n\n{outcome}"))?;
    }
    Ok(0)
}

/// The top classes of the first images.
fn guesses(model: &mut Model, bundle: &Bundle) -> Result<Table> {
    let name = |class: usize| bundle.classes.get(class).map_or("?", String::as_str);
    let mut table = Table::new(&["image", "truth", "first", "second", "third"]);
    for image in bundle.images.iter().take(SHOWN) {
        let pixels = model.load_image(&image.path)?;
        let logits = model.classify(&pixels)?;
        let probabilities = softmax(&logits);
        let best = top_k(&logits, 3);
        let guess = |place: usize| match best.get(place) {
            Some(&(class, _)) => {
                let percent = 100.0 * probabilities[class];
                Cell::shown_as(
                    format!("{} {percent:.1} %", name(class)),
                    json!({"name": name(class), "percent": percent}),
                )
            }
            None => Cell::none(),
        };
        let file = image.path.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
        table.row([file.into(), name(image.class).into(), guess(0), guess(1), guess(2)]);
    }
    Ok(table)
}

fn outcome(bundle: &Bundle, compiled: &Compiled, model: &Model, score: &Score, took: Duration) -> Result<Record> {
    let float = score.reference.as_ref().context("the float graph was not evaluated")?;
    let percent = |count| Cell::number(score.percent(count), 1);
    let ms = |times: &[Duration]| Cell::number(median_ms(times), 3);
    let model_bytes = std::fs::metadata(&bundle.model).map_or(0, |m| m.len());
    let mut record = Record::new();
    record
        .field("model_bytes", model_bytes)
        .field("weight_bytes", compiled.module.consts.iter().map(|c| c.data.len()).sum::<usize>())
        .field("tier", model.tier().word())
        .field("calibration_images", compiled.journal.calibration_images)
        .field("compile_ms", Cell::number(1e3 * took.as_secs_f64(), 0))
        .field("images", score.images)
        .field("float_top1", percent(float.top1))
        .field("integer_top1", percent(score.top1))
        .field("agreement", percent(float.agreement))
        .field("logit_sqnr_db", Cell::number(float.sqnr_db(), 1))
        .field("float_median_ms", ms(&float.latency))
        .field("integer_median_ms", ms(&score.latency))
        .field("macs", model.macs_per_image())
        .field("float_instructions", model.float_instructions());
    Ok(record)
}
