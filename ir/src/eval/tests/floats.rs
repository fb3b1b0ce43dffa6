//! Float ops and the two between floats and integers.

use super::*;
use crate::attr::{GeluForm, ImageLayout};
use crate::types::{Quant, Real};

fn wide(t: &Tensor) -> Vec<f64> {
    t.as_f32().unwrap().iter().map(|&v| v.into()).collect()
}

#[test]
fn elementwise_functions_agree_with_double_precision() {
    let x = wave(&[3, 50]);
    let erf_gelu = |v: f64| 0.5 * v * (1.0 + libm::erf(v / 2f64.sqrt()));
    let tanh_gelu =
        |v: f64| 0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v)).tanh());
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    type Case = (Op, Box<dyn Fn(f64) -> f64>);
    let cases: Vec<Case> = vec![
        (Op::Neg {}, Box::new(|v| -v)),
        (Op::Abs {}, Box::new(f64::abs)),
        (Op::Exp {}, Box::new(f64::exp)),
        (Op::Erf {}, Box::new(libm::erf)),
        (Op::Tanh {}, Box::new(f64::tanh)),
        (Op::Sigmoid {}, Box::new(sigmoid)),
        (Op::Relu {}, Box::new(|v| v.max(0.0))),
        (Op::Clip { lo: Real(-1.0), hi: Real(0.5) }, Box::new(|v| v.clamp(-1.0, 0.5))),
        (Op::Gelu { form: GeluForm::Erf }, Box::new(erf_gelu)),
        (Op::Gelu { form: GeluForm::Tanh }, Box::new(tanh_gelu)),
        (Op::Silu {}, Box::new(move |v| v * sigmoid(v))),
        (Op::HardSwish {}, Box::new(|v| v * (v / 6.0 + 0.5).clamp(0.0, 1.0))),
        (Op::HardSigmoid { alpha: Real(0.2), beta: Real(0.5) }, Box::new(|v| (0.2 * v + 0.5).clamp(0.0, 1.0))),
    ];
    for (op, truth) in cases {
        let want: Vec<f64> = wide(&x).into_iter().map(truth).collect();
        assert_close(&floats(op, std::slice::from_ref(&x)), &want, 4e-7);
    }
    let positive = Tensor::f32(&[3], vec![0.25, 4.0, 10.0]);
    let at = |op| floats(op, std::slice::from_ref(&positive));
    assert_close(&at(Op::Sqrt {}), &[0.5, 2.0, 10f64.sqrt()], 1e-7);
    assert_close(&at(Op::Reciprocal {}), &[4.0, 0.25, 0.1], 1e-7);
    assert_close(&at(Op::Log {}), &[0.25f64.ln(), 4f64.ln(), 10f64.ln()], 1e-7);
}

#[test]
fn binary_ops_broadcast_as_numpy() {
    let truth = |op: &Op, x: f32, y: f32| match op {
        Op::Add {} => x + y,
        Op::Sub {} => x - y,
        Op::Mul {} => x * y,
        Op::Div {} => x / y,
        Op::Min {} => x.min(y),
        _ => x.max(y),
    };
    let ops = [Op::Add {}, Op::Sub {}, Op::Mul {}, Op::Div {}, Op::Min {}, Op::Max {}];
    let shapes: [(&[usize], &[usize]); 7] = [
        (&[2, 3, 4], &[2, 3, 4]),
        (&[2, 3, 4], &[4]),
        (&[2, 3, 4], &[3, 1]),
        (&[3, 1], &[2, 1, 4]),
        (&[2, 1, 4], &[1, 3, 1]),
        (&[], &[2, 2]),
        (&[1, 1], &[1]),
    ];
    for (op, (a_shape, b_shape)) in ops.iter().flat_map(|op| shapes.iter().map(move |s| (op, s))) {
        let (a, b) = (wave(a_shape), wave(b_shape));
        let y = eval(op.clone(), &[a.clone(), b.clone()]).unwrap();
        let element = |t: &Tensor, index: &[usize]| {
            let skip = index.len() - t.shape.len();
            let flat = t.shape.iter().zip(&index[skip..]).fold(0, |at, (&d, &i)| at * d + if d == 1 { 0 } else { i });
            t.as_f32().unwrap()[flat]
        };
        for (i, got) in y.as_f32().unwrap().iter().enumerate() {
            let mut rest = i;
            let mut index: Vec<usize> = y.shape.iter().rev().map(|d| (rest % d, rest /= d).0).collect();
            index.reverse();
            let want = truth(op, element(&a, &index), element(&b, &index));
            assert!(*got == want || (got.is_nan() && want.is_nan()), "{} {index:?}: {got}, {want}", op.name());
        }
    }
}

#[test]
fn powers_with_the_usual_exponents() {
    let x = Tensor::f32(&[3], vec![0.5, 2.0, 9.0]);
    let pow = |e: Vec<f32>| floats(Op::Pow {}, &[x.clone(), Tensor::f32(&[e.len()], e)]);
    assert_eq!(pow(vec![2.0]), [0.25, 4.0, 81.0]);
    assert_close(&pow(vec![0.5]), &[0.5f64.sqrt(), 2f64.sqrt(), 3.0], 1e-7);
    assert_close(&pow(vec![1.0, 3.0, -1.0]), &[0.5, 8.0, 1.0 / 9.0], 1e-6);
}

#[test]
fn select_leaves_alone_what_it_does_not_choose() {
    let c = Tensor::f32(&[3, 1], vec![1.0, 0.0, f32::NAN]);
    let a = Tensor::f32(&[1, 2], vec![5.0, f32::INFINITY]);
    let b = Tensor::f32(&[1], vec![7.0]);
    assert_eq!(floats(Op::Select {}, &[c, a, b]), [5.0, f32::INFINITY, 7.0, 7.0, 7.0, 7.0]);
    let a = Tensor::f32(&[1], vec![f32::NAN]);
    assert_eq!(floats(Op::Select {}, &[Tensor::f32(&[1], vec![-1.0]), a, Tensor::f32(&[1], vec![2.0])]), [2.0]);
}

/// The definition, in double precision.
fn product(a: &[f64], b: &[f64], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let dot = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
    (0..m * n).map(|e| dot(e / n, e % n)).collect()
}

#[test]
fn matrix_products_of_many_sizes() {
    for [m, k, n] in [[1, 1, 1], [3, 5, 7], [17, 33, 9], [64, 64, 64]] {
        let (a, b) = (wave(&[m, k]), wave(&[k, n]));
        let want = product(&wide(&a), &wide(&b), [m, k, n]);
        assert_close(&floats(Op::MatMul {}, &[a, b]), &want, 1e-5);
    }
}

#[test]
fn matrix_products_broadcast_and_add_a_bias() {
    let (a, b, bias) = (wave(&[2, 1, 3, 4]), wave(&[5, 4, 2]), Tensor::f32(&[2], vec![10.0, -10.0]));
    let (wa, wb) = (wide(&a), wide(&b));
    let mut want = Vec::new();
    for i in 0..2 {
        for j in 0..5 {
            let part = product(&wa[i * 12..][..12], &wb[j * 8..][..8], [3, 4, 2]);
            want.extend(part.iter().enumerate().map(|(e, v)| v + [10.0, -10.0][e % 2]));
        }
    }
    assert_close(&floats(Op::MatMul {}, &[a, b, bias]), &want, 1e-6);
    let (a, b) = (wave(&[2, 3, 4]), wave(&[1, 4, 2]));
    let want = product(&wide(&a), &wide(&b), [6, 4, 2]);
    let one = Tensor::f32(&[1], vec![1.0]);
    let want: Vec<f64> = want.iter().map(|v| v + 1.0).collect();
    assert_close(&floats(Op::MatMul {}, &[a, b, one]), &want, 1e-6);
    let empty = [Tensor::f32(&[2, 0], vec![]), Tensor::f32(&[0, 2], vec![])];
    assert_eq!(floats(Op::MatMul {}, &empty), [0.0; 4]);
}

#[test]
fn convolutions_follow_the_definition() {
    // strides, pads, dilations, groups, input channels and sizes, outputs, kernel
    type Case = ([usize; 2], [usize; 4], [usize; 2], usize, [usize; 3], usize, [usize; 2]);
    let cases: [Case; 7] = [
        ([1, 1], [0; 4], [1, 1], 1, [3, 5, 6], 4, [1, 1]),
        ([2, 2], [0; 4], [1, 1], 1, [3, 5, 6], 4, [1, 1]),
        ([4, 4], [0; 4], [1, 1], 1, [3, 8, 8], 5, [4, 4]),
        ([1, 2], [1, 0, 2, 1], [1, 1], 2, [4, 5, 6], 6, [3, 2]),
        ([1, 1], [1; 4], [1, 1], 4, [4, 5, 6], 4, [3, 3]),
        ([2, 1], [2, 3, 2, 3], [2, 3], 3, [3, 7, 4], 3, [3, 3]),
        ([1, 1], [3, 3, 3, 3], [1, 1], 1, [1, 1, 1], 1, [2, 2]),
    ];
    for (strides, pads, dilations, groups, [c, h, w], o, [kh, kw]) in cases {
        let (x, weight) = (wave(&[2, c, h, w]), wave(&[o, c / groups, kh, kw]));
        let bias = wave(&[o]);
        let op = |layout| Op::Conv2d { strides, pads, dilations, groups, layout };
        let y = eval(op(ImageLayout::ChannelsFirst), &[x.clone(), weight.clone(), bias.clone()]).unwrap();
        let (wx, ww, wb) = (wide(&x), wide(&weight), wide(&bias));
        let mut want = Vec::new();
        for (image, out, oy, ox) in grid([2, o, y.shape[2], y.shape[3]]) {
            let mut sum = wb[out];
            for (_, ci, ky, kx) in grid([1, c / groups, kh, kw]) {
                let (iy, ix) = (oy * strides[0] + ky * dilations[0], ox * strides[1] + kx * dilations[1]);
                let (Some(iy), Some(ix)) = (iy.checked_sub(pads[0]), ix.checked_sub(pads[1])) else { continue };
                if iy < h && ix < w {
                    let channel = out / (o / groups) * (c / groups) + ci;
                    sum += wx[((image * c + channel) * h + iy) * w + ix]
                        * ww[((out * (c / groups) + ci) * kh + ky) * kw + kx];
                }
            }
            want.push(sum);
        }
        assert_close(y.as_f32().unwrap(), &want, 1e-5);
        let last = |t: Tensor| eval(Op::Transpose { perm: vec![0, 2, 3, 1] }, &[t]).unwrap();
        assert_eq!(eval(op(ImageLayout::ChannelsLast), &[last(x), weight, bias]).unwrap(), last(y));
    }
}

fn grid([a, b, c, d]: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..a * b * c * d).map(move |i| (i / (b * c * d), i / (c * d) % b, i / d % c, i % d))
}

#[test]
fn norms_and_softmax_agree_with_double_precision() {
    let x = wave(&[3, 37]);
    let (gamma, beta) = (wave(&[37]), Tensor::f32(&[1], vec![0.5]));
    for centred in [true, false] {
        let norm = wide(&x)
            .chunks(37)
            .flat_map(|row| {
                let mean = if centred { row.iter().sum::<f64>() / 37.0 } else { 0.0 };
                let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 37.0;
                let one = |(v, g): (&f64, f64)| (v - mean) / (variance + 1e-3).sqrt() * g + 0.5;
                row.iter().zip(wide(&gamma)).map(one).collect::<Vec<_>>()
            })
            .collect::<Vec<f64>>();
        let op = Op::LayerNorm { epsilon: Real(1e-3), centred };
        assert_close(&floats(op, &[x.clone(), gamma.clone(), beta.clone()]), &norm, 2e-6);
    }
    let soft = wide(&x)
        .chunks(37)
        .flat_map(|row| {
            let sum: f64 = row.iter().map(|v| v.exp()).sum();
            row.iter().map(|v| v.exp() / sum).collect::<Vec<_>>()
        })
        .collect::<Vec<f64>>();
    assert_close(&floats(Op::Softmax {}, &[x]), &soft, 1e-7);
    let masked = Tensor::f32(&[3], vec![f32::NEG_INFINITY, 1000.0, 1000.0]);
    assert_eq!(floats(Op::Softmax {}, &[masked]), [0.0, 0.5, 0.5]);
}

#[test]
fn reductions_over_any_axes() {
    let x = Tensor::f32(&[2, 3, 2], (0..12).map(|v| v as f32).collect());
    let at = |op| eval(op, std::slice::from_ref(&x)).unwrap();
    assert_eq!(at(Op::ReduceSum { axes: vec![0, 2], keep: true }), Tensor::f32(&[1, 3, 1], vec![14.0, 22.0, 30.0]));
    assert_eq!(at(Op::ReduceMean { axes: vec![1], keep: false }), Tensor::f32(&[2, 2], vec![2.0, 3.0, 8.0, 9.0]));
    assert_eq!(at(Op::ReduceMax { axes: vec![2, 1], keep: false }), Tensor::f32(&[2], vec![5.0, 11.0]));
    assert_eq!(at(Op::ReduceSum { axes: vec![], keep: false }), x);
}

#[test]
fn normalize_maps_pixels_by_channel() {
    let x = Tensor::ints(Elem::U8, &[1, 2, 1, 2], [0, 255, 51, 255]);
    let op = Op::Normalize { mean: vec![Real(0.5), Real(0.2)], std: vec![Real(0.5), Real(0.4)] };
    assert_close(&floats(op, &[x]), &[-1.0, 1.0, 0.0, 2.0], 1e-7);
}

/// Quantize to `to` with `quant`, then dequantize.
fn there_and_back(x: &Tensor, to: Elem, quant: Quant) -> (Vec<i64>, Vec<f32>) {
    let mut m = Module::new("qdq", Stage::Quantize);
    let id = m.input("x", type_of(x));
    let q = m.push_quant(Op::Quantize { to }, &[id], quant, None).unwrap();
    let y = m.push(Op::Dequantize {}, &[q], None).unwrap();
    m.output("q", q);
    m.output("y", y);
    let out = run(&m, std::slice::from_ref(x)).unwrap();
    (out[0].to_ints(), out[1].as_f32().unwrap().to_vec())
}

#[test]
fn quantize_rounds_half_to_even_and_saturates() {
    let x = Tensor::f32(&[7], vec![0.25, 0.75, -0.25, -0.75, 1.0, 1e30, -1e30]);
    let (q, y) = there_and_back(&x, Elem::I8, Quant::per_tensor(0.5, 0));
    assert_eq!(q, [0, 2, 0, -2, 2, 127, -128]);
    assert_eq!(y[..5], [0.0, 1.0, 0.0, -1.0, 1.0]);
    assert_eq!(there_and_back(&x, Elem::U8, Quant::per_tensor(0.5, 128)).0, [128, 130, 128, 126, 130, 255, 0]);
    let limits = [0, 2, 0, -2, 2, i32::MAX.into(), i32::MIN.into()];
    assert_eq!(there_and_back(&x, Elem::I32, Quant::per_tensor(0.5, 0)).0, limits);
    let far = there_and_back(&x, Elem::I16, Quant::per_tensor(0.5, 1 << 20)).0;
    assert_eq!(far, [32767, 32767, 32767, 32767, 32767, 32767, -32768]);
}

#[test]
fn quantization_per_axis() {
    let x = Tensor::f32(&[2, 2], vec![1.0, 1.0, 3.0, 3.0]);
    let by = |axis| there_and_back(&x, Elem::I8, Quant::per_axis([1.0, 0.5], axis, 0));
    assert_eq!(by(1), (vec![1, 2, 3, 6], vec![1.0, 1.0, 3.0, 3.0]));
    assert_eq!(by(0), (vec![1, 1, 6, 6], vec![1.0, 1.0, 3.0, 3.0]));
}

#[test]
fn a_quantization_that_does_not_fit_is_an_error() {
    let mut m = Module::new("q", Stage::Quantize);
    let x = m.input("x", TensorType::f32(Shape::fixed(&[3])));
    let quant = Quant::per_axis([1.0, 0.5], 0, 0);
    let q = m.push_quant(Op::Quantize { to: Elem::I8 }, &[x], quant, None).unwrap();
    m.output("q", q);
    assert_eq!(run(&m, &[wave(&[3])]).unwrap_err().code, "eval");
    let q = m.push(Op::Quantize { to: Elem::I8 }, &[x], None).unwrap();
    m.outputs[0].value = q;
    assert!(run(&m, &[wave(&[3])]).is_err());
}

#[test]
fn rows_are_rounded_to_grids_of_their_own() {
    let x = Tensor::f32(&[3, 2], vec![0.0, 0.0, 1.0, -0.6, 30.0, -4.0]);
    let coded = |lowest: f64, step: f64, (levels, signed), codes: &[usize]| {
        let (lowest, step, codes) = (lowest.into(), step.into(), codes.to_vec());
        let op = Op::RoundRows { lowest, step, levels, signed, codes };
        eval(op, std::slice::from_ref(&x)).map(|y| y.as_f32().unwrap().to_vec())
    };
    let round = |lowest, step, levels, signed| coded(lowest, step, (levels, signed), &[]).unwrap();
    assert_eq!(round(0.0, 0.5, 2, true), [0.0, 0.0, 1.0, -0.5, 30.0, 0.0]);
    // steps of 2/2 and 31/2 from -1 on; what is below the lowest becomes it
    assert_eq!(round(-1.0, 1.0, 2, false), [0.0, 0.0, 1.0, -1.0, 30.0, -1.0]);
    assert_eq!(round(0.0, 4.0, 2, true), [0.0, 0.0, 0.0, 0.0, 32.0, 0.0], "peaks are multiples of the step");
    // steps of 1/4 and 30/4, of which -3, 0 and 4 are used: zero is the fifth
    assert_eq!(coded(0.0, 0.5, (4, true), &[2, 5, 9]).unwrap(), [0.0, 0.0, 1.0, -0.75, 30.0, 0.0]);
    assert_eq!(coded(-1.0, 1.0, (2, false), &[0, 2]).unwrap(), [0.0, 0.0, 1.0, -1.0, 30.0, -1.0]);
}
