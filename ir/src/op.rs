//! The one table of ops. The enum, its attributes, the text form, the verifier's type rules and docs/ops.md all come
//! from here; what an op *means* is written once more, as plain code, in [`crate::eval`].
//!
//! Operand names end in `?` when the operand may be left out and in `...` when it may be repeated.

use crate::attr::{Attr, AttrValue, GeluForm, ImageLayout, LaneName};
use crate::infer;
use crate::types::{Elem, Real, Shape, TensorType};

/// Which stages an op belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Rearranges elements of any type; allowed everywhere.
    Move,
    /// Computes on floats; gone after `integerize`.
    Float,
    /// Between floats and integers; explicit after `quantize`, only at the doors after `integerize`.
    Quant,
    /// Computes on integers; from `integerize` on.
    Int,
    /// A kernel that does the work of several ops, mostly with a lane program attached; from `fuse` on.
    Fused,
}

/// The declaration of one op.
#[derive(Debug)]
pub struct OpInfo {
    /// Name in the text form.
    pub name: &'static str,
    /// Stage class.
    pub class: Class,
    /// Operand names; see the module's doc for `?` and `...`.
    pub operands: &'static [&'static str],
    /// Attribute names with the kind of their values.
    pub attrs: &'static [(&'static str, &'static str)],
    /// What the op does.
    pub doc: &'static [&'static str],
}

impl OpInfo {
    /// Fewest and most operands.
    pub fn arity(&self) -> (usize, usize) {
        let least = self.operands.iter().filter(|o| !o.ends_with('?') && !o.ends_with("...")).count();
        let repeated = self.operands.iter().any(|o| o.ends_with("..."));
        (least, if repeated { usize::MAX } else { self.operands.len() })
    }
}

macro_rules! ops {
    ($( $(#[doc = $doc:literal])+ $variant:ident = $name:literal $class:ident [$($operand:literal),*]
        { $($attr:ident : $ty:ty),* $(,)? } $rule:path; )+) => {
        /// An operation with its attributes.
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs)] // the fields are described in the doc of their op
        pub enum Op { $( $(#[doc = $doc])+ $variant { $($attr: $ty),* }, )+ }

        /// Every op, in declaration order.
        pub static OPS: &[OpInfo] = &[$( OpInfo {
            name: $name,
            class: Class::$class,
            operands: &[$($operand),*],
            attrs: &[$((stringify!($attr), <$ty as Attr>::KIND)),*],
            doc: &[$($doc),+],
        }, )+];

        impl Op {
            /// Name in the text form.
            pub fn name(&self) -> &'static str {
                match self { $( Op::$variant { .. } => $name, )+ }
            }

            /// Attributes in declaration order.
            #[allow(clippy::vec_init_then_push, unused_mut)]
            pub fn attrs(&self) -> Vec<(&'static str, AttrValue)> {
                match self { $( Op::$variant { $($attr),* } => {
                    let mut list = Vec::new();
                    $( list.push((stringify!($attr), $attr.to_value())); )*
                    list
                } )+ }
            }

            /// The op of that name with these attributes, or what is wrong with them.
            pub fn from_attrs(name: &str, attrs: &[(String, AttrValue)]) -> Result<Op, String> {
                let info = OPS.iter().find(|o| o.name == name).ok_or_else(|| format!("there is no op `{name}`"))?;
                check_attr_names(info, attrs)?;
                match name {
                    $( $name => Ok(Op::$variant { $($attr: read_attr(attrs, stringify!($attr))?),* }), )+
                    _ => Err(format!("there is no op `{name}`")),
                }
            }

            /// Element type and shape of the result for these operand types (the quantization is the builder's to
            /// add, except for movement, which passes it on), or what does not fit.
            pub fn infer(&self, operands: &[&TensorType]) -> Result<TensorType, String> {
                let (least, most) = self.info().arity();
                if operands.len() < least || operands.len() > most {
                    return Err(format!("`{}` got {} operands, wants {}", self.name(), operands.len(), self.info().operands.join(", ")));
                }
                match self { $( Op::$variant { .. } => $rule(self, operands), )+ }
            }
        }
    };
}

ops! {
    // ---------------------------------------------------------------- movement
    /// The same elements in the same order with another shape.
    Reshape = "reshape" Move ["x"] { shape: Shape } infer::reshape;
    /// Dimension `i` of the result is dimension `perm[i]` of `x`.
    Transpose = "transpose" Move ["x"] { perm: Vec<usize> } infer::transpose;
    /// Elements `start, start+step, ...` (`len` of them) along `axis`. `step` may be negative.
    Slice = "slice" Move ["x"] { axis: usize, start: usize, len: usize, step: i64 } infer::slice;
    /// Operands one after another along `axis`. Quantized operands share one quantization.
    Concat = "concat" Move ["xs..."] { axis: usize } infer::concat;
    /// Repeats dimensions of size one (or adds outer ones) until the shape is reached.
    Expand = "expand" Move ["x"] { shape: Shape } infer::expand;
    /// Elements at constant positions `index` along `axis`.
    Gather = "gather" Move ["x"] { axis: usize, index: Vec<usize> } infer::gather;
    /// `before[i]` and `after[i]` copies of `value` around dimension `i`. On quantized values `value` is the integer.
    Pad = "pad" Move ["x"] { before: Vec<usize>, after: Vec<usize>, value: Real } infer::pad;

    // ---------------------------------------------------------------- float
    /// Matrix product over the last two dimensions, leading ones broadcast as in numpy; `bias` is added along the last dimension.
    MatMul = "matmul" Float ["a", "b", "bias?"] { } infer::matmul_float;
    /// 2-D convolution of `x`, [N, C, H, W] or [N, H, W, C] as `layout` says, with `w` [O, C/groups, KH, KW]; the result lies like `x`. `pads` are top, left, bottom, right.
    Conv2d = "conv2d" Float ["x", "w", "bias?"] { strides: [usize; 2], pads: [usize; 4], dilations: [usize; 2], groups: usize, layout: ImageLayout } infer::conv_float;
    /// Sum, broadcast as in numpy.
    Add = "add" Float ["a", "b"] { } infer::binary_float;
    /// Difference, broadcast.
    Sub = "sub" Float ["a", "b"] { } infer::binary_float;
    /// Product, broadcast.
    Mul = "mul" Float ["a", "b"] { } infer::binary_float;
    /// Quotient, broadcast.
    Div = "div" Float ["a", "b"] { } infer::binary_float;
    /// Power, broadcast.
    Pow = "pow" Float ["a", "b"] { } infer::binary_float;
    /// Smaller of two, broadcast.
    Min = "min" Float ["a", "b"] { } infer::binary_float;
    /// Larger of two, broadcast.
    Max = "max" Float ["a", "b"] { } infer::binary_float;
    /// `a` where `c` is larger than 0, else `b`; broadcast. What is not chosen may be infinite or no number.
    Select = "select" Float ["c", "a", "b"] { } infer::select_float;
    /// `-x`.
    Neg = "neg" Float ["x"] { } infer::unary_float;
    /// Absolute value.
    Abs = "abs" Float ["x"] { } infer::unary_float;
    /// Square root.
    Sqrt = "sqrt" Float ["x"] { } infer::unary_float;
    /// `1/x`.
    Reciprocal = "reciprocal" Float ["x"] { } infer::unary_float;
    /// Natural exponential.
    Exp = "exp" Float ["x"] { } infer::unary_float;
    /// Natural logarithm.
    Log = "log" Float ["x"] { } infer::unary_float;
    /// Cosine of radians.
    Cos = "cos" Float ["x"] { } infer::unary_float;
    /// Sine of radians.
    Sin = "sin" Float ["x"] { } infer::unary_float;
    /// Error function.
    Erf = "erf" Float ["x"] { } infer::unary_float;
    /// Hyperbolic tangent.
    Tanh = "tanh" Float ["x"] { } infer::unary_float;
    /// `1/(1+exp(-x))`.
    Sigmoid = "sigmoid" Float ["x"] { } infer::unary_float;
    /// `max(x, 0)`.
    Relu = "relu" Float ["x"] { } infer::unary_float;
    /// `x` clamped to `[lo, hi]`.
    Clip = "clip" Float ["x"] { lo: Real, hi: Real } infer::unary_float;
    /// Gaussian error linear unit.
    Gelu = "gelu" Float ["x"] { form: GeluForm } infer::unary_float;
    /// `x * sigmoid(x)`.
    Silu = "silu" Float ["x"] { } infer::unary_float;
    /// `x * clip(x/6 + 1/2, 0, 1)`.
    HardSwish = "hardswish" Float ["x"] { } infer::unary_float;
    /// `clip(alpha*x + beta, 0, 1)`.
    HardSigmoid = "hardsigmoid" Float ["x"] { alpha: Real, beta: Real } infer::unary_float;
    /// `(x - mean)/sqrt(var + epsilon) * gamma + beta` over the last dimension (population variance). Not `centred` it is RMSNorm: the mean counts as zero, in the variance as well.
    LayerNorm = "layernorm" Float ["x", "gamma", "beta"] { epsilon: Real, centred: bool } infer::layernorm_float;
    /// `exp(x - max)/sum` over the last dimension.
    Softmax = "softmax" Float ["x"] { } infer::unary_float;
    /// Attention without softmax (EfficientViT): `q (k^T v) / (q (k^T 1) + epsilon)` for `q` [.., T, D], `k` [.., U, D] and `v` [.., U, E], the quotient row by row. `q` and `k` are not negative.
    LinearAttention = "linear_attention" Float ["q", "k", "v"] { epsilon: Real } infer::linear_attention_float;
    /// Mean over `axes`; reduced dimensions stay as 1 with `keep`.
    ReduceMean = "reduce_mean" Float ["x"] { axes: Vec<usize>, keep: bool } infer::reduce_float;
    /// Sum over `axes`.
    ReduceSum = "reduce_sum" Float ["x"] { axes: Vec<usize>, keep: bool } infer::reduce_float;
    /// Maximum over `axes`.
    ReduceMax = "reduce_max" Float ["x"] { axes: Vec<usize>, keep: bool } infer::reduce_float;
    /// Each row (last dimension) rounded to a grid of its own. With `m` the largest `x - lowest` of the row, steps of `m/levels` from `lowest` on; of a `signed` grid `m` is the largest `|x - lowest|`, and there are `levels` steps on either side. `m` is rounded up to a multiple of `step`, one at least. Where there are `codes`, ascending, only those steps are used, the smaller of two that are equally near; they count from `lowest`, of a signed grid from `levels + 1` steps below it.
    RoundRows = "round_rows" Float ["x"] { lowest: Real, step: Real, levels: i64, signed: bool, codes: Vec<usize> } infer::round_rows;
    /// Pixels to floats: `(x/255 - mean[c])/std[c]` for channel `c` (dimension 1 of [N, C, H, W]).
    Normalize = "normalize" Float ["x"] { mean: Vec<Real>, std: Vec<Real> } infer::normalize;

    // ---------------------------------------------------------------- between floats and integers
    /// `saturate(round_half_even(x/scale) + zero_point)` with the quantization of the result type; the quotient is taken in `f32`, as in ONNX.
    Quantize = "quantize" Quant ["x"] { to: Elem } infer::quantize;
    /// `scale * (x - zero_point)` with the quantization of the operand's type, rounded once to `f32`.
    Dequantize = "dequantize" Quant ["x"] { } infer::dequantize;

    // ---------------------------------------------------------------- integer
    /// `bias[n] + sum_k (a[m,k] - a_zero) * (b[k,n] - b_zero)` in `i32`; overflow of the sum is an error in the evaluator and proved absent by the compiler. Zero points lie within 2^16. Leading dimensions broadcast.
    IntMatMul = "int.matmul" Int ["a", "b", "bias?"] { a_zero: i64, b_zero: i64 } infer::matmul_int;
    /// Integer convolution in `i32`; padded positions count as `x_zero`, so they add nothing.
    IntConv2d = "int.conv2d" Int ["x", "w", "bias?"] { strides: [usize; 2], pads: [usize; 4], dilations: [usize; 2], groups: usize, layout: ImageLayout, x_zero: i64 } infer::conv_int;
    /// Dyadic requantize, half up: `saturate(((x - x_zero) * multiplier[c] + 2^(shift-1) >> shift) + zero_point)` in `i64`; `multiplier` is `i32`, one or one per index of `axis` (I-ViT section 3.2). `shift` is 1 to 62.
    IntRequant = "int.requant" Int ["x", "multiplier"] { axis: usize, x_zero: i64, shift: u32, zero_point: i64, to: Elem } infer::requant;
    /// Cheap requantize in 16 bits: `t = saturate16(x + 2^(pre_shift-1) >> pre_shift)`, `u = t * multiplier[c] + 2^14 >> 15`, `saturate((u + 2^(post_shift-1) >> post_shift) + zero_point)`, without a rounding term where a shift is 0; `multiplier` is `i16`. The sum before the first shift wraps never: the compiler proves it.
    IntRequant15 = "int.requant15" Int ["x", "multiplier"] { axis: usize, pre_shift: u32, post_shift: u32, zero_point: i64, to: Elem } infer::requant;
    /// Saturating sum in `to`, broadcast; both operands have the same scale and zero point 0.
    IntAdd = "int.add" Int ["a", "b"] { to: Elem } infer::add_int;
    /// `(a - a_zero) * (b - b_zero)` in `i32`, broadcast; a product that does not fit is an error: the compiler proves it absent.
    IntMul = "int.mul" Int ["a", "b"] { a_zero: i64, b_zero: i64 } infer::mul_int;
    /// Smaller of two, broadcast; both operands have the same quantization.
    IntMin = "int.min" Int ["a", "b"] { } infer::extremum_int;
    /// Larger of two, broadcast; both operands have the same quantization.
    IntMax = "int.max" Int ["a", "b"] { } infer::extremum_int;
    /// `x + 2^(shift-1) >> shift`, half up, for `shift` of 1 to 31; a sum that leaves `i32` is an error: the compiler proves it absent.
    IntRoundShift = "int.round_shift" Int ["x"] { shift: u32 } infer::round_shift;
    /// `x` clamped to `[lo, hi]`.
    IntClamp = "int.clamp" Int ["x"] { lo: i64, hi: i64 } infer::same_int;
    /// `table[x - min(x's type)]` for 8-bit `x`; the table has 256 entries of the result's element type.
    IntTable = "int.table" Int ["x", "table"] { } infer::table;
    /// HardSwish of `i16` in steps of `6 * 2^(shift-15)`, in the same steps: `h = clamp(x, -2^(14-shift), 2^(14-shift) - 1) + 2^(14-shift) << shift`, which is `min(max(x + 3, 0), 6) / 6` in 15 bits, and `y = x * h + 2^14 >> 15`. `shift` is -14 to 14; below 0, where no value leaves the open part of the gate, `h = (x >> -shift) + 2^14`.
    IntHardSwish = "int.hardswish" Int ["x"] { shift: i64 } infer::hardswish_int;
    /// Exponential of a row for softmax with deferred normalisation. Over the last dimension: `d = min(max(x) - x, limit)`, `t = d * multiplier >> shift`, `y = (256 table[t mod 2^f] >> h) + dither[i] >> 8` with `2^f` the table's length, `h = table_bits + (t >> f)` and `dither[i] = (128 + 158 i) mod 256` for column `i`, so that `y = p * 2^(-t/2^f)`, rounded where the column says, and each row's maximum is `p`, what the table starts with: 255, or 2^b - 1 for maps of b bits. `y` fits `u8`: a table that breaks this is an error.
    IntExp = "int.exp" Int ["x", "table"] { limit: i64, multiplier: i64, shift: u32, table_bits: u32 } infer::exp_int;
    /// Sum over `axis` in `i32`.
    IntReduceSum = "int.reduce_sum" Int ["x"] { axis: usize, keep: bool } infer::reduce_int;
    /// `(numerator + |x|/2) / |x|` in `i32`, negative where `x` is: the multiplier that divides by `x`. A divisor of zero counts as one. A quotient that does not fit is an error: the compiler proves it absent.
    IntReciprocal = "int.reciprocal" Int ["x"] { numerator: i64 } infer::reciprocal;
    /// `int.requant` with multipliers of the image's own: `saturate((x * multiplier + 2^(shift-1) >> shift) + zero_point)` in `i64`; `multiplier` is `i32` and broadcast to `x`: with last dimension 1 it is one a row.
    IntRequantRows = "int.requant_rows" Int ["x", "multiplier"] { shift: u32, zero_point: i64, to: Elem } infer::requant_rows;
    /// Largest `|x|` of each row (last dimension, which becomes 1) in steps of `2^shift`, rounded up, and 1 at least: what a row's own grid is made of. With a table of 256 entries in `i16`, `x` is `u8` and each element stands for its entry.
    IntRowPeak = "int.row_peak" Int ["x", "table?"] { shift: u32 } infer::row_peak;
    /// Each row (last dimension) on a grid of its own, as large as the row: with `p` the row's `int.row_peak` times `2^shift`, `s = 30 - bits(levels)` and `r = (levels*2^s + p/2) / p`, `y = saturate((x*r + 2^(s-1) >> s) + zero_point)` in `u8`. One step stands for `p/levels` of those of `x`. `x*r` with its rounding half fits `i32`. With a table of 256 entries in `i16`, `x` is `u8` and each element stands for its entry.
    IntRowCodes = "int.row_codes" Int ["x", "table?"] { levels: i64, zero_point: i64, shift: u32 } infer::row_codes;
    /// Attention without softmax, normalised by an exact integer reciprocal (Trio-ViT section 3.3 without its rounding to a power of two). For unsigned `q` [.., T, D], `k` [.., U, D] and `v` [.., U, E], of which `max(q - q_zero, 0)` and `max(k - k_zero, 0)` count as `q` and `k`, matrix by matrix: `s = k^T (v - v_zero)` and `n[d] = sum_u k[u,d]` in `i32`; `h = max(0, bits(max |s|) - 14)`, `w = s + 2^(h-1) >> h` (no rounding term when h = 0), so that `w` fits `i16`; then for each row `a = q w` in `i32`, `g = max(q n + epsilon, 1)` in `i64`, `r = (numerator + g/2) / g`, and `y = saturate((a*r + 2^(shift-h-1) >> shift-h) + zero_point)`. With `log2` the divisor is a power of two (Trio-ViT section 3.3): `r = numerator >> i + b` for the leading one at bit `i` of `g` and `b` the bit below it. `a*r` fits `i64`: the op's rule on its attributes and sizes proves it.
    IntLinearAttention = "int.linear_attention" Int ["q", "k", "v"] { q_zero: i64, k_zero: i64, v_zero: i64, epsilon: i64, numerator: i64, shift: u32, log2: bool, zero_point: i64, to: Elem } infer::linear_attention_int;
    /// LayerNorm with exact integer moments over the last dimension of length C. `s1 = sum x`, `s2 = sum x^2`, `v = max(C*s2 - s1^2 + epsilon, 1)`, `sigma = isqrt(v)`, `e = max(0, bits(sigma) + guard - 16)`, `r = (2^(e+norm_bits+recip_bits) + sigma/2) / sigma`; then for each element `d = (C*x - s1 + 2^(e-1)) >> e` (no rounding term when e = 0), `n = (d*r + 2^(recip_bits-1)) >> recip_bits`, `y = saturate((n*gamma[c] + beta[c] >> shift) + zero_point)`; `beta` carries the rounding half. `gamma`, `beta` are `i32`; `guard` is `ceil(log2(sqrt C)) + 1`. Not `centred` it is RMSNorm: `s1` counts as zero. `d*r` (with its rounding half as well) and `n*gamma[c] + beta[c]` fit `i32`: the compiler proves it.
    IntLayerNorm = "int.layernorm" Int ["x", "gamma", "beta"] { epsilon: i64, centred: bool, guard: u32, norm_bits: u32, recip_bits: u32, shift: u32, zero_point: i64, to: Elem } infer::layernorm_int;

    // ---------------------------------------------------------------- integer, the published shift forms (I-ViT)
    /// Shiftmax (I-ViT section 3.3) over the last dimension: `i = x - max(x)`; `E = ShiftExp(i)` with integer one `one = -x0` and `n` fraction shifts: `p = max(i + (i >> 1) - (i >> 4), n*x0)`, `q = p/x0`, `r = p - x0*q`, `E = ((r - 2*x0) << (n-q)) >> 1`; `T = min(sum E, 2^31-1)`; `F = floor((2^31-1)/T)`; `y = E*F >> (31 - (bits-1))`, in `i16` at scale `2^-(bits-1)`.
    IntShiftmax = "int.shiftmax" Int ["x"] { one: i64, n: u32, bits: u32 } infer::shiftmax;
    /// ShiftGELU (I-ViT section 3.4), element by element: `i = x - x_zero`, `m = max(i, 0)` (the papers' row maximum replaced by the element's own, which no row can break), `E = ShiftExp(i - m)`, `E' = ShiftExp(-m)` (see `int.shiftmax`), `F = floor((2^31-1)/(E + E'))`, `sigmoid = E*F >> (31 - (bits-1))`, `y = i * sigmoid` in `i32`.
    IntShiftGelu = "int.shift_gelu" Int ["x"] { x_zero: i64, one: i64, n: u32, bits: u32 } infer::shift_gelu;
    /// I-LayerNorm (I-ViT section 3.5) over the last dimension of length C: `mu = round_half_even(sum/C)`, `y = x - mu`, `v = sum y^2`, `k = max(isqrt(v), 1)` (Newton from `2^ceil(bits(v)/2)` until it no longer falls), `F = floor((2^31-1)/k)`, `n = y*F >> 1`, `saturate((n*gamma[c] + beta[c] >> shift) + zero_point)` in `i64`; `gamma` is `i32`, `beta` is `i64` and carries the rounding half (beta after gamma, never beta/gamma).
    IntShiftLayerNorm = "int.shift_layernorm" Int ["x", "gamma", "beta"] { shift: u32, zero_point: i64, to: Elem } infer::layernorm_int;

    // ---------------------------------------------------------------- fused
    /// `int.matmul` without bias whose accumulator goes through a lane program: lane input 0 is the accumulator, the others are `extras`.
    FusedMatMul = "fused.matmul" Fused ["a", "b", "extras..."] { a_zero: i64, b_zero: i64, lane: LaneName, to: Elem } infer::fused_matmul;
    /// `int.conv2d` without bias whose accumulator goes through a lane program.
    FusedConv2d = "fused.conv2d" Fused ["x", "w", "extras..."] { strides: [usize; 2], pads: [usize; 4], dilations: [usize; 2], groups: usize, layout: ImageLayout, x_zero: i64, lane: LaneName, to: Elem } infer::fused_conv;
    /// A lane program applied element by element; `shape` is the result's.
    FusedMap = "fused.map" Fused ["xs..."] { shape: Shape, lane: LaneName, to: Elem } infer::fused_map;
    /// Attention with deferred normalisation, a composition of other ops: `s = int.matmul(q, k)` to which each of `biases` is added in turn by `int.add` in `i32`, `e = int.exp(s, table)`, `r = int.reciprocal(int.reduce_sum(e))` along rows, `y = int.requant_rows(int.matmul(e, v), r)`, and the result is `transpose(y)` by `perm`. `q_zero`, `k_zero` and `v_zero` are the zero points of the products; `limit`, `multiplier`, `exp_shift` and `table_bits` belong to the exponential, `shift`, `zero_point` and `to` to the requantize. `k` is [D, keys] in its last two dimensions.
    FusedAttention = "fused.attention" Fused ["q", "k", "v", "table", "biases..."] { q_zero: i64, k_zero: i64, v_zero: i64, limit: i64, multiplier: i64, exp_shift: u32, table_bits: u32, numerator: i64, shift: u32, zero_point: i64, perm: Vec<usize>, to: Elem } infer::fused_attention;
}

impl Op {
    /// The declaration of this op.
    pub fn info(&self) -> &'static OpInfo {
        let name = self.name();
        OPS.iter().find(|o| o.name == name).expect("every variant is in the table")
    }

    /// The stage class of this op.
    pub fn class(&self) -> Class {
        self.info().class
    }

    /// The lane program this op refers to.
    pub fn lane(&self) -> Option<&LaneName> {
        match self {
            Op::FusedMatMul { lane, .. } | Op::FusedConv2d { lane, .. } | Op::FusedMap { lane, .. } => Some(lane),
            _ => None,
        }
    }
}

impl Op {
    /// The dimension of a result of this rank that channels of the op's lane program run along.
    pub fn lane_channel(&self, rank: usize) -> usize {
        match self {
            Op::FusedConv2d { layout, .. } => layout.channel(),
            _ => rank.saturating_sub(1),
        }
    }
}

fn check_attr_names(info: &OpInfo, attrs: &[(String, AttrValue)]) -> Result<(), String> {
    for (i, (name, _)) in attrs.iter().enumerate() {
        if !info.attrs.iter().any(|(known, _)| known == name) {
            return Err(format!("`{}` has no attribute `{name}`", info.name));
        }
        if attrs[..i].iter().any(|(other, _)| other == name) {
            return Err(format!("attribute `{name}` is given twice"));
        }
    }
    Ok(())
}

fn read_attr<T: Attr>(attrs: &[(String, AttrValue)], name: &str) -> Result<T, String> {
    let (_, value) = attrs.iter().find(|(n, _)| n == name).ok_or_else(|| format!("attribute `{name}` is missing"))?;
    T::from_value(value).ok_or_else(|| format!("attribute `{name}` wants {}", T::KIND))
}
