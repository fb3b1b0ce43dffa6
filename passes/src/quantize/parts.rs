//! Where a residual stream changes its scale.
//!
//! What is connected by additions shares a scale, so that sums are sums of integers. But streams grow: in deep networks by orders of
//! magnitude from block to block (Swin v2, arXiv:2111.09883, section 3.2), and a step that holds the last sum leaves nothing of the first.
//! So where a sum would coarsen the steps of what others read as well, it starts a scale of its own, and the integers are requantized
//! on their way into it.

use std::collections::{BTreeMap, BTreeSet};

use vitc_ir::{Class, Module, Node, Op, ValueId};

use super::observe::Calibration;
use super::sites::{Demand, Role, Site, Sites, demand, origins};

/// What a scale may hold, as a multiple of the least that is read on it: of 32767 steps some 400 are left for the peak of that.
const MOST: f32 = 64.0;

/// The sites of a module, whose sums share scales as far as the ranges seen allow. A model that came quantized keeps the scales it has.
pub(crate) fn of(module: &Module, calibration: &Calibration) -> Sites {
    if super::is_quantized(module) {
        return Sites::of(module);
    }
    let mut sites = Sites::without_sums(module);
    for node in Sites::sums(module) {
        sites.index_of((node.result, Role::Wide));
    }
    let mut parts = Parts { sites, spans: BTreeMap::new(), module, calibration };
    let readers = Readers::of(module);
    for site in parts.sites.all().filter(|&(_, role)| role == Role::Wide).collect::<Vec<_>>() {
        parts.widen(site, readers.computing.contains(&site.0));
    }
    for node in Sites::sums(module) {
        for operand in &node.operands {
            for origin in origins(module, *operand) {
                parts.join(node, origin, readers.plain.contains(&node.result));
            }
        }
    }
    parts.sites
}

/// Who reads what, movement seen through.
struct Readers {
    /// Values that are read by more than sums.
    computing: BTreeSet<ValueId>,
    /// Values that somebody wants as they come.
    plain: BTreeSet<ValueId>,
}

impl Readers {
    fn of(module: &Module) -> Readers {
        let mut readers = Readers { computing: BTreeSet::new(), plain: BTreeSet::new() };
        let nodes = module.nodes.iter().enumerate().filter(|(_, node)| node.op.class() != Class::Move);
        for (n, i, v) in nodes.flat_map(|(n, node)| node.operands.iter().enumerate().map(move |(i, &v)| (n, i, v))) {
            let plain = !matches!(demand(module, n, i), Demand::Integer(_));
            let computing = !matches!(module.nodes[n].op, Op::Add {} | Op::Sub {});
            for origin in origins(module, v) {
                computing.then(|| readers.computing.insert(origin));
                plain.then(|| readers.plain.insert(origin));
            }
        }
        readers.plain.extend(module.outputs.iter().flat_map(|o| origins(module, o.value)));
        readers
    }
}

/// Peaks of the members of a group.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// The least of those that are read by more than sums.
    least: f32,
    most: f32,
}

struct Parts<'a> {
    sites: Sites,
    /// By group.
    spans: BTreeMap<usize, Span>,
    module: &'a Module,
    calibration: &'a Calibration,
}

impl Parts<'_> {
    /// The largest magnitude of a value, unless it is nothing.
    fn peak(&self, v: ValueId) -> Option<f32> {
        let of = |low: f32, high: f32| Some(low.abs().max(high.abs())).filter(|&peak| peak > 0.0 && peak.is_finite());
        match self.module.const_of(v) {
            Some(c) => c.values::<f32>().iter().fold(None, |most, &x| of(x, most.unwrap_or(0.0)).or(most)),
            None => self.calibration.range(v).and_then(|(low, high)| of(low, high)),
        }
    }

    fn widen(&mut self, site: Site, computing: bool) {
        let (Some(group), Some(peak)) = (self.sites.group(site), self.peak(site.0)) else { return };
        let least = if computing { peak } else { f32::INFINITY };
        self.spans
            .entry(group)
            .and_modify(|span| *span = Span { least: span.least.min(least), most: span.most.max(peak) })
            .or_insert(Span { least, most: peak });
    }

    /// Puts a sum and what it adds on one scale, unless that is too coarse for somebody.
    fn join(&mut self, sum: &Node, origin: ValueId, bound: bool) {
        let (sum, part) = ((sum.result, Role::Wide), (origin, Role::Wide));
        let spans = [sum, part].map(|site| self.sites.group(site).and_then(|g| self.spans.get(&g).copied()));
        let [Some(a), Some(b)] = spans else { return self.sites.join(sum, part) };
        let joint = Span { least: a.least.min(b.least), most: a.most.max(b.most) };
        // what is larger than the sum would be cut on its scale
        let fits = self.peak(origin).is_some_and(|peak| peak <= a.most);
        if joint.most > joint.least * MOST && fits && !bound && self.sites.group(sum) != self.sites.group(part) {
            return;
        }
        self.sites.join(sum, part);
        if let Some(group) = self.sites.group(sum) {
            self.spans.insert(group, joint);
        }
    }
}
