//! The plan: every materialised value has a place in the arena, and places in use at the same time do not overlap.
//!
//! Sizes are bytes per image; a value without the batch is counted as if every image had its own. A value is in use
//! from its node to the last node that reads it, itself or through views, and what a region uses to the region's end; an
//! output is in use to the end. The result of a node must not overlap its operands.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{Checker, limits};
use crate::graph::{Node, Stage, ValueId};
use crate::op::{Class, Op};
use crate::region::{self, Rules};

impl Checker<'_> {
    /// Checks the places; before stage `plan` there are none.
    pub(super) fn plan(&mut self) {
        let m = self.m;
        if m.stage < Stage::Plan {
            return self.no_plan_yet();
        }
        if m.arena > limits::ARENA {
            self.report("limit-arena", "the module".into(), format!("an arena of {} bytes an image", m.arena));
        }
        let outputs: HashSet<_> = m.outputs.iter().map(|o| o.value).collect();
        for (i, node) in m.nodes.iter().enumerate() {
            let materialised = matches!(node.op.class(), Class::Int | Class::Fused) && !outputs.contains(&node.result);
            self.place(i, materialised);
        }
        let views = self.views();
        self.regions(&views);
        self.overlaps(&views);
    }

    fn no_plan_yet(&mut self) {
        let m = self.m;
        if m.arena != 0 {
            self.report("place-early", "the module".into(), format!("an arena in stage `{}`", m.stage.word()));
        }
        for (i, node) in m.nodes.iter().enumerate() {
            if node.place.is_some() {
                self.at_node(i, "place-early", format!("a place in stage `{}`", m.stage.word()));
            }
            if node.region.is_some() {
                self.at_node(i, "region-early", format!("a region in stage `{}`", m.stage.word()));
            }
        }
    }

    /// Bytes of a node's result per image.
    fn size(&self, node: usize) -> usize {
        self.m.ty(self.m.nodes[node].result).bytes().map_or(usize::MAX, |d| d.size)
    }

    fn place(&mut self, node: usize, materialised: bool) {
        let (arena, size) = (self.m.arena, self.size(node));
        match self.m.nodes[node].place {
            Some(place) if place.checked_add(size).is_none_or(|end| end > arena) => {
                self.at_node(node, "place-range", format!("{size} bytes at {place} leave the arena of {arena} bytes"));
            }
            None if materialised => self.at_node(node, "no-place", "the result has no place in the arena"),
            _ => {}
        }
    }

    /// Checks that a region is one run of steps (views may lie between) that keep to their own rows.
    fn regions(&mut self, views: &[bool]) {
        let m = self.m;
        let rules = Rules::new(m, views);
        let mut seen = HashSet::new();
        let mut open: Option<(usize, usize)> = None;
        for (i, node) in m.nodes.iter().enumerate().filter(|(i, n)| !views[*i] || n.region.is_some()) {
            let Some(region) = node.region else {
                open = None;
                continue;
            };
            let first = open.filter(|(number, _)| *number == region).map_or(i, |(_, first)| first);
            open = Some((region, first));
            if first == i && !seen.insert(region) {
                self.at_node(i, "region", format!("region {region} has ended before"));
            }
            let fault = match rules.rows(first) {
                None => Err("does not compute rows one by one".to_string()),
                Some(rows) => rules.admits(i, rows, |step| (first..i).contains(&step)),
            };
            if let Err(fault) = fault {
                self.at_node(i, "region", format!("{fault}, in region {region}"));
            }
        }
    }

    fn overlaps(&mut self, views: &[bool]) {
        let m = self.m;
        let ends = region::ends(m);
        let last_use = self.last_use(views, &ends);
        let mut live = Live::default();
        for (i, node) in m.nodes.iter().enumerate().filter(|(i, _)| !views[*i]) {
            live.expire(i);
            let Some(place) = node.place else { continue };
            let end = place.saturating_add(self.size(i));
            match live.overlapping(place, end) {
                Some(other) => {
                    let message = format!("{place}..{end} overlaps the place of %{other}, which is still in use");
                    self.at_node(i, "place-overlap", message);
                }
                None => live.insert(place, end, i, last_use[node.result.0 as usize].max(ends[i])),
            }
        }
    }

    /// For each node, whether its result is read where its operands lie: movement or a door without a place, or a
    /// reshape that stays in its operand's place.
    fn views(&self) -> Vec<bool> {
        let m = self.m;
        let mut place_of: Vec<Option<usize>> = vec![None; m.values.len()];
        let mut is_view = |node: &Node| {
            let under = node.operands.first().and_then(|o| place_of[o.0 as usize]);
            let reshape = matches!(node.op, Op::Reshape { .. });
            let unplaced = node.place.is_none() && matches!(node.op.class(), Class::Move | Class::Quant);
            place_of[node.result.0 as usize] = node.place.or(under.filter(|_| reshape));
            unplaced || (reshape && under.is_some() && node.place == under)
        };
        m.nodes.iter().map(&mut is_view).collect()
    }

    /// For each value, the last node that reads its bytes; beyond all nodes for outputs.
    fn last_use(&self, views: &[bool], ends: &[usize]) -> Vec<usize> {
        let m = self.m;
        let mut last = vec![0; m.values.len()];
        let index = |v: ValueId| v.0 as usize;
        m.outputs.iter().for_each(|o| last[index(o.value)] = m.nodes.len());
        for (i, node) in m.nodes.iter().enumerate().rev() {
            let until = if views[i] { last[index(node.result)].max(i) } else { ends[i] };
            for &operand in &node.operands {
                last[index(operand)] = last[index(operand)].max(until);
            }
        }
        last
    }
}

/// Places in use, none overlapping another.
#[derive(Default)]
struct Live {
    /// By start: end and node.
    places: BTreeMap<usize, (usize, usize)>,
    /// Last use and start.
    ends: BTreeSet<(usize, usize)>,
}

impl Live {
    /// Forgets what no node from `node` on reads.
    fn expire(&mut self, node: usize) {
        while let Some(&(last, start)) = self.ends.first()
            && last < node
        {
            self.ends.pop_first();
            self.places.remove(&start);
        }
    }

    /// A node whose place overlaps `start..end`.
    fn overlapping(&self, start: usize, end: usize) -> Option<usize> {
        let (_, &(other_end, node)) = self.places.range(..end).next_back()?;
        (other_end > start && start < end).then_some(node)
    }

    fn insert(&mut self, start: usize, end: usize, node: usize, last: usize) {
        if start < end {
            self.places.insert(start, (end, node));
            self.ends.insert((last, start));
        }
    }
}
