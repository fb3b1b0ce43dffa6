//! One image through the float graph, and again with a few operands changed: only what depends on them is evaluated.

use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Diagnostic, Dim, Module, Shape, TensorType, ValueId};

use crate::quantize::given::Grid;

/// What becomes of an operand.
pub(crate) enum Change<'a> {
    /// Another constant.
    Constant(&'a Tensor),
    /// Rounded to a grid.
    Grid(&'a Grid),
}

/// Changes by node and operand, in order.
pub(crate) type Changes<'a> = Vec<((usize, usize), Change<'a>)>;

/// A module with its constants as tensors.
pub(crate) struct Replay<'m> {
    module: &'m Module,
    consts: Vec<Option<Tensor>>,
    /// The node that reads a value last.
    last_use: Vec<usize>,
}

impl<'m> Replay<'m> {
    pub(crate) fn new(module: &'m Module) -> Result<Replay<'m>, Diagnostic> {
        let mut consts = vec![None; module.values.len()];
        let mut last_use = vec![0; module.values.len()];
        for (n, node) in module.nodes.iter().enumerate() {
            for &v in &node.operands {
                last_use[v.0 as usize] = n;
                if let (Some(c), None) = (module.const_of(v), &consts[v.0 as usize]) {
                    consts[v.0 as usize] = Some(Tensor::from_const(c).map_err(|m| Diagnostic::new("internal", m))?);
                }
            }
        }
        module.outputs.iter().for_each(|o| last_use[o.value.0 as usize] = usize::MAX);
        Ok(Replay { module, consts, last_use })
    }

    /// Every value for an image.
    pub(crate) fn whole(&self, inputs: &[Tensor]) -> Result<Vec<Option<Tensor>>, Diagnostic> {
        let mut values = vec![None; self.module.values.len()];
        eval::trace(self.module, inputs, &mut |v, tensor| values[v.0 as usize] = Some(tensor.clone()))?;
        Ok(values)
    }

    /// The first output when operands are changed; `values` are those of the image otherwise.
    pub(crate) fn changed(&self, values: &[Option<Tensor>], changes: &Changes<'_>) -> Result<Tensor, Diagnostic> {
        let mut fresh: Vec<Option<Tensor>> = vec![None; self.module.values.len()];
        let first = changes.first().map_or(usize::MAX, |((n, _), _)| *n);
        for n in first..self.module.nodes.len() {
            let node = &self.module.nodes[n];
            let here: Vec<_> = changes.iter().filter(|((m, _), _)| *m == n).collect();
            if here.is_empty() && node.operands.iter().all(|v| fresh[v.0 as usize].is_none()) {
                continue;
            }
            let of = |i: usize| here.iter().find(|((_, j), _)| *j == i).map(|(_, change)| change);
            let rounded: Vec<Option<Tensor>> = (0..node.operands.len())
                .map(|i| match of(i) {
                    Some(Change::Grid(grid)) => {
                        Some(on_grid(self.value(node.operands[i], values, &fresh)?, grid)).transpose()
                    }
                    _ => Ok(None),
                })
                .collect::<Result<_, Diagnostic>>()?;
            let operands: Vec<&Tensor> = (0..node.operands.len())
                .map(|i| match (of(i), &rounded[i]) {
                    (Some(Change::Constant(constant)), _) => Ok(*constant),
                    (_, Some(rounded)) => Ok(rounded),
                    _ => self.value(node.operands[i], values, &fresh),
                })
                .collect::<Result<_, Diagnostic>>()?;
            let result = self.node(n, &operands)?;
            fresh[node.result.0 as usize] = Some(result);
            let done = node.operands.iter().filter(|v| self.last_use[v.0 as usize] == n);
            done.for_each(|v| fresh[v.0 as usize] = None);
        }
        self.output(values, &fresh).cloned()
    }

    /// The first output for an image.
    pub(crate) fn output<'t>(
        &self,
        values: &'t [Option<Tensor>],
        fresh: &'t [Option<Tensor>],
    ) -> Result<&'t Tensor, Diagnostic>
    where
        'm: 't,
    {
        let output = self.module.outputs.first().ok_or_else(|| Diagnostic::new("mixed", "the model has no output"))?;
        let v = output.value.0 as usize;
        let known = fresh.get(v).and_then(Option::as_ref).or(values[v].as_ref());
        known.ok_or_else(|| Diagnostic::new("mixed", "the model's first output is a constant"))
    }

    fn node(&self, n: usize, operands: &[&Tensor]) -> Result<Tensor, Diagnostic> {
        let (module, node) = (self.module, &self.module.nodes[n]);
        let types: Vec<_> = node.operands.iter().map(|&v| module.ty(v)).collect();
        let result = eval::eval_op(&node.op, operands, module.ty(node.result), &types, &module.lanes);
        let place = || node.loc.as_deref().unwrap_or(node.op.name()).to_string();
        result.map_err(|m| Diagnostic::new("eval", m).at(place()))
    }

    fn value<'t>(
        &'t self,
        v: ValueId,
        values: &'t [Option<Tensor>],
        fresh: &'t [Option<Tensor>],
    ) -> Result<&'t Tensor, Diagnostic> {
        let v = v.0 as usize;
        let known = fresh[v].as_ref().or(values[v].as_ref()).or(self.consts[v].as_ref());
        known.ok_or_else(|| Diagnostic::new("internal", "a value is not known"))
    }
}

/// A tensor of reals rounded to the levels of a grid.
fn on_grid(x: &Tensor, grid: &Grid) -> Result<Tensor, Diagnostic> {
    let Data::F32(values) = &x.data else {
        return Err(Diagnostic::new("internal", "what a product reads is not float"));
    };
    if let Some(op) = grid.rows.as_ref().map(|rows| rows.op(grid)) {
        let dims: Vec<Dim> = x.shape.iter().map(|&n| Dim::fixed(n)).collect();
        let ty = TensorType::f32(Shape(dims));
        let rounded = eval::eval_op(&op, &[x], &ty, &[&ty], &Default::default());
        return rounded.map_err(|m| Diagnostic::new("internal", m));
    }
    let scale = grid.quant.scale_at(0) as f32;
    let rounded = grid.integers(values).into_iter().map(|q| q * scale);
    Ok(Tensor { shape: x.shape.clone(), data: Data::F32(rounded.collect()) })
}
