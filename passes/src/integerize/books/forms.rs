//! Integer forms of the nonlinear ops. Several forms of one op live in one e-class; extraction takes the cheapest whose error
//! was within the budget at that site. `shift-*` are the published forms of I-ViT (sections 3.3 to 3.5), `ibert-*` those of
//! I-BERT, both guarded where they break.

use std::sync::LazyLock;

use egg::Id;
use vitc_ir::{Elem, Op, Quant, TensorType};

use super::fine_softmax::{fine_softmax, is_of_a_model};
use super::ibert;
use super::qdq::vector;
use crate::integerize::report::Error;
use crate::integerize::rule::{Book, Build, Exactness, Match, Ops, Rule};
use crate::integerize::{Nonlinear, arith, cost, sample};
use Exactness::{Approximate, Rounding};

/// Elementwise ops that a table can hold, with the rule's name.
const UNARY: &[(&str, &str)] = &[
    ("table-gelu", "gelu"),
    ("table-relu", "relu"),
    ("table-silu", "silu"),
    ("table-hardswish", "hardswish"),
    ("table-hardsigmoid", "hardsigmoid"),
    ("table-sigmoid", "sigmoid"),
    ("table-tanh", "tanh"),
    ("table-erf", "erf"),
    ("table-exp", "exp"),
    ("table-clip", "clip"),
    ("table-neg", "neg"),
    ("table-abs", "abs"),
    ("table-sqrt", "sqrt"),
    ("table-reciprocal", "reciprocal"),
];

/// `int.exp`, its sum and its reciprocal, then the product with the values.
const ATTENTION: &str =
    "(quantize ?q (matmul ?m (dequantize ?dp (quantize ?qp (softmax ?sm (dequantize ?ds ?s)))) (dequantize ?dv ?v)))";

/// The same where the map has codes.
const CODED_ATTENTION: &str = "(quantize ?q (matmul ?m (dequantize ?dp (int.table ?t (quantize ?qp (softmax ?sm (dequantize ?ds ?s))) ?levels)) (dequantize ?dv ?v)))";

/// A map with codes as a product reads it. The forms of papers yield 16 bits, whatever the codes.
const CODED_MAP: &str = "(dequantize ?dp (int.table ?t (quantize ?qp (softmax ?m (dequantize ?d ?s))) ?levels))";

/// The map as a product reads it.
const SOFTMAX_MAP: &str = "(dequantize ?dp (quantize ?qp (softmax ?m (dequantize ?d ?s))))";

const LINEAR_ATTENTION: &str =
    "(quantize ?q (linear_attention ?m (dequantize ?da ?a) (dequantize ?dk ?k) (dequantize ?dv ?v)))";

#[rustfmt::skip]
pub(super) fn rules() -> Vec<Rule> {
    let rule = |name, exactness, pattern: &str, build: Build| Rule { name, book: Book::Forms, exactness, pattern: pattern.into(), build };
    let mut rules = vec![
        // name                    class        left side                                                   right side and guard
        rule("shift-gelu",         Approximate, "(quantize ?q (gelu ?m (dequantize ?d ?x)))",               shift_gelu),
        rule("moments-layernorm",  Rounding,    "(quantize ?q (layernorm ?m (dequantize ?d ?x) ?g ?b))",    moments_layernorm),
        rule("shift-layernorm",    Approximate, "(quantize ?q (layernorm ?m (dequantize ?d ?x) ?g ?b))",    shift_layernorm),
        rule("deferred-softmax",   Approximate, ATTENTION,                                                  deferred_softmax),
        rule("coded-softmax",      Approximate, CODED_ATTENTION,                                            coded_softmax),
        rule("alone-softmax",      Approximate, "(quantize ?q (softmax ?m (dequantize ?d ?s)))",            softmax_alone),
        rule("fine-softmax",       Approximate, "(quantize ?q (softmax ?m (dequantize ?d ?s)))",            fine_softmax),
        rule("ibert-gelu",         Approximate, "(quantize ?q (gelu ?m (dequantize ?d ?x)))",               ibert::gelu),
        rule("ibert-layernorm",    Approximate, "(quantize ?q (layernorm ?m (dequantize ?d ?x) ?g ?b))",    ibert::layernorm),
        rule("ibert-softmax",      Approximate, SOFTMAX_MAP,                                                ibert::softmax),
        rule("ibert-softmax-codes", Approximate, CODED_MAP,                                                 ibert::softmax),
        rule("linear-attention",   Rounding,    LINEAR_ATTENTION,                                           linear_attention),
        rule("shift-attention",     Approximate, LINEAR_ATTENTION,                                           shift_attention),
        rule("gated-hardswish",    Rounding,    "(hardswish ?m (dequantize ?d ?x))",                        gated_hardswish),
        rule("gated-gelu",         Approximate, "(quantize ?q (gelu ?m (dequantize ?d ?x)))",               gated_by_byte),
        rule("gated-silu",         Approximate, "(quantize ?q (silu ?m (dequantize ?d ?x)))",               gated_by_byte),
        rule("byte-gated-hardswish", Approximate, "(quantize ?q (hardswish ?m (dequantize ?d ?x)))",        gated_by_byte),
        rule("quotient",           Rounding,    "(quantize ?q (div ?m (dequantize ?da ?a) (dequantize ?db ?b)))", quotient),
        rule("shift-softmax",      Approximate, SOFTMAX_MAP,                                                shift_softmax),
        rule("shift-softmax-codes", Approximate, CODED_MAP,                                                 shift_softmax),
    ];
    rules.push(rule("table-function", Rounding, "(quantize ?q ?y)", table_of_function));
    rules.extend(UNARY.iter().map(|(name, op)| rule(name, Rounding, &format!("(quantize ?q ({op} ?m (dequantize ?d ?x)))"), table)));
    rules
}

/// A row's maximum of `int.exp` where the map goes to `target`, which is ours: one over its scale. It is 255, or less for maps
/// of fewer bits.
fn peak_of(target: &Quant) -> Option<u8> {
    let peak = (1.0 / target.single()?).round();
    (1.0..=255.0).contains(&peak).then_some(peak as u8)
}

static LEAK_FREE_NAMES: LazyLock<Vec<&'static str>> = LazyLock::new(|| UNARY.iter().map(|(_, op)| *op).collect());

pub(super) fn quantize_target(m: &Match<'_>) -> Option<(Elem, Quant)> {
    let q = m.attrs("?q")?;
    let Op::Quantize { to } = q.op else { return None };
    Some((to, q.quant?))
}

/// A function of one 8-bit value is a table of its 256 values, each rounded correctly.
fn table(m: &mut Match<'_>) -> Option<Id> {
    let (to, target) = quantize_target(m)?;
    let op = m.attrs("?m")?.op;
    let x = m.ty("?x")?;
    let entries = sample::table_of(&op, &x, to, &target)?;
    let name = LEAK_FREE_NAMES.iter().find(|n| **n == op.name())?;
    // the entries are the rounded results themselves: no step away from them, by construction
    if !m.admit(name, "table", cost::table(&x), super::super::report::Error::Steps(0.0)) {
        return None;
    }
    let id = table_constant(m, to, &entries);
    let operand = m.var("?x")?;
    m.apply(Op::IntTable {}, Some(target), &[operand, id])
}

/// A chain of elementwise ops that starts from one 8-bit value is a table as well.
fn table_of_function(m: &mut Match<'_>) -> Option<Id> {
    let (to, target) = quantize_target(m)?;
    let (source, entries) = m.function("?y", to, &target)?;
    let x = m.fact(source).ty.clone()?;
    if !m.admit("function", "table", cost::table(&x), super::super::report::Error::Steps(0.0)) {
        return None;
    }
    let id = table_constant(m, to, &entries);
    m.apply(Op::IntTable {}, Some(target), &[source, id])
}

pub(super) fn table_constant(m: &mut Match<'_>, to: Elem, entries: &[i64]) -> Id {
    let name = format!("{}.table", m.loc().as_deref().unwrap_or("value"));
    let ty = vector(to, 256);
    match to {
        Elem::U8 => m.constant_of(&name, ty, &entries.iter().map(|&v| v as u8).collect::<Vec<_>>()),
        Elem::I8 => m.constant_of(&name, ty, &entries.iter().map(|&v| v as i8).collect::<Vec<_>>()),
        Elem::I16 => m.constant_of(&name, ty, &entries.iter().map(|&v| v as i16).collect::<Vec<_>>()),
        _ => m.constant_of(&name, ty, &entries.iter().map(|&v| v as i32).collect::<Vec<_>>()),
    }
}

/// Bits of the sigmoid in ShiftGELU (I-ViT uses 8).
const GELU_BITS: u32 = 8;
/// Steps of one in the exponent of the shift forms. The papers round `1/S` to an integer, which at 8 bits misplaces the
/// exponent by up to a fifth; a finer scale that is a power of two makes the rounding exact (specs/i-vit.md section 3 (c)).
const ONE: i64 = 256;

/// ShiftGELU on a finer input scale, then one requantize; on 8-bit input all of it is a function of one byte, and `fuse` folds
/// it into the table of its own values.
fn shift_gelu(m: &mut Match<'_>) -> Option<Id> {
    let (to, target) = quantize_target(m)?;
    let x = m.ty("?x")?;
    let error = sample::error_over_bytes(&m.attrs("?m")?.op, &x, (to, &target), |sample, input, x| {
        shift_gelu_ops(sample, input, x, (to, &target))
    })?;
    if !m.admit("gelu", "shift", cost::shift_gelu(&x), error) {
        return None;
    }
    let operand = m.var("?x")?;
    shift_gelu_ops(m, operand, &x, (to, &target))
}

fn shift_gelu_ops<O: Ops>(
    ops: &mut O,
    operand: O::Value,
    x: &TensorType,
    (to, target): (Elem, &Quant),
) -> Option<O::Value> {
    // exp is clamped at 2^-12, below half a step of an 8-bit sigmoid, and F keeps 10 bits
    const N: u32 = 12;
    let fine = 1.0 / (ONE as f64 * 1.702);
    let widened = widened(ops, operand, x, fine)?;
    let gelu = Op::IntShiftGelu { x_zero: 0, one: ONE, n: N, bits: GELU_BITS };
    let product_scale = fine * 2f64.powi(1 - GELU_BITS as i32);
    let gelu = ops.op(gelu, Some(Quant::per_tensor(product_scale, 0)), &[widened])?;
    requantized(ops, gelu, (x, product_scale), (to, target))
}

/// Bytes at a finer scale in 16 bits.
pub(super) fn widened<O: Ops>(ops: &mut O, operand: O::Value, x: &TensorType, scale: f64) -> Option<O::Value> {
    let quant = x.quant.as_ref()?;
    let (multiplier, shift) = arith::dyadic(&[quant.single()? / scale])?;
    let multiplier = ops.vector("widen", &multiplier);
    let axis = x.shape.rank().checked_sub(1)?;
    let op = Op::IntRequant { axis, x_zero: quant.zero_point.into(), shift, zero_point: 0, to: Elem::I16 };
    ops.op(op, Some(Quant::per_tensor(scale, 0)), &[operand, multiplier])
}

/// Integers of the shape of `x` at `scale`, which may be negative, on a grid.
pub(super) fn requantized<O: Ops>(
    ops: &mut O,
    operand: O::Value,
    (x, scale): (&TensorType, f64),
    (to, target): (Elem, &Quant),
) -> Option<O::Value> {
    let (multiplier, shift) = arith::dyadic(&[scale / target.single()?])?;
    let multiplier = ops.vector("multiplier", &multiplier);
    let axis = x.shape.rank().checked_sub(1)?;
    let op = Op::IntRequant { axis, x_zero: 0, shift, zero_point: target.zero_point.into(), to };
    ops.op(op, Some(target.clone()), &[operand, multiplier])
}

struct Norm {
    gamma: Vec<f64>,
    beta: Vec<f64>,
    epsilon: f64,
    centred: bool,
    scale: f64,
    to: Elem,
    target: Quant,
}

impl Norm {
    /// The norm that an integer form is measured against.
    fn float(&self) -> sample::LayerNorm<'_> {
        let Norm { gamma, beta, epsilon, centred, scale, .. } = self;
        sample::LayerNorm { gamma, beta, epsilon: *epsilon, centred: *centred, scale: *scale }
    }
}

fn layernorm_site(m: &Match<'_>) -> Option<Norm> {
    let (to, target) = quantize_target(m)?;
    let Op::LayerNorm { epsilon, centred } = m.attrs("?m")?.op else { return None };
    let x = m.ty("?x")?;
    let quant = x.quant?;
    if quant.zero_point != 0 || x.elem != Elem::I16 {
        return None;
    }
    let channels = x.shape.last_fixed()?;
    let spread = |name: &str| {
        let c = m.constant(name)?;
        let values = c.values::<f32>();
        let at = |i: usize| f64::from(values[if values.len() == 1 { 0 } else { i }]);
        Some((0..channels).map(at).collect::<Vec<_>>())
    };
    Some(Norm {
        gamma: spread("?g")?,
        beta: spread("?b")?,
        epsilon: epsilon.0,
        centred,
        scale: quant.single()?,
        to,
        target,
    })
}

/// Exact integer moments, one integer square root and one division a row; gamma and beta after normalising.
fn moments_layernorm(m: &mut Match<'_>) -> Option<Id> {
    let site = layernorm_site(m)?;
    let k = arith::layernorm_constants(&site.gamma, &site.beta, site.epsilon, site.scale, site.target.single()?)?;
    let op = Op::IntLayerNorm {
        epsilon: k.epsilon,
        centred: site.centred,
        guard: k.guard,
        norm_bits: k.norm_bits,
        recip_bits: k.recip_bits,
        shift: k.shift,
        zero_point: site.target.zero_point.into(),
        to: site.to,
    };
    let error =
        site.float().error_of(&op, sample::Vector::I32(&k.gamma), sample::Vector::I32(&k.beta), &site.target)?;
    let x = m.ty("?x")?;
    if !m.admit(if site.centred { "layernorm" } else { "rmsnorm" }, "moments", cost::layernorm(&x), error) {
        return None;
    }
    let (gamma, beta) = (m.i32_vector("gamma", &k.gamma), m.i32_vector("beta", &k.beta));
    let operand = m.var("?x")?;
    m.apply(op, Some(site.target), &[operand, gamma, beta])
}

/// I-LayerNorm of I-ViT: integer mean, Newton square root, beta after gamma.
fn shift_layernorm(m: &mut Match<'_>) -> Option<Id> {
    integer_layernorm(m, "shift")
}

/// The same integers by both papers. I-BERT halves differences until their squares fit 32 bits, I-ViT starts its root at 2^16;
/// in 64 bits, with a root that runs until it no longer falls, neither is needed, and nothing else distinguishes them.
pub(super) fn integer_layernorm(m: &mut Match<'_>, form: &'static str) -> Option<Id> {
    let site = layernorm_site(m).filter(|site| site.centred)?;
    let (gamma, beta, shift) = arith::shift_layernorm_constants(&site.gamma, &site.beta, site.target.single()?)?;
    let op = Op::IntShiftLayerNorm { shift, zero_point: site.target.zero_point.into(), to: site.to };
    let error = site.float().error_of(&op, sample::Vector::I32(&gamma), sample::Vector::I64(&beta), &site.target)?;
    let x = m.ty("?x")?;
    if !m.admit("layernorm", form, cost::shift_layernorm(&x), error) {
        return None;
    }
    let gamma = m.i32_vector("gamma", &gamma);
    let name = format!("{}.beta", m.loc().as_deref().unwrap_or("value"));
    let beta = m.constant_of(&name, vector(Elem::I64, beta.len()), &beta);
    let operand = m.var("?x")?;
    m.apply(op, Some(site.target), &[operand, gamma, beta])
}

/// The numerator of softmax as `u8` with `peak` at every row's maximum, of these levels alone where there are any.
fn exponentials(m: &mut Match<'_>, scores: &TensorType, peak: u8, levels: &[i64]) -> Option<Id> {
    let scale = scores.quant.as_ref()?.single()?;
    let (limit, multiplier, shift, table_bits, table) = match levels {
        [] => arith::exp_constants(scale, peak)?,
        _ => arith::coded_exp_constants(scale, peak, levels)?,
    };
    let op = Op::IntExp { limit, multiplier, shift, table_bits };
    let error = sample::exp_error(&op, [&table, &[]], scores)?;
    if !m.admit("softmax", "deferred", cost::softmax(scores), error) {
        return None;
    }
    let ty = vector(Elem::I32, table.len());
    let table = m.constant_of("exp2.table", ty, &table);
    let operand = scores_in_i16(m, scores)?;
    // what one step means varies from row to row; the annotation says the largest
    m.apply(op, Some(Quant::per_tensor(1.0 / f64::from(peak), 0)), &[operand, table])
}

/// Scores as the exponential takes them: those that a model rounds to `u8` in a signed type; softmax does not see the offset.
pub(super) fn scores_in_i16(m: &mut Match<'_>, scores: &TensorType) -> Option<Id> {
    let operand = m.var("?s")?;
    if scores.elem != Elem::U8 {
        return Some(operand);
    }
    let one = m.i32_vector("one", &[2]);
    let axis = scores.shape.rank().checked_sub(1)?;
    let op = Op::IntRequant { axis, x_zero: 0, shift: 1, zero_point: 0, to: Elem::I16 };
    m.apply(op, scores.quant.clone(), &[operand, one])
}

/// The row's reciprocal times `factor` as a dyadic number: (reciprocal op, shift). A row's sum is at least its maximum, of
/// `2^peak_bits` or more, and the numerator has 31 bits beyond those, so the quotient fits 31 bits; at a sum of 1024 times
/// the maximum it still has 20.
fn row_reciprocal(factor: f64, peak_bits: u32) -> Option<(Op, u32)> {
    let shift = 30 + peak_bits as i32 - arith::exponent(factor);
    let numerator = (factor * 2f64.powi(shift)).round();
    (1..=62).contains(&shift).then_some((Op::IntReciprocal { numerator: numerator as i64 }, shift as u32))
}

fn deferred_softmax(m: &mut Match<'_>) -> Option<Id> {
    deferred(m, &[])
}

/// The same with a map of codes: the exponential's table yields levels alone.
fn coded_softmax(m: &mut Match<'_>) -> Option<Id> {
    let mut levels = m.constant("?levels")?.ints();
    levels.sort_unstable();
    levels.dedup();
    deferred(m, &levels)
}

fn deferred(m: &mut Match<'_>, levels: &[i64]) -> Option<Id> {
    let (to, target) = quantize_target(m)?;
    let (scores, values) = (m.ty("?s")?, m.ty("?v")?);
    // a map on a grid of the model's own is rounded to it, as the model does
    let map = m.attrs("?qp")?.quant?;
    if is_of_a_model(&map) {
        return None;
    }
    let peak = peak_of(&map)?;
    let value_quant = values.quant?;
    let (reciprocal, shift) = row_reciprocal(value_quant.single()? / target.single()?, peak.ilog2())?;
    let exp = exponentials(m, &scores, peak, levels)?;
    let axis = scores.shape.rank() - 1;
    let sums = m.apply(Op::IntReduceSum { axis, keep: true }, None, &[exp])?;
    let reciprocals = m.apply(reciprocal, None, &[sums])?;
    let product = Op::IntMatMul { a_zero: 0, b_zero: value_quant.zero_point.into() };
    let v = m.var("?v")?;
    let product = m.apply(product, None, &[exp, v])?;
    let op = Op::IntRequantRows { shift, zero_point: target.zero_point.into(), to };
    m.apply(op, Some(target), &[product, reciprocals])
}

/// Softmax that no product follows: normalised here.
fn softmax_alone(m: &mut Match<'_>) -> Option<Id> {
    let (to, target) = quantize_target(m)?;
    if m.options().nonlinear != Nonlinear::Auto || is_of_a_model(&target) {
        return None;
    }
    let scores = m.ty("?s")?;
    let peak = peak_of(&target).filter(|_| to == Elem::U8).unwrap_or(u8::MAX);
    let exp = exponentials(m, &scores, peak, &[])?;
    let axis = scores.shape.rank() - 1;
    let sums = m.apply(Op::IntReduceSum { axis, keep: true }, None, &[exp])?;
    let one = m.i32_vector("one", &[2]);
    let wide =
        m.apply(Op::IntRequant { axis, x_zero: 0, shift: 1, zero_point: 0, to: Elem::I32 }, None, &[exp, one])?;
    let factor = 1.0 / target.single()?;
    normalised(m, wide, sums, factor, peak.ilog2(), (to, target))
}

/// Rows of 32 bits over their sums, times `factor`, on a grid.
pub(super) fn normalised(
    m: &mut Match<'_>,
    rows: Id,
    sums: Id,
    factor: f64,
    peak_bits: u32,
    (to, target): (Elem, Quant),
) -> Option<Id> {
    let (reciprocal, shift) = row_reciprocal(factor, peak_bits)?;
    let reciprocals = m.apply(reciprocal, None, &[sums])?;
    let op = Op::IntRequantRows { shift, zero_point: target.zero_point.into(), to };
    m.apply(op, Some(target), &[rows, reciprocals])
}

/// Shiftmax with a 16-bit map. The scores go to a scale of a power of two chosen so that the row's sum fits 31 bits with all
/// 15 fraction shifts (specs/i-vit.md sections 3 (c) and 4: the papers' scale misplaces the exponent and may overflow).
fn shift_softmax(m: &mut Match<'_>) -> Option<Id> {
    const N: u32 = 15;
    const BITS: u32 = 16;
    // a map on a grid of the model's own is rounded to it, unless somebody asks for this form
    let map = m.attrs("?qp")?.quant?;
    if is_of_a_model(&map) && m.options().nonlinear == Nonlinear::Auto {
        return None;
    }
    let scores = m.ty("?s")?;
    let length = scores.shape.last_fixed()? as f64;
    let room = arith::exponent(f64::from(i32::MAX) / (length * f64::from(1u32 << N)));
    let one = 1i64 << room.clamp(0, 8);
    let scale = 1.0 / one as f64;
    let (multiplier, shift) = arith::dyadic(&[scores.quant.as_ref()?.single()? / scale])?;
    let op = Op::IntShiftmax { one, n: N, bits: BITS };
    let error = sample::shiftmax_error(&op, &scores, multiplier[0], shift)?;
    if !m.admit("softmax", "shift", cost::shiftmax(&scores), error) {
        return None;
    }
    let axis = scores.shape.rank() - 1;
    let multiplier = m.i32_vector("multiplier", &multiplier);
    let operand = m.var("?s")?;
    let requant = Op::IntRequant { axis, x_zero: 0, shift, zero_point: 0, to: Elem::I16 };
    let narrow = m.apply(requant, Some(Quant::per_tensor(scale, 0)), &[operand, multiplier])?;
    let map = m.apply(op, Some(Quant::per_tensor(2f64.powi(1 - BITS as i32), 0)), &[narrow])?;
    m.dequantize(map)
}

/// Attention without softmax with an exact integer reciprocal.
fn linear_attention(m: &mut Match<'_>) -> Option<Id> {
    linear_attention_by(m, false)
}

/// The same with Trio-ViT's divisor, a power of two: up to 1.5 times off, so it is for those who ask for it.
fn shift_attention(m: &mut Match<'_>) -> Option<Id> {
    linear_attention_by(m, true)
}

/// The scales of q and k cancel in the quotient; what is left is that of v.
fn linear_attention_by(m: &mut Match<'_>, log2: bool) -> Option<Id> {
    let (to, target) = quantize_target(m)?;
    let Op::LinearAttention { epsilon } = m.attrs("?m")?.op else { return None };
    let [q, k, v] = [m.ty("?a")?, m.ty("?k")?, m.ty("?v")?];
    let [q_quant, k_quant, v_quant] = [q.quant.clone()?, k.quant?, v.quant?];
    if q_quant.zero_point != 0 || k_quant.zero_point != 0 {
        return None; // the form is for queries and keys that are not negative
    }
    let steps = (epsilon.0 / (q_quant.single()? * k_quant.single()?)).round();
    let factor = v_quant.single()? / target.single()?;
    let shift = 52 - arith::exponent(factor);
    let numerator = (factor * 2f64.powi(shift)).round() as i64;
    let op = Op::IntLinearAttention {
        q_zero: 0,
        k_zero: 0,
        v_zero: v_quant.zero_point.into(),
        epsilon: (0.0..2f64.powi(38)).contains(&steps).then_some(steps as i64)?,
        numerator: numerator.min((1 << 53) - 1),
        shift: u32::try_from(shift).ok()?,
        log2,
        zero_point: target.zero_point.into(),
        to,
    };
    let (form, error) = match log2 {
        true => ("shift", Error::Relative(0.5)),
        false => ("reciprocal", Error::Steps(0.5)),
    };
    if !m.admit("linear_attention", form, cost::linear_attention(&q), error) {
        return None;
    }
    let operands = [m.var("?a")?, m.var("?k")?, m.var("?v")?];
    m.apply(op, Some(target), &operands)
}

/// HardSwish in 16 bits: the value times its gate. The gate has 15 bits, so the result is off by half a step and by `2^-15` of
/// itself for every step of the shift at most.
fn gated_hardswish(m: &mut Match<'_>) -> Option<Id> {
    let x = m.ty("?x")?;
    let quant = x.quant.clone()?;
    let shift = (quant.single()? * 32768.0 / 6.0).log2();
    if x.elem != Elem::I16 || quant.zero_point != 0 || shift.fract() != 0.0 || !(-14.0..=14.0).contains(&shift) {
        return None;
    }
    if !m.admit("hardswish", "gate", cost::table(&x), Error::Steps(0.5)) {
        return None;
    }
    let operand = m.var("?x")?;
    let gated = m.apply(Op::IntHardSwish { shift: shift as i64 }, Some(quant), &[operand])?;
    m.dequantize(gated)
}

/// GELU, SiLU and HardSwish of 16 bits: the value times its gate, which is a table of 256 entries of 15 bits. A gate is 0 on
/// the left of the table and 1 on its right, so only what lies between needs fine steps.
fn gated_by_byte(m: &mut Match<'_>) -> Option<Id> {
    let (to, target) = quantize_target(m)?;
    let (x, op) = (m.ty("?x")?, m.attrs("?m")?.op);
    let symmetric = x.quant.as_ref().is_some_and(|q| q.zero_point == 0 && q.axis.is_none());
    if x.elem != Elem::I16 || !symmetric {
        return None;
    }
    let gate = Gate::of(&op)?;
    let error = sample::error_over_halves(&op, &x, (to, &target), |m, v, x| gate.ops(m, v, x, (to, &target)))?;
    // the published forms of GELU are of bytes: who asks for one has this where there are none
    let name = if matches!(op, Op::Gelu { .. }) { "wide gelu" } else { op.name() };
    if !m.admit(name, "gated", 8 * cost::table(&x), error) {
        return None;
    }
    let operand = m.var("?x")?;
    gate.ops(m, operand, &x, (to, &target))
}

/// What a function multiplies its operand with, by a byte of the operand.
struct Gate {
    /// What the bytes stand for.
    index: Quant,
    /// The gate in steps of `1 / ONE`.
    entries: Vec<i16>,
}

impl Gate {
    const ONE: f64 = 32767.0;

    fn of(op: &Op) -> Option<Gate> {
        // where the gate is a thousandth from 0 or 1, or, of GELU, less; beyond it counts as 0 or 1
        let reach = match op {
            Op::Gelu { .. } => 3.5,
            Op::Silu {} => 8.0,
            Op::HardSwish {} => 3.0,
            _ => return None,
        };
        let index = Quant::per_tensor(reach / 127.5, 128);
        let points: Vec<f64> = (0..256).map(|i| f64::from(i - 128) * index.scale_at(0)).collect();
        let values = sample::apply(op, &points)?;
        let gate = |(x, y): (&f64, &f64)| if *x == 0.0 { 0.5 } else { y / x };
        let mut gates: Vec<f64> = points.iter().zip(&values).map(gate).collect();
        (gates[0], gates[255]) = (0.0, 1.0);
        let entries = gates.iter().map(|g| (g.clamp(0.0, 1.0) * Gate::ONE).round() as i16).collect();
        Some(Gate { index, entries })
    }

    fn ops<O: Ops>(&self, ops: &mut O, x: O::Value, ty: &TensorType, (to, target): (Elem, &Quant)) -> Option<O::Value> {
        let (scale, axis) = (ty.quant.as_ref()?.single()?, ty.shape.rank().checked_sub(1)?);
        let (multiplier, shift) = arith::dyadic(&[scale / self.index.scale_at(0)])?;
        let multiplier = ops.vector("index", &multiplier);
        let zero_point = self.index.zero_point.into();
        let narrow = Op::IntRequant { axis, x_zero: 0, shift, zero_point, to: Elem::U8 };
        let byte = ops.op(narrow, Some(self.index.clone()), &[x, multiplier])?;
        let table = ops.halves("gate", &self.entries);
        let gate = ops.op(Op::IntTable {}, Some(Quant::per_tensor(1.0 / Gate::ONE, 0)), &[byte, table])?;
        let scale = scale / Gate::ONE;
        let product = Op::IntMul { a_zero: 0, b_zero: 0 };
        let product = ops.op(product, Some(Quant::per_tensor(scale, 0)), &[x, gate])?;
        requantized(ops, product, (ty, scale), (to, target))
    }
}

/// The quotient of two activations of 16 bits: one division for each divisor, then a product for each numerator. The
/// reciprocal is off by half of its own steps at most; a quotient that does not saturate is then off by at most the half step
/// of rounding and `2^-16` of the result's range more. A divisor of zero counts as one of its steps, so what is divided by it
/// saturates, but for zero.
fn quotient(m: &mut Match<'_>) -> Option<Id> {
    let (to, target) = quantize_target(m)?;
    let (a, b, shape) = (m.ty("?a")?, m.ty("?b")?, m.root_type()?.shape);
    let symmetric = |t: &TensorType| t.elem == Elem::I16 && t.quant.as_ref().is_some_and(|q| q.zero_point == 0);
    if !symmetric(&a) || !symmetric(&b) {
        return None;
    }
    let factor = a.quant?.single()? / (b.quant.as_ref()?.single()? * target.single()?);
    let (numerator, shift) = arith::dyadic(&[factor])?;
    let (least, most) = to.range()?;
    let error = Error::Steps((most - least) as f64 / 65536.0);
    if !m.admit("div", "reciprocal", cost::quotient(&b, &shape), error) {
        return None;
    }
    let mut numerators = m.var("?a")?;
    if a.shape != shape {
        numerators = m.apply(Op::Expand { shape }, None, &[numerators])?;
    }
    let divisors = m.var("?b")?;
    let reciprocals = m.apply(Op::IntReciprocal { numerator: numerator[0].into() }, None, &[divisors])?;
    let op = Op::IntRequantRows { shift, zero_point: target.zero_point.into(), to };
    m.apply(op, Some(target), &[numerators, reciprocals])
}
