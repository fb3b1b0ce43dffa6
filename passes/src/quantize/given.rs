//! What a model that came quantized has decided: the grids of activations, and its weights as integers.
//!
//! An edge with a `quantize` and `dequantize` of the model's own keeps its grid wherever an integer op can read it; where
//! ours is another (16 bits for sums and LayerNorm), the integers are requantized, which to 16 bits loses nothing.

use vitc_ir::{Class, Const, Elem, Module, Op, Quant, ValueId};

use super::codes::Levels;
use super::rows::RowGrid;
use super::sites::{self, Demand, Role, Site};
use super::widths::Width;
use super::{nearest, range};

/// Biases at the accumulator's scale stay below 2^29, so that no accumulator leaves 32 bits because of its bias.
pub(crate) const LARGEST_BIAS: f64 = (1 << 29) as f64;

/// Integers of an activation and what they stand for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Grid {
    pub(crate) elem: Elem,
    pub(crate) quant: Quant,
    /// Fewer than 8 where only some levels of a byte are used.
    pub(crate) width: Option<Width>,
    /// Those levels, where they are not the first ones in a row.
    pub(crate) levels: Option<Levels>,
    /// Where a product reads each row in steps of its own, how; these are then the integers that it is rounded from.
    pub(crate) rows: Option<RowGrid>,
}

impl Grid {
    /// All levels of an element type.
    pub(crate) fn whole(elem: Elem, quant: Quant) -> Grid {
        Grid { elem, quant, width: None, levels: None, rows: None }
    }

    /// The first levels of a byte, as many as a width has.
    pub(crate) fn narrow(elem: Elem, quant: Quant, width: Width) -> Grid {
        Grid { width: Some(width), ..Grid::whole(elem, quant) }
    }

    /// The least and the largest integer.
    pub(crate) fn levels(&self) -> (i64, i64) {
        if let Some(levels) = &self.levels {
            return levels.ends();
        }
        match (self.width, self.elem) {
            (Some(width), Elem::U8) => (0, (1 << width.bits()) - 1),
            (Some(width), _) => (1 - (1 << (width.bits() - 1)), (1 << (width.bits() - 1)) - 1),
            (None, elem) => elem.range().unwrap_or((0, 0)),
        }
    }

    /// The real that an integer stands for.
    pub(crate) fn real(&self, q: i64) -> f64 {
        self.quant.scale_at(0) * (q - i64::from(self.quant.zero_point)) as f64
    }

    /// Reals as integers of a byte, its zero point taken off.
    pub(crate) fn integers(&self, values: &[f32]) -> Vec<f32> {
        let (zero, (low, high)) = (self.quant.zero_point, self.levels());
        let (least, most) = ((low as i32 - zero) as f32, (high as i32 - zero) as f32);
        let scale = self.quant.scale_at(0) as f32;
        let round = |x: &f32| nearest((x / scale).clamp(least, most));
        let Some(levels) = &self.levels else { return values.iter().map(round).collect() };
        let table: Vec<f32> = (low..=high).map(|q| (levels.nearest(q) - i64::from(zero)) as f32).collect();
        values.iter().map(|x| table[(round(x) - least) as usize]).collect()
    }

    /// Whether it is of bytes.
    pub(crate) fn is_narrow(&self) -> bool {
        matches!(self.elem, Elem::U8 | Elem::I8)
    }

    /// The least and the largest real on it.
    fn range(&self) -> Option<(f64, f64)> {
        let (low, high) = self.elem.range()?;
        Some((self.real(low), self.real(high)))
    }

    /// A grid of 16 bits around zero that reaches as far; a zero point far from the middle costs products half of their room.
    fn centred(&self) -> Option<Grid> {
        let (low, high) = self.range()?;
        Some(Grid::whole(Elem::I16, range::symmetric(low.abs().max(high.abs()), 32767.0)))
    }

    /// The grid in a role: itself, or one of 16 bits that holds each of its reals exactly.
    fn in_role(&self, role: Role) -> Option<Grid> {
        match role {
            Role::Unsigned | Role::Signed if self.is_narrow() => Some(self.clone()),
            Role::Wide if self.is_narrow() => {
                // |q - zero point| <= 255, and 255 * 2^7 < 2^15; LayerNorm and softmax like fine steps
                let fine = self.quant.scale_at(0) / 128.0;
                Some(Grid::whole(Elem::I16, Quant::per_tensor(fine, 0)))
            }
            Role::Wide if self.elem == Elem::I16 && self.quant.zero_point == 0 => Some(self.clone()),
            _ => None,
        }
    }
}

/// The grid of a value that the model dequantizes, or of an input that it does nothing else with than quantize it.
pub(crate) fn grid_of(module: &Module, v: ValueId) -> Option<Grid> {
    match module.node_of(v) {
        Some(node) if node.op == (Op::Dequantize {}) => {
            let ty = module.ty(node.operands[0]);
            let quant = ty.quant.clone().filter(|q| q.axis.is_none())?;
            Some(Grid::whole(ty.elem, quant))
        }
        Some(_) => None,
        None => only_grid(module, v),
    }
}

/// Whether the model has a value on a grid of bytes.
pub(crate) fn is_on_bytes(module: &Module, v: ValueId) -> bool {
    module.node_of(v).is_some() && grid_of(module, v).is_some_and(|g| g.is_narrow())
}

/// Whether the model does nothing with a value but bring it to grids of bytes.
pub(crate) fn is_read_as_bytes(module: &Module, v: ValueId) -> bool {
    reading_grids(module, v).is_some_and(|grids| !grids.is_empty() && grids.iter().all(Grid::is_narrow))
}

/// The one grid that all users of a value, beyond movement, quantize it to.
fn only_grid(module: &Module, v: ValueId) -> Option<Grid> {
    let mut grids = reading_grids(module, v)?.into_iter();
    let first = grids.next()?;
    grids.all(|g| g == first).then_some(first)
}

/// The grids that all users of a value, beyond movement, quantize it to; `None` when one does something else.
fn reading_grids(module: &Module, v: ValueId) -> Option<Vec<Grid>> {
    let (mut open, mut grids) = (vec![v], Vec::new());
    while let Some(v) = open.pop() {
        if module.outputs.iter().any(|o| o.value == v) {
            return None;
        }
        for user in module.nodes.iter().filter(|n| n.operands.contains(&v)) {
            match user.op {
                Op::Quantize { to } => {
                    let quant = module.ty(user.result).quant.clone().filter(|q| q.axis.is_none())?;
                    grids.push(Grid::whole(to, quant));
                }
                _ if user.op.class() == Class::Move => open.push(user.result),
                _ => return None,
            }
        }
    }
    Some(grids)
}

/// The grid of a group of sites, when all have the same one of the model and it does in their role.
pub(crate) fn grid_of_group(module: &Module, members: &[Site]) -> Option<Grid> {
    // the smaller or larger of two members lies on their grid
    let picked = |v: ValueId| module.node_of(v).is_some_and(|n| matches!(n.op, Op::Min {} | Op::Max {}));
    let mut own = members.iter().filter(|&&(v, role)| role != Role::Unsigned || !picked(v));
    let &(first, role) = own.next()?;
    let grid_of = |v: ValueId| grid_of(module, v).or_else(|| rectified(module, v));
    let grid = grid_of(first)?;
    let alike = own.all(|&(v, _)| grid_of(v).as_ref() == Some(&grid));
    let wide = grid.elem == Elem::I16 && role == Role::Unsigned;
    if !alike {
        None
    } else if wide {
        let fits = |grid: &Grid| members.iter().all(|&(v, _)| fits_products(module, v, grid));
        [Some(grid.clone()), grid.centred()].into_iter().flatten().find(fits)
    } else {
        grid.in_role(role)
    }
}

/// The steps of a byte that ReLU leaves are those that it takes.
fn rectified(module: &Module, v: ValueId) -> Option<Grid> {
    let node = module.node_of(v).filter(|n| matches!(n.op, Op::Relu {}))?;
    let taken = grid_of(module, node.operands[0]).filter(Grid::is_narrow)?;
    Some(Grid::whole(Elem::U8, Quant::per_tensor(taken.quant.single()?, 0)))
}

/// Whether products alone read a value of 16 bits as their left operand, all with room for it in their accumulators.
fn fits_products(module: &Module, v: ValueId, grid: &Grid) -> bool {
    let Some((low, high)) = grid.elem.range() else { return false };
    let zero = i64::from(grid.quant.zero_point);
    let magnitude = (high - zero).max(zero - low);
    let reads = |n: usize, i: usize| {
        sites::demand(module, n, i) == Demand::Integer(Role::Unsigned)
            && sites::origins(module, module.nodes[n].operands[i]).contains(&v)
    };
    let fits = |n: usize, i: usize| {
        let product = matches!(module.nodes[n].op, Op::MatMul {}) && i == 0;
        product && heaviest_column(module, n).is_some_and(|sum| magnitude.saturating_mul(sum) < i64::from(i32::MAX) / 2)
    };
    let all = |n: usize| (0..module.nodes[n].operands.len()).all(|i| !reads(n, i) || fits(n, i));
    (0..module.nodes.len()).all(all)
}

/// The largest sum of magnitudes in a column of a product's right operand, or a bound of it.
fn heaviest_column(module: &Module, n: usize) -> Option<i64> {
    let right = module.nodes[n].operands[1];
    let shape = &module.ty(right).shape;
    let depth = shape.0.get(shape.rank().checked_sub(2)?)?.as_fixed()? as i64;
    let columns = shape.last_fixed()?.max(1);
    let Some(given) = integers(module, right).and_then(|c| weights(c, shape.rank() - 1, true)) else {
        return Some(depth * 128);
    };
    let zero = i64::from(given.quant.zero_point);
    let mut sums = vec![0i64; columns];
    given.ints.iter().enumerate().for_each(|(i, &w)| sums[i % columns] += (i64::from(w) - zero).abs());
    sums.into_iter().max()
}

/// A range that the model itself gives a value, and whether calibration cannot better it: it is that of a narrow grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Known {
    pub(crate) range: (f64, f64),
    pub(crate) firm: bool,
}

impl Known {
    fn join(self, other: Known) -> Known {
        let range = (self.range.0.min(other.range.0), self.range.1.max(other.range.1));
        Known { range, firm: self.firm && other.firm }
    }
}

/// The ranges that a model gives its values, those of sums by interval arithmetic. Operands come before results, so one
/// pass knows them all.
pub(crate) struct Ranges(Vec<Option<Known>>);

impl Ranges {
    pub(crate) fn of(module: &Module) -> Ranges {
        let mut ranges = Ranges(vec![None; module.values.len()]);
        for v in 0..module.values.len() {
            ranges.0[v] = ranges.find(module, ValueId(v as u32));
        }
        ranges
    }

    pub(crate) fn get(&self, v: ValueId) -> Option<Known> {
        self.0[v.0 as usize]
    }

    fn find(&self, module: &Module, v: ValueId) -> Option<Known> {
        if module.ty(v).elem != Elem::F32 {
            return None;
        }
        if let Some(c) = module.const_of(v) {
            return constant_range(c).map(|range| Known { range, firm: true });
        }
        if let Some(grid) = grid_of(module, v) {
            return Some(Known { range: grid.range()?, firm: grid.is_narrow() });
        }
        // beyond what its readers can hold a value saturates, sooner or later
        if let Some(grids) = reading_grids(module, v).filter(|g| !g.is_empty()) {
            let known = |g: &Grid| Some(Known { range: g.range()?, firm: g.is_narrow() });
            return grids.iter().map(known).collect::<Option<Vec<_>>>()?.into_iter().reduce(Known::join);
        }
        let node = module.node_of(v)?;
        let mut operands = node.operands.iter().map(|&o| self.get(o));
        match node.op {
            Op::Add {} => sum(operands.next()??, operands.next()??, 1.0),
            Op::Sub {} => sum(operands.next()??, operands.next()??, -1.0),
            _ if node.op.class() == Class::Move || matches!(node.op, Op::Min {} | Op::Max {}) => {
                operands.collect::<Option<Vec<_>>>()?.into_iter().reduce(Known::join)
            }
            _ => None,
        }
    }
}

/// The range of `a + sign * b`. Sums of many seldom reach it, so calibration is better.
fn sum(a: Known, b: Known, sign: f64) -> Option<Known> {
    let (x, y) = (b.range.0 * sign, b.range.1 * sign);
    Some(Known { range: (a.range.0 + x.min(y), a.range.1 + x.max(y)), firm: false })
}

fn constant_range(c: &Const) -> Option<(f64, f64)> {
    let values = c.values::<f32>();
    let join = |acc: (f64, f64), &x: &f32| (acc.0.min(x.into()), acc.1.max(x.into()));
    let range = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), join);
    (range.0 <= range.1).then_some(range)
}

/// The constant integers behind a value.
pub(crate) fn integers(module: &Module, v: ValueId) -> Option<&Const> {
    let node = module.node_of(v).filter(|n| n.op == (Op::Dequantize {}))?;
    module.const_of(node.operands[0])
}

/// Integer weights as a product takes them.
pub(crate) struct Weights {
    pub(crate) ints: Vec<i8>,
    pub(crate) quant: Quant,
}

/// Integer weights of a product whose channels run along `axis`; `None` where no product takes them as they are: of 16
/// bits, with scales along another axis, or of a convolution with a zero point that does not go away.
pub(crate) fn weights(c: &Const, axis: usize, product: bool) -> Option<Weights> {
    let quant = c.ty.quant.clone().filter(|q| q.axis.is_none_or(|a| a == axis))?;
    let zero = i64::from(quant.zero_point);
    let values = c.ints();
    let narrow = |zero: i64| values.iter().map(|&q| i8::try_from(q - zero).ok()).collect::<Option<Vec<i8>>>();
    if let Some(ints) = narrow(zero) {
        return Some(Weights { ints, quant: Quant { zero_point: 0, ..quant } });
    }
    // the same integers, with offset binary read as two's complement
    let shift = if c.ty.elem == Elem::U8 { 128 } else { 0 };
    let ints = narrow(shift).filter(|_| product)?;
    Some(Weights { ints, quant: Quant { zero_point: i32::try_from(zero - shift).ok()?, ..quant } })
}

/// Whether a bias fits accumulators of these scales.
pub(crate) fn bias_fits(bias: &[f32], quant: &Quant, input_scale: f64) -> bool {
    let fits = |(c, b): (usize, &f32)| f64::from(b.abs()) / (input_scale * quant.scale_at(c)) < LARGEST_BIAS;
    bias.iter().enumerate().all(fits)
}
