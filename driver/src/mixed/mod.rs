//! Mixed precision: from a target to the bits of every product. [`vitc_passes::mixed`] knows how; here are its images, its
//! clock and its cache.

mod cache;
mod report;
mod times;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use vitc_codegen::Tier;
use vitc_ir::eval::Tensor;
use vitc_ir::{Diagnostics, Module};
use vitc_passes::mixed::{self, Cost, Costs, Knobs, Limit, Loss, Losses, Problem, Times};
use vitc_passes::quantize::{self, Calibration, QuantOptions, Width, Widths};

use crate::calibrate::Feed;
use crate::error::Failure;
use crate::io::progress::Progress;
use crate::walk::WalkOptions;

pub use report::{Report, Row};

/// What the bits of products are chosen for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At most so many bytes of weights of products.
    Bytes(u64),
    /// At most so many mean bits of the two factors of a multiply-accumulate.
    Bits(f64),
    /// At most so many milliseconds for an image.
    Millis(f64),
    /// At most so many points of agreement on the calibration images less than with 8 bits everywhere.
    Drop(f64),
}

/// A search for the bits of products.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixed {
    /// When it ends.
    pub target: Target,
    /// What steps save; the target's own by default.
    pub cost: Option<Cost>,
    /// Where the table of losses is kept.
    pub cache: Option<PathBuf>,
    /// Whose kernels are timed.
    pub tier: Tier,
}

/// Images that the table of losses is measured on, at most: its sums hardly move beyond. Joint losses are measured on all.
const IMAGES: usize = 16;

impl Mixed {
    /// The file beside an artifact that keeps the table of losses.
    pub fn cache_beside(artifact: &Path) -> PathBuf {
        let mut name = artifact.as_os_str().to_owned();
        name.push(".sensitivity.json");
        name.into()
    }

    /// What steps save. A limit on agreement is about nothing else, and bit operations count weights as well as inputs.
    fn cost(&self) -> Cost {
        self.cost.unwrap_or(match self.target {
            Target::Bytes(_) => Cost::Bytes,
            Target::Bits(_) => Cost::Bits,
            Target::Millis(_) => Cost::Nanos,
            Target::Drop(_) => Cost::BitOps,
        })
    }
}

/// The quantization that meets a target on a module of stage `shape`, and how it was found.
pub(crate) fn choose(
    module: &Module,
    feed: &mut Feed,
    base: &QuantOptions,
    mixed: &Mixed,
    walk: &WalkOptions,
) -> Result<(QuantOptions, Report)> {
    ensure!(feed.len() > 0, "--mixed measures losses on images: give --calibrate DIR with a few dozen typical ones");
    let knobs = Knobs::of(module);
    ensure!(
        !knobs.all.is_empty(),
        "--mixed finds nothing to choose: no product of the model has a name and can have fewer bits"
    );
    let inputs = feed.pass(module, "reading images", |inputs, done| {
        let one = |(i, input): (usize, Result<_, _>)| {
            done(i + 1);
            Ok(input?)
        };
        inputs.enumerate().map(one).collect::<Result<Vec<Vec<Tensor>>, Diagnostics>>()
    })?;
    let study = Study::of(module, knobs, inputs, base, walk.quiet)?;
    let wants_times = mixed.cost() == Cost::Nanos || matches!(mixed.target, Target::Millis(_));
    let times = match wants_times {
        true => times::measure(&study, mixed.tier, walk)?,
        false => Times::default(),
    };
    let costs = Costs { products: study.knobs.products.clone(), groups: study.base.groups, times };
    let found: Result<_> = with_limit(mixed.target, &costs, |limit| {
        mixed::check(&limit, &study.knobs.start(), &study.knobs.least()).map_err(unmet)?;
        let (table, cached) = study.table(mixed.cache.as_deref())?;
        let knobs: Vec<_> = study.knobs.all.iter().map(|k| k.kind).zip(table).collect();
        let problem = Problem { knobs: &knobs, cost: &|state| costs.of(mixed.cost(), state), limit };
        let outcome = mixed::search::<Diagnostics>(&problem, &mut |state| study.joint(state)).map_err(unmet)?;
        Ok((outcome, cached))
    });
    let (outcome, cached) = found?;
    let options = study.options(&outcome.state);
    Ok((options, Report::of(&study.knobs, &costs, mixed, &outcome, cached)))
}

/// A model with what was seen of it.
struct Study<'a> {
    module: &'a Module,
    knobs: Knobs,
    inputs: Vec<Vec<Tensor>>,
    base: &'a QuantOptions,
    /// Ranges with histograms.
    seen: Calibration,
    /// Logits of the float graph.
    float: Vec<Tensor>,
    quiet: bool,
}

impl<'a> Study<'a> {
    fn of(
        module: &'a Module,
        knobs: Knobs,
        inputs: Vec<Vec<Tensor>>,
        base: &'a QuantOptions,
        quiet: bool,
    ) -> Result<Study<'a>> {
        let narrow = Width::of_activations(4).map(Widths::all).unwrap_or_default();
        let histograms = QuantOptions { activations: narrow, ..base.clone() };
        let mut under = bar("calibrating", inputs.len(), quiet);
        let seen =
            quantize::observe(module, inputs.iter().cloned().map(Ok), &histograms, &mut under).map_err(failed)?;
        let mut under = bar("finding float logits", inputs.len(), quiet);
        let float = mixed::logits(module, &inputs, base.threads, &mut under).map_err(failed)?;
        Ok(Study { module, knobs, inputs, base, seen, float, quiet })
    }

    /// The losses of all knobs, and whether they were known.
    fn table(&self, path: Option<&Path>) -> Result<(Vec<Losses>, bool)> {
        let count = self.inputs.len();
        let images: Vec<usize> = (0..count.min(IMAGES)).map(|i| i * count / count.min(IMAGES)).collect();
        let key = cache::key(
            self.module,
            &self.inputs,
            &format!(
                "{:?} {:?} {:?} {:?} {images:?}",
                self.base.observer, self.base.codes, self.base.rounding, self.base.groups
            ),
        );
        if let Some(table) = path.and_then(|path| cache::read(path, &key, &self.knobs)) {
            return Ok((table, true));
        }
        let mut under = bar("measuring losses", mixed::measurements(&self.knobs, images.len()), self.quiet);
        let seen = (&self.seen, self.inputs.as_slice());
        let table = mixed::measure(self.module, &self.knobs, seen, &images, self.base, &mut under).map_err(failed)?;
        if let Some(path) = path {
            cache::write(path, &key, &self.knobs, &table)?;
        }
        Ok((table, false))
    }

    fn options(&self, state: &[u32]) -> QuantOptions {
        let (weights, activations) = self.knobs.widths(state);
        QuantOptions { weights, activations, ..self.base.clone() }
    }

    /// What a state loses: the whole quantization with its widths, simulated on all images.
    fn joint(&self, state: &[u32]) -> Result<Loss, Diagnostics> {
        let (options, mut seen) = (self.options(state), self.seen.clone());
        if quantize::wants_products(self.module, &options) {
            let inputs = self.inputs.iter().cloned().map(Ok);
            quantize::observe_products(self.module, &mut seen, inputs, &options, &mut |_| {})?;
        }
        let quantized = quantize::run(self.module, &seen, &options)?;
        let mut under = bar("measuring together", self.inputs.len(), self.quiet);
        let logits = mixed::logits(&quantized, &self.inputs, self.base.threads, &mut under)?;
        Ok(mixed::loss_of(&self.float, &logits)?)
    }
}

/// Hands on the limit that a target is.
fn with_limit<T>(target: Target, costs: &Costs, then: impl FnOnce(Limit<'_>) -> T) -> T {
    let (kind, most) = match target {
        Target::Bytes(most) => (Cost::Bytes, most as f64),
        Target::Bits(most) => (Cost::Bits, most),
        Target::Millis(most) => (Cost::Nanos, 1e6 * most),
        Target::Drop(most) => return then(Limit::Drop(most)),
    };
    then(Limit::Cost { of: &|state| costs.of(kind, state), most, words: &|value| report::words(kind, value) })
}

fn unmet(problems: impl Into<Diagnostics>) -> anyhow::Error {
    Failure::invalid("mixed precision", problems.into()).into()
}

fn failed(problems: Diagnostics) -> anyhow::Error {
    Failure::invalid("measuring for mixed precision failed", problems).into()
}

/// A progress bar as passes report: how many are done.
fn bar(label: &str, total: usize, quiet: bool) -> impl FnMut(usize) {
    let progress = Progress::new(label, total, quiet);
    let mut known = 0;
    move |done| {
        progress.advance(done.saturating_sub(known));
        known = done;
    }
}

/// Reads a number of bytes, with `k`, `M` or `G` for thousands.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((i, 'k' | 'K')) => (&text[..i], 1e3),
        Some((i, 'M' | 'm')) => (&text[..i], 1e6),
        Some((i, 'G' | 'g')) => (&text[..i], 1e9),
        _ => (text, 1.0),
    };
    let bytes = number.parse::<f64>().ok().map(|n| n * unit).filter(|b| *b >= 1.0 && *b < 1e15);
    bytes.map(|b| b as u64).ok_or_else(|| format!("`{text}` is no number of bytes such as 4M, 2.5M or 800000"))
}

/// Reads a number that is not negative.
pub(crate) fn parse_amount(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().context("no number").ok().filter(|n| n.is_finite() && *n >= 0.0);
    number.ok_or_else(|| format!("`{text}` is no number from 0 on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        assert_eq!(["4M", "2.5k", "800000"].map(parse_bytes), [Ok(4_000_000), Ok(2500), Ok(800_000)]);
        assert!(["", "M", "-1", "0", "4MB", "nan", "1e30", "é"].iter().all(|t| parse_bytes(t).is_err()));
        assert_eq!(parse_amount("0.5"), Ok(0.5));
        assert!(["-1", "x", "inf", "NaN"].iter().all(|t| parse_amount(t).is_err()));
    }

    #[test]
    fn a_target_implies_its_cost() {
        let of = |target, cost| Mixed { target, cost, cache: None, tier: Tier::Baseline }.cost();
        assert_eq!(of(Target::Bytes(1), None), Cost::Bytes);
        assert_eq!(of(Target::Millis(1.0), None), Cost::Nanos);
        assert_eq!(of(Target::Bits(4.0), Some(Cost::Bytes)), Cost::Bytes);
    }
}
