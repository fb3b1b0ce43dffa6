//! `vitc explain`: which rules fired, what the nonlinear ops became and why, and that no accumulator overflows.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use vitc_ir::{Class, Module, Op, Stage};
use vitc_passes::integerize::report::{Accumulator, Error, Region, Site};
use vitc_passes::quantize;

use super::source::{self, CompileFlags};
use super::{Global, say};
use crate::io::table::{Cell, Record, Table};
use crate::walk::Journal;

/// Options of `vitc explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitc explain deit.onnx --calibrate images/                        everything
  vitc explain deit.onnx --calibrate images/ --rule requantize      where one rule fired
  vitc explain deit.onnx --calibrate synthetic --json               for a program to read")]
pub struct Args {
    /// An ONNX model or a `.vir` text; of a later stage than `quantize`, only the plan can be told.
    model: PathBuf,
    /// Tell at which nodes this rule fired.
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    #[command(flatten)]
    compile: CompileFlags,
}

/// Runs the verb; the exit status.
pub fn run(args: Args, global: Global) -> Result<u8> {
    let (module, journal) = source::read_at(&args.model, Stage::Plan, &args.compile, global)?;
    let told = match &args.rule {
        Some(rule) => {
            vec![Section { key: "fired_at", title: format!("where {rule} fired"), body: places_of(rule, &journal)? }]
        }
        None => sections(&module, &journal),
    };
    say(render(&told, global.json).trim_end())?;
    Ok(0)
}

/// One part of the report.
struct Section {
    key: &'static str,
    title: String,
    body: Body,
}

enum Body {
    Table(Table),
    Record(Record),
    /// Nothing to show, and why.
    Nothing(&'static str),
}

impl Body {
    fn json(&self) -> Value {
        match self {
            Body::Table(t) => t.to_json(),
            Body::Record(r) => r.to_json(),
            Body::Nothing(_) => Value::Null,
        }
    }

    fn text(&self) -> String {
        match self {
            Body::Table(t) => t.to_string(),
            Body::Record(r) => r.to_string(),
            Body::Nothing(why) => (*why).to_owned(),
        }
    }
}

fn render(sections: &[Section], as_json: bool) -> String {
    if as_json {
        let object: serde_json::Map<String, Value> =
            sections.iter().map(|s| (s.key.to_owned(), s.body.json())).collect();
        return format!("{:#}\n", json!(object));
    }
    let texts: Vec<String> = sections.iter().map(|s| format!("{}\n\n{}\n", s.title, s.body.text())).collect();
    texts.join("\n")
}

fn sections(module: &Module, journal: &Journal) -> Vec<Section> {
    const LATE: &str = "(the model was past this stage when it was read)";
    let section = |key, title: &str, body| Section { key, title: title.to_owned(), body };
    let report = journal.integerized.as_ref();
    let of_report = |body: Option<Table>| body.map_or(Body::Nothing(LATE), Body::Table);
    let quantization = match quantize::counts_of(module) {
        Some(counts) => {
            let mut record = Record::new();
            record.field("given", counts.given).field("calibrated", counts.calibrated);
            Body::Record(record)
        }
        None => Body::Nothing("(the model came in float: everything is calibrated)"),
    };
    vec![
        section("quantization", "Quantization of values that came with the model", quantization),
        section("rules", "Rules fired", Body::Table(rules(journal))),
        section("sites", "Integer forms of nonlinear ops", of_report(report.map(|r| sites(&r.sites)))),
        section("saturation", "Saturation, region by region", of_report(report.map(|r| regions(&r.regions)))),
        section("accumulators", "Overflow proofs", of_report(report.map(|r| accumulators(&r.accumulators)))),
        section("plan", "The plan", Body::Record(plan(module))),
    ]
}

/// Every rule that fired: book, name, count.
fn rules(journal: &Journal) -> Table {
    let mut table = Table::new(&["book", "rule", "fired"]);
    let mut add = |book: &str, fired: &BTreeMap<String, usize>| {
        for (rule, count) in fired {
            table.row([book.into(), rule.as_str().into(), (*count).into()]);
        }
    };
    add("clean", &journal.cleaned);
    if let Some(report) = &journal.integerized {
        let (forms, qdq) = report.fired.clone().into_iter().partition(|(rule, _)| is_form(rule));
        add("qdq", &qdq);
        add("forms", &forms);
    }
    add("lanes", &journal.lanes);
    table
}

fn is_form(rule: &str) -> bool {
    use vitc_passes::integerize::{books, rule::Book};
    books::all().iter().any(|r| r.name == rule && matches!(r.book, Book::Forms))
}

/// The nodes where one rule fired.
fn places_of(rule: &str, journal: &Journal) -> Result<Body> {
    if let Some(report) = journal.integerized.as_ref().filter(|r| r.fired.contains_key(rule)) {
        let places: Vec<_> = report.fired_at.iter().filter(|((name, _), _)| name == rule).collect();
        if !places.is_empty() {
            let mut table = Table::new(&["node", "fired"]);
            for ((_, at), count) in places {
                table.row([place(Some(at)), (*count).into()]);
            }
            return Ok(Body::Table(table));
        }
    }
    // rules of the other books are counted, not placed
    let integerized = journal.integerized.as_ref().and_then(|r| r.fired.get(rule));
    let counted = integerized.or_else(|| journal.cleaned.get(rule)).or_else(|| journal.lanes.get(rule));
    if let Some(count) = counted {
        let mut record = Record::new();
        record.field("rule", rule).field("fired", *count);
        return Ok(Body::Record(record));
    }
    let known = journal
        .integerized
        .iter()
        .flat_map(|r| r.fired.keys())
        .chain(journal.cleaned.keys())
        .chain(journal.lanes.keys());
    bail!("no rule `{rule}` fired; those that did: {}", known.cloned().collect::<Vec<_>>().join(", "))
}

/// Every candidate form of every nonlinear site.
fn sites(sites: &[Site]) -> Table {
    let mut table = Table::new(&["node", "op", "form", "cost", "error", "allowed", "chosen"]);
    for s in sites {
        table.row([
            place(s.loc.as_deref()),
            s.op.into(),
            s.form.into(),
            s.cost.into(),
            error(s.error),
            s.allowed.into(),
            s.chosen.into(),
        ]);
    }
    table
}

fn error(error: Error) -> Cell {
    match error {
        Error::Steps(steps) => Cell::shown_as(format!("{steps:.3} steps"), json!({ "steps": steps })),
        Error::Relative(share) => Cell::shown_as(format!("{:.3} %", 100.0 * share), json!({ "relative": share })),
    }
}

/// A node's name; of many joined names the text shows the last, which the result belongs to.
fn place(loc: Option<&str>) -> Cell {
    let Some(loc) = loc else { return Cell::none() };
    match loc.rsplit_once(" + ") {
        Some((others, last)) => Cell::shown_as(format!("{last} (and {} more)", others.split(" + ").count()), loc),
        None => loc.into(),
    }
}

fn regions(regions: &[Region]) -> Table {
    let mut table = Table::new(&["region", "nodes", "enodes", "classes", "iterations", "stopped_because"]);
    for (i, r) in regions.iter().enumerate() {
        table.row([
            i.into(),
            r.nodes.into(),
            r.enodes.into(),
            r.classes.into(),
            r.iterations.into(),
            r.stop.as_str().into(),
        ]);
    }
    table
}

/// Every accumulator: the range it was proved to stay in, and the bits of a signed integer that holds it.
fn accumulators(accumulators: &[Accumulator]) -> Table {
    let mut table = Table::new(&["node", "op", "lo", "hi", "bits"]);
    for a in accumulators {
        let number = |v: i64| Cell::shown_as(v.to_string(), v);
        table.row([
            place(a.loc.as_deref()),
            a.op.into(),
            number(a.lo),
            number(a.hi),
            (signed_bits(a.lo, a.hi) as usize).into(),
        ]);
    }
    table
}

/// Bits of the smallest two's complement integer that holds both.
fn signed_bits(lo: i64, hi: i64) -> u32 {
    let bits = |v: i64| 65 - (if v < 0 { !v } else { v }).leading_zeros();
    bits(lo).max(bits(hi))
}

/// Views, copies and the arena.
fn plan(module: &Module) -> Record {
    let mut placed = BTreeMap::new();
    let (mut views, mut copies, mut copied) = (0usize, 0usize, 0usize);
    let (mut kernels, mut unshared) = (0usize, 0usize);
    for node in &module.nodes {
        let bytes = module.ty(node.result).bytes().map_or(0, |b| b.size);
        let shares = node.operands.first().and_then(|v| placed.get(v)).copied() == node.place;
        match node.op.class() {
            Class::Move if node.place.is_none() || (shares && matches!(node.op, Op::Reshape { .. })) => views += 1,
            Class::Move => {
                copies += 1;
                copied += bytes;
                unshared += bytes;
            }
            Class::Quant => {}
            _ => {
                kernels += 1;
                unshared += bytes;
            }
        }
        if let Some(place) = node.place {
            placed.insert(node.result, place);
        }
    }
    let constants: usize = module.consts.iter().map(|c| c.data.len()).sum();
    let mut record = Record::new();
    record
        .field("kernel_calls", kernels)
        .field("views", views)
        .field("copies", copies)
        .field("copied_bytes_per_image", copied)
        .field("arena_bytes_per_image", module.arena)
        .field("bytes_per_image_without_sharing", unshared)
        .field("constant_bytes", constants);
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_range() {
        let cases = [(0, 0, 1), (-1, 0, 1), (0, 1, 2), (-128, 127, 8), (-128, 128, 9), (-129, 0, 9)];
        for (lo, hi, bits) in cases {
            assert_eq!(signed_bits(lo, hi), bits, "{lo}..={hi}");
        }
        assert_eq!(signed_bits(i32::MIN.into(), i32::MAX.into()), 32);
        assert_eq!(signed_bits(i64::MIN, i64::MAX), 64);
    }
}
