//! A report as one page: no script, no font and nothing else from elsewhere; colours for light and dark. It is well-formed XML as
//! well, so that a program can walk it.

use std::collections::BTreeMap;

use super::data::{Accuracy, Form, Noise, Report, Site};
use super::svg::{self, Curve};

const STYLE: &str = include_str!("style.css");
/// Sites that are shown first.
const WORST: usize = 10;

/// The page.
pub(super) fn page(report: &Report) -> String {
    let title = format!("Quantization of {}", report.model.name);
    let sections = [
        header(&title, report),
        stages(report),
        along(report),
        worst(report),
        transforms(report),
        forms(report),
        layers(report),
        predicted(report),
        sites(report),
        settings(report),
    ];
    let head = format!(
        r#"<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/><title>{}</title><style>{STYLE}</style>"#,
        escaped(&title)
    );
    let body = sections.join("\n");
    format!("<!DOCTYPE html>\n<html lang=\"en\"><head>{head}</head>\n<body>\n{body}\n</body></html>\n")
}

/// Text between tags or quotes: nothing in it is markup. Characters that no document may hold become U+FFFD.
pub(super) fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '&' => "&amp;".into(),
        '<' => "&lt;".into(),
        '>' => "&gt;".into(),
        '"' => "&quot;".into(),
        '\'' => "&#39;".into(),
        '\t' | '\n' => c.to_string(),
        '\u{fffe}' | '\u{ffff}' => "\u{fffd}".into(),
        _ if c.is_control() => "\u{fffd}".into(),
        _ => c.to_string(),
    };
    text.chars().map(escape).collect()
}

// ---------------------------------------------------------------- sections

fn header(title: &str, report: &Report) -> String {
    let measured = &report.measured_on;
    let kind = if measured.noise { "inputs of seeded noise" } else { "calibration images" };
    let on = format!(
        "Calibrated on {} inputs; sites measured on {} {kind}. vitc {}.",
        measured.calibration, measured.inputs, report.vitc
    );
    let preprocessing = report.model.preprocessing.as_deref().unwrap_or("The model does not take an image.");
    let warning = if measured.noise {
        "<p class=\"warning\">Sites were measured on noise: sizes and forms mean something, ratios say nothing about images.</p>"
    } else {
        ""
    };
    let cards: String =
        cards(report).iter().map(|(k, v)| format!("<li><b>{}</b>{}</li>", escaped(v), escaped(k))).collect();
    format!(
        "<h1>{}</h1>\n<p class=\"soft\"><code>{}</code><br/>{}<br/>{}</p>{warning}\n<ul class=\"cards\">{cards}</ul>",
        escaped(title),
        escaped(&report.model.file),
        escaped(preprocessing),
        escaped(&on)
    )
}

/// What is to be seen first: a caption and a figure each.
fn cards(report: &Report) -> Vec<(String, String)> {
    let mut cards = Vec::new();
    if let Some(stage) = report.stages.last() {
        cards.push(("outputs against the float graph".to_string(), decibels(stage.outputs)));
    }
    if let Some(a) = &report.accuracy {
        cards.extend(accuracy(a));
    }
    let size = &report.size;
    let share = 100.0 * size.constants as f64 / size.float_constants.max(1) as f64;
    cards.push((format!("of constants, {share:.0} % of the float graph's"), bytes(size.constants)));
    cards.push(("of memory for activations, an image".into(), bytes(size.arena)));
    cards.push(("predicted on one core".into(), format!("{:.2} ms", report.predicted.ms)));
    cards.push(("quantized activations".into(), report.sites.len().to_string()));
    cards
}

fn accuracy(a: &Accuracy) -> Vec<(String, String)> {
    let [low, high] = a.top1_interval;
    let float = a.float_top1.map_or_else(String::new, |f| format!(", float {f:.2} %"));
    let mut cards =
        vec![(format!("top-1 of {} images ({low:.1} to {high:.1}){float}", a.images), format!("{:.2} %", a.top1))];
    if let Some(agreement) = a.agreement {
        cards.push(("same class as the float graph".into(), format!("{agreement:.2} %")));
    }
    cards
}

fn stages(report: &Report) -> String {
    let best = report.stages.iter().filter_map(|s| s.outputs?.sqnr_db).fold(1.0, f64::max);
    let row = |(i, stage): (usize, &super::data::Stage)| {
        let mut ranks: Vec<f64> = report.sites.iter().filter_map(|s| Some((*s.noise.get(i)?)?.rank())).collect();
        ranks.sort_by(f64::total_cmp);
        let db = stage.outputs.and_then(|n| n.sqnr_db);
        let bar = svg::bar(db.unwrap_or(0.0) / best, &format!("{}: {}", stage.name, decibels(stage.outputs)));
        vec![
            text(&stage.name),
            text(&stage.what),
            number(stage.rewrites.to_string()),
            number(decibels(stage.outputs)),
            Cell::raw(bar),
            number(ranks.get(ranks.len() / 2).map_or_else(none, |r| rank(*r))),
            number(ranks.first().map_or_else(none, |r| rank(*r))),
        ]
    };
    let head = ["stage", "what it is", "#rewrites", "#outputs", "", "#median site", "#worst site"];
    let table = table(&head, report.stages.iter().enumerate().map(row));
    section(
        "Stage by stage",
        "Signal-to-noise ratios against the float graph, where what happened before a place counts as well. Each stage adds one \
         choice; the last one is what runs.",
        &table,
    )
}

/// Sites in graph order at the first stage, the quantized module and the integers.
fn along(report: &Report) -> String {
    let sites = in_order(report);
    let names: Vec<&str> = sites.iter().map(|s| s.node.as_str()).collect();
    let last = report.stages.len().saturating_sub(1);
    let mut shown = vec![0, last.saturating_sub(1), last];
    shown.dedup();
    let curve = |&stage: &usize| Curve {
        name: report.stages.get(stage).map_or("", |s| s.name.as_str()),
        values: sites.iter().map(|s| s.noise.get(stage).copied().flatten().map(|n| n.rank())).collect(),
    };
    let curves: Vec<Curve<'_>> = shown.iter().map(curve).collect();
    let key = |(n, c): (usize, &Curve<'_>)| format!("<span class=\"key c{n}\"></span>{}", escaped(c.name));
    let keys: String = curves.iter().enumerate().map(key).collect();
    let plot = svg::curves(&curves, &names, "signal-to-noise ratio of every site along the graph");
    section(
        "Along the graph",
        "Every quantized activation, from the input to the logits; points say which.",
        &format!("<p>{keys}</p>{plot}"),
    )
}

fn worst(report: &Report) -> String {
    let row = |(i, s): (usize, &Site)| {
        let plot = svg::histogram(&s.histogram, s.range, (300.0, 56.0), &title_of(s));
        let link = format!("<a href=\"#site-{}\">{}</a>", s.index, i + 1);
        let all = [Cell::raw(link), name(&s.node), text(&reader(s)), grid(s)];
        let noise = [number(decibels(s.last())), number(decibels(s.own)), number(percent(s.clipped)), Cell::raw(plot)];
        all.into_iter().chain(noise).collect()
    };
    let head = ["", "node", "read by", "grid", "#at the end", "#this rounding alone", "#clipped", "values"];
    section(
        "The ten worst sites",
        "By their ratio at the last stage that computes them. Where rounding alone costs little, the noise comes from before. \
         Histograms are of the float values; heights are logarithmic, the range of the grid is shaded.",
        &table(&head, report.sites.iter().take(WORST).enumerate().map(row)),
    )
}

fn transforms(report: &Report) -> String {
    let mut counts: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for t in &report.transforms {
        let sum = counts.entry(&t.transform).or_default();
        *sum = (sum.0 + 1, sum.1 + t.gain_db);
    }
    let told = counts.iter().map(|(t, (n, gain))| format!("{t}: {n} places, {:.1} dB on average", gain / *n as f64));
    let told: Vec<String> = told.collect();
    let row =
        |t: &super::data::Transformed| vec![text(&t.transform), name(&t.node), number(format!("{:.1} dB", t.gain_db))];
    let table = table(&["transform", "node", "#predicted noise saved"], report.transforms.iter().map(row));
    let body = if told.is_empty() { "<p>None.</p>".to_string() } else { folded(&told.join("; "), &table) };
    section(
        "Transforms",
        "Where ranges were moved between channels before quantization, and what that was expected to save.",
        &body,
    )
}

fn forms(report: &Report) -> String {
    let mut chosen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    report.forms.iter().filter(|f| f.chosen).for_each(|f| *chosen.entry((&f.op, &f.form)).or_default() += 1);
    let told: Vec<String> = chosen.iter().map(|((op, form), n)| format!("{op}: {form} ({n})")).collect();
    let error = |f: &Form| match f.unit.as_str() {
        "relative" => format!("{:.3} %", 100.0 * f.error),
        unit => format!("{:.3} {unit}", f.error),
    };
    let row = |f: &Form| {
        let state = match (f.chosen, f.allowed) {
            (true, _) => "taken",
            (false, true) => "dearer",
            (false, false) => "over the error budget",
        };
        let cells =
            vec![name(&f.node), text(&f.op), text(&f.form), number(error(f)), number(f.cost.to_string()), text(state)];
        (if f.chosen { "" } else { "off" }, cells)
    };
    let head = ["node", "op", "form", "#measured error", "#cost", ""];
    let table = classed(&head, report.forms.iter().map(row));
    let body = if told.is_empty() { "<p>None.</p>".to_string() } else { folded(&told.join("; "), &table) };
    section(
        "Integer forms of nonlinear ops",
        "Errors are measured against the float op on a fixed sample: in steps of the result, or relative to it. The cheapest form \
         within the budget is taken.",
        &body,
    )
}

fn layers(report: &Report) -> String {
    let largest = report.layers.iter().map(|l| l.bytes).max().unwrap_or(1).max(1);
    let total: usize = report.layers.iter().map(|l| l.bytes).sum();
    let mut bits: BTreeMap<String, usize> = BTreeMap::new();
    report.layers.iter().for_each(|l| *bits.entry(l.bits.to_string()).or_default() += l.bytes);
    let told: Vec<String> = bits.iter().map(|(b, n)| format!("{} at {b} bits", bytes(*n))).collect();
    let row = |l: &super::data::Layer| {
        let shape: Vec<String> = l.shape.iter().map(usize::to_string).collect();
        let bar = svg::bar(l.bytes as f64 / largest as f64, &format!("{} bytes", l.bytes));
        vec![
            name(&l.node),
            text(&shape.join(" x ")),
            number(l.bits.to_string()),
            number(bytes(l.bytes)),
            Cell::raw(bar),
        ]
    };
    let table = table(&["node", "weights", "#bits", "#bytes", ""], report.layers.iter().map(row));
    let summary = format!("{} layers, {}: {}", report.layers.len(), bytes(total), told.join(", "));
    section("Weights", "Bits and bytes as stored.", &folded(&summary, &table))
}

fn predicted(report: &Report) -> String {
    let p = &report.predicted;
    let row = |op: &super::data::OpCost| {
        let share = op.cycles / p.cycles.max(1.0);
        let bar = svg::bar(share, &percent(share));
        let ms = op.cycles / (1e6 * p.clock_ghz);
        vec![
            text(&op.op),
            number(op.nodes.to_string()),
            number(format!("{ms:.3} ms")),
            number(percent(share)),
            Cell::raw(bar),
        ]
    };
    let table = table(&["op", "#nodes", "#time", "#share", ""], p.ops.iter().map(row));
    let what = format!(
        "One image on one core at {:.1} GHz with kernels of {}, as the cost model has it: a forecast from sizes; vitc bench measures. \
         The artifact has {}.",
        p.clock_ghz,
        p.tier,
        bytes(report.size.artifact)
    );
    section("Predicted time", &what, &table)
}

/// Every site in graph order, with its ratio at every stage.
fn sites(report: &Report) -> String {
    let stages: Vec<String> = report.stages.iter().map(|s| format!("#{}", s.name)).collect();
    let head: Vec<&str> =
        ["#", "node", "read by", "grid"].into_iter().chain(stages.iter().map(String::as_str)).collect();
    let head: Vec<&str> = head.into_iter().chain(["#this rounding alone", "#clipped", "values"]).collect();
    let row = |s: &&Site| {
        let plot = svg::histogram(&s.histogram, s.range, (140.0, 28.0), &title_of(s));
        let mut cells = vec![number(s.index.to_string()), name(&s.node), text(&reader(s)), grid(s)];
        cells.extend(s.noise.iter().map(|n| number(decibels(*n))));
        cells.extend([number(decibels(s.own)), number(percent(s.clipped)), Cell::raw(plot)]);
        format!("<tr id=\"site-{}\">{}</tr>", s.index, cells.iter().map(Cell::td).collect::<String>())
    };
    let rows: String = in_order(report).iter().map(row).collect();
    let table = framed(&head, &rows);
    section(
        "All sites",
        "In graph order, the ratio at every stage. A dash: the stage does not compute the value as such, as a map of attention \
         that is divided only after the product behind it.",
        &table,
    )
}

fn settings(report: &Report) -> String {
    let row = |s: &super::data::Setting| vec![text(&format!("--{}", s.flag)), text(&s.value)];
    section(
        "Options",
        "Those that decide what is computed.",
        &table(&["option", "value"], report.settings.iter().map(row)),
    )
}

// ---------------------------------------------------------------- pieces

fn in_order(report: &Report) -> Vec<&Site> {
    let mut sites: Vec<&Site> = report.sites.iter().collect();
    sites.sort_by_key(|s| s.index);
    sites
}

fn section(title: &str, what: &str, body: &str) -> String {
    format!("<section><h2>{}</h2><p class=\"soft\">{}</p>{body}</section>", escaped(title), escaped(what))
}

/// A table behind a line that opens it.
fn folded(summary: &str, table: &str) -> String {
    format!("<details><summary>{}</summary>{table}</details>", escaped(summary))
}

/// What stands in a cell, as markup.
struct Cell {
    markup: String,
    class: &'static str,
}

impl Cell {
    fn raw(markup: String) -> Cell {
        Cell { markup, class: "" }
    }

    fn td(&self) -> String {
        let class = if self.class.is_empty() { String::new() } else { format!(" class=\"{}\"", self.class) };
        format!("<td{class}>{}</td>", self.markup)
    }
}

fn text(text: &str) -> Cell {
    Cell::raw(escaped(text))
}

fn number(text: String) -> Cell {
    Cell { markup: escaped(&text), class: "number" }
}

/// A node's name; of many joined names the last is shown, which the result belongs to, and the others on pointing.
fn name(name: &str) -> Cell {
    let full = escaped(name);
    let markup = match name.rsplit_once(" + ") {
        Some((others, last)) => {
            let more = others.split(" + ").count();
            format!("<code title=\"{full}\">{}</code> <span class=\"soft\">and {more} more</span>", escaped(last))
        }
        None => format!("<code>{full}</code>"),
    };
    Cell { markup, class: "name" }
}

/// Element type, bits, range, scale and zero point of a site.
fn grid(s: &Site) -> Cell {
    let bits = if s.elem.ends_with(&s.bits.to_string()) { String::new() } else { format!(" of {} bits", s.bits) };
    let scale = match s.scale.as_slice() {
        [one] => format!("step {one:.3e}"),
        many => format!("{} steps", many.len()),
    };
    let [low, high] = s.range;
    let (elem, role) = (escaped(&s.elem), escaped(&s.role));
    let range = format!("{low:.4} to {high:.4}, {scale}, zero {}", s.zero_point);
    Cell { markup: format!("{elem}{bits} {role}<br/><span class=\"soft\">{range}</span>"), class: "grid-of" }
}

fn reader(s: &Site) -> String {
    s.read_by.join(", ")
}

fn title_of(s: &Site) -> String {
    let ([low, high], [least, most]) = (s.range, s.seen);
    format!("{}: range {low:.4} to {high:.4}, seen {least:.4} to {most:.4}", s.node)
}

/// A table whose heads open with `#` where their column holds numbers.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<Cell>>) -> String {
    classed(head, rows.map(|cells| ("", cells)))
}

fn classed(head: &[&str], rows: impl Iterator<Item = (&'static str, Vec<Cell>)>) -> String {
    let row = |(class, cells): (&str, Vec<Cell>)| {
        let cells: String = cells.iter().map(Cell::td).collect();
        if class.is_empty() { format!("<tr>{cells}</tr>") } else { format!("<tr class=\"{class}\">{cells}</tr>") }
    };
    framed(head, &rows.map(row).collect::<String>())
}

fn framed(head: &[&str], rows: &str) -> String {
    let head = head.iter().map(|h| match h.strip_prefix('#') {
        Some(number) => format!("<th class=\"number\">{}</th>", escaped(number)),
        None => format!("<th>{}</th>", escaped(h)),
    });
    let head: String = head.collect();
    format!("<div class=\"scroll\"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>")
}

fn none() -> String {
    "-".into()
}

fn decibels(noise: Option<Noise>) -> String {
    noise.map_or_else(none, |n| rank(n.rank()))
}

fn rank(db: f64) -> String {
    match db {
        f64::INFINITY => "exact".into(),
        f64::NEG_INFINITY => "no signal".into(),
        db => format!("{db:.1} dB"),
    }
}

fn percent(share: f64) -> String {
    if share > 0.0 && share < 1e-4 { "< 0.01 %".into() } else { format!("{:.2} %", 100.0 * share) }
}

fn bytes(count: usize) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.2} MB", count as f64 / 1e6),
    }
}
