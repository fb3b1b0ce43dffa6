//! The reference evaluator: what every op means, in plain code.
//!
//! Integer ops are exact: where the op table says that a value fits 32 bits the evaluator checks it and reports an error
//! rather than wrap. Float ops serve calibration and constant folding and are fast enough for that; their last bits may
//! differ between machines, because the matrix products use whatever vector instructions there are.

mod attention;
mod conv;
mod float;
mod fused;
mod gemm;
mod int;
mod linear_attention;
mod math;
mod movement;
mod rows;
mod tensor;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use tensor::{Data, Tensor};

use crate::diag::Diagnostic;
use crate::graph::{Const, Def, Module, Node, ValueId};
use crate::lane;
use crate::op::{Class, Op};
use crate::types::{Elem, Shape, TensorType};
use tensor::{Stored, View, elements};

/// Most elements of a tensor; more is an error rather than an attempt to allocate it.
const MAX_ELEMENTS: usize = 1 << 31;

/// What went wrong in one op.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    code: &'static str,
    message: String,
}

impl Fault {
    /// A value that does not fit where it must.
    fn overflow(message: impl Into<String>) -> Fault {
        Fault { code: "overflow", message: message.into() }
    }

    /// Anything else.
    fn eval(message: impl Into<String>) -> Fault {
        Fault { code: "eval", message: message.into() }
    }
}

impl From<String> for Fault {
    fn from(message: String) -> Fault {
        Fault::eval(message)
    }
}

/// One op with everything its evaluation needs. The operands have the sizes of their types at the batch, the types obey
/// the op's rule, and the result has at least one element.
pub(crate) struct Call<'a> {
    op: &'a Op,
    operands: &'a [View<'a>],
    types: &'a [&'a TensorType],
    ty: &'a TensorType,
    /// Sizes of the result.
    shape: &'a [usize],
    lanes: &'a BTreeMap<String, lane::Program>,
}

/// What the evaluation of an op yields: the elements; the shape is known beforehand.
pub(crate) type Evaluated = Result<Data, Fault>;

/// Evaluates the module: one tensor for each input in, one for each output out. The batch is read off the inputs.
pub fn run(module: &Module, inputs: &[Tensor]) -> Result<Vec<Tensor>, Diagnostic> {
    trace(module, inputs, &mut |_, _| {})
}

/// [`run`] that shows every input and every node's result to `observe` as soon as it is known; values are dropped after
/// their last use.
pub fn trace(
    module: &Module,
    inputs: &[Tensor],
    observe: &mut dyn FnMut(ValueId, &Tensor),
) -> Result<Vec<Tensor>, Diagnostic> {
    let mut steps = Steps::new(module, inputs)?;
    module.inputs.iter().zip(inputs).for_each(|(input, tensor)| observe(input.value, tensor));
    steps.through(module.nodes.len(), observe)?;
    module.outputs.iter().map(|o| steps.run.output(o.value)).collect()
}

/// An evaluation that stops where somebody wants to look at a value, or to change it.
pub struct Steps<'a> {
    run: Run<'a>,
    /// The node that comes next.
    next: usize,
}

impl<'a> Steps<'a> {
    /// Before the first node.
    pub fn new(module: &'a Module, inputs: &'a [Tensor]) -> Result<Steps<'a>, Diagnostic> {
        let mut run = Run { module, batch: batch(module, inputs)?, values: Vec::new(), uses: module.use_counts() };
        run.values.resize_with(module.values.len(), || Held::Nothing);
        for (input, tensor) in module.inputs.iter().zip(inputs) {
            run.values[input.value.0 as usize] = Held::Input(tensor);
        }
        Ok(Steps { run, next: 0 })
    }

    /// Evaluates the nodes before node `end` that are left, and shows every result.
    pub fn through(&mut self, end: usize, observe: &mut dyn FnMut(ValueId, &Tensor)) -> Result<(), Diagnostic> {
        for (index, node) in self.run.module.nodes.iter().enumerate().take(end).skip(self.next) {
            let result = self.run.node(node).map_err(|fault| located(fault, node, index))?;
            observe(node.result, &result);
            self.run.release(node);
            if self.run.uses[node.result.0 as usize] > 0 {
                self.run.values[node.result.0 as usize] = Held::Result(result);
            }
        }
        self.next = self.next.max(end);
        Ok(())
    }

    /// The result of a node, while something is still to use it.
    pub fn result_mut(&mut self, v: ValueId) -> Option<&mut Tensor> {
        match self.run.values.get_mut(v.0 as usize) {
            Some(Held::Result(tensor)) => Some(tensor),
            _ => None,
        }
    }
}

/// One op on its own, as constant folding wants it. The batch is deduced from the operands; a result that depends on the
/// batch where no operand does is an error.
pub fn eval_op(
    op: &Op,
    operands: &[&Tensor],
    ty: &TensorType,
    operand_types: &[&TensorType],
    lanes: &BTreeMap<String, lane::Program>,
) -> Result<Tensor, String> {
    if operands.len() != operand_types.len() {
        return Err(format!("{} operands with {} types", operands.len(), operand_types.len()));
    }
    let mut batch = None;
    for (tensor, ty) in operands.iter().zip(operand_types) {
        match_batch(&ty.shape, &tensor.shape, &mut batch)?;
    }
    if batch.is_none() && ty.shape.0.iter().any(|d| d.batch) {
        return Err("the result depends on the batch and no operand says what it is".into());
    }
    let views: Vec<View> = operands.iter().map(|t| t.view()).collect();
    evaluate(op, &views, ty, operand_types, lanes, batch.unwrap_or(1)).map_err(|f| f.message)
}

/// A value while it lives.
enum Held<'a> {
    /// Not computed yet, or dead.
    Nothing,
    Input(&'a Tensor),
    Result(Tensor),
}

/// An operand, ready to be viewed.
enum Operand<'a> {
    Tensor(&'a Tensor),
    Const(Vec<usize>, Stored<'a>),
}

impl Operand<'_> {
    fn view(&self) -> View<'_> {
        match self {
            Operand::Tensor(t) => t.view(),
            Operand::Const(shape, stored) => View { shape, data: stored.slice() },
        }
    }
}

struct Run<'a> {
    module: &'a Module,
    batch: usize,
    values: Vec<Held<'a>>,
    /// Uses of each value still to come.
    uses: Vec<usize>,
}

impl Run<'_> {
    fn node(&mut self, node: &Node) -> Result<Tensor, Fault> {
        if let Some(result) = self.reshape_in_place(node) {
            return result;
        }
        let operands: Vec<Operand> = node.operands.iter().map(|&v| self.operand(v)).collect::<Result<_, _>>()?;
        let views: Vec<View> = operands.iter().map(Operand::view).collect();
        let types: Vec<&TensorType> = node.operands.iter().map(|&v| self.module.ty(v)).collect();
        evaluate(&node.op, &views, self.module.ty(node.result), &types, &self.module.lanes, self.batch)
    }

    fn operand(&self, v: ValueId) -> Result<Operand<'_>, Fault> {
        let Some(value) = self.module.values.get(v.0 as usize) else {
            return Err(Fault::eval("an operand does not exist"));
        };
        match (&self.values[v.0 as usize], value.def) {
            (Held::Input(t), _) => Ok(Operand::Tensor(t)),
            (Held::Result(t), _) => Ok(Operand::Tensor(t)),
            (Held::Nothing, Def::Const(c)) => {
                let constant: &Const = self.module.consts.get(c).ok_or_else(|| Fault::eval("a constant is missing"))?;
                Stored::of(constant).map(|(shape, stored)| Operand::Const(shape, stored))
            }
            (Held::Nothing, _) => Err(Fault::eval("an operand is used before it is computed")),
        }
    }

    /// A reshape of a value that dies here takes the buffer over.
    fn reshape_in_place(&mut self, node: &Node) -> Option<Result<Tensor, Fault>> {
        let (Op::Reshape { shape }, [x]) = (&node.op, node.operands.as_slice()) else { return None };
        let slot = x.0 as usize;
        if self.uses.get(slot) != Some(&1) || !matches!(self.values[slot], Held::Result(_)) {
            return None;
        }
        if let Err(message) = check_types(&node.op, &[self.module.ty(*x)], self.module.ty(node.result)) {
            return Some(Err(message));
        }
        match std::mem::replace(&mut self.values[slot], Held::Nothing) {
            Held::Result(t) => Some(Ok(Tensor { shape: shape.at(self.batch), data: t.data })),
            _ => None,
        }
    }

    /// Drops what the node used last.
    fn release(&mut self, node: &Node) {
        for v in &node.operands {
            let slot = v.0 as usize;
            self.uses[slot] = self.uses[slot].saturating_sub(1);
            if self.uses[slot] == 0 {
                self.values[slot] = Held::Nothing;
            }
        }
    }

    fn output(&mut self, v: ValueId) -> Result<Tensor, Diagnostic> {
        let slot = v.0 as usize;
        self.uses[slot] = self.uses[slot].saturating_sub(1);
        let last = self.uses[slot] == 0;
        match (&mut self.values[slot], self.module.const_of(v)) {
            (Held::Input(t), _) => Ok(t.clone()),
            (Held::Result(t), _) if last => Ok(std::mem::take(t)),
            (Held::Result(t), _) => Ok(t.clone()),
            (Held::Nothing, Some(c)) => Tensor::from_const(c).map_err(|e| Diagnostic::new("eval", e)),
            (Held::Nothing, None) => Err(Diagnostic::new("eval", "an output is not computed")),
        }
    }
}

fn located(fault: Fault, node: &Node, index: usize) -> Diagnostic {
    let place = match &node.loc {
        Some(loc) => loc.to_string(),
        None => format!("node {index}"),
    };
    Diagnostic::new(fault.code, format!("{}: {}", node.op.name(), fault.message)).at(place)
}

/// The batch that the inputs agree on; 1 when no input depends on it.
fn batch(module: &Module, inputs: &[Tensor]) -> Result<usize, Diagnostic> {
    if inputs.len() != module.inputs.len() {
        let message = format!("{} inputs given, the module wants {}", inputs.len(), module.inputs.len());
        return Err(Diagnostic::new("input-count", message));
    }
    let mut batch = None;
    for (input, tensor) in module.inputs.iter().zip(inputs) {
        let ty = module.ty(input.value);
        if tensor.elem() != ty.elem || elements(&tensor.shape) != Some(tensor.data.len()) {
            let message = format!("the input is {} of shape {:?}, wants {ty}", tensor.elem(), tensor.shape);
            return Err(Diagnostic::new("input-type", message).at(&*input.name));
        }
        match_batch(&ty.shape, &tensor.shape, &mut batch)
            .map_err(|e| Diagnostic::new("input-shape", e).at(&*input.name))?;
    }
    Ok(batch.unwrap_or(1))
}

/// Checks concrete sizes against a shape, deducing the batch or comparing with what is known of it.
fn match_batch(shape: &Shape, sizes: &[usize], batch: &mut Option<usize>) -> Result<(), String> {
    let misfit = || format!("sizes {sizes:?} do not fit the shape [{shape}]");
    if shape.rank() != sizes.len() {
        return Err(misfit());
    }
    for (dim, &size) in shape.0.iter().zip(sizes) {
        if dim.batch && dim.size > 0 {
            if size == 0 || size % dim.size != 0 {
                return Err(misfit());
            }
            let n = size / dim.size;
            if *batch.get_or_insert(n) != n {
                return Err(format!("{}: the batch is {} elsewhere", misfit(), batch.unwrap_or(0)));
            }
        } else if dim.size != size {
            return Err(misfit());
        }
    }
    Ok(())
}

/// The declared result type must be what the op's rule says, quantization aside.
fn check_types(op: &Op, operand_types: &[&TensorType], ty: &TensorType) -> Result<(), Fault> {
    let inferred = op.infer(operand_types)?;
    if inferred.elem != ty.elem || inferred.shape != ty.shape {
        return Err(Fault::eval(format!("the result is declared {ty}, computed {inferred}")));
    }
    Ok(())
}

/// The sizes of a type at a batch, when they are within limits.
fn sizes(ty: &TensorType, batch: usize) -> Result<Vec<usize>, Fault> {
    let fits = |d: &crate::types::Dim| !d.batch || d.size.checked_mul(batch).is_some();
    let shape = ty.shape.0.iter().all(fits).then(|| ty.shape.at(batch));
    shape
        .filter(|s| elements(s).is_some_and(|n| n <= MAX_ELEMENTS))
        .ok_or_else(|| Fault { code: "too-large", message: format!("{ty} at batch {batch} has too many elements") })
}

fn evaluate(
    op: &Op,
    operands: &[View],
    ty: &TensorType,
    types: &[&TensorType],
    lanes: &BTreeMap<String, lane::Program>,
    batch: usize,
) -> Result<Tensor, Fault> {
    check_types(op, types, ty)?;
    for (view, operand) in operands.iter().zip(types) {
        if view.elem() != operand.elem
            || view.shape != sizes(operand, batch)?
            || elements(view.shape) != Some(view.len())
        {
            return Err(Fault::eval(format!("an operand of type {operand} is {} of {:?}", view.elem(), view.shape)));
        }
    }
    let shape = sizes(ty, batch)?;
    if shape.contains(&0) {
        return Ok(Tensor { shape, data: Data::empty(ty.elem) });
    }
    let data = dispatch(&Call { op, operands, types, ty, shape: &shape, lanes })?;
    debug_assert_eq!((data.elem(), Some(data.len())), (ty.elem, elements(&shape)), "{}", op.name());
    Ok(Tensor { shape, data })
}

fn dispatch(call: &Call) -> Evaluated {
    match call.op.class() {
        Class::Move => movement::eval(call),
        Class::Float => float::eval(call),
        Class::Quant => float::convert(call),
        Class::Int => int::eval(call),
        Class::Fused if matches!(call.op, Op::FusedAttention { .. }) => attention::eval(call),
        Class::Fused => fused::eval(call),
    }
}

/// The error of an op that reached the wrong family, which the table rules out.
fn misplaced(call: &Call) -> Evaluated {
    Err(Fault::eval(format!("`{}` has no evaluation", call.op.name())))
}

/// A per-channel quantization as scales along (outer, channel, inner) blocks of a shape.
struct Channels {
    count: usize,
    inner: usize,
}

impl Channels {
    /// `axis` of `shape` as the channel.
    fn of(shape: &[usize], axis: usize) -> Channels {
        Channels { count: shape[axis], inner: shape[axis + 1..].iter().product() }
    }

    /// Calls `f(channel, chunk)` for each run of elements of one channel, in storage order.
    fn for_each<'x, T>(&self, xs: &'x [T], mut f: impl FnMut(usize, &'x [T])) {
        for (i, chunk) in xs.chunks_exact(self.inner.max(1)).enumerate() {
            f(i % self.count.max(1), chunk);
        }
    }
}

/// Whether `elem` is one of the narrow integer types.
fn narrow(elem: Elem) -> bool {
    matches!(elem, Elem::U8 | Elem::I8 | Elem::I16)
}
