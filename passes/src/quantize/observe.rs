//! Calibration: the ranges of every site over the calibration inputs.

use std::collections::{BTreeMap, BTreeSet};

use vitc_ir::eval::{Data, Tensor};
use vitc_ir::{Diagnostic, Diagnostics, Module, ValueId};

use super::gram::Gram;
use super::histogram::Histogram;
use super::output::{self, Samples};
use super::range;
use super::rows::{self, Peaks};
use super::sites::Sites;
use super::stream::stream;
use super::{Codes, Observer, QuantOptions};

/// What was seen of one value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) min: f32,
    pub(crate) max: f32,
    pub(crate) finite: bool,
    pub(crate) histogram: Option<Histogram>,
}

impl Seen {
    pub(crate) fn of(values: &[f32], histogram: bool) -> Seen {
        let (min, max, finite) = extremes(values);
        let magnitude = min.abs().max(max.abs());
        let histogram = (histogram && finite).then(|| Histogram::of(values, magnitude));
        Seen { min, max, finite, histogram }
    }

    pub(crate) fn merge(&mut self, other: &Seen) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.finite &= other.finite;
        match (&mut self.histogram, &other.histogram) {
            (Some(a), Some(b)) => a.merge(b),
            _ => self.histogram = None,
        }
    }
}

/// Smallest and largest value, and whether all are finite; sixteen lanes, which compilers turn into vectors.
fn extremes(values: &[f32]) -> (f32, f32, bool) {
    const LANES: usize = 16;
    let (mut low, mut high, mut zero) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0f32; LANES]);
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            low[i] = if chunk[i] < low[i] { chunk[i] } else { low[i] };
            high[i] = if chunk[i] > high[i] { chunk[i] } else { high[i] };
            zero[i] += chunk[i] * 0.0;
        }
    }
    let low = rest.iter().chain(&low).fold(f32::INFINITY, |a, &x| a.min(x));
    let high = rest.iter().chain(&high).fold(f32::NEG_INFINITY, |a, &x| a.max(x));
    (low, high, zero.iter().all(|z| *z == 0.0) && rest.iter().all(|x| x.is_finite()))
}

/// The ranges of a module's values over the calibration inputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    pub(crate) seen: BTreeMap<ValueId, Seen>,
    /// Second moments of what products read, where they were wanted.
    pub(crate) grams: BTreeMap<ValueId, Gram>,
    /// Peaks of the rows that products read.
    pub(crate) peaks: BTreeMap<ValueId, Peaks>,
    /// Rows and columns of operands of products, where ranges are chosen by the error of products.
    pub(crate) samples: Samples,
    /// Number of inputs seen.
    pub inputs: usize,
}

impl Calibration {
    /// Smallest and largest element seen of a value, when it was observed.
    pub fn range(&self, v: ValueId) -> Option<(f32, f32)> {
        self.seen.get(&v).map(|s| (s.min, s.max))
    }

    /// The peaks of the rows of several values together.
    pub(crate) fn peaks_of(&self, values: &BTreeSet<ValueId>) -> Option<Peaks> {
        let mut all = values.iter().filter_map(|v| self.peaks.get(v)).cloned();
        let first = all.next()?;
        Some(all.fold(first, |mut joint, peaks| {
            joint.merge(&peaks);
            joint
        }))
    }

    fn add_peaks(&mut self, v: ValueId, peaks: Peaks) {
        match self.peaks.get_mut(&v) {
            Some(known) => known.merge(&peaks),
            None => drop(self.peaks.insert(v, peaks)),
        }
    }

    fn add(&mut self, v: ValueId, seen: Seen) {
        match self.seen.get_mut(&v) {
            Some(known) => known.merge(&seen),
            None => {
                self.seen.insert(v, seen);
            }
        }
    }

    fn merge(&mut self, other: Calibration) {
        other.seen.into_iter().for_each(|(v, seen)| self.add(v, seen));
        other.peaks.into_iter().for_each(|(v, peaks)| self.add_peaks(v, peaks));
        self.samples.merge(other.samples);
    }
}

/// Runs the inputs through a module of stage `shape`, some at a time, and collects ranges. `progress` is told how many
/// inputs are done. The result does not depend on the number of threads. The first faulty input ends it with an error.
pub fn observe(
    module: &Module,
    inputs: impl Iterator<Item = Result<Vec<Tensor>, Diagnostic>>,
    options: &QuantOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Calibration, Diagnostics> {
    let wanted = wanted(module);
    let histograms: Vec<bool> =
        (0..wanted.len()).map(|v| wanted[v] && options.wants_histogram(module, ValueId(v as u32))).collect();
    let maps = if options.wants_maps() { range::maps(module, &Sites::of(module)) } else { BTreeSet::new() };
    let by_rows: BTreeSet<ValueId> =
        rows::candidates(module, &Sites::of(module), options).into_values().flat_map(|c| c.read).collect();
    let shares = options.activations.any_narrow() && options.any_codes(Codes::fits);
    let by_output = if options.observer == Observer::Output { output::readers(module) } else { BTreeMap::new() };
    let see = |calibration: &mut Calibration, input: usize, v: ValueId, tensor: &Tensor| {
        let Data::F32(values) = &tensor.data else { return };
        if let Some(read) = by_output.get(&v) {
            calibration.samples.add(module, read, input, tensor);
        }
        if by_rows.contains(&v)
            && let Some(peaks) = Peaks::of(tensor, shares)
        {
            calibration.add_peaks(v, peaks);
        }
        if maps.contains(&v) {
            let relative = over_row_maximum(values, tensor.shape.last().copied().unwrap_or(1));
            calibration.add(v, Seen::of(&relative, true));
        }
        if wanted[v.0 as usize] {
            calibration.add(v, Seen::of(values, histograms[v.0 as usize]));
        }
    };
    let (shares, inputs) = stream(module, inputs, options.threads, (Calibration::default, see), progress)?;
    let mut calibration = Calibration { inputs, ..Calibration::default() };
    shares.into_iter().for_each(|share| calibration.merge(share));
    Ok(calibration)
}

/// Weights of a map over the largest of their row: what their codes are relative to.
fn over_row_maximum(map: &[f32], length: usize) -> Vec<f32> {
    let row = |row: &[f32]| -> Vec<f32> {
        let most = row.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        row.iter().map(|weight| weight / most).collect()
    };
    map.chunks(length.max(1)).flat_map(row).collect()
}

fn wanted(module: &Module) -> Vec<bool> {
    let mut wanted = vec![false; module.values.len()];
    range::to_observe(module, &Sites::of(module)).iter().for_each(|v| wanted[v.0 as usize] = true);
    wanted
}
