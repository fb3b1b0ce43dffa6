//! Regions: brings steps that share their rows next to each other and numbers the runs.
//!
//! Greedy over the steps that are ready: as long as one of them may follow the region at hand without waiting, the first
//! such one does; otherwise the first of all begins the next region. So all that a transformer does between two attentions
//! is one region.

use std::collections::BTreeSet;

use vitc_ir::region::Rules;
use vitc_ir::{Def, Dim, Module, Node, ValueId};

/// The module with its nodes in another order and with regions; `views` are the nodes that take no step.
pub(super) fn arrange(module: Module, views: &[bool]) -> Module {
    let regions = Scheduler::new(&module, views).run();
    let mut order = Vec::with_capacity(module.nodes.len());
    let mut numbers = vec![None; module.nodes.len()];
    let mut emit = Emit { module: &module, views, done: vec![false; module.nodes.len()], order: &mut order };
    let mut number = 0;
    for steps in &regions {
        steps.iter().for_each(|&step| emit.node(step));
        if steps.len() > 1 {
            number += 1;
            steps.iter().for_each(|&step| numbers[step] = Some(number));
        }
    }
    (0..module.nodes.len()).for_each(|n| emit.node(n));
    reordered(module, &order, &numbers)
}

/// The module with its nodes in this order, and the values of nodes after all others in the same order.
fn reordered(mut module: Module, order: &[usize], numbers: &[Option<usize>]) -> Module {
    let given = |v: &usize| !matches!(module.values[*v].def, Def::Node(_));
    let results = order.iter().map(|&n| module.nodes[n].result.0 as usize);
    let old: Vec<usize> = (0..module.values.len()).filter(given).chain(results).collect();
    let mut new = vec![ValueId(0); old.len()];
    old.iter().enumerate().for_each(|(i, &v)| new[v] = ValueId(i as u32));
    let renamed = |v: ValueId| new[v.0 as usize];

    let node = |&n: &usize| {
        let Node { op, operands, result, loc, place, .. } = module.nodes[n].clone();
        let operands = operands.into_iter().map(renamed).collect();
        Node { op, operands, result: renamed(result), loc, place, region: numbers[n] }
    };
    module.nodes = order.iter().map(node).collect();
    module.values = old.iter().map(|&v| module.values[v].clone()).collect();
    for (n, node) in module.nodes.iter().enumerate() {
        module.values[node.result.0 as usize].def = Def::Node(n);
    }
    module.inputs.iter_mut().for_each(|input| input.value = renamed(input.value));
    module.outputs.iter_mut().for_each(|output| output.value = renamed(output.value));
    module
}

/// Puts nodes in order, each right after the views that it reads through.
struct Emit<'a> {
    module: &'a Module,
    views: &'a [bool],
    done: Vec<bool>,
    order: &'a mut Vec<usize>,
}

impl Emit<'_> {
    fn node(&mut self, n: usize) {
        if std::mem::replace(&mut self.done[n], true) {
            return;
        }
        for &operand in &self.module.nodes[n].operands {
            self.views_under(operand);
        }
        self.order.push(n);
    }

    fn views_under(&mut self, value: ValueId) {
        if let Def::Node(n) = self.module.values[value.0 as usize].def
            && self.views[n]
        {
            self.node(n);
        }
    }
}

/// A region that steps may still be added to.
struct Open {
    rows: Option<Dim>,
    steps: Vec<usize>,
}

struct Scheduler<'a> {
    rules: Rules<'a>,
    /// For each step, how many operands are not made yet, and which steps read it.
    missing: Vec<usize>,
    readers: Vec<Vec<usize>>,
    ready: BTreeSet<usize>,
}

impl<'a> Scheduler<'a> {
    fn new(module: &'a Module, views: &'a [bool]) -> Self {
        let count = module.nodes.len();
        let rules = Rules::new(module, views);
        let (mut missing, mut readers) = (vec![0; count], vec![Vec::new(); count]);
        let steps = || (0..count).filter(|&n| !views[n]);
        for step in steps() {
            for maker in module.nodes[step].operands.iter().filter_map(|&v| rules.made_by(v)) {
                missing[step] += 1;
                readers[maker].push(step);
            }
        }
        let ready = steps().filter(|&n| missing[n] == 0).collect();
        Scheduler { rules, missing, readers, ready }
    }

    /// The steps of each region, in order.
    fn run(mut self) -> Vec<Vec<usize>> {
        let mut regions = Vec::new();
        while let Some(&first) = self.ready.first() {
            let mut region = Open { rows: self.rules.rows(first), steps: Vec::new() };
            let mut next = Some(first);
            while let Some(step) = next {
                self.ready.remove(&step);
                region.steps.push(step);
                self.make(step);
                next = self.ready.iter().copied().find(|&n| self.may_follow(n, &region));
            }
            regions.push(region.steps);
        }
        regions
    }

    fn may_follow(&self, step: usize, region: &Open) -> bool {
        let inside = |n: usize| region.steps.contains(&n);
        region.rows.is_some_and(|rows| self.rules.admits(step, rows, inside).is_ok())
    }

    fn make(&mut self, step: usize) {
        for reader in std::mem::take(&mut self.readers[step]) {
            self.missing[reader] -= 1;
            if self.missing[reader] == 0 {
                self.ready.insert(reader);
            }
        }
    }
}
