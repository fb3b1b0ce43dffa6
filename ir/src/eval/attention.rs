//! `fused.attention`: its parts, evaluated one after another.

use super::tensor::{Data, Slice, Tensor, View, same_elem};
use super::{Call, Evaluated, evaluate, match_batch};
use crate::attention::unfold;
use crate::types::TensorType;

pub(super) fn eval(call: &Call) -> Evaluated {
    let mut batch = None;
    match_batch(&call.ty.shape, call.shape, &mut batch)?;
    let operands: Vec<_> = call.operands.iter().zip(call.types).map(|(x, &ty)| (owned(x), ty.clone())).collect();
    let result = unfold(call.op, &operands, |part, inputs| {
        let types: Vec<&TensorType> = inputs.iter().map(|(_, ty)| ty).collect();
        let views: Vec<View> = inputs.iter().map(|(x, _)| x.view()).collect();
        let ty = part.infer(&types)?;
        let result = evaluate(&part, &views, &ty, &types, call.lanes, batch.unwrap_or(1))?;
        Ok::<_, super::Fault>((result, ty))
    })?;
    Ok(result.0.data)
}

fn owned(x: &View) -> Tensor {
    Tensor { shape: x.shape.to_vec(), data: same_elem!(x.data, xs => xs.to_vec()) }
}
