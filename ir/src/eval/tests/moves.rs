//! Movement.

use super::*;
use crate::types::Real;

fn count(shape: &[usize]) -> Tensor {
    Tensor::ints(Elem::I32, shape, 0..elements(shape).unwrap() as i64)
}

#[test]
fn reshape_keeps_the_order() {
    assert_eq!(eval(Op::Reshape { shape: Shape::fixed(&[3, 2]) }, &[count(&[2, 3])]).unwrap(), count(&[3, 2]));
}

#[test]
fn transpose_of_every_permutation_follows_the_definition() {
    let sizes = [2, 3, 4];
    for perm in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let y = eval(Op::Transpose { perm: perm.to_vec() }, &[count(&sizes)]).unwrap();
        let shape = perm.map(|p| sizes[p]);
        assert_eq!(y.shape, shape);
        let mut want = Vec::new();
        for a in 0..shape[0] {
            for b in 0..shape[1] {
                for c in 0..shape[2] {
                    let mut at = [0; 3];
                    (at[perm[0]], at[perm[1]], at[perm[2]]) = (a, b, c);
                    want.push(((at[0] * 3 + at[1]) * 4 + at[2]) as i64);
                }
            }
        }
        assert_eq!(y.to_ints(), want, "{perm:?}");
    }
}

#[test]
fn slices_step_both_ways() {
    let slice = |axis, start, len, step| ints(Op::Slice { axis, start, len, step }, &[count(&[3, 4])]);
    assert_eq!(slice(1, 1, 2, 2), [1, 3, 5, 7, 9, 11]);
    assert_eq!(slice(1, 3, 2, -3), [3, 0, 7, 4, 11, 8]);
    assert_eq!(slice(0, 2, 3, -1), [8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3]);
    assert_eq!(slice(0, 1, 1, 1), [4, 5, 6, 7]);
}

#[test]
fn concat_along_an_inner_axis() {
    let other = Tensor::ints(Elem::I32, &[2, 1], [-1, -2]);
    assert_eq!(ints(Op::Concat { axis: 1 }, &[count(&[2, 2]), other]), [0, 1, -1, 2, 3, -2]);
    let empty = Tensor::ints(Elem::I32, &[0, 2], []);
    assert_eq!(ints(Op::Concat { axis: 0 }, &[empty, count(&[1, 2])]), [0, 1]);
}

#[test]
fn expand_repeats_inner_and_outer_dimensions() {
    let op = Op::Expand { shape: Shape::fixed(&[2, 2, 3]) };
    assert_eq!(ints(op, &[count(&[2, 1])]), [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]);
    assert_eq!(ints(Op::Expand { shape: Shape::fixed(&[3]) }, &[count(&[])]), [0, 0, 0]);
}

#[test]
fn gather_picks_positions() {
    assert_eq!(ints(Op::Gather { axis: 1, index: vec![2, 0, 2] }, &[count(&[2, 3])]), [2, 0, 2, 5, 3, 5]);
    assert_eq!(ints(Op::Gather { axis: 0, index: vec![1] }, &[count(&[2, 3])]), [3, 4, 5]);
}

#[test]
fn pad_surrounds_with_the_value() {
    let pad = |before: &[usize], after: &[usize], value: f64| Op::Pad {
        before: before.to_vec(),
        after: after.to_vec(),
        value: Real(value),
    };
    assert_eq!(ints(pad(&[0, 1], &[1, 0], -1.0), &[count(&[2, 2])]), [-1, 0, 1, -1, 2, 3, -1, -1, -1]);
    assert_eq!(ints(pad(&[1, 0], &[0, 0], 9.0), &[count(&[1, 2])]), [9, 9, 0, 1]);
    assert_eq!(ints(pad(&[2], &[1], 7.0), &[Tensor::ints(Elem::U8, &[0], [])]), [7, 7, 7]);
    assert_eq!(floats(pad(&[1], &[0], 0.5), &[wave(&[1])]), [0.5, -1.75]);
    for value in [0.5, 1e10, f64::NAN] {
        assert!(eval(pad(&[1], &[0], value), &[count(&[1])]).is_err());
    }
}

#[test]
fn movement_passes_every_element_type() {
    for elem in Elem::ALL {
        let x = if elem == Elem::F32 { wave(&[2, 2]) } else { Tensor::ints(elem, &[2, 2], [0, 1, 1, 0]) };
        let y = eval(Op::Slice { axis: 1, start: 1, len: 1, step: 1 }, std::slice::from_ref(&x)).unwrap();
        assert_eq!((y.elem(), y.shape.as_slice()), (elem, &[2, 1][..]));
        assert!(eval(Op::Concat { axis: 0 }, &[x.clone(), x.clone()]).is_ok());
        assert!(eval(Op::Pad { before: vec![0, 1], after: vec![0, 0], value: Real(1.0) }, &[x]).is_ok());
    }
}
