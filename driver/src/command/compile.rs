//! `vitc compile`: a model to one artifact file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Map, Value};
use vitc_codegen::Tier;
use vitc_ir::{Module, Stage};
use vitc_passes::mixed::Cost;

use super::source::{self, CompileFlags, SYNTHETIC};
use super::{Global, note, preprocess_cell, say};
use crate::accuracy::{Reference, Score, evaluate};
use crate::artifact;
use crate::compiler::Compiled;
use crate::io::atomic::{check_writable, write_atomically};
use crate::io::labels::{Labelled, read_labels};
use crate::io::progress::Progress;
use crate::io::table::{Cell, Record};
use crate::mixed::{Mixed, Target, parse_amount, parse_bytes};
use crate::model::{Emitted, Model};
use crate::report::{self, Kept};
use crate::tuning::Found;
use crate::walk::{Journal, preprocess_of};

/// Arguments of `vitc compile`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitc compile deit.onnx --calibrate images/ -o deit.vitc
  vitc compile vit.onnx --calibrate images/ --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 -o vit.vitc
  vitc compile deit.onnx --calibrate images/ --nonlinear shift -o deit-shift.vitc    the published shift forms
  vitc compile deit.onnx --calibrate images/ --mixed --target-bytes 4M -o deit4.vitc fewer bits where they lose least
  vitc compile deit.onnx --calibrate synthetic -o deit.vitc                          without images, for timing only
  vitc compile deit.onnx --calibrate images/ -o deit.vitc --report deit.html         and where precision is lost

The artifact holds the integer plan, the packed weights, the quantization and the preprocessing; machine code is
emitted when it is loaded, so one file serves every machine. The same model and images give the same bytes.

The report tells for every quantized activation its range, its histogram and its signal-to-noise ratio against the float
graph, from plain min-max through each transform to the integers; what the transforms did, which integer forms were
taken, bits of weights, predicted size and time, and with --report-images accuracy. The page needs nothing but itself;
the same as JSON is for programs. It takes about as long as compiling once more for every transform.")]
pub struct Args {
    /// The model: ONNX, or a `.vir` text of any stage.
    model: PathBuf,
    /// The artifact to write.
    #[arg(short, long, value_name = "A.vitc")]
    output: PathBuf,
    #[command(flatten)]
    report: ReportFlags,
    #[command(flatten)]
    flags: CompileFlags,
    #[command(flatten)]
    mixed: MixedFlags,
}

/// The search for the bits of each product. Its table of losses is kept in OUTPUT.sensitivity.json.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Mixed precision (one target)")]
struct MixedFlags {
    /// Choose the bits of weights and of what products read, one product after the other, by what fewer bits lose on the
    /// calibration images for what they save.
    #[arg(long, requires = "target", conflicts_with_all = ["weight_bits", "activation_bits"])]
    mixed: bool,
    /// At most so many bytes of the weights of products, for example 4M.
    #[arg(long, value_name = "BYTES", requires = "mixed", group = "target", value_parser = parse_bytes)]
    target_bytes: Option<u64>,
    /// At most so many milliseconds for an image, as the kernels take here.
    #[arg(long, value_name = "MS", requires = "mixed", group = "target", value_parser = parse_amount)]
    target_ms: Option<f64>,
    /// At most so many mean bits of the two factors of a multiply-accumulate.
    #[arg(long, value_name = "BITS", requires = "mixed", group = "target", value_parser = parse_amount)]
    target_bits: Option<f64>,
    /// At most so many points of agreement with the float model, on the calibration images, less than 8 bits have.
    #[arg(long, value_name = "POINTS", requires = "mixed", group = "target", value_parser = parse_amount)]
    max_drop: Option<f64>,
    /// What fewer bits save (default: what the target counts; bitops for --max-drop).
    #[arg(long, value_enum, requires = "mixed")]
    cost: Option<CostFlag>,
}

/// `--cost`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CostFlag {
    /// Bytes of weights.
    Bytes,
    /// Mean bits of the factors of multiply-accumulates.
    Bits,
    /// Multiply-accumulates times the bits of both factors.
    Bitops,
    /// Nanoseconds of the kernels on this machine.
    Ns,
}

impl From<CostFlag> for Cost {
    fn from(flag: CostFlag) -> Cost {
        match flag {
            CostFlag::Bytes => Cost::Bytes,
            CostFlag::Bits => Cost::Bits,
            CostFlag::Bitops => Cost::BitOps,
            CostFlag::Ns => Cost::Nanos,
        }
    }
}

impl Args {
    /// The search that is asked for.
    fn search(&self) -> Result<Option<Mixed>> {
        let flags = &self.mixed;
        let targets = [
            flags.target_bytes.map(Target::Bytes),
            flags.target_ms.map(Target::Millis),
            flags.target_bits.map(Target::Bits),
            flags.max_drop.map(Target::Drop),
        ];
        let Some(target) = targets.into_iter().flatten().next().filter(|_| flags.mixed) else { return Ok(None) };
        let cache = Some(Mixed::cache_beside(&self.output));
        Ok(Some(Mixed { target, cost: flags.cost.map(Cost::from), cache, tier: self.flags.tier()? }))
    }
}

/// What is to be reported of the quantization.
#[derive(Clone, Debug, clap::Args)]
struct ReportFlags {
    /// Write a report of the quantization: a page (`.html`) or data (`.json`), by the extension. May be repeated.
    #[arg(long = "report", value_name = "R.html|R.json")]
    to: Vec<PathBuf>,
    /// Report accuracy on labelled images of this folder.
    #[arg(long = "report-images", value_name = "DIR", requires_all = ["to", "labels"])]
    images: Option<PathBuf>,
    /// Their classes: a file with `file class` per line.
    #[arg(long = "report-labels", value_name = "FILE", requires = "images")]
    labels: Option<PathBuf>,
}

impl ReportFlags {
    /// Fails where writing would fail, before the long work.
    fn check(&self) -> Result<()> {
        self.to.iter().try_for_each(|path| report::Format::of(path).and_then(|_| check_writable(path)))
    }

    /// The labelled images.
    fn images(&self) -> Result<Option<Vec<Labelled>>> {
        let both = self.images.as_ref().zip(self.labels.as_ref());
        both.map(|(images, labels)| read_labels(labels, images)).transpose()
    }
}

/// Runs the verb.
pub fn run(args: Args, global: Global) -> Result<u8> {
    check_output(&args)?;
    args.report.check()?;
    let (tier, images) = (args.flags.tier()?, args.report.images()?);
    let started = Instant::now();
    let mut kept = Kept::default();
    let (compiled, import) = compile(&args, global, &mut |module| kept.keep(module))?;
    let emitting = Instant::now();
    let emitted = Emitted::of(&compiled.module, tier)?;
    let emit = emitting.elapsed();
    let bytes = artifact::to_bytes(&compiled.module)?;
    write_atomically(&args.output, |w| Ok(w.write_all(&bytes)?))?;
    let times = stage_times(import, &compiled.journal, emit, started.elapsed());
    if !args.report.to.is_empty() {
        write_report(&args, global, images, &Outcome { kept: &kept, compiled: &compiled, tier, bytes: bytes.len() })?;
    }
    let mut record = record(&args, &compiled, &emitted, &bytes, &times)?;
    match &compiled.journal.mixed {
        Some(mixed) if global.json => {
            record.field("mixed", Cell::shown_as("", mixed.to_json()));
        }
        Some(mixed) => say(&format!("{}\n\n{}\n", mixed.table(), mixed.totals()))?,
        None => {}
    }
    say(&record.render(global.json))?;
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

/// The plan, and the time that reading the model took; every stage on the way is shown.
fn compile(args: &Args, global: Global, show: &mut dyn FnMut(&Module)) -> Result<(Compiled, Duration)> {
    let started = Instant::now();
    let module = source::read(&args.model)?;
    let import = started.elapsed();
    if !args.report.to.is_empty() && module.stage > Stage::Shape {
        let (shown, stage) = (args.model.display(), module.stage.word());
        bail!("'{shown}' is at stage {stage} already; a report compares with the float graph: give the ONNX model");
    }
    let search = args.search()?;
    if search.is_some() && module.stage >= Stage::Quantize {
        bail!("'{}' is quantized already; --mixed is for models that are not", args.model.display());
    }
    if module.stage == Stage::Plan {
        return Ok((Compiled { module, journal: Journal::default(), tuning: Found::Nothing }, import));
    }
    let compiler = args.flags.compiler(&module, global)?;
    let compiler = match search {
        Some(mixed) => compiler.mixed(mixed),
        None => compiler,
    };
    Ok((compiler.compile_showing(module, show)?, import))
}

/// What a report is made of.
struct Outcome<'a> {
    kept: &'a Kept,
    compiled: &'a Compiled,
    tier: Tier,
    bytes: usize,
}

fn write_report(args: &Args, global: Global, images: Option<Vec<Labelled>>, outcome: &Outcome<'_>) -> Result<()> {
    let Outcome { kept, compiled, tier, bytes } = *outcome;
    let module = source::read(&args.model)?;
    let mut options = args.flags.compiler(&module, global)?.options_for(&module)?;
    if let Some(mixed) = &compiled.journal.mixed {
        (options.weights, options.activations) = mixed.widths.clone();
    }
    let score = images.map(|images| score(args, global, module, &images, outcome)).transpose()?;
    let request = report::Request {
        file: &args.model.display().to_string(),
        settings: args.flags.settings(),
        options: &options,
        kept,
        compiled,
        artifact_bytes: bytes,
        tier,
        score: score.as_ref(),
    };
    let report = request.report()?;
    args.report.to.iter().try_for_each(|path| report::write(&report, path))
}

/// Accuracy beside the float graph, which a model that was read as such has.
fn score(
    args: &Args,
    global: Global,
    float: Module,
    images: &[Labelled],
    Outcome { compiled, tier, .. }: &Outcome<'_>,
) -> Result<Score> {
    let threads = args.flags.thread_count();
    let mut model = Model::load_on(compiled, threads, *tier)?;
    let preprocess = model.image_input()?.clone();
    let reference = (float.stage == Stage::Import).then(|| Reference::of(float, &preprocess)).transpose()?;
    let progress = Progress::new("evaluating", images.len(), global.quiet || global.json);
    evaluate(&mut model, reference.as_ref(), images, threads, &progress)
}

type Times = Vec<(&'static str, Duration)>;

fn stage_times(import: Duration, journal: &Journal, emit: Duration, total: Duration) -> Times {
    let mut times = vec![("import", import)];
    times.extend(&journal.times);
    times.extend([("emit", emit), ("total", total)]);
    times
}

fn record(args: &Args, compiled: &Compiled, emitted: &Emitted, bytes: &[u8], times: &Times) -> Result<Record> {
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
