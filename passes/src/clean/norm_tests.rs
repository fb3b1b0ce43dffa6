//! The spellings of LayerNorm, RMSNorm and softmax: each is one op afterwards, and means the same.

use vitc_ir::{Op, Real, ValueId};

use super::testing::{Build, clean, count};

const N: f32 = 8.0;

fn mean(b: &mut Build, x: ValueId, axis: usize) -> ValueId {
    b.op(Op::ReduceMean { axes: vec![axis], keep: true }, &[x])
}

fn sum(b: &mut Build, x: ValueId, axis: usize) -> ValueId {
    b.op(Op::ReduceSum { axes: vec![axis], keep: true }, &[x])
}

fn centred(b: &mut Build, x: ValueId, axis: usize) -> ValueId {
    let m = mean(b, x, axis);
    b.op(Op::Sub {}, &[x, m])
}

fn sqrt(b: &mut Build, x: ValueId) -> ValueId {
    b.op(Op::Sqrt {}, &[x])
}

fn div(b: &mut Build, x: ValueId, y: ValueId) -> ValueId {
    b.op(Op::Div {}, &[x, y])
}

/// The larger of a value and a least one.
fn floor(b: &mut Build, x: ValueId, least: f64) -> ValueId {
    b.op(Op::Clip { lo: Real(least), hi: Real(f64::INFINITY) }, &[x])
}

type Spelling = fn(&mut Build, ValueId) -> ValueId;

/// What is divided by a deviation that is written in some way.
fn over(b: &mut Build, x: ValueId, deviation: Spelling) -> ValueId {
    let (top, bottom) = (centred(b, x, 2), deviation(b, x));
    div(b, top, bottom)
}

fn variance(b: &mut Build, x: ValueId) -> ValueId {
    let d = centred(b, x, 2);
    let square = b.mul(d, d);
    mean(b, square, 2)
}

fn norm(b: &mut Build, x: ValueId) -> ValueId {
    let square = b.mul(x, x);
    let square = sum(b, square, 2);
    sqrt(b, square)
}

#[test]
fn layernorms_are_one_op() {
    let spellings: &[(&str, f64, Spelling)] = &[
        ("unbiased", 1e-3 * 7.0 / 8.0, |b, x| {
            over(b, x, |b, x| {
                let v = variance(b, x);
                let v = b.scale(v, N / (N - 1.0));
                let v = b.shift(v, 1e-3);
                sqrt(b, v)
            })
        }),
        ("outside", 1e-12 * 7.0 / 8.0, |b, x| {
            over(b, x, |b, x| {
                let v = variance(b, x);
                let v = b.scale(v, N / (N - 1.0));
                let v = sqrt(b, v);
                b.shift(v, 1e-6)
            })
        }),
        ("moments", 1e-3, |b, x| {
            over(b, x, |b, x| {
                let (square, m) = (b.mul(x, x), mean(b, x, 2));
                let (squares, square) = (mean(b, square, 2), b.mul(m, m));
                let v = b.op(Op::Sub {}, &[squares, square]);
                let v = b.shift(v, 1e-3);
                sqrt(b, v)
            })
        }),
        ("least", 1e-6, |b, x| {
            over(b, x, |b, x| {
                let v = variance(b, x);
                let v = floor(b, v, 1e-6);
                sqrt(b, v)
            })
        }),
        ("sums", 1e-3, |b, x| {
            let m = sum(b, x, 2);
            let n = b.scalar(N);
            let m = div(b, m, n);
            let d = b.op(Op::Sub {}, &[x, m]);
            let square = b.mul(d, d);
            let v = sum(b, square, 2);
            let v = b.scale(v, 1.0 / N);
            let v = b.shift(v, 1e-3);
            let v = sqrt(b, v);
            div(b, d, v)
        }),
        ("put back", 1e-3, |b, x| {
            let back = |b: &mut Build, x: ValueId| {
                let m = b.op(Op::ReduceMean { axes: vec![2], keep: false }, &[x]);
                b.reshape(m, &[5, 1])
            };
            let m = back(b, x);
            let d = b.op(Op::Sub {}, &[x, m]);
            let square = b.mul(d, d);
            let v = b.op(Op::ReduceSum { axes: vec![2], keep: false }, &[square]);
            let v = b.scale(v, 1.0 / N);
            let v = b.reshape(v, &[5, 1]);
            let v = b.shift(v, 1e-3);
            let v = sqrt(b, v);
            div(b, d, v)
        }),
    ];
    for (name, wanted, spelling) in spellings {
        let mut b = Build::new(40);
        let x = b.input(&[5, 8]);
        let y = spelling(&mut b, x);
        let (gamma, beta) = (b.weights(&[8], 1.0), b.weights(&[8], 1.0));
        let y = b.mul(y, gamma);
        let y = b.add(y, beta);
        let m = clean(&b.done(y)).module;
        assert_eq!(m.nodes.len(), 1, "{name}");
        let Op::LayerNorm { epsilon, centred: true } = m.nodes[0].op else { panic!("{name}") };
        assert!((epsilon.0 / wanted - 1.0).abs() < 1e-5, "{name}: {} instead of {wanted}", epsilon.0);
    }
}

/// Gamma may come before the deviation is divided by, or multiplied with.
#[test]
fn gamma_may_come_first() {
    for inverse in [false, true] {
        let mut b = Build::new(46);
        let x = b.input(&[5, 8]);
        let (gamma, d) = (b.weights(&[8], 1.0), centred(&mut b, x, 2));
        let top = b.mul(gamma, d);
        let v = variance(&mut b, x);
        let v = b.shift(v, 1e-3);
        let v = sqrt(&mut b, v);
        let y = match inverse {
            true => {
                let r = b.op(Op::Reciprocal {}, &[v]);
                b.mul(r, top)
            }
            false => div(&mut b, top, v),
        };
        let m = clean(&b.done(y)).module;
        assert_eq!((count(&m, "layernorm"), m.nodes.len()), (1, 1), "{inverse}");
    }
}

/// As Keras writes it, with and without gamma.
#[test]
fn an_affine_function_by_the_inverse() {
    for (has_gamma, quotient) in [(false, false), (true, false), (true, true), (false, true)] {
        let mut b = Build::new(48);
        let x = b.input(&[5, 8]);
        let m = mean(&mut b, x, 2);
        let v = variance(&mut b, x);
        let v = b.shift(v, 1e-3);
        let v = sqrt(&mut b, v);
        let one = b.scalar(1.0);
        let mut inverse = if quotient { div(&mut b, one, v) } else { b.op(Op::Reciprocal {}, &[v]) };
        let (gamma, beta) = (b.weights(&[8], 1.0), b.weights(&[8], 1.0));
        if has_gamma {
            inverse = b.mul(inverse, gamma);
        }
        let (scaled, moved) = (b.mul(x, inverse), b.mul(m, inverse));
        let offset = b.op(Op::Sub {}, &[beta, moved]);
        let y = b.add(scaled, offset);
        let m = clean(&b.done(y)).module;
        assert_eq!((count(&m, "layernorm"), m.nodes.len()), (1, 1), "{has_gamma} {quotient}");
    }
}

#[test]
fn norms_of_vectors_are_rmsnorms() {
    let spellings: &[(&str, Spelling)] = &[
        ("length", |b, x| {
            let n = norm(b, x);
            div(b, x, n)
        }),
        ("least length", |b, x| {
            let n = norm(b, x);
            let n = floor(b, n, 1e-12);
            let y = div(b, x, n);
            b.scale(y, N.sqrt())
        }),
        ("root of the mean, and a little", |b, x| {
            let n = norm(b, x);
            let n = b.scale(n, N.sqrt().recip());
            let n = b.shift(n, 1e-8);
            div(b, x, n)
        }),
    ];
    for (name, spelling) in spellings {
        let mut b = Build::new(41);
        let x = b.input(&[5, 8]);
        let y = spelling(&mut b, x);
        let m = clean(&b.done(y)).module;
        assert_eq!(m.nodes.len(), 1, "{name}");
        assert!(matches!(m.nodes[0].op, Op::LayerNorm { centred: false, .. }), "{name}");
    }
}

/// Of images with channels first, gamma and beta along the channels.
#[test]
fn a_norm_along_another_dimension_is_turned() {
    let mut b = Build::new(42);
    let x = b.input(&[8, 3, 5]);
    let d = centred(&mut b, x, 1);
    let square = b.mul(d, d);
    let v = mean(&mut b, square, 1);
    let v = b.shift(v, 1e-6);
    let v = sqrt(&mut b, v);
    let y = div(&mut b, d, v);
    let (gamma, beta) = (b.weights(&[1, 8, 1, 1], 1.0), b.weights(&[8, 1, 1], 1.0));
    let y = b.mul(y, gamma);
    let y = b.add(y, beta);
    let m = clean(&b.done(y)).module;
    assert_eq!((count(&m, "layernorm"), count(&m, "transpose"), m.nodes.len()), (1, 2, 3));
}

/// A large epsilon outside the root, the deviation of something else, and a mean over two dimensions are no LayerNorm.
#[test]
fn what_only_looks_like_a_norm_stays() {
    let spellings: &[Spelling] = &[
        |b, x| {
            over(b, x, |b, x| {
                let v = variance(b, x);
                let v = sqrt(b, v);
                b.shift(v, 0.1)
            })
        },
        |b, x| {
            let top = centred(b, x, 2);
            let n = norm(b, x);
            div(b, top, n)
        },
        |b, x| {
            let square = b.mul(x, x);
            let v = b.op(Op::ReduceMean { axes: vec![1, 2], keep: true }, &[square]);
            let v = b.shift(v, 1e-3);
            let v = sqrt(b, v);
            div(b, x, v)
        },
    ];
    for (i, spelling) in spellings.iter().enumerate() {
        let mut b = Build::new(43);
        let x = b.input(&[5, 8]);
        let y = spelling(&mut b, x);
        assert_eq!(count(&clean(&b.done(y)).module, "layernorm"), 0, "{i}");
    }
}

fn less_largest(b: &mut Build, x: ValueId) -> ValueId {
    let m = b.op(Op::ReduceMax { axes: vec![2], keep: true }, &[x]);
    let x = b.op(Op::Sub {}, &[x, m]);
    b.op(Op::Exp {}, &[x])
}

fn log_of_sum(b: &mut Build, e: ValueId, axis: usize) -> ValueId {
    let s = sum(b, e, axis);
    b.op(Op::Log {}, &[s])
}

#[test]
fn softmax_is_one_op() {
    let spellings: &[(&str, usize, Spelling)] = &[
        ("plain", 1, |b, x| {
            let e = b.op(Op::Exp {}, &[x]);
            let s = sum(b, e, 2);
            div(b, e, s)
        }),
        ("largest", 1, |b, x| {
            let e = less_largest(b, x);
            let s = sum(b, e, 2);
            let r = b.op(Op::Reciprocal {}, &[s]);
            b.mul(e, r)
        }),
        ("epsilon", 1, |b, x| {
            let e = less_largest(b, x);
            let s = sum(b, e, 2);
            let s = b.shift(s, 1e-6);
            div(b, e, s)
        }),
        ("one more", 0, |b, x| {
            let e = less_largest(b, x);
            let s = sum(b, e, 2);
            let s = b.shift(s, 1.0);
            div(b, e, s)
        }),
        ("no largest to keep the sum from zero", 0, |b, x| {
            let e = b.op(Op::Exp {}, &[x]);
            let s = sum(b, e, 2);
            let s = b.shift(s, 1e-6);
            div(b, e, s)
        }),
        ("logarithm", 1, |b, x| {
            let e = b.op(Op::Exp {}, &[x]);
            let log = log_of_sum(b, e, 2);
            let below = b.op(Op::Sub {}, &[x, log]);
            b.op(Op::Exp {}, &[below])
        }),
        ("logarithm of what the largest was taken off", 1, |b, x| {
            let m = b.op(Op::ReduceMax { axes: vec![2], keep: true }, &[x]);
            let e = less_largest(b, x);
            let log = log_of_sum(b, e, 2);
            let log = b.add(log, m);
            let below = b.op(Op::Sub {}, &[x, log]);
            b.op(Op::Exp {}, &[below])
        }),
        ("logarithm and largest one after another", 1, |b, x| {
            let m = b.op(Op::ReduceMax { axes: vec![2], keep: true }, &[x]);
            let x = b.op(Op::Sub {}, &[x, m]);
            let e = b.op(Op::Exp {}, &[x]);
            let log = log_of_sum(b, e, 2);
            let below = b.op(Op::Sub {}, &[x, log]);
            b.op(Op::Exp {}, &[below])
        }),
        ("logarithm with bounds", 1, |b, x| {
            let m = b.op(Op::ReduceMax { axes: vec![2], keep: true }, &[x]);
            let x = b.op(Op::Sub {}, &[x, m]);
            let e = b.op(Op::Exp {}, &[x]);
            let s = sum(b, e, 2);
            let s = b.op(Op::Clip { lo: 1.0.into(), hi: 8.0.into() }, &[s]);
            let log = b.op(Op::Log {}, &[s]);
            let minus = b.op(Op::Neg {}, &[log]);
            let below = b.add(x, minus);
            b.op(Op::Exp {}, &[below])
        }),
        ("logarithm of columns", 0, |b, x| {
            let e = b.op(Op::Exp {}, &[x]);
            let log = log_of_sum(b, e, 1);
            let below = b.op(Op::Sub {}, &[x, log]);
            b.op(Op::Exp {}, &[below])
        }),
        ("columns", 0, |b, x| {
            let e = b.op(Op::Exp {}, &[x]);
            let s = sum(b, e, 1);
            div(b, e, s)
        }),
    ];
    for (name, wanted, spelling) in spellings {
        let mut b = Build::new(44);
        let x = b.input(&[5, 8]);
        let y = spelling(&mut b, x);
        let m = clean(&b.done(y)).module;
        assert_eq!(count(&m, "softmax"), *wanted, "{name}");
        assert_eq!(m.nodes.len() == 1, *wanted == 1, "{name}");
    }
}

/// The least value of a divisor is not taken for that of a ReLU.
#[test]
fn a_least_value_is_no_relu() {
    let mut b = Build::new(45);
    let x = b.input(&[5, 8]);
    let y = floor(&mut b, x, 1e-5);
    assert_eq!(count(&clean(&b.done(y)).module, "relu"), 0);
}

#[test]
fn a_power_of_two_is_a_product() {
    for (dims, exponent, products) in [(&[][..], 2.0, 1), (&[1, 1, 1], 2.0, 1), (&[], 3.0, 0)] {
        let mut b = Build::new(47);
        let x = b.input(&[5, 8]);
        let two = b.values(dims, &[exponent]);
        let y = b.op(Op::Pow {}, &[x, two]);
        assert_eq!(count(&clean(&b.done(y)).module, "mul"), products);
    }
}
