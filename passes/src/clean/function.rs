//! Elementwise functions recognised by value.
//!
//! Exporters write GELU, SiLU and HardSwish as chains of elementary ops in many orders (`x/sqrt 2` or `x*0.7071`, the
//! half first, last or on `x`). Instead of one pattern for each order, a chain that depends on one value only is
//! evaluated on a grid and compared with the known functions; two functions that agree to [`TOLERANCE`] on the whole
//! grid, from -10000 to 10000, are taken to be the same. (The two forms of GELU differ by 4.7e-4.)
//!
//! A model that came quantized may have pairs of 16 bits inside a chain. They are looked through: what they round away is far
//! below what the integer form of the whole function does, and where they saturate, the pair behind the function does too.

use std::collections::BTreeMap;

use vitc_ir::attr::GeluForm;
use vitc_ir::{Elem, Op, Real, ValueId};

use super::draft::Draft;

const TOLERANCE: f64 = 2e-5;
/// Longest chain that is looked at.
const MAX_NODES: usize = 16;

/// A chain of elementwise ops that equals a known function becomes that op.
pub(crate) fn recover_function(d: &mut Draft, n: usize) -> Option<ValueId> {
    let chain = Chain::above(d, n);
    let (x, op, used) = chain.recognise(d)?;
    let loc = d.join_locs(used);
    d.push(op, &[x], loc)
}

/// The elementwise nodes above a root, operands first, the root last.
struct Chain {
    nodes: Vec<usize>,
}

impl Chain {
    fn above(d: &Draft, root: usize) -> Chain {
        let mut chain = Chain { nodes: Vec::new() };
        chain.collect(d, root);
        chain
    }

    fn collect(&mut self, d: &Draft, n: usize) {
        if self.nodes.contains(&n) || self.nodes.len() >= MAX_NODES || !is_elementwise(&d.node(n).op) {
            return;
        }
        for &v in &d.node(n).operands {
            if let Some(m) = d.def(v) {
                self.collect(d, m);
            }
        }
        self.nodes.push(n);
    }

    /// Goes up from the root; wherever everything below hangs on one value, compares what lies between with the known
    /// functions.
    fn recognise(&self, d: &Draft) -> Option<(ValueId, Op, Vec<usize>)> {
        let root = d.node(*self.nodes.last()?);
        let mut open = vec![root.result];
        for (i, &n) in self.nodes.iter().enumerate().rev() {
            let node = d.node(n);
            if !open.contains(&node.result) {
                continue;
            }
            open.retain(|&v| v != node.result);
            for &v in node.operands.iter().filter(|&&v| d.scalar(v).is_none()) {
                if !open.contains(&v) {
                    open.push(v);
                }
            }
            if open.len() == 1 && d.shape(open[0]) == d.shape(root.result) && d.ty(open[0]).elem == Elem::F32 {
                let between = &self.nodes[i..];
                if let Some(op) = self.compare(d, between, open[0], root.result) {
                    return (op != root.op || root.operands[0] != open[0]).then(|| (open[0], op, between.to_vec()));
                }
            }
        }
        None
    }

    fn compare(&self, d: &Draft, nodes: &[usize], x: ValueId, y: ValueId) -> Option<Op> {
        let mut candidates = known_functions();
        for t in grid() {
            let value = evaluate(d, nodes, x, t)?.remove(&y)?;
            candidates.retain(|op| {
                let wanted = apply(op, &[t]).unwrap_or(f64::NAN);
                // a least value just above zero is there to be divided by
                let tolerance = if *op == (Op::Relu {}) { 0.0 } else { TOLERANCE };
                (value - wanted).abs() <= tolerance * t.abs().max(1.0)
            });
            if candidates.is_empty() {
                return None;
            }
        }
        candidates.into_iter().next()
    }
}

fn known_functions() -> Vec<Op> {
    vec![
        Op::Relu {},
        Op::Gelu { form: GeluForm::Erf },
        Op::Gelu { form: GeluForm::Tanh },
        Op::Silu {},
        Op::HardSwish {},
        Op::HardSigmoid { alpha: Real(1.0 / 6.0), beta: Real(0.5) },
        Op::Sigmoid {},
    ]
}

fn grid() -> impl Iterator<Item = f64> {
    let near = (-320..=320).map(|i| f64::from(i) / 40.0 + 0.003);
    near.chain([-1e4, -1e3, -60.0, -20.0, -12.0, 12.0, 20.0, 60.0, 1e3, 1e4])
}

fn is_elementwise(op: &Op) -> bool {
    super::identity::is_broadcasting(op) || apply(op, &[0.5]).is_some()
}

/// The values of `nodes` where `x` is `t`; `None` when one of them is no elementwise function of `x` and constants.
fn evaluate(d: &Draft, nodes: &[usize], x: ValueId, t: f64) -> Option<BTreeMap<ValueId, f64>> {
    let mut known = BTreeMap::from([(x, t)]);
    for &n in nodes {
        let node = d.node(n);
        let operand = |v: &ValueId| known.get(v).copied().or_else(|| d.scalar(*v));
        // A node beside the chain has operands that do not depend on `x`.
        let Some(operands) = node.operands.iter().map(operand).collect::<Option<Vec<_>>>() else { continue };
        known.insert(node.result, apply(&node.op, &operands)?);
    }
    Some(known)
}

fn apply(op: &Op, v: &[f64]) -> Option<f64> {
    let gelu_tanh =
        |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    Some(match (op, v) {
        (Op::Quantize { to: Elem::I16 } | Op::Dequantize {}, &[x]) => x,
        (Op::Add {}, &[a, b]) => a + b,
        (Op::Sub {}, &[a, b]) => a - b,
        (Op::Mul {}, &[a, b]) => a * b,
        (Op::Div {}, &[a, b]) => a / b,
        (Op::Pow {}, &[a, b]) => a.powf(b),
        (Op::Min {}, &[a, b]) => a.min(b),
        (Op::Max {}, &[a, b]) => a.max(b),
        (Op::Select {}, &[c, a, b]) => {
            if c > 0.0 {
                a
            } else {
                b
            }
        }
        (Op::Neg {}, &[x]) => -x,
        (Op::Abs {}, &[x]) => x.abs(),
        (Op::Sqrt {}, &[x]) => x.sqrt(),
        (Op::Reciprocal {}, &[x]) => 1.0 / x,
        (Op::Exp {}, &[x]) => x.exp(),
        (Op::Cos {}, &[x]) => x.cos(),
        (Op::Sin {}, &[x]) => x.sin(),
        (Op::Erf {}, &[x]) => erf(x),
        (Op::Tanh {}, &[x]) => x.tanh(),
        (Op::Sigmoid {}, &[x]) => sigmoid(x),
        (Op::Relu {}, &[x]) => x.max(0.0),
        (Op::Clip { lo, hi }, &[x]) => x.max(lo.0).min(hi.0),
        (Op::Gelu { form: GeluForm::Erf }, &[x]) => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        (Op::Gelu { form: GeluForm::Tanh }, &[x]) => gelu_tanh(x),
        (Op::Silu {}, &[x]) => x * sigmoid(x),
        (Op::HardSwish {}, &[x]) => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        (Op::HardSigmoid { alpha, beta }, &[x]) => (alpha.0 * x + beta.0).clamp(0.0, 1.0),
        _ => return None,
    })
}

/// The error function: Maclaurin series near zero, continued fraction of the complement elsewhere; about 1e-15.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 2.5 {
        let (mut term, mut sum) = (a, a);
        for k in 1..80 {
            let k = f64::from(k);
            term *= -a * a / k;
            sum += term / (2.0 * k + 1.0);
        }
        return (2.0 / std::f64::consts::PI.sqrt() * sum).copysign(x);
    }
    if a > 6.0 {
        return 1f64.copysign(x);
    }
    let tail = (1..=60).rev().fold(0.0, |acc, k| f64::from(k) / 2.0 / (a + acc));
    let complement = (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + tail);
    (1.0 - complement).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_function_is_accurate() {
        let known = [
            (0.1, 0.1124629160182849),
            (1.0, 0.8427007929497149),
            (2.49, 0.9995707121322661),
            (2.51, 0.9996142945182758),
            (3.0, 0.9999779095030014),
        ];
        for (x, y) in known {
            assert!((erf(x) - y).abs() < 1e-13, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }
}
