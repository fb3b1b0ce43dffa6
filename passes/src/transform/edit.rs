//! Rescaling in place: constants are replaced, nodes stay, so that values keep their ids.

use vitc_ir::{Const, Module, Shape, TensorType, ValueId};

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

    /// Writes weights and bias back as new constants.
    pub(crate) fn store(self, module: &mut Module) {
        replace(module, self.node, 1, &[self.rows, self.columns], self.weights.into_iter());
        if self.touched_bias {
            replace(module, self.node, 2, &[self.columns], self.bias.into_iter());
        }
    }
}
