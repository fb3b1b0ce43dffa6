//! The `vitc` command: one file for each verb, and here what they share.

mod bench;
mod compare;
mod compile;
mod demo;
mod dump;
mod eval;
mod explain;
mod hw;
mod inspect;
mod run;
pub mod source;
mod tune;

use std::io::Write;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::Value;

use crate::error::Failure;
use crate::io::image::Preprocess;
use crate::io::table::Cell;

/// Compiles ONNX Vision Transformers to integer-only native code.
#[derive(Debug, Parser)]
#[command(
    name = "vitc",
    version,
    propagate_version = true,
    after_help = "Examples:
  vitc demo                                                   compile and run the bundled model
  vitc compile deit.onnx --calibrate images/ -o deit.vitc     compile a model, calibrated on a folder of images
  vitc run deit.vitc cat.jpg --top 5                          classify an image
  vitc eval deit.vitc --images val/ --labels val.txt          measure accuracy
  vitc inspect model.onnx                                     see what a model needs, before any work

Exit status: 0 done, 1 bad input or failure, 2 the model uses something unsupported, 3 a comparison failed."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Global {
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress bars and no notes.
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Compile and run the bundled model on the bundled images.
    Demo(demo::Args),
    /// Compile a model to one artifact file.
    Compile(compile::Args),
    /// Classify images, or run a model on an array.
    Run(run::Args),
    /// Measure accuracy on labelled images.
    Eval(eval::Args),
    /// Measure latency.
    Bench(bench::Args),
    /// Print the model as text after any stage, or the disassembly of its kernels.
    Dump(dump::Args),
    /// Tell which rules fired, what the nonlinear ops became and why, and that no accumulator overflows.
    Explain(explain::Args),
    /// Tell what a model contains and whether it can be compiled.
    Inspect(inspect::Args),
    /// Compare the compiled model with the evaluator or with recorded values, node by node.
    Compare(compare::Args),
    /// Tell what this machine can do.
    Hw(hw::Args),
    /// Find the fastest of equal kernels on this machine, and keep that beside the artifact.
    Tune(tune::Args),
}

/// Runs the command with these arguments; the exit status.
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { 1 } else { 0 };
        }
    };
    match dispatch(cli) {
        Ok(status) => status,
        Err(e) => {
            eprintln!("error: {e:#}");
            e.chain().find_map(|c| c.downcast_ref::<Failure>()).map_or(1, Failure::exit_code)
        }
    }
}

/// Prints a result. A reader that has gone away, such as `head`, is no error.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done.context("cannot write to standard output")?),
    }
}

/// Preprocessing in words, and as JSON with its numbers as short as they were given.
pub(crate) fn preprocess_cell(p: Option<&Preprocess>) -> Result<Cell> {
    Ok(match p {
        Some(p) => Cell::shown_as(p.to_string(), serde_json::from_str::<Value>(&serde_json::to_string(p)?)?),
        None => Cell::none(),
    })
}

/// Prints a remark to standard error, unless the user wants none.
pub(crate) fn note(global: Global, text: &str) {
    if !global.quiet {
        eprintln!("note: {text}");
    }
}

fn dispatch(cli: Cli) -> Result<u8> {
    let global = cli.global;
    match cli.verb {
        Verb::Demo(a) => demo::run(a, global),
        Verb::Compile(a) => compile::run(a, global),
        Verb::Run(a) => run::run(a, global),
        Verb::Eval(a) => eval::run(a, global),
        Verb::Bench(a) => bench::run(a, global),
        Verb::Dump(a) => dump::run(a, global),
        Verb::Explain(a) => explain::run(a, global),
        Verb::Inspect(a) => inspect::run(a, global),
        Verb::Compare(a) => compare::run(a, global),
        Verb::Hw(a) => hw::run(a, global),
        Verb::Tune(a) => tune::run(a, global),
    }
}
