//! Types: what the rules of the table say, quantizations, sizes, the bytes of constants.

use super::{Checker, brief, limits, stored_len};
use crate::graph::ValueId;
use crate::op::{Class, Op};
use crate::types::{Quant, TensorType};

impl Checker<'_> {
    /// Every value's type by itself, and the bytes of the constants. Returns for each value whether its type is sound.
    pub(super) fn types(&mut self) -> Vec<bool> {
        let m = self.m;
        let values = m.values.iter().enumerate();
        let sound = values.map(|(i, value)| self.value_type(ValueId(i as u32), &value.ty)).collect();
        for c in &m.consts {
            match stored_len(&c.ty, c.layout) {
                Ok(len) if len == c.data.len() => {}
                Ok(len) => {
                    let message = format!("{} bytes, the type wants {len}", c.data.len());
                    self.report("const-data", format!("const {:?}", c.name), message);
                }
                Err(e) => self.report("const-data", format!("const {:?}", c.name), e),
            }
        }
        sound
    }

    fn value_type(&mut self, v: ValueId, ty: &TensorType) -> bool {
        let before = self.found.0.len();
        if ty.shape.rank() > limits::RANK {
            self.report("limit-rank", self.value_place(v), format!("rank {}", ty.shape.rank()));
        }
        let sizes = ty.shape.0.iter().map(|d| d.size);
        if sizes.chain([ty.shape.count().map_or(usize::MAX, |d| d.size)]).any(|n| n > limits::ELEMENTS) {
            self.report("limit-elements", self.value_place(v), "too many elements, or the batch squared");
        }
        if let Some(quant) = &ty.quant {
            for (code, message) in quant_problems(quant, ty) {
                self.report(code, self.value_place(v), message);
            }
        }
        self.found.0.len() == before
    }

    /// The result type is what the op's rule says.
    pub(super) fn node_type(&mut self, node: usize) {
        let (m, n) = (self.m, &self.m.nodes[node]);
        let operands: Vec<_> = n.operands.iter().map(|&v| m.ty(v)).collect();
        let (least, most) = n.op.info().arity();
        if operands.len() < least || operands.len() > most {
            let wanted = n.op.info().operands.join(", ");
            return self.at_node(node, "operand-count", format!("{} operands, wants ({wanted})", operands.len()));
        }
        let result = m.ty(n.result);
        match n.op.infer(&operands) {
            Err(e) => self.at_node(node, "type-rule", e),
            Ok(ty) if (ty.elem, &ty.shape) != (result.elem, &result.shape) => {
                self.at_node(node, "result-type", format!("declared {}, its rule says {}", brief(result), brief(&ty)));
            }
            Ok(ty) if n.op.class() == Class::Move && ty.quant != result.quant => {
                self.at_node(node, "movement-quant", "movement passes its operand's quantization on unchanged");
            }
            Ok(_) if matches!(n.op, Op::Quantize { .. }) && result.quant.is_none() => {
                self.at_node(node, "missing-quant", "the result type of `quantize` says how to quantize");
            }
            Ok(_) => {}
        }
    }
}

fn quant_problems(quant: &Quant, ty: &TensorType) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    let range = ty.elem.range().filter(|_| ty.elem.is_int());
    match range {
        None => problems.push(("quant-elem", format!("a quantization of {}", ty.elem))),
        Some((lo, hi)) if !(lo..=hi).contains(&quant.zero_point.into()) => {
            problems.push(("quant-zero-point", format!("zero point {} is not of type {}", quant.zero_point, ty.elem)));
        }
        Some(_) => {}
    }
    if let Some(bad) = quant.scale.iter().find(|s| !s.0.is_finite() || s.0 <= 0.0) {
        problems.push(("quant-scale", format!("a scale of {:e}", bad.0)));
    }
    let wanted = match quant.axis {
        None => Some(1),
        Some(axis) => ty.shape.0.get(axis).and_then(|d| d.as_fixed()),
    };
    if wanted != Some(quant.scale.len()) {
        let message = format!("{} scales, axis {:?} of {}", quant.scale.len(), quant.axis, brief(ty));
        problems.push(("quant-axis", message));
    }
    problems
}
