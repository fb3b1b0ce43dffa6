//! Interval analysis: proves for every accumulator that 32 bits suffice, or says which does not.

use vitc_ir::{Const, Def, Diagnostic, Diagnostics, Elem, Module, Node, Op, ValueId};

use super::report::Accumulator;

/// What is known of the integers of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    lo: i64,
    hi: i64,
    /// Bound on the sum of a row, tighter than its length times `hi`. For softmax maps.
    row_sum: Option<i64>,
    /// What every row holds at least once, its maximum. For exponentials.
    peak: Option<i64>,
}

impl Interval {
    fn new(lo: i64, hi: i64) -> Interval {
        Interval { lo, hi, row_sum: None, peak: None }
    }

    fn magnitude(self) -> i64 {
        self.lo.abs().max(self.hi.abs())
    }

    /// Bits by which every one of the integers less `zero` can be shifted left within 32.
    pub(crate) fn room(self, zero: i64) -> u32 {
        let bits = i64::BITS - shifted(self, zero).magnitude().leading_zeros();
        31u32.saturating_sub(bits)
    }

    /// Whether every product of the integers less `zero` and of these multipliers has 32 bits, with what rounds it before a shift.
    pub(crate) fn product_fits(self, zero: i64, multipliers: &Const, shift: u32) -> bool {
        let most = multipliers.ints().iter().map(|m| m.abs()).max().unwrap_or(0);
        let product = shifted(self, zero).magnitude().checked_mul(most);
        product.and_then(|p| p.checked_add(1 << (shift - 1))).is_some_and(|sum| sum <= i32::MAX.into())
    }
}

/// What is known of every value of a module of stage `integerize`, in the order of its values.
pub(crate) fn of(module: &Module) -> Vec<Interval> {
    let mut known: Vec<Interval> = Vec::with_capacity(module.values.len());
    for (v, value) in module.values.iter().enumerate() {
        known.push(match value.def {
            Def::Node(n) => node_interval(module, &module.nodes[n], &known),
            Def::Const(c) => const_interval(&module.consts[c]),
            Def::Input(_) => of_type(module, ValueId(v as u32)),
        });
    }
    known
}

/// The proof for every accumulator of a module of stage `integerize`; diagnostics for those that can overflow.
pub fn prove(module: &Module) -> Result<Vec<Accumulator>, Diagnostics> {
    let known = of(module);
    let mut proofs = Vec::new();
    let mut problems = Diagnostics::default();
    for (value, &interval) in module.values.iter().zip(&known) {
        let Def::Node(n) = value.def else { continue };
        let node = &module.nodes[n];
        if let Some(Interval { lo, hi, .. }) = accumulator(module, node, interval, &known) {
            proofs.push(Accumulator { loc: node.loc.clone(), op: node.op.name(), lo, hi });
            if lo < i32::MIN.into() || hi > i32::MAX.into() {
                problems.push(overflow(node, lo, hi));
            }
        }
    }
    problems.or(proofs)
}

/// The range of the widest sum inside an op, for ops that have one: the result itself, or what is shifted to yield it.
fn accumulator(module: &Module, node: &Node, result: Interval, known: &[Interval]) -> Option<Interval> {
    let operand = |i: usize| known[node.operands[i].0 as usize];
    match &node.op {
        Op::IntMatMul { .. }
        | Op::IntConv2d { .. }
        | Op::IntReduceSum { .. }
        | Op::IntReciprocal { .. }
        | Op::IntMul { .. }
        | Op::IntAdd { to: Elem::I32 }
        | Op::IntShiftGelu { .. } => Some(result),
        Op::IntLayerNorm { guard, norm_bits, recip_bits, .. } => {
            Some(layernorm(module, node, *guard, *norm_bits, *recip_bits, operand(1), operand(2)))
        }
        Op::IntRoundShift { shift } => {
            let half = 1 << (shift - 1);
            Some(Interval::new(operand(0).lo + half, operand(0).hi + half))
        }
        Op::IntRequant15 { pre_shift, .. } => {
            let half = if *pre_shift > 0 { 1i64 << (pre_shift - 1) } else { 0 };
            Some(Interval::new(operand(0).lo + half, operand(0).hi + half))
        }
        _ => None,
    }
}

fn overflow(node: &Node, lo: i64, hi: i64) -> Diagnostic {
    let message = format!("the accumulator of `{}` may reach {lo}..={hi}, which leaves 32 bits", node.op.name());
    let d =
        Diagnostic::new("overflow", message).help("this layer is too wide for 8-bit operands in 32-bit accumulators");
    match &node.loc {
        Some(loc) => d.at(loc.to_string()),
        None => d,
    }
}

fn of_type(module: &Module, v: ValueId) -> Interval {
    let (lo, hi) = module.ty(v).elem.range().unwrap_or((0, 0));
    Interval::new(lo, hi)
}

fn const_interval(c: &Const) -> Interval {
    let values = c.ints();
    Interval::new(values.iter().copied().min().unwrap_or(0), values.iter().copied().max().unwrap_or(0))
}

fn node_interval(module: &Module, node: &Node, known: &[Interval]) -> Interval {
    let operand = |i: usize| known[node.operands[i].0 as usize];
    match &node.op {
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Expand { .. } | Op::Gather { .. } => {
            Interval { row_sum: None, peak: None, ..operand(0) }
        }
        Op::Concat { .. } => {
            let all = (0..node.operands.len()).map(operand);
            all.reduce(|a, b| Interval::new(a.lo.min(b.lo), a.hi.max(b.hi))).unwrap_or(Interval::new(0, 0))
        }
        Op::Pad { value, .. } => {
            let (x, v) = (operand(0), value.0 as i64);
            Interval::new(x.lo.min(v), x.hi.max(v))
        }
        Op::IntMatMul { a_zero, b_zero } => matmul(module, node, operand(0), operand(1), *a_zero, *b_zero),
        Op::IntConv2d { x_zero, .. } => conv(module, node, operand(0), *x_zero),
        Op::IntAdd { to: Elem::I32 } => Interval::new(operand(0).lo + operand(1).lo, operand(0).hi + operand(1).hi),
        Op::IntMul { a_zero, b_zero } => product(shifted(operand(0), *a_zero), shifted(operand(1), *b_zero)),
        Op::IntReduceSum { axis, .. } => {
            let shape = &module.ty(node.operands[0]).shape;
            let count = shape.0[*axis].size as i64;
            let (x, last) = (operand(0), axis + 1 == shape.rank());
            let hi = if last { x.row_sum.unwrap_or(x.hi * count) } else { x.hi * count };
            Interval::new(x.peak.filter(|_| last).unwrap_or(x.lo * count), hi)
        }
        Op::IntReciprocal { numerator } => {
            let x = operand(0);
            let least = x.lo.max(1); // the largest quotient is that of the smallest divisor
            let most = (numerator + least / 2) / least;
            Interval::new(if x.lo < 0 { -numerator } else { 0 }, most)
        }
        // elements, or the entries of a table that they stand for
        Op::IntRowPeak { shift } => {
            let most = operand(node.operands.len() - 1).magnitude().max(1);
            Interval::new(1, (most + (1 << shift) - 1) >> shift)
        }
        Op::IntRowCodes { levels, zero_point, .. } => {
            let least = if operand(node.operands.len() - 1).lo < 0 { zero_point - levels } else { *zero_point };
            Interval::new(least.clamp(0, 255), (zero_point + levels).clamp(0, 255))
        }
        Op::IntRequantRows { shift, zero_point, to } => requantized(operand(0), operand(1), *shift, *zero_point, *to),
        Op::IntExp { table_bits, .. } => {
            // the first entry is the row's maximum, and the largest
            let table = module.const_of(node.operands[1]).map(Const::ints).unwrap_or_default();
            let peak = table.first().map(|first| first >> table_bits);
            Interval { peak, ..Interval::new(0, 255) }
        }
        Op::IntShiftmax { bits, .. } => {
            Interval { row_sum: Some(1 << (bits - 1)), ..Interval::new(0, 1 << (bits - 1)) }
        }
        Op::IntShiftGelu { x_zero, bits, .. } => {
            let x = shifted(operand(0), *x_zero);
            Interval::new(x.lo.min(0) << (bits - 1), x.hi.max(0) << (bits - 1))
        }
        Op::IntClamp { lo, hi } => Interval::new(operand(0).lo.clamp(*lo, *hi), operand(0).hi.clamp(*lo, *hi)),
        Op::IntRoundShift { shift } => {
            let round = |v: i64| (v + (1 << (shift - 1))) >> shift;
            Interval::new(round(operand(0).lo), round(operand(0).hi))
        }
        Op::IntMin {} => Interval::new(operand(0).lo.min(operand(1).lo), operand(0).hi.min(operand(1).hi)),
        Op::IntMax {} => Interval::new(operand(0).lo.max(operand(1).lo), operand(0).hi.max(operand(1).hi)),
        Op::IntTable {} => operand(1),
        Op::IntAdd { to } => {
            let (a, b) = (operand(0), operand(1));
            let (least, most) = to.range().unwrap_or((i64::MIN, i64::MAX));
            Interval::new((a.lo + b.lo).clamp(least, most), (a.hi + b.hi).clamp(least, most))
        }
        Op::IntRequant { x_zero, shift, zero_point, to, .. } => {
            requantized(shifted(operand(0), *x_zero), operand(1), *shift, *zero_point, *to)
        }
        _ => of_type(module, node.result),
    }
}

fn requantized(x: Interval, multiplier: Interval, shift: u32, zero_point: i64, to: Elem) -> Interval {
    let (least, most) = to.range().unwrap_or((i64::MIN, i64::MAX));
    let wide =
        |q: i64, m: i64| ((i128::from(q) * i128::from(m) + (1 << (shift - 1))) >> shift) + i128::from(zero_point);
    let corners = [(x.lo, multiplier.lo), (x.lo, multiplier.hi), (x.hi, multiplier.lo), (x.hi, multiplier.hi)];
    let ends = corners.map(|(q, m)| wide(q, m).clamp(least.into(), most.into()) as i64);
    Interval::new(ends.into_iter().min().unwrap_or(least), ends.into_iter().max().unwrap_or(most))
}

fn shifted(x: Interval, zero: i64) -> Interval {
    Interval::new(x.lo - zero, x.hi - zero)
}

fn product(a: Interval, b: Interval) -> Interval {
    let corners = [a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi];
    Interval::new(corners.into_iter().min().unwrap_or(0), corners.into_iter().max().unwrap_or(0))
}

fn plus_bias(module: &Module, node: &Node, sums: Vec<(i64, i64)>) -> Interval {
    let bias = node.operands.get(2).and_then(|&b| module.const_of(b)).map(|c| c.ints()).unwrap_or_else(|| vec![0]);
    let at = |c: usize| bias[if bias.len() == 1 { 0 } else { c.min(bias.len() - 1) }];
    let lo = sums.iter().enumerate().map(|(c, s)| s.0 + at(c)).min().unwrap_or(0);
    let hi = sums.iter().enumerate().map(|(c, s)| s.1 + at(c)).max().unwrap_or(0);
    Interval::new(lo, hi)
}

/// Smallest and largest sum of `x * w` over these weights.
fn add_term(sum: &mut (i64, i64), x: Interval, w: i64) {
    let (p, q) = (x.lo * w, x.hi * w);
    sum.0 += p.min(q);
    sum.1 += p.max(q);
}

fn matmul(module: &Module, node: &Node, a: Interval, b: Interval, a_zero: i64, b_zero: i64) -> Interval {
    let constant = module.const_of(node.operands[1]).filter(|c| c.layout.is_none() && c.ty.shape.rank() == 2);
    let x = shifted(a, a_zero);
    if let Some(weights) = constant {
        let columns = weights.ty.shape.last_fixed().unwrap_or(1).max(1);
        let mut sums = vec![(0, 0); columns];
        for (i, w) in weights.ints().into_iter().enumerate() {
            add_term(&mut sums[i % columns], x, w - b_zero);
        }
        return plus_bias(module, node, sums);
    }
    let k = module.ty(node.operands[0]).shape.last_fixed().unwrap_or(1) as i64;
    let y = shifted(b, b_zero);
    let bound = match a.row_sum {
        Some(sum) if a_zero == 0 && a.lo >= 0 => sum.min(k * x.hi) * y.magnitude(),
        _ => {
            return plus_bias(
                module,
                node,
                vec![{
                    let p = product(x, y);
                    (p.lo * k, p.hi * k)
                }],
            );
        }
    };
    plus_bias(module, node, vec![(-bound, bound)])
}

fn conv(module: &Module, node: &Node, x: Interval, x_zero: i64) -> Interval {
    let x = shifted(x, x_zero);
    let x = Interval::new(x.lo.min(0), x.hi.max(0)); // padding adds zeros
    let Some(weights) = module.const_of(node.operands[1]) else {
        let per_output: i64 = module.ty(node.operands[1]).shape.0[1..].iter().map(|d| d.size as i64).product();
        let bound = per_output * x.magnitude() * 128;
        return plus_bias(module, node, vec![(-bound, bound)]);
    };
    let outputs = weights.ty.shape.0[0].size.max(1);
    let values = weights.ints();
    let per_output = (values.len() / outputs).max(1);
    let sums = values.chunks(per_output).map(|channel| {
        let mut sum = (0, 0);
        channel.iter().for_each(|&w| add_term(&mut sum, x, w));
        sum
    });
    plus_bias(module, node, sums.collect())
}

/// `|d*r| <= 2^(guard+norm_bits+recip_bits)` and `|n| <= 2^(guard+norm_bits)` by the Cauchy-Schwarz bound
/// `|C x - s1| <= sqrt(C-1) sigma`, doubled for the floor of the root; what is left to prove is the last sum.
fn layernorm(
    module: &Module,
    node: &Node,
    guard: u32,
    norm_bits: u32,
    recip_bits: u32,
    gamma: Interval,
    beta: Interval,
) -> Interval {
    let channels = module.ty(node.operands[0]).shape.last_fixed().unwrap_or(1) as f64;
    let wide_enough = 2f64.powi(guard as i32 - 1) >= channels.sqrt();
    if !wide_enough || guard + norm_bits + recip_bits > 30 {
        return Interval::new(i64::MIN, i64::MAX);
    }
    let n = 1i64 << (guard + norm_bits);
    let bound = n * gamma.magnitude() + beta.magnitude();
    Interval::new(-bound, bound)
}
