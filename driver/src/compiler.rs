//! The compiler facade: options in, a compiled module out.

use std::path::Path;

use anyhow::{Context, Result};
use vitc_ir::{Module, Stage};
use vitc_passes::integerize::Nonlinear;
use vitc_passes::quantize::{CodesOf, Groups, Observer, Rounding, Widths};
use vitc_passes::transform;

use crate::artifact;
use crate::calibrate::Calibration;
use crate::error::Failure;
use crate::io::image::Preprocess;
use crate::mixed::Mixed;
use crate::tuning::Found;
use crate::walk::{self, Journal, WalkOptions};

/// Compiles models. Every setting has a sensible default except the calibration, without which seeded noise is used.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    options: WalkOptions,
    import: vitc_onnx::Options,
}

/// A module of stage `plan`, ready to run or to save, and what the rooms reported.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The plan.
    pub module: Module,
    /// What happened on the way; empty for a loaded artifact.
    pub journal: Journal,
    /// What `vitc tune` has found for an artifact on this machine.
    pub tuning: Found,
}

impl Compiler {
    /// A compiler with default options.
    pub fn new() -> Compiler {
        Compiler::default()
    }

    /// What to calibrate on.
    pub fn calibration(mut self, calibration: Calibration) -> Compiler {
        self.options.calibration = calibration;
        self
    }

    /// How images become the model's input. The default is [`Preprocess::of_input`].
    pub fn preprocess(mut self, preprocess: Preprocess) -> Compiler {
        self.options.preprocess = Some(preprocess);
        self
    }

    /// Which integer forms the nonlinear ops may take.
    pub fn nonlinear(mut self, nonlinear: Nonlinear) -> Compiler {
        self.options.nonlinear = nonlinear;
        self
    }

    /// How ranges are chosen.
    pub fn observer(mut self, observer: Observer) -> Compiler {
        self.options.observer = observer;
        self
    }

    /// Bits of the weights of products.
    pub fn weights(mut self, weights: Widths) -> Compiler {
        self.options.weights = weights;
        self
    }

    /// Groups of rows of weights with steps of their own.
    pub fn groups(mut self, groups: Groups) -> Compiler {
        self.options.groups = groups;
        self
    }

    /// Bits of what products read.
    pub fn activations(mut self, activations: Widths) -> Compiler {
        self.options.activations = activations;
        self
    }

    /// Which levels activations of fewer than 8 bits have.
    pub fn codes(mut self, codes: CodesOf) -> Compiler {
        self.options.codes = codes;
        self
    }

    /// How weights are rounded.
    pub fn rounding(mut self, rounding: Rounding) -> Compiler {
        self.options.rounding = rounding;
        self
    }

    /// Searches for the bits of weights and of what products read, instead of being told.
    pub fn mixed(mut self, mixed: Mixed) -> Compiler {
        self.options.mixed = Some(mixed);
        self
    }

    /// Which rewrites of the float graph come before quantization.
    pub fn transforms(mut self, transforms: transform::Choice) -> Compiler {
        self.options.transforms = transforms;
        self
    }

    /// Threads for calibration.
    pub fn threads(mut self, threads: usize) -> Compiler {
        self.options.threads = threads.max(1);
        self
    }

    /// Show progress bars on a terminal.
    pub fn progress(mut self, show: bool) -> Compiler {
        self.options.quiet = !show;
        self
    }

    /// Imports an ONNX file, without compiling it.
    pub fn import(&self, path: impl AsRef<Path>) -> Result<Module> {
        let path = path.as_ref();
        vitc_onnx::import_file(path, &self.import).map_err(|e| {
            let context = format!("cannot import {}", path.display());
            match e {
                vitc_onnx::ImportError::Unsupported(d) => anyhow::Error::from(Failure::Unsupported(d)).context(context),
                other => anyhow::Error::from(other).context(context),
            }
        })
    }

    /// Compiles an ONNX file.
    pub fn compile_file(&self, path: impl AsRef<Path>) -> Result<Compiled> {
        self.compile(self.import(path)?)
    }

    /// Compiles a module of any stage.
    pub fn compile(&self, module: Module) -> Result<Compiled> {
        let (module, journal) = self.advance(module, Stage::Plan)?;
        Ok(Compiled { module, journal, tuning: Found::Nothing })
    }

    /// Takes a module of any stage to a later one.
    pub fn advance(&self, module: Module, to: Stage) -> Result<(Module, Journal)> {
        let options = self.options_for(&module)?;
        let mut journal = Journal::default();
        let module = walk::advance(module, to, &options, &mut journal)?;
        Ok((module, journal))
    }

    /// Compiles a module of any stage and shows it at every stage on the way.
    pub(crate) fn compile_showing(&self, mut module: Module, show: &mut dyn FnMut(&Module)) -> Result<Compiled> {
        let options = self.options_for(&module)?;
        let mut journal = Journal::default();
        let (from, stages) = (module.stage, Stage::WORDS.map(|(stage, _)| stage));
        for to in stages.into_iter().filter(|&stage| stage >= from) {
            module = walk::advance(module, to, &options, &mut journal)?;
            show(&module);
        }
        Ok(Compiled { module, journal, tuning: Found::Nothing })
    }

    /// The options for a module, the preprocessing filled in.
    pub(crate) fn options_for(&self, module: &Module) -> Result<WalkOptions> {
        let mut options = self.options.clone();
        if options.preprocess.is_none() {
            options.preprocess = Preprocess::of_input(module);
        }
        if let Some(p) = &options.preprocess {
            p.validate().context("the preprocessing is not valid")?;
        }
        Ok(options)
    }
}

impl Compiled {
    /// Writes the artifact: one file, all or nothing.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        artifact::save(&self.module, path.as_ref())
    }

    /// Opens an artifact by memory map, with what `vitc tune` has found for it.
    pub fn open(path: impl AsRef<Path>) -> Result<Compiled> {
        let (module, tuning) = (artifact::open(path.as_ref())?, Found::beside(path.as_ref()));
        Ok(Compiled { module, journal: Journal::default(), tuning })
    }
}
