//! Rescaling in place: constants are replaced and nodes put between others, and values keep their ids.

use vitc_ir::graph::Value;
use vitc_ir::{Const, Def, ImageLayout, Module, Node, Op, Shape, TensorType, ValueId};

/// A constant of floats as `f64`, repeated to `count` when it is a single one.
pub(crate) fn floats(module: &Module, v: ValueId, count: usize) -> Option<Vec<f64>> {
    let values = module.const_of(v)?.values::<f32>();
    match values.len() {
        1 => Some(vec![values[0].into(); count]),
        n if n == count => Some(values.iter().map(|&x| x.into()).collect()),
        _ => None,
    }
}

/// Puts another constant in the place of operand `i` of a node. The old one stays for whoever else uses it.
pub(crate) fn replace(module: &mut Module, node: usize, i: usize, dims: &[usize], values: impl Iterator<Item = f64>) {
    let old = module.nodes[node].operands.get(i).and_then(|&v| module.const_of(v)).map(|c| c.name.clone());
    let loc = || module.nodes[node].loc.as_deref().unwrap_or("product").to_string();
    let name = old.unwrap_or_else(|| format!("{}.bias", loc()));
    let values: Vec<f32> = values.map(|x| x as f32).collect();
    let v = module.constant(Const::new(name, TensorType::f32(Shape::fixed(dims)), &values));
    let operands = &mut module.nodes[node].operands;
    match operands.get_mut(i) {
        Some(operand) => *operand = v,
        None => operands.push(v),
    }
}

/// Weights [K, N] of a product and its bias, as `f64`.
pub(crate) struct Product {
    pub(crate) node: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) weights: Vec<f64>,
    pub(crate) bias: Vec<f64>,
    touched_bias: bool,
}

impl Product {
    /// A product whose weights are a constant matrix and whose bias, where it has one, is constant.
    pub(crate) fn of(module: &Module, node: usize) -> Option<Product> {
        let operands = &module.nodes[node].operands;
        let c = module.const_of(*operands.get(1)?).filter(|_| super::flow::float_matrix(module, operands[1]))?;
        let dims = c.ty.shape.as_fixed()?;
        let (rows, columns) = (dims[0], dims[1]);
        let bias = match operands.get(2) {
            Some(&b) => floats(module, b, columns)?,
            None => vec![0.0; columns],
        };
        let weights = c.values::<f32>().iter().map(|&w| w.into()).collect();
        Some(Product { node, rows, columns, weights, bias, touched_bias: false })
    }

    pub(crate) fn row(&self, k: usize) -> &[f64] {
        &self.weights[k * self.columns..(k + 1) * self.columns]
    }

    /// Multiplies what input `k` contributes.
    pub(crate) fn scale_row(&mut self, k: usize, factor: f64) {
        self.weights[k * self.columns..(k + 1) * self.columns].iter_mut().for_each(|w| *w *= factor);
    }

    /// Adds what a constant `c` on input `k` contributes.
    pub(crate) fn absorb(&mut self, k: usize, c: f64) {
        for (b, w) in self.bias.iter_mut().zip(&self.weights[k * self.columns..]) {
            *b += w * c;
        }
        self.touched_bias |= c != 0.0;
    }

    /// Multiplies output `n`.
    pub(crate) fn scale_column(&mut self, n: usize, factor: f64) {
        self.weights.iter_mut().skip(n).step_by(self.columns).for_each(|w| *w *= factor);
        self.bias[n] *= factor;
        self.touched_bias |= self.bias[n] != 0.0;
    }

    /// Adds a constant to output `n`.
    pub(crate) fn shift_column(&mut self, n: usize, c: f64) {
        self.bias[n] += c;
        self.touched_bias |= c != 0.0;
    }

    /// Writes weights and bias back as new constants.
    pub(crate) fn store(self, module: &mut Module) {
        replace(module, self.node, 1, &[self.rows, self.columns], self.weights.into_iter());
        if self.touched_bias {
            replace(module, self.node, 2, &[self.columns], self.bias.into_iter());
        }
    }
}

/// Weights [O, I / groups, taps] of a convolution with its channels last, and its bias, as `f64`.
pub(crate) struct Filters {
    pub(crate) node: usize,
    pub(crate) filters: usize,
    /// Input channels of one filter.
    pub(crate) depth: usize,
    pub(crate) taps: usize,
    pub(crate) groups: usize,
    pub(crate) weights: Vec<f64>,
    pub(crate) bias: Vec<f64>,
    axes: [Axis; 2],
    touched_bias: bool,
    dims: Vec<usize>,
}

impl Filters {
    /// A convolution whose filters and bias are constant.
    pub(crate) fn of(module: &Module, node: usize) -> Option<Filters> {
        let Op::Conv2d { groups, layout: ImageLayout::ChannelsLast, .. } = module.nodes[node].op else {
            return None;
        };
        let operands = &module.nodes[node].operands;
        let c = module.const_of(operands[1]).filter(|c| c.ty.elem == vitc_ir::Elem::F32)?;
        let dims = c.ty.shape.as_fixed()?;
        let bias = match operands.get(2) {
            Some(&b) => floats(module, b, dims[0])?,
            None => vec![0.0; dims[0]],
        };
        let weights = c.values::<f32>().iter().map(|&w| w.into()).collect();
        let (filters, depth, taps) = (dims[0], dims[1], dims[2..].iter().product());
        let axes = [Axis::of(module, node, 0)?, Axis::of(module, node, 1)?];
        Some(Filters { node, filters, depth, taps, groups, weights, bias, axes, touched_bias: false, dims })
    }

    /// Whether any tap lies beyond the border, where zeros count.
    pub(crate) fn is_padded(&self) -> bool {
        self.axes.iter().any(|axis| axis.inside().iter().flatten().any(|inside| !inside))
    }

    /// The taps of filter `o` on its input `i`.
    pub(crate) fn taps_of(&self, o: usize, i: usize) -> &[f64] {
        &self.weights[(o * self.depth + i) * self.taps..][..self.taps]
    }

    /// The input channel that filter `o` reads as its input `i`.
    pub(crate) fn channel(&self, o: usize, i: usize) -> usize {
        o / (self.filters / self.groups) * self.depth + i
    }

    /// Takes an input that became `(x - centre) / factor`. The bias takes over what the centre adds where no tap is beyond the
    /// border; the rest is [`Filters::beyond_border`].
    pub(crate) fn take_input(&mut self, factor: &[f64], centre: &[f64]) {
        for o in 0..self.filters {
            for i in 0..self.depth {
                let c = self.channel(o, i);
                self.bias[o] += centre[c] * self.taps_of(o, i).iter().sum::<f64>();
                self.touched_bias |= centre[c] != 0.0;
                let at = (o * self.depth + i) * self.taps;
                self.weights[at..at + self.taps].iter_mut().for_each(|w| *w *= factor[c]);
            }
        }
    }

    /// What the taps beyond the border would add to each output if channels went on there at these constants, as
    /// [output rows, output columns, filters] with its dimensions.
    pub(crate) fn beyond_border(&self, constants: &[f64]) -> ([usize; 3], Vec<f64>) {
        let [down, across] = self.axes.each_ref().map(Axis::inside);
        let adds: Vec<Vec<f64>> = (0..self.filters).map(|o| self.adds(o, constants)).collect();
        let mut map = Vec::with_capacity(down.len() * across.len() * self.filters);
        for y in &down {
            for x in &across {
                let is_beyond = |tap: &usize| !(y[tap / x.len()] && x[tap % x.len()]);
                let beyond: Vec<usize> = (0..self.taps).filter(is_beyond).collect();
                map.extend(adds.iter().map(|adds| beyond.iter().map(|&tap| adds[tap]).sum::<f64>()));
            }
        }
        ([down.len(), across.len(), self.filters], map)
    }

    /// What each tap of filter `o` adds where its inputs are these constants.
    fn adds(&self, o: usize, constants: &[f64]) -> Vec<f64> {
        let mut adds = vec![0.0; self.taps];
        for i in 0..self.depth {
            let c = constants[self.channel(o, i)];
            adds.iter_mut().zip(self.taps_of(o, i)).for_each(|(sum, w)| *sum += c * w);
        }
        adds
    }

    /// Makes every output `(y - centre) / factor`.
    pub(crate) fn give_output(&mut self, factor: &[f64], centre: &[f64]) {
        let each = self.depth * self.taps;
        for o in 0..self.filters {
            self.weights[o * each..(o + 1) * each].iter_mut().for_each(|w| *w /= factor[o]);
            self.bias[o] = (self.bias[o] - centre[o]) / factor[o];
            self.touched_bias |= self.bias[o] != 0.0;
        }
    }

    /// Writes weights and bias back as new constants.
    pub(crate) fn store(self, module: &mut Module) {
        replace(module, self.node, 1, &self.dims, self.weights.into_iter());
        if self.touched_bias {
            replace(module, self.node, 2, &[self.filters], self.bias.into_iter());
        }
    }
}

/// A convolution of images with channels last along rows or columns.
struct Axis {
    input: usize,
    output: usize,
    taps: usize,
    stride: usize,
    dilation: usize,
    /// Positions before the first input.
    pad: usize,
}

impl Axis {
    fn of(module: &Module, node: usize, axis: usize) -> Option<Axis> {
        let Op::Conv2d { strides, pads, dilations, .. } = module.nodes[node].op else { return None };
        let size = |v: ValueId, i: usize| module.ty(v).shape.0.get(i)?.as_fixed();
        let operands = &module.nodes[node].operands;
        Some(Axis {
            input: size(operands[0], 1 + axis)?,
            output: size(module.nodes[node].result, 1 + axis)?,
            taps: size(operands[1], 2 + axis)?,
            stride: strides[axis],
            dilation: dilations[axis],
            pad: pads[axis],
        })
    }

    /// For each output which taps lie inside the input.
    fn inside(&self) -> Vec<Vec<bool>> {
        let image = self.pad..self.pad + self.input;
        let inside = |at: usize, tap: usize| image.contains(&(at * self.stride + tap * self.dilation));
        (0..self.output).map(|at| (0..self.taps).map(|tap| inside(at, tap)).collect()).collect()
    }
}

/// Gamma and beta of a LayerNorm.
pub(crate) struct Norm {
    node: usize,
    gamma: Vec<f64>,
    beta: Vec<f64>,
}

impl Norm {
    /// A LayerNorm whose gamma and beta are constant.
    pub(crate) fn of(module: &Module, node: usize) -> Option<Norm> {
        let channels = module.ty(module.nodes[node].result).shape.last_fixed()?;
        let [gamma, beta] = [1, 2].map(|i| floats(module, module.nodes[node].operands[i], channels));
        Some(Norm { node, gamma: gamma?, beta: beta? })
    }

    /// Makes every output `(y - centre) / factor`.
    pub(crate) fn give_output(self, module: &mut Module, factor: &[f64], centre: &[f64]) {
        let gamma = self.gamma.iter().zip(factor).map(|(g, f)| g / f);
        replace(module, self.node, 1, &[factor.len()], gamma);
        let beta = self.beta.iter().zip(centre).zip(factor).map(|((b, c), f)| (b - c) / f);
        replace(module, self.node, 2, &[factor.len()], beta);
    }
}

/// A new constant for a node, named after it.
pub(crate) fn constant_at(module: &mut Module, node: usize, what: &str, dims: &[usize], values: &[f32]) -> ValueId {
    let name = format!("{}.{what}", module.nodes[node].loc.as_deref().unwrap_or("channels"));
    module.constant(Const::new(name, TensorType::f32(Shape::fixed(dims)), values))
}

/// Puts a node behind another one: all that read its result read the new node's.
pub(crate) fn insert_behind(module: &mut Module, node: usize, op: Op, constant: ValueId) -> ValueId {
    let (from, loc) = (module.nodes[node].result, module.nodes[node].loc.clone());
    let result = ValueId(module.values.len() as u32);
    let behind = module.nodes.iter_mut().skip(node + 1);
    behind.flat_map(|n| &mut n.operands).filter(|v| **v == from).for_each(|v| *v = result);
    module.outputs.iter_mut().filter(|o| o.value == from).for_each(|o| o.value = result);
    insert(module, node + 1, Node { op, operands: vec![from, constant], result, loc, place: None, region: None });
    result
}

/// Puts a node between the first operand of another one and that: nobody else reads it.
pub(crate) fn insert_before(module: &mut Module, node: usize, op: Op, constant: ValueId) -> ValueId {
    let (from, loc) = (module.nodes[node].operands[0], module.nodes[node].loc.clone());
    let result = ValueId(module.values.len() as u32);
    module.nodes[node].operands[0] = result;
    insert(module, node, Node { op, operands: vec![from, constant], result, loc, place: None, region: None });
    result
}

/// Inserts a node whose result is a new value of the type of its first operand.
fn insert(module: &mut Module, at: usize, node: Node) {
    for value in &mut module.values {
        if let Def::Node(n) = &mut value.def
            && *n >= at
        {
            *n += 1;
        }
    }
    module.values.push(Value { def: Def::Node(at), ty: module.ty(node.operands[0]).clone() });
    module.nodes.insert(at, node);
}

/// The node that yields a value.
pub(crate) fn index_of(module: &Module, v: ValueId) -> Option<usize> {
    match module.values[v.0 as usize].def {
        Def::Node(n) => Some(n),
        _ => None,
    }
}
