//! Ranges of values that only a function reads: what counts is the error behind it. GELU makes everything below -4 nearly zero,
//! so a range that ends there has finer steps and loses nothing.

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Module, Op, Shape, TensorType, ValueId};

use super::histogram::Histogram;

/// The elementwise op that is all that reads a value.
pub(crate) struct Through {
    op: Op,
}

impl Through {
    /// The op that every reader of a value is.
    pub(crate) fn of(module: &Module, v: ValueId) -> Option<Through> {
        let mut readers = module.nodes.iter().filter(|n| n.operands.contains(&v)).map(|n| &n.op);
        let op = readers.next().filter(|op| is_curved(op))?;
        let is_output = module.outputs.iter().any(|o| o.value == v);
        (!is_output && readers.all(|other| other == op)).then(|| Through { op: op.clone() })
    }

    /// The op's results; the points themselves where it yields none.
    fn at(&self, x: &[f64]) -> Vec<f64> {
        let ty = TensorType::f32(Shape::fixed(&[x.len()]));
        let points = Tensor::f32(&[x.len()], x.iter().map(|&x| x as f32).collect());
        let y = eval::eval_op(&self.op, &[&points], &ty, &[&ty], &Default::default());
        match y.ok().as_ref().and_then(|y| y.as_f32()) {
            Some(y) => y.iter().map(|&y| y.into()).collect(),
            None => x.to_vec(),
        }
    }

    /// Squared errors behind the op of grids with so many levels.
    pub(crate) fn errors<'a>(&'a self, h: &Histogram, levels: (i32, i32)) -> impl Fn(f64, i32) -> f64 + 'a {
        let (points, counts): (Vec<f64>, Vec<f64>) = h.points().unzip();
        let exact = self.at(&points);
        move |scale: f64, zero: i32| {
            let levels_at: Vec<f64> = (levels.0..=levels.1).map(|q| f64::from(q - zero) * scale).collect();
            let found = self.at(&levels_at);
            let level = |x: f64| (x / scale).round_ties_even() as i64 + i64::from(zero);
            let index = |x: f64| (level(x).clamp(levels.0.into(), levels.1.into()) - i64::from(levels.0)) as usize;
            let error = |((&x, y), n): ((&f64, &f64), &f64)| n * (y - found[index(x)]).powi(2);
            points.iter().zip(&exact).zip(&counts).map(error).sum()
        }
    }
}

/// Functions of one value that are flat somewhere.
fn is_curved(op: &Op) -> bool {
    matches!(
        op,
        Op::Gelu { .. }
            | Op::Silu {}
            | Op::HardSwish {}
            | Op::HardSigmoid { .. }
            | Op::Sigmoid {}
            | Op::Tanh {}
            | Op::Erf {}
            | Op::Relu {}
            | Op::Clip { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gelu_flattens_costs_nothing() {
        let gelu = Through { op: Op::Gelu { form: vitc_ir::attr::GeluForm::Erf } };
        let values: Vec<f32> = (0..2000).map(|i| i as f32 / 100.0 - 14.0).collect();
        let h = Histogram::of(&values, 14.0);
        let error = gelu.errors(&h, (0, 255));
        let grid = |low: f64, high: f64| (high - low) / 255.0;
        let whole = error(grid(-14.0, 6.0), (14.0 / grid(-14.0, 6.0)).round() as i32);
        let cut = error(grid(-4.0, 6.0), (4.0 / grid(-4.0, 6.0)).round() as i32);
        let too_far = error(grid(-1.0, 6.0), (1.0 / grid(-1.0, 6.0)).round() as i32);
        assert!(cut < 0.5 * whole && cut < too_far, "{whole} {cut} {too_far}");
    }
}
