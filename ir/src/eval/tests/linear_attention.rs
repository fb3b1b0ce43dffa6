//! Attention without softmax: floats against the formula, integers against floats.

use super::*;
use crate::types::Real;

const SIZES: [usize; 4] = [5, 7, 4, 3];

fn reals(rows: usize, columns: usize, f: impl Fn(usize) -> f32) -> Tensor {
    Tensor::f32(&[2, rows, columns], (0..2 * rows * columns).map(f).collect())
}

/// The formula for matrix `h`, row `t`, column `e`, in double precision.
fn quotient(q: &[f64], k: &[f64], v: &[f64], [h, t, e]: [usize; 3], epsilon: f64) -> f64 {
    let [rows, tokens, d, columns] = SIZES;
    let weight = |u: usize| -> f64 { (0..d).map(|i| q[(h * rows + t) * d + i] * k[(h * tokens + u) * d + i]).sum() };
    let top: f64 = (0..tokens).map(|u| weight(u) * v[(h * tokens + u) * columns + e]).sum();
    top / ((0..tokens).map(weight).sum::<f64>() + epsilon)
}

fn all(q: &[f64], k: &[f64], v: &[f64], epsilon: f64) -> Vec<f64> {
    let [rows, _, _, columns] = SIZES;
    let index = |i: usize| [i / (rows * columns), i / columns % rows, i % columns];
    (0..2 * rows * columns).map(|i| quotient(q, k, v, index(i), epsilon)).collect()
}

fn doubles(t: &Tensor) -> Vec<f64> {
    match &t.data {
        Data::F32(v) => v.iter().map(|&x| x.into()).collect(),
        _ => t.to_ints().into_iter().map(|v| v as f64).collect(),
    }
}

#[test]
fn floats_follow_the_formula() {
    let [rows, tokens, d, e] = SIZES;
    let q = reals(rows, d, |i| (i * 7 % 11) as f32 / 4.0);
    let k = reals(tokens, d, |i| (i * 5 % 13) as f32 / 8.0);
    let v = reals(tokens, e, |i| (i * 3 % 17) as f32 - 8.0);
    let want = all(&doubles(&q), &doubles(&k), &doubles(&v), 0.25);
    let got = eval(Op::LinearAttention { epsilon: Real(0.25) }, &[q, k, v]).unwrap();
    for (got, want) in doubles(&got).into_iter().zip(want) {
        assert!((got - want).abs() < 1e-5, "{got} {want}");
    }
}

#[test]
fn integers_are_within_a_step_of_the_formula() {
    let [rows, tokens, d, e] = SIZES;
    let (q, k) = (spread(Elem::U8, &[2, rows, d]), spread(Elem::U8, &[2, tokens, d]));
    let v = spread(Elem::U8, &[2, tokens, e]);
    let centred: Vec<f64> = doubles(&v).iter().map(|v| v - 128.0).collect();
    let want = all(&doubles(&q), &doubles(&k), &centred, 3.0);
    let op = |log2| Op::IntLinearAttention {
        q_zero: 0,
        k_zero: 0,
        v_zero: 128,
        epsilon: 3,
        numerator: 1 << 52,
        shift: 48,
        log2,
        zero_point: 5,
        to: Elem::I16,
    };
    let exact = ints(op(false), &[q.clone(), k.clone(), v.clone()]);
    let coarse = ints(op(true), &[q, k, v]);
    for ((exact, coarse), want) in exact.into_iter().zip(coarse).zip(want) {
        let (exact, coarse, want) = ((exact - 5) as f64, (coarse - 5) as f64, 16.0 * want);
        assert!((exact - want).abs() <= 1.0, "{exact} {want}");
        let (low, high) = (0.7 * want.abs() - 1.0, 1.5 * want.abs() + 1.0);
        assert!((low..=high).contains(&coarse.abs()) && coarse * want >= -1.0, "{coarse} {want}");
    }
}

#[test]
fn queries_of_zero_yield_zero() {
    let zeros = |shape: &[usize]| Tensor::ints(Elem::U8, shape, vec![0; shape.iter().product()]);
    let (k, v) = (spread(Elem::U8, &[1, 3, 2]), spread(Elem::I8, &[1, 3, 2]));
    let op = Op::IntLinearAttention {
        q_zero: 0,
        k_zero: 0,
        v_zero: 0,
        epsilon: 0,
        numerator: 1 << 40,
        shift: 40,
        log2: false,
        zero_point: 9,
        to: Elem::U8,
    };
    assert_eq!(ints(op, &[zeros(&[1, 2, 2]), k, v]), [9; 4]);
}
