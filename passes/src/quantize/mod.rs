//! The third room: calibration, and `quantize` + `dequantize` on every edge that will be integer.
//!
//! [`observe`] runs calibration images through the float graph and keeps ranges; [`run`] decides a scale for every edge
//! by its role (the table in ARCHITECTURE.md) and makes the integers explicit. The simulation that the resulting module
//! evaluates to is what the integer graph will compute, up to the integer forms of the nonlinear ops.

mod histogram;
mod insert;
mod observe;
mod range;
mod sites;
#[cfg(test)]
mod tests;
mod weights;

use vitc_ir::{Diagnostic, Diagnostics, Module, Op};

pub use observe::{Calibration, observe};
pub use weights::{WeightBits, WeightChoice};

/// How the range of an activation is chosen from what was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Observer {
    /// Everything seen: clipping at 8 bits costs more than it gains in these models.
    #[default]
    MinMax,
    /// This percentage of the values (for example 99.99) at either end.
    Percentile(f64),
    /// The range with the least mean squared error.
    Mse,
}

/// What the quantize room is told.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantOptions {
    /// Ranges of 8-bit activations. The 16-bit residual stream always keeps everything seen, and weights are always
    /// searched for the least squared error, channel by channel.
    pub observer: Observer,
    /// Bits of the weights of matrix products.
    pub weights: WeightChoice,
    /// Threads that calibrate; the result does not depend on it.
    pub threads: usize,
}

impl Default for QuantOptions {
    fn default() -> QuantOptions {
        QuantOptions { observer: Observer::MinMax, weights: WeightChoice::default(), threads: 1 }
    }
}

/// Quantizes a module of stage `shape` with the ranges that [`observe`] saw on it.
pub fn run(module: &Module, calibration: &Calibration, options: &QuantOptions) -> Result<Module, Diagnostics> {
    check_patterns(module, &options.weights)?;
    let sites = sites::Sites::of(module);
    let quants = range::decide(module, &sites, calibration, options)?;
    insert::insert(module, &sites, &quants, &options.weights).map_err(Diagnostics::from)
}

/// A pattern that no product matches is a slip of the pen, not a wish for nothing.
fn check_patterns(module: &Module, choice: &WeightChoice) -> Result<(), Diagnostic> {
    let products = module.nodes.iter().filter(|n| matches!(n.op, Op::MatMul {}));
    let products = products.filter(|n| module.const_of(n.operands[1]).is_some());
    match choice.unmatched(products.filter_map(|n| n.loc.as_deref())) {
        Some(pattern) => {
            let message = format!("no matrix product with weights has a name like `{pattern}`");
            Err(Diagnostic::new("weight-bits", message))
        }
        None => Ok(()),
    }
}
