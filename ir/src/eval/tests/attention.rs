//! Attention against its parts, one by one.

use super::*;

fn attention(perm: &[usize]) -> Op {
    Op::FusedAttention {
        q_zero: 120,
        k_zero: -1,
        v_zero: 2,
        limit: 3000,
        multiplier: 400_000,
        exp_shift: 21,
        table_bits: 16,
        numerator: 255 << 29,
        shift: 37,
        zero_point: 128,
        perm: perm.to_vec(),
        to: Elem::U8,
    }
}

fn table() -> Tensor {
    Tensor::ints(Elem::I32, &[64], (0..64).map(|i| (255 << 16) - i * 130_000))
}

#[test]
fn attention_is_its_parts() {
    let (q, k, v) = (spread(Elem::U8, &[2, 3, 5, 4]), spread(Elem::I8, &[2, 3, 4, 6]), spread(Elem::I8, &[2, 3, 6, 7]));
    let scores = eval(Op::IntMatMul { a_zero: 120, b_zero: -1 }, &[q.clone(), k.clone()]).unwrap();
    let exp = Op::IntExp { limit: 3000, multiplier: 400_000, shift: 21, table_bits: 16 };
    let e = eval(exp, &[scores, table()]).unwrap();
    let sums = eval(Op::IntReduceSum { axis: 3, keep: true }, std::slice::from_ref(&e)).unwrap();
    let r = eval(Op::IntReciprocal { numerator: 255 << 29 }, &[sums]).unwrap();
    let p = eval(Op::IntMatMul { a_zero: 0, b_zero: 2 }, &[e, v.clone()]).unwrap();
    let y = eval(Op::IntRequantRows { shift: 37, zero_point: 128, to: Elem::U8 }, &[p, r]).unwrap();
    let want = eval(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[y]).unwrap();
    let got = eval(attention(&[0, 2, 1, 3]), &[q, k, v, table()]).unwrap();
    assert_eq!(got, want);
    assert_eq!(got.shape, [2, 5, 3, 7]);
    assert!(got.to_ints().iter().any(|&y| y != 128));
}

#[test]
fn what_does_not_fit_is_named_by_its_part() {
    let (q, k, v) = (spread(Elem::U8, &[5, 4]), spread(Elem::I8, &[4, 6]), spread(Elem::I8, &[6, 7]));
    let types = |operands: &[&Tensor]| operands.iter().map(|t| type_of(t)).collect::<Vec<_>>();
    let refused = |op: Op, operands: &[&Tensor]| {
        let types = types(operands);
        op.infer(&types.iter().collect::<Vec<_>>()).unwrap_err()
    };
    assert!(refused(attention(&[0, 1]), &[&q, &v, &v, &table()]).contains("`int.matmul` within"));
    assert!(refused(attention(&[0, 1]), &[&q, &k, &v, &q]).contains("`int.exp` within"));
    assert!(refused(attention(&[0, 0]), &[&q, &k, &v, &table()]).contains("`transpose` within"));
    assert!(refused(attention(&[0, 1, 2]), &[&q, &k, &v, &table()]).contains("within"));
    assert!(refused(attention(&[]), &[&q, &k, &v, &table()]).contains("within"));
}
