//! Kernels by specification: equal specifications are one kernel.

use std::collections::BTreeMap;

use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{Function, UserFuncName};
use cranelift_frontend::FunctionBuilderContext;
use cranelift_module::{FuncId, Linkage, Module};

use crate::CodegenError;
use crate::conv::Conv;
use crate::emit::{Emit, Features, signature};
use crate::gemm::Gemm;
use crate::map::{AxisSum, Copy, Map};
use crate::rows::Rows;

/// What a kernel computes, with every number that its code depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Spec {
    Gemm(Gemm),
    Conv(Conv),
    Map(Map),
    Copy(Copy),
    Rows(Rows),
    AxisSum(AxisSum),
}

impl Spec {
    fn emit(&self, e: &mut Emit<'_>) {
        match self {
            Spec::Gemm(s) => s.emit(e),
            Spec::Conv(s) => s.emit(e),
            Spec::Map(s) => s.emit(e),
            Spec::Copy(s) => s.emit(e),
            Spec::Rows(s) => s.emit(e),
            Spec::AxisSum(s) => s.emit(e),
        }
    }

    /// Bytes of scratch for each thread.
    pub(crate) fn scratch_bytes(&self) -> usize {
        match self {
            Spec::Gemm(s) => s.scratch_bytes(),
            _ => 0,
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
    names: BTreeMap<String, usize>,
    pub list: Vec<(Kernel, FuncId)>,
    pub scratch_bytes: usize,
}

impl Kernels {
    /// The index of the kernel of this specification; compiled into `module` when it is new.
    pub(crate) fn get<M: Module>(&mut self, module: &mut M, spec: Spec, base: &str) -> Result<usize, CodegenError> {
        if let Some(&i) = self.known.get(&spec) {
            return Ok(i);
        }
        let name = self.unique(base);
        let compiled = define(module, &spec, &name)?;
        self.scratch_bytes = self.scratch_bytes.max(spec.scratch_bytes());
        self.list.push(compiled);
        self.known.insert(spec, self.list.len() - 1);
        Ok(self.list.len() - 1)
    }

    fn unique(&mut self, base: &str) -> String {
        let uses = self.names.entry(base.to_string()).or_default();
        *uses += 1;
        if *uses == 1 { base.to_string() } else { format!("{base}.{}", *uses - 1) }
    }
}

fn define<M: Module>(module: &mut M, spec: &Spec, name: &str) -> Result<(Kernel, FuncId), CodegenError> {
    let backend = |reason: String| CodegenError::Backend { kernel: name.to_string(), reason };
    let sig = signature(module.isa());
    let id = module.declare_function(name, Linkage::Export, &sig).map_err(|e| backend(e.to_string()))?;
    let mut context = Context::for_function(Function::with_name_signature(UserFuncName::user(0, id.as_u32()), sig));
    let mut builder = FunctionBuilderContext::new();
    let mut e = Emit::new(&mut context.func, &mut builder, Features::of(module.isa()));
    spec.emit(&mut e);
    e.finish(module.isa());
    context.compile(module.isa(), &mut ControlPlane::default()).map_err(|e| backend(format!("{e:?}")))?;
    let compiled = context.compiled_code().ok_or_else(|| backend("no code".into()))?;
    if !compiled.buffer.relocs().is_empty() {
        return Err(backend("a kernel must not refer to anything outside itself".into()));
    }
    let code = compiled.code_buffer().to_vec();
    let align = u64::from(compiled.buffer.alignment).max(64);
    let instructions = crate::disasm::instruction_bytes(&code);
    module.define_function_bytes(id, align, &code, &[]).map_err(|e| backend(e.to_string()))?;
    Ok((Kernel { name: name.to_string(), code, instructions }, id))
}
