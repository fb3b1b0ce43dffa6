//! vitc, the integer Vision Transformer compiler, as a library: the whole walk from an ONNX file to results.
//!
//! ```no_run
//! use vitc::{Calibration, Compiler, Model};
//! # fn main() -> anyhow::Result<()> {
//! let compiled = Compiler::new().calibration(Calibration::images("calib/")).compile_file("deit.onnx")?;
//! compiled.save("deit.vitc")?;
//! let mut model = Model::load(&compiled, 1)?;
//! let logits = model.classify(&model.load_image("cat.jpg")?)?;
//! # Ok(()) }
//! ```
//!
//! Rooms in order: [`vitc_onnx`] lifts, [`vitc_passes`] lowers, [`vitc_codegen`] emits, [`vitc_runtime`] runs; the stages
//! between are [`vitc_ir::Module`]s, which [`walk`] takes through one room at a time.
#![forbid(unsafe_code)]

pub mod accuracy;
pub mod artifact;
pub mod calibrate;
pub mod command;
pub mod compiler;
pub mod error;
pub mod io;
pub mod mixed;
pub mod model;
pub mod report;
pub mod tuning;
pub mod walk;

pub use calibrate::Calibration;
pub use compiler::{Compiled, Compiler};
pub use error::Failure;
pub use io::image::Preprocess;
pub use model::Model;
