//! Cost of integer ops for extraction: rough cycles of one core for one image on the portable tier. Integers only, so that
//! the choice is the same everywhere.

use vitc_ir::{Class, Dim, Op, Shape, TensorType};

/// More than any graph can cost: a float op is taken only where nothing else exists, and then reported.
pub const FLOAT: u64 = 1 << 50;

fn elements(ty: &TensorType) -> u64 {
    count(&ty.shape)
}

fn count(shape: &Shape) -> u64 {
    shape.count().unwrap_or(Dim::fixed(1)).size as u64
}

/// An 8-bit table look-up.
pub fn table(x: &TensorType) -> u64 {
    elements(x)
}

/// Shift-exp twice and a division an element; `fuse` turns it into a table on 8-bit input, yet the form as written is
/// what is weighed against others.
pub fn shift_gelu(x: &TensorType) -> u64 {
    30 * elements(x)
}

/// Two passes over the row.
pub fn layernorm(x: &TensorType) -> u64 {
    3 * elements(x)
}

/// Two passes over the row with 64-bit products.
pub fn shift_layernorm(x: &TensorType) -> u64 {
    8 * elements(x)
}

/// Maximum, index and look-up, sum, and their share of the product's epilogue.
pub fn softmax(x: &TensorType) -> u64 {
    4 * elements(x)
}

/// Requantize, shift-exp, sum, 64-bit product; the product with a 16-bit map costs twice.
pub fn shiftmax(x: &TensorType) -> u64 {
    16 * elements(x)
}

/// Two small products, and a division a row.
pub fn linear_attention(q: &TensorType) -> u64 {
    8 * elements(q)
}

/// A division a divisor, a product an element of the result.
pub fn quotient(divisors: &TensorType, result: &Shape) -> u64 {
    20 * elements(divisors) + 3 * count(result)
}

/// Cost of one op from the types of its operands and its result.
pub fn of(op: &Op, operands: &[&TensorType], result: &TensorType) -> u64 {
    let out = elements(result);
    let bytes = out * result.elem.bytes() as u64;
    match op {
        Op::IntMatMul { a_zero, .. } => {
            let k = operands.first().and_then(|a| a.shape.last_fixed()).unwrap_or(1) as u64;
            let wide = operands.first().map_or(1, |a| a.elem.bytes() as u64);
            out * k * wide / 32 + if *a_zero == 0 { 0 } else { out }
        }
        Op::IntConv2d { .. } => {
            let per_output: u64 = operands.get(1).map_or(1, |w| w.shape.0[1..].iter().map(|d| d.size as u64).product());
            out * per_output / 32
        }
        Op::IntRequant { .. } | Op::IntRequantRows { .. } => 3 * out,
        Op::IntRequant15 { .. } | Op::IntAdd { .. } | Op::IntMul { .. } | Op::IntClamp { .. } => out,
        Op::IntMin {} | Op::IntMax {} | Op::IntTable {} | Op::IntRoundShift { .. } => out,
        Op::IntHardSwish { .. } => 2 * out,
        Op::IntShiftGelu { .. } => 30 * out,
        Op::IntLayerNorm { .. } => 3 * out,
        Op::IntShiftLayerNorm { .. } => 8 * out,
        Op::IntExp { .. } => 3 * out,
        Op::IntShiftmax { .. } => 12 * out,
        Op::IntReduceSum { .. } => operands.first().map_or(out, |x| elements(x) / 8 + 1),
        Op::IntLinearAttention { .. } => {
            let depth = operands.first().and_then(|q| q.shape.last_fixed()).unwrap_or(1) as u64;
            out * depth / 4
        }
        Op::IntRowPeak { .. } => operands.first().map_or(out, |x| elements(x) / 4 + 1),
        Op::IntRowCodes { .. } => 2 * out,
        Op::IntReciprocal { .. } => 20 * out,
        Op::Dequantize {} => 1, // at the door; elsewhere it only feeds float ops, which cost too much
        Op::Reshape { .. } => 1,
        _ if op.class() == Class::Move => bytes / 4 + 1,
        _ => FLOAT,
    }
}
