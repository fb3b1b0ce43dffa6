//! Machine code for vitc plans: Cranelift emits every kernel of a module in stage `plan`, bit for bit what `vitc_ir::eval`
//! computes, without one floating-point instruction.

mod copy;
mod disasm;
mod emit;
mod error;
mod gemm;
mod isa;
mod kernel;
mod lane;
mod link;
mod operand;
mod view;

pub use disasm::{count_float_instructions, disassemble};
pub use error::CodegenError;
pub use gemm::weight_layout;
pub use isa::Tier;
pub use kernel::Kernel;
pub use view::is_view_supported;

#[cfg(test)]
mod testing;
