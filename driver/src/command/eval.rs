//! `vitc eval`: accuracy on labelled images.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::source::{self, CompileFlags};
use super::{Global, preprocess_cell, say};
use crate::accuracy::{Reference, Score, evaluate, mean_ms, median_ms};
use crate::io::labels::{Labelled, read_labels};
use crate::io::progress::Progress;
use crate::io::table::{Cell, Record};
use crate::model::Model;

/// Arguments of `vitc eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitc eval deit.vitc --images val/ --labels val.txt
  vitc eval deit.vitc --images val/ --labels val.txt --reference deit.onnx --json    beside the float graph
  vitc eval deit.onnx --calibrate calib/ --images val/ --labels val.txt

The label file has one 'file class' per line; 0 is the first class. Shares are in percent. The reference is the float
ONNX graph, evaluated by vitc itself on the same pixels: `agreement` is the share of images on which both find the same
class, `logit_sqnr_db` is 10*log10(sum float^2 / sum (float - integer)^2) over all logits.")]
pub struct Args {
    /// An artifact, an ONNX model or a `.vir` text; the latter two are compiled first.
    model: PathBuf,
    /// Folder of the images.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// File with `file class` per line.
    #[arg(long, value_name = "FILE")]
    labels: PathBuf,
    /// The float model to compare with.
    #[arg(long, value_name = "M.onnx")]
    reference: Option<PathBuf>,
    /// Use at most so many images, spread evenly over the label file.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    flags: CompileFlags,
}

/// Runs the verb.
pub fn run(args: Args, global: Global) -> Result<u8> {
    let images = limited(read_labels(&args.labels, &args.images)?, args.limit)?;
    let mut model = source::model(&args.model, &args.flags, global)?;
    let preprocess = model.image_input()?.clone();
    let reference = args.reference.as_ref().map(|path| Reference::load(path, &preprocess)).transpose()?;
    let progress = Progress::new("evaluating", images.len(), global.quiet || global.json);
    let score = evaluate(&mut model, reference.as_ref(), &images, args.flags.thread_count(), &progress)?;
    drop(progress);
    let mut record = Record::new();
    record.field("model", args.model.display().to_string()).field("preprocessing", preprocess_cell(Some(&preprocess))?);
    add_score(&mut record, &score);
    add_speed(&mut record, &score, &model);
    say(&record.render(global.json))?;
    Ok(0)
}

/// At most `limit` images, spread evenly: a label file sorted by class is not sampled from one end.
fn limited(images: Vec<Labelled>, limit: Option<usize>) -> Result<Vec<Labelled>> {
    let count = images.len();
    let limit = limit.unwrap_or(count).min(count);
    ensure!(limit > 0, "--limit 0 leaves no image; give at least 1");
    Ok((0..limit).map(|i| images[i * count / limit].clone()).collect())
}

/// The accuracy fields.
pub(super) fn add_score(record: &mut Record, score: &Score) {
    let percent = |count| Cell::number(score.percent(count), 2);
    let (low, high) = score.top1_interval();
    record
        .field("images", score.images)
        .field("top1", percent(score.top1))
        .field("top1_interval", Cell::shown_as(format!("{low:.2} to {high:.2} (95 %)"), vec![low, high]))
        .field("top5", percent(score.top5));
    if let Some(r) = &score.reference {
        record
            .field("reference_top1", percent(r.top1))
            .field("reference_top5", percent(r.top5))
            .field("agreement", percent(r.agreement))
            .field("logit_sqnr_db", Cell::number(r.sqnr_db(), 2));
    }
}

fn add_speed(record: &mut Record, score: &Score, model: &Model) {
    record
        .field("mean_ms", Cell::number(mean_ms(&score.latency), 3))
        .field("median_ms", Cell::number(median_ms(&score.latency), 3));
    let reference = score.reference.as_ref().map(|r| Cell::number(mean_ms(&r.latency), 3));
    if let Some(cell) = reference {
        record.field("reference_mean_ms", cell);
    }
    record
        .field("tier", model.tier().word())
        .field("threads", model.threads())
        .field("float_instructions", model.float_instructions());
}
