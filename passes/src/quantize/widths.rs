//! Bits of weights and of what products read, by the names of nodes.
//!
//! Integers of fewer than 8 bits are bytes that use only the levels of their width: a grid of `u8` from 0, one of `i8`
//! symmetric about 0, or as many levels of a byte chosen one by one ([`super::codes`]). So every kernel takes them as it takes
//! those of 8 bits.

use std::collections::BTreeMap;

use vitc_ir::{Module, Op, ValueId};

use super::codes::Codes;
use super::sites::{self, Demand, Role, Sites};
use crate::pattern::matches;

/// Bits of an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Width(u32);

impl Width {
    /// A whole byte.
    pub const EIGHT: Width = Width(8);

    /// Bits that weights can have: 2 to 6, or 8.
    pub fn of_weights(bits: u32) -> Option<Width> {
        matches!(bits, 2..=6 | 8).then_some(Width(bits))
    }

    /// Bits that activations can have: 4 to 8.
    pub fn of_activations(bits: u32) -> Option<Width> {
        matches!(bits, 4..=8).then_some(Width(bits))
    }

    /// The number.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The least and the largest weight; the range is divided by the largest. Of 8 bits, -128 is not used, so that products
    /// of two weights are symmetric; of fewer, every level counts.
    pub(crate) fn weight_levels(self) -> (i32, i32) {
        let half = 1 << (self.0 - 1);
        (if self == Width::EIGHT { 1 - half } else { -half }, half - 1)
    }
}

impl Default for Width {
    fn default() -> Width {
        Width::EIGHT
    }
}

/// Rows of a matrix of weights whose steps are one number of scales of their column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Groups {
    /// 16 rows up to 5 bits, where they make 3 decibels less noise for a quarter of a bit; no groups above.
    #[default]
    Auto,
    /// One step for a whole column.
    None,
    /// So many, below 8 bits.
    Rows(usize),
}

impl Groups {
    /// Numbers of rows that can be asked for.
    pub const ROWS: [usize; 4] = [8, 16, 32, 64];

    /// The rows of a group of weights of that width.
    pub fn rows(self, width: Width) -> Option<usize> {
        match self {
            Groups::Auto => (width.bits() <= 5).then_some(16),
            Groups::None => None,
            Groups::Rows(rows) => (width < Width::EIGHT).then_some(rows),
        }
    }

    /// What a weight of that width takes, in bits.
    pub fn bits(self, width: Width) -> f64 {
        f64::from(width.bits()) + self.rows(width).map_or(0.0, |rows| 4.0 / rows as f64)
    }
}

/// A choice by node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ByNode<T> {
    /// Where no pattern matches.
    pub default: T,
    /// By the name of the ONNX node, `*` standing for any characters; the last pattern that matches counts.
    pub of: Vec<(String, T)>,
}

/// Bits by node.
pub type Widths = ByNode<Width>;

impl<T: Copy> ByNode<T> {
    /// The same everywhere.
    pub fn all(default: T) -> ByNode<T> {
        ByNode { default, of: Vec::new() }
    }

    /// The choice for the node of this name.
    pub(crate) fn at(&self, name: &str) -> T {
        self.asked(name).unwrap_or(self.default)
    }

    /// What a pattern asks for the node of this name.
    pub(crate) fn asked(&self, name: &str) -> Option<T> {
        self.of.iter().rev().find(|(pattern, _)| matches(pattern, name)).map(|(_, choice)| *choice)
    }

    /// The first pattern that none of these names matches.
    pub(crate) fn unmatched<'n>(&self, names: impl Iterator<Item = &'n str> + Clone) -> Option<&str> {
        let mut patterns = self.of.iter().map(|(pattern, _)| pattern.as_str());
        patterns.find(|pattern| !names.clone().any(|name| matches(pattern, name)))
    }
}

impl Widths {
    /// Whether anything can have fewer than 8 bits.
    pub(crate) fn any_narrow(&self) -> bool {
        self.of.iter().map(|(_, width)| *width).chain([self.default]).any(|width| width < Width::EIGHT)
    }
}

/// Whether a node multiplies matrices.
pub(crate) fn is_product(op: &Op) -> bool {
    matches!(op, Op::MatMul {} | Op::Conv2d { .. } | Op::LinearAttention { .. })
}

/// The bits of each group of sites that products alone read, where they are fewer than 8: those of the reader that is asked
/// to have most. The image keeps 8, and what the classifier reads unless a pattern names it.
pub(crate) fn of_groups(module: &Module, sites: &Sites, widths: &Widths) -> BTreeMap<usize, Width> {
    let mut groups: BTreeMap<usize, Width> = BTreeMap::new();
    if !widths.any_narrow() {
        return groups;
    }
    let last = last_products(module);
    for (n, node) in module.nodes.iter().enumerate() {
        let name = node.loc.as_deref().unwrap_or_default();
        let width = match is_product(&node.op) {
            true if last.contains(&node.result) => widths.asked(name).unwrap_or(Width::EIGHT),
            true => widths.at(name),
            false => Width::EIGHT,
        };
        for (i, &v) in node.operands.iter().enumerate() {
            let Demand::Integer(role @ (Role::Unsigned | Role::Signed)) = sites::demand(module, n, i) else { continue };
            for group in sites::origins(module, v).into_iter().filter_map(|o| sites.group((o, role))) {
                let known = groups.entry(group).or_insert(width);
                *known = (*known).max(width);
            }
        }
    }
    for group in module.inputs.iter().filter_map(|i| sites.group((i.value, Role::Unsigned))) {
        groups.insert(group, Width::EIGHT);
    }
    groups.retain(|_, width| *width < Width::EIGHT);
    groups
}

/// The codes of each group of sites that products read: those of the first reader.
pub(crate) fn codes_of_groups(module: &Module, sites: &Sites, codes: &ByNode<Codes>) -> BTreeMap<usize, Codes> {
    let mut groups = BTreeMap::new();
    for (n, node) in module.nodes.iter().enumerate().filter(|(_, n)| is_product(&n.op)) {
        let chosen = codes.at(node.loc.as_deref().unwrap_or_default());
        for (i, &v) in node.operands.iter().enumerate() {
            let Demand::Integer(role @ (Role::Unsigned | Role::Signed)) = sites::demand(module, n, i) else { continue };
            for group in sites::origins(module, v).into_iter().filter_map(|o| sites.group((o, role))) {
                groups.entry(group).or_insert(chosen);
            }
        }
    }
    groups
}

/// The bits for the weights of a product. One that reads the image keeps 8 unless a pattern names it, and so does the
/// classifier: nothing behind it averages its errors.
pub(crate) fn of_weights(module: &Module, n: usize, widths: &Widths) -> Width {
    let node = &module.nodes[n];
    let name = node.loc.as_deref().unwrap_or_default();
    let is_image = |&v: &ValueId| sites::is_folded_normalize(module, v) || module.node_of(v).is_none();
    let first = sites::origins(module, node.operands[0]).iter().any(is_image);
    match first || last_products(module).contains(&node.result) {
        true => widths.asked(name).unwrap_or(Width::EIGHT),
        false => widths.at(name),
    }
}

/// The products whose results, moved at most, are the module's outputs.
fn last_products(module: &Module) -> Vec<ValueId> {
    let origins = module.outputs.iter().flat_map(|o| sites::origins(module, o.value));
    origins.filter(|&v| module.node_of(v).is_some_and(|n| is_product(&n.op))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_by_name_and_the_last_one_counts() {
        let of = vec![("*mlp*".to_string(), Width(4)), ("*fc2*".to_string(), Width(3))];
        let widths = Widths { default: Width::EIGHT, of };
        assert_eq!([widths.at("/mlp/fc1"), widths.at("/mlp/fc2"), widths.at("/qkv")], [Width(4), Width(3), Width(8)]);
        assert_eq!(widths.unmatched(["/mlp/fc2"].into_iter()), None);
        assert_eq!(widths.unmatched(["/mlp/fc1", "/qkv"].into_iter()), Some("*fc2*"));
    }

    #[test]
    fn levels_of_weights() {
        let levels = [2, 4, 8].map(|bits| Width::of_weights(bits).unwrap().weight_levels());
        assert_eq!(levels, [(-2, 1), (-8, 7), (-127, 127)]);
        assert_eq!([1, 7, 9].map(Width::of_weights), [None; 3]);
        assert_eq!([3, 9, 16].map(Width::of_activations), [None; 3]);
    }
}
