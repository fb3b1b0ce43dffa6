//! Every op against values computed by hand or by an independent formula.

mod attention;
mod driver;
mod floats;
mod ints;
mod lanes;
mod linear_attention;
mod moves;

use super::*;
use crate::graph::Stage;

/// A tensor of small varied floats.
pub(super) fn wave(shape: &[usize]) -> Tensor {
    let count = elements(shape).unwrap();
    Tensor::f32(shape, (0..count).map(|i| ((i * 7 + 3) % 23) as f32 * 0.25 - 2.5).collect())
}

/// Integers that cover the range of `elem`.
pub(super) fn spread(elem: Elem, shape: &[usize]) -> Tensor {
    let (lo, hi) = elem.range().unwrap();
    let count = elements(shape).unwrap() as i64;
    Tensor::ints(elem, shape, (0..count).map(|i| lo + (i * 7919 + 13) % (hi - lo + 1)))
}

/// Type of a tensor, without the batch.
pub(super) fn type_of(t: &Tensor) -> TensorType {
    TensorType::new(t.elem(), Shape::fixed(&t.shape))
}

/// One op on these operands, the result type inferred, evaluated both alone and in a module.
pub(super) fn eval(op: Op, operands: &[Tensor]) -> Result<Tensor, Diagnostic> {
    let mut module = Module::new("one", Stage::Import);
    let ids: Vec<_> = operands.iter().enumerate().map(|(i, t)| module.input(format!("x{i}"), type_of(t))).collect();
    let y = module.push(op.clone(), &ids, Some("the node".into())).unwrap();
    module.output("y", y);
    let types: Vec<_> = operands.iter().map(type_of).collect();
    let alone = eval_op(
        &op,
        &operands.iter().collect::<Vec<_>>(),
        module.ty(y),
        &types.iter().collect::<Vec<_>>(),
        &module.lanes,
    );
    let result = run(&module, operands).map(|mut outputs| outputs.remove(0));
    assert_eq!(alone.is_ok(), result.is_ok());
    if let (Ok(alone), Ok(result)) = (&alone, &result) {
        assert_eq!(format!("{alone:?}"), format!("{result:?}"));
    }
    result
}

/// The float result of [`eval`].
pub(super) fn floats(op: Op, operands: &[Tensor]) -> Vec<f32> {
    eval(op, operands).unwrap().as_f32().unwrap().to_vec()
}

/// The integer result of [`eval`].
pub(super) fn ints(op: Op, operands: &[Tensor]) -> Vec<i64> {
    eval(op, operands).unwrap().to_ints()
}

#[track_caller]
pub(super) fn assert_close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() <= tolerance * w.abs().max(1.0), "element {i}: {g} against {w}");
    }
}
