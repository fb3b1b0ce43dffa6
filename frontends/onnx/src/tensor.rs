//! Reads the content of `TensorProto`s: as bytes of a constant, or as known numbers.

use bytes::Bytes;
use vitc_ir::Elem;

use crate::external::External;
use crate::import::listed;
use crate::known::{Kind, Known};
use crate::limits::Limits;
use crate::problem::{Fallible, invalid, unsupported};
use crate::proto::{self, dtype};

/// The dimensions of a tensor within the limits, and the number of its elements.
pub(crate) fn dims(tensor: &proto::Tensor, limits: &Limits) -> Fallible<(Vec<usize>, usize)> {
    if tensor.dims.len() > limits.rank {
        return Err(invalid(format!("{} dimensions, more than the limit of {}", tensor.dims.len(), limits.rank)));
    }
    let dims: Option<Vec<usize>> = tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let dims = dims.ok_or_else(|| invalid(format!("a negative dimension in {}", listed(&tensor.dims))))?;
    let count = crate::known::count(&dims).filter(|&c| c <= limits.elements);
    let count = count.ok_or_else(|| {
        invalid(format!("{dims:?} has more elements than the limit of {}", limits.elements)).code("limit")
    })?;
    Ok((dims, count))
}

/// The bytes of a tensor whose elements take `size` bytes, when it has them raw or outside.
fn raw(tensor: &proto::Tensor, count: usize, size: usize, external: &mut External) -> Fallible<Option<Bytes>> {
    if tensor.segment.is_some() {
        return Err(unsupported("segmented tensors are not supported"));
    }
    let len = count.checked_mul(size).ok_or_else(|| invalid("too many bytes"))?;
    match tensor.data_location {
        0 if tensor.raw_data.is_empty() => Ok(None),
        0 if tensor.raw_data.len() == len => Ok(Some(tensor.raw_data.clone())),
        0 => Err(invalid(format!("{count} elements need {len} bytes, raw_data has {}", tensor.raw_data.len()))),
        1 => external.bytes(tensor, len).map(Some),
        other => Err(invalid(format!("data_location {other} does not exist"))),
    }
}

fn want_len(got: usize, count: usize) -> Fallible<()> {
    if got == count { Ok(()) } else { Err(invalid(format!("{count} elements are declared, {got} are there"))) }
}

/// Whether elements of a data type are read as `float32`: exactly where they are narrower, rounded where they are wider.
pub(crate) fn is_float(data_type: i32) -> bool {
    matches!(data_type, dtype::FLOAT | dtype::FLOAT16 | dtype::BFLOAT16 | dtype::DOUBLE)
}

/// Little-endian bytes of a float tensor as `float32`, not copied when they are that already and raw or outside.
pub(crate) fn float_bytes(tensor: &proto::Tensor, count: usize, external: &mut External) -> Fallible<Bytes> {
    match tensor.data_type {
        dtype::FLOAT => {}
        other if is_float(other) => return converted(tensor, count, external),
        other => return Err(unsupported(format!("a tensor of {} where floats are needed", dtype::name(other)))),
    }
    if let Some(bytes) = raw(tensor, count, 4, external)? {
        return Ok(bytes);
    }
    want_len(tensor.float_data.len(), count)?;
    Ok(tensor.float_data.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into())
}

/// The bytes of another float type as `float32`.
fn converted(tensor: &proto::Tensor, count: usize, external: &mut External) -> Fallible<Bytes> {
    let values = match raw(tensor, count, element_bytes(tensor.data_type), external)? {
        Some(bytes) => decode(tensor.data_type, &bytes),
        None => typed(tensor),
    };
    want_len(values.len(), count)?;
    Ok(values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect::<Vec<u8>>().into())
}

/// A tensor of integers as the module holds them.
pub(crate) struct Integers {
    pub elem: Elem,
    pub dims: Vec<usize>,
    pub data: Bytes,
}

/// How the module holds integers of an ONNX type: the element type, and what is added to each. There are no `u16` inside
/// (`q` at zero point `z` stands for the same real as `q - 2^15` at `z - 2^15`), and those of 4 bits are held in `i8`.
pub(crate) fn held_as(data_type: i32) -> Option<(Elem, i64)> {
    match data_type {
        dtype::UINT8 => Some((Elem::U8, 0)),
        dtype::INT8 | dtype::INT4 | dtype::UINT4 => Some((Elem::I8, 0)),
        dtype::INT16 => Some((Elem::I16, 0)),
        dtype::UINT16 => Some((Elem::I16, -(1 << 15))),
        dtype::INT32 => Some((Elem::I32, 0)),
        _ => None,
    }
}

/// The integers of a tensor of a type that quantized models use; not copied when the module holds them as the file does.
pub(crate) fn integers(tensor: &proto::Tensor, limits: &Limits, external: &mut External) -> Fallible<Integers> {
    let (dims, count) = dims(tensor, limits)?;
    let Some((elem, shift)) = held_as(tensor.data_type) else {
        let name = dtype::name(tensor.data_type);
        return Err(unsupported(format!("quantized tensors of {name} are not supported")));
    };
    let narrow = matches!(tensor.data_type, dtype::INT4 | dtype::UINT4);
    let data = match (narrow, raw_of(tensor, count, narrow, external)?) {
        (true, Some(bytes)) => nibbles(&bytes, count, tensor.data_type == dtype::INT4).into(),
        (false, Some(bytes)) if shift == 0 => bytes,
        (false, Some(bytes)) => {
            // from offset binary to two's complement: the sign bit turns over
            let turned = |pair: &[u8; 2]| (u16::from_le_bytes(*pair) ^ 1 << 15).to_le_bytes();
            bytes.as_chunks::<2>().0.iter().flat_map(turned).collect::<Vec<u8>>().into()
        }
        (true, None) => {
            want_len(tensor.int32_data.len(), count.div_ceil(2))?;
            let bytes: Vec<u8> = tensor.int32_data.iter().map(|&v| v as u8).collect();
            nibbles(&bytes, count, tensor.data_type == dtype::INT4).into()
        }
        (false, None) => {
            want_len(tensor.int32_data.len(), count)?;
            let size = elem.bytes();
            let bytes = |v: &i32| i64::from(*v).wrapping_add(shift).to_le_bytes().into_iter().take(size);
            tensor.int32_data.iter().flat_map(bytes).collect::<Vec<u8>>().into()
        }
    };
    Ok(Integers { elem, dims, data })
}

fn raw_of(tensor: &proto::Tensor, count: usize, narrow: bool, external: &mut External) -> Fallible<Option<Bytes>> {
    if narrow {
        raw(tensor, count.div_ceil(2), 1, external)
    } else {
        raw(tensor, count, element_bytes(tensor.data_type), external)
    }
}

/// Integers of 4 bits, two to a byte, the low half first.
fn nibbles(bytes: &[u8], count: usize, signed: bool) -> Vec<u8> {
    let halves = bytes.iter().flat_map(|b| [b & 15, b >> 4]).take(count);
    halves.map(|n| if signed && n >= 8 { n | 0xf0 } else { n }).collect()
}

/// The content of a tensor of any numeric type as numbers. The caller has checked that it is small enough.
pub(crate) fn known(tensor: &proto::Tensor, limits: &Limits, external: &mut External) -> Fallible<Known> {
    let (dims, count) = dims(tensor, limits)?;
    let kind = kind(tensor.data_type)?;
    if matches!(tensor.data_type, dtype::INT4 | dtype::UINT4) {
        let Integers { data, .. } = integers(tensor, limits, external)?;
        return Ok(Known { kind, dims, data: data.iter().map(|&b| f64::from(b as i8).into()).collect() });
    }
    let size = element_bytes(tensor.data_type);
    let values = match raw(tensor, count, size, external)? {
        Some(bytes) => decode(tensor.data_type, &bytes),
        None => typed(tensor),
    };
    want_len(values.len(), count)?;
    Ok(Known { kind, dims, data: values.into_iter().map(Into::into).collect() })
}

/// What known content of a data type is called.
pub(crate) fn kind(data_type: i32) -> Fallible<Kind> {
    match data_type {
        dtype::FLOAT | dtype::FLOAT16 | dtype::BFLOAT16 => Ok(Kind::F32),
        dtype::DOUBLE => Ok(Kind::F64),
        dtype::BOOL => Ok(Kind::Bool),
        dtype::UINT8 | dtype::INT8 | dtype::UINT16 | dtype::INT16 | dtype::INT32 | dtype::INT64 => Ok(Kind::Int),
        dtype::UINT32 | dtype::UINT64 => Ok(Kind::Int),
        dtype::INT4 | dtype::UINT4 => Ok(Kind::Int),
        other => Err(unsupported(format!("tensors of {} are not supported", dtype::name(other)))),
    }
}

fn element_bytes(data_type: i32) -> usize {
    match data_type {
        dtype::UINT8 | dtype::INT8 | dtype::BOOL => 1,
        dtype::UINT16 | dtype::INT16 | dtype::FLOAT16 | dtype::BFLOAT16 => 2,
        dtype::INT64 | dtype::UINT64 | dtype::DOUBLE => 8,
        _ => 4,
    }
}

/// Little-endian elements as numbers.
fn decode(data_type: i32, bytes: &[u8]) -> Vec<f64> {
    fn each<const SIZE: usize>(bytes: &[u8], f: impl Fn([u8; SIZE]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<SIZE>().0.iter().map(|&c| f(c)).collect()
    }
    match data_type {
        dtype::UINT8 => each::<1>(bytes, |b| u8::from_le_bytes(b).into()),
        dtype::BOOL => each::<1>(bytes, |b| u8::from(b != [0]).into()),
        dtype::INT8 => each::<1>(bytes, |b| i8::from_le_bytes(b).into()),
        dtype::UINT16 => each::<2>(bytes, |b| u16::from_le_bytes(b).into()),
        dtype::INT16 => each::<2>(bytes, |b| i16::from_le_bytes(b).into()),
        dtype::FLOAT16 => each::<2>(bytes, |b| half(u16::from_le_bytes(b))),
        dtype::BFLOAT16 => each::<2>(bytes, |b| brain(u16::from_le_bytes(b))),
        dtype::INT32 => each::<4>(bytes, |b| i32::from_le_bytes(b).into()),
        dtype::UINT32 => each::<4>(bytes, |b| u32::from_le_bytes(b).into()),
        dtype::UINT64 => each::<8>(bytes, |b| u64::from_le_bytes(b) as f64),
        dtype::FLOAT => each::<4>(bytes, |b| f32::from_le_bytes(b).into()),
        dtype::INT64 => each::<8>(bytes, |b| i64::from_le_bytes(b) as f64),
        dtype::DOUBLE => each::<8>(bytes, f64::from_le_bytes),
        _ => Vec::new(),
    }
}

/// Elements of the typed fields as numbers.
fn typed(tensor: &proto::Tensor) -> Vec<f64> {
    match tensor.data_type {
        dtype::FLOAT => tensor.float_data.iter().map(|&v| v.into()).collect(),
        dtype::DOUBLE => tensor.double_data.clone(),
        dtype::INT64 => tensor.int64_data.iter().map(|&v| v as f64).collect(),
        dtype::UINT32 | dtype::UINT64 => tensor.uint64_data.iter().map(|&v| v as f64).collect(),
        dtype::FLOAT16 => tensor.int32_data.iter().map(|&v| half(v as u16)).collect(),
        dtype::BFLOAT16 => tensor.int32_data.iter().map(|&v| brain(v as u16)).collect(),
        dtype::BOOL => tensor.int32_data.iter().map(|&v| f64::from(u8::from(v != 0))).collect(),
        _ => tensor.int32_data.iter().map(|&v| v.into()).collect(),
    }
}

/// The value of a bfloat16: the upper half of a single.
fn brain(bits: u16) -> f64 {
    f32::from_bits(u32::from(bits) << 16).into()
}

/// The value of an IEEE half.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 31);
    let fraction = f64::from(bits & 1023);
    match exponent {
        0 => sign * fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => sign * f64::INFINITY,
        31 => f64::NAN,
        e => sign * (1024.0 + fraction) * 2f64.powi(e - 25),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_have_their_values() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2f64.powi(-24)), (0x7bff, 65504.0), (0x3555, 0.333251953125)]
        {
            assert_eq!(half(bits), value);
        }
        assert_eq!(half(0xfc00), f64::NEG_INFINITY);
        assert!(half(0x7e00).is_nan());
        assert_eq!((brain(0x3f80), brain(0xc040)), (1.0, -3.0));
    }

    #[test]
    fn raw_and_typed_elements_are_the_same_numbers() {
        let typed_ints =
            proto::Tensor { dims: vec![2], data_type: 7, int64_data: vec![-1, i64::MAX], ..Default::default() };
        let mut raw_ints = proto::Tensor { dims: vec![2], data_type: 7, ..Default::default() };
        raw_ints.raw_data = [(-1i64).to_le_bytes(), i64::MAX.to_le_bytes()].concat().into();
        let limits = Limits::default();
        let mut external = External::new(None, &limits, false);
        let a = known(&typed_ints, &limits, &mut external).unwrap();
        assert_eq!(a, known(&raw_ints, &limits, &mut external).unwrap());
        assert_eq!(a.integers().unwrap(), [-1, i64::MAX]);
        raw_ints.dims = vec![3];
        assert!(known(&raw_ints, &limits, &mut external).is_err());
    }
}
