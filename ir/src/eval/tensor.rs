//! Concrete tensors, and the borrowed views of them (and of constants) that the evaluator computes on.

use std::borrow::Cow;

use super::Fault;
use crate::graph::Const;
use crate::types::{Elem, TensorType};
use crate::verify::stored_len;

/// Elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Data {
    F32(Vec<f32>),
    Bool(Vec<u8>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
}

/// A concrete tensor: sizes (the batch is a number here) and row-major elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Data,
}

/// Borrowed elements.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slice<'a> {
    F32(&'a [f32]),
    Bool(&'a [u8]),
    U8(&'a [u8]),
    I8(&'a [i8]),
    I16(&'a [i16]),
    I32(&'a [i32]),
    I64(&'a [i64]),
}

/// Runs `$body` with `$xs` bound to the typed slice and wraps its vector in the same variant of [`Data`].
macro_rules! same_elem {
    ($slice:expr, $xs:ident => $body:expr) => {
        match $slice {
            Slice::F32($xs) => Data::F32($body),
            Slice::Bool($xs) => Data::Bool($body),
            Slice::U8($xs) => Data::U8($body),
            Slice::I8($xs) => Data::I8($body),
            Slice::I16($xs) => Data::I16($body),
            Slice::I32($xs) => Data::I32($body),
            Slice::I64($xs) => Data::I64($body),
        }
    };
}
pub(crate) use same_elem;

/// Runs `$body` with `$xs` bound to the typed slice.
macro_rules! any_elem {
    ($enum:ident, $data:expr, $xs:ident => $body:expr) => {
        match $data {
            $enum::F32($xs) => $body,
            $enum::Bool($xs) => $body,
            $enum::U8($xs) => $body,
            $enum::I8($xs) => $body,
            $enum::I16($xs) => $body,
            $enum::I32($xs) => $body,
            $enum::I64($xs) => $body,
        }
    };
}

/// Runs `$body` with `$xs` bound to the typed slice of integers, or fails for floats.
macro_rules! with_ints {
    ($slice:expr, $xs:ident => $body:expr) => {
        match $slice {
            Slice::F32(_) => Err(Fault::eval("an integer tensor is wanted, not f32")),
            Slice::Bool($xs) | Slice::U8($xs) => Ok($body),
            Slice::I8($xs) => Ok($body),
            Slice::I16($xs) => Ok($body),
            Slice::I32($xs) => Ok($body),
            Slice::I64($xs) => Ok($body),
        }
    };
}
pub(crate) use with_ints;

impl Data {
    /// Element type.
    pub fn elem(&self) -> Elem {
        match self {
            Data::F32(_) => Elem::F32,
            Data::Bool(_) => Elem::Bool,
            Data::U8(_) => Elem::U8,
            Data::I8(_) => Elem::I8,
            Data::I16(_) => Elem::I16,
            Data::I32(_) => Elem::I32,
            Data::I64(_) => Elem::I64,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        any_elem!(Data, self, xs => xs.len())
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as bytes, in the machine's order.
    pub fn as_bytes(&self) -> &[u8] {
        any_elem!(Data, self, xs => bytemuck::cast_slice(xs))
    }

    /// No elements of that type.
    pub(crate) fn empty(elem: Elem) -> Data {
        match elem {
            Elem::F32 => Data::F32(Vec::new()),
            Elem::Bool => Data::Bool(Vec::new()),
            Elem::U8 => Data::U8(Vec::new()),
            Elem::I8 => Data::I8(Vec::new()),
            Elem::I16 => Data::I16(Vec::new()),
            Elem::I32 => Data::I32(Vec::new()),
            Elem::I64 => Data::I64(Vec::new()),
        }
    }

    /// Integers of type `elem`, saturated to its range; floats are rounded to nearest.
    pub fn from_ints(elem: Elem, values: impl IntoIterator<Item = i64>) -> Data {
        let values = values.into_iter();
        let (lo, hi) = elem.range().unwrap_or((i64::MIN, i64::MAX));
        match elem {
            Elem::F32 => Data::F32(values.map(|v| v as f32).collect()),
            Elem::Bool => Data::Bool(values.map(|v| v.clamp(lo, hi) as u8).collect()),
            Elem::U8 => Data::U8(values.map(|v| v.clamp(lo, hi) as u8).collect()),
            Elem::I8 => Data::I8(values.map(|v| v.clamp(lo, hi) as i8).collect()),
            Elem::I16 => Data::I16(values.map(|v| v.clamp(lo, hi) as i16).collect()),
            Elem::I32 => Data::I32(values.map(|v| v.clamp(lo, hi) as i32).collect()),
            Elem::I64 => Data::I64(values.collect()),
        }
    }

    /// `values` as integers of type `elem`, saturated to its range.
    pub(crate) fn narrow(elem: Elem, values: Vec<i32>) -> Data {
        match elem {
            Elem::I32 => Data::I32(values),
            _ => Data::from_ints(elem, values.into_iter().map(i64::from)),
        }
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        match self {
            Data::F32(v) => Slice::F32(v),
            Data::Bool(v) => Slice::Bool(v),
            Data::U8(v) => Slice::U8(v),
            Data::I8(v) => Slice::I8(v),
            Data::I16(v) => Slice::I16(v),
            Data::I32(v) => Slice::I32(v),
            Data::I64(v) => Slice::I64(v),
        }
    }
}

/// No elements.
impl Default for Tensor {
    fn default() -> Tensor {
        Tensor { shape: vec![0], data: Data::empty(Elem::F32) }
    }
}

impl Tensor {
    /// A tensor; `None` when the number of elements is not that of the shape.
    pub fn new(shape: &[usize], data: Data) -> Option<Tensor> {
        (elements(shape) == Some(data.len())).then(|| Tensor { shape: shape.to_vec(), data })
    }

    /// A float tensor.
    ///
    /// # Panics
    /// When the number of elements is not that of the shape.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Tensor {
        Tensor::new(shape, Data::F32(values)).expect("as many values as the shape has elements")
    }

    /// An integer tensor; values outside the range of `elem` saturate.
    ///
    /// # Panics
    /// When the number of elements is not that of the shape.
    pub fn ints(elem: Elem, shape: &[usize], values: impl IntoIterator<Item = i64>) -> Tensor {
        Tensor::new(shape, Data::from_ints(elem, values)).expect("as many values as the shape has elements")
    }

    /// A constant as a tensor, out of its packed layout if it has one; `Err` when its bytes are not what its type says.
    pub fn from_const(c: &Const) -> Result<Tensor, String> {
        let (shape, stored) = Stored::of(c).map_err(|f| f.message)?;
        Ok(Tensor { shape, data: same_elem!(stored.slice(), xs => xs.to_vec()) })
    }

    /// A constant of type `ty` with these elements.
    pub fn to_const(&self, name: impl Into<String>, ty: TensorType) -> Const {
        Const { name: name.into(), ty, layout: None, data: bytes::Bytes::copy_from_slice(self.data.as_bytes()) }
    }

    /// Element type.
    pub fn elem(&self) -> Elem {
        self.data.elem()
    }

    /// The elements of a float tensor.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub fn as_f32_mut(&mut self) -> Option<&mut [f32]> {
        match &mut self.data {
            Data::F32(values) => Some(values),
            _ => None,
        }
    }

    /// The elements as `i64`; those of a float tensor are truncated.
    pub fn to_ints(&self) -> Vec<i64> {
        match &self.data {
            Data::F32(v) => v.iter().map(|&x| x as i64).collect(),
            Data::Bool(v) | Data::U8(v) => v.iter().map(|&x| x.into()).collect(),
            Data::I8(v) => v.iter().map(|&x| x.into()).collect(),
            Data::I16(v) => v.iter().map(|&x| x.into()).collect(),
            Data::I32(v) => v.iter().map(|&x| x.into()).collect(),
            Data::I64(v) => v.clone(),
        }
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { shape: &self.shape, data: self.data.slice() }
    }
}

/// A borrowed tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub shape: &'a [usize],
    pub data: Slice<'a>,
}

impl<'a> View<'a> {
    pub fn elem(&self) -> Elem {
        match self.data {
            Slice::F32(_) => Elem::F32,
            Slice::Bool(_) => Elem::Bool,
            Slice::U8(_) => Elem::U8,
            Slice::I8(_) => Elem::I8,
            Slice::I16(_) => Elem::I16,
            Slice::I32(_) => Elem::I32,
            Slice::I64(_) => Elem::I64,
        }
    }

    pub fn len(&self) -> usize {
        any_elem!(Slice, self.data, xs => xs.len())
    }

    /// Size of the last dimension; 1 for a scalar.
    pub fn last(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    pub fn f32(&self) -> Result<&'a [f32], Fault> {
        match self.data {
            Slice::F32(xs) => Ok(xs),
            _ => Err(Fault::eval(format!("a float tensor is wanted, not {}", self.elem()))),
        }
    }

    /// The elements as `i32`, borrowed when they are stored so.
    pub fn i32(&self) -> Result<Cow<'a, [i32]>, Fault> {
        fn widen<T: Copy + Into<i32>>(xs: &[T]) -> Cow<'static, [i32]> {
            xs.iter().map(|&x| x.into()).collect()
        }
        match self.data {
            Slice::I32(xs) => Ok(Cow::Borrowed(xs)),
            Slice::Bool(xs) | Slice::U8(xs) => Ok(widen(xs)),
            Slice::I8(xs) => Ok(widen(xs)),
            Slice::I16(xs) => Ok(widen(xs)),
            Slice::F32(_) | Slice::I64(_) => {
                Err(Fault::eval(format!("an integer tensor of at most 32 bits is wanted, not {}", self.elem())))
            }
        }
    }

    /// The elements as `i64`.
    pub fn i64(&self) -> Result<Vec<i64>, Fault> {
        #[allow(clippy::useless_conversion)]
        {
            with_ints!(self.data, xs => xs.iter().map(|&x| i64::from(x)).collect())
        }
    }
}

/// Number of elements of a shape; `None` on overflow.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// The elements of a constant: borrowed from its bytes when they are aligned and plain.
pub(crate) enum Stored<'a> {
    F32(Cow<'a, [f32]>),
    Bool(Cow<'a, [u8]>),
    U8(Cow<'a, [u8]>),
    I8(Cow<'a, [i8]>),
    I16(Cow<'a, [i16]>),
    I32(Cow<'a, [i32]>),
    I64(Cow<'a, [i64]>),
}

impl<'a> Stored<'a> {
    /// Shape and elements of a constant.
    pub fn of(c: &'a Const) -> Result<(Vec<usize>, Stored<'a>), Fault> {
        let malformed = |what: &str| Fault::eval(format!("constant `{}` {what}", c.name));
        let shape = c.ty.shape.as_fixed().ok_or_else(|| malformed("has a shape that depends on the batch"))?;
        let count = elements(&shape).ok_or_else(|| malformed("has too many elements"))?;
        if c.layout.is_some() {
            let plain = unpack(c).ok_or_else(|| malformed("does not fit its packed layout"))?;
            return Ok((
                shape,
                if c.ty.elem == Elem::I8 { Stored::I8(signed(plain)) } else { Stored::U8(plain.into()) },
            ));
        }
        if count.checked_mul(c.ty.elem.bytes()) != Some(c.data.len()) {
            return Err(malformed("does not have the bytes its type wants"));
        }
        Ok((shape, Stored::plain(c)))
    }

    fn plain(c: &'a Const) -> Stored<'a> {
        match c.ty.elem {
            Elem::F32 => Stored::F32(c.values()),
            Elem::Bool => Stored::Bool(c.values()),
            Elem::U8 => Stored::U8(c.values()),
            Elem::I8 => Stored::I8(c.values()),
            Elem::I16 => Stored::I16(c.values()),
            Elem::I32 => Stored::I32(c.values()),
            Elem::I64 => Stored::I64(c.values()),
        }
    }

    pub fn slice(&self) -> Slice<'_> {
        match self {
            Stored::F32(v) => Slice::F32(v),
            Stored::Bool(v) => Slice::Bool(v),
            Stored::U8(v) => Slice::U8(v),
            Stored::I8(v) => Slice::I8(v),
            Stored::I16(v) => Slice::I16(v),
            Stored::I32(v) => Slice::I32(v),
            Stored::I64(v) => Slice::I64(v),
        }
    }
}

fn signed(bytes: Vec<u8>) -> Cow<'static, [i8]> {
    bytes.into_iter().map(|b| b as i8).collect()
}

/// The row-major bytes of a packed constant; `None` when its type is not one that can be packed or the length is wrong.
fn unpack(c: &Const) -> Option<Vec<u8>> {
    if stored_len(&c.ty, c.layout).ok()? != c.data.len() {
        return None;
    }
    c.row_major()
}
