//! ReLU in front of attention without softmax: a table that cuts off what lies below a zero point and subtracts it is what the
//! attention's kernel does as it reads. So queries and keys are read where their product wrote them.

use vitc_ir::{Elem, Op, ValueId};

use crate::clean::draft::{Draft, Rule};

pub(super) const RULES: &[(&str, Rule)] = &[("relu-into-linear-attention", relu_into_linear_attention)];

/// `linear_attention(max(q - z, 0), ..)` reads `q` with the zero point `z`, and likewise keys.
fn relu_into_linear_attention(d: &mut Draft, n: usize) -> Option<ValueId> {
    let mut op = d.node(n).op.clone();
    let mut operands = d.node(n).operands.clone();
    let Op::IntLinearAttention { q_zero, k_zero, .. } = &mut op else { return None };
    let mut found = false;
    for (zero, operand) in [q_zero, k_zero].into_iter().zip(&mut operands) {
        if let Some((x, z)) = cut_off(d, *operand).filter(|_| *zero == 0) {
            (*zero, *operand, found) = (z, x, true);
        }
    }
    let (loc, result) = (d.loc(n), d.ty(d.node(n).result).clone());
    found.then(|| d.push_typed(op, &operands, result, loc))?
}

/// `x` and `z` of a value `max(x - z, 0)` of bytes.
fn cut_off(d: &Draft, v: ValueId) -> Option<(ValueId, i64)> {
    let (Op::IntTable {}, &[x, table]) = d.op_of(v)? else { return None };
    let entries = d.constant_of(table).filter(|t| t.ty.elem == Elem::U8 && d.ty(x).elem == Elem::U8)?.ints();
    let z = entries.iter().take_while(|&&e| e == 0).count() as i64 - 1;
    let cuts = (0..).zip(&entries).all(|(i, &e)| e == (i - z).max(0));
    (z > 0 && cuts).then_some((x, z))
}

#[cfg(test)]
mod tests {
    use vitc_ir::eval::{self, Data, Tensor};
    use vitc_ir::{Op, text};

    /// Keys whose table is no ReLU on the same grid: half the slope.
    fn module(slope: i64) -> String {
        let table =
            |z: i64, slope: i64| (0..256).map(|i| ((i - z).max(0) / slope).to_string()).collect::<Vec<_>>().join(", ");
        format!(
            r#"
module "relu" stage integerize {{
  const @q : tensor<256xu8> = [{}]
  const @k : tensor<256xu8> = [{}]
  graph (%x: tensor<Nx2x9x4xu8, q(0x1p-5, 128)>, %v: tensor<Nx2x9x4xu8, q(0x1p-5, 128)>) -> (%2 "y") {{
    %0 = int.table %x, @q : tensor<Nx2x9x4xu8, q(0x1p-5, 0)>
    %1 = int.table %x, @k : tensor<Nx2x9x4xu8, q(0x1p-5, 0)>
    %2 = int.linear_attention %0, %1, %v {{q_zero = 0, k_zero = 0, v_zero = 128, epsilon = 1, numerator = 4503599627370496, shift = 50, log2 = false, zero_point = 128, to = u8}} : tensor<Nx2x9x4xu8, q(0x1p-5, 128)>
  }}
}}
"#,
            table(128, 1),
            table(100, slope)
        )
    }

    #[test]
    fn queries_and_keys_are_read_before_their_relu() {
        for (slope, count) in [(1, 0), (2, 1)] {
            let before = text::parse(&module(slope), Default::default()).unwrap();
            let (after, fired) = crate::fuse::run(&before).unwrap();
            assert_eq!(fired.get("relu-into-linear-attention"), Some(&1));
            let maps = after.nodes.iter().filter(|n| matches!(n.op, Op::FusedMap { .. })).count();
            assert_eq!(maps, count, "a table of another slope stays");
            let input = |step: i32| Tensor {
                shape: vec![1, 2, 9, 4],
                data: Data::U8((0..72).map(|i| (i * step % 256) as u8).collect()),
            };
            let run = |m| format!("{:?}", eval::run(m, &[input(37), input(101)]).unwrap());
            assert_eq!(run(&before), run(&after));
        }
    }
}
