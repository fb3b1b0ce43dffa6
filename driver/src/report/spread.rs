//! How the values of a site lie on its grid: their histogram, what is clipped, and what rounding them costs by itself.

use anyhow::Result;
use vitc_ir::eval::Tensor;
use vitc_ir::{Module, ValueId};
use vitc_passes::quantize::Placed;

use super::data::{Histogram, Noise};
use super::noise::{Value, floats};
use crate::accuracy::parallel;
use crate::io::progress::Progress;

/// Bins of a histogram.
const BINS: usize = 64;

/// How the values of a site lie on its grid.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    pub(crate) histogram: Histogram,
    /// Share of the values that lie beyond the range.
    pub(crate) clipped: f64,
    /// What rounding costs, in the model's own channels.
    pub(crate) own: Noise,
}

/// The least and the largest real on a site's grid; of several scales, over all of them.
pub(crate) fn range(site: &Placed) -> [f64; 2] {
    let ends = site.quant.scale.iter().flat_map(|s| {
        let real = |q: i64| s.0 * (q - i64::from(site.quant.zero_point)) as f64;
        [real(site.levels.0), real(site.levels.1)]
    });
    ends.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], x| [low.min(x), high.max(x)])
}

/// Runs the inputs through the float graph that was quantized; `values` is what was measured of the sites.
pub(crate) fn spreads(
    float: &Module,
    sites: &[Placed],
    values: &[Value],
    inputs: &[Vec<Tensor>],
    (threads, progress): (usize, &Progress),
) -> Result<Vec<Spread>> {
    let wanted: Vec<ValueId> = sites.iter().map(|s| s.value).collect();
    let mut counts: Vec<Counts> = sites.iter().zip(values).map(|(site, value)| Counts::new(site, value)).collect();
    for part in inputs.chunks(threads.max(1)) {
        for held in parallel(part, threads, |input| floats(float, input, &wanted)) {
            let (held, _) = held?;
            for ((site, value), counts) in sites.iter().zip(values).zip(&mut counts) {
                held.get(&site.value).into_iter().for_each(|x| counts.add(x, site, value));
            }
            progress.advance(1);
        }
    }
    Ok(counts.into_iter().zip(values).map(|(c, v)| c.spread(v)).collect())
}

struct Counts {
    histogram: Histogram,
    count: u64,
    clipped: u64,
    errors: f64,
}

impl Counts {
    /// Bins from the lower end of range and values to the upper one.
    fn new(site: &Placed, value: &Value) -> Counts {
        let [low, high] = range(site);
        let (low, high) = (low.min(value.seen[0]), high.max(value.seen[1]));
        Counts { histogram: Histogram { low, high, counts: vec![0; BINS] }, count: 0, clipped: 0, errors: 0.0 }
    }

    fn add(&mut self, values: &[f32], site: &Placed, measured: &Value) {
        let Histogram { low, high, counts } = &mut self.histogram;
        let per_bin = BINS as f64 / (*high - *low);
        let channels = measured.factors.len().max(1);
        let grid = Grid::of(site, values);
        for (i, &x) in values.iter().enumerate() {
            let x = f64::from(x);
            counts[(((x - *low) * per_bin) as usize).min(BINS - 1)] += 1;
            let (rounded, clipped) = grid.nearest(i, x);
            let factor = measured.factors.get(i % channels).copied().unwrap_or(1.0);
            self.errors += (factor * (x - rounded)).powi(2);
            self.clipped += u64::from(clipped);
        }
        self.count += values.len() as u64;
    }

    fn spread(self, measured: &Value) -> Spread {
        let count = self.count.max(1) as f64;
        let own = Noise::of(measured.noise.signal, self.errors / count);
        Spread { histogram: self.histogram, clipped: self.clipped as f64 / count, own }
    }
}

/// The grid of a site over a tensor.
struct Grid<'s> {
    site: &'s Placed,
    /// Elements that lie next to each other and share a scale.
    inner: usize,
    /// The tensor with its rows rounded, where rows have scales of their own.
    rounded: Option<Vec<f32>>,
}

impl Grid<'_> {
    /// Scales along the last dimension but for those of one scale, which is what activations have, and those of rows.
    fn of<'s>(site: &'s Placed, values: &[f32]) -> Grid<'s> {
        let inner = if site.quant.axis.is_some() { 1 } else { values.len().max(1) };
        Grid { site, inner, rounded: site.rows.as_ref().and_then(|rows| rows.round(values)) }
    }

    /// The nearest real of the grid to element `i`, and whether that lies beyond it by more than rounding.
    fn nearest(&self, i: usize, x: f64) -> (f64, bool) {
        if let Some(rounded) = &self.rounded {
            return (rounded[i].into(), false); // a row's grid is as large as the row
        }
        let Placed { quant, levels, .. } = self.site;
        let scale = quant.scale_at(i / self.inner % quant.scale.len().max(1));
        let zero = f64::from(quant.zero_point);
        let whole = (x / scale).round_ties_even() + zero;
        let clipped = whole < levels.0 as f64 || whole > levels.1 as f64;
        (scale * (self.site.nearest(whole) - zero), clipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitc_ir::{Elem, Quant};

    fn site() -> Placed {
        let quant = Quant::per_tensor(0.5, 2);
        let (value, simulated) = (ValueId(0), ValueId(0));
        Placed { value, role: "unsigned", simulated, elem: Elem::U8, quant, levels: (0, 15), codes: None, rows: None }
    }

    #[test]
    fn the_grid_ends_where_its_levels_do() {
        assert_eq!(range(&site()), [-1.0, 6.5]);
        let axis = Placed { quant: Quant::per_axis([0.5, 2.0], 1, 0), levels: (-7, 7), ..site() };
        assert_eq!(range(&axis), [-14.0, 14.0]);
    }

    #[test]
    fn values_beyond_the_range_are_clipped_and_counted() {
        let noise = Noise::of(1.0, 0.0);
        let value = Value { noise, seen: [-1.2, 8.0], factors: vec![1.0] };
        let mut counts = Counts::new(&site(), &value);
        counts.add(&[-1.2, 0.1, 6.6, 8.0], &site(), &value);
        let spread = counts.spread(&value);
        assert_eq!((spread.histogram.low, spread.histogram.high), (-1.2, 8.0));
        assert_eq!((spread.histogram.counts[0], spread.histogram.counts[BINS - 1]), (1, 1));
        assert_eq!(spread.histogram.counts.iter().sum::<u64>(), 4);
        assert_eq!(spread.clipped, 0.25, "only 8.0 is more than half a step beyond");
        let errors = [0.2f64, 0.1, 0.1, 1.5].map(|e| e * e).iter().sum::<f64>() / 4.0;
        assert!((spread.own.noise - errors).abs() < 1e-6, "{spread:?}");
    }
}
