//! What every quantized activation became, for reports.

use std::collections::BTreeMap;

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Class, Def, Elem, Module, Op, Quant, Shape, TensorType, ValueId};

use super::given::Grid;
use super::insert::Inserted;
use super::rows;
use super::sites::{Site, Sites};

/// An activation in a role, before and after quantization.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The float value of the module that was quantized.
    pub value: ValueId,
    /// The word of its role: `unsigned`, `signed` or `wide`.
    pub role: &'static str,
    /// Its integers as real numbers in the quantized module: the result of a `dequantize`, or of a `round_rows`.
    pub simulated: ValueId,
    /// Element type of the integers.
    pub elem: Elem,
    /// What they stand for; in the largest row, where rows have scales of their own.
    pub quant: Quant,
    /// The least and the largest of them that is used.
    pub levels: (i64, i64),
    /// All of them in order, where they do not follow one another.
    pub codes: Option<Vec<i64>>,
    /// How rows are rounded, where each has a scale of its own.
    pub rows: Option<RoundedRows>,
}

impl Placed {
    /// Bits that tell its levels apart.
    pub fn bits(&self) -> u32 {
        let apart = (self.levels.1 - self.levels.0).max(0) as u64;
        let last = self.codes.as_ref().map_or(apart, |codes| codes.len().saturating_sub(1) as u64);
        u64::BITS - last.leading_zeros()
    }

    /// The level next to an integer.
    pub fn nearest(&self, q: f64) -> f64 {
        let within = q.clamp(self.levels.0 as f64, self.levels.1 as f64);
        let codes = self.codes.iter().flatten().map(|&level| level as f64);
        codes.min_by(|a, b| (a - within).abs().total_cmp(&(b - within).abs())).unwrap_or(within)
    }
}

/// Rows with scales of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundedRows {
    op: Op,
    columns: usize,
}

impl RoundedRows {
    /// Values as their rows' grids have them.
    pub fn round(&self, values: &[f32]) -> Option<Vec<f32>> {
        let dims = [values.len() / self.columns, self.columns];
        let ty = TensorType::f32(Shape::fixed(&dims));
        let x = Tensor::f32(&dims, values.to_vec());
        let y = eval::eval_op(&self.op, &[&x], &ty, &[&ty], &Default::default()).ok()?;
        y.as_f32().map(<[f32]>::to_vec)
    }
}

/// Every activation that has a grid, in the order of the float module's values: neither constants nor what movement made.
pub(crate) fn all(module: &Module, sites: &Sites, grids: &BTreeMap<usize, Grid>, inserted: &Inserted) -> Vec<Placed> {
    let originates = |v: ValueId| match module.values[v.0 as usize].def {
        Def::Input(_) => true,
        Def::Const(_) => false,
        Def::Node(n) => module.nodes[n].op.class() != Class::Move,
    };
    let placed = |(&(value, role), &integers): (&Site, &ValueId)| {
        let grid = grids.get(&sites.group((value, role))?)?;
        // where movement lies between a value and its rounded rows, the rows are not its own
        let rounded = grid.rows.as_ref().and_then(|rows| Some((rows, *inserted.by_rows.get(&integers)?)));
        let (simulated, rows) = match rounded {
            Some((rows, simulated)) => {
                let columns = module.ty(value).shape.last_fixed()?;
                (simulated, Some(RoundedRows { op: rows.op(grid), columns }))
            }
            None => (integers, None),
        };
        let Grid { elem, quant, .. } = rounded.map_or_else(|| grid.clone(), |(rows, _)| rows::of_largest(grid, rows));
        let levels = rounded.map_or_else(|| grid.levels(), |(rows, _)| rows.codes());
        let fitted = rounded.map_or(&grid.levels, |(rows, _)| &rows.fitted);
        let codes = fitted.as_ref().map(|levels| levels.all().to_vec());
        Some(Placed { value, role: role.word(), simulated, elem, quant, levels, codes, rows })
    };
    inserted.integer.iter().filter(|((v, _), _)| originates(*v)).filter_map(placed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(levels: (i64, i64), codes: Option<Vec<i64>>) -> Placed {
        let (value, simulated, quant) = (ValueId(0), ValueId(0), Quant::per_tensor(0.5, 2));
        Placed { value, role: "unsigned", simulated, elem: Elem::U8, quant, levels, codes, rows: None }
    }

    #[test]
    fn bits_of_levels() {
        let cases = [((0, 255), 8), ((-128, 127), 8), ((-7, 7), 4), ((0, 15), 4), ((-32768, 32767), 16), ((0, 0), 0)];
        cases.into_iter().for_each(|(levels, bits)| assert_eq!(site(levels, None).bits(), bits, "{levels:?}"));
        assert_eq!(site((0, 255), Some(vec![0, 1, 4, 16, 255])).bits(), 3);
    }

    #[test]
    fn what_lies_between_codes_goes_to_the_nearest() {
        let coded = site((0, 255), Some(vec![0, 8, 255]));
        assert_eq!([-3.0, 3.0, 5.0, 200.0, 900.0].map(|q| coded.nearest(q)), [0.0, 0.0, 8.0, 255.0, 255.0]);
        assert_eq!(site((0, 15), None).nearest(40.0), 15.0);
    }
}
