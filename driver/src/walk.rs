//! The walk: takes a module through the rooms, one stage at a time, with the verifier between all of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vitc_ir::{Module, Stage, verify};
use vitc_passes::clean::{self, CleanOptions, Pixels};
use vitc_passes::integerize::{self, Nonlinear, Report};
use vitc_passes::plan::{self, Target};
use vitc_passes::quantize::{self, CodesOf, Groups, Observer, Placed, QuantOptions, Rounding, Widths};
use vitc_passes::transform::{self, Applied, Transform};
use vitc_passes::{fuse, shape};

use crate::calibrate::{Calibration, Feed, Inputs};
use crate::error::Failure;
use crate::io::image::Preprocess;
use crate::mixed::{self, Mixed};

/// What decides the outcome of the walk.
#[derive(Clone, Debug)]
pub struct WalkOptions {
    /// Images or noise to calibrate on.
    pub calibration: Calibration,
    /// How images become the model's input; `None` for models that do not take images.
    pub preprocess: Option<Preprocess>,
    /// How ranges are chosen.
    pub observer: Observer,
    /// Bits of the weights of products.
    pub weights: Widths,
    /// Groups of rows of weights with steps of their own.
    pub groups: Groups,
    /// Bits of what products read.
    pub activations: Widths,
    /// Which levels activations of fewer than 8 bits have.
    pub codes: CodesOf,
    /// How weights are rounded.
    pub rounding: Rounding,
    /// Whether bits are searched for; then `weights` and `activations` do not matter.
    pub mixed: Option<Mixed>,
    /// Rewrites of the float graph before ranges are taken.
    pub transforms: transform::Choice,
    /// Integer forms of the nonlinear ops.
    pub nonlinear: Nonlinear,
    /// Threads for calibration. They do not change the result.
    pub threads: usize,
    /// No progress bar.
    pub quiet: bool,
}

impl Default for WalkOptions {
    fn default() -> WalkOptions {
        WalkOptions {
            calibration: Calibration::Synthetic { images: 8 },
            preprocess: None,
            observer: Observer::default(),
            weights: Widths::default(),
            groups: Groups::default(),
            activations: Widths::default(),
            codes: CodesOf::default(),
            rounding: Rounding::default(),
            mixed: None,
            transforms: transform::Choice::default(),
            nonlinear: Nonlinear::Auto,
            threads: available_threads(),
            quiet: true,
        }
    }
}

/// Cores this process may use.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// What the rooms reported on the way.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// How often each rule of `clean` fired.
    pub cleaned: BTreeMap<String, usize>,
    /// What the transforms did.
    pub transformed: Vec<Applied>,
    /// The float graph that was quantized: of stage `shape`, after the transforms; values have the ids that they had before.
    pub float: Option<Module>,
    /// What every activation became.
    pub quantized: Vec<Placed>,
    /// How bits were chosen, when they were searched for.
    pub mixed: Option<mixed::Report>,
    /// The report of `integerize`.
    pub integerized: Option<Report>,
    /// How often each lane rule fired in `fuse`.
    pub lanes: BTreeMap<String, usize>,
    /// Calibration images used.
    pub calibration_images: usize,
    /// Time each room took.
    pub times: Vec<(&'static str, Duration)>,
}

/// Key of the preprocessing in a module's notes.
pub const PREPROCESS_KEY: &str = "preprocess";

/// Takes a module from its stage to `to`. A module already there is only verified.
pub fn advance(mut module: Module, to: Stage, options: &WalkOptions, journal: &mut Journal) -> Result<Module> {
    check(&module)?;
    while module.stage < to {
        let started = Instant::now();
        let from = module.stage;
        module = room(module, options, journal)?;
        journal.times.push((module.stage.word(), started.elapsed()));
        check(&module).with_context(|| format!("after {}: this is a bug in vitc", module.stage.word()))?;
        debug_assert!(module.stage > from);
    }
    Ok(module)
}

fn check(module: &Module) -> Result<()> {
    verify::verify(module)
        .map_err(|d| Failure::invalid(format!("module \"{}\" is not well-formed", module.name), d).into())
}

/// The one room behind the module's stage.
fn room(module: Module, options: &WalkOptions, journal: &mut Journal) -> Result<Module> {
    let unsupported = |d| anyhow::Error::from(Failure::Unsupported(d));
    match module.stage {
        Stage::Import => {
            let pixels_of = |p: &Preprocess| Pixels { mean: p.mean.clone(), std: p.std.clone(), axis: p.layout.axis() };
            let pixels = options.preprocess.as_ref().map(pixels_of);
            let cleaned = clean::run(&module, &CleanOptions { pixels }).map_err(unsupported)?;
            journal.cleaned = cleaned.fired.iter().map(|(rule, n)| (rule.to_string(), *n)).collect();
            let mut module = cleaned.module;
            if let Some(p) = &options.preprocess {
                module.meta.insert(PREPROCESS_KEY.into(), serde_json::to_string(p)?);
            }
            Ok(module)
        }
        Stage::Clean => shape::run(&module).map_err(unsupported),
        Stage::Shape => quantized(module, options, journal),
        Stage::Quantize => {
            let chosen = integerize::Options { nonlinear: options.nonlinear, ..Default::default() };
            let (module, report) = integerize::run(&module, &chosen).map_err(unsupported)?;
            journal.integerized = Some(report);
            Ok(module)
        }
        Stage::Integerize => {
            let (module, fired) = fuse::run(&module).map_err(unsupported)?;
            journal.lanes = fired;
            Ok(module)
        }
        Stage::Fuse => {
            let target = Target {
                weight_layout: &vitc_codegen::weight_layout,
                is_view: &vitc_codegen::is_view_supported,
                is_operand_view: &vitc_codegen::is_operand_view_supported,
            };
            plan::run(&module, &target).map_err(unsupported)
        }
        Stage::Plan => Ok(module),
    }
}

/// Transforms, ranges, and what follows from them.
fn quantized(module: Module, options: &WalkOptions, journal: &mut Journal) -> Result<Module> {
    let mut quant = QuantOptions {
        observer: options.observer,
        weights: options.weights.clone(),
        groups: options.groups,
        activations: options.activations.clone(),
        codes: options.codes.clone(),
        rounding: options.rounding,
        without_rows: options.transforms.left_out(Transform::Rows).map(String::from).collect(),
        without_bias: options.transforms.left_out(Transform::Bias).map(String::from).collect(),
        bias_of_bytes: options.transforms.bias_of_bytes,
        threads: options.threads,
    };
    let mut feed = Feed::of(&module, options)?;
    journal.calibration_images = feed.len();
    if feed.len() == 0 && options.mixed.is_none() {
        return placed(module, &quantize::Calibration::default(), &quant, journal);
    }
    if let Some(mixed) = &options.mixed {
        // the search sees the factors of whole bytes; those for the widths that it chooses are taken below
        let module = transformed(module.clone(), &mut feed, (options, &quant), journal)?;
        let (chosen, report) = mixed::choose(&module, &mut feed, &quant, mixed, options)?;
        journal.mixed = Some(report);
        quant = chosen;
    }
    let module = transformed(module, &mut feed, (options, &quant), journal)?;
    let mut seen =
        feed.pass(&module, "calibrating", |inputs, done| quantize::observe(&module, inputs, &quant, done))?;
    if quantize::wants_products(&module, &quant) {
        feed.pass(&module, "measuring products", |inputs, done| {
            quantize::observe_products(&module, &mut seen, inputs, &quant, done)
        })?;
    }
    let quantized = placed(module, &seen, &quant, journal)?;
    corrected(quantized, &mut feed, &quant, journal)
}

/// Biases without the mean errors of the calibration inputs, where they are to be corrected.
fn corrected(quantized: Module, feed: &mut Feed, quant: &QuantOptions, journal: &mut Journal) -> Result<Module> {
    let Some(float) = journal.float.as_ref().filter(|float| quantize::wants_correction(float, quant)) else {
        return Ok(quantized);
    };
    let correct =
        |inputs: &mut Inputs<'_>, done: &mut dyn FnMut(usize)| quantize::correct(float, quantized, inputs, quant, done);
    let (module, found) = feed.pass(float, "correcting biases", correct)?;
    let note = |c: quantize::Corrected| Applied { transform: Transform::Bias, node: c.node, gain: c.gain };
    journal.transformed.extend(found.into_iter().map(note));
    Ok(module)
}

fn placed(module: Module, seen: &quantize::Calibration, quant: &QuantOptions, journal: &mut Journal) -> Result<Module> {
    let unsupported = |d| anyhow::Error::from(Failure::Unsupported(d));
    let (quantized, placed) = quantize::run_placing(&module, seen, quant).map_err(unsupported)?;
    (journal.float, journal.quantized) = (Some(module), placed);
    Ok(quantized)
}

fn transformed(
    module: Module,
    feed: &mut Feed,
    (options, quant): (&WalkOptions, &QuantOptions),
    journal: &mut Journal,
) -> Result<Module> {
    let wanted = transform::wanted(&module, &options.transforms);
    if wanted.is_empty() {
        return Ok(module);
    }
    let see = |inputs: &mut Inputs<'_>, done: &mut dyn FnMut(usize)| {
        transform::observe(&module, &wanted, inputs, options.threads, done)
    };
    let seen = feed.pass(&module, "looking at channels", see)?;
    let (module, applied) = transform::run(module, &seen, &options.transforms, quant)
        .map_err(|d| Failure::invalid("the transforms do not fit the model", d))?;
    journal.transformed = applied;
    Ok(module)
}

/// The preprocessing recorded in a module.
pub fn preprocess_of(module: &Module) -> Result<Option<Preprocess>> {
    let note = module.meta.get(PREPROCESS_KEY);
    note.map(|text| serde_json::from_str(text).context("the recorded preprocessing is not readable")).transpose()
}
