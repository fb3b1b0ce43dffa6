//! The words of vitc: graph IR, lane language, verifier, text form and reference evaluator.
//!
//! A model is a [`Module`]: SSA values with [`TensorType`]s, nodes in topological order, constants. Every op is declared in
//! one table ([`op`]), typed by [`infer`], and means what [`eval`] computes. This crate knows no ONNX, no e-graphs, no
//! machine code and no file system.
#![forbid(unsafe_code)]

pub mod attention;
pub mod attr;
pub mod diag;
mod dither;
pub mod eval;
pub mod graph;
pub mod infer;
pub mod lane;
pub mod layout;
pub mod op;
pub mod region;
pub mod table;
pub mod text;
pub mod types;
pub mod verify;

pub use attr::ImageLayout;
pub use diag::{Diagnostic, Diagnostics};
pub use dither::dither;
pub use graph::{Const, Def, Module, Node, Stage, ValueId};
pub use op::{Class, Op, OpInfo};
pub use types::{Dim, Elem, Quant, Real, Shape, TensorType};
