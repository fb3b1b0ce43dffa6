//! Queries and keys balanced: `q k^T` does not change when a channel of q is multiplied by what the channel of k that it meets
//! is divided by, so both get the same range, channel by channel.

use std::collections::BTreeMap;

use vitc_ir::eval::Tensor;
use vitc_ir::{Module, Op, ValueId};

use super::channels::Channels;
use super::edit::Product;
use super::flow;
use super::noise::Levels;

/// The products that yield q and k, and for every channel of q the one of k that it meets.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) query: usize,
    pub(crate) key: usize,
    /// The product in which they meet.
    pub(crate) meeting: usize,
    meets: Vec<usize>,
}

/// Products with weights that meet in a product, channel by channel one to one.
pub(crate) fn subjects(module: &Module) -> Vec<Subject> {
    let makers: Vec<usize> = (0..module.nodes.len())
        .filter(|&n| matches!(module.nodes[n].op, Op::MatMul {}) && Product::of(module, n).is_some())
        .collect();
    let subject = |&query: &usize| {
        let partner = flow::partner(module, module.nodes[query].result)?;
        let keys = makers.iter().filter(|&&n| n < partner.node);
        keys.rev().find_map(|&key| {
            let right = flow::arrives(module, module.nodes[key].result, partner.node)?;
            let meets = pairs(&partner.tags, &right, channels(module, query)?, channels(module, key)?)?;
            Some(Subject { query, key, meeting: partner.node, meets })
        })
    };
    makers.iter().filter_map(subject).collect()
}

fn channels(module: &Module, node: usize) -> Option<usize> {
    module.ty(module.nodes[node].result).shape.last_fixed()
}

/// For every channel of the left side, [.., T, D], the channel of the right side, [.., D, U], that it meets.
fn pairs(left: &Tensor, right: &Tensor, queries: usize, keys: usize) -> Option<Vec<usize>> {
    let rank = left.shape.len();
    if queries != keys || rank < 2 || left.shape[..rank - 2] != right.shape[..right.shape.len().checked_sub(2)?] {
        return None; // keys that several heads share would have to please them all
    }
    let (d, rows, columns) = (left.shape[rank - 1], left.shape[rank - 2], *right.shape.last()?);
    let mut found: BTreeMap<usize, usize> = BTreeMap::new();
    let matrices = left.as_f32()?.chunks_exact(rows * d).zip(right.as_f32()?.chunks_exact(d * columns));
    for (l, r) in matrices {
        for i in 0..d {
            let (q, k) = (l[i], r[i * columns]);
            let same = l.chunks_exact(d).all(|row| row[i] == q) && r[i * columns..][..columns].iter().all(|&x| x == k);
            let known = *found.entry(q as usize).or_insert(k as usize);
            if !same || known != k as usize {
                return None;
            }
        }
    }
    let meets: Vec<usize> = found.values().copied().collect();
    let mut once = meets.clone();
    once.sort_unstable();
    once.dedup();
    (meets.len() == queries && once.len() == keys).then_some(meets)
}

impl Subject {
    /// The values whose channels must be known.
    pub(crate) fn seen(&self, module: &Module) -> [ValueId; 2] {
        [self.query, self.key].map(|n| module.nodes[n].result)
    }

    /// Rewrites both products; returns the predicted errors of a score before and after.
    pub(crate) fn apply(&self, module: &mut Module, seen: [&Channels; 2], levels: Levels) -> Option<(f64, f64)> {
        let [q, k] = seen;
        let reach = |c: &Channels, i: usize| c.max[i].max(-c.min[i]);
        let factor = |(i, &j): (usize, &usize)| {
            let f = (reach(k, j) / reach(q, i)).sqrt();
            if f.is_finite() && f > 0.0 { f } else { 1.0 }
        };
        let factors: Vec<f64> = self.meets.iter().enumerate().map(factor).collect();
        let before = self.noise(seen, &vec![1.0; factors.len()], levels);
        let after = self.noise(seen, &factors, levels);
        if after >= before {
            return None;
        }
        let (mut query, mut key) = (Product::of(module, self.query)?, Product::of(module, self.key)?);
        for (i, &f) in factors.iter().enumerate() {
            query.scale_column(i, f);
            key.scale_column(self.meets[i], 1.0 / f);
        }
        query.store(module);
        key.store(module);
        Some((before, after))
    }

    /// The predicted squared error of a score: the error of each side times the other side.
    fn noise(&self, [q, k]: [&Channels; 2], factors: &[f64], levels: Levels) -> f64 {
        let (mut low, mut high, mut key, mut q_power, mut k_power) = (0f64, 0f64, 0f64, 0.0, 0.0);
        for (i, (&j, f)) in self.meets.iter().zip(factors).enumerate() {
            (low, high) = (low.min(q.min[i] * f), high.max(q.max[i] * f));
            key = key.max(k.max[j].max(-k.min[j]) / f);
            q_power += q.power[i] * f * f;
            k_power += k.power[j] / (f * f);
        }
        let channels = factors.len().max(1) as f64;
        let q_error = levels.activation_error(high - low, q_power / channels);
        let k_error = levels.activation_error(2.0 * key, k_power / channels);
        q_error * k_power + k_error * q_power
    }
}
