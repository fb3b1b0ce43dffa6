//! Integer ops against the formulas of the op table written once more, or against float truth.

use super::*;
use crate::attr::ImageLayout;
use crate::types::Real;

fn i32s(values: &[i64]) -> Tensor {
    Tensor::ints(Elem::I32, &[values.len()], values.iter().copied())
}

#[track_caller]
fn overflows(op: Op, operands: &[Tensor]) {
    let error = eval(op, operands).unwrap_err();
    assert_eq!((error.code, error.place.as_deref()), ("overflow", Some("the node")), "{error}");
}

/// The definition, in `i64`.
fn product(a: &[i64], b: &[i64], [m, k, n]: [usize; 3]) -> Vec<i64> {
    let dot = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
    (0..m * n).map(|e| dot(e / n, e % n)).collect()
}

#[test]
fn matrix_products_are_exact_for_every_pair_of_types() {
    let types = [(Elem::U8, 131), (Elem::I8, -3), (Elem::I16, 0)];
    for ((a_elem, a_zero), (b_elem, b_zero)) in types.into_iter().flat_map(|a| types.map(|b| (a, b))) {
        for [m, k, n] in [[1, 1, 1], [3, 7, 5], [2, 130, 9], [5, 768, 3]] {
            if a_elem == Elem::I16 && b_elem == Elem::I16 && k > 1 {
                continue; // leaves i32, see below
            }
            let (a, b, bias) = (spread(a_elem, &[m, k]), spread(b_elem, &[k, n]), i32s(&vec![-77; n]));
            let less = |t: &Tensor, zero: i64| t.to_ints().iter().map(|v| v - zero).collect::<Vec<_>>();
            let want = product(&less(&a, a_zero), &less(&b, b_zero), [m, k, n]);
            let want: Vec<i64> = want.iter().map(|v| v - 77).collect();
            assert_eq!(ints(Op::IntMatMul { a_zero, b_zero }, &[a, b, bias]), want, "{a_elem} {b_elem} {k}");
        }
    }
}

#[test]
fn extreme_operands_are_multiplied_exactly() {
    let whole = |elem, shape: &[usize], v: i64| Tensor::ints(elem, shape, vec![v; elements(shape).unwrap()]);
    let run = |a, b| ints(Op::IntMatMul { a_zero: 0, b_zero: 0 }, &[a, b])[0];
    assert_eq!(run(whole(Elem::U8, &[1, 3072], 255), whole(Elem::I8, &[3072, 1], -128)), -255 * 128 * 3072);
    assert_eq!(run(whole(Elem::I16, &[1, 511], 32767), whole(Elem::I8, &[511, 1], 127)), 32767 * 127 * 511);
    // An odd sum just inside the range, and one outside.
    let (a, b) = (whole(Elem::I16, &[1, 2], 32767), whole(Elem::I16, &[2, 1], 32767));
    assert_eq!(run(a, b), 2 * 32767 * 32767);
    let three = [whole(Elem::I16, &[1, 3], 32767), whole(Elem::I16, &[3, 1], 32767)];
    overflows(Op::IntMatMul { a_zero: 0, b_zero: 0 }, &three);
    let biased = [whole(Elem::U8, &[1, 1], 1), whole(Elem::U8, &[1, 1], 1), i32s(&[i32::MAX.into()])];
    overflows(Op::IntMatMul { a_zero: 0, b_zero: 0 }, &biased);
    overflows(Op::IntMatMul { a_zero: i64::MAX, b_zero: 0 }, &biased);
}

#[test]
fn batched_products_broadcast() {
    let (a, b) = (spread(Elem::U8, &[2, 1, 3, 4]), spread(Elem::I8, &[5, 4, 2]));
    let (wa, wb) = (a.to_ints(), b.to_ints());
    let parts = (0..10).flat_map(|i| product(&wa[i / 5 * 12..][..12], &wb[i % 5 * 8..][..8], [3, 4, 2]));
    let want: Vec<i64> = parts.collect();
    assert_eq!(ints(Op::IntMatMul { a_zero: 0, b_zero: 0 }, &[a, b]), want);
}

#[test]
fn integer_convolutions_equal_float_ones_on_small_numbers() {
    // strides, pads, dilations, groups, channels, outputs, kernel
    let cases = [
        ([1, 1], [0; 4], [1, 1], 1, 3, 4, [1, 1]),
        ([2, 2], [1, 0, 2, 1], [1, 1], 2, 4, 6, [3, 2]),
        ([1, 2], [1; 4], [2, 1], 4, 4, 4, [3, 3]),
        ([1, 1], [1; 4], [1, 1], 4, 4, 8, [3, 3]),
    ];
    for (strides, pads, dilations, groups, c, o, [kh, kw]) in cases {
        let (x, w) = (spread(Elem::U8, &[2, c, 6, 7]), spread(Elem::I8, &[o, c / groups, kh, kw]));
        let bias: Vec<i64> = (0..o as i64).map(|v| v * 100 - 50).collect();
        let x_zero = 131;
        let float =
            |t: &Tensor, zero: i64| Tensor::f32(&t.shape, t.to_ints().iter().map(|v| (v - zero) as f32).collect());
        let biases = Tensor::f32(&[o], bias.iter().map(|&v| v as f32).collect());
        for layout in [ImageLayout::ChannelsFirst, ImageLayout::ChannelsLast] {
            let x = match layout {
                ImageLayout::ChannelsFirst => x.clone(),
                ImageLayout::ChannelsLast => spread(Elem::U8, &[2, 6, 7, c]),
            };
            let operands = [float(&x, x_zero), float(&w, 0), biases.clone()];
            let want = floats(Op::Conv2d { strides, pads, dilations, groups, layout }, &operands);
            let op = Op::IntConv2d { strides, pads, dilations, groups, layout, x_zero };
            let got = ints(op, &[x, w.clone(), i32s(&bias)]);
            assert_eq!(got, want.iter().map(|&v| v as i64).collect::<Vec<_>>());
        }
    }
    let one = |v| Tensor::ints(Elem::I16, &[1, 1, 1, 1], [v]);
    let layout = ImageLayout::ChannelsFirst;
    let op = Op::IntConv2d { strides: [1, 1], pads: [0; 4], dilations: [1, 1], groups: 1, layout, x_zero: -(1 << 16) };
    overflows(op, &[one(32767), one(-32768)]);
}

#[test]
fn requantize_rounds_half_up_saturates_and_takes_multipliers_by_axis() {
    let op = |axis, x_zero, shift, zero_point| Op::IntRequant { axis, x_zero, shift, zero_point, to: Elem::I8 };
    let x = i32s(&[8, -8, 7, 24, 1 << 30, -(1 << 30)]);
    assert_eq!(ints(op(0, 0, 4, 0), &[x.clone(), i32s(&[1])]), [1, 0, 0, 2, 127, -128]);
    assert_eq!(ints(op(0, 8, 4, 3), &[x, i32s(&[1])]), [3, 2, 3, 4, 127, -128]);
    let x = Tensor::ints(Elem::I32, &[2, 2, 2], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(ints(op(1, 0, 1, 0), &[x.clone(), i32s(&[2, -2])]), [1, 2, -3, -4, 5, 6, -7, -8]);
    assert_eq!(ints(op(2, 0, 1, 0), &[x.clone(), i32s(&[2, -2])]), [1, -2, 3, -4, 5, -6, 7, -8]);
    assert_eq!(ints(op(0, 0, 1, 0), &[x, i32s(&[2, -2])]), [1, 2, 3, 4, -5, -6, -7, -8]);
    overflows(op(0, i64::MIN, 1, 0), &[i32s(&[0]), i32s(&[1])]);
    overflows(op(0, -(1 << 40), 1, 0), &[i32s(&[0]), i32s(&[i32::MAX.into()])]);
}

#[test]
fn requantize_is_within_half_a_step_of_the_real_product() {
    let x: Vec<i64> = (-5000..5000).map(|i| i * 37 + 11).collect();
    let (multiplier, shift) = (1_518_500_250i64, 42u32);
    let scale = multiplier as f64 / (shift as f64).exp2();
    let op = Op::IntRequant { axis: 0, x_zero: 0, shift, zero_point: 0, to: Elem::I16 };
    for (got, x) in ints(op, &[i32s(&x), i32s(&[multiplier])]).iter().zip(&x) {
        assert!((*got as f64 - *x as f64 * scale).abs() <= 0.5);
    }
}

#[test]
fn cheap_requantize_follows_its_two_steps() {
    let op = |pre_shift, zero_point| Op::IntRequant15 { axis: 0, pre_shift, post_shift: 0, zero_point, to: Elem::U8 };
    let m = |v| Tensor::ints(Elem::I16, &[1], [v]);
    let x = i32s(&[100, 101, -100, 1 << 30, 65536]);
    assert_eq!(ints(op(1, 10), &[x.clone(), m(16384)]), [35, 36, 0, 255, 255]);
    assert_eq!(ints(op(0, 0), &[x, m(32767)]), [100, 101, 0, 255, 255]);
    overflows(op(2, 0), &[i32s(&[i32::MAX.into()]), m(1)]);
    let twice = Op::IntRequant15 { axis: 0, pre_shift: 0, post_shift: 3, zero_point: 10, to: Elem::U8 };
    let halves = Tensor::ints(Elem::I16, &[4], [80, 87, 88, -32768]);
    assert_eq!(ints(twice, &[halves, m(16384)]), [15, 16, 16, 0]);
}

#[test]
fn hardswish_is_next_to_its_reals() {
    let x: Vec<i64> = (i16::MIN.into()..=i16::MAX.into()).collect();
    for shift in [-14, -7, -1, 0, 1, 4, 9, 14] {
        let step = 6.0 * f64::from(shift as i32 - 15).exp2();
        let got = ints(Op::IntHardSwish { shift }, &[Tensor::ints(Elem::I16, &[x.len()], x.iter().copied())]);
        for (&y, &x) in got.iter().zip(&x) {
            let real = x as f64 * step;
            let want = real * (real + 3.0).clamp(0.0, 6.0) / 6.0;
            // half a step, and the last of the gate's steps, which the clamp or the shift leaves out
            let allowed = 0.5 * step + real.abs() * f64::from(shift.max(0) as i32 - 15).exp2() + 1e-9;
            assert!((y as f64 * step - want).abs() <= allowed, "{shift}: {x} gives {y}");
        }
    }
}

#[test]
fn sums_saturate_and_products_must_fit() {
    let (a, b) = (spread(Elem::I16, &[2, 3]), Tensor::ints(Elem::I16, &[3], [30000, -30000, 7]));
    let want: Vec<i64> = a.to_ints().iter().zip([30000, -30000, 7].iter().cycle()).map(|(a, b)| a + b).collect();
    let clamped: Vec<i64> = want.iter().map(|v| (*v).clamp(-32768, 32767)).collect();
    assert_eq!(ints(Op::IntAdd { to: Elem::I16 }, &[a.clone(), b.clone()]), clamped);
    assert_eq!(ints(Op::IntAdd { to: Elem::I32 }, &[a.clone(), b.clone()]), want);
    assert_eq!(ints(Op::IntMul { a_zero: 1, b_zero: 7 }, &[b.clone(), b.clone()])[2], 0);
    let small = Tensor::ints(Elem::U8, &[2], [3, 200]);
    assert_eq!(ints(Op::IntMul { a_zero: 5, b_zero: -1 }, &[small.clone(), small.clone()]), [-8, 195 * 201]);
    let small_and_row = [Tensor::ints(Elem::U8, &[2, 1], [3, 200]), Tensor::ints(Elem::U8, &[3], [0, 100, 255])];
    assert_eq!(ints(Op::IntMin {}, &small_and_row), [0, 3, 3, 0, 100, 200]);
    assert_eq!(ints(Op::IntMax {}, &small_and_row), [3, 100, 255, 200, 200, 255]);
    overflows(Op::IntMul { a_zero: -65536, b_zero: 0 }, &[b.clone(), b]);
    overflows(Op::IntMul { a_zero: i64::MIN, b_zero: i64::MAX }, &[small.clone(), small]);
}

#[test]
fn clamp_table_sum_and_reciprocal() {
    let x = Tensor::ints(Elem::I8, &[2, 2], [-128, -1, 0, 127]);
    assert_eq!(ints(Op::IntClamp { lo: -1, hi: 500 }, std::slice::from_ref(&x)), [-1, -1, 0, 127]);
    assert_eq!(ints(Op::IntRoundShift { shift: 2 }, &[i32s(&[5, 6, -6, -7, 0])]), [1, 2, -1, -2, 0]);
    overflows(Op::IntRoundShift { shift: 2 }, &[i32s(&[i32::MAX.into()])]);
    let table = Tensor::ints(Elem::I16, &[256], (0..256).map(|v| v * 3));
    assert_eq!(ints(Op::IntTable {}, &[x.clone(), table.clone()]), [0, 127 * 3, 128 * 3, 255 * 3]);
    assert_eq!(ints(Op::IntTable {}, &[Tensor::ints(Elem::U8, &[1], [255]), table]), [255 * 3]);
    assert_eq!(ints(Op::IntReduceSum { axis: 0, keep: false }, std::slice::from_ref(&x)), [-128, 126]);
    assert_eq!(ints(Op::IntReduceSum { axis: 1, keep: true }, &[x]), [-129, 127]);
    assert_eq!(ints(Op::IntReciprocal { numerator: 100 }, &[i32s(&[1, 3, 8, 201])]), [100, 33, 13, 0]);
    let around_zero = Tensor::ints(Elem::I16, &[4], [0, -1, -3, -32768]);
    assert_eq!(ints(Op::IntReciprocal { numerator: 100 }, &[around_zero]), [100, -100, -33, 0]);
    overflows(Op::IntReciprocal { numerator: 1 << 40 }, &[i32s(&[0])]);
    overflows(Op::IntReciprocal { numerator: 1 << 40 }, &[i32s(&[1])]);
}

#[test]
fn rows_have_their_own_multipliers() {
    let op = Op::IntRequantRows { shift: 2, zero_point: 1, to: Elem::U8 };
    let x = Tensor::ints(Elem::I32, &[2, 2, 2], [4, 6, 4, 6, -4, -6, 400, 2000]);
    let m = Tensor::ints(Elem::I32, &[2, 1], [1, 2]);
    assert_eq!(ints(op.clone(), &[x.clone(), m]), [2, 3, 3, 4, 0, 0, 201, 255]);
    assert_eq!(ints(op.clone(), &[x, i32s(&[-4])]), [0, 0, 0, 0, 5, 7, 0, 0]);
    let x = Tensor::ints(Elem::I16, &[2, 2], [4, 6, -32768, 32767]);
    assert_eq!(ints(op.clone(), &[x.clone(), i32s(&[1, -2])]), [2, 0, 0, 0]);
    assert_eq!(ints(op, &[x, Tensor::ints(Elem::I32, &[2, 2], [1, 2, -1, 4])]), [2, 4, 255, 255]);
}

#[test]
fn rows_have_grids_of_their_own() {
    let x = Tensor::ints(Elem::I16, &[4, 3], [0, 0, 0, 5, -10, 3, -32768, 32767, 100, 1, 1000, -999]);
    let peak = |shift| ints(Op::IntRowPeak { shift }, std::slice::from_ref(&x));
    assert_eq!(peak(0), [1, 10, 32768, 1000]);
    assert_eq!(peak(5), [1, 1, 1024, 32], "rounded up, so that a row lies within");
    let codes =
        |levels, zero_point, shift| ints(Op::IntRowCodes { levels, zero_point, shift }, std::slice::from_ref(&x));
    assert_eq!(codes(127, 128, 0), [128, 128, 128, 192, 1, 166, 1, 255, 128, 128, 255, 1]);
    assert_eq!(codes(255, 0, 0), [0, 0, 0, 128, 0, 77, 0, 255, 1, 0, 255, 0], "what is below zero saturates");
    assert_eq!(codes(127, 128, 5)[3..6], [148, 88, 140], "in steps of the peak as it was rounded");
    let bytes = Tensor::ints(Elem::U8, &[4, 3], [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let table = [0, 5, -10, 3, -32768, 32767, 100, 1, 1000, -999].into_iter().chain(std::iter::repeat_n(77, 246));
    let through = [bytes, Tensor::ints(Elem::I16, &[256], table)];
    assert_eq!(ints(Op::IntRowPeak { shift: 5 }, &through), peak(5), "bytes that stand for entries of a table");
    let op = Op::IntRowCodes { levels: 127, zero_point: 128, shift: 5 };
    assert_eq!(ints(op, &through), codes(127, 128, 5));
}

/// An `int.exp` for inputs at this scale, with its table.
fn exp_op(scale: f64) -> (Op, Tensor) {
    let (fraction_bits, table_bits, shift) = (8, 22, 10);
    let multiplier = (scale * std::f64::consts::LOG2_E * f64::from(1 << (fraction_bits + shift))).round() as i64;
    let limit = i64::from(i32::MAX) / multiplier;
    let entry = |i: i64| (255.0 * (1i64 << table_bits) as f64 * (-(i as f64) / 256.0).exp2()).round() as i64;
    (Op::IntExp { limit, multiplier, shift, table_bits }, i32s(&(0..256).map(entry).collect::<Vec<_>>()))
}

#[test]
fn exponentials_of_rows_are_near_the_truth_and_so_are_their_sums() {
    let scale = 1.0 / 128.0;
    let (op, table) = exp_op(scale);
    let x = Tensor::ints(Elem::I32, &[3, 700], (0..2100).map(|i| (i * 7919) % 2500 - 1250));
    let got = ints(op.clone(), &[x.clone(), table.clone()]);
    for (got, row) in got.chunks(700).zip(x.to_ints().chunks(700)) {
        let max = *row.iter().max().unwrap();
        assert_eq!(got.iter().max(), Some(&255));
        for (got, x) in got.iter().zip(row) {
            let want = 255.0 * (scale * (x - max) as f64).exp();
            // a step of the dither, and half one of the table's
            assert!((*got as f64 - want).abs() <= 1.5, "{got} {want}");
        }
        let wanted: f64 = row.iter().map(|x| 255.0 * (scale * (x - max) as f64).exp()).sum();
        let sum = got.iter().sum::<i64>() as f64;
        assert!((sum / wanted - 1.0).abs() < 0.005, "{sum} {wanted}");
    }
    let far = i32s(&[i32::MAX.into(), i32::MIN.into(), i32::MAX.into()]);
    assert_eq!(ints(op, &[far, table]), [255, 0, 255]);
}

#[test]
fn an_exponential_that_leaves_u8_is_reported() {
    let op = Op::IntExp { limit: 0, multiplier: 1, shift: 0, table_bits: 1 };
    overflows(op.clone(), &[i32s(&[0]), i32s(&[512])]);
    overflows(op, &[i32s(&[0]), i32s(&[-3])]);
}

struct Norm {
    op: Op,
    gamma: Tensor,
    beta: Tensor,
    /// Real gamma and beta in steps of the result.
    real: Vec<(f64, f64)>,
}

/// An `int.layernorm` over `c` channels of the given inputs' scale, with real parameters over the result's scale.
fn norm_op(c: usize, epsilon: i64, centred: bool) -> Norm {
    let guard = ((c as f64).sqrt().log2().ceil() as u32) + 1;
    let (norm_bits, recip_bits, shift) = (11, 14, 15);
    let real: Vec<(f64, f64)> = (0..c).map(|i| (20.0 + (i % 7) as f64 * 3.3, (i % 5) as f64 * 9.1 - 17.0)).collect();
    let unit = f64::from(1 << shift);
    let gamma: Vec<i64> = real.iter().map(|(g, _)| (g * unit / f64::from(1 << norm_bits)).round() as i64).collect();
    let beta: Vec<i64> = real.iter().map(|(_, b)| (b * unit + unit / 2.0).round() as i64).collect();
    let op = Op::IntLayerNorm { epsilon, centred, guard, norm_bits, recip_bits, shift, zero_point: 0, to: Elem::I16 };
    Norm { op, gamma: i32s(&gamma), beta: i32s(&beta), real }
}

#[test]
fn integer_norms_are_within_one_step_of_the_float_ones() {
    let c = 192;
    for centred in [true, false] {
        let Norm { op, gamma, beta, real } = norm_op(c, 0, centred);
        let mut values: Vec<i64> = (0..8 * c as i64).map(|i| (i * 7919 + i * i % 977) % 8001 - 4000).collect();
        values[..c].iter_mut().for_each(|v| *v /= 100);
        values[c..2 * c].iter_mut().for_each(|v| *v = *v * 8 + 500);
        let x = Tensor::ints(Elem::I16, &[8, c], values);
        let got = ints(op, &[x.clone(), gamma, beta]);
        for (got, row) in got.chunks(c).zip(x.to_ints().chunks(c)) {
            let mean = if centred { row.iter().sum::<i64>() as f64 / c as f64 } else { 0.0 };
            let variance = row.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / c as f64;
            for ((got, &x), (g, b)) in got.iter().zip(row).zip(&real) {
                let want = (x as f64 - mean) / variance.sqrt() * g + b;
                assert!((*got as f64 - want).abs() <= 1.0, "{got} {want}");
            }
        }
    }
}

/// A row far from zero: its mean is most of its root mean square.
#[test]
fn a_norm_without_mean_of_equal_elements_is_their_sign() {
    let c = 192;
    let Norm { op, gamma, beta, real } = norm_op(c, 0, false);
    for x in [-32768, -5, 1, 32767] {
        let got = ints(op.clone(), &[Tensor::ints(Elem::I16, &[1, c], vec![x; c]), gamma.clone(), beta.clone()]);
        for (got, (g, b)) in got.iter().zip(&real) {
            assert!((*got as f64 - (x.signum() as f64 * g + b)).abs() <= 1.0, "{got}");
        }
    }
}

#[test]
fn integer_layernorm_of_edge_rows() {
    let c = 192;
    let Norm { op, gamma, beta, real } = norm_op(c, 1, true);
    let equal = Tensor::ints(Elem::I16, &[1, c], vec![-700; c]);
    let biases: Vec<i64> = real.iter().map(|(_, b)| (b + 0.5).floor() as i64).collect();
    assert_eq!(ints(op.clone(), &[equal, gamma.clone(), beta.clone()]), biases);
    for outlier in [32767, -32768] {
        let row: Vec<i64> = (0..c).map(|i| if i == 5 { outlier } else { 0 }).collect();
        let got = ints(op.clone(), &[Tensor::ints(Elem::I16, &[1, c], row), gamma.clone(), beta.clone()]);
        let want = outlier.signum() as f64 * 191f64.sqrt() * real[5].0 + real[5].1;
        assert!((got[5] as f64 - want).abs() <= 1.5, "{} {want}", got[5]);
    }
    let Op::IntLayerNorm { epsilon, centred, guard, norm_bits, shift, zero_point, to, .. } = op else { unreachable!() };
    let coarse =
        Op::IntLayerNorm { epsilon, centred, guard, norm_bits: norm_bits + 10, recip_bits: 30, shift, zero_point, to };
    let row = Tensor::ints(Elem::I16, &[1, c], (0..c as i64).map(|i| i * 100));
    overflows(coarse, &[row, gamma, beta]);
}

/// ShiftExp as the specification states it, in floating point.
fn shift_exp(i: i64, one: i64, n: u32) -> i64 {
    let x0 = -one as f64;
    let i = i as f64;
    let p = (i + (i / 2.0).floor() - (i / 16.0).floor()).max(f64::from(n) * x0);
    let q = (p / x0).floor();
    let r = p - x0 * q;
    ((r / 2.0 - x0) * (f64::from(n) - q).exp2()).floor().max(0.0) as i64
}

#[test]
fn shiftmax_is_the_published_form() {
    let (one, n) = (10, 15);
    let row: Vec<i64> = (0..197).map(|i| (i * 31) % 90 - 60).collect();
    let max = row.iter().max().unwrap();
    let exps: Vec<i64> = row.iter().map(|x| shift_exp(x - max, one, n)).collect();
    for bits in [8, 16] {
        let factor = (i64::from(i32::MAX)) / exps.iter().sum::<i64>().min(i32::MAX.into());
        let want: Vec<i64> = exps.iter().map(|e| (e * factor) >> (31 - (bits - 1))).collect();
        let x = Tensor::ints(Elem::I8, &[1, 197], row.clone());
        assert_eq!(ints(Op::IntShiftmax { one, n, bits }, &[x]), want);
    }
}

#[test]
fn shiftmax_of_edge_rows() {
    let op = Op::IntShiftmax { one: 16, n: 15, bits: 16 };
    let at = |row: &[i64]| ints(op.clone(), &[Tensor::ints(Elem::I32, &[1, row.len()], row.iter().copied())]);
    assert_eq!(at(&[-5, -5, -5, -5]), [8184; 4]); // floors keep it below a quarter
    assert_eq!(at(&[7]), [32760]);
    let lone = at(&[i32::MIN.into(), i32::MAX.into(), i32::MIN.into()]);
    assert!(lone[1] > 32700 && lone[0] <= 1 && lone[2] <= 1, "{lone:?}");
    // The sum of many large exponentials is cut at 2^31-1.
    let many = ints(Op::IntShiftmax { one: 60_000, n: 15, bits: 16 }, &[Tensor::ints(Elem::I8, &[1, 4], [0; 4])]);
    assert_eq!(many, [(60_000i64 << 15) >> 16; 4]);
}

#[test]
fn shift_gelu_is_the_published_form_and_near_gelu() {
    let scale = 6.0f64 / 127.0;
    let (one, n, bits) = ((1.0 / (1.702 * scale)).ceil() as i64, 17, 8);
    let x = Tensor::ints(Elem::I8, &[256], -128..=127);
    let got = ints(Op::IntShiftGelu { x_zero: 0, one, n, bits }, std::slice::from_ref(&x));
    for (got, i) in got.iter().zip(-128i64..) {
        let m = i.max(0);
        let (e, other) = (shift_exp(i - m, one, n), shift_exp(-m, one, n));
        let sigmoid = (e * (i64::from(i32::MAX) / (e + other))) >> (31 - (bits - 1));
        assert_eq!(*got, i * sigmoid);
        let real = i as f64 * scale;
        let truth = 0.5 * real * (1.0 + libm::erf(real / 2f64.sqrt()));
        assert!((*got as f64 * scale / 128.0 - truth).abs() < 0.13, "{real}: {got}");
    }
    let shifted = Op::IntShiftGelu { x_zero: -128, one, n, bits };
    assert_eq!(ints(shifted, &[Tensor::ints(Elem::I8, &[1], [-128])]), [0]);
    overflows(Op::IntShiftGelu { x_zero: i64::MIN, one, n, bits }, std::slice::from_ref(&x));
    overflows(Op::IntShiftGelu { x_zero: -(1 << 30), one, n, bits: 16 }, &[x]);
}

#[test]
fn shift_layernorm_is_near_the_float_one() {
    let c = 192usize;
    let shift = 30 + 10;
    let root = (c as f64).sqrt();
    let gamma = i32s(&[(root * 40.0 * 1024.0).round() as i64]);
    let beta = Tensor::ints(Elem::I64, &[1], [(3i64 << shift) + (1 << (shift - 1))]);
    let op = Op::IntShiftLayerNorm { shift, zero_point: 0, to: Elem::I16 };
    let row: Vec<i64> = (0..c as i64).map(|i| (i * 7919) % 6001 - 3000).collect();
    let mean = row.iter().sum::<i64>() as f64 / c as f64;
    let variance = row.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / c as f64;
    let run = |row: Vec<i64>| ints(op.clone(), &[Tensor::ints(Elem::I16, &[1, c], row), gamma.clone(), beta.clone()]);
    for (got, x) in run(row.clone()).iter().zip(&row) {
        let want = (*x as f64 - mean) / variance.sqrt() * 40.0 + 3.0;
        assert!((*got as f64 - want).abs() <= 1.0, "{got} {want}");
    }
    assert_eq!(run(vec![-9; c]), vec![3; c]);
    let lone: Vec<i64> = (0..c).map(|i| if i == 0 { -32768 } else { 0 }).collect();
    assert!((run(lone)[0] as f64 - (3.0 - 191f64.sqrt() * 40.0)).abs() < 3.0);
    let huge = Tensor::ints(Elem::I64, &[1], [i64::MAX]);
    overflows(op, &[Tensor::ints(Elem::I16, &[1, c], row), gamma, huge]);
}

#[test]
fn means_round_to_even() {
    // Two rows whose sums are odd halves: -3/2 and 5/2 become -2 and 2.
    let op = Op::IntShiftLayerNorm { shift: 0, zero_point: 0, to: Elem::I16 };
    let x = Tensor::ints(Elem::I16, &[2, 2], [-1, -2, 2, 3]);
    let (gamma, beta) = (i32s(&[1]), Tensor::ints(Elem::I64, &[1], [0]));
    assert_eq!(ints(op, &[x, gamma, beta]), [32767, 0, 0, 32767]);
}

#[test]
fn empty_tensors_are_fine() {
    let empty = |elem| Tensor::new(&[0, 4], Data::from_ints(elem, [])).unwrap();
    assert!(ints(Op::IntShiftmax { one: 4, n: 4, bits: 8 }, &[empty(Elem::I8)]).is_empty());
    assert!(floats(Op::Softmax {}, &[Tensor::f32(&[0, 4], vec![])]).is_empty());
    assert!(floats(Op::Softmax {}, &[Tensor::f32(&[4, 0], vec![])]).is_empty());
    let clip = Op::Clip { lo: Real(1.0), hi: Real(-1.0) };
    assert_eq!(floats(clip, &[Tensor::f32(&[1], vec![0.0])]), [-1.0]);
}
