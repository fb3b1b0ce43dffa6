//! `vitc dump`: a model as text after any stage, or the disassembly of its kernels.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::json;
use vitc_codegen::Tier;
use vitc_ir::text::Printed;
use vitc_ir::{Module, Stage, text};

use super::source::{self, CompileFlags};
use super::{Global, note, say};
use crate::io::atomic::write_atomically;
use crate::model::Emitted;

/// Options of `vitc dump`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitc dump deit.onnx --after clean                                          what the graph is, composite ops recovered
  vitc dump deit.onnx --calibrate images/ --after quantize -o q.vir          text to q.vir, constants to q.vir.bin
  vitc dump q.vir --after plan                                               take it on from there
  vitc dump deit.vitc --after asm                                            the machine code of every kernel")]
pub struct Args {
    /// An ONNX model, a `.vir` text or a `.vitc` artifact.
    model: PathBuf,
    /// The stage to print after; calibration is needed from `quantize` on.
    #[arg(long, value_enum, value_name = "STAGE")]
    after: After,
    /// Write the text to this file and the constants to a `.bin` file beside it.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    compile: CompileFlags,
}

/// `--after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum After {
    /// Float and movement ops as imported.
    Import,
    /// Composite ops recovered, constants folded.
    Clean,
    /// Movement in normal form.
    Shape,
    /// Quantize and dequantize explicit.
    Quantize,
    /// Integers only.
    Integerize,
    /// Elementwise ops as lane programs on kernels.
    Fuse,
    /// Weights packed, places in the arena known.
    Plan,
    /// The machine code of every kernel.
    Asm,
}

impl After {
    /// The stage to walk to; machine code is made from a plan.
    fn stage(self) -> Stage {
        match self {
            After::Import => Stage::Import,
            After::Clean => Stage::Clean,
            After::Shape => Stage::Shape,
            After::Quantize => Stage::Quantize,
            After::Integerize => Stage::Integerize,
            After::Fuse => Stage::Fuse,
            After::Plan | After::Asm => Stage::Plan,
        }
    }
}

/// Runs the verb; the exit status.
pub fn run(args: Args, global: Global) -> Result<u8> {
    let module = module_at(&args.model, args.after.stage(), &args.compile, global)?;
    match args.after {
        After::Asm => dump_code(&module, args.compile.tier()?, args.output.as_deref(), global)?,
        _ => dump_text(&module, args.output.as_deref(), global)?,
    }
    Ok(0)
}

/// Reads a model and walks it to a stage. Calibration is asked for only when the walk passes `quantize`.
fn module_at(path: &Path, stage: Stage, flags: &CompileFlags, global: Global) -> Result<Module> {
    let module = source::read(path)?;
    let from = module.stage;
    if from > stage {
        bail!("'{}' is at stage {} already, past {}", path.display(), from.word(), stage.word());
    }
    if from == stage {
        return Ok(module);
    }
    let mut flags = flags.clone();
    if stage < Stage::Quantize && flags.calibrate.is_none() {
        // never used: the walk ends before the calibration
        flags.calibrate = Some("synthetic".into());
    }
    Ok(flags.compiler(&module, global)?.advance(module, stage)?.0)
}

/// What a plan copies, as comments behind its text; nothing for other stages.
fn copies_text(module: &Module) -> String {
    if module.stage != Stage::Plan {
        return String::new();
    }
    let copies = vitc_passes::plan::copies::copies(module);
    let total: usize = copies.iter().map(|c| c.bytes).sum();
    let mut text = format!("// {total} bytes copied for each image, by {} nodes\n", copies.len());
    for copy in copies {
        let node = &module.nodes[copy.node];
        let (name, place) = (node.op.name(), node.loc.as_deref().unwrap_or("-"));
        text += &format!("//   {} bytes: {name} ({place}): {}\n", copy.bytes, copy.reason);
    }
    text
}

fn dump_text(module: &Module, output: Option<&Path>, global: Global) -> Result<()> {
    let mut printed = text::print(module);
    printed.text += &copies_text(module);
    let Some(path) = output else {
        if !printed.blob.is_empty() {
            let hidden =
                format!("{} bytes of constants are not shown; -o FILE writes them beside the text", printed.blob.len());
            note(global, &hidden);
        }
        let summary =
            json!({ "stage": module.stage.word(), "text": printed.text, "constant_bytes": printed.blob.len() });
        return if global.json { say(&format!("{summary:#}")) } else { say(printed.text.trim_end()) };
    };
    write_text(path, &printed)?;
    if global.json {
        let blob = source::blob_path(path);
        let summary = json!({ "stage": module.stage.word(), "text_file": path, "constants_file": blob });
        say(&format!("{summary:#}"))?;
    }
    Ok(())
}

/// Writes text and constants; the text takes its name last, when all else is on the disk.
fn write_text(path: &Path, printed: &Printed) -> Result<()> {
    write_atomically(path, |text| {
        text.write_all(printed.text.as_bytes())?;
        write_atomically(&source::blob_path(path), |blob| Ok(blob.write_all(&printed.blob)?))
    })
}

fn dump_code(module: &Module, tier: Tier, output: Option<&Path>, global: Global) -> Result<()> {
    let kernels = Emitted::of(module, tier)?.kernels;
    let listings: Vec<(String, String)> = kernels
        .iter()
        .map(|k| (k.name.clone(), vitc_codegen::disassemble(k.code.get(..k.instructions).unwrap_or(&k.code))))
        .collect();
    let text = if global.json {
        let kernels: Vec<_> = listings.iter().map(|(name, code)| json!({ "kernel": name, "code": code })).collect();
        format!("{:#}\n", json!(kernels))
    } else {
        listings.iter().map(|(name, code)| format!("{name}:\n{code}\n")).collect()
    };
    match output {
        Some(path) => write_atomically(path, |w| Ok(w.write_all(text.as_bytes())?)),
        None => say(text.trim_end()),
    }
}
