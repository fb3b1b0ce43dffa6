//! Evaluates what the module computes from constants alone, where an op has to know it at import. Exporters write masks as
//! such arithmetic.

use std::collections::HashMap;
use std::rc::Rc;

use vitc_ir::eval::{Tensor, eval_op};
use vitc_ir::{Class, Def, Module, Op, ValueId};

use crate::known::{Kind, Known, count};

/// Elements at most of a value that is evaluated, and of every value that it is made of.
const MOST: usize = 1 << 20;

/// What has been found out about the values of a module.
#[derive(Default)]
pub(crate) struct Computed {
    /// For each value, whether it can be evaluated; as long as the module was when last asked.
    constant: Vec<bool>,
    tensors: HashMap<ValueId, Rc<Tensor>>,
}

impl Computed {
    /// The content of a value, when it depends on no input and is cheap to evaluate. `pay` accounts for elements, and says
    /// whether there is room for them.
    pub(crate) fn content(
        &mut self,
        module: &Module,
        value: ValueId,
        pay: &mut dyn FnMut(usize) -> bool,
    ) -> Option<Known> {
        self.classify(module);
        for needed in self.needed(module, value)? {
            let total = count(&module.ty(needed).shape.as_fixed()?)?;
            let tensor = if pay(total) { self.evaluate(module, needed)? } else { return None };
            self.tensors.insert(needed, Rc::new(tensor));
        }
        let tensor = self.tensors.get(&value)?;
        let data = tensor.as_f32()?.iter().map(|&v| f64::from(v).into()).collect();
        Some(Known { kind: Kind::F32, dims: tensor.shape.clone(), data })
    }

    /// Extends what is known to values made since. Operands come before what uses them.
    fn classify(&mut self, module: &Module) {
        for value in module.values.iter().skip(self.constant.len()) {
            let small = value.ty.shape.as_fixed().and_then(|d| count(&d)).is_some_and(|c| c <= MOST);
            let constant = |v: &ValueId| self.constant.get(v.0 as usize) == Some(&true);
            let made_of_constants = match value.def {
                Def::Input(_) => false,
                Def::Const(_) => true,
                Def::Node(n) => module.nodes.get(n).is_some_and(|n| is_cheap(&n.op) && n.operands.iter().all(constant)),
            };
            self.constant.push(small && made_of_constants);
        }
    }

    /// The values to evaluate for one, in order; `None` when it cannot be evaluated.
    fn needed(&self, module: &Module, value: ValueId) -> Option<Vec<ValueId>> {
        self.constant.get(value.0 as usize).filter(|c| **c)?;
        let (mut found, mut open) = (std::collections::BTreeSet::new(), vec![value]);
        while let Some(value) = open.pop() {
            if !self.tensors.contains_key(&value) && found.insert(value) {
                open.extend(module.node_of(value).into_iter().flat_map(|n| n.operands.iter().copied()));
            }
        }
        Some(found.into_iter().collect())
    }

    fn evaluate(&self, module: &Module, value: ValueId) -> Option<Tensor> {
        if let Some(constant) = module.const_of(value) {
            return Tensor::from_const(constant).ok();
        }
        let node = module.node_of(value)?;
        let operands: Vec<&Tensor> =
            node.operands.iter().map(|v| self.tensors.get(v).map(Rc::as_ref)).collect::<Option<_>>()?;
        let types: Vec<_> = node.operands.iter().map(|&v| module.ty(v)).collect();
        eval_op(&node.op, &operands, module.ty(value), &types, &module.lanes).ok()
    }
}

/// Whether an op takes a time in proportion to its operands and result.
fn is_cheap(op: &Op) -> bool {
    matches!(op.class(), Class::Move | Class::Float) && !matches!(op, Op::MatMul { .. } | Op::Conv2d { .. })
}
