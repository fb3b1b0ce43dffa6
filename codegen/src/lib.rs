//! Machine code for vitc plans: Cranelift emits every kernel of a module in stage `plan`, bit for bit what `vitc_ir::eval`
//! computes, without one floating-point instruction.

use std::sync::Arc;

use vitc_ir::Module;
use vitc_runtime::{ConstMemory, Program, ProgramParts, Step};

mod attention;
mod conv;
mod copy;
mod cost;
mod depthwise;
mod disasm;
mod emit;
#[cfg(all(any(test, feature = "emulate"), target_arch = "x86_64", target_os = "linux"))]
mod emulate;
mod error;
mod gemm;
mod isa;
mod kernel;
mod lane;
mod linear;
mod link;
mod map;
mod operand;
mod peak;
mod pixels;
mod plan;
mod predict;
mod rows;
mod sum;
mod view;
mod wide;

pub use cost::{Choice, Choices, Offer, Split, Unit};
pub use disasm::{count_float_instructions, disassemble};
#[cfg(all(feature = "emulate", target_arch = "x86_64", target_os = "linux"))]
pub use emulate::emulate_tiles;
pub use error::CodegenError;
pub use gemm::weight_layout;
pub use isa::Tier;
pub use kernel::Kernel;
pub use peak::{Peak, peak};
pub use predict::{Predicted, Prediction, predict};
pub use view::{is_operand_view_supported, is_view_supported};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

/// How to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which instructions the kernels may use.
    pub tier: Tier,
    /// Threads that will run the program. Any number gives the same results.
    pub threads: usize,
    /// What is chosen by hand instead of by the cost model. It does not change a bit of the results.
    pub choices: Choices,
    /// What becomes of weights that the plan has two to a byte. It does not change a bit of the results.
    pub nibbles: Nibbles,
}

impl Default for Options {
    fn default() -> Options {
        Options { tier: Tier::default(), threads: 1, choices: Choices::default(), nibbles: Nibbles::default() }
    }
}

/// What becomes of weights that the plan has two to a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nibbles {
    /// Whichever is faster by the cost rule.
    #[default]
    Auto,
    /// They stay as they are in memory, and every pass over them unpacks a panel in the caches.
    Streamed,
    /// They are unpacked once, at load.
    Unpacked,
}

/// A compiled module: what the runtime needs, and the kernels for people and tests to read.
pub struct Compiled {
    /// What a [`Program`] is made of. The machine code and the constants live as long as this or a program made of it.
    pub parts: ProgramParts,
    /// The kernels, each once, in the order of first use.
    pub kernels: Vec<Kernel>,
    /// What each step could be instead, where there is a choice.
    pub offers: Vec<Option<Offer>>,
}

impl Compiled {
    /// The program.
    ///
    /// # Errors
    /// What the runtime finds wrong with the figures; always a bug of the compiler.
    pub fn into_program(self) -> Result<Program, CodegenError> {
        // SAFETY: the parts come from `compile`: every kernel has the ABI of `KernelFn`, touches only its buffers within the
        // lengths the plan gives, and lives in the code that the parts own.
        Ok(unsafe { Program::new(self.parts) }?)
    }
}

/// Compiles a module of stage `plan` for this machine.
///
/// # Errors
/// [`CodegenError::Nodes`] for the nodes that have no kernel, [`CodegenError::Tensor`] for an input or output that cannot
/// be bound, [`CodegenError::Stage`] for a module of another stage, [`CodegenError::Tier`] for a tier that this machine cannot
/// run.
pub fn compile(module: &Module, options: &Options) -> Result<Compiled, CodegenError> {
    let mut linker = link::Linker::new(isa::host(options.tier.checked()?)?);
    let plan = plan::compile(module, options, &mut linker.module)?;
    let functions: Vec<_> = plan.kernels.list.iter().map(|(_, id)| *id).collect();
    let (code, entries) = linker.finish(&functions)?;
    let scratch_bytes = plan.kernels.scratch_bytes;
    let kernels: Vec<Kernel> = plan.kernels.list.into_iter().map(|(k, _)| k).collect();
    let names: Vec<Arc<str>> = kernels.iter().map(|k| Arc::from(k.name.as_str())).collect();
    let offers = plan.steps.iter().map(|s| s.offer.clone()).collect();
    let steps = plan.steps.into_iter().map(|s| Step {
        kernel: entries[s.kernel],
        args: s.args,
        items: s.items,
        grain: s.grain,
        barrier: s.barrier,
        name: Arc::clone(&names[s.kernel]),
        source: s.source.into(),
        macs_per_image: s.macs_per_image,
    });
    let batched = module.inputs.iter().any(|i| module.ty(i.value).shape.0.iter().any(|d| d.batch));
    let parts = ProgramParts {
        steps: steps.collect(),
        consts: Arc::new(ConstMemory::gather(plan.consts.len, plan.consts.pieces)?),
        stored: plan.stored,
        arena_bytes_per_image: module.arena,
        scratch_bytes,
        inputs: plan.inputs,
        outputs: plan.outputs,
        code,
        fixed_batch: (!batched).then_some(1),
    };
    Ok(Compiled { parts, kernels, offers })
}
