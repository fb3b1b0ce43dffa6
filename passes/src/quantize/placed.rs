//! What every quantized activation became, for reports.

use std::collections::BTreeMap;

use vitc_ir::{Class, Def, Elem, Module, Quant, ValueId};

use super::given::Grid;
use super::sites::{Site, Sites};

/// An activation in a role, before and after quantization.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The float value of the module that was quantized.
    pub value: ValueId,
    /// The word of its role: `unsigned`, `signed` or `wide`.
    pub role: &'static str,
    /// Its integers as real numbers in the quantized module: the result of a `dequantize`.
    pub simulated: ValueId,
    /// Element type of the integers.
    pub elem: Elem,
    /// What they stand for.
    pub quant: Quant,
    /// The least and the largest of them that is used.
    pub levels: (i64, i64),
}

/// Every activation that has a grid, in the order of the float module's values: neither constants nor what movement made.
pub(crate) fn all(
    module: &Module,
    sites: &Sites,
    grids: &BTreeMap<usize, Grid>,
    integer: &BTreeMap<Site, ValueId>,
) -> Vec<Placed> {
    let originates = |v: ValueId| match module.values[v.0 as usize].def {
        Def::Input(_) => true,
        Def::Const(_) => false,
        Def::Node(n) => module.nodes[n].op.class() != Class::Move,
    };
    let placed = |(&(value, role), &simulated): (&Site, &ValueId)| {
        let grid = grids.get(&sites.group((value, role))?)?;
        let (elem, quant) = (grid.elem, grid.quant.clone());
        Some(Placed { value, role: role.word(), simulated, elem, quant, levels: grid.levels() })
    };
    integer.iter().filter(|((v, _), _)| originates(*v)).filter_map(placed).collect()
}
