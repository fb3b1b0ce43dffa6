//! The first room: exporter debris out, composite ops back.
//!
//! Rules look at one node each and say what its result may be replaced by; they are applied until none fires. What holds
//! afterwards (the normal form):
//!
//! * `layernorm`, `gelu`, `silu`, `hardswish`, ... are single ops; constants are folded.
//! * Sums of a product or convolution with a per-channel constant are its `bias` operand (shape `[channels]`); products
//!   with constants are in the weights; the attention scale is in the weights of q (or k) where it can be, else one
//!   scalar `mul` on the product of q and k.
//! * Constants are second operands; `sub` and `div` by constants are `add` and `mul`.
//! * q, k and v are three products with constant weights.
//! * Rows that nobody needs after the last attention are not computed: slices stand as far up as they can.
//! * Movement is in the normal form of the shape room.
//! * Where the model came quantized, `dequantize` stands below movement and `quantize` above it (slices excepted), no pair
//!   changes nothing, and constant weights are the model's integers behind a `dequantize`.

pub(crate) mod affine;
#[cfg(test)]
mod branch_tests;
mod branches;
pub(crate) mod draft;
mod entrance;
#[cfg(test)]
mod entrance_tests;
pub(crate) mod fold;
mod function;
#[cfg(test)]
mod function_tests;
pub(crate) mod given;
mod identity;
mod layernorm;
mod linear_attention;
mod multiplier;
#[cfg(test)]
mod norm_tests;
mod pixels;
mod rows;
pub(crate) mod slices;
mod softmax;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use vitc_ir::{Diagnostics, Module, Stage};

use crate::shape::{firing_limit, movement};
use draft::{Draft, Rule};

pub use draft::Fired;
pub use entrance::{Counts, counts_in};

/// The normalisation of images before the model: `(pixel/255 - mean)/std` for each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Mean of each channel, of pixels scaled to 0..1.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    pub std: Vec<f32>,
    /// The dimension of the input that channels run along: 1, or 3 where they come last.
    pub axis: usize,
}

/// What the clean room is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CleanOptions {
    /// Compile for images: let `u8` pixels in where the normalisation folds into the first convolution.
    pub pixels: Option<Pixels>,
}

/// A cleaned module and what was done.
#[derive(Clone, Debug)]
pub struct Cleaned {
    /// The module, of stage `clean`.
    pub module: Module,
    /// How often each rule fired.
    pub fired: Fired,
}

/// Rules that fold and simplify; order decides which is tried first on a node. They come before recovery, or a chain would be
/// recognised in part: the root mean square of what a mean in another spelling was taken off.
const SIMPLIFY: &[(&str, Rule)] = &[
    ("fold-constants", fold::fold_constants),
    ("fold-repeated", fold::fold_repeated),
    ("drop-requantize", given::drop_requantize),
    ("sink-dequantize", given::sink_dequantize),
    ("hoist-quantize", given::hoist_quantize),
    ("drop-neutral", identity::drop_neutral),
    ("constant-second", identity::constant_second),
    ("divide-by-constant", identity::divide_by_constant),
    ("subtract-constant", identity::subtract_constant),
    ("reciprocal-product", identity::reciprocal_product),
    ("square", identity::square),
    ("drop-expand", identity::drop_expand),
    ("one-number", identity::one_number),
    ("keep-dimension", identity::keep_dimension),
    ("mean-of-sum", identity::mean_of_sum),
];

/// Rules that recover ops from what was written out.
const RECOVER: &[(&str, Rule)] = &[
    ("layernorm", layernorm::recover_layernorm),
    ("affine-by-inverse", layernorm::affine_by_inverse),
    ("gamma-after-norm", layernorm::gamma_after_norm),
    ("affine-before-turn", layernorm::affine_before_turn),
    ("softmax", softmax::recover_softmax),
    ("softmax-of-logarithms", softmax::recover_softmax_of_logarithms),
    ("linear-attention", linear_attention::recover_linear_attention),
    ("function-by-value", function::recover_function),
];

/// Rules that move factors and summands into weights, and slices up. They come after recovery has ended, or the last factor
/// of a GELU would leave for the next layer's weights before the GELU is seen.
const ABSORB: &[(&str, Rule)] = &[
    ("bias", affine::absorb_bias),
    ("merge-scales", affine::merge_scales),
    ("scale-into-weights", affine::absorb_scale),
    ("scale-into-rows", affine::absorb_scale_below),
    ("scale-after-product", affine::sink_scale),
    ("scale-of-heads", affine::lift_head_scale),
    ("reshape-rows-first", rows::reshape_rows_first),
    ("batch-first", rows::batch_first),
    ("batch-first-stream", rows::batch_first_stream),
    ("join-convolutions", branches::join_convolutions),
    ("join-scaled", branches::join_scaled),
    ("pointwise-by-channel", branches::pointwise_by_channel),
    ("split-multiplier", multiplier::split_multiplier),
    ("sum-of-stack", rows::sum_of_stack),
    ("slice-quantized", given::slice_quantized),
    ("split-product", slices::split_product),
    ("sink-slice", slices::sink_slice),
];

/// Cleans an imported module.
pub fn run(module: &Module, options: &CleanOptions) -> Result<Cleaned, Diagnostics> {
    let mut fired = Fired::new();
    // Equal chains must be one before they are matched, so each round starts from a rebuilt module.
    let mut module = Draft::new(module.clone()).finish(Stage::Clean);
    let recover = [SIMPLIFY, RECOVER, movement::RULES].concat();
    let all = [SIMPLIFY, RECOVER, ABSORB, movement::RULES].concat();
    loop {
        let before: usize = fired.values().sum();
        let mut draft = Draft::new(module.clone());
        draft.saturate(SIMPLIFY, firing_limit(&module), &mut fired);
        draft.saturate(&recover, firing_limit(&module), &mut fired);
        draft.saturate(&all, firing_limit(&module), &mut fired);
        module = draft.finish(Stage::Clean);
        let after: usize = fired.values().sum();
        if after == before || after > 4 * firing_limit(&module) {
            break;
        }
    }
    let module = pixels::open_door(module, options.pixels.as_ref(), &mut fired)?;
    Ok(Cleaned { module, fired })
}
