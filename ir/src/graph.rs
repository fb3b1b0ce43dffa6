//! The graph: SSA values with types, nodes in topological order, constants, and the builder that keeps it well-formed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::lane;
use crate::layout::Layout;
use crate::op::Op;
use crate::types::{Elem, Quant, TensorType};

/// A value of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// A constant tensor. `data` is little-endian, row-major, or in `layout` when there is one; the type is always the
/// logical one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Const {
    /// Name, unique among the constants of the module, without the `@`.
    pub name: String,
    /// Logical type.
    pub ty: TensorType,
    /// Physical layout of `data`; plain row-major when absent.
    pub layout: Option<Layout>,
    /// The bytes, often a view into a memory map.
    pub data: Bytes,
}

impl Const {
    /// A row-major constant of plain values.
    pub fn new<T: bytemuck::NoUninit>(name: impl Into<String>, ty: TensorType, values: &[T]) -> Const {
        Const { name: name.into(), ty, layout: None, data: Bytes::copy_from_slice(bytemuck::cast_slice(values)) }
    }

    /// The values as `T`, borrowed when the bytes are aligned. `T` must be the Rust type of the element type.
    pub fn values<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self) -> Cow<'_, [T]> {
        match bytemuck::try_cast_slice(&self.data) {
            Ok(slice) => Cow::Borrowed(slice),
            Err(_) => Cow::Owned(bytemuck::allocation::pod_collect_to_vec(&self.data)),
        }
    }

    /// The bytes row by row, out of the packed layout; `None` when there is none, or one that is not of the type.
    pub fn row_major(&self) -> Option<Vec<u8>> {
        let (layout, dims) = (self.layout?, self.ty.shape.as_fixed()?);
        let (matrices, k, n) = layout.matrices(&dims)?;
        let packed = layout.checked_len(k, n)?;
        if packed.checked_mul(matrices)? != self.data.len() {
            return None;
        }
        Some(self.data.chunks_exact(packed.max(1)).flat_map(|matrix| layout.unpack(k, n, matrix)).collect())
    }

    /// The values of an integer constant, widened to `i64`, in storage order. Empty for floats.
    pub fn ints(&self) -> Vec<i64> {
        match self.ty.elem {
            Elem::F32 => Vec::new(),
            Elem::Bool | Elem::U8 => self.data.iter().map(|&v| v.into()).collect(),
            Elem::I8 => self.data.iter().map(|&v| (v as i8).into()).collect(),
            Elem::I16 => self.values::<i16>().iter().map(|&v| v.into()).collect(),
            Elem::I32 => self.values::<i32>().iter().map(|&v| v.into()).collect(),
            Elem::I64 => self.values::<i64>().into_owned(),
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Def {
    /// Graph input `n`.
    Input(usize),
    /// Constant `n` of the module.
    Const(usize),
    /// Result of node `n`.
    Node(usize),
}

/// A value: its definition and type.
#[derive(Clone, Debug)]
pub struct Value {
    /// Where it comes from.
    pub def: Def,
    /// Its type.
    pub ty: TensorType,
}

/// One operation: operands in, one result out.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Operands.
    pub operands: Vec<ValueId>,
    /// The result.
    pub result: ValueId,
    /// Name of the ONNX node (or nodes, joined by ` + `) it came from.
    pub loc: Option<Arc<str>>,
    /// Planned place of the result in the arena, in bytes per image of the batch. Only in stage `plan`. A node whose place
    /// equals its first operand's and that moves nothing (`reshape`) costs nothing.
    pub place: Option<usize>,
    /// The run of steps that it is part of and that threads walk through without waiting ([`crate::region`]). Only in
    /// stage `plan`; a step without one is a region of its own.
    pub region: Option<usize>,
}

/// A graph input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Name, as in the ONNX model.
    pub name: String,
    /// The value.
    pub value: ValueId,
}

/// A graph output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name, as in the ONNX model.
    pub name: String,
    /// The value.
    pub value: ValueId,
}

/// What a module has been through; decides which ops the verifier accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Just imported: movement and float ops.
    Import,
    /// Cleaned: composite ops recovered, constants folded.
    Clean,
    /// Shapes settled, movement normalised.
    Shape,
    /// Quantize and dequantize explicit.
    Quantize,
    /// No float value between the input quantize and the output.
    Integerize,
    /// Lane programs attached to kernels.
    Fuse,
    /// Weights packed, places in the arena known.
    Plan,
}

impl Stage {
    /// Every stage with its word, in order.
    pub const WORDS: [(Stage, &'static str); 7] = [
        (Stage::Import, "import"),
        (Stage::Clean, "clean"),
        (Stage::Shape, "shape"),
        (Stage::Quantize, "quantize"),
        (Stage::Integerize, "integerize"),
        (Stage::Fuse, "fuse"),
        (Stage::Plan, "plan"),
    ];

    /// The stage's word.
    pub fn word(self) -> &'static str {
        Stage::WORDS.iter().find(|(s, _)| *s == self).map_or("", |(_, w)| w)
    }

    /// The stage of that word.
    pub fn from_word(word: &str) -> Option<Stage> {
        Stage::WORDS.iter().find(|(_, w)| *w == word).map(|(s, _)| *s)
    }
}

/// A module: one graph with its constants and lane programs.
///
/// Build it with [`Module::input`], [`Module::constant`], [`Module::push`] and [`Module::output`]; passes build a new
/// module rather than edit one, so nodes are always in topological order.
#[derive(Clone, Debug)]
pub struct Module {
    /// Name, for people.
    pub name: String,
    /// What it has been through.
    pub stage: Stage,
    /// Free key-value notes that travel with the module and its text (preprocessing, tier, tool version).
    pub meta: BTreeMap<String, String>,
    /// Constants.
    pub consts: Vec<Const>,
    /// Lane programs by name.
    pub lanes: BTreeMap<String, lane::Program>,
    /// Values; a [`ValueId`] is an index into this.
    pub values: Vec<Value>,
    /// Nodes in topological order.
    pub nodes: Vec<Node>,
    /// Inputs in order.
    pub inputs: Vec<Input>,
    /// Outputs in order.
    pub outputs: Vec<Output>,
    /// Arena size in bytes per image of the batch; 0 before stage `plan`.
    pub arena: usize,
}

impl Module {
    /// An empty module.
    pub fn new(name: impl Into<String>, stage: Stage) -> Module {
        Module {
            name: name.into(),
            stage,
            meta: BTreeMap::new(),
            consts: Vec::new(),
            lanes: BTreeMap::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            arena: 0,
        }
    }

    /// An empty module of `stage` with the name and notes of this one, for a pass to fill.
    pub fn successor(&self, stage: Stage) -> Module {
        Module { meta: self.meta.clone(), ..Module::new(self.name.clone(), stage) }
    }

    fn value(&mut self, def: Def, ty: TensorType) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { def, ty });
        id
    }

    /// Adds an input.
    pub fn input(&mut self, name: impl Into<String>, ty: TensorType) -> ValueId {
        let value = self.value(Def::Input(self.inputs.len()), ty);
        self.inputs.push(Input { name: name.into(), value });
        value
    }

    /// Adds a constant; when its name is taken, a number is appended.
    pub fn constant(&mut self, mut c: Const) -> ValueId {
        if self.consts.iter().any(|o| o.name == c.name) {
            let base = c.name.clone();
            let mut n = 1;
            while self.consts.iter().any(|o| o.name == c.name) {
                c.name = format!("{base}.{n}");
                n += 1;
            }
        }
        let value = self.value(Def::Const(self.consts.len()), c.ty.clone());
        self.consts.push(c);
        value
    }

    /// Adds a node whose result type is inferred (no quantization, except for movement).
    pub fn push(&mut self, op: Op, operands: &[ValueId], loc: Option<Arc<str>>) -> Result<ValueId, String> {
        let ty = op.infer(&operands.iter().map(|&v| self.ty(v)).collect::<Vec<_>>())?;
        Ok(self.push_typed(op, operands, ty, loc))
    }

    /// Adds a node whose result type is inferred and given this quantization.
    pub fn push_quant(
        &mut self,
        op: Op,
        operands: &[ValueId],
        quant: Quant,
        loc: Option<Arc<str>>,
    ) -> Result<ValueId, String> {
        let ty = op.infer(&operands.iter().map(|&v| self.ty(v)).collect::<Vec<_>>())?.with_quant(quant);
        Ok(self.push_typed(op, operands, ty, loc))
    }

    /// Adds a node with this result type; the verifier checks it later.
    pub fn push_typed(&mut self, op: Op, operands: &[ValueId], ty: TensorType, loc: Option<Arc<str>>) -> ValueId {
        let result = self.value(Def::Node(self.nodes.len()), ty);
        self.nodes.push(Node { op, operands: operands.to_vec(), result, loc, place: None, region: None });
        result
    }

    /// Declares an output.
    pub fn output(&mut self, name: impl Into<String>, value: ValueId) {
        self.outputs.push(Output { name: name.into(), value });
    }

    /// Adds a lane program under a name made from `base` (an equal program keeps its name) and returns the name.
    pub fn lane(&mut self, base: &str, program: lane::Program) -> String {
        if let Some((name, _)) = self.lanes.iter().find(|(_, p)| **p == program) {
            return name.clone();
        }
        let mut name = base.to_string();
        let mut n = 1;
        while self.lanes.contains_key(&name) {
            name = format!("{base}.{n}");
            n += 1;
        }
        self.lanes.insert(name.clone(), program);
        name
    }

    /// Type of a value.
    pub fn ty(&self, v: ValueId) -> &TensorType {
        &self.values[v.0 as usize].ty
    }

    /// The node that computes a value.
    pub fn node_of(&self, v: ValueId) -> Option<&Node> {
        match self.values[v.0 as usize].def {
            Def::Node(n) => Some(&self.nodes[n]),
            _ => None,
        }
    }

    /// The constant behind a value.
    pub fn const_of(&self, v: ValueId) -> Option<&Const> {
        match self.values[v.0 as usize].def {
            Def::Const(c) => Some(&self.consts[c]),
            _ => None,
        }
    }

    /// How often each value is used as an operand or an output.
    pub fn use_counts(&self) -> Vec<usize> {
        let mut uses = vec![0; self.values.len()];
        let operands = self.nodes.iter().flat_map(|n| n.operands.iter().copied());
        for v in operands.chain(self.outputs.iter().map(|o| o.value)) {
            uses[v.0 as usize] += 1;
        }
        uses
    }
}
