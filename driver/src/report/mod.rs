//! The quantization report of `vitc compile --report`: what every activation became and what that costs, stage by stage.
//!
//! [`data`] is what it says, gathered by `collect` from the stages of one compilation ([`Kept`]) and from quantizing the float graph
//! again with less (`ladder`); `noise` and `spread` measure. It is written as JSON or drawn as one page (`html`, `svg`) that refers
//! to nothing outside itself.

mod collect;
pub mod data;
mod html;
mod ladder;
mod noise;
mod spread;
mod svg;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Result, bail};
use vitc_codegen::Tier;
use vitc_ir::{Module, Stage};

use crate::accuracy::Score;
use crate::compiler::Compiled;
use crate::io::atomic::write_atomically;
use crate::walk::WalkOptions;

pub use data::Report;

/// The stages of a compilation that a report needs.
#[derive(Default)]
pub(crate) struct Kept(Vec<Module>);

impl Kept {
    /// Keeps a module of a stage that is needed. Constants are shared, so this is cheap.
    pub(crate) fn keep(&mut self, module: &Module) {
        if matches!(module.stage, Stage::Shape | Stage::Quantize | Stage::Integerize) {
            self.0.push(module.clone());
        }
    }
}

/// What a report is made of.
pub(crate) struct Request<'a> {
    /// The model's file.
    pub(crate) file: &'a str,
    pub(crate) settings: Vec<data::Setting>,
    pub(crate) options: &'a WalkOptions,
    pub(crate) kept: &'a Kept,
    pub(crate) compiled: &'a Compiled,
    pub(crate) artifact_bytes: usize,
    pub(crate) tier: Tier,
    /// Accuracy on labelled images, where some are given.
    pub(crate) score: Option<&'a Score>,
}

impl Request<'_> {
    /// Measures, which takes about as long as compiling once for every stage.
    pub(crate) fn report(&self) -> Result<Report> {
        collect::report(self)
    }
}

/// What a report is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A page with its plots.
    Html,
    /// The data.
    Json,
}

impl Format {
    /// By the extension of a file's name; any other than these is an error.
    pub fn of(path: &Path) -> Result<Format> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("html" | "htm") => Ok(Format::Html),
            Some("json") => Ok(Format::Json),
            _ => bail!("--report '{}': the extension decides what is written; give .html or .json", path.display()),
        }
    }
}

/// The text of a report.
pub fn text(report: &Report, format: Format) -> Result<String> {
    Ok(match format {
        Format::Html => html::page(report),
        Format::Json => serde_json::to_string_pretty(report)? + "\n",
    })
}

/// Writes a report, all or nothing, in the format that the extension says.
pub fn write(report: &Report, path: &Path) -> Result<()> {
    let text = text(report, Format::of(path)?)?;
    write_atomically(path, |w| Ok(w.write_all(text.as_bytes())?))
}
