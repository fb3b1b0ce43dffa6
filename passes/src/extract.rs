//! DAG-aware extraction: the cheapest set of e-nodes that computes the roots, a shared class counted once.
//!
//! Greedy over cost sets (as in the extraction gym's `greedy-dag`): the cost of a class is the sum over the distinct classes
//! that its choice needs. Ties go to the smaller term, so the result does not depend on any order of iteration.

use std::collections::HashMap;

use egg::{Analysis, EGraph, Id, Language};

/// The best choice known for one class.
struct Best<'a, L> {
    total: u64,
    own: u64,
    term: &'a L,
    /// The classes needed, this one included, as a bit set.
    needs: Vec<u64>,
}

struct Search<'a, L: Language, N: Analysis<L>, C> {
    egraph: &'a EGraph<L, N>,
    /// The cost of a term in its class, without what it reads.
    cost: C,
    classes: Vec<Id>,
    index: HashMap<Id, usize>,
    best: Vec<Option<Best<'a, L>>>,
}

/// The chosen term of every class that the roots need, `None` when a root cannot be computed at all. `cost` is that of a term
/// of a class without what it reads.
pub(crate) fn extract<L: Language, N: Analysis<L>>(
    egraph: &EGraph<L, N>,
    roots: &[Id],
    cost: impl Fn(Id, &L) -> u64,
) -> Option<HashMap<Id, L>> {
    let mut classes: Vec<Id> = egraph.classes().map(|c| c.id).collect();
    classes.sort_unstable();
    let index = classes.iter().enumerate().map(|(i, &c)| (c, i)).collect();
    let best = classes.iter().map(|_| None).collect();
    let mut search = Search { egraph, cost, classes, index, best };
    while search.sweep() {}
    search.collect(roots)
}

impl<'a, L: Language, N: Analysis<L>, C: Fn(Id, &L) -> u64> Search<'a, L, N, C> {
    fn sweep(&mut self) -> bool {
        let mut changed = false;
        for class in 0..self.classes.len() {
            let egraph = self.egraph;
            for term in &egraph[self.classes[class]].nodes {
                changed |= self.improve(class, term);
            }
        }
        changed
    }

    fn class_of(&self, id: Id) -> usize {
        self.index[&self.egraph.find(id)]
    }

    fn improve(&mut self, class: usize, term: &'a L) -> bool {
        let mut needs = vec![0u64; self.classes.len().div_ceil(64)];
        for child in term.children() {
            let Some(found) = &self.best[self.class_of(*child)] else { return false };
            if has(&found.needs, class) {
                return false; // a cycle
            }
            needs.iter_mut().zip(&found.needs).for_each(|(n, f)| *n |= f);
        }
        let own = (self.cost)(self.classes[class], term);
        let shared = self.cost_of(&needs);
        needs[class / 64] |= 1 << (class % 64);
        let total = shared.saturating_add(own);
        let better = self.best[class].as_ref().is_none_or(|b| (total, term) < (b.total, b.term));
        if better {
            self.best[class] = Some(Best { total, own, term, needs });
        }
        better
    }

    fn cost_of(&self, set: &[u64]) -> u64 {
        let mut total = 0u64;
        for (w, &word) in set.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                let class = w * 64 + rest.trailing_zeros() as usize;
                total = total.saturating_add(self.best[class].as_ref().map_or(0, |b| b.own));
                rest &= rest - 1;
            }
        }
        total
    }

    fn collect(&self, roots: &[Id]) -> Option<HashMap<Id, L>> {
        let mut chosen = HashMap::new();
        let mut open: Vec<usize> = roots.iter().map(|&r| self.class_of(r)).collect();
        while let Some(class) = open.pop() {
            let best = self.best[class].as_ref()?;
            if chosen.insert(self.classes[class], best.term.clone()).is_none() {
                open.extend(best.term.children().iter().map(|&c| self.class_of(c)));
            }
        }
        Some(chosen)
    }
}

fn has(set: &[u64], class: usize) -> bool {
    set[class / 64] >> (class % 64) & 1 == 1
}
