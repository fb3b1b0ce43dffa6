//! What `vitc explain` tells about this pass: rules fired, forms chosen and why, overflow proofs.

use std::collections::BTreeMap;
use std::sync::Arc;

use vitc_ir::ValueId;

/// A form that a nonlinear site could take.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// The ONNX node.
    pub loc: Option<Arc<str>>,
    /// The float op, `gelu`.
    pub op: &'static str,
    /// The form, `table` (the rule's name without the op).
    pub form: &'static str,
    /// Cost in the planner's units (roughly cycles of one core per image).
    pub cost: u64,
    /// Measured error.
    pub error: Error,
    /// Whether the error is within the budget, so that extraction could choose it.
    pub allowed: bool,
    /// Whether extraction chose it.
    pub chosen: bool,
}

/// The error of an integer form against the float op, measured on a fixed sample at compile time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Error {
    /// Largest distance from the correctly rounded result, in steps of the output.
    Steps(f64),
    /// Root-mean-square error over root-mean-square value.
    Relative(f64),
}

/// One accumulator and the proof that it fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulator {
    /// The ONNX node.
    pub loc: Option<Arc<str>>,
    /// The op.
    pub op: &'static str,
    /// Smallest value it can take.
    pub lo: i64,
    /// Largest value it can take.
    pub hi: i64,
}

/// Why saturation of a region ended, and how large its e-graph became.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// Nodes of the input graph.
    pub nodes: usize,
    /// E-nodes at the end.
    pub enodes: usize,
    /// E-classes at the end.
    pub classes: usize,
    /// Iterations made.
    pub iterations: usize,
    /// `saturated`, `node limit` or `iteration limit`.
    pub stop: String,
}

/// Everything the pass has to tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// How often each rule found something new, by rule.
    pub fired: BTreeMap<String, usize>,
    /// Where each rule fired: (rule, ONNX node), counted.
    pub fired_at: BTreeMap<(String, String), usize>,
    /// The candidate forms of every nonlinear site.
    pub sites: Vec<Site>,
    /// Overflow proofs.
    pub accumulators: Vec<Accumulator>,
    /// Saturation, region by region.
    pub regions: Vec<Region>,
    /// Where values of the source are in the result, those that are computed there at all: integers by the same integers.
    pub values: BTreeMap<ValueId, ValueId>,
}
