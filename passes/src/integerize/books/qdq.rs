//! Scale algebra: sink `dequantize` towards the outputs (operand reordering, Low-Bit Integerization section 3), hoist
//! `quantize` towards the inputs, and where they meet leave one dyadic requantize (I-ViT section 3.2).

use egg::Id;
use vitc_ir::{Const, Dim, Elem, Op, Quant, Shape, TensorType};

use super::forms::table_constant;
use crate::integerize::arith;
use crate::integerize::rule::{Book, Build, Exactness, Match, Rule};
use crate::quantize::codes::Levels;
use crate::quantize::rows;
use Exactness::{Exact, Rounding};

#[rustfmt::skip]
pub(super) fn rules() -> Vec<Rule> {
    let rule = |name, exactness, pattern: &str, build: Build| Rule { name, book: Book::Qdq, exactness, pattern: pattern.into(), build };
    vec![
        // name                        class     left side                                                     right side and guard
        rule("sink-matmul",            Exact,    "(matmul ?m (dequantize ?da ?a) (dequantize ?db ?b))",         sink_matmul),
        rule("sink-matmul-bias",       Rounding, "(matmul ?m (dequantize ?da ?a) (dequantize ?db ?b) ?bias)",   sink_matmul_bias),
        rule("sink-matmul-rows",       Rounding, "(matmul ?m (round_rows ?r (dequantize ?da ?a)) (dequantize ?db ?b))", sink_matmul_rows),
        rule("sink-matmul-rows-bias",  Rounding, "(matmul ?m (round_rows ?r (dequantize ?da ?a)) (dequantize ?db ?b) ?bias)", sink_matmul_rows),
        rule("sink-conv2d",            Exact,    "(conv2d ?m (dequantize ?da ?a) (dequantize ?db ?b))",         sink_conv),
        rule("sink-conv2d-bias",       Rounding, "(conv2d ?m (dequantize ?da ?a) (dequantize ?db ?b) ?bias)",   sink_conv_bias),
        rule("fold-zero-point",        Exact,    "(int.matmul ?m ?a ?b)",                                       fold_zero_point),
        rule("fold-zero-point-bias",   Exact,    "(int.matmul ?m ?a ?b ?bias)",                                 fold_zero_point),
        rule("sink-reshape",           Exact,    "(reshape ?m (dequantize ?d ?x))",                             sink_movement),
        rule("sink-transpose",         Exact,    "(transpose ?m (dequantize ?d ?x))",                           sink_movement),
        rule("sink-slice",             Exact,    "(slice ?m (dequantize ?d ?x))",                               sink_movement),
        rule("sink-expand",            Exact,    "(expand ?m (dequantize ?d ?x))",                              sink_movement),
        rule("sink-gather",            Exact,    "(gather ?m (dequantize ?d ?x))",                              sink_movement),
        rule("sink-pad",               Exact,    "(pad ?m (dequantize ?d ?x))",                                 sink_pad),
        rule("sink-concat-2",          Exact,    "(concat ?m (dequantize ?da ?a) (dequantize ?db ?b))",         sink_concat),
        rule("sink-concat-3",          Exact,    "(concat ?m (dequantize ?da ?a) (dequantize ?db ?b) (dequantize ?dc ?c))", sink_concat),
        rule("sink-concat-4",          Exact,    "(concat ?m (dequantize ?da ?a) (dequantize ?db ?b) (dequantize ?dc ?c) (dequantize ?dd ?d))", sink_concat),
        rule("sink-sum",               Exact,    "(reduce_sum ?m (dequantize ?d ?x))",                          sink_sum),
        rule("sink-mean",              Exact,    "(reduce_mean ?m (dequantize ?d ?x))",                         sink_mean),
        rule("sink-add",               Exact,    "(add ?m (dequantize ?da ?a) (dequantize ?db ?b))",            sink_add),
        rule("sink-min",                    Exact,    "(min ?m (dequantize ?da ?a) (dequantize ?db ?b))",            sink_extremum),
        rule("sink-max",                    Exact,    "(max ?m (dequantize ?da ?a) (dequantize ?db ?b))",            sink_extremum),
        rule("bias-accumulators",      Rounding, "(add ?m (dequantize ?d ?x) ?c)",                              bias_accumulators),
        rule("sink-product",           Exact,    "(mul ?m (dequantize ?da ?a) (dequantize ?db ?b))",            sink_product),
        rule("sink-scale",             Exact,    "(mul ?m (dequantize ?d ?x) ?c)",                              sink_scale),
        rule("sink-scale-left",        Exact,    "(mul ?m ?c (dequantize ?d ?x))",                              sink_scale),
        rule("sink-divisor",           Exact,    "(div ?m (dequantize ?d ?x) ?c)",                              sink_divisor),
        rule("hoist-reshape",          Exact,    "(quantize ?q (reshape ?m ?x))",                               hoist_quantize),
        rule("hoist-transpose",        Exact,    "(quantize ?q (transpose ?m ?x))",                             hoist_quantize),
        rule("hoist-slice",            Exact,    "(quantize ?q (slice ?m ?x))",                                 hoist_quantize),
        rule("hoist-expand",           Exact,    "(quantize ?q (expand ?m ?x))",                                hoist_quantize),
        rule("hoist-gather",           Exact,    "(quantize ?q (gather ?m ?x))",                                hoist_quantize),
        rule("hoist-concat-2",         Exact,    "(quantize ?q (concat ?m ?a ?b))",                             hoist_concat),
        rule("quantize-clip",          Exact,    "(quantize ?q (clip ?c ?x))",                                  quantize_clip),
        rule("merge-tables",           Exact,    "(int.table ?a (int.table ?b ?x ?t) ?u)",                      merge_tables),
        rule("requantize",             Rounding, "(quantize ?q (dequantize ?d ?x))",                            requantize),
        rule("requantize-halves",      Rounding, "(quantize ?q (dequantize ?d ?x))",                            requantize_halves),
        rule("requantize-add",         Rounding, "(quantize ?q (add ?m (dequantize ?da ?a) (dequantize ?db ?b)))", requantize_add),
        rule("requantize-sub",         Rounding, "(quantize ?q (sub ?m (dequantize ?da ?a) (dequantize ?db ?b)))", requantize_sub),
    ]
}

/// Scales of a product: per tensor times per tensor, or times per last axis.
fn product_quant(a: &Quant, b: &Quant, b_axis: usize, result_axis: usize) -> Option<Quant> {
    let left = a.single()?;
    match b.axis {
        None => Some(Quant::per_tensor(left * b.single()?, 0)),
        Some(axis) if axis == b_axis => Some(Quant::per_axis(b.scale.iter().map(|s| left * s.0), result_axis, 0)),
        Some(_) => None,
    }
}

fn sink_matmul(m: &mut Match<'_>) -> Option<Id> {
    matmul(m, None)
}

fn sink_matmul_bias(m: &mut Match<'_>) -> Option<Id> {
    let bias = m.constant("?bias")?;
    matmul(m, Some(&bias))
}

fn matmul(m: &mut Match<'_>, bias: Option<&Const>) -> Option<Id> {
    let (a, b) = (m.ty("?a")?, m.ty("?b")?);
    let (qa, qb) = (a.quant?, b.quant?);
    let quant = product_quant(&qa, &qb, b.shape.rank() - 1, m.root_type()?.shape.rank() - 1)?;
    let op = Op::IntMatMul { a_zero: qa.zero_point.into(), b_zero: qb.zero_point.into() };
    let mut operands = vec![m.var("?a")?, m.var("?b")?];
    if let Some(bias) = bias {
        operands.push(accumulator_bias(m, bias, &quant, b.shape.last_fixed()?)?);
    }
    let product = m.apply(op, Some(quant), &operands)?;
    m.dequantize(product)
}

/// Rows in steps of their own: `x = s (c p/levels - z)` for codes `c` and a row's peak `p`, so that
/// `sum_k x w = s t (p/levels sum_k c w - z sum_k w)`. The accumulators are multiplied by the peak behind the product, and
/// what the zero point adds joins the bias.
fn sink_matmul_rows(m: &mut Match<'_>) -> Option<Id> {
    let Op::RoundRows { lowest, step, levels, signed, codes: used } = m.attrs("?r")?.op else { return None };
    let (a, b, weights) = (m.ty("?a")?, m.ty("?b")?, m.constant("?b")?);
    let (qa, qb) = (a.quant?, b.quant?);
    let scale = qa.single()?;
    let peak_shift = (step.0 / scale).log2().round() as u32;
    // zero of the integers is the lowest value of every row, and peaks are counted in powers of two of their steps
    let near = |x: f64, y: f64| (x - y).abs() <= scale * 1e-3;
    let fits = near(lowest.0, -scale * f64::from(qa.zero_point)) && near(step.0, scale * 2f64.powi(peak_shift as i32));
    if a.elem != Elem::I16 || b.shape.rank() != 2 || !fits || peak_shift > 15 {
        return None;
    }
    let Columns { sums, largest } = Columns::of(&weights, qb.zero_point.into());
    let shift = before_peaks(largest * levels, 16 - peak_shift);
    let unit = Quant::per_tensor(scale * 2f64.powi((peak_shift + shift) as i32) / levels as f64, 0);
    let quant = product_quant(&unit, &qb, 1, m.root_type()?.shape.rank() - 1)?;
    let bias = match m.var("?bias") {
        Some(_) => m.constant("?bias").filter(|c| c.ty.elem == Elem::F32)?.values::<f32>().into_owned(),
        None => vec![0.0],
    };
    let at_zero = |n: usize| f64::from(qa.zero_point) * scale * qb.scale_at(n) * sums[n] as f64;
    let bias = |n: usize| f64::from(bias[if bias.len() == 1 { 0 } else { n }]) - at_zero(n);
    let steps: Vec<i32> = (0..sums.len()).map(|n| to_i32(bias(n) / quant.scale_at(n))).collect::<Option<_>>()?;
    let (x, w) = (m.var("?a")?, m.var("?b")?);
    let peaks = m.apply(Op::IntRowPeak { shift: peak_shift }, None, &[x])?;
    // what a code stands for varies from row to row
    let zero_point = rows::zero_point(levels, signed);
    let mut codes = m.apply(Op::IntRowCodes { levels, zero_point, shift: peak_shift }, None, &[x])?;
    if !used.is_empty() {
        let used = Levels::new(used.iter().map(|&code| code as i64).collect());
        let table = table_constant(m, Elem::U8, &used.table(Elem::U8));
        codes = m.apply(Op::IntTable {}, None, &[codes, table])?;
    }
    let mut sum = m.apply(Op::IntMatMul { a_zero: zero_point, b_zero: qb.zero_point.into() }, None, &[codes, w])?;
    if shift > 0 {
        sum = m.apply(Op::IntRoundShift { shift }, None, &[sum])?;
    }
    sum = m.apply(Op::IntMul { a_zero: 0, b_zero: 0 }, Some(quant.clone()), &[sum, peaks])?;
    if steps.iter().any(|&s| s != 0) {
        let bias = m.i32_vector("bias", &steps);
        sum = m.apply(Op::IntAdd { to: Elem::I32 }, Some(quant), &[sum, bias])?;
    }
    m.dequantize(sum)
}

/// The shift after which accumulators of at most this magnitude, times peaks of as many bits, stay below 2^30. What it takes
/// away is far below the error of the codes: accumulators that large are sums of hundreds of products.
fn before_peaks(most: i64, peak_bits: u32) -> u32 {
    (i64::BITS - most.leading_zeros() + peak_bits).saturating_sub(30)
}

/// Sums over the columns of a matrix of weights.
struct Columns {
    sums: Vec<i64>,
    /// The largest sum of magnitudes.
    largest: i64,
}

impl Columns {
    /// A zero point is taken off first.
    fn of(weights: &Const, zero: i64) -> Columns {
        let columns = weights.ty.shape.last_fixed().unwrap_or(1).max(1);
        let (mut sums, mut magnitudes) = (vec![0i64; columns], vec![0i64; columns]);
        for (i, w) in weights.ints().into_iter().enumerate() {
            sums[i % columns] += w - zero;
            magnitudes[i % columns] += (w - zero).abs();
        }
        Columns { sums, largest: magnitudes.into_iter().max().unwrap_or(0) }
    }
}

/// The bias in accumulator steps; its rounding is half an accumulator step, far below one output step.
fn accumulator_bias(m: &mut Match<'_>, bias: &Const, quant: &Quant, channels: usize) -> Option<Id> {
    if bias.ty.elem != Elem::F32 {
        return None;
    }
    let values = bias.values::<f32>();
    let at = |c: usize| f64::from(values[if values.len() == 1 { 0 } else { c }]);
    let steps: Vec<i32> = (0..channels).map(|c| to_i32(at(c) / quant.scale_at(c))).collect::<Option<_>>()?;
    Some(m.i32_vector("bias", &steps))
}

fn to_i32(x: f64) -> Option<i32> {
    let r = x.round();
    (r.abs() < 2f64.powi(30)).then_some(r as i32)
}

fn sink_conv(m: &mut Match<'_>) -> Option<Id> {
    conv(m, None)
}

fn sink_conv_bias(m: &mut Match<'_>) -> Option<Id> {
    let bias = m.constant("?bias")?;
    conv(m, Some(&bias))
}

fn conv(m: &mut Match<'_>, bias: Option<&Const>) -> Option<Id> {
    let Op::Conv2d { strides, pads, dilations, groups, layout } = m.attrs("?m")?.op else { return None };
    let (x, w) = (m.ty("?a")?, m.ty("?b")?);
    let (qx, qw) = (x.quant?, w.quant?);
    if qw.zero_point != 0 {
        return None;
    }
    let quant = product_quant(&qx, &qw, 0, layout.channel())?;
    let op = Op::IntConv2d { strides, pads, dilations, groups, layout, x_zero: qx.zero_point.into() };
    let mut operands = vec![m.var("?a")?, m.var("?b")?];
    if let Some(bias) = bias {
        operands.push(accumulator_bias(m, bias, &quant, w.shape.0[0].as_fixed()?)?);
    }
    let product = m.apply(op, Some(quant), &operands)?;
    m.dequantize(product)
}

/// `sum (a - z) w = sum a w - z * sum w`: the zero point of the left operand moves into the bias.
fn fold_zero_point(m: &mut Match<'_>) -> Option<Id> {
    let Op::IntMatMul { a_zero, b_zero: 0 } = m.attrs("?m")?.op else { return None };
    let weights = m.constant("?b")?;
    if a_zero == 0 || weights.ty.shape.rank() != 2 || weights.layout.is_some() {
        return None;
    }
    let columns = weights.ty.shape.last_fixed()?;
    let Columns { sums, .. } = Columns::of(&weights, 0);
    let bias = match m.var("?bias") {
        Some(_) => m.constant("?bias")?.ints(),
        None => vec![0],
    };
    let at = |c: usize| bias[if bias.len() == 1 { 0 } else { c }];
    let folded = (0..columns).map(|c| i32::try_from(at(c) - a_zero * sums[c]).ok()).collect::<Option<Vec<_>>>()?;
    let bias = m.i32_vector("bias", &folded);
    let quant = m.root_type()?.quant;
    let operands = [m.var("?a")?, m.var("?b")?, bias];
    m.apply(Op::IntMatMul { a_zero: 0, b_zero: 0 }, quant, &operands)
}

fn sink_movement(m: &mut Match<'_>) -> Option<Id> {
    let op = m.attrs("?m")?.op;
    let x = m.var("?x")?;
    let moved = m.apply(op, None, &[x])?;
    m.dequantize(moved)
}

fn sink_pad(m: &mut Match<'_>) -> Option<Id> {
    let Op::Pad { before, after, value } = m.attrs("?m")?.op else { return None };
    let x = m.ty("?x")?;
    let quant = x.quant?;
    let steps = (value.0 / quant.single()?).round() + f64::from(quant.zero_point);
    let (lo, hi) = x.elem.range()?;
    // only a value that the integers hold exactly may be padded
    let exact = (steps - f64::from(quant.zero_point)) * quant.single()? == value.0;
    if !exact || steps < lo as f64 || steps > hi as f64 {
        return None;
    }
    let operand = m.var("?x")?;
    let moved = m.apply(Op::Pad { before, after, value: steps.into() }, None, &[operand])?;
    m.dequantize(moved)
}

fn sink_concat(m: &mut Match<'_>) -> Option<Id> {
    let op = m.attrs("?m")?.op;
    let parts: Vec<Id> = ["?a", "?b", "?c", "?d"].iter().filter_map(|v| m.var(v)).collect();
    let joined = m.apply(op, None, &parts)?;
    m.dequantize(joined)
}

fn sink_sum(m: &mut Match<'_>) -> Option<Id> {
    let Op::ReduceSum { axes, .. } = m.attrs("?m")?.op else { return None };
    sum(m, &axes, 1.0)
}

fn sink_mean(m: &mut Match<'_>) -> Option<Id> {
    let Op::ReduceMean { axes, .. } = m.attrs("?m")?.op else { return None };
    let shape = m.ty("?x")?.shape;
    let count: usize = axes.iter().map(|&a| shape.0[a].size).product();
    sum(m, &axes, 1.0 / count as f64)
}

/// A sum of integers has the operand's scale and a zero point for each element summed. Neighbouring axes are summed as one.
fn sum(m: &mut Match<'_>, axes: &[usize], factor: f64) -> Option<Id> {
    let x = m.ty("?x")?;
    let quant = x.quant?;
    let mut axes = axes.to_vec();
    axes.sort_unstable();
    let (first, last) = (*axes.first()?, *axes.last()?);
    if last - first + 1 != axes.len() {
        return None;
    }
    let merged = x.shape.0[first..=last].iter().try_fold(Dim::fixed(1), |all, d| all.times(*d))?;
    let mut dims = x.shape.0.clone();
    dims.splice(first..=last, [merged]);
    let zero = i64::from(quant.zero_point) * merged.as_fixed()? as i64;
    let quant = Quant::per_tensor(quant.single()? * factor, i32::try_from(zero).ok()?);
    let operand = m.var("?x")?;
    let flat = if axes.len() == 1 { operand } else { m.apply(Op::Reshape { shape: Shape(dims) }, None, &[operand])? };
    let total = m.apply(Op::IntReduceSum { axis: first, keep: axes.len() == 1 }, Some(quant), &[flat])?;
    let shape = m.root_type()?.shape;
    let total = m.apply(Op::Reshape { shape }, None, &[total])?;
    m.dequantize(total)
}

/// Operands of one scale add as integers. The sum saturates at 16 bits; the shared scale has headroom for it.
fn sink_add(m: &mut Match<'_>) -> Option<Id> {
    let (a, b) = (m.ty("?a")?, m.ty("?b")?);
    let (qa, qb) = (a.quant?, b.quant?);
    if qa != qb || qa.zero_point != 0 || qa.single().is_none() || a.elem != Elem::I16 || b.elem != Elem::I16 {
        return None;
    }
    let operands = [m.var("?a")?, m.var("?b")?];
    let total = m.apply(Op::IntAdd { to: Elem::I16 }, Some(qa), &operands)?;
    m.dequantize(total)
}

/// The order of integers on one grid is that of their reals.
fn sink_extremum(m: &mut Match<'_>) -> Option<Id> {
    let op = match m.attrs("?m")?.op {
        Op::Min {} => Op::IntMin {},
        Op::Max {} => Op::IntMax {},
        _ => return None,
    };
    let (a, b) = (m.ty("?a")?, m.ty("?b")?);
    if a.elem != b.elem || a.quant != b.quant || a.quant.as_ref()?.single().is_none() {
        return None;
    }
    let operands = [m.var("?a")?, m.var("?b")?];
    let extremum = m.apply(op, a.quant, &operands)?;
    m.dequantize(extremum)
}

/// A constant added to accumulators becomes one of their integers; its rounding is half an accumulator step. What is beyond
/// 2^28 steps (a mask) stays there: no accumulator of scores comes near it. Where accumulators have a scale for each channel, the
/// constant has a value for each.
fn bias_accumulators(m: &mut Match<'_>) -> Option<Id> {
    const LARGEST: f64 = (1 << 28) as f64;
    let (x, c) = (m.ty("?x")?, m.constant("?c")?);
    let quant = x.quant.clone()?;
    if x.elem != Elem::I32 || quant.zero_point != 0 || c.ty.elem != Elem::F32 || m.root_type()?.shape != x.shape {
        return None;
    }
    let channels = quant.scale.len();
    if quant.single().is_none()
        && (quant.axis != x.shape.rank().checked_sub(1) || c.ty.shape.last_fixed() != Some(channels))
    {
        return None;
    }
    let step = |(i, &v): (usize, &f32)| f64::from(v) / quant.scale_at(i % channels);
    let values = c.values::<f32>();
    let steps = values.iter().enumerate().map(|at| step(at).round().clamp(-LARGEST, LARGEST) as i32);
    let steps: Vec<i32> = steps.collect();
    let of_constant = Quant { axis: quant.axis.and(c.ty.shape.rank().checked_sub(1)), ..quant.clone() };
    let ty = TensorType::new(Elem::I32, c.ty.shape.clone()).with_quant(of_constant);
    let bias = m.constant_of(&c.name, ty, &steps);
    let operand = m.var("?x")?;
    let sum = m.apply(Op::IntAdd { to: Elem::I32 }, Some(quant), &[operand, bias])?;
    m.dequantize(sum)
}

/// The product of two activations, as in gated layers.
fn sink_product(m: &mut Match<'_>) -> Option<Id> {
    let (a, b) = (m.ty("?a")?, m.ty("?b")?);
    let narrow = |t: &TensorType| matches!(t.elem, Elem::U8 | Elem::I8);
    let (qa, qb) = (a.quant.clone()?, b.quant.clone()?);
    if !narrow(&a) || !narrow(&b) {
        return None; // the product of two wide ones leaves 32 bits
    }
    let quant = Quant::per_tensor(qa.single()? * qb.single()?, 0);
    let op = Op::IntMul { a_zero: qa.zero_point.into(), b_zero: qb.zero_point.into() };
    let operands = [m.var("?a")?, m.var("?b")?];
    let product = m.apply(op, Some(quant), &operands)?;
    m.dequantize(product)
}

/// A constant of one element, or of one for each channel.
fn factors(m: &Match<'_>) -> Option<Vec<f64>> {
    let c = m.constant("?c")?;
    (c.ty.elem == Elem::F32 && c.ty.shape.rank() <= 1).then(|| c.values::<f32>().iter().map(|&f| f.into()).collect())
}

fn sink_scale(m: &mut Match<'_>) -> Option<Id> {
    let factors = factors(m)?;
    rescale(m, &factors)
}

fn sink_divisor(m: &mut Match<'_>) -> Option<Id> {
    let factors: Vec<f64> = factors(m)?.iter().map(|f| 1.0 / f).collect();
    rescale(m, &factors)
}

/// Multiplying by positive constants changes what the integers mean, not the integers: a reshape to the same shape with
/// another quantization, which costs nothing.
fn rescale(m: &mut Match<'_>, factors: &[f64]) -> Option<Id> {
    let x = m.ty("?x")?;
    let quant = x.quant?;
    if !factors.iter().all(|f| *f > 0.0 && f.is_finite()) || m.root_type()?.shape != x.shape {
        return None;
    }
    let quant = match (factors, quant.single()) {
        ([factor], _) => Quant { scale: quant.scale.iter().map(|s| (s.0 * factor).into()).collect(), ..quant },
        (_, Some(scale)) => {
            let axis = x.shape.rank().checked_sub(1).filter(|_| x.shape.last_fixed() == Some(factors.len()))?;
            Quant::per_axis(factors.iter().map(|f| f * scale), axis, quant.zero_point)
        }
        (_, None) => return None,
    };
    let operand = m.var("?x")?;
    let relabelled = m.apply(Op::Reshape { shape: x.shape }, Some(quant), &[operand])?;
    m.dequantize(relabelled)
}

/// `quantize(move(x)) = move(quantize(x))`.
fn hoist_quantize(m: &mut Match<'_>) -> Option<Id> {
    let (q, op) = (m.attrs("?q")?, m.attrs("?m")?.op);
    q.quant.as_ref()?.single()?;
    let x = m.var("?x")?;
    if m.fact(x).constant.is_some() {
        return None;
    }
    let quantized = m.apply(q.op, q.quant, &[x])?;
    m.apply(op, None, &[quantized])
}

fn hoist_concat(m: &mut Match<'_>) -> Option<Id> {
    let (q, op) = (m.attrs("?q")?, m.attrs("?m")?.op);
    q.quant.as_ref()?.single()?;
    let (a, b) = (m.var("?a")?, m.var("?b")?);
    let a = m.apply(q.op.clone(), q.quant.clone(), &[a])?;
    let b = m.apply(q.op, q.quant, &[b])?;
    m.apply(op, None, &[a, b])
}

/// `quantize` never falls, so clipping before it is clamping after it.
fn quantize_clip(m: &mut Match<'_>) -> Option<Id> {
    let (q, Op::Clip { lo, hi }) = (m.attrs("?q")?, m.attrs("?c")?.op) else { return None };
    let (Op::Quantize { to }, quant) = (&q.op, q.quant.clone()?) else { return None };
    let (scale, (least, most)) = (quant.single()?, to.range()?);
    let steps = |real: f64| {
        let q = f64::from((real as f32 / scale as f32).round_ties_even()) + f64::from(quant.zero_point);
        (q as i64).clamp(least, most)
    };
    let clamp = Op::IntClamp { lo: steps(lo.0), hi: steps(hi.0) };
    let x = m.var("?x")?;
    if m.fact(x).constant.is_some() {
        return None;
    }
    let quantized = m.apply(q.op, q.quant, &[x])?;
    m.apply(clamp, Some(quant), &[quantized])
}

/// A table of a table is one table.
fn merge_tables(m: &mut Match<'_>) -> Option<Id> {
    let (first, second) = (m.constant("?t")?, m.constant("?u")?);
    let (least, _) = first.ty.elem.range()?;
    let outer = second.ints();
    let entries = first.ints().into_iter().map(|q| outer.get(usize::try_from(q - least).ok()?).copied());
    let entries: Vec<i64> = entries.collect::<Option<_>>()?;
    let table = table_constant(m, second.ty.elem, &entries);
    let (x, quant) = (m.var("?x")?, m.attrs("?a")?.quant);
    m.apply(Op::IntTable {}, quant, &[x, table])
}

/// `quantize(dequantize(x))` is one dyadic requantize, or nothing when the quantization stays.
fn requantize(m: &mut Match<'_>) -> Option<Id> {
    let (q, x) = (m.attrs("?q")?, m.var("?x")?);
    requantized(m, x, q.quant?, q.op)
}

fn requantized(m: &mut Match<'_>, x: Id, target: Quant, op: Op) -> Option<Id> {
    let Op::Quantize { to } = op else { return None };
    let ty = m.fact(x).ty.clone()?;
    if ty.elem == to && ty.quant.as_ref() == Some(&target) {
        return Some(x);
    }
    times(m, x, 1.0, target, to)
}

/// What `x` stands for times `sign` on a grid.
fn times(m: &mut Match<'_>, x: Id, sign: f64, target: Quant, to: Elem) -> Option<Id> {
    let ty = m.fact(x).ty.clone()?;
    let source = ty.quant.clone()?;
    let scale = sign * target.single()?;
    let ratios: Vec<f64> = source.scale.iter().map(|s| s.0 / scale).collect();
    // Channel by channel from 16 bits: each multiplier is off by no more than the scale of a channel may be.
    let short = if ty.elem == Elem::I16 && ratios.len() > 1 { arith::dyadic15(&ratios) } else { None };
    let (multipliers, shift) = short.or_else(|| arith::dyadic(&ratios))?;
    let multiplier = m.i32_vector("multiplier", &multipliers);
    let axis = source.axis.or(ty.shape.rank().checked_sub(1))?;
    let (x_zero, zero_point) = (source.zero_point.into(), target.zero_point.into());
    m.apply(Op::IntRequant { axis, x_zero, shift, zero_point, to }, Some(target), &[x, multiplier])
}

/// From 16 bits to 8 in 16-bit arithmetic. The largest multiplier has 15 bits; where the smallest has few, nothing is gained.
fn requantize_halves(m: &mut Match<'_>) -> Option<Id> {
    const FEWEST_BITS: i32 = 9;
    let (q, x) = (m.attrs("?q")?, m.var("?x")?);
    let (Op::Quantize { to }, target, ty) = (q.op, q.quant?, m.fact(x).ty.clone()?) else { return None };
    let source = ty.quant.clone()?;
    if ty.elem != Elem::I16 || to.bytes() > 1 || source.zero_point != 0 {
        return None;
    }
    let scale = target.single()?;
    let ratio = |s: &vitc_ir::Real| s.0 / scale;
    let (least, most) = source.scale.iter().map(ratio).fold((f64::INFINITY, 0f64), |(l, h), r| (l.min(r), h.max(r)));
    if !(least > 0.0 && most < 1.0) || arith::exponent(most) - arith::exponent(least) > 14 - FEWEST_BITS {
        return None;
    }
    // the largest lies in 2^14..2^15, or just below for what would round up to it
    let post_shift = (-1 - arith::exponent(most)) as u32;
    let unit = f64::from(post_shift + 15).exp2();
    let multipliers: Vec<i16> =
        source.scale.iter().map(|s| (ratio(s) * unit).round().min(f64::from(i16::MAX)) as i16).collect();
    let multiplier = m.i16_vector("multiplier", &multipliers);
    let axis = source.axis.or(ty.shape.rank().checked_sub(1))?;
    let op = Op::IntRequant15 { axis, pre_shift: 0, post_shift, zero_point: target.zero_point.into(), to };
    (post_shift <= 15).then(|| m.apply(op, Some(target), &[x, multiplier]))?
}

fn requantize_add(m: &mut Match<'_>) -> Option<Id> {
    requantize_sum(m, 1.0)
}

fn requantize_sub(m: &mut Match<'_>) -> Option<Id> {
    requantize_sum(m, -1.0)
}

/// Operands of different scales: each is requantized to the result's, the second one with this sign, then they add (I-ViT: two
/// roundings). To other grids than `i16` about zero they go by 32 bits, in steps fine enough that one rounding is left.
fn requantize_sum(m: &mut Match<'_>, sign: f64) -> Option<Id> {
    const FINER: f64 = 256.0;
    let q = m.attrs("?q")?;
    let (target, Op::Quantize { to }) = (q.quant?, q.op.clone()) else { return None };
    let (a, b) = (m.var("?a")?, m.var("?b")?);
    if to == Elem::I16 && target.zero_point == 0 {
        let a = requantized(m, a, target.clone(), q.op.clone())?;
        let b =
            if sign > 0.0 { requantized(m, b, target.clone(), q.op)? } else { times(m, b, sign, target.clone(), to)? };
        return m.apply(Op::IntAdd { to }, Some(target), &[a, b]);
    }
    let fine = Quant::per_tensor(target.single()? / FINER, 0);
    let (a, b) = (times(m, a, 1.0, fine.clone(), Elem::I32)?, times(m, b, sign, fine.clone(), Elem::I32)?);
    let sum = m.apply(Op::IntAdd { to: Elem::I32 }, Some(fine), &[a, b])?;
    times(m, sum, 1.0, target, to)
}

/// A rank-1 type for constants of rules elsewhere.
pub(super) fn vector(elem: Elem, len: usize) -> TensorType {
    TensorType::new(elem, Shape::fixed(&[len]))
}
