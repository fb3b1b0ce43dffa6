//! Rebuilds the module with `quantize` and `dequantize` where the sites say.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Class, Const, Def, Diagnostic, Elem, Module, Node, Op, Quant, Stage, TensorType, ValueId};

use super::given::{self, Grid, LARGEST_BIAS};
use super::sites::{self, Demand, Role, Sites, demand};
use super::weights::{self, Channels, WeightBits, WeightChoice};

/// Inserts quantization; `grids` holds one for each group of sites.
pub(crate) fn insert(
    module: &Module,
    sites: &Sites,
    grids: &BTreeMap<usize, Grid>,
    bits: &WeightChoice,
) -> Result<Module, Diagnostic> {
    let to = module.successor(Stage::Quantize);
    let mut insert = Insert { from: module, sites, grids, bits, to, plain: BTreeMap::new(), integer: BTreeMap::new() };
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
    Ok(insert.to)
}

struct Insert<'a> {
    from: &'a Module,
    sites: &'a Sites,
    grids: &'a BTreeMap<usize, Grid>,
    bits: &'a WeightChoice,
    to: Module,
    /// Float values of the old module in the new one.
    plain: BTreeMap<ValueId, ValueId>,
    /// Quantized and dequantized values by role.
    integer: BTreeMap<(ValueId, Role), ValueId>,
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
        let q = self.quantize(Op::Quantize { to: grid.elem }, x, grid.quant, loc)?;
        self.push(Op::Dequantize {}, &[q], node)
    }

    /// A constant as integers of a grid.
    fn constant(&mut self, c: &Const, Grid { elem, quant }: Grid) -> Result<ValueId, Diagnostic> {
        let (scale, zero) = (quant.scale_at(0), f64::from(quant.zero_point));
        let (low, high) = elem.range().unwrap_or((0, 0));
        let values = c.values::<f32>();
        let ints = values.iter().map(|&x| {
            let q = (f64::from(x) / scale).round_ties_even() + zero;
            q.clamp(low as f64, high as f64) as i64
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
        if let Some(operands) = self.given_product(n, axis)? {
            return Ok(operands);
        }
        let image = self.from.node_of(node.operands[0]).filter(|m| matches!(m.op, Op::Normalize { .. }));
        let mut weights = self.weights(node, axis)?;
        let mut operands = Vec::new();
        match image {
            Some(image) => {
                let pixels = self.plain(image.operands[0])?;
                let loc = join(image, node);
                let v = self.to.push(Op::Dequantize {}, &[pixels], loc).map_err(|m| Diagnostic::new("internal", m))?;
                operands.push(v);
                weights.divide_by_deviation(image);
            }
            None => operands.push(self.operand(n, 0)?),
        }
        let bits = match node.op {
            Op::MatMul {} if image.is_none() => self.bits.bits_of(node.loc.as_deref().unwrap_or_default()),
            _ => WeightBits::Eight,
        };
        let found = weights.quantize(bits, self.input_scale(n, image.is_some())?);
        let bias = image.map(|image| weights.bias_without_mean(image, &found));
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
        let bits = self.bits.bits_of(node.loc.as_deref().unwrap_or_default());
        let asked = bits == WeightBits::Four && product;
        let bias = match node.operands.get(2).map(|&b| (b, self.from.const_of(b))) {
            Some((_, Some(c))) => c.values::<f32>().into_owned(),
            Some((_, None)) => return Ok(None),
            None => Vec::new(),
        };
        if asked || !given::bias_fits(&bias, &weights.quant, self.input_scale(n, false)?) {
            return Ok(None);
        }
        let x = self.operand(n, 0)?;
        let ty = TensorType::new(Elem::I8, constant.ty.shape.clone()).with_quant(weights.quant);
        let v = self.to.constant(Const::new(constant.name.clone(), ty, &weights.ints));
        let mut operands = vec![x, self.push(Op::Dequantize {}, &[v], Some(node))?];
        if let Some(&bias) = node.operands.get(2) {
            operands.push(self.plain(bias)?);
        }
        Ok(Some(operands))
    }

    /// The scale of a product's left operand.
    fn input_scale(&self, n: usize, pixels: bool) -> Result<f64, Diagnostic> {
        if pixels {
            return Ok(1.0);
        }
        let v = self.from.nodes[n].operands[0];
        let origin = sites::origins(self.from, v).into_iter().next().unwrap_or(v);
        Ok(self.grid(origin, Role::Unsigned)?.quant.scale_at(0))
    }

    fn weights(&self, node: &Node, axis: usize) -> Result<FloatWeights, Diagnostic> {
        let c = float_weights(self.from, node.operands[1]).ok_or_else(|| Diagnostic::new("internal", "no weights"))?;
        let dims = c.ty.shape.as_fixed().unwrap_or_default();
        let (channels, inner) = (dims[axis], dims[axis + 1..].iter().product());
        let bias = match node.operands.get(2).and_then(|&b| self.from.const_of(b)) {
            Some(b) if b.ty.shape.count().and_then(|d| d.as_fixed()) == Some(1) => vec![b.values::<f32>()[0]; channels],
            Some(b) => b.values::<f32>().into_owned(),
            None => vec![0.0; channels],
        };
        let values = c.values::<f32>().into_owned();
        if values.iter().chain(&bias).any(|x| !x.is_finite()) {
            let place = node.loc.as_deref().unwrap_or(&c.name).to_string();
            return Err(Diagnostic::new("weights", "a weight is infinite or not a number").at(place));
        }
        let shape = Channels { channels, inner };
        Ok(FloatWeights { name: c.name.clone(), ty: c.ty.clone(), dims, values, bias, shape })
    }
}

/// Constant weights as floats, also those that came as integers.
fn float_weights(module: &Module, v: ValueId) -> Option<Cow<'_, Const>> {
    if let Some(c) = module.const_of(v) {
        return Some(Cow::Borrowed(c));
    }
    let c = given::integers(module, v)?;
    let ty = TensorType::f32(c.ty.shape.clone());
    let x = Tensor::from_const(c).ok()?;
    let real = eval::eval_op(&Op::Dequantize {}, &[&x], &ty, &[&c.ty], &module.lanes).ok()?;
    Some(Cow::Owned(real.to_const(c.name.clone(), ty)))
}

/// Constant weights with their bias while they are being quantized.
struct FloatWeights {
    name: String,
    ty: TensorType,
    dims: Vec<usize>,
    values: Vec<f32>,
    bias: Vec<f32>,
    shape: Channels,
}

impl FloatWeights {
    fn quantize(&self, bits: WeightBits, input_scale: f64) -> weights::Weights {
        let floor: Vec<f64> = self.bias.iter().map(|b| f64::from(b.abs()) / (input_scale * LARGEST_BIAS)).collect();
        weights::quantize(&self.values, self.shape, bits, &floor)
    }

    /// Input channel of a convolution's weight: the image has one group.
    fn input_channel(&self, i: usize) -> usize {
        (i / (self.dims[2] * self.dims[3])) % self.dims[1]
    }

    /// Weights for pixels of 0 to 255 instead of normalised ones.
    fn divide_by_deviation(&mut self, normalize: &Node) {
        let Op::Normalize { std, .. } = &normalize.op else { return };
        for i in 0..self.values.len() {
            let divisor = 255.0 * std[self.input_channel(i)].0;
            self.values[i] = (f64::from(self.values[i]) / divisor) as f32;
        }
    }

    /// The bias less what the weights, as quantized, make of the mean image: so their rounding errors act on deviations
    /// from the mean, not on whole pixels.
    fn bias_without_mean(&self, normalize: &Node, found: &weights::Weights) -> Vec<f32> {
        let Op::Normalize { mean, .. } = &normalize.op else { return self.bias.clone() };
        let mut bias: Vec<f64> = self.bias.iter().map(|&b| f64::from(b)).collect();
        for (i, &q) in found.ints.iter().enumerate() {
            let o = i / self.shape.inner;
            bias[o] -= f64::from(q) * found.scales[o] * 255.0 * mean[self.input_channel(i)].0;
        }
        bias.into_iter().map(|b| b as f32).collect()
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
