//! What was chosen, and why.

use serde_json::{Value, json};
use vitc_passes::mixed::{Cost, Costs, Factor, Kind, Knobs, Loss, Outcome};
use vitc_passes::quantize::{Width, Widths};

use super::{Mixed, Target};
use crate::io::table::{Cell, Record, Table};

/// The outcome of a search.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The target in words.
    pub target: String,
    /// What steps saved, in words.
    pub cost: &'static str,
    /// One for each name of products.
    pub rows: Vec<Row>,
    /// Joint loss of 8 bits everywhere.
    pub start: Loss,
    /// Joint loss of what was chosen.
    pub loss: Loss,
    /// Bytes of the weights of products.
    pub weight_bytes: u64,
    /// Mean bits of weights, of inputs, and of both, by multiply-accumulates.
    pub mean_bits: [f64; 3],
    /// Whether the table of losses was known.
    pub cached: bool,
    /// How many states were measured as a whole.
    pub measured: usize,
    /// The flags that give the same bits without a search.
    pub flags: Vec<String>,
    /// Bits of weights and of what products read, by name.
    pub widths: (Widths, Widths),
}

/// The products of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the ONNX nodes.
    pub name: String,
    /// Bits and loss of the weights, where it has any that can be chosen.
    pub weights: Option<(u32, f64)>,
    /// Bits and loss of what it reads, where they can be chosen; the loss is that of all products that share them.
    pub inputs: Option<(u32, f64)>,
    /// The steps that were not taken.
    pub why: String,
}

impl Report {
    pub(super) fn of(knobs: &Knobs, costs: &Costs, mixed: &Mixed, outcome: &Outcome, cached: bool) -> Report {
        let mut rows: Vec<Row> = Vec::new();
        for product in &knobs.products {
            if rows.iter().all(|r| r.name != product.name) {
                rows.extend(row(knobs, outcome, &product.name));
            }
        }
        Report {
            target: target_words(mixed.target),
            cost: word(mixed.cost()),
            rows,
            start: outcome.start,
            loss: outcome.loss,
            weight_bytes: costs.of(Cost::Bytes, &outcome.state).ceil() as u64,
            mean_bits: mean_bits(costs, &outcome.state),
            cached,
            measured: outcome.measured,
            flags: flags(knobs, &outcome.state),
            widths: knobs.widths(&outcome.state),
        }
    }

    /// The table for people.
    pub fn table(&self) -> Table {
        let mut table =
            Table::new(&["product", "weight_bits", "input_bits", "weight_loss", "input_loss", "would_lose"]);
        let bits = |of: Option<(u32, f64)>| of.map_or(Cell::none(), |(bits, _)| u64::from(bits).into());
        let loss = |of: Option<(u32, f64)>| of.map_or(Cell::none(), |(_, loss)| Cell::number(loss, 5));
        for r in &self.rows {
            let (w, i) = (r.weights, r.inputs);
            table.row([r.name.as_str().into(), bits(w), bits(i), loss(w), loss(i), r.why.as_str().into()]);
        }
        table
    }

    /// Sums over the whole model.
    pub fn totals(&self) -> Record {
        let mut record = Record::new();
        let [weights, inputs, both] = self.mean_bits;
        record
            .field("target", self.target.as_str())
            .field("cost", self.cost)
            .field("product_weight_bytes", self.weight_bytes)
            .field("mean_weight_bits", Cell::number(weights, 2))
            .field("mean_input_bits", Cell::number(inputs, 2))
            .field("mean_bits", Cell::number(both, 2))
            .field("divergence_8_bits", Cell::number(self.start.divergence, 5))
            .field("divergence", Cell::number(self.loss.divergence, 5))
            .field("agreement_8_bits", Cell::number(self.start.agreement, 1))
            .field("agreement", Cell::number(self.loss.agreement, 1))
            .field("states_measured", self.measured)
            .field("losses_from_cache", self.cached)
            .field("flags", Cell::shown_as(self.quoted(), json!(self.flags)));
        record
    }

    /// All of it.
    pub fn to_json(&self) -> Value {
        let mut value = self.totals().to_json();
        value["products"] = self.table().to_json();
        value
    }

    fn quoted(&self) -> String {
        let quoted = |flag: &String| match flag.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:".contains(c)) {
            true => flag.clone(),
            false => format!("'{}'", flag.replace('\'', r"'\''")),
        };
        self.flags.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }
}

fn row(knobs: &Knobs, outcome: &Outcome, name: &str) -> Option<Row> {
    let of = |kind: Kind| knobs.all.iter().position(|k| k.kind == kind && k.names.iter().any(|n| n == name));
    let (weights, inputs) = (of(Kind::Weights), of(Kind::Inputs));
    let chosen = |k: usize| (outcome.state[k], outcome.losses[k]);
    let refused = |(k, word): (Option<usize>, &str)| {
        let k = k?;
        Some(outcome.refused[k].map_or_else(
            || format!("{word}: nothing left to save"),
            |(bits, loss)| format!("{word} of {bits}: {loss:.5}"),
        ))
    };
    let why: Vec<String> = [(weights, "weights"), (inputs, "inputs")].into_iter().filter_map(refused).collect();
    (!why.is_empty()).then(|| Row {
        name: name.into(),
        weights: weights.map(chosen),
        inputs: inputs.map(chosen),
        why: why.join(", "),
    })
}

/// Of weights, of inputs and of both.
fn mean_bits(costs: &Costs, state: &[u32]) -> [f64; 3] {
    let bits = |factor| match factor {
        Factor::Knob(k) => f64::from(state[k]),
        Factor::Fixed(bits) => f64::from(bits),
    };
    let (mut sums, mut counts) = ([0.0; 2], [0.0; 2]);
    for p in &costs.products {
        for (i, factor) in p.factors.into_iter().enumerate() {
            let side = usize::from(!(i == 1 && p.elements > 0));
            sums[side] += p.macs as f64 * bits(factor);
            counts[side] += p.macs as f64;
        }
    }
    [sums[0] / f64::max(counts[0], 1.0), sums[1] / f64::max(counts[1], 1.0), costs.of(Cost::Bits, state)]
}

/// The flags of `vitc compile` for a state.
fn flags(knobs: &Knobs, state: &[u32]) -> Vec<String> {
    let (weights, inputs) = knobs.widths(state);
    let flags = [("--weight-bits", weights), ("--activation-bits", inputs)];
    let of = |(flag, widths): (&str, Widths)| {
        let one = |(name, width): (String, Width)| [flag.to_string(), format!("{name}={}", width.bits())];
        widths.of.into_iter().flat_map(one).collect::<Vec<_>>()
    };
    flags.into_iter().flat_map(of).collect()
}

fn word(cost: Cost) -> &'static str {
    match cost {
        Cost::Bytes => "bytes",
        Cost::Bits => "bits",
        Cost::BitOps => "bitops",
        Cost::Nanos => "ns",
    }
}

/// A cost in words.
pub(super) fn words(cost: Cost, value: f64) -> String {
    match cost {
        Cost::Bytes => format!("{value:.0} bytes of weights"),
        Cost::Bits => format!("{value:.2} mean bits"),
        Cost::BitOps => format!("{value:.3e} bit operations"),
        Cost::Nanos => format!("{:.3} ms", 1e-6 * value),
    }
}

fn target_words(target: Target) -> String {
    match target {
        Target::Bytes(bytes) => words(Cost::Bytes, bytes as f64),
        Target::Bits(bits) => words(Cost::Bits, bits),
        Target::Millis(ms) => words(Cost::Nanos, 1e6 * ms),
        Target::Drop(points) => format!("{points} points of agreement"),
    }
}
