//! From ranges to scales.

use std::collections::{BTreeMap, BTreeSet};

use vitc_ir::{Diagnostic, Diagnostics, Module, Op, Quant, ValueId};

use super::given::{self, Grid, Ranges};
use super::histogram::Histogram;
use super::observe::{Calibration, Seen};
use super::sites::{Role, Site, Sites};
use super::{Observer, QuantOptions};

/// The residual stream reaches this much beyond what calibration saw. Integer sums saturate, so an image beyond the
/// range loses its tip and nothing else; a quarter is ample for that and costs two decibels of some seventy.
const HEADROOM: f64 = 1.25;

/// The grid of every group of sites, by group.
pub(crate) fn decide(
    module: &Module,
    sites: &Sites,
    calibration: &Calibration,
    options: &QuantOptions,
) -> Result<BTreeMap<usize, Grid>, Diagnostics> {
    let mut grids = BTreeMap::new();
    let known = Ranges::of(module);
    let mut problems = Diagnostics::default();
    for (group, members) in sites.groups() {
        match group_grid(module, &members, (calibration, &known), options.observer) {
            Ok(grid) => {
                grids.insert(group, grid);
            }
            Err(problem) => problems.push(problem),
        }
    }
    problems.or(grids)
}

/// Whether a group needs no range, because what it holds is known to lie between 0 and 1.
fn is_softmax(module: &Module, members: &[Site]) -> bool {
    matches!(members, [(v, Role::Unsigned)] if module.node_of(*v).is_some_and(|n| matches!(n.op, Op::Softmax {})))
}

/// The values of the sites whose range only calibration can tell, or can tell better than a grid of 16 bits.
pub(crate) fn to_observe(module: &Module, sites: &Sites) -> BTreeSet<ValueId> {
    let groups = sites.groups();
    let open = groups.values().filter(|g| !is_softmax(module, g) && given::grid_of_group(module, g).is_none());
    let ranges = Ranges::of(module);
    let unknown = |v: &ValueId| module.const_of(*v).is_none() && !ranges.get(*v).is_some_and(|known| known.firm);
    open.flatten().map(|&(v, _)| v).filter(unknown).collect()
}

/// The values without which no scale can be chosen: nothing but calibration gives them a range.
pub(crate) fn without_range(module: &Module, sites: &Sites) -> Vec<ValueId> {
    let ranges = Ranges::of(module);
    to_observe(module, sites).into_iter().filter(|&v| ranges.get(v).is_none()).collect()
}

fn group_grid(
    module: &Module,
    members: &[Site],
    known: (&Calibration, &Ranges),
    observer: Observer,
) -> Result<Grid, Diagnostic> {
    let role = members[0].1;
    if let Some(grid) = given::grid_of_group(module, members) {
        return Ok(grid);
    }
    if is_softmax(module, members) {
        return Ok(Grid { elem: role.elem(), quant: Quant::per_tensor(1.0 / 255.0, 0) });
    }
    let mut joint: Option<Seen> = None;
    for &(v, _) in members {
        let seen = seen(module, v, known, observer)?;
        match &mut joint {
            Some(known) => known.merge(&seen),
            None => joint = Some(seen),
        }
    }
    let joint = joint.ok_or_else(|| Diagnostic::new("calibration", "a group of values is empty"))?;
    Ok(Grid { elem: role.elem(), quant: quant(role, &joint, observer) })
}

/// What is known of a value; constants are their own calibration.
fn seen(
    module: &Module,
    v: ValueId,
    (calibration, ranges): (&Calibration, &Ranges),
    observer: Observer,
) -> Result<Seen, Diagnostic> {
    let seen = match module.const_of(v) {
        Some(c) => Some(Seen::of(&c.values::<f32>(), observer != Observer::MinMax)),
        None => match (calibration.seen.get(&v), ranges.get(v)) {
            (None, Some(known)) => Some(within(known.range)),
            (Some(_), Some(known)) if known.firm => Some(within(known.range)),
            (seen, _) => seen.cloned(),
        },
    };
    let place = place(module, v);
    let seen = seen.ok_or_else(|| {
        Diagnostic::new("calibration", "the calibration does not belong to this module").at(place.clone())
    })?;
    if !seen.finite {
        let message = "a value is infinite or not a number for some calibration input";
        return Err(Diagnostic::new("calibration-range", message).at(place));
    }
    Ok(seen)
}

/// A range that the model gives.
fn within((low, high): (f64, f64)) -> Seen {
    let (min, max) = (low as f32, high as f32);
    Seen { min, max, finite: min.is_finite() && max.is_finite(), histogram: None }
}

/// What a value is called in messages.
pub(crate) fn place(module: &Module, v: ValueId) -> String {
    match (module.node_of(v), module.const_of(v)) {
        (Some(n), _) => n.loc.as_deref().unwrap_or(n.op.name()).to_string(),
        (_, Some(c)) => c.name.clone(),
        _ => module.inputs.iter().find(|i| i.value == v).map_or_else(String::new, |i| i.name.clone()),
    }
}

fn quant(role: Role, seen: &Seen, observer: Observer) -> Quant {
    let whole = (f64::from(seen.min), f64::from(seen.max));
    match role {
        Role::Wide => symmetric(whole.0.abs().max(whole.1.abs()) * HEADROOM, 32767.0),
        Role::Signed => least(seen, observer, whole, |(lo, hi)| symmetric(lo.abs().max(hi.abs()), 127.0), (-128, 127)),
        Role::Unsigned => least(seen, observer, whole, asymmetric, (0, 255)),
    }
}

/// The quantization the observer wants.
fn least(
    seen: &Seen,
    observer: Observer,
    whole: (f64, f64),
    make: impl Fn((f64, f64)) -> Quant,
    levels: (i32, i32),
) -> Quant {
    match (observer, &seen.histogram) {
        (Observer::Percentile(p), Some(h)) => {
            let (low, high) = h.cut((1.0 - p / 100.0).clamp(0.0, 0.49));
            make((low.max(whole.0), high.min(whole.1)))
        }
        (Observer::Mse, Some(h)) => {
            let candidates = (0..=30).map(|i| 1.0 - f64::from(i) / 40.0);
            let scored = candidates.map(|f| make((whole.0 * f, whole.1 * f))).map(|q| (error(h, &q, levels), q));
            scored.min_by(|a, b| a.0.total_cmp(&b.0)).map_or_else(|| make(whole), |(_, q)| q)
        }
        _ => make(whole),
    }
}

fn error(h: &Histogram, q: &Quant, (low, high): (i32, i32)) -> f64 {
    let (scale, zero) = (q.scale_at(0), f64::from(q.zero_point));
    h.error(|x| scale * (((x / scale).round_ties_even() + zero).clamp(low.into(), high.into()) - zero))
}

/// One step for a range of zero: everything is zero and any scale will do.
fn step(range: f64, levels: f64) -> f64 {
    let scale = range / levels;
    if scale > 0.0 && scale.is_normal() { scale } else { 1.0 }
}

fn symmetric(magnitude: f64, levels: f64) -> Quant {
    Quant::per_tensor(step(magnitude, levels), 0)
}

/// `u8` over a range widened to hold zero.
fn asymmetric((low, high): (f64, f64)) -> Quant {
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = step(high - low, 255.0);
    let zero_point = (-low / scale).round_ties_even().clamp(0.0, 255.0) as i32;
    Quant::per_tensor(scale, zero_point)
}
