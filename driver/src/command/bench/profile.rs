//! The profile of a model: what each kernel takes and reaches, and where threads wait for each other.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::json;
use vitc_codegen::Tier;
use vitc_runtime::StepProfile;

use crate::io::table::{Cell, Record, Table};

/// Time for each of the loops that the peak is measured with.
const PEAK_TIME: Duration = Duration::from_millis(300);

/// What the profile is summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum By {
    /// The kernel's name.
    Kernel,
    /// The nodes of the ONNX graph.
    Node,
}

/// The steps of some runs, and what to measure them against.
pub(super) struct Profile {
    pub steps: Vec<StepProfile>,
    pub runs: usize,
    /// Multiply-accumulates per second of all threads with operands from the cache, where the tier has such a figure.
    pub peak: Option<f64>,
}

/// Sums over the calls of one kernel, or over the steps of one region.
#[derive(Clone, Copy, Default)]
struct Sum {
    calls: usize,
    nanos: u64,
    waited: u64,
    macs: u64,
}

impl Sum {
    fn add(&mut self, step: &StepProfile) {
        self.calls += 1;
        self.nanos += step.nanos;
        self.waited += step.waited.unwrap_or(0);
        self.macs += step.macs;
    }

    /// Multiply-accumulates per second, of kernels that have any.
    fn rate(&self) -> Option<f64> {
        (self.macs > 0).then(|| self.macs as f64 / self.nanos.max(1) as f64 * 1e9)
    }
}

/// What `threads` threads of a tier can reach, measured as `vitc hw` does.
pub(super) fn peak(tier: Tier, threads: usize) -> Result<Option<f64>> {
    Ok(vitc_codegen::peak(tier, PEAK_TIME)?.map(|peak| peak.loaded * threads as f64))
}

impl Profile {
    /// JSON or text, as the user's `--json` says.
    pub(super) fn render(&self, by: By, json: bool) -> String {
        let (totals, table, regions) = (self.totals(), self.table(by), self.regions());
        if !json {
            return format!("{table}\n\n{regions}\n\n{totals}");
        }
        let key = match by {
            By::Kernel => "kernels",
            By::Node => "nodes",
        };
        format!("{:#}", json!({ "totals": totals.to_json(), key: table.to_json(), "regions": regions.to_json() }))
    }

    fn totals(&self) -> Record {
        let sum = self.sum(&self.steps);
        let mut record = Record::new();
        record
            .field("runs", self.runs)
            .field("kernels_ms", self.ms(sum.nanos))
            .field("waited_ms", self.ms(sum.waited))
            .field("gmacs_per_s", giga(sum.rate()))
            .field("loaded_peak_gmacs", giga(self.peak));
        record
    }

    /// Time of the kernels or nodes, largest first.
    fn table(&self, by: By) -> Table {
        let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
        for step in &self.steps {
            let key = match by {
                By::Kernel => family(&step.name),
                By::Node => &step.source,
            };
            sums.entry(key).or_default().add(step);
        }
        let total = self.sum(&self.steps).nanos.max(1) as f64;
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.nanos));
        let title = match by {
            By::Kernel => "kernel",
            By::Node => "node",
        };
        let mut table = Table::new(&[title, "calls", "ms", "share", "gmacs_per_s", "peak_percent"]);
        for (name, sum) in sums {
            let share = Cell::number(100.0 * sum.nanos as f64 / total, 1);
            let percent = sum.rate().zip(self.peak).map(|(rate, peak)| 100.0 * rate / peak);
            let percent = percent.map_or(Cell::none(), |p| Cell::number(p, 1));
            table.row([name.into(), sum.calls.into(), self.ms(sum.nanos), share, giga(sum.rate()), percent]);
        }
        table
    }

    /// The runs of steps between barriers, in order.
    fn regions(&self) -> Table {
        let mut table = Table::new(&["region", "steps", "ms", "waited_ms", "from", "to"]);
        for (number, steps) in self.steps.chunk_by(|step, _| step.waited.is_none()).enumerate() {
            let sum = self.sum(steps);
            let ends = [steps.first(), steps.last()].map(|s| s.map_or(Cell::none(), |s| family(&s.name).into()));
            let [from, to] = ends;
            table.row([number.into(), sum.calls.into(), self.ms(sum.nanos), self.ms(sum.waited), from, to]);
        }
        table
    }

    fn sum(&self, steps: &[StepProfile]) -> Sum {
        let mut sum = Sum::default();
        steps.iter().for_each(|step| sum.add(step));
        sum
    }

    /// Milliseconds of one run.
    fn ms(&self, nanos: u64) -> Cell {
        Cell::number(nanos as f64 / 1e6 / self.runs.max(1) as f64, 4)
    }
}

fn giga(rate: Option<f64>) -> Cell {
    rate.map_or(Cell::none(), |r| Cell::number(r / 1e9, 1))
}

/// A kernel's name without the number that tells kernels of equal shape and different constants apart.
fn family(kernel: &str) -> &str {
    match kernel.rsplit_once('.') {
        Some((family, number)) if number.bytes().all(|b| b.is_ascii_digit()) => family,
        _ => kernel,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn step(name: &str, source: &str, nanos: u64, waited: Option<u64>, macs: u64) -> StepProfile {
        StepProfile { name: name.into(), source: source.into(), nanos, waited, macs }
    }

    fn profile(runs: usize, peak: Option<f64>) -> Profile {
        let steps = vec![
            step("copy", "/a", 1_000_000, None, 0),
            step("gemm", "/b", 2_000_000, Some(500_000), 80_000_000),
            step("gemm.1", "/c", 1_000_000, Some(100_000), 0),
        ];
        Profile { steps, runs, peak }
    }

    fn json(profile: &Profile, by: By) -> Value {
        serde_json::from_str(&profile.render(by, true)).unwrap()
    }

    #[test]
    fn kernels_are_summed_and_sorted() {
        let found = json(&profile(2, Some(80e9)), By::Kernel);
        let (gemm, copy) = (&found["kernels"][0], &found["kernels"][1]);
        assert_eq!((gemm["kernel"].as_str(), copy["kernel"].as_str()), (Some("gemm"), Some("copy")));
        assert_eq!((gemm["calls"].as_u64(), gemm["ms"].as_f64()), (Some(2), Some(1.5)));
        assert_eq!((gemm["share"].as_f64(), copy["share"].as_f64()), (Some(75.0), Some(25.0)));
        assert_eq!(gemm["gmacs_per_s"].as_f64().map(f64::round), Some(27.0));
        assert_eq!(gemm["peak_percent"].as_f64().map(f64::round), Some(33.0));
        assert!(copy["gmacs_per_s"].is_null() && copy["peak_percent"].is_null());
    }

    #[test]
    fn nodes_and_a_tier_without_a_peak() {
        let found = json(&profile(1, None), By::Node);
        assert_eq!(
            (found["nodes"][0]["node"].as_str(), found["nodes"][0]["gmacs_per_s"].as_f64()),
            (Some("/b"), Some(40.0))
        );
        assert!(found["nodes"][0]["peak_percent"].is_null() && found["totals"]["loaded_peak_gmacs"].is_null());
        assert!(found["kernels"].is_null());
    }

    #[test]
    fn regions_end_where_threads_meet() {
        let profile = profile(2, Some(80e9));
        let found = json(&profile, By::Kernel);
        let fields = |r: &Value| (r["steps"].as_u64(), r["ms"].as_f64(), r["waited_ms"].as_f64());
        let regions = found["regions"].as_array().unwrap();
        let [first, second] = &regions[..] else { panic!("two regions, not {regions:?}") };
        assert_eq!(fields(first), (Some(2), Some(1.5), Some(0.25)));
        assert_eq!(fields(second), (Some(1), Some(0.5), Some(0.05)));
        assert_eq!((first["from"].as_str(), first["to"].as_str()), (Some("copy"), Some("gemm")));
        let totals = &found["totals"];
        assert_eq!((totals["kernels_ms"].as_f64(), totals["waited_ms"].as_f64()), (Some(2.0), Some(0.3)));
        assert_eq!((totals["gmacs_per_s"].as_f64(), totals["loaded_peak_gmacs"].as_f64()), (Some(20.0), Some(80.0)));
        let text = profile.render(By::Kernel, false);
        assert!(text.contains("peak percent") && text.contains("waited ms"), "{text}");
    }
}
