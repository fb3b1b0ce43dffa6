//! Executes compiled vitc programs and promises that, for a given program and input, neither the thread count nor the
//! batch neighbours change a bit of the result.
//!
//! * [`MappedRegion`], [`CodeMemory`], [`ConstMemory`]: pages that are never writable and executable at once.
//! * [`Program`]: kernels, constants and buffer plan, checked once on construction.
//! * [`Session`]: arena and worker threads of one program; allocates nothing once a batch size has been seen.
//! * [`TensorView`], [`TensorViewMut`], [`Tensor`]: checked views of element bytes at the session's door, where `f32`
//!   inputs are quantized and integer outputs dequantized.
//! * [`request_tiles`]: what a process must do before its first AMX instruction.
//!
//! This crate uses no other vitc crate, so that a shipped product can link it alone.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod door;
mod error;
mod memory;
mod pool;
mod program;
mod session;
mod sync;
mod tensor;
mod tiles;

pub use error::RuntimeError;
pub use memory::{CodeMemory, ConstMemory, MappedRegion, Protection};
pub use program::{Buffer, Extent, InputSpec, KernelFn, OutputSpec, Program, ProgramParts, Quantize, Step, TensorSpec};
pub use session::{OutputForm, Session, SessionOptions, StepProfile};
pub use tensor::{Elem, Element, Tensor, TensorView, TensorViewMut};
pub use tiles::request_tiles;
