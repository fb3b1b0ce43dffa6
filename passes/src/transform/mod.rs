//! Rewrites of the float graph that make it easier to quantize and change nothing else: ranges are moved from channel to channel
//! and from activations to weights, exactly but for float rounding.
//!
//! Each transform has a file: [`smooth`] (SmoothQuant, SQ-b, RepQ), [`values`] (values of attention into the projection behind),
//! [`balance`] (queries against keys), [`migrate`] (channels between convolutions), [`depthwise`] (channels
//! of streams that depthwise convolutions read). [`wanted`] says what calibration must see of the channels, [`run`] rewrites where the
//! predicted error ([`noise`]) becomes smaller. They run in stage `shape`, before ranges are observed.

mod balance;
mod channels;
mod depthwise;
#[cfg(test)]
mod depthwise_tests;
mod edit;
mod flow;
mod migrate;
#[cfg(test)]
mod migrate_tests;
mod noise;
mod smooth;
#[cfg(test)]
mod tests;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use vitc_ir::{Diagnostic, Diagnostics, Module, ValueId};

pub use channels::{Channels, observe};
pub use smooth::Smoothing;

use crate::pattern;
use crate::quantize::QuantOptions;
use noise::Levels;

/// A transform by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transform {
    /// Channels of LayerNorm outputs.
    Smooth,
    /// Channels of the values of attention.
    Values,
    /// Channels of queries and keys.
    Balance,
    /// Factors of channels between convolutions.
    Migrate,
    /// Centres of channels between convolutions.
    Shift,
    /// Scales of rows. No rewrite: ranges are chosen so ([`QuantOptions::without_rows`]).
    Rows,
    /// Mean errors taken off biases. No rewrite either: it comes last ([`crate::quantize::correct`]).
    Bias,
}

impl Transform {
    /// Every transform with its word.
    pub const WORDS: [(Transform, &'static str); 7] = [
        (Transform::Smooth, "smooth"),
        (Transform::Values, "values"),
        (Transform::Balance, "balance"),
        (Transform::Migrate, "migrate"),
        (Transform::Shift, "shift"),
        (Transform::Rows, "rows"),
        (Transform::Bias, "bias"),
    ];

    /// The transform's word.
    pub fn word(self) -> &'static str {
        Transform::WORDS.iter().find(|(t, _)| *t == self).map_or("", |(_, word)| word)
    }

    /// The transform of that word.
    pub fn from_word(word: &str) -> Option<Transform> {
        Transform::WORDS.iter().find(|(_, w)| *w == word).map(|(t, _)| *t)
    }
}

/// Which transforms run, and where.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Left out at nodes whose name matches the pattern, in which `*` stands for any characters.
    pub without: Vec<(Transform, String)>,
    /// How LayerNorm outputs are smoothed.
    pub smoothing: Smoothing,
    /// Whether biases are corrected where all operands of products have 8 bits, too.
    pub bias_of_bytes: bool,
}

impl Choice {
    /// No transform at all.
    pub fn none() -> Choice {
        let all = |(t, _): (Transform, &str)| (t, "*".to_string());
        Choice { without: Transform::WORDS.map(all).to_vec(), ..Choice::default() }
    }

    /// The patterns of the nodes at which a transform is left out.
    pub fn left_out(&self, transform: Transform) -> impl Iterator<Item = &str> {
        self.without.iter().filter(move |(t, _)| *t == transform).map(|(_, p)| p.as_str())
    }

    fn allows(&self, transform: Transform, name: &str) -> bool {
        !self.without.iter().any(|(t, p)| *t == transform && pattern::matches(p, name))
    }
}

/// What a transform did at a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// Which one.
    pub transform: Transform,
    /// Name of the ONNX node whose channels changed.
    pub node: String,
    /// Predicted noise of the products that read them, in decibels saved.
    pub gain: f64,
}

/// Everything that can be rewritten.
struct Subjects {
    smooth: Vec<smooth::Subject>,
    values: Vec<values::Subject>,
    balance: Vec<balance::Subject>,
    migrate: Vec<(migrate::Subject, migrate::Allowed)>,
    depthwise: Vec<depthwise::Subject>,
}

impl Subjects {
    fn of(module: &Module, choice: &Choice) -> Subjects {
        let allows = |transform, node: usize| choice.allows(transform, name(module, node));
        let (mut smooth, mut values) = (smooth::subjects(module), values::subjects(module));
        let mut balance = balance::subjects(module);
        smooth.retain(|s| allows(Transform::Smooth, s.node));
        values.retain(|s| allows(Transform::Values, s.node));
        balance.retain(|s| allows(Transform::Balance, s.query));
        let allowed = |s: migrate::Subject| {
            let allows = |transform| allows(transform, s.node(module));
            let allowed = migrate::Allowed { migrate: allows(Transform::Migrate), shift: allows(Transform::Shift) };
            (allowed.migrate || allowed.shift).then_some((s, allowed))
        };
        let migrate = migrate::subjects(module).into_iter().filter_map(allowed).collect();
        let mut depthwise = depthwise::subjects(module);
        depthwise.retain(|s| allows(Transform::Migrate, s.node(module)));
        Subjects { smooth, values, balance, migrate, depthwise }
    }

    fn seen(&self, module: &Module) -> BTreeSet<ValueId> {
        let smooth = self.smooth.iter().map(|s| s.seen(module));
        let values = self.values.iter().map(|s| s.seen(module));
        let balance = self.balance.iter().flat_map(|s| s.seen(module));
        let migrate = self.migrate.iter().flat_map(|(s, _)| s.seen());
        let depthwise = self.depthwise.iter().map(|s| s.seen());
        smooth.chain(values).chain(balance).chain(migrate).chain(depthwise).collect()
    }
}

fn name(module: &Module, node: usize) -> &str {
    module.nodes[node].loc.as_deref().unwrap_or_default()
}

/// The values of a module of stage `shape` whose channels must be observed; empty when there is nothing to do.
pub fn wanted(module: &Module, choice: &Choice) -> Vec<ValueId> {
    Subjects::of(module, choice).seen(module).into_iter().collect()
}

/// Rewrites a module of stage `shape` with what was seen of it. Values keep their ids. What is worth nothing is left alone.
pub fn run(
    mut module: Module,
    seen: &BTreeMap<ValueId, Channels>,
    choice: &Choice,
    options: &QuantOptions,
) -> Result<(Module, Vec<Applied>), Diagnostics> {
    check_patterns(&module, choice)?;
    let subjects = Subjects::of(&module, choice);
    let mut applied = Vec::new();
    let levels = |module: &Module, product: usize| Levels::of(name(module, product), options);
    let channels = |v: ValueId| seen.get(&v).filter(|c| c.is_telling());
    let mut note = |module: &Module, transform, node, errors: Option<(f64, f64)>| {
        if let Some((before, after)) = errors {
            let gain = 10.0 * (before / after.max(f64::MIN_POSITIVE)).log10();
            applied.push(Applied { transform, node: name(module, node).to_string(), gain });
        }
    };
    for s in &subjects.smooth {
        let errors = channels(s.seen(&module)).and_then(|c| {
            let levels = levels(&module, s.reader());
            s.apply(&mut module, c, choice.smoothing, levels)
        });
        note(&module, Transform::Smooth, s.node, errors);
    }
    for s in &subjects.values {
        let errors = channels(s.seen(&module)).and_then(|c| {
            let levels = levels(&module, s.reader());
            s.apply(&mut module, c, levels)
        });
        note(&module, Transform::Values, s.node, errors);
    }
    for s in &subjects.balance {
        let [q, k] = s.seen(&module).map(channels);
        let errors = q.zip(k).and_then(|(q, k)| {
            let levels = levels(&module, s.meeting);
            s.apply(&mut module, [q, k], levels)
        });
        note(&module, Transform::Balance, s.query, errors);
    }
    // last, for they put nodes between others
    let (mut borders, mut moved) = (Vec::new(), Vec::new());
    for (s, allowed) in &subjects.migrate {
        let Some(done) = s.apply(&mut module, channels, levels, *allowed) else { continue };
        let node = s.node(&module);
        note(&module, Transform::Migrate, node, done.migrated.map(|after| (done.before, after)));
        note(&module, Transform::Shift, node, done.shifted.map(|after| (done.migrated.unwrap_or(done.before), after)));
        borders.extend(done.borders);
        moved.push((s, done.change));
    }
    for s in &subjects.depthwise {
        let node = s.node(&module);
        let errors = channels(s.seen()).and_then(|c| {
            let levels = levels(&module, node);
            let change = moved.iter().find(|(m, _)| m.holds(s.seen())).map(|(_, change)| change);
            let now = change.map_or_else(|| c.clone(), |change| c.changed(change));
            s.apply(&mut module, &now, levels)
        });
        note(&module, Transform::Migrate, s.node(&module), errors);
    }
    for border in &borders {
        let lost = || Diagnostic::new("internal", "a convolution lost its weights while its channels moved");
        migrate::mend_border(&mut module, border).ok_or_else(lost)?;
    }
    Ok((module, applied))
}

/// A pattern that no node matches is a slip of the pen.
fn check_patterns(module: &Module, choice: &Choice) -> Result<(), Diagnostic> {
    let matched = |p: &str| (0..module.nodes.len()).any(|n| pattern::matches(p, name(module, n)));
    match choice.without.iter().find(|(_, p)| p != "*" && !matched(p)) {
        Some((transform, p)) => {
            let message = format!("no node has a name like `{p}`, where `{}` is to be left out", transform.word());
            Err(Diagnostic::new("transform", message).help("names of nodes are in `vitc dump --after shape`"))
        }
        None => Ok(()),
    }
}
