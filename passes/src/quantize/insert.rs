//! Rebuilds the module with `quantize` and `dequantize` where the sites say.

use std::collections::BTreeMap;

use vitc_ir::{Class, Const, Def, Diagnostic, Elem, Module, Node, Op, Quant, Stage, TensorType, ValueId};

use super::sites::{self, Demand, Role, Sites, demand};
use super::weights::{self, Channels, WeightBits, WeightChoice};

/// Biases at the accumulator's scale stay below 2^29, so that no accumulator leaves 32 bits because of its bias.
const LARGEST_BIAS: f64 = (1 << 29) as f64;

/// Inserts quantization; `quants` holds one for each group of sites.
pub(crate) fn insert(
    module: &Module,
    sites: &Sites,
    quants: &BTreeMap<usize, Quant>,
    bits: &WeightChoice,
) -> Result<Module, Diagnostic> {
    let to = module.successor(Stage::Quantize);
    let mut insert = Insert { from: module, sites, quants, bits, to, plain: BTreeMap::new(), integer: BTreeMap::new() };
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
    quants: &'a BTreeMap<usize, Quant>,
    bits: &'a WeightChoice,
    to: Module,
    /// Float values of the old module in the new one.
    plain: BTreeMap<ValueId, ValueId>,
    /// Quantized and dequantized values by role.
    integer: BTreeMap<(ValueId, Role), ValueId>,
}

impl Insert<'_> {
    /// Float inputs become `u8`: the runtime quantizes at the door.
    fn inputs(&mut self) -> Result<(), Diagnostic> {
        for input in &self.from.inputs {
            let ty = self.from.ty(input.value);
            if ty.elem != Elem::F32 {
                let v = self.to.input(input.name.clone(), ty.clone());
                self.plain.insert(input.value, v);
                continue;
            }
            let quant = self.quant(input.value, Role::Unsigned)?;
            let ty = TensorType::new(Elem::U8, ty.shape.clone()).with_quant(quant);
            let v = self.to.input(input.name.clone(), ty);
            let v = self.push(Op::Dequantize {}, &[v], None)?;
            self.plain.insert(input.value, v);
            self.integer.insert((input.value, Role::Unsigned), v);
        }
        Ok(())
    }

    fn quant(&self, v: ValueId, role: Role) -> Result<Quant, Diagnostic> {
        let group = self.sites.group((v, role)).and_then(|g| self.quants.get(&g));
        group.cloned().ok_or_else(|| Diagnostic::new("internal", "a value has no scale in its role"))
    }

    fn push(&mut self, op: Op, operands: &[ValueId], like: Option<&Node>) -> Result<ValueId, Diagnostic> {
        let loc = like.and_then(|n| n.loc.clone());
        let place = loc.as_deref().unwrap_or(op.name()).to_string();
        self.to.push(op, operands, loc).map_err(|m| Diagnostic::new("internal", m).at(place))
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
        let result = self.push(node.op.clone(), &operands, Some(node))?;
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
            Def::Const(c) => self.constant(&self.from.consts[c], self.quant(v, role)?, role)?,
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
        if node.is_some_and(|n| matches!(n.op, Op::Dequantize {})) {
            return Ok(x);
        }
        let quant = self.quant(v, role)?;
        let loc = node.and_then(|n| n.loc.clone());
        let q = self.to.push_quant(Op::Quantize { to: role.elem() }, &[x], quant, loc);
        let q = q.map_err(|m| Diagnostic::new("internal", m))?;
        self.push(Op::Dequantize {}, &[q], node)
    }

    /// A constant as integers of a role.
    fn constant(&mut self, c: &Const, quant: Quant, role: Role) -> Result<ValueId, Diagnostic> {
        let (scale, zero) = (quant.scale_at(0), f64::from(quant.zero_point));
        let (low, high) = role.elem().range().unwrap_or((0, 0));
        let values = c.values::<f32>();
        let ints = values.iter().map(|&x| {
            let q = (f64::from(x) / scale).round_ties_even() + zero;
            q.clamp(low as f64, high as f64) as i64
        });
        let ty = TensorType::new(role.elem(), c.ty.shape.clone()).with_quant(quant);
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

    /// The scale of a product's left operand.
    fn input_scale(&self, n: usize, pixels: bool) -> Result<f64, Diagnostic> {
        if pixels {
            return Ok(1.0);
        }
        let v = self.from.nodes[n].operands[0];
        let origin = sites::origins(self.from, v).into_iter().next().unwrap_or(v);
        Ok(self.quant(origin, Role::Unsigned)?.scale_at(0))
    }

    fn weights(&self, node: &Node, axis: usize) -> Result<FloatWeights, Diagnostic> {
        let c = self.from.const_of(node.operands[1]).ok_or_else(|| Diagnostic::new("internal", "no weights"))?;
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
