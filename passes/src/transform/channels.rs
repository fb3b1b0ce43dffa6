//! What calibration saw of the channels of a value: its last dimension.

use std::collections::BTreeMap;

use vitc_ir::eval::{Data, Tensor};
use vitc_ir::{Diagnostic, Diagnostics, Module, ValueId};

use super::noise::Change;
use crate::quantize::stream;

/// Range, mean and energy of every channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Channels {
    pub(crate) min: Vec<f64>,
    pub(crate) max: Vec<f64>,
    pub(crate) mean: Vec<f64>,
    /// Mean square.
    pub(crate) power: Vec<f64>,
    /// How many rows were seen.
    pub(crate) rows: usize,
}

/// One input's share.
struct Sums {
    min: Vec<f32>,
    max: Vec<f32>,
    total: Vec<f32>,
    squares: Vec<f32>,
    rows: usize,
}

impl Sums {
    fn of(values: &[f32], channels: usize) -> Sums {
        let fill = |x| vec![x; channels];
        let (min, max) = (fill(f32::INFINITY), fill(f32::NEG_INFINITY));
        let mut sums = Sums { min, max, total: fill(0.0), squares: fill(0.0), rows: 0 };
        for row in values.chunks_exact(channels) {
            for (c, &x) in row.iter().enumerate() {
                sums.min[c] = sums.min[c].min(x);
                sums.max[c] = sums.max[c].max(x);
                sums.total[c] += x;
                sums.squares[c] += x * x;
            }
            sums.rows += 1;
        }
        sums
    }
}

/// What was seen of each value asked for. Sums of floats depend on their order, so those of each input are kept until all
/// are there and then added in the order of the inputs.
pub fn observe(
    module: &Module,
    wanted: &[ValueId],
    inputs: impl Iterator<Item = Result<Vec<Tensor>, Diagnostic>>,
    threads: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<BTreeMap<ValueId, Channels>, Diagnostics> {
    let mut is_wanted = vec![false; module.values.len()];
    wanted.iter().for_each(|v| is_wanted[v.0 as usize] = true);
    let see = |seen: &mut BTreeMap<(ValueId, usize), Sums>, input: usize, v: ValueId, tensor: &Tensor| {
        let channels = module.ty(v).shape.last_fixed().filter(|_| is_wanted[v.0 as usize]);
        if let (Some(channels), Data::F32(values)) = (channels, &tensor.data) {
            seen.insert((v, input), Sums::of(values, channels));
        }
    };
    let (shares, _) = stream(module, inputs, threads, (BTreeMap::new, see), progress)?;
    let by_input: BTreeMap<(ValueId, usize), Sums> = shares.into_iter().flatten().collect();
    let mut all: BTreeMap<ValueId, Channels> = BTreeMap::new();
    for ((v, _), sums) in by_input {
        all.entry(v).or_insert_with(|| Channels::none(sums.min.len())).add(&sums);
    }
    all.values_mut().for_each(Channels::finish);
    Ok(all)
}

/// A channel is expected to reach so many standard deviations from its mean, seen or not. Where calibration saw few rows (of
/// the class token there is one an image) its extremes say little, and equalising by them would clip what other images hold.
const REACH: f64 = 5.0;
/// With fewer rows even the deviations say little.
const LEAST_ROWS: usize = 16;

impl Channels {
    /// Nothing seen yet.
    fn none(channels: usize) -> Channels {
        let fill = |x| vec![x; channels];
        let (min, max) = (fill(f64::INFINITY), fill(f64::NEG_INFINITY));
        Channels { min, max, mean: fill(0.0), power: fill(0.0), rows: 0 }
    }

    /// Adds an input's share; means are sums until [`Channels::finish`].
    fn add(&mut self, sums: &Sums) {
        for c in 0..self.min.len() {
            self.min[c] = self.min[c].min(sums.min[c].into());
            self.max[c] = self.max[c].max(sums.max[c].into());
            self.mean[c] += f64::from(sums.total[c]);
            self.power[c] += f64::from(sums.squares[c]);
        }
        self.rows += sums.rows;
    }

    /// Sums become means, and ranges are widened to what is to be expected.
    fn finish(&mut self) {
        let rows = self.rows.max(1) as f64;
        self.mean.iter_mut().chain(&mut self.power).for_each(|x| *x /= rows);
        for c in 0..self.min.len() {
            let reach = REACH * (self.power[c] - self.mean[c].powi(2)).max(0.0).sqrt();
            self.min[c] = self.min[c].min(self.mean[c] - reach);
            self.max[c] = self.max[c].max(self.mean[c] + reach);
        }
    }

    /// Whether what was seen can be relied on: enough rows, and every channel finite.
    pub(crate) fn is_telling(&self) -> bool {
        self.rows >= LEAST_ROWS && self.min.iter().chain(&self.max).chain(&self.power).all(|x| x.is_finite())
    }

    /// What would be seen after a change.
    pub(crate) fn changed(&self, change: &Change) -> Channels {
        let mut all = self.clone();
        for (c, (factor, centre)) in change.factor.iter().zip(&change.centre).enumerate() {
            all.power[c] = (self.power[c] - 2.0 * centre * self.mean[c] + centre * centre) / factor.powi(2);
            for x in [&mut all.min[c], &mut all.max[c], &mut all.mean[c]] {
                *x = (*x - centre) / factor;
            }
        }
        all
    }

    /// The channels of a value whose element `k` is channel `channel[k]` of this one's value: the reverse of a reader's map.
    pub(crate) fn gathered(&self, channel: &[usize], count: usize) -> Channels {
        let mut all = Channels { rows: self.rows, ..Channels::none(count) };
        let mut readers = vec![0usize; count];
        for (k, &c) in channel.iter().enumerate() {
            all.min[c] = all.min[c].min(self.min[k]);
            all.max[c] = all.max[c].max(self.max[k]);
            all.mean[c] += self.mean[k];
            all.power[c] += self.power[k];
            readers[c] += 1;
        }
        for (c, n) in readers.into_iter().enumerate() {
            all.mean[c] /= n.max(1) as f64;
            all.power[c] /= n.max(1) as f64;
        }
        all
    }
}
