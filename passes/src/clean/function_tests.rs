//! Activation functions in the spellings of exporters: each is one op afterwards.

use vitc_ir::attr::GeluForm;
use vitc_ir::{Elem, Op, Real, ValueId};

use super::testing::{Build, clean, count, difference, erf_part, inputs, outputs};
use super::{CleanOptions, run};

fn tanh_gelu(b: &mut Build, x: ValueId) -> ValueId {
    let three = b.scalar(3.0);
    let cube = b.op(Op::Pow {}, &[x, three]);
    let cube = b.scale(cube, 0.044715);
    let sum = b.add(x, cube);
    let inner = b.scale(sum, 0.797_884_6);
    let tanh = b.op(Op::Tanh {}, &[inner]);
    let one = b.shift(tanh, 1.0);
    let half = b.scale(x, 0.5);
    b.mul(half, one)
}

/// As TorchScript writes it: powers as products, and the half first operand of the last product.
fn tanh_gelu_of_products(b: &mut Build, x: ValueId) -> ValueId {
    let square = b.mul(x, x);
    let cube = b.mul(x, square);
    let factor = b.scalar(0.044715);
    let cube = b.mul(factor, cube);
    let sum = b.add(x, cube);
    let factor = b.scalar(0.797_884_6);
    let inner = b.mul(factor, sum);
    let tanh = b.op(Op::Tanh {}, &[inner]);
    let one = b.shift(tanh, 1.0);
    let product = b.mul(x, one);
    let half = b.scalar(0.5);
    b.mul(half, product)
}

fn hardswish(b: &mut Build, x: ValueId) -> ValueId {
    let moved = b.shift(x, 3.0);
    let clipped = b.op(Op::Clip { lo: Real(0.0), hi: Real(6.0) }, &[moved]);
    let product = b.mul(x, clipped);
    let six = b.scalar(6.0);
    b.op(Op::Div {}, &[product, six])
}

/// Writes an activation function as some exporter does.
type Chain = fn(&mut Build, ValueId) -> ValueId;

#[test]
fn activation_functions_in_every_order() {
    let chains: &[(&str, Chain)] = &[
        ("gelu", |b, x| {
            let e = erf_part(b, x, true);
            let p = b.mul(x, e);
            b.scale(p, 0.5)
        }),
        ("gelu", |b, x| {
            let e = erf_part(b, x, false);
            let h = b.scale(e, 0.5);
            b.mul(x, h)
        }),
        ("gelu", |b, x| {
            let e = erf_part(b, x, true);
            let h = b.scale(x, 0.5);
            b.mul(h, e)
        }),
        ("gelu", tanh_gelu),
        ("gelu", tanh_gelu_of_products),
        ("relu", |b, x| {
            let none = b.scalar(0.0);
            b.op(Op::Select {}, &[x, x, none])
        }),
        ("relu", |b, x| {
            let none = b.values(&[1, 3, 40], &[0.0; 120]);
            b.op(Op::Max {}, &[x, none])
        }),
        ("silu", |b, x| {
            let s = b.op(Op::Sigmoid {}, &[x]);
            b.mul(s, x)
        }),
        ("hardswish", hardswish),
        ("hardswish", |b, x| {
            let s = b.op(Op::HardSigmoid { alpha: Real(1.0 / 6.0), beta: Real(0.5) }, &[x]);
            b.mul(x, s)
        }),
        ("relu", |b, x| {
            let zero = b.scalar(0.0);
            b.op(Op::Max {}, &[zero, x])
        }),
    ];
    for (i, (name, chain)) in chains.iter().enumerate() {
        let mut b = Build::new(i as u64);
        let x = b.input(&[3, 16]);
        let x = b.linear(x, 40);
        let y = chain(&mut b, x);
        let y = b.linear(y, 8);
        let cleaned = clean(&b.done(y));
        assert_eq!((cleaned.module.nodes.len(), count(&cleaned.module, name)), (3, 1), "chain {i}");
        let form = if matches!(i, 3 | 4) { GeluForm::Tanh } else { GeluForm::Erf };
        let forms = cleaned.module.nodes.iter().filter_map(|n| match n.op {
            Op::Gelu { form } => Some(form),
            _ => None,
        });
        assert!(forms.into_iter().all(|f| f == form));
    }
}

#[test]
fn a_function_that_is_nearly_known_stays() {
    let mut b = Build::new(3);
    let x = b.input(&[4]);
    let s = b.scale(x, 1.702);
    let s = b.op(Op::Sigmoid {}, &[s]);
    let y = b.mul(x, s);
    let cleaned = clean(&b.done(y));
    assert_eq!(cleaned.module.nodes.len(), 3);
}

/// Between 16 bits a function is seen whole; bytes inside it are roundings that the model has.
#[test]
fn functions_are_seen_through_pairs_of_16_bits() {
    for (elem, scale, found) in [(Elem::I16, 2f64.powi(-12), 1), (Elem::U8, 2f64.powi(-5), 0)] {
        let mut b = Build::new(24);
        let pair = |b: &mut Build, x: ValueId| {
            let quant = vitc_ir::Quant::per_tensor(scale, 0);
            let q = b.m.push_quant(Op::Quantize { to: elem }, &[x], quant, None).unwrap();
            b.op(Op::Dequantize {}, &[q])
        };
        let x = b.input(&[4, 8]);
        let x = pair(&mut b, x);
        let e = b.scale(x, std::f32::consts::FRAC_1_SQRT_2);
        let e = pair(&mut b, e);
        let e = b.op(Op::Erf {}, &[e]);
        let e = pair(&mut b, e);
        let e = b.shift(e, 1.0);
        let e = pair(&mut b, e);
        let y = b.mul(x, e);
        let y = pair(&mut b, y);
        let y = b.scale(y, 0.5);
        let y = pair(&mut b, y);
        let m = b.done(y);
        let cleaned = run(&m, &CleanOptions::default()).unwrap().module;
        assert_eq!(count(&cleaned, "gelu"), found, "{elem}");
        let input = inputs(&m, 3);
        let difference = difference(&outputs(&m, &input), &outputs(&cleaned, &input));
        assert!(difference < 1e-3, "{difference}");
    }
}
