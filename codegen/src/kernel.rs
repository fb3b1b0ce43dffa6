//! Kernels by specification: equal specifications are one kernel.

use std::collections::BTreeMap;

use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AbiParam, Function, Signature, UserFuncName};
use cranelift_codegen::isa::CallConv;
use cranelift_frontend::FunctionBuilderContext;
use cranelift_module::{FuncId, Linkage, Module, ModuleReloc, ModuleRelocTarget};

use crate::CodegenError;
use crate::attention::Attention;
use crate::conv::Conv;
use crate::copy::GatherRows;
use crate::depthwise::Depthwise;
use crate::emit::{Emit, Features, signature};
use crate::gemm::Gemm;
use crate::linear::LinearAttention;
use crate::map::{Copy, Map};
use crate::pixels::Pixels;
use crate::rows::Rows;
use crate::sum::AxisSum;
use crate::wide::asm::{Assembled, Fault};
use crate::wide::attention::WideAttention;
use crate::wide::depthwise::WideDepthwise;
use crate::wide::exp::WideExp;
use crate::wide::gemm::WideGemm;
use crate::wide::linear::WideLinear;
use crate::wide::map::WideMap;
use crate::wide::norm::WideNorm;
use crate::wide::peak::WidePeak;

/// What a kernel computes, with every number that its code depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Spec {
    Attention(Box<Attention>),
    WideAttention(Box<WideAttention>),
    Linear(Box<LinearAttention>),
    WideLinear(Box<WideLinear>),
    Gemm(Gemm),
    WideGemm(WideGemm),
    Conv(Conv),
    Depthwise(Depthwise),
    WideDepthwise(WideDepthwise),
    Map(Map),
    WideMap(WideMap),
    Copy(Copy),
    GatherRows(GatherRows),
    Pixels(Pixels),
    Rows(Rows),
    WideNorm(WideNorm),
    WideExp(WideExp),
    WidePeak(WidePeak),
    AxisSum(AxisSum),
}

impl Spec {
    fn emit(&self, e: &mut Emit<'_>) {
        match self {
            Spec::Attention(s) => s.emit(e),
            Spec::WideAttention(s) => s.emit(e),
            Spec::Linear(s) => s.emit(e),
            Spec::WideLinear(s) => s.emit(e),
            Spec::Gemm(s) => s.emit(e),
            Spec::WideGemm(s) => s.emit(e),
            Spec::Conv(s) => s.emit(e),
            Spec::Depthwise(s) => s.emit(e),
            Spec::WideDepthwise(s) => s.emit(e),
            Spec::Map(s) => s.emit(e),
            Spec::WideMap(s) => s.emit(e),
            Spec::Copy(s) => s.emit(e),
            Spec::GatherRows(s) => s.emit(e),
            Spec::Pixels(s) => s.emit(e),
            Spec::Rows(s) => s.emit(e),
            Spec::WideNorm(s) => s.emit(e),
            Spec::WideExp(s) => s.emit(e),
            Spec::WidePeak(s) => s.emit(e),
            Spec::AxisSum(s) => s.emit(e),
        }
    }

    /// Whether its inner part is a leaf of the wide tiers.
    pub(crate) fn is_wide(&self) -> bool {
        matches!(
            self,
            Spec::WideAttention(_)
                | Spec::WideLinear(_)
                | Spec::WideGemm(_)
                | Spec::WideDepthwise(_)
                | Spec::WideMap(_)
                | Spec::WideNorm(_)
                | Spec::WideExp(_)
                | Spec::WidePeak(_)
        )
    }

    /// Bytes of scratch for each thread.
    pub(crate) fn scratch_bytes(&self) -> usize {
        match self {
            Spec::Attention(s) => s.scratch_bytes(),
            Spec::WideAttention(s) => s.scratch_bytes(),
            Spec::Linear(s) => s.scratch_bytes(),
            Spec::WideLinear(s) => s.scratch_bytes(),
            Spec::Gemm(s) => s.scratch_bytes(),
            Spec::WideGemm(s) => s.scratch_bytes(),
            Spec::Depthwise(s) => s.scratch_bytes(),
            Spec::WideDepthwise(s) => s.scratch_bytes(),
            _ => 0,
        }
    }

    /// The code of the leaves that it calls, in the order in which it numbers them.
    fn leaves(&self) -> Assembled<Vec<Vec<u8>>> {
        match self {
            Spec::WideAttention(s) => s.leaves(),
            Spec::WideGemm(s) => s.leaves(),
            Spec::WideDepthwise(s) => Ok(vec![s.assemble()?]),
            Spec::WideMap(s) => Ok(vec![s.assemble()?]),
            Spec::WideLinear(s) => Ok(vec![s.assemble()?]),
            Spec::WideNorm(s) => Ok(vec![s.assemble()?]),
            Spec::WideExp(s) => Ok(vec![s.assemble()?]),
            Spec::WidePeak(s) => Ok(vec![s.assemble()?]),
            _ => Ok(Vec::new()),
        }
    }
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name; unique within the program.
    pub name: String,
    /// Its machine code, followed by the constants it loads.
    pub code: Vec<u8>,
    /// Bytes of `code` that are instructions.
    pub instructions: usize,
}

/// The kernels of a program, each compiled once.
#[derive(Default)]
pub(crate) struct Kernels {
    known: BTreeMap<Spec, usize>,
    /// Leaves of specifications that [`Kernels::fits`] has tried.
    assembled: BTreeMap<Spec, Vec<Vec<u8>>>,
    /// Leaves by their code.
    leaves: BTreeMap<Vec<u8>, FuncId>,
    names: BTreeMap<String, usize>,
    pub list: Vec<(Kernel, FuncId)>,
    pub scratch_bytes: usize,
}

impl Kernels {
    /// Whether the leaves of this specification can be assembled; they are kept for [`Kernels::get`].
    pub(crate) fn fits(&mut self, spec: &Spec) -> Result<bool, CodegenError> {
        if self.known.contains_key(spec) || self.assembled.contains_key(spec) {
            return Ok(true);
        }
        match spec.leaves() {
            Ok(leaves) => {
                self.assembled.insert(spec.clone(), leaves);
                Ok(true)
            }
            Err(Fault::Registers) => Ok(false),
            Err(Fault::Assembler(e)) => Err(CodegenError::Backend { kernel: "leaf".into(), reason: e.to_string() }),
        }
    }

    /// The index of the kernel of this specification; compiled into `module` when it is new.
    pub(crate) fn get<M: Module>(&mut self, module: &mut M, spec: Spec, base: &str) -> Result<usize, CodegenError> {
        if let Some(&i) = self.known.get(&spec) {
            return Ok(i);
        }
        if !self.fits(&spec)? {
            let reason = "the lane program needs too many registers".into();
            return Err(CodegenError::Backend { kernel: base.into(), reason });
        }
        let name = self.unique(base);
        let leaves = self.assembled.remove(&spec).unwrap_or_default();
        let leaves = leaves.into_iter().map(|code| self.leaf(module, code, &name)).collect::<Result<Vec<_>, _>>()?;
        let compiled = define(module, &spec, &name, &leaves)?;
        self.scratch_bytes = self.scratch_bytes.max(spec.scratch_bytes());
        self.list.push(compiled);
        self.known.insert(spec, self.list.len() - 1);
        Ok(self.list.len() - 1)
    }

    /// The leaf of this code; kernels that need the same one share it.
    fn leaf<M: Module>(&mut self, module: &mut M, code: Vec<u8>, kernel: &str) -> Result<FuncId, CodegenError> {
        if let Some(&id) = self.leaves.get(&code) {
            return Ok(id);
        }
        let name = self.unique(&format!("{kernel}.leaf"));
        let backend =
            |e: cranelift_module::ModuleError| CodegenError::Backend { kernel: name.clone(), reason: e.to_string() };
        let id = module.declare_function(&name, Linkage::Local, &leaf_signature()).map_err(backend)?;
        module.define_function_bytes(id, 64, &code, &[]).map_err(backend)?;
        let instructions = crate::disasm::instruction_bytes(&code);
        self.list.push((Kernel { name, code: code.clone(), instructions }, id));
        self.leaves.insert(code, id);
        Ok(id)
    }

    fn unique(&mut self, base: &str) -> String {
        let uses = self.names.entry(base.to_string()).or_default();
        *uses += 1;
        if *uses == 1 { base.to_string() } else { format!("{base}.{}", *uses - 1) }
    }
}

/// A leaf takes the address of its block in `rdi`.
fn leaf_signature() -> Signature {
    let mut signature = Signature::new(CallConv::SystemV);
    signature.params = vec![AbiParam::new(I64)];
    signature
}

fn define<M: Module>(
    module: &mut M,
    spec: &Spec,
    name: &str,
    leaves: &[FuncId],
) -> Result<(Kernel, FuncId), CodegenError> {
    let backend = |reason: String| CodegenError::Backend { kernel: name.to_string(), reason };
    let sig = signature(module.isa());
    let id = module.declare_function(name, Linkage::Export, &sig).map_err(|e| backend(e.to_string()))?;
    let mut context = Context::for_function(Function::with_name_signature(UserFuncName::user(0, id.as_u32()), sig));
    let leaves = leaves.iter().map(|&leaf| module.declare_func_in_func(leaf, &mut context.func)).collect();
    let mut builder = FunctionBuilderContext::new();
    let mut e = Emit::new(&mut context.func, &mut builder, Features::of(module.isa()));
    e.leaves = leaves;
    spec.emit(&mut e);
    e.finish(module.isa());
    context.compile(module.isa(), &mut ControlPlane::default()).map_err(|e| backend(format!("{e:?}")))?;
    let compiled = context.compiled_code().ok_or_else(|| backend("no code".into()))?;
    let relocs: Vec<ModuleReloc> =
        compiled.buffer.relocs().iter().map(|r| ModuleReloc::from_mach_reloc(r, &context.func, id)).collect();
    let to_leaf = |r: &ModuleReloc| matches!(r.name, ModuleRelocTarget::User { .. });
    if !relocs.iter().all(to_leaf) {
        return Err(backend("a kernel must not refer to anything but its leaves".into()));
    }
    let code = compiled.code_buffer().to_vec();
    let align = u64::from(compiled.buffer.alignment).max(64);
    let instructions = crate::disasm::instruction_bytes(&code);
    module.define_function_bytes(id, align, &code, &relocs).map_err(|e| backend(e.to_string()))?;
    Ok((Kernel { name: name.to_string(), code, instructions }, id))
}
