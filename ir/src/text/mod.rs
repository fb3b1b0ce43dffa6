//! The text form of a module: printer and parser, byte-stable.
//!
//! ```text
//! module "tiny" stage integerize {
//!   meta "input.mean" = "0.5"
//!   scale @s0 = [0x1.4p-5, 0x1p-6]
//!   const @fc.w : tensor<192x768xi8, q(@s0, 0, axis=1)> = blob(0x0, 147456)
//!   const @fc.m : tensor<2xi32> = [17, -3]
//!   lane @rq8 (i32 element, i32 channel) -> i8 {
//!     %0 = load 0
//!     %1 = load 1
//!     %2 = mulwide %0, %1
//!     %3 = roundshr %2, 20
//!   }
//!   graph (%x: tensor<Nx197x192xu8, q(0x1p-5, 131)>) -> (%0 "logits") {
//!     %0 = int.matmul %x, @fc.w {a_zero = 131, b_zero = 0} : tensor<Nx197x768xi32> loc("/fc/MatMul")
//!   }
//! }
//! ```
//!
//! One statement a line, so that two texts compare line by line. The printer writes meta by key, `arena`, then scale
//! lists in the order of first appearance, constants, lane programs by name, the graph; the parser wants only definition
//! before use, and numbers of results may be any that differ. Names (`@constant`, `%input`) stand in quotes unless they
//! are plain. Constants and scale lists of more than 16 elements lie in the blob (scales as `f64`). A comment runs from `//` to the end of the line.

mod docs;
mod lane;
mod lex;
mod parse;
mod print;
mod real;
#[cfg(test)]
mod tests;

pub use docs::ops_markdown;

use bytes::Bytes;

use crate::diag::Diagnostics;
use crate::graph::Module;

/// A printed module: the text, and the bytes of the constants too large to be written in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printed {
    /// The `.vir` text.
    pub text: String,
    /// What `blob(offset, length)` in the text refers to; parts are 64-byte aligned.
    pub blob: Vec<u8>,
}

/// Prints a module. Equal modules print equal bytes.
pub fn print(module: &Module) -> Printed {
    let mut printer = print::Printer::new(module);
    printer.module();
    Printed { text: printer.text, blob: printer.blob }
}

/// Parses a printed module; `blob` is not copied. Every problem found is reported with line and column.
pub fn parse(text: &str, blob: Bytes) -> Result<Module, Diagnostics> {
    parse::Parser::new(text, blob).run()
}
