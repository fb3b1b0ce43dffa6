//! The six rooms between a float graph and an executable integer plan.
//!
//! Each room takes a [`vitc_ir::Module`] of one stage and returns one of the next: [`clean`], [`shape`], [`quantize`],
//! [`integerize`], [`fuse`], [`plan`]; [`transform`] rewrites what `quantize` is going to read. Rooms do no I/O and read no clock and no environment.
#![forbid(unsafe_code)]

pub mod clean;
mod extract;
pub mod fuse;
pub mod integerize;
pub mod mixed;
pub mod parallel;
mod pattern;
pub mod plan;
pub mod quantize;
pub mod shape;
pub mod transform;
