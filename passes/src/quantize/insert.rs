//! Rebuilds the module with `quantize` and `dequantize` where the sites say.

use std::collections::BTreeMap;
use std::sync::Arc;

use vitc_ir::{Class, Const, Def, Diagnostic, Elem, Module, Node, Op, Quant, Stage, TensorType, ValueId};

use super::QuantOptions;
use super::float_weights::FloatWeights;
use super::given::{self, Grid};
use super::rounding::RoundedBias;
use super::rows;
use super::sites::{self, Demand, Role, Site, Sites, demand};
use super::widths::{self, Width};

/// A quantized module, and where things are in it.
pub(crate) struct Inserted {
    pub(crate) module: Module,
    /// The quantized and dequantized value of every site.
    pub(crate) integer: BTreeMap<Site, ValueId>,
    /// Dequantized values with their rows rounded.
    pub(crate) by_rows: BTreeMap<ValueId, ValueId>,
}

/// Inserts quantization; `grids` holds one for each group of sites, `rounded` the weights that are rounded already.
pub(crate) fn insert(
    module: &Module,
    sites: &Sites,
    grids: &BTreeMap<usize, Grid>,
    rounded: BTreeMap<usize, RoundedBias>,
    options: &QuantOptions,
) -> Result<Inserted, Diagnostic> {
    let to = module.successor(Stage::Quantize);
    let (plain, integer, by_rows) = Default::default();
    let mut insert = Insert { from: module, sites, grids, rounded, options, to, plain, integer, by_rows };
    insert.to.lanes = module.lanes.clone();
    insert.inputs()?;
    for n in 0..module.nodes.len() {
        insert.node(n)?;
    }
    for output in &module.outputs {
        let v = match sites::is_output_quantized(module, output.value) {
            true => insert.integer(output.value, Role::Wide)?,
            false => insert.plain(output.value)?,
        };
        insert.to.output(output.name.clone(), v);
    }
    Ok(Inserted { module: insert.to, integer: insert.integer, by_rows: insert.by_rows })
}

struct Insert<'a> {
    from: &'a Module,
    sites: &'a Sites,
    grids: &'a BTreeMap<usize, Grid>,
    /// Weights that are rounded already, by node.
    rounded: BTreeMap<usize, RoundedBias>,
    options: &'a QuantOptions,
    to: Module,
    /// Float values of the old module in the new one.
    plain: BTreeMap<ValueId, ValueId>,
    /// Quantized and dequantized values by role.
    integer: BTreeMap<Site, ValueId>,
    /// Values of the new module with their rows rounded.
    by_rows: BTreeMap<ValueId, ValueId>,
}

impl Insert<'_> {
    /// Float inputs become integers: the runtime quantizes at the door.
    fn inputs(&mut self) -> Result<(), Diagnostic> {
        for input in &self.from.inputs {
            let ty = self.from.ty(input.value);
            if ty.elem != Elem::F32 {
                let v = self.to.input(input.name.clone(), ty.clone());
                self.plain.insert(input.value, v);
                continue;
            }
            let grid = self.grid(input.value, Role::Unsigned)?;
            let ty = TensorType::new(grid.elem, ty.shape.clone()).with_quant(grid.quant);
            let v = self.to.input(input.name.clone(), ty);
            let v = self.push(Op::Dequantize {}, &[v], None)?;
            self.plain.insert(input.value, v);
            self.integer.insert((input.value, Role::Unsigned), v);
        }
        Ok(())
    }

    fn grid(&self, v: ValueId, role: Role) -> Result<Grid, Diagnostic> {
        let group = self.sites.group((v, role)).and_then(|g| self.grids.get(&g));
        group.cloned().ok_or_else(|| Diagnostic::new("internal", "a value has no scale in its role"))
    }

    fn push(&mut self, op: Op, operands: &[ValueId], like: Option<&Node>) -> Result<ValueId, Diagnostic> {
        let loc = like.and_then(|n| n.loc.clone());
        let place = loc.as_deref().unwrap_or(op.name()).to_string();
        self.to.push(op, operands, loc).map_err(|m| Diagnostic::new("internal", m).at(place))
    }

    fn quantize(&mut self, op: Op, x: ValueId, quant: Quant, loc: Option<Arc<str>>) -> Result<ValueId, Diagnostic> {
        self.to.push_quant(op, &[x], quant, loc).map_err(|m| Diagnostic::new("internal", m))
    }

    /// Copies a node that computes; movement is copied when somebody asks for it.
    fn node(&mut self, n: usize) -> Result<(), Diagnostic> {
        let node = &self.from.nodes[n];
        if node.op.class() == Class::Move || matches!(node.op, Op::Normalize { .. }) {
            return Ok(());
        }
        let operands = match node.op {
            Op::MatMul {} | Op::Conv2d { .. } => self.product(n)?,
            _ => (0..node.operands.len()).map(|i| self.operand(n, i)).collect::<Result<_, _>>()?,
        };
        let result = match (&node.op, &self.from.ty(node.result).quant) {
            (Op::Quantize { .. }, Some(quant)) => {
                self.quantize(node.op.clone(), operands[0], quant.clone(), node.loc.clone())?
            }
            _ => self.push(node.op.clone(), &operands, Some(node))?,
        };
        self.plain.insert(node.result, result);
        Ok(())
    }

    fn operand(&mut self, n: usize, i: usize) -> Result<ValueId, Diagnostic> {
        let v = self.from.nodes[n].operands[i];
        match demand(self.from, n, i) {
            Demand::Integer(role) => self.integer(v, role),
            Demand::Plain | Demand::Weights { .. } => self.plain(v),
        }
    }

    /// A float value in the new module.
    fn plain(&mut self, v: ValueId) -> Result<ValueId, Diagnostic> {
        if let Some(&known) = self.plain.get(&v) {
            return Ok(known);
        }
        let copy = match self.from.values[v.0 as usize].def {
            Def::Const(c) => self.to.constant(self.from.consts[c].clone()),
            Def::Node(n) => {
                let node = &self.from.nodes[n];
                let operands = node.operands.iter().map(|&o| self.plain(o)).collect::<Result<Vec<_>, _>>()?;
                self.push(node.op.clone(), &operands, Some(node))?
            }
            Def::Input(_) => return Err(Diagnostic::new("internal", "an input is missing")),
        };
        self.plain.insert(v, copy);
        Ok(copy)
    }

    /// A value as integers of a role, dequantized: quantized where it originates, then moved.
    fn integer(&mut self, v: ValueId, role: Role) -> Result<ValueId, Diagnostic> {
        if let Some(&known) = self.integer.get(&(v, role)) {
            return Ok(known);
        }
        let result = match self.from.values[v.0 as usize].def {
            Def::Const(c) => self.constant(&self.from.consts[c], self.grid(v, role)?)?,
            Def::Node(n) if self.from.nodes[n].op.class() == Class::Move => {
                let node = &self.from.nodes[n];
                let operands = node.operands.iter().map(|&o| self.integer(o, role)).collect::<Result<Vec<_>, _>>()?;
                self.push(node.op.clone(), &operands, Some(node))?
            }
            _ => self.quantized(v, role)?,
        };
        self.integer.insert((v, role), result);
        Ok(result)
    }

    fn quantized(&mut self, v: ValueId, role: Role) -> Result<ValueId, Diagnostic> {
        let x = self.plain(v)?;
        let node = self.from.node_of(v);
        let grid = self.grid(v, role)?;
        if given::grid_of(self.from, v).is_some_and(|given| given == grid) {
            return Ok(x);
        }
        let loc = node.and_then(|n| n.loc.clone());
        let x = self.within(x, &grid, loc.clone())?;
        let q = self.quantize(Op::Quantize { to: grid.elem }, x, grid.quant.clone(), loc.clone())?;
        let q = self.coded(q, &grid, loc)?;
        self.push(Op::Dequantize {}, &[q], node)
    }

    /// Bytes rounded to the levels of a grid that has them one by one.
    fn coded(&mut self, q: ValueId, grid: &Grid, loc: Option<Arc<str>>) -> Result<ValueId, Diagnostic> {
        let Some(levels) = &grid.levels else { return Ok(q) };
        let ty = TensorType::new(grid.elem, vitc_ir::Shape::fixed(&[256]));
        let name = format!("{}.levels", loc.as_deref().unwrap_or("value"));
        let table = self.to.constant(integers(&name, ty, levels.table(grid.elem).into_iter()));
        let coded = self.to.push_quant(Op::IntTable {}, &[q, table], grid.quant.clone(), loc);
        coded.map_err(|m| Diagnostic::new("internal", m))
    }

    /// A value clipped to the levels of a grid that has fewer than its element type; a map of softmax lies within.
    fn within(&mut self, x: ValueId, grid: &Grid, loc: Option<Arc<str>>) -> Result<ValueId, Diagnostic> {
        let softmax = self.to.node_of(x).is_some_and(|n| matches!(n.op, Op::Softmax {}));
        if grid.width.is_none() || grid.levels.is_some() || softmax {
            return Ok(x);
        }
        let (low, high) = grid.levels();
        let clip = Op::Clip { lo: grid.real(low).into(), hi: grid.real(high).into() };
        self.to.push(clip, &[x], loc).map_err(|m| Diagnostic::new("internal", m))
    }

    /// A constant as integers of a grid.
    fn constant(&mut self, c: &Const, grid: Grid) -> Result<ValueId, Diagnostic> {
        let (low, high) = grid.levels();
        let Grid { elem, quant, levels, .. } = grid;
        let (scale, zero) = (quant.scale_at(0), f64::from(quant.zero_point));
        let values = c.values::<f32>();
        let ints = values.iter().map(|&x| {
            let q = (f64::from(x) / scale).round_ties_even() + zero;
            let q = q.clamp(low as f64, high as f64) as i64;
            levels.as_ref().map_or(q, |levels| levels.nearest(q))
        });
        let ty = TensorType::new(elem, c.ty.shape.clone()).with_quant(quant);
        let v = self.to.constant(integers(&c.name, ty, ints));
        self.push(Op::Dequantize {}, &[v], None)
    }

    /// The operands of a product or convolution: weights in `i8`, a normalised image as its pixels.
    fn product(&mut self, n: usize) -> Result<Vec<ValueId>, Diagnostic> {
        let node = &self.from.nodes[n];
        let Demand::Weights { axis } = demand(self.from, n, 1) else {
            return (0..node.operands.len()).map(|i| self.operand(n, i)).collect();
        };
        let image = self.from.node_of(node.operands[0]).filter(|m| matches!(m.op, Op::Normalize { .. }));
        // the weights of pixels are others than the model's: the deviation is in them
        let given = if image.is_none() { self.given_product(n, axis)? } else { None };
        if let Some(operands) = given {
            return Ok(operands);
        }
        let mut weights = FloatWeights::of(self.from, node, axis)?;
        let mut operands = Vec::new();
        match image {
            Some(image) => {
                let pixels = self.plain(image.operands[0])?;
                let loc = join(image, node);
                let v = self.to.push(Op::Dequantize {}, &[pixels], loc).map_err(|m| Diagnostic::new("internal", m))?;
                operands.push(v);
                weights.divide_by_deviation(image);
            }
            None => operands.push(self.left(n)?),
        }
        let bits = widths::of_weights(self.from, n, &self.options.weights);
        let (found, bias) = match self.rounded.remove(&n) {
            Some(RoundedBias { weights, bias }) => (weights, bias),
            None => {
                let found = weights.quantize(bits, self.options.groups, self.input_scale(n, image.is_some())?);
                let bias = image.map(|image| weights.bias_without_mean(image, &found));
                (found, bias)
            }
        };
        let quant = Quant::per_axis(found.scales.iter().copied(), axis, 0);
        let ty = TensorType::new(Elem::I8, weights.ty.shape.clone()).with_quant(quant);
        let v = self.to.constant(Const::new(weights.name.clone(), ty, &found.ints));
        operands.push(self.push(Op::Dequantize {}, &[v], Some(node))?);
        match (bias, node.operands.get(2)) {
            (Some(bias), _) => {
                let ty = TensorType::f32(vitc_ir::Shape::fixed(&[bias.len()]));
                operands.push(self.to.constant(Const::new(format!("{}.bias", weights.name), ty, &bias)));
            }
            (None, Some(&bias)) => operands.push(self.plain(bias)?),
            (None, None) => {}
        }
        Ok(operands)
    }

    /// The operands of a product whose weights the model gives as integers that it can take.
    fn given_product(&mut self, n: usize, axis: usize) -> Result<Option<Vec<ValueId>>, Diagnostic> {
        let node = &self.from.nodes[n];
        let product = matches!(node.op, Op::MatMul {});
        let Some(constant) = given::integers(self.from, node.operands[1]) else { return Ok(None) };
        let Some(weights) = given::weights(constant, axis, product) else { return Ok(None) };
        let asked = widths::of_weights(self.from, n, &self.options.weights) < Width::EIGHT;
        let bias = match node.operands.get(2).map(|&b| (b, self.from.const_of(b))) {
            Some((_, Some(c))) => c.values::<f32>().into_owned(),
            Some((_, None)) => return Ok(None),
            None => Vec::new(),
        };
        if asked || !given::bias_fits(&bias, &weights.quant, self.input_scale(n, false)?) {
            return Ok(None);
        }
        let x = self.left(n)?;
        let ty = TensorType::new(Elem::I8, constant.ty.shape.clone()).with_quant(weights.quant);
        let v = self.to.constant(Const::new(constant.name.clone(), ty, &weights.ints));
        let mut operands = vec![x, self.push(Op::Dequantize {}, &[v], Some(node))?];
        if let Some(&bias) = node.operands.get(2) {
            operands.push(self.plain(bias)?);
        }
        Ok(Some(operands))
    }

    /// What a product with constant weights reads, its rows rounded where they have scales of their own.
    fn left(&mut self, n: usize) -> Result<ValueId, Diagnostic> {
        let node = &self.from.nodes[n];
        let x = self.operand(n, 0)?;
        let grid = self.left_grid(n)?;
        let Some(rows) = &grid.rows else { return Ok(x) };
        if let Some(&known) = self.by_rows.get(&x) {
            return Ok(known);
        }
        let rounded = self.push(rows.op(&grid), &[x], Some(node))?;
        self.by_rows.insert(x, rounded);
        Ok(rounded)
    }

    fn left_grid(&self, n: usize) -> Result<Grid, Diagnostic> {
        let v = self.from.nodes[n].operands[0];
        let origin = sites::origins(self.from, v).into_iter().next().unwrap_or(v);
        self.grid(origin, Role::Unsigned)
    }

    /// The scale of a product's left operand: what accumulators have in common.
    fn input_scale(&self, n: usize, pixels: bool) -> Result<f64, Diagnostic> {
        if pixels {
            return Ok(1.0);
        }
        let grid = self.left_grid(n)?;
        let scale = grid.quant.scale_at(0);
        Ok(grid.rows.map_or(scale, |rows| rows::least_step(scale, rows.levels)))
    }
}

fn join(a: &Node, b: &Node) -> Option<std::sync::Arc<str>> {
    crate::clean::draft::join(a.loc.clone(), b.loc.clone())
}

fn integers(name: &str, ty: TensorType, values: impl Iterator<Item = i64>) -> Const {
    match ty.elem {
        Elem::U8 => Const::new(name, ty, &values.map(|v| v as u8).collect::<Vec<_>>()),
        Elem::I8 => Const::new(name, ty, &values.map(|v| v as i8).collect::<Vec<_>>()),
        _ => Const::new(name, ty, &values.map(|v| v as i16).collect::<Vec<_>>()),
    }
}
