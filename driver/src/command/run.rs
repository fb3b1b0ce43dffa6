//! `vitc run`: classifies images, or runs a model on arrays.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::source::{self, CompileFlags};
use super::{Global, preprocess_cell, say};
use crate::io::atomic::check_writable;
use crate::io::labels::read_class_names;
use crate::io::npy::{read_npy, write_npy_f32};
use crate::io::table::{Cell, Table};
use crate::model::{Model, Output, shape_text, softmax, top_k};

/// Arguments of `vitc run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitc run deit.vitc cat.jpg dog.png --top 5
  vitc run deit.vitc cat.jpg --classes imagenet-classes.txt --json
  vitc run deit.onnx cat.jpg --calibrate images/          compile and run at once
  vitc run deit.vitc --input x=x.npy --output y.npy       an array in, logits out; the batch is x's first dimension

Arrays are float32 (normalised images, as the ONNX model wants them) or uint8 (pixels), in NCHW order.")]
pub struct Args {
    /// An artifact, an ONNX model or a `.vir` text; the latter two are compiled first.
    model: PathBuf,
    /// Images to classify (JPEG or PNG).
    #[arg(value_name = "IMAGE", required_unless_present = "input", conflicts_with_all = ["input", "output"])]
    images: Vec<PathBuf>,
    /// Number of classes to print for each image.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = parse_top)]
    top: usize,
    /// Names of the classes, one per line; line 1 is class 0.
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Array for the input of that name (once for each input).
    #[arg(long, value_name = "NAME=x.npy", value_parser = parse_named)]
    input: Vec<(String, PathBuf)>,
    /// Where the output goes, as float32; `NAME=y.npy` where the model has several.
    #[arg(long, value_name = "[NAME=]y.npy", requires = "input")]
    output: Vec<String>,
    #[command(flatten)]
    flags: CompileFlags,
}

fn parse_top(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&k| k > 0).ok_or_else(|| format!("`{text}` is not a number above 0"))
}

fn parse_named(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.into(), path.into())),
        _ => Err(format!("`{text}` is not NAME=x.npy")),
    }
}

/// Runs the verb.
pub fn run(args: Args, global: Global) -> Result<u8> {
    let names = args.classes.as_deref().map(read_class_names).transpose()?;
    let targets: Vec<Target> = args.output.iter().map(|text| Target::parse(text)).collect();
    targets.iter().try_for_each(|t| check_writable(&t.path))?;
    let arrays =
        args.input.iter().map(|(name, path)| Ok((name.clone(), read_npy(path)?))).collect::<Result<Vec<_>>>()?;
    let mut model = source::model(&args.model, &args.flags, global)?;
    check_names(names.as_deref(), &model)?;
    let ranking = Ranking { top: args.top, names };
    if arrays.is_empty() {
        let rows = classify(&mut model, &args.images, &ranking)?;
        return print(&args.model, &model, rows, Vec::new(), global);
    }
    let outputs = model.run_tensors(&arrays)?;
    let written = write(&outputs, &targets)?;
    print(&args.model, &model, rank_rows(&outputs, &ranking), written, global)
}

/// Where one output goes.
struct Target {
    name: Option<String>,
    path: PathBuf,
}

impl Target {
    fn parse(text: &str) -> Target {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Target { name: Some(name.into()), path: path.into() }
            }
            _ => Target { name: None, path: text.into() },
        }
    }

    fn find<'a>(&self, outputs: &'a [Output]) -> Result<&'a Output> {
        let known = || outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>().join("', '");
        match (&self.name, outputs) {
            (Some(name), _) => {
                let found = outputs.iter().find(|o| o.name == *name);
                found.with_context(|| format!("the model has no output '{name}'; it has '{}'", known()))
            }
            (None, [only]) => Ok(only),
            (None, _) => bail!("the model has several outputs; give --output NAME=y.npy with one of '{}'", known()),
        }
    }
}

/// Writes the outputs that were asked for; the names are checked before the first file is written.
fn write(outputs: &[Output], targets: &[Target]) -> Result<Vec<Value>> {
    let found = targets.iter().map(|t| Ok((t, t.find(outputs)?))).collect::<Result<Vec<_>>>()?;
    let one = |(target, output): (&Target, &Output)| {
        write_npy_f32(&target.path, &output.shape, &output.values)?;
        Ok(json!({"name": output.name, "shape": output.shape, "path": target.path.display().to_string()}))
    };
    found.into_iter().map(one).collect()
}

fn check_names(names: Option<&[String]>, model: &Model) -> Result<()> {
    let Some(names) = names else { return Ok(()) };
    let (given, classes) = (names.len(), model.classes());
    ensure!(given == classes, "--classes has {given} names, the model {classes} classes");
    Ok(())
}

struct Ranking {
    top: usize,
    names: Option<Vec<String>>,
}

/// One row of logits with what they say.
struct Row {
    what: String,
    best: Vec<Guess>,
}

struct Guess {
    class: usize,
    name: Option<String>,
    probability: f64,
    logit: f32,
}

impl Ranking {
    fn row(&self, what: String, logits: &[f32]) -> Row {
        let probabilities = softmax(logits);
        let name = |class: usize| self.names.as_ref().and_then(|n| n.get(class).cloned());
        let guess =
            |(class, logit): (usize, f32)| Guess { class, name: name(class), probability: probabilities[class], logit };
        Row { what, best: top_k(logits, self.top).into_iter().map(guess).collect() }
    }
}

fn classify(model: &mut Model, images: &[PathBuf], ranking: &Ranking) -> Result<Vec<Row>> {
    let one = |path: &PathBuf| {
        let pixels = model.load_image(path)?;
        Ok(ranking.row(path.display().to_string(), &model.classify(&pixels)?))
    };
    images.iter().map(one).collect()
}

/// The rows of the first output, when it is a matrix of logits.
fn rank_rows(outputs: &[Output], ranking: &Ranking) -> Vec<Row> {
    let Some(Output { shape, values, .. }) = outputs.first() else { return Vec::new() };
    let [_, classes] = *shape.as_slice() else { return Vec::new() };
    values.chunks(classes.max(1)).enumerate().map(|(i, logits)| ranking.row(format!("row {i}"), logits)).collect()
}

fn print(path: &Path, model: &Model, rows: Vec<Row>, written: Vec<Value>, global: Global) -> Result<u8> {
    if global.json {
        let results: Vec<Value> = rows.iter().map(row_json).collect();
        let report = json!({
            "model": path.display().to_string(),
            "tier": model.tier().word(),
            "preprocessing": preprocess_cell(model.preprocess())?.value(),
            "results": results,
            "outputs": written,
        });
        say(&format!("{report:#}"))?;
        return Ok(0);
    }
    if let Some(p) = model.preprocess() {
        say(&format!("preprocessing: {p}"))?;
    }
    say(&table(&rows).to_string())?;
    for output in written {
        let shape: Vec<usize> = serde_json::from_value(output["shape"].clone())?;
        say(&format!("wrote {} {} to {}", output["name"], shape_text(&shape), output["path"]))?;
    }
    Ok(0)
}

fn row_json(row: &Row) -> Value {
    let guess = |g: &Guess| json!({"class": g.class, "name": g.name, "probability": g.probability, "logit": g.logit});
    json!({"image": row.what, "top": row.best.iter().map(guess).collect::<Vec<_>>()})
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&["image", "class", "name", "percent", "logit"]);
    for row in rows {
        for (place, g) in row.best.iter().enumerate() {
            let what = if place == 0 { row.what.as_str() } else { "" };
            let name = g.name.as_deref().unwrap_or("-");
            let (percent, logit) = (Cell::number(100.0 * g.probability, 2), Cell::number(g.logit.into(), 3));
            table.row([what.into(), g.class.into(), name.into(), percent, logit]);
        }
    }
    table
}
