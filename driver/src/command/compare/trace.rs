//! Values of a graph as real numbers, and how far two of them are apart.

use anyhow::Result;
use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Class, Module, Node, Op, Quant, TensorType};

use crate::io::table::Cell;

/// The result of a node as real numbers.
pub(super) struct Traced {
    /// The ONNX node that the value is the result of: the last one, of several that became one.
    pub(super) place: String,
    /// The op.
    pub(super) op: &'static str,
    /// Whether the op only moves elements.
    pub(super) moves: bool,
    /// Name of the graph output that the value is, if it is one.
    pub(super) output: Option<String>,
    /// Sizes.
    pub(super) shape: Vec<usize>,
    /// Elements.
    pub(super) values: Vec<f32>,
}

/// Evaluates a module and shows every result that stands for real numbers and has a place, in graph order.
pub(super) fn real_values(module: &Module, inputs: &[Tensor], show: &mut dyn FnMut(Traced)) -> Result<()> {
    let mut next = 0;
    eval::trace(module, inputs, &mut |value, tensor| {
        let Some(node) = module.nodes.get(next).filter(|n| n.result == value) else { return };
        next += 1;
        let output = module.outputs.iter().find(|o| o.value == value).map(|o| o.name.clone());
        let place = match (&node.loc, &output) {
            (Some(loc), _) => last_place(loc).to_owned(),
            (None, Some(name)) => name.clone(),
            (None, None) => return,
        };
        if let Some(values) = real(node, module.ty(value), tensor) {
            let moves = node.op.class() == Class::Move;
            show(Traced { place, op: node.op.name(), moves, output, shape: tensor.shape.clone(), values });
        }
    })?;
    Ok(())
}

/// Of names joined by ` + `, the last: the node whose result the value is.
pub(super) fn last_place(loc: &str) -> &str {
    loc.rsplit(" + ").next().unwrap_or(loc)
}

/// The reals that a node's result stands for; `None` for integers without a fixed scale.
fn real(node: &Node, ty: &TensorType, tensor: &Tensor) -> Option<Vec<f32>> {
    // the numerator of a softmax has another scale in every row
    if matches!(node.op, Op::IntExp { .. }) {
        return None;
    }
    match &tensor.data {
        Data::F32(values) => Some(values.clone()),
        _ => Some(dequantized(tensor, ty.quant.as_ref()?)),
    }
}

fn dequantized(tensor: &Tensor, quant: &Quant) -> Vec<f32> {
    let inner: usize = quant.axis.map_or(1, |axis| tensor.shape[axis + 1..].iter().product());
    let channels = quant.scale.len().max(1);
    let zero = i64::from(quant.zero_point);
    let real = |(i, q): (usize, i64)| (quant.scale_at(i / inner.max(1) % channels) * (q - zero) as f64) as f32;
    tensor.to_ints().into_iter().enumerate().map(real).collect()
}

/// How far values are from what they should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measure {
    /// Signal to noise in decibels; infinite when the two are equal.
    pub(super) sqnr_db: f64,
    /// Largest absolute difference.
    pub(super) max_abs: f64,
    /// Root mean square of what they should be.
    pub(super) rms: f64,
}

impl Measure {
    /// Compares element by element; both have as many. A NaN is as far as can be.
    pub(super) fn of(truth: &[f32], found: &[f32]) -> Measure {
        let (mut signal, mut noise, mut max_abs) = (0f64, 0f64, 0f64);
        for (&t, &f) in truth.iter().zip(found) {
            let error = (f64::from(t) - f64::from(f)).abs();
            let error = if error.is_nan() { f64::INFINITY } else { error };
            signal += f64::from(t).powi(2);
            noise += error * error;
            max_abs = max_abs.max(error);
        }
        let sqnr_db = if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() };
        Measure { sqnr_db, max_abs, rms: (signal / truth.len().max(1) as f64).sqrt() }
    }

    /// The ratio for a table.
    pub(super) fn sqnr_cell(&self) -> Cell {
        match self.sqnr_db {
            db if db == f64::INFINITY => Cell::shown_as("exact", serde_json::Value::Null),
            db => Cell::number(db, 1),
        }
    }

    /// The largest difference for a table.
    pub(super) fn max_abs_cell(&self) -> Cell {
        Cell::shown_as(format!("{:.3e}", self.max_abs), self.max_abs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_measured_in_decibels() {
        let m = Measure::of(&[3.0, 4.0], &[3.0, 4.5]);
        assert!((m.sqnr_db - 20.0).abs() < 1e-9);
        assert_eq!((m.max_abs, m.rms), (0.5, 12.5f64.sqrt()));
        assert_eq!(Measure::of(&[1.0], &[1.0]).sqnr_db, f64::INFINITY);
        assert_eq!(Measure::of(&[1.0], &[f32::NAN]).max_abs, f64::INFINITY);
    }

    #[test]
    fn scales_run_along_their_axis() {
        let tensor = Tensor::ints(vitc_ir::Elem::I8, &[2, 2, 1], [1, 2, 3, 4]);
        let quant = Quant::per_axis([1.0, 10.0], 1, 1);
        assert_eq!(dequantized(&tensor, &quant), [0.0, 10.0, 2.0, 30.0]);
    }

    #[test]
    fn the_last_name_is_the_results() {
        assert_eq!(last_place("/a/MatMul + /a/Add"), "/a/Add");
        assert_eq!(last_place("/a/MatMul"), "/a/MatMul");
    }
}
