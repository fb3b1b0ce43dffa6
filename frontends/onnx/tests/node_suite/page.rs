//! The page of what is supported.

use std::collections::BTreeMap;
use std::fmt::Write;

use vitc_onnx::supported_ops;

use crate::attempt::Outcome;
use crate::suite::Case;

/// How the line that names the suite begins.
pub const SUITE: &str = "Suite: ";

const HEAD: &str = "# ONNX ops

What the importer reads, and what the ONNX backend node tests (the outside suite that the Python package `onnx` carries) say about
it. Made by `frontends/onnx/tests/node_suite`; `BLESS=1 cargo test -p vitc-onnx --test node_suite` writes it again.

Every case is imported and evaluated in float, and its results are compared (1e-3 relative, 1e-5 absolute). The compiler works with
fixed shapes, so what it must know at import is made an initializer with the value of the test data: every operand that is not
float (shapes, axes, indices, masks) or is empty, and the float ones that are parameters (bounds of Clip, value of Pad, scales and region of
Resize, ends of Range, both sides of ScatterND, all of OneHot). `float16`, `bfloat16` and `float64` are read as `float32`. *computed* counts cases with a result computed from float
inputs, *folded* those that import evaluates to a constant, as it does with the exporter's shape arithmetic (integers and
booleans come out through a cast to `float32`). A case that is *refused* is refused with a reason before anything runs.
";

/// What came of every case.
pub struct Page {
    cases: usize,
    /// By op, written out or not, and name.
    outcomes: BTreeMap<(String, bool, String), Outcome>,
}

/// Counts of one op.
#[derive(Default)]
struct Tally {
    computed: usize,
    folded: usize,
    refused: usize,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Computed => self.computed += 1,
            Outcome::Folded => self.folded += 1,
            Outcome::Refused(_) | Outcome::Wrong(_) => self.refused += 1,
        }
    }

    fn row(&self, name: &str) -> String {
        let shown = |n: usize| if n == 0 { String::new() } else { n.to_string() };
        format!("| {name} | {} | {} | {} |\n", shown(self.computed), shown(self.folded), shown(self.refused))
    }
}

impl Page {
    pub fn new(cases: usize) -> Page {
        Page { cases, outcomes: BTreeMap::new() }
    }

    pub fn add(&mut self, case: &Case, outcome: Outcome) {
        self.outcomes.insert((case.op.clone(), case.expanded, case.name.clone()), outcome);
    }

    /// What `f` says of every outcome.
    pub fn of<T>(&self, f: impl Fn(&Outcome) -> Option<T>) -> Vec<T> {
        self.outcomes.values().filter_map(f).collect()
    }

    pub fn text(&self) -> String {
        let claimed = supported_ops();
        let is_claimed = |op: &str| claimed.contains(&op);
        let total = self.tally(|_, _| true);
        let mut text = String::from(HEAD);
        let _ = write!(text, "\n{SUITE}{} cases. ", self.cases);
        let _ = writeln!(text, "Computed: {}. Folded: {}. Wrong: 0.\n", total.computed, total.folded);
        text += "## Ops\n\n| op | computed | folded | refused |\n|---|--:|--:|--:|\n";
        for op in &claimed {
            text += &self.tally(|o, expanded| o == *op && !expanded).row(op);
        }
        text += "\n## Ops written out\n\nCases in which the op is replaced by its body, a function of other ops.\n\n";
        text += "| op | computed | folded | refused |\n|---|--:|--:|--:|\n";
        for op in self.ops(|_, expanded| expanded) {
            text += &self.tally(|o, expanded| o == op && expanded).row(&op);
        }
        text += "\n## Refused cases of ops that are read\n\n";
        text += &self.reasons(|op, expanded| is_claimed(op) && !expanded);
        text += "\n## Refused cases of ops written out\n\n";
        text += &self.reasons(|_, expanded| expanded);
        text += "\n## Ops that are not read\n\n";
        let others = self.ops(|op, expanded| !is_claimed(op) && !expanded);
        text += &wrapped(others.iter().map(String::as_str), "");
        text
    }

    fn tally(&self, which: impl Fn(&str, bool) -> bool) -> Tally {
        let mut tally = Tally::default();
        self.outcomes.iter().filter(|((op, expanded, _), _)| which(op, *expanded)).for_each(|(_, o)| tally.add(o));
        tally
    }

    fn ops(&self, which: impl Fn(&str, bool) -> bool) -> Vec<String> {
        let mut ops: Vec<_> = self.outcomes.keys().filter(|(o, e, _)| which(o, *e)).map(|(o, ..)| o.clone()).collect();
        ops.dedup();
        ops
    }

    /// Refused cases, by op and reason.
    fn reasons(&self, which: impl Fn(&str, bool) -> bool) -> String {
        let mut groups: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for ((op, expanded, name), outcome) in &self.outcomes {
            if let (true, Outcome::Refused(why)) = (which(op, *expanded), outcome) {
                groups.entry((op, why)).or_default().push(name);
            }
        }
        let mut text = String::new();
        for ((op, why), names) in groups {
            let _ = writeln!(text, "- {op}: {why}");
            text += &wrapped(names.into_iter(), "  ");
        }
        text
    }
}

/// Names one after another in lines that are not too long.
fn wrapped<'a>(names: impl Iterator<Item = &'a str>, indent: &str) -> String {
    let mut lines = vec![String::new()];
    for name in names {
        let line = lines.last_mut().unwrap();
        if line.len() + name.len() > 120 {
            line.push(',');
            lines.push(format!("`{name}`"));
        } else {
            *line += &if line.is_empty() { format!("`{name}`") } else { format!(", `{name}`") };
        }
    }
    lines.iter().map(|l| format!("{indent}{l}\n")).collect()
}
