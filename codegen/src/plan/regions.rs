//! Regions of the plan in steps: all of one share their rows alike, and only the last has a barrier.

use vitc_ir::{Dim, Module};
use vitc_runtime::Extent;

use super::{Planned, extent};

/// The region of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    number: usize,
    rows: Dim,
}

/// The region of a node, if it has one.
pub(super) fn of(module: &Module, node: usize) -> Option<Region> {
    let node = &module.nodes[node];
    Some(Region { number: node.region?, rows: vitc_ir::region::rows(&module.ty(node.result).shape)? })
}

/// Takes the barriers out of regions.
pub(super) fn join(steps: &mut [Planned]) {
    for run in steps.chunk_by_mut(|a, b| a.region.is_some() && a.region == b.region) {
        // A kernel whose items are not rows or equal parts of rows (a map that goes by images, say) keeps its barriers.
        for alike in run.chunk_by_mut(|a, b| items_per_row(a).is_some() && items_per_row(b).is_some()) {
            join_alike(alike);
        }
    }
}

/// Gives steps whose items are parts of the same rows one grain of rows.
fn join_alike(steps: &mut [Planned]) {
    let (per_row, count) = (items_per_row, steps.len());
    let Some(grain) = steps.iter().filter_map(|s| per_row(s).map(|n| s.grain.div_ceil(n))).max() else { return };
    for (i, step) in steps.iter_mut().enumerate() {
        step.grain = per_row(step).map_or(step.grain, |n| grain * n);
        step.barrier = i + 1 == count;
    }
}

/// Items for each row of the step's region, when they are as many for every row.
fn items_per_row(step: &Planned) -> Option<usize> {
    let rows = extent(step.region?.rows);
    let Extent { per_batch, fixed } = step.items;
    let (items, rows) = match (per_batch, fixed, rows.per_batch, rows.fixed) {
        (items, 0, rows, 0) | (0, items, 0, rows) => (items, rows),
        _ => return None,
    };
    (rows > 0 && items > 0 && items.is_multiple_of(rows)).then(|| items / rows)
}
