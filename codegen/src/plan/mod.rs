//! From a module of stage `plan` to steps: which kernel, over which buffers, for how many items.

mod attention;
mod conv;
mod elementwise;
mod linear;
mod movement;
mod product;
mod regions;
mod rows;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cranelift_module::Module as Backend;
use vitc_ir::lane::{Access, Inst, Program};
use vitc_ir::{Const, Def, Dim, Elem, Module, Node, Op, Shape, Stage, ValueId};
use vitc_runtime::{Buffer, Extent, InputSpec, OutputSpec, Quantize, TensorSpec};

use crate::cost::{Choice, Unit};
use crate::isa::Tier;
use crate::kernel::{Kernels, Spec};
use crate::lane::LaneSpec;
use crate::operand::{Columns, Operand};
use crate::view::{Factor, Lin, Nest, View, resolve};
use crate::{CodegenError, Offer, Options};

/// Alignment of constants.
const ALIGN: usize = 64;
/// Bytes behind each constant that kernels may read: multipliers of odd lanes are loaded four bytes on.
const PADDING: usize = 4;

/// A step before its kernel has an address.
pub(crate) struct Planned {
    pub kernel: usize,
    pub args: Vec<Buffer>,
    pub items: Extent,
    pub grain: usize,
    pub barrier: bool,
    /// Nodes that are more than one step have none.
    region: Option<regions::Region>,
    pub source: String,
    pub macs_per_image: u64,
    pub offer: Option<Offer>,
}

/// Constants that were made for the program, each with its place.
#[derive(Default)]
pub(crate) struct Pool {
    pub pieces: Vec<(usize, Vec<u8>)>,
    pub len: usize,
}

/// A constant of the module, whose bytes it shares.
pub(crate) type Stored = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Everything but the machine code's addresses.
pub(crate) struct Plan {
    pub steps: Vec<Planned>,
    pub consts: Pool,
    /// Constants that are used where they lie.
    pub stored: Vec<Stored>,
    pub inputs: Vec<InputSpec>,
    pub outputs: Vec<OutputSpec>,
    pub kernels: Kernels,
}

/// Compiles every node into `backend`.
pub(crate) fn compile<M: Backend>(module: &Module, options: &Options, backend: &mut M) -> Result<Plan, CodegenError> {
    if module.stage != Stage::Plan {
        return Err(CodegenError::Stage { stage: module.stage.word() });
    }
    let module = &*with_plain_windows(module);
    let mut planner = Planner {
        module,
        tier: options.tier,
        options,
        backend,
        kernels: Kernels::default(),
        steps: Vec::new(),
        consts: Pool::default(),
        stored: Vec::new(),
        pooled: HashMap::new(),
        buffers: BTreeMap::new(),
        node: 0,
    };
    let inputs = planner.bind_inputs()?;
    let (outputs, copied) = planner.bind_outputs()?;
    let mut refused = Vec::new();
    for n in 0..module.nodes.len() {
        planner.node = n;
        let node = &module.nodes[n];
        let before = planner.steps.len();
        match planner.lower(node).map_err(|e| e.into_error(node, n)) {
            Err(e @ CodegenError::Node { .. }) => refused.push(e),
            other => other?,
        }
        if let [step] = &mut planner.steps[before..] {
            step.region = regions::of(module, n);
        }
    }
    if !refused.is_empty() {
        return Err(CodegenError::Nodes(refused));
    }
    for (value, to) in copied {
        planner.copy_output(value, to).map_err(|e| e.into_error(&module.nodes[planner.node], planner.node))?;
    }
    let Planner { mut steps, consts, stored, kernels, .. } = planner;
    regions::join(&mut steps);
    Ok(Plan { steps, consts, stored, inputs, outputs, kernels })
}

/// The module with the packed weights of convolutions row by row; products unpack their own, one at a time.
fn with_plain_windows(module: &Module) -> Cow<'_, Module> {
    let mut module = Cow::Borrowed(module);
    for n in 0..module.nodes.len() {
        let node = &module.nodes[n];
        let (Op::FusedConv2d { .. } | Op::IntConv2d { .. }, Some(&weights)) = (&node.op, node.operands.get(1)) else {
            continue;
        };
        let Def::Const(index) = module.values[weights.0 as usize].def else { continue };
        if let Some(plain) = module.consts[index].row_major() {
            let constant = &mut module.to_mut().consts[index];
            (constant.layout, constant.data) = (None, plain.into());
        }
    }
    module
}

/// Why a node cannot be lowered: a reason of its own, or an error from below.
pub(crate) enum Refusal {
    Reason(String),
    Error(CodegenError),
}

impl Refusal {
    fn into_error(self, node: &Node, index: usize) -> CodegenError {
        match self {
            Refusal::Error(e) => e,
            Refusal::Reason(reason) => CodegenError::Node {
                op: node.op.name(),
                node: node.loc.as_deref().map_or_else(|| format!("node {index}"), str::to_string),
                reason,
            },
        }
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Refusal {
        Refusal::Reason(reason)
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Refusal {
        Refusal::Reason(reason.to_string())
    }
}

impl From<CodegenError> for Refusal {
    fn from(e: CodegenError) -> Refusal {
        Refusal::Error(e)
    }
}

type Lowered<T = ()> = Result<T, Refusal>;

struct Planner<'m, M: Backend> {
    module: &'m Module,
    tier: Tier,
    options: &'m Options,
    backend: &'m mut M,
    kernels: Kernels,
    steps: Vec<Planned>,
    consts: Pool,
    stored: Vec<Stored>,
    /// Constants already in the pool, row-major.
    pooled: HashMap<usize, Buffer>,
    /// Where materialised values lie.
    buffers: BTreeMap<ValueId, Buffer>,
    node: usize,
}

/// A step to be: kernel, its base name, arguments and items.
struct Call {
    spec: Spec,
    name: String,
    args: Vec<Buffer>,
    items: Extent,
    grain: usize,
    macs: u64,
}

impl<M: Backend> Planner<'_, M> {
    fn lower(&mut self, node: &Node) -> Lowered {
        match &node.op {
            Op::Quantize { .. } | Op::Dequantize {} => self.door(node),
            Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Expand { .. } => self.rearrange(node),
            Op::Concat { axis } => self.concat(node, *axis),
            Op::Gather { axis, index } => self.gather(node, *axis, index),
            Op::Pad { before, value, .. } => self.pad(node, before, value.0),
            Op::FusedMatMul { .. } | Op::IntMatMul { .. } => self.matmul(node),
            Op::FusedAttention { .. } => self.attention(node),
            Op::IntLinearAttention { .. } => self.linear_attention(node),
            Op::FusedConv2d { .. } | Op::IntConv2d { .. } => self.conv(node),
            Op::FusedMap { .. }
            | Op::IntRequant { .. }
            | Op::IntRequant15 { .. }
            | Op::IntRequantRows { .. }
            | Op::IntAdd { .. }
            | Op::IntMul { .. }
            | Op::IntMin {}
            | Op::IntMax {}
            | Op::IntClamp { .. }
            | Op::IntHardSwish { .. }
            | Op::IntRoundShift { .. }
            | Op::IntTable {} => self.elementwise(node),
            Op::IntExp { .. }
            | Op::IntReduceSum { .. }
            | Op::IntReciprocal { .. }
            | Op::IntRowPeak { .. }
            | Op::IntRowCodes { .. }
            | Op::IntLayerNorm { .. }
            | Op::IntShiftmax { .. }
            | Op::IntShiftGelu { .. }
            | Op::IntShiftLayerNorm { .. } => self.over_rows(node),
            op => Err(format!("`{}` does not belong in a plan", op.name()).into()),
        }
    }

    /// Quantize of an input and dequantize of an output happen in the runtime.
    fn door(&mut self, node: &Node) -> Lowered {
        let module = self.module;
        let input = matches!(module.values[node.operands[0].0 as usize].def, Def::Input(_));
        let output = module.outputs.iter().any(|o| o.value == node.result);
        match node.op {
            Op::Quantize { .. } if input => Ok(()),
            Op::Dequantize {} if output => Ok(()),
            _ => Err("floats inside the graph".into()),
        }
    }

    /// The buffer behind a value and the map to its elements.
    fn operand(&mut self, v: ValueId) -> Lowered<(Buffer, View)> {
        let (base, view) = resolve(self.module, v)?;
        Ok((self.buffer(base)?, view))
    }

    /// The buffer of a materialised value.
    fn buffer(&mut self, v: ValueId) -> Lowered<Buffer> {
        if let Some(&b) = self.buffers.get(&v) {
            return Ok(b);
        }
        match self.module.values[v.0 as usize].def {
            Def::Const(c) => self.constant(c),
            Def::Input(n) => Ok(Buffer::Input(n)),
            Def::Node(n) => {
                let place = self.module.nodes[n].place.ok_or("an operand has no place in the arena")?;
                let len = self.module.ty(v).bytes().ok_or("a value is larger than the address space")?.size;
                Ok(Buffer::Arena { offset: place, len })
            }
        }
    }

    fn constant(&mut self, index: usize) -> Lowered<Buffer> {
        if let Some(&b) = self.pooled.get(&index) {
            return Ok(b);
        }
        let c = &self.module.consts[index];
        if c.layout.is_some() {
            return Err(format!("packed constant @{} is not used as weights", c.name).into());
        }
        let buffer = self.pool(c.data.to_vec());
        self.pooled.insert(index, buffer);
        Ok(buffer)
    }

    /// Adds bytes to the constants, and behind them the padding that kernels may read.
    fn pool(&mut self, bytes: Vec<u8>) -> Buffer {
        let (offset, len) = (self.consts.len, bytes.len() + PADDING);
        self.consts.pieces.push((offset, bytes));
        self.consts.len = (offset + len).next_multiple_of(ALIGN);
        Buffer::Const { offset, len }
    }

    fn const_of(&self, v: ValueId) -> Option<&Const> {
        self.module.const_of(v)
    }

    /// The unit of a kernel: the one that is chosen by hand, if this tier has it, or what the cost model says.
    fn unit(&self, choice: Choice, model: impl Fn() -> Unit) -> Unit {
        let has = |unit: &Unit| self.units().contains(unit);
        choice.unit.filter(has).unwrap_or_else(|| if self.tier.is_wide() { model() } else { Unit::Portable })
    }

    /// The units that the tier has.
    fn units(&self) -> &'static [Unit] {
        match self.tier {
            Tier::AmxInt8 => &[Unit::Tiles, Unit::Vectors, Unit::Portable],
            Tier::Avx512Vnni => &[Unit::Vectors, Unit::Portable],
            Tier::Portable | Tier::Baseline => &[Unit::Portable],
        }
    }

    /// The others, if there are any.
    fn units_but(&self, unit: Unit) -> Option<Vec<Unit>> {
        let others: Vec<Unit> = self.units().iter().copied().filter(|&other| other != unit).collect();
        (!others.is_empty()).then_some(others)
    }

    /// The kernel of the wide tiers where there is one and its code fits the registers, otherwise the other one.
    fn widest(&mut self, wide: Option<Spec>, other: Spec) -> Lowered<Spec> {
        match wide.filter(|_| self.tier.is_wide()) {
            Some(spec) if self.kernels.fits(&spec)? => Ok(spec),
            _ => Ok(other),
        }
    }

    fn step(&mut self, call: Call) -> Lowered {
        self.step_offering(call, None)
    }

    /// A step that could be something else.
    fn step_offering(&mut self, call: Call, offer: Option<Offer>) -> Lowered {
        // A kernel without a leaf says so by its name: it is the portable one, whatever the tier.
        let tier = if self.tier.is_wide() && !call.spec.is_wide() { Tier::Portable } else { self.tier };
        let name = format!("{}__{}", call.name, tier.word());
        let kernel = self.kernels.get(self.backend, call.spec, &name)?;
        let node = &self.module.nodes[self.node];
        let source = node.loc.as_deref().map_or_else(|| format!("node {}", self.node), str::to_string);
        let Call { args, items, grain, macs, .. } = call;
        self.steps.push(Planned {
            kernel,
            args,
            items,
            grain,
            barrier: true,
            region: None,
            source,
            macs_per_image: macs,
            offer,
        });
        Ok(())
    }

    /// The lane program of a node with what its constant inputs tell; `inputs` are the operands of each input.
    fn lane(&self, program: &Program, inputs: &[Option<ValueId>]) -> Lowered<LaneSpec> {
        program.widths()?;
        let bits = inputs
            .iter()
            .zip(&program.inputs)
            .map(|(v, i)| v.and_then(|v| self.const_of(v)).filter(|_| i.access != Access::Table).and_then(bits_of))
            .collect();
        Ok(LaneSpec { program: program.clone(), bits })
    }

    fn named_lane(&self, node: &Node) -> Lowered<Program> {
        let name = node.op.lane().ok_or("no lane program")?;
        Ok(self.module.lanes.get(&name.0).ok_or_else(|| format!("there is no lane program @{}", name.0))?.clone())
    }

    fn bind_inputs(&mut self) -> Result<Vec<InputSpec>, CodegenError> {
        (0..self.module.inputs.len()).map(|n| self.bind_input(n)).collect()
    }

    fn bind_input(&mut self, n: usize) -> Result<InputSpec, CodegenError> {
        let module = self.module;
        let input = &module.inputs[n];
        let refuse = |reason: &str| CodegenError::Tensor { tensor: input.name.clone(), reason: reason.into() };
        let ty = module.ty(input.value);
        let spec = |elem| tensor_spec(&input.name, elem, &ty.shape).ok_or_else(|| refuse("unsupported type or shape"));
        if ty.elem != Elem::F32 {
            return Ok(InputSpec { spec: spec(ty.elem)?, quantize: None });
        }
        let mut quantized = module.nodes.iter().filter(|n| n.operands.first() == Some(&input.value));
        let node = quantized.next().filter(|n| matches!(n.op, Op::Quantize { .. }));
        let (Some(node), None) = (node, quantized.next()) else {
            return Err(refuse("a float input is quantized exactly once, before anything else"));
        };
        let result = module.ty(node.result);
        let quant = result.quant.as_ref().ok_or_else(|| refuse("its quantize has no quantization"))?;
        let scale: Vec<f64> = quant.scale.iter().map(|s| s.0).collect();
        let offset = vec![f64::from(quant.zero_point); scale.len()];
        self.buffers.insert(node.result, Buffer::Input(n));
        Ok(InputSpec {
            spec: spec(result.elem)?,
            quantize: Some(Quantize { scale, offset, axis: quant.axis.unwrap_or(0) }),
        })
    }

    /// Output specs, and the outputs that need a copy.
    #[allow(clippy::type_complexity)]
    fn bind_outputs(&mut self) -> Result<(Vec<OutputSpec>, Vec<(ValueId, Buffer)>), CodegenError> {
        let module = self.module;
        let mut copies = Vec::new();
        let mut specs = Vec::new();
        for (n, output) in module.outputs.iter().enumerate() {
            let refuse = |reason: String| CodegenError::Tensor { tensor: output.name.clone(), reason };
            let value = match module.node_of(output.value) {
                Some(node) if matches!(node.op, Op::Dequantize {}) => node.operands[0],
                _ => output.value,
            };
            let ty = module.ty(value);
            let spec = tensor_spec(&output.name, ty.elem, &ty.shape);
            let spec = spec.filter(|_| ty.elem.is_int()).ok_or_else(|| refuse("unsupported type or shape".into()))?;
            let quant = ty.quant.as_ref().filter(|q| q.axis.is_none_or(|a| a + 1 == ty.shape.rank()));
            specs.push(OutputSpec {
                spec,
                scale: quant.map_or_else(Vec::new, |q| q.scale.iter().map(|s| s.0).collect()),
                zero_point: quant.map_or(0, |q| q.zero_point),
            });
            let (base, view) = resolve(module, value).map_err(refuse)?;
            let straight =
                View::contiguous(&ty.shape).is_some_and(|c| c == view) && module.ty(base).bytes() == ty.bytes();
            let free = matches!(module.values[base.0 as usize].def, Def::Node(_)) && !self.buffers.contains_key(&base);
            if straight && free {
                self.buffers.insert(base, Buffer::Output(n));
            } else {
                copies.push((value, Buffer::Output(n)));
            }
        }
        Ok((specs, copies))
    }
}

/// Bits that hold every element of an integer constant and its opposite, sign included.
fn bits_of(c: &Const) -> Option<u32> {
    let most = c.ints().into_iter().map(i64::unsigned_abs).max()?;
    Some(65 - most.leading_zeros())
}

fn tensor_spec(name: &str, elem: Elem, shape: &Shape) -> Option<TensorSpec> {
    let elem = match elem {
        Elem::F32 | Elem::Bool => return None,
        Elem::U8 => vitc_runtime::Elem::U8,
        Elem::I8 => vitc_runtime::Elem::I8,
        Elem::I16 => vitc_runtime::Elem::I16,
        Elem::I32 => vitc_runtime::Elem::I32,
        Elem::I64 => vitc_runtime::Elem::I64,
    };
    let dim = |(i, d): (usize, &Dim)| match d {
        Dim { size: 1, batch: true } if i == 0 => Some(0),
        Dim { batch: true, .. } => None,
        d => Some(d.size),
    };
    let dims = shape.0.iter().enumerate().map(dim).collect::<Option<_>>()?;
    Some(TensorSpec { name: name.to_string(), elem, dims })
}

fn extent(d: Dim) -> Extent {
    if d.batch { Extent { per_batch: d.size, fixed: 0 } } else { Extent { per_batch: 0, fixed: d.size } }
}

fn product_of(sizes: &[Dim]) -> Lowered<Dim> {
    Ok(sizes.iter().try_fold(Dim::fixed(1), |acc, &d| acc.times(d)).ok_or("too many rows")?)
}

/// How an input of a lane program lies over a result of `shape`: its map with the result's dimensions.
fn spread(view: &View, from: &Shape, access: Access, shape: &Shape, channel: usize) -> Lowered<View> {
    let none = || vec![Vec::new(); shape.rank()];
    let one = from.count() == Some(Dim::fixed(1));
    match access {
        Access::Element => Ok(view.broadcast(from, shape)),
        Access::Scalar | Access::Table => Ok(View { offset: view.offset, dims: none() }),
        _ if one => Ok(View { offset: view.offset, dims: none() }),
        Access::Channel => {
            let mut dims = none();
            dims[channel] = view.flat(0..view.dims.len());
            Ok(View { offset: view.offset, dims })
        }
        Access::Row => {
            let rows = Shape(shape.0[..shape.rank() - 1].to_vec());
            let mut spread = view.then(&Op::Reshape { shape: rows.clone() }, from, &rows)?;
            spread.dims.push(Vec::new());
            Ok(spread)
        }
    }
}

/// Dimensions that are repeated take part in a nest with stride zero.
fn flat_over(view: &View, shape: &Shape, dims: &[usize]) -> Vec<Factor> {
    dims.iter()
        .flat_map(|&d| {
            if view.dims[d].is_empty() {
                vec![Factor { size: shape.0[d], stride: Lin::ZERO }]
            } else {
                view.dims[d].clone()
            }
        })
        .collect()
}

/// Operands that walk the rows `dims` together; the columns of each are given.
fn joint(
    views: &[(&View, Elem)],
    shape: &Shape,
    rows: &[usize],
    columns: &[Columns],
) -> Lowered<(Vec<Dim>, Vec<Operand>)> {
    let lists: Vec<Vec<Factor>> = views.iter().map(|(v, _)| flat_over(v, shape, rows)).collect();
    let nest = Nest::joint(&lists)?;
    let operands = views
        .iter()
        .zip(&nest.strides)
        .zip(columns)
        .map(|(((v, elem), rows), &columns)| Operand { elem: *elem, offset: v.offset, rows: rows.clone(), columns })
        .collect();
    Ok((nest.sizes, operands))
}

/// A word for kernel names: what a lane program does.
fn lane_word(program: &Program) -> String {
    let has = |f: &dyn Fn(&Inst) -> bool| program.insts.iter().any(f);
    let mut word = String::new();
    if has(&|i| matches!(i, Inst::MulHigh15(..))) {
        word += "_rq15";
    } else if has(&|i| matches!(i, Inst::MulWide(..))) {
        word += "_rq";
    }
    if has(&|i| matches!(i, Inst::Table { .. })) {
        word += "_lut";
    }
    if program.inputs.iter().skip(1).any(|i| i.access == Access::Element) {
        word += "_res";
    }
    word + "_" + program.output.name()
}
