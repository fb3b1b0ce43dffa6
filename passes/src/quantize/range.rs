//! From ranges to scales.

use std::collections::{BTreeMap, BTreeSet};

use vitc_ir::{Class, Diagnostic, Diagnostics, Module, Node, Op, Quant, ValueId};

use super::codes::Codes;
use super::given::{self, Grid, Ranges};
use super::histogram::Histogram;
use super::observe::{Calibration, Seen};
use super::output::OutputError;
use super::rows::{self, Peaks};
use super::sites::{self, Role, Site, Sites};
use super::through::Through;
use super::widths::{self, Width};
use super::{Observer, QuantOptions};
use crate::integerize::arith::{finest_norm_result, finest_norm_scale};

/// The residual stream reaches this much beyond what calibration saw. Integer sums saturate, so an image beyond the
/// range loses its tip and nothing else; a quarter is ample for that and costs two decibels of some seventy.
pub(crate) const HEADROOM: f64 = 1.25;

/// The grid of every group of sites, by group.
pub(crate) fn decide(
    module: &Module,
    sites: &Sites,
    calibration: &Calibration,
    options: &QuantOptions,
) -> Result<BTreeMap<usize, Grid>, Diagnostics> {
    let mut grids = BTreeMap::new();
    let known = Ranges::of(module);
    let widths = widths::of_groups(module, sites, &options.activations);
    let codes = widths::codes_of_groups(module, sites, &options.codes);
    let by_rows = rows::candidates(module, sites, options);
    let mut problems = Diagnostics::default();
    for (group, members) in sites.groups() {
        let few = widths.get(&group).map(|&width| (width, codes.get(&group).copied().unwrap_or_default()));
        let peaks = by_rows.get(&group).and_then(|c| Some((calibration.peaks_of(&c.read)?, c.columns)));
        match group_grid(module, &members, (calibration, &known), (Asked { few, peaks }, options)) {
            Ok(grid) => {
                let quant = no_finer(grid.quant.clone(), finest_result(module, &members));
                grids.insert(group, Grid { quant, ..grid });
            }
            Err(problem) => problems.push(problem),
        }
    }
    adopt(module, sites, &mut grids);
    problems.or(grids)
}

/// Queries and keys that a ReLU yields get the upper part of the grid that the ReLU reads: finer steps would hold nothing new, and
/// these need no pass over memory (`relu-into-linear-attention`).
fn adopt(module: &Module, sites: &Sites, grids: &mut BTreeMap<usize, Grid>) {
    for (group, members) in sites.groups() {
        let adopted = members.iter().map(|&site| relu_of(module, sites, site, grids)).collect::<Option<Vec<_>>>();
        let Some(scale) = adopted.as_deref().and_then(|all| all.first().copied()) else { continue };
        let plain = |grid: &Grid| grid.width.is_none() && grid.rows.is_none();
        if adopted.is_some_and(|all| all.iter().all(|&s| s == scale)) && grids.get(&group).is_some_and(plain) {
            grids.insert(group, Grid::whole(Role::Unsigned.elem(), Quant::per_tensor(scale, 0)));
        }
    }
}

/// The scale of the bytes that a ReLU reads whose result only attention without softmax reads, as queries or keys.
fn relu_of(module: &Module, sites: &Sites, (v, role): Site, grids: &BTreeMap<usize, Grid>) -> Option<f64> {
    let relu = module.node_of(v).filter(|n| role == Role::Unsigned && n.op == (Op::Relu {}))?;
    let operands = |n: usize| module.nodes[n].operands.iter().enumerate().map(move |(i, &operand)| (n, i, operand));
    let computing = (0..module.nodes.len()).filter(|&n| module.nodes[n].op.class() != Class::Move);
    let mut readers = computing.flat_map(operands).filter(|&(.., o)| sites::origins(module, o).contains(&v));
    let linear = |(n, i, _): (usize, usize, ValueId)| matches!(module.nodes[n].op, Op::LinearAttention { .. }) && i < 2;
    readers.all(linear).then_some(())?;
    let scale = |origin: ValueId| {
        let grid = grids.get(&sites.group((origin, Role::Unsigned))?)?;
        let plain = grid.elem == Role::Unsigned.elem() && grid.width.is_none() && grid.rows.is_none();
        grid.quant.single().filter(|_| plain)
    };
    let mut scales = sites::origins(module, relu.operands[0]).into_iter().map(scale);
    let first = scales.next()??;
    scales.all(|s| s == Some(first)).then_some(first)
}

/// Whether a group needs no range, because what it holds is known to lie between 0 and 1.
fn is_softmax(module: &Module, members: &[Site]) -> bool {
    matches!(members, [(v, Role::Unsigned)] if module.node_of(*v).is_some_and(|n| matches!(n.op, Op::Softmax {})))
}

/// Whether nothing but products of two activations reads a map of softmax: they take the exponentials and divide by the sums of
/// their rows, so that the map's own steps do not matter.
fn divides_later(module: &Module, map: ValueId) -> bool {
    let weighs =
        |n: &Node| matches!(n.op, Op::MatMul {}) && n.operands[0] == map && module.const_of(n.operands[1]).is_none();
    module.nodes.iter().filter(|n| n.operands.contains(&map)).all(weighs)
}

/// The values of the sites whose range only calibration can tell, or can tell better than a grid of 16 bits.
pub(crate) fn to_observe(module: &Module, sites: &Sites) -> BTreeSet<ValueId> {
    let groups = sites.groups();
    let in_unit = |g: &[Site]| is_softmax(module, g) && g.iter().all(|&(v, _)| divides_later(module, v));
    let open = groups.values().filter(|g| !in_unit(g) && given::grid_of_group(module, g).is_none());
    let ranges = Ranges::of(module);
    let unknown = |v: &ValueId| module.const_of(*v).is_none() && !ranges.get(*v).is_some_and(|known| known.firm);
    open.flatten().map(|&(v, _)| v).filter(unknown).collect()
}

/// The maps of softmax.
pub(crate) fn maps(module: &Module, sites: &Sites) -> BTreeSet<ValueId> {
    let groups = sites.groups();
    let open = groups.values().filter(|g| is_softmax(module, g) && given::grid_of_group(module, g).is_none());
    open.flatten().map(|&(v, _)| v).collect()
}

/// The values without which no scale can be chosen: nothing but calibration gives them a range.
pub(crate) fn without_range(module: &Module, sites: &Sites) -> Vec<ValueId> {
    let ranges = Ranges::of(module);
    to_observe(module, sites).into_iter().filter(|&v| ranges.get(v).is_none()).collect()
}

/// What a group may have instead of 256 even levels for all rows.
struct Asked {
    /// Fewer bits, and their codes.
    few: Option<(Width, Codes)>,
    /// Peaks of its rows, where they may have scales of their own, and the columns of the products that read them.
    peaks: Option<(Peaks, usize)>,
}

fn group_grid(
    module: &Module,
    members: &[Site],
    known: (&Calibration, &Ranges),
    (asked, options): (Asked, &QuantOptions),
) -> Result<Grid, Diagnostic> {
    let Asked { few, peaks } = asked;
    let (role, width) = (members[0].1, few.map(|(width, _)| width));
    if let Some(grid) = given::grid_of_group(module, members) {
        return Ok(grid);
    }
    if is_softmax(module, members) {
        return Ok(map_grid(module, members, known.0, few));
    }
    let mut joint: Option<Seen> = None;
    for &(v, _) in members {
        let seen = seen(module, v, known, options.wants_histogram(module, v))?;
        match &mut joint {
            Some(known) => known.merge(&seen),
            None => joint = Some(seen),
        }
    }
    let joint = joint.ok_or_else(|| Diagnostic::new("calibration", "a group of values is empty"))?;
    let coded = few.zip(joint.histogram.as_ref());
    let fits = few.is_some_and(|(_, codes)| codes.fits());
    let by_rows = |plain: Grid| peaks.and_then(|peaks| rows::better(&plain, &joint, &peaks, fits)).unwrap_or(plain);
    let output = match options.observer {
        Observer::Output if role != Role::Wide => OutputError::of(module, members, &known.0.samples),
        _ => None,
    };
    let of_values = |codes: Codes, seen, width| codes.of_values(seen, (role, width), output.as_ref());
    if let Some(grid) = coded.and_then(|((width, codes), seen)| of_values(codes, seen, width)) {
        return Ok(by_rows(grid));
    }
    let observer = match (options.observer, width) {
        (Observer::Auto | Observer::Output, width) => automatic(width.unwrap_or(Width::EIGHT)),
        (chosen, _) => chosen,
    };
    let through = match members {
        [(v, Role::Unsigned)] if matches!(options.observer, Observer::Auto | Observer::Output) => {
            Through::of(module, *v)
        }
        _ => None,
    };
    if let (Some(through), Some(h)) = (through, &joint.histogram) {
        let levels = (1 << width.unwrap_or(Width::EIGHT).bits()) - 1;
        let error = through.errors(h, (0, levels));
        let whole = (f64::from(joint.min), f64::from(joint.max));
        let make = |range| asymmetric(range, levels.into());
        let quant = least_error(whole, make, |q| error(q.scale_at(0), q.zero_point));
        return Ok(Grid { width, ..Grid::whole(role.elem(), quant) });
    }
    let quant = quant(role, &joint, observer, width.unwrap_or(Width::EIGHT));
    let quant = if is_gated(module, members) { gate_steps(&quant) } else { quant };
    let quant = if role == Role::Wide { no_finer(quant, finest(module, members)) } else { quant };
    let grid = |quant: Quant| Grid { width, ..Grid::whole(role.elem(), quant) };
    let refined = output.map(|output| output.refine(grid(quant.clone()), |range| grid(of_range(role, range, width))));
    Ok(by_rows(refined.unwrap_or_else(|| grid(quant))))
}

/// Whether a HardSwish in 16 bits reads one of these sites.
fn is_gated(module: &Module, members: &[Site]) -> bool {
    let reads = |n: &&Node| members.contains(&(n.operands[0], Role::Wide)) && sites::is_fine_hardswish(module, n);
    module.nodes.iter().filter(|n| matches!(n.op, Op::HardSwish {})).any(|n| reads(&n))
}

/// The finest steps that the LayerNorms among the readers of these sites can use.
fn finest(module: &Module, members: &[Site]) -> f64 {
    let scale = |n: &Node| match n.op {
        Op::LayerNorm { epsilon, .. } => {
            let origins = sites::origins(module, n.operands[0]);
            let reads = members.iter().any(|(v, _)| origins.contains(v));
            let channels = module.ty(n.result).shape.last_fixed().filter(|_| reads)?;
            Some(finest_norm_scale(channels, epsilon.0))
        }
        _ => None,
    };
    module.nodes.iter().filter_map(scale).fold(0.0, f64::max)
}

/// The finest steps that the LayerNorms which yield these sites can give.
fn finest_result(module: &Module, members: &[Site]) -> f64 {
    let largest = |v: ValueId| {
        let values = module.const_of(v)?.values::<f32>();
        Some(values.iter().fold(0f64, |most, x| most.max(f64::from(x.abs()))))
    };
    let norms = members.iter().filter_map(|&(v, _)| module.node_of(v)).filter(|n| matches!(n.op, Op::LayerNorm { .. }));
    let steps = norms.filter_map(|n| Some(finest_norm_result(largest(n.operands[1])?, largest(n.operands[2])?)));
    steps.fold(0.0, f64::max)
}

fn no_finer(quant: Quant, scale: f64) -> Quant {
    match quant.scale_at(0) < scale {
        true => Quant::per_tensor(scale, quant.zero_point),
        false => quant,
    }
}

/// Steps in which the interval from -3 to 3, where the gate of HardSwish is open in part, has a power of two of them.
fn gate_steps(quant: &Quant) -> Quant {
    let unit = 6.0 / 32768.0;
    let shift = (quant.scale_at(0) / unit).log2().ceil().clamp(-14.0, 14.0);
    Quant::per_tensor(unit * shift.exp2(), 0)
}

/// The grid of a map of softmax: up to one, or where the steps matter up to a power of two that holds twice what was seen. Over many
/// keys, or where all count alike, none of them comes near to one.
fn map_grid(module: &Module, members: &[Site], calibration: &Calibration, few: Option<(Width, Codes)>) -> Grid {
    let seen = members.first().and_then(|(v, _)| calibration.seen.get(v));
    let coded = few.and_then(|(width, codes)| codes.of_map(seen.and_then(|s| s.histogram.as_ref()), width));
    coded.unwrap_or_else(|| {
        let width = few.map(|(width, _)| width);
        let last = (1 << width.unwrap_or(Width::EIGHT).bits()) - 1;
        let whole = width.is_some() || members.iter().all(|&(v, _)| divides_later(module, v));
        let most = seen
            .filter(|s| !whole && s.max > 0.0)
            .map_or(1.0, |s| (f64::from(s.max).log2().ceil() + 1.0).min(0.0).exp2());
        Grid { width, ..Grid::whole(Role::Unsigned.elem(), Quant::per_tensor(most / f64::from(last), 0)) }
    })
}

/// How ranges of this width are chosen, by measurement on DeiT-tiny (docs/accuracy.md): clipping for the least squared error
/// costs more than it gains until steps are very coarse, for what is clipped are outliers that decide something.
fn automatic(width: Width) -> Observer {
    match width.bits() {
        8.. => Observer::MinMax,
        6 | 7 => Observer::Percentile(99.999),
        _ => Observer::Percentile(99.99),
    }
}

/// What is known of a value; constants are their own calibration.
fn seen(
    module: &Module,
    v: ValueId,
    (calibration, ranges): (&Calibration, &Ranges),
    histogram: bool,
) -> Result<Seen, Diagnostic> {
    let seen = match module.const_of(v) {
        Some(c) => Some(Seen::of(&c.values::<f32>(), histogram)),
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

fn quant(role: Role, seen: &Seen, observer: Observer, width: Width) -> Quant {
    let whole = (f64::from(seen.min), f64::from(seen.max));
    let (levels, half) = ((1 << width.bits()) - 1, (1 << (width.bits() - 1)) - 1);
    match role {
        Role::Wide => symmetric(whole.0.abs().max(whole.1.abs()) * HEADROOM, 32767.0),
        Role::Signed => {
            let make = |(lo, hi): (f64, f64)| symmetric(lo.abs().max(hi.abs()), half.into());
            // -128 is a level of 8 bits, but none that the range reaches
            least(seen, observer, whole, make, (if half == 127 { -128 } else { -half }, half))
        }
        Role::Unsigned => least(seen, observer, whole, |range| asymmetric(range, levels.into()), (0, levels)),
    }
}

/// The levels of bytes of a role over a range.
fn of_range(role: Role, (low, high): (f64, f64), width: Option<Width>) -> Quant {
    let bits = width.unwrap_or(Width::EIGHT).bits();
    match role {
        Role::Unsigned => asymmetric((low, high), f64::from((1 << bits) - 1)),
        _ => symmetric(low.abs().max(high.abs()), f64::from((1 << (bits - 1)) - 1)),
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
        (Observer::Mse, Some(h)) => least_error(whole, make, |q| error(h, q, levels)),
        _ => make(whole),
    }
}

/// Searches the two ends of a range in turn, each among shares of what was seen.
fn least_error(whole: (f64, f64), make: impl Fn((f64, f64)) -> Quant, error: impl Fn(&Quant) -> f64) -> Quant {
    const SHARES: i32 = 40;
    const ROUNDS: usize = 2;
    let mut best = (error(&make(whole)), whole);
    let consider = |range: (f64, f64), best: &mut (f64, (f64, f64))| {
        let e = error(&make(range));
        if e < best.0 {
            *best = (e, range);
        }
    };
    let share = |i: i32| 1.0 - f64::from(i) / f64::from(SHARES);
    (1..SHARES - 1).for_each(|i| consider((whole.0 * share(i), whole.1 * share(i)), &mut best));
    for _ in 0..ROUNDS {
        (0..SHARES - 1).for_each(|i| consider((best.1.0, whole.1 * share(i)), &mut best));
        (0..SHARES - 1).for_each(|i| consider((whole.0 * share(i), best.1.1), &mut best));
    }
    make(best.1)
}

fn error(h: &Histogram, q: &Quant, (low, high): (i32, i32)) -> f64 {
    let (scale, zero) = (q.scale_at(0), f64::from(q.zero_point));
    h.error(|x| scale * (((x / scale).round_ties_even() + zero).clamp(low.into(), high.into()) - zero))
}

/// The finest steps. What a network that was not trained lets die on its way gets that small, and between steps of such magnitudes and usual
/// ones no multiplier has room.
const FINEST: f64 = 1.0 / (1u64 << 40) as f64;

/// One step for a range of zero: everything is zero and any scale will do.
pub(crate) fn step(range: f64, levels: f64) -> f64 {
    let scale = range / levels;
    if scale > 0.0 && scale.is_finite() { scale.max(FINEST) } else { 1.0 }
}

pub(crate) fn symmetric(magnitude: f64, levels: f64) -> Quant {
    Quant::per_tensor(step(magnitude, levels), 0)
}

/// Levels from 0 on over a range widened to hold zero.
fn asymmetric((low, high): (f64, f64), levels: f64) -> Quant {
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = step(high - low, levels);
    let zero_point = (-low / scale).round_ties_even().clamp(0.0, levels) as i32;
    Quant::per_tensor(scale, zero_point)
}
