//! `vitc compile`: a model to one artifact file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Map, Value};
use vitc_ir::Stage;

use super::source::{self, CompileFlags, SYNTHETIC};
use super::{Global, note, preprocess_cell, say};
use crate::artifact;
use crate::compiler::Compiled;
use crate::io::atomic::{check_writable, write_atomically};
use crate::io::table::{Cell, Record};
use crate::model::Emitted;
use crate::tuning::Found;
use crate::walk::{Journal, preprocess_of};

/// Arguments of `vitc compile`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitc compile deit.onnx --calibrate images/ -o deit.vitc
  vitc compile vit.onnx --calibrate images/ --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 -o vit.vitc
  vitc compile deit.onnx --calibrate images/ --nonlinear shift -o deit-shift.vitc    the published shift forms
  vitc compile deit.onnx --calibrate synthetic -o deit.vitc                          without images, for timing only

The artifact holds the integer plan, the packed weights, the quantization and the preprocessing; machine code is
emitted when it is loaded, so one file serves every machine. The same model and images give the same bytes.")]
pub struct Args {
    /// The model: ONNX, or a `.vir` text of any stage.
    model: PathBuf,
    /// The artifact to write.
    #[arg(short, long, value_name = "A.vitc")]
    output: PathBuf,
    #[command(flatten)]
    flags: CompileFlags,
}

/// Runs the verb.
pub fn run(args: Args, global: Global) -> Result<u8> {
    check_output(&args)?;
    let tier = args.flags.tier()?;
    let started = Instant::now();
    let (compiled, import) = compile(&args, global)?;
    let emitting = Instant::now();
    let emitted = Emitted::of(&compiled.module, tier)?;
    let emit = emitting.elapsed();
    let bytes = artifact::to_bytes(&compiled.module)?;
    write_atomically(&args.output, |w| Ok(w.write_all(&bytes)?))?;
    let times = stage_times(import, &compiled.journal, emit, started.elapsed());
    say(&report(&args, &compiled, &emitted, &bytes, &times)?.render(global.json))?;
    if args.flags.synthetic() && compiled.journal.calibration_images > 0 {
        note(global, SYNTHETIC);
    }
    if let Some(why) = source::slow_tier().filter(|_| args.flags.auto_tier()) {
        note(global, &why);
    }
    Ok(0)
}

/// An output that cannot be written, or that would destroy the model, is refused before the long work.
fn check_output(args: &Args) -> Result<()> {
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(&args.model, &args.output) {
        bail!("the output '{}' is the model itself; choose another name", args.output.display());
    }
    check_writable(&args.output)
}

/// The plan, and the time that reading the model took.
fn compile(args: &Args, global: Global) -> Result<(Compiled, Duration)> {
    let started = Instant::now();
    let module = source::read(&args.model)?;
    let import = started.elapsed();
    if module.stage == Stage::Plan {
        return Ok((Compiled { module, journal: Journal::default(), tuning: Found::Nothing }, import));
    }
    Ok((args.flags.compiler(&module, global)?.compile(module)?, import))
}

type Times = Vec<(&'static str, Duration)>;

fn stage_times(import: Duration, journal: &Journal, emit: Duration, total: Duration) -> Times {
    let mut times = vec![("import", import)];
    times.extend(&journal.times);
    times.extend([("emit", emit), ("total", total)]);
    times
}

fn report(args: &Args, compiled: &Compiled, emitted: &Emitted, bytes: &[u8], times: &Times) -> Result<Record> {
    let module = &compiled.module;
    let mut record = Record::new();
    record
        .field("model", args.model.display().to_string())
        .field("artifact", args.output.display().to_string())
        .field("tier", emitted.tier.word())
        .field("preprocessing", preprocess_cell(preprocess_of(module)?.as_ref())?)
        .field("calibration_images", compiled.journal.calibration_images)
        .field("times_ms", times_cell(times))
        .field("artifact_bytes", bytes.len())
        .field("weight_bytes", module.consts.iter().map(|c| c.data.len()).sum::<usize>())
        .field("arena_bytes_per_image", module.arena)
        .field("macs", emitted.macs_per_image())
        .field("kernels", emitted.kernels.len())
        .field("code_bytes", emitted.code_bytes())
        .field("float_instructions", emitted.float_instructions())
        .field("content_hash", artifact::content_hash(bytes).unwrap_or_default());
    Ok(record)
}

fn times_cell(times: &Times) -> Cell {
    let ms = |t: &Duration| 1e3 * t.as_secs_f64();
    let text: Vec<String> = times.iter().map(|(stage, t)| format!("{stage} {:.0}", ms(t))).collect();
    let json: Map<String, Value> = times.iter().map(|(stage, t)| ((*stage).into(), ms(t).into())).collect();
    Cell::shown_as(text.join(", "), json)
}
