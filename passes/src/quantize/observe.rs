//! Calibration: the ranges of every site over the calibration inputs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};

use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Diagnostic, Diagnostics, Module, ValueId};

use super::histogram::Histogram;
use super::range;
use super::sites::Sites;
use super::{Observer, QuantOptions};

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
    /// Number of inputs seen.
    pub inputs: usize,
}

impl Calibration {
    /// Smallest and largest element seen of a value, when it was observed.
    pub fn range(&self, v: ValueId) -> Option<(f32, f32)> {
        self.seen.get(&v).map(|s| (s.min, s.max))
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
        self.inputs += other.inputs;
        other.seen.into_iter().for_each(|(v, seen)| self.add(v, seen));
    }
}

/// One worker's share: what it saw, and the first input it could not evaluate.
type Share = (Calibration, Option<(usize, Diagnostic)>);

/// Runs the inputs through a module of stage `shape`, some at a time, and collects ranges. `progress` is told how many
/// inputs are done. The result does not depend on the number of threads. The first faulty input ends it with an error.
pub fn observe(
    module: &Module,
    inputs: impl Iterator<Item = Result<Vec<Tensor>, Diagnostic>>,
    options: &QuantOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Calibration, Diagnostics> {
    let threads = options.threads.max(1);
    let wanted = wanted(module);
    let histograms = options.observer != Observer::MinMax;
    let (send, receive) = mpsc::sync_channel::<(usize, Vec<Tensor>)>(threads);
    let receive = Arc::new(Mutex::new(receive));
    let (report, reports) = mpsc::channel::<()>();
    let mut done = 0;
    let (mut fault, mut stopped) = (None, false);
    let shares: Vec<Share> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let report = report.clone();
                let (receive, wanted) = (Arc::clone(&receive), &wanted);
                scope.spawn(move || work(module, &receive, wanted, histograms, &report))
            })
            .collect();
        drop((report, receive));
        for (i, input) in inputs.enumerate() {
            match input {
                Err(problem) => fault = Some((i, problem)),
                // Sending fails when no worker lives; joining them tells why.
                Ok(input) => stopped = send.send((i, input)).is_err(),
            }
            for () in reports.try_iter() {
                done += 1;
                progress(done);
            }
            if stopped || fault.is_some() {
                break;
            }
        }
        drop(send);
        for () in reports {
            done += 1;
            progress(done);
        }
        workers.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    collect(shares, fault)
}

fn collect(shares: Vec<Share>, fault: Option<(usize, Diagnostic)>) -> Result<Calibration, Diagnostics> {
    let mut calibration = Calibration::default();
    let mut faults: Vec<_> = fault.into_iter().collect();
    for (share, fault) in shares {
        calibration.merge(share);
        faults.extend(fault);
    }
    if let Some((_, first)) = faults.into_iter().min_by_key(|(i, _)| *i) {
        return Err(first.into());
    }
    if calibration.inputs == 0 {
        let message = "there are no inputs to calibrate with";
        return Err(Diagnostic::new("calibration", message).help("give some images like those of real use").into());
    }
    Ok(calibration)
}

fn wanted(module: &Module) -> Vec<bool> {
    let mut wanted = vec![false; module.values.len()];
    range::to_observe(module, &Sites::of(module)).iter().for_each(|v| wanted[v.0 as usize] = true);
    wanted
}

fn work(
    module: &Module,
    receive: &Mutex<mpsc::Receiver<(usize, Vec<Tensor>)>>,
    wanted: &[bool],
    histograms: bool,
    report: &mpsc::Sender<()>,
) -> Share {
    let mut calibration = Calibration::default();
    let mut fault: Option<(usize, Diagnostic)> = None;
    loop {
        let next = receive.lock().map(|r| r.recv());
        let Ok(Ok((i, input))) = next else { return (calibration, fault) };
        let traced = eval::trace(module, &input, &mut |v, tensor| {
            if let (true, Data::F32(values)) = (wanted[v.0 as usize], &tensor.data) {
                calibration.add(v, Seen::of(values, histograms));
            }
        });
        match traced {
            Ok(_) => calibration.inputs += 1,
            Err(problem) if fault.as_ref().is_none_or(|(j, _)| i < *j) => fault = Some((i, problem)),
            Err(_) => {}
        }
        // The receiver of reports outlives the workers.
        report.send(()).ok();
    }
}
