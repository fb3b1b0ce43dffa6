//! Channels of the values of attention, and of what else lies between two products without a function between them, brought
//! to one range: the first product's columns are divided, the second one's rows multiplied. Attention averages rows, so a
//! factor of a channel passes through it.

use vitc_ir::{Module, Op, ValueId};

use super::channels::Channels;
use super::edit::Product;
use super::flow::{self, Reader};
use super::noise::{self, Change, Levels};
use super::smooth::{factors, largest_weights};

/// How much of the range goes to the weights behind.
const ALPHAS: [f64; 4] = [0.35, 0.5, 0.65, 0.8];

/// A product and the one that reads it.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) node: usize,
    reader: Reader,
}

/// Products whose channels go to one other product, through movement and averages of rows only.
pub(crate) fn subjects(module: &Module) -> Vec<Subject> {
    let products = (0..module.nodes.len()).filter(|&n| matches!(module.nodes[n].op, Op::MatMul {}));
    let subject = |node: usize| {
        Product::of(module, node)?;
        let [reader] = <[Reader; 1]>::try_from(flow::readers(module, module.nodes[node].result)?).ok()?;
        Some(Subject { node, reader })
    };
    products.filter_map(subject).collect()
}

impl Subject {
    /// A product that reads the channels: its widths are those the factors are chosen for.
    pub(crate) fn reader(&self) -> usize {
        self.reader.node
    }

    /// The value whose channels must be known: what the second product reads.
    pub(crate) fn seen(&self, module: &Module) -> ValueId {
        module.nodes[self.reader.node].operands[0]
    }

    /// Rewrites both products; returns the predicted errors of the second, before and after.
    pub(crate) fn apply(&self, module: &mut Module, seen: &Channels, levels: Levels) -> Option<(f64, f64)> {
        let (mut first, mut second) = (Product::of(module, self.node)?, Product::of(module, self.reader.node)?);
        let map = &self.reader.channel;
        let seen = seen.gathered(map, first.columns);
        let view = [(&second, map.as_slice())];
        let weights = largest_weights(&view, first.columns);
        let reach: Vec<f64> = seen.min.iter().zip(&seen.max).map(|(lo, hi)| hi.max(-lo)).collect();
        let centre = vec![0.0; first.columns];
        let candidates =
            ALPHAS.iter().map(|&a| Change { factor: factors(&reach, &weights, a), centre: centre.clone() });
        let before = noise::of(&view, &seen, &Change::none(first.columns), levels);
        let (change, after) = noise::least(candidates, &view, &seen, levels)?;
        if after >= before {
            return None;
        }
        (0..first.columns).for_each(|n| first.scale_column(n, 1.0 / change.factor[n]));
        map.iter().enumerate().for_each(|(k, &c)| second.scale_row(k, change.factor[c]));
        first.store(module);
        second.store(module);
        Some((before, after))
    }
}
