//! Walks the nodes of an ONNX graph and builds the module.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use vitc_ir::graph::Value;
use vitc_ir::{Const, Def, Diagnostic, Diagnostics, Dim, Elem, Module, Op, Quant, Shape, Stage, TensorType, ValueId};

use crate::call::{Call, SMALL};
use crate::computed::Computed;
use crate::external::External;
use crate::known::{ELEMENT_BYTES, Known};
use crate::limits::Limits;
use crate::ops::counted::Counted;
use crate::problem::{Fallible, Kind, Problem, invalid, unsupported};
use crate::proto::{self, dtype};
use crate::ranks::{self, Ranks};
use crate::{Options, ops, tensor};

/// First and last opset of the default domain that import reads.
pub(crate) const OPSETS: std::ops::RangeInclusive<i64> = 7..=25;

/// Problems listed at most; a model of 200 000 unsupported nodes is told so in a few pages.
const MOST_PROBLEMS: usize = 500;

/// What is known about one ONNX value.
#[derive(Clone, Default)]
pub(crate) struct Slot<'a> {
    /// Computed by a node that could not be imported: users are skipped without a word of their own.
    pub unknown: bool,
    /// The constant tensor behind it.
    pub tensor: Option<&'a proto::Tensor>,
    /// Its content.
    pub known: Option<Rc<Known>>,
    /// Its content when that is the same for every image.
    pub repeated: Option<Repeated>,
    /// The value of the module.
    pub value: Option<ValueId>,
    /// Integers that are known but for a multiple of the image's number.
    pub counted: Option<Counted>,
    /// The value stands for integers quantized image by image.
    pub dynamic: bool,
    /// It says where this value, the result of a softmax, is not a number.
    pub nan_of: Option<ValueId>,
    /// It says where a value is positive.
    pub positive: Option<Positive>,
    /// It says which numbers come first.
    pub ranks: Option<Ranks<'a>>,
}

/// A condition on what is computed: that a value is larger than 0, or that it is not.
#[derive(Clone, Copy)]
pub(crate) struct Positive {
    pub value: ValueId,
    pub holds: bool,
}

/// Known content that broadcasts to a shape with the batch, such as a mask of keys.
#[derive(Clone)]
pub(crate) struct Repeated {
    pub content: Rc<Known>,
    pub shape: Shape,
}

/// Everything found wrong.
#[derive(Default)]
pub(crate) struct Problems {
    pub list: Diagnostics,
    pub invalid: bool,
    omitted: usize,
}

impl Problems {
    pub(crate) fn push(&mut self, kind: Kind, diagnostic: Diagnostic) {
        self.invalid |= kind == Kind::Invalid;
        if self.list.0.len() < MOST_PROBLEMS { self.list.push(diagnostic) } else { self.omitted += 1 }
    }

    pub(crate) fn add(&mut self, problem: Problem, place: &str, what: &str) {
        let kind = problem.kind;
        self.push(kind, problem.diagnostic(place, what));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.0.is_empty()
    }

    pub(crate) fn finish(mut self) -> Problems {
        if self.omitted > 0 {
            let message = format!("{} more problems are not listed", self.omitted);
            self.list.push(Diagnostic::new("more", message));
        }
        self
    }
}

/// The state of one import.
pub(crate) struct Importer<'a> {
    pub(crate) module: Module,
    pub(crate) opset: i64,
    pub(crate) limits: &'a Limits,
    /// A model of fixed batch 1 is being given the batch N.
    pub(crate) rebatch: bool,
    pub(crate) slots: HashMap<&'a str, Slot<'a>>,
    /// Names that a node or the graph's outputs use.
    pub(crate) used: HashSet<&'a str>,
    pub(crate) external: External,
    /// Outputs of the model that are values, by name.
    pub(crate) given: Vec<(&'a str, ValueId)>,
    names: HashSet<String>,
    number: usize,
    materialised: HashMap<*const proto::Tensor, ValueId>,
    folded: usize,
    computed: Computed,
    problems: Problems,
}

/// Imports a decoded model, with the batch as N when `rebatch` is set though the file fixes it to 1.
pub(crate) fn import(
    model: &proto::Model,
    base: Option<&Path>,
    options: &Options,
    rebatch: bool,
) -> Result<Module, Problems> {
    let mut problems = Problems::default();
    let Some(graph) = &model.graph else {
        problems.add(invalid("the file holds no graph").help("is this an ONNX model?"), "the file", "");
        return Err(problems);
    };
    let opset = check_header(model, &mut problems);
    let mut importer = Importer {
        module: Module::new(module_name(graph), Stage::Import),
        opset,
        limits: &options.limits,
        rebatch,
        slots: HashMap::new(),
        used: used_names(graph),
        external: External::new(base, &options.limits, options.read_into_memory),
        given: Vec::new(),
        names: HashSet::new(),
        number: 0,
        materialised: HashMap::new(),
        folded: 0,
        computed: Computed::default(),
        problems,
    };
    importer.note(model);
    importer.declare_initializers(graph);
    importer.declare_inputs(graph);
    importer.walk(graph);
    importer.declare_outputs(graph);
    let unknown = |o: &proto::ValueInfo| importer.slots.get(o.name.as_str()).is_none_or(|slot| slot.unknown);
    if importer.problems.is_empty() && graph.output.iter().any(unknown) {
        importer.problems.add(unsupported("an output could not be computed"), "the file", "");
    }
    if importer.problems.is_empty() { Ok(importer.module) } else { Err(importer.problems.finish()) }
}

/// Whether the model has one input whose leading dimension is fixed to 1.
pub(crate) fn has_one_image(model: &proto::Model) -> bool {
    let Some(graph) = &model.graph else { return false };
    let weights: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let mut inputs = graph.input.iter().filter(|i| !weights.contains(i.name.as_str()));
    let (Some(image), None) = (inputs.next(), inputs.next()) else { return false };
    let shape = image.ty.as_ref().and_then(|t| t.tensor.as_ref()).and_then(|t| t.shape.as_ref());
    shape.and_then(|s| s.dim.first()).is_some_and(|d| d.value == Some(1))
}

fn used_names(graph: &proto::Graph) -> HashSet<&str> {
    let operands = graph.node.iter().flat_map(|n| n.input.iter().map(String::as_str));
    let own = operands.chain(graph.output.iter().map(|o| o.name.as_str())).filter(|n| !n.is_empty());
    let branches = graph.node.iter().flat_map(|n| &n.attribute).filter_map(|a| a.g.as_ref());
    own.chain(branches.flat_map(used_names)).collect()
}

/// The graph's name without what a text cannot show.
fn module_name(graph: &proto::Graph) -> String {
    let name: String = graph.name.chars().filter(|c| !c.is_control()).take(200).collect();
    if name.is_empty() { "model".into() } else { name }
}

/// Checks what does not depend on nodes; returns the opset of the default domain.
pub(crate) fn check_header(model: &proto::Model, problems: &mut Problems) -> i64 {
    let default = model.opset_import.iter().find(|o| is_default_domain(&o.domain));
    let opset = default.map_or(0, |o| o.version);
    if default.is_none() {
        problems.add(invalid("no opset of the default domain is declared"), "the file", "");
    } else if !OPSETS.contains(&opset) {
        let (first, last) = (OPSETS.start(), OPSETS.end());
        let problem = unsupported(format!("opset {opset} is not supported, {first} to {last} are")).code("opset");
        problems.add(problem.help("export with opset_version=17 (TorchScript) or 18 (dynamo)"), "the file", "");
    }
    if let Some(function) = model.functions.first() {
        let what =
            format!("{} model-local functions, the first is `{}`", model.functions.len(), shorten(&function.name));
        let help = "inline them when exporting (torch: optimize=True; onnx.inliner.inline_local_functions)";
        problems.add(unsupported(what).help(help), "the file", "");
    }
    opset
}

/// The float type of the model's inputs or weights that is not `float32` and is read as that.
fn other_float(model: &proto::Model) -> Option<&'static str> {
    let graph = model.graph.as_ref()?;
    let tensors = graph.input.iter().filter_map(|i| i.ty.as_ref()?.tensor.as_ref());
    let mut types = tensors.map(|t| t.elem_type).chain(graph.initializer.iter().map(|t| t.data_type));
    types.find(|&t| tensor::is_float(t) && t != dtype::FLOAT).map(dtype::name)
}

/// Whether a domain is the default one.
pub(crate) fn is_default_domain(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// What a node is called in messages and in `loc`.
pub(crate) fn node_name(node: &proto::Node, index: usize) -> String {
    let name = if node.name.is_empty() { format!("{}#{index}", node.op_type) } else { node.name.clone() };
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl<'a> Importer<'a> {
    fn note(&mut self, model: &proto::Model) {
        let clean = |s: &str| s.chars().filter(|c| c.is_ascii_graphic()).take(80).collect::<String>();
        let producer = format!("{} {}", clean(&model.producer_name), clean(&model.producer_version));
        self.module.meta.insert("onnx.opset".into(), self.opset.to_string());
        if let Some(other) = other_float(model) {
            self.module.meta.insert("onnx.read_as_float32".into(), other.to_string());
        }
        self.module.meta.insert("onnx.producer".into(), producer.trim().to_string());
    }

    fn declare_initializers(&mut self, graph: &'a proto::Graph) {
        if !graph.sparse_initializer.is_empty() {
            let problem = unsupported(format!("{} sparse initializers", graph.sparse_initializer.len()));
            self.problems.add(problem.help("store the weights as dense tensors"), "the file", "");
        }
        for tensor in &graph.initializer {
            let slot = Slot { tensor: Some(tensor), ..Slot::default() };
            let place = format!("initializer {}", shorten(&tensor.name));
            match tensor::dims(tensor, self.limits) {
                Ok(_) => self.define(&tensor.name, slot, &place),
                Err(problem) => {
                    self.problems.add(problem, &place, "");
                    self.define(&tensor.name, Slot { unknown: true, ..Slot::default() }, &place);
                }
            }
        }
    }

    /// Gives a name its slot; a name has one definition.
    fn define(&mut self, name: &'a str, slot: Slot<'a>, place: &str) {
        if name.len() > self.limits.name_bytes {
            let shown: String = name.chars().take(40).collect();
            let problem = invalid(format!("the name {shown}... is longer than {} bytes", self.limits.name_bytes));
            self.problems.add(problem.code("limit"), "the file", "");
        }
        if self.slots.insert(name, slot).is_some() {
            self.problems.add(invalid(format!("`{}` is defined twice", shorten(name))), place, "");
        }
    }

    fn declare_inputs(&mut self, graph: &'a proto::Graph) {
        // Before IR version 4, initializers were inputs too.
        let inputs: Vec<_> = graph.input.iter().filter(|i| !self.slots.contains_key(i.name.as_str())).collect();
        if inputs.is_empty() {
            self.problems.add(invalid("the graph has no input"), "the file", "");
        }
        for input in inputs {
            let place = format!("input {}", shorten(&input.name));
            let slot = match self.input_type(input) {
                Ok(ty) => Slot { value: Some(self.module.input(input.name.clone(), ty)), ..Slot::default() },
                Err(problem) => {
                    self.problems.add(problem, &place, "");
                    Slot { unknown: true, ..Slot::default() }
                }
            };
            self.define(&input.name, slot, &place);
        }
    }

    fn input_type(&self, input: &proto::ValueInfo) -> Fallible<TensorType> {
        let tensor = input.ty.as_ref().and_then(|t| t.tensor.as_ref());
        let tensor = tensor.ok_or_else(|| unsupported("only tensors can be inputs"))?;
        let is_bytes = tensor.elem_type == dtype::UINT8;
        if !tensor::is_float(tensor.elem_type) && !is_bytes {
            let name = dtype::name(tensor.elem_type);
            return Err(unsupported(format!("the element type is {name}"))
                .help("export the model with a float32 input, or with uint8 pixels that the graph casts to floats"));
        }
        let shape = tensor.shape.as_ref().ok_or_else(|| unsupported("the shape is not declared"))?;
        let dims =
            shape.dim.iter().enumerate().map(|(axis, d)| self.input_dim(axis, d)).collect::<Fallible<Vec<_>>>()?;
        let shape = Shape(dims);
        self.check_shape(&shape)?;
        // what a byte stands for is itself, until the graph says otherwise
        let bytes = |shape| TensorType::new(Elem::U8, shape).with_quant(Quant::per_tensor(1.0, 0));
        Ok(if is_bytes { bytes(shape) } else { TensorType::f32(shape) })
    }

    fn input_dim(&self, axis: usize, dim: &proto::Dimension) -> Fallible<Dim> {
        match (axis, dim.value) {
            (0, Some(1)) if self.rebatch => Ok(Dim::N),
            (_, Some(size)) if size > 0 => {
                usize::try_from(size).map(Dim::fixed).map_err(|_| invalid("a huge dimension"))
            }
            (_, Some(size)) if size < -1 => Err(invalid(format!("dimension {axis} is {size}"))),
            (0, _) => Ok(Dim::N),
            (axis, _) => {
                let name = shorten(dim.param.as_deref().unwrap_or("unnamed"));
                let problem =
                    unsupported(format!("dimension {axis} is dynamic ({name}); only the batch, dimension 0, may be"));
                Err(problem.help("export with a fixed image size"))
            }
        }
    }

    /// Checks rank and element count of a result.
    pub(crate) fn check_shape(&self, shape: &Shape) -> Fallible<()> {
        if shape.rank() > self.limits.rank {
            let message = format!("[{shape}] has more dimensions than the limit of {}", self.limits.rank);
            return Err(invalid(message).code("limit"));
        }
        match shape.count() {
            Some(count) if count.size <= self.limits.elements => Ok(()),
            Some(_) => {
                let message = format!("[{shape}] has more elements than the limit of {}", self.limits.elements);
                Err(invalid(message).code("limit"))
            }
            None => Err(unsupported(format!("[{shape}] is too large or has the batch in two dimensions"))),
        }
    }

    /// Walks the nodes of a branch as if they were the graph's own.
    pub(crate) fn inline(&mut self, graph: &'a proto::Graph) {
        self.declare_initializers(graph);
        self.walk(graph);
    }

    fn walk(&mut self, graph: &'a proto::Graph) {
        for (index, node) in graph.node.iter().enumerate() {
            self.step(node, index);
            if self.problems.omitted > MOST_PROBLEMS {
                break; // hopeless
            }
        }
    }

    fn step(&mut self, node: &'a proto::Node, index: usize) {
        let mut place = node_name(node, index);
        let too_long = node.op_type.len().max(place.len()) > self.limits.name_bytes;
        if too_long {
            place = shorten(&place);
            let message = format!("a name is longer than {} bytes", self.limits.name_bytes);
            self.problems.add(invalid(message).code("limit"), &place, "");
        }
        let mut outputs = Vec::new();
        match self.run(node, &place) {
            _ if too_long => {}
            Ok(slots) => outputs = slots,
            Err(Some(problem)) => {
                let what = format!("{} (opset {}){}", node.op_type, self.opset, self.operands(node));
                self.problems.add(problem, &place, &what);
            }
            Err(None) => {}
        }
        let mut outputs = outputs.into_iter();
        for name in &node.output {
            let slot = outputs.next().flatten().unwrap_or(Slot { unknown: true, ..Slot::default() });
            if !name.is_empty() {
                self.define(name, slot, &place);
            }
        }
    }

    /// Runs the handler of a node; `Err(None)` when an operand is unknown because of an earlier problem.
    fn run(&mut self, node: &'a proto::Node, place: &str) -> Result<Vec<Option<Slot<'a>>>, Option<Problem>> {
        let handler = ops::handler(&node.domain, &node.op_type);
        let handler = if ranks::is_ranking(node) { None } else { Some(handler.map_err(Some)?) };
        for name in node.input.iter().filter(|n| !n.is_empty()) {
            match self.slots.get(name.as_str()) {
                None => return Err(Some(invalid(format!("the operand `{}` is not defined before", shorten(name))))),
                Some(slot) if slot.unknown => return Err(None),
                Some(_) => {}
            }
        }
        if let Some(ranked) = ranks::step(self, node) {
            return ranked.map_err(Some);
        }
        let handler = match handler {
            Some(handler) => handler,
            None => ops::handler(&node.domain, &node.op_type).map_err(Some)?,
        };
        let mut call = Call::new(self, node, Arc::from(place));
        handler(&mut call).map_err(Some)?;
        Ok(call.outputs)
    }

    /// The shapes of a node's operands, for messages.
    fn operands(&self, node: &proto::Node) -> String {
        let shape = |name: &String| match self.shape(name) {
            _ if name.is_empty() => "none".to_string(),
            Some(shape) => format!("[{}]", dims_text(&shape)),
            None => "unknown".to_string(),
        };
        let shapes: Vec<_> = node.input.iter().take(8).map(shape).collect();
        if shapes.is_empty() { String::new() } else { format!(" of {}", shapes.join(", ")) }
    }

    /// The shape of a value, when it is known.
    pub(crate) fn shape(&self, name: &str) -> Option<Shape> {
        let slot = self.slots.get(name)?;
        if let Some(value) = slot.value.or(slot.positive.map(|p| p.value)) {
            return Some(self.module.ty(value).shape.clone());
        }
        if let Some(repeated) = &slot.repeated {
            return Some(repeated.shape.clone());
        }
        if let Some(counted) = &slot.counted {
            return Some(counted.shape());
        }
        if let Some(known) = &slot.known {
            return Some(Shape::fixed(&known.dims));
        }
        slot.tensor.and_then(|t| tensor::dims(t, self.limits).ok()).map(|(dims, _)| Shape::fixed(&dims))
    }

    fn declare_outputs(&mut self, graph: &'a proto::Graph) {
        if graph.output.is_empty() {
            self.problems.add(invalid("the graph has no output"), "the file", "");
        }
        let value = |o: &'a proto::ValueInfo| Some((o.name.as_str(), self.slots.get(o.name.as_str())?.value?));
        self.given = graph.output.iter().filter_map(value).collect();
        for output in &graph.output {
            let place = format!("output {}", shorten(&output.name));
            match self.slots.get(output.name.as_str()) {
                Some(slot) if slot.unknown => {}
                Some(_) => {
                    if let Err(problem) = self.declare_output(&output.name) {
                        self.problems.add(problem, &place, "");
                    }
                }
                None => self.problems.add(invalid("no node computes it"), &place, ""),
            }
        }
    }

    fn declare_output(&mut self, name: &'a str) -> Fallible<()> {
        let (name, value) = match self.slots.get(name).and_then(|slot| slot.ranks.clone()) {
            None => (name, self.materialise(name)?),
            Some(ranks) => match ranks::output(self, name, &ranks) {
                Some(numbers) => numbers,
                None => return Ok(()),
            },
        };
        let shape = &self.module.ty(value).shape;
        if self.rebatch && shape.0.first() != Some(&Dim::N) {
            return Err(unsupported(format!("with a free batch its shape is [{shape}], which does not start with N")));
        }
        self.module.output(name, value);
        Ok(())
    }

    /// The value of the module for an ONNX value; constants enter the module when they are first used.
    pub(crate) fn materialise(&mut self, name: &'a str) -> Fallible<ValueId> {
        let slot = self.slots.get(name).ok_or_else(|| invalid(format!("`{}` is not defined", shorten(name))))?;
        if slot.dynamic {
            return Err(unsupported(
                "integers on a grid of each image's own are read by nothing but products of integers",
            )
            .help("quantize statically, or export the float model"));
        }
        if slot.positive.is_some() {
            let problem =
                unsupported("a condition on computed values is read by nothing but `Where`, logic and casts to floats");
            return Err(problem.help("cast it to float32, or write the choice as `Where`"));
        }
        if let Some(value) = slot.value {
            return Ok(value);
        }
        let value = match (slot.tensor, slot.known.clone(), slot.repeated.clone()) {
            (Some(tensor), ..) => self.constant_of(tensor, name)?,
            (None, Some(known), _) => self.constant_of_known(name, &known)?,
            (None, None, Some(Repeated { content, shape })) => {
                let one = self.constant_of_known(name, &content)?;
                self.push(Op::Expand { shape }, &[one], &name.into())?
            }
            (None, None, None) => return Err(invalid(format!("`{}` has no value", shorten(name)))),
        };
        if let Some(slot) = self.slots.get_mut(name) {
            slot.value = Some(value);
        }
        Ok(value)
    }

    fn constant_of(&mut self, tensor: &'a proto::Tensor, name: &str) -> Fallible<ValueId> {
        let key = std::ptr::from_ref(tensor);
        if let Some(&value) = self.materialised.get(&key) {
            return Ok(value);
        }
        let (dims, count) = tensor::dims(tensor, self.limits)?;
        if count == 0 {
            return Err(unsupported(format!("`{}` is empty", shorten(name))));
        }
        let bytes = tensor::float_bytes(tensor, count, &mut self.external)
            .map_err(|p| Problem { message: format!("`{}`: {}", shorten(name), p.message), ..p })?;
        let own = if tensor.name.is_empty() { name } else { &tensor.name };
        let value = self.constant(own, Shape::fixed(&dims), bytes);
        self.materialised.insert(key, value);
        Ok(value)
    }

    /// A constant of known floats.
    pub(crate) fn constant_of_known(&mut self, name: &str, known: &Known) -> Fallible<ValueId> {
        if !known.kind.is_float() {
            let message = format!("an integer tensor (`{}`) where float32 data is needed", shorten(name));
            return Err(unsupported(message).help("integers are supported in shape arithmetic only"));
        }
        if known.data.is_empty() {
            return Err(unsupported(format!("`{}` is empty", shorten(name))));
        }
        let bytes: Vec<u8> = known.numbers()?.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect();
        Ok(self.constant(name, Shape::fixed(&known.dims), bytes.into()))
    }

    /// A float constant of the module under a name made from `name`.
    pub(crate) fn constant(&mut self, name: &str, shape: Shape, data: Bytes) -> ValueId {
        self.constant_as(name, TensorType::f32(shape), data)
    }

    /// A constant of the module of this type under a name made from `name`.
    pub(crate) fn constant_as(&mut self, name: &str, ty: TensorType, data: Bytes) -> ValueId {
        let name = self.fresh(name);
        // As `Module::constant`, without its search through all names.
        let value = ValueId(self.module.values.len() as u32);
        self.module.values.push(Value { def: Def::Const(self.module.consts.len()), ty: ty.clone() });
        self.module.consts.push(Const { name, ty, layout: None, data });
        value
    }

    /// A constant name that is not taken, of letters, digits and a few marks.
    fn fresh(&mut self, name: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | ':') { c } else { '_' };
        let mut base: String = name.chars().take(200).map(plain).collect();
        if base.is_empty() {
            base.push_str("const");
        }
        let mut fresh = base.clone();
        while !self.names.insert(fresh.clone()) {
            // The number never falls, so that one name asked for often does not search again and again.
            self.number += 1;
            fresh = format!("{base}.{}", self.number);
        }
        fresh
    }

    /// The content of a value, when it is known or a constant of at most `most` elements. More than a few elements are asked
    /// for where an op has to know them, and then what nodes compute from constants is evaluated.
    pub(crate) fn known(&mut self, name: &'a str, most: usize) -> Fallible<Option<Rc<Known>>> {
        let Some(slot) = self.slots.get(name) else { return Ok(None) };
        if let Some(known) = &slot.known {
            return Ok(Some(known.clone()));
        }
        let Some(tensor) = slot.tensor else {
            return Ok(slot.value.filter(|_| most > SMALL).and_then(|value| self.content_of(name, value, most)));
        };
        let (_, count) = tensor::dims(tensor, self.limits)?;
        let wanted = !tensor::is_float(tensor.data_type) || count <= most;
        if !wanted {
            return Ok(None);
        }
        // Numbers take more room than the bytes they come from; growth of operands is not the model's doing.
        self.spend(count)?;
        let known = Rc::new(tensor::known(tensor, self.limits, &mut self.external)?);
        if let Some(slot) = self.slots.get_mut(name) {
            slot.known = Some(known.clone());
        }
        Ok(Some(known))
    }

    /// The content of a value that nodes compute from constants, when it has at most `most` elements.
    fn content_of(&mut self, name: &'a str, value: ValueId, most: usize) -> Option<Rc<Known>> {
        self.module.ty(value).shape.count().filter(|c| c.size <= most)?;
        let Importer { computed, module, folded, limits, .. } = self;
        let mut pay = |count: usize| {
            *folded = folded.saturating_add(count.saturating_mul(ELEMENT_BYTES));
            *folded <= limits.fold_bytes
        };
        let known = Rc::new(computed.content(module, value, &mut pay)?);
        if let Some(slot) = self.slots.get_mut(name) {
            slot.known = Some(known.clone());
        }
        Some(known)
    }

    /// The content of a tensor in an attribute.
    pub(crate) fn attribute(&mut self, tensor: &proto::Tensor) -> Fallible<Known> {
        let (_, count) = tensor::dims(tensor, self.limits)?;
        self.spend(count)?;
        tensor::known(tensor, self.limits, &mut self.external)
    }

    /// Accounts for `count` elements of known content.
    pub(crate) fn spend(&mut self, count: usize) -> Fallible<()> {
        let bytes = count.saturating_mul(ELEMENT_BYTES);
        self.folded = self.folded.saturating_add(bytes);
        if self.folded <= self.limits.fold_bytes {
            return Ok(());
        }
        let message =
            format!("evaluating constants would take more than the limit of {} bytes", self.limits.fold_bytes);
        Err(invalid(message).code("limit"))
    }

    /// Accounts for a result of `count` elements evaluated from `operands` elements, before it is made.
    pub(crate) fn grow(&mut self, count: usize, operands: usize) -> Fallible<()> {
        let allowed = operands.saturating_mul(ELEMENT_BYTES).saturating_mul(self.limits.fold_growth);
        if count.saturating_mul(ELEMENT_BYTES) > allowed.max(self.limits.fold_floor_bytes) {
            let message = format!("a constant of {count} elements made from {operands} exceeds the limit on growth");
            return Err(invalid(message).code("limit"));
        }
        self.spend(count)
    }

    /// Adds a node; its result is checked against the limits.
    pub(crate) fn push(&mut self, op: Op, operands: &[ValueId], loc: &Arc<str>) -> Fallible<ValueId> {
        self.push_as(op, operands, None, loc)
    }

    /// Adds a node whose result, when `quant` is given, has that quantization.
    pub(crate) fn push_as(
        &mut self,
        op: Op,
        operands: &[ValueId],
        quant: Option<Quant>,
        loc: &Arc<str>,
    ) -> Fallible<ValueId> {
        if self.module.nodes.len() >= self.limits.emitted_nodes {
            let message = format!("the module would have more than {} nodes", self.limits.emitted_nodes);
            return Err(invalid(message).code("limit"));
        }
        let types: Vec<_> = operands.iter().map(|&v| self.module.ty(v)).collect();
        // A type rule that speaks of the batch says what vitc cannot do; others say what does not fit.
        let wrong = |e: String| if e.contains("batch") { unsupported(e) } else { invalid(e) };
        let mut ty = op.infer(&types).map_err(wrong)?;
        ty.quant = quant.or(ty.quant);
        self.check_shape(&ty.shape)?;
        if ty.shape.count().is_some_and(|c| c.size == 0) {
            return Err(unsupported("the result is empty"));
        }
        Ok(self.module.push_typed(op, operands, ty, Some(loc.clone())))
    }
}

/// A name cut to what a message can carry.
pub(crate) fn shorten(name: &str) -> String {
    match name.char_indices().nth(80) {
        Some((at, _)) => format!("{}...", name.get(..at).unwrap_or_default()),
        None => name.to_string(),
    }
}

/// A list cut to what a message can carry.
pub(crate) fn listed(list: &[impl std::fmt::Debug]) -> String {
    let (shown, more) = list.split_at_checked(16).map_or((list, ""), |(shown, _)| (shown, " ..."));
    format!("{shown:?}{more}")
}

/// `1, 3, 224` rather than `1x3x224x`.
pub(crate) fn dims_text(shape: &Shape) -> String {
    shape.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
