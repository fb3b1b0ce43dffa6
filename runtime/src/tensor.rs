//! Tensors at the door of a session: element type, shape and bytes that always agree with each other.
//!
//! Bytes are in native order, elements in row-major order; no alignment is asked of them.

use std::fmt;

use crate::error::RuntimeError;

/// Type of one tensor element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// 32-bit IEEE float.
    F32,
    /// Signed byte.
    I8,
    /// Unsigned byte.
    U8,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
}

impl Elem {
    /// Size of one element in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Elem::I8 | Elem::U8 => 1,
            Elem::I16 | Elem::U16 => 2,
            Elem::F32 | Elem::I32 => 4,
            Elem::I64 => 8,
        }
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Elem::F32 => "f32",
            Elem::I8 => "i8",
            Elem::U8 => "u8",
            Elem::I16 => "i16",
            Elem::U16 => "u16",
            Elem::I32 => "i32",
            Elem::I64 => "i64",
        })
    }
}

mod sealed {
    /// Only types without padding for which every bit pattern is a value may implement this.
    pub trait Plain: Copy + Default + 'static {
        fn read(bytes: &[u8]) -> Self;
        fn write(self, bytes: &mut [u8]);
    }
}
pub(crate) use sealed::Plain;

/// A Rust number that is the element of a tensor.
pub trait Element: Plain {
    /// The element type it stands for.
    const ELEM: Elem;
}

macro_rules! elements {
    ($($number:ty => $elem:ident),* $(,)?) => {$(
        impl Plain for $number {
            fn read(bytes: &[u8]) -> Self {
                bytes.try_into().map(<$number>::from_ne_bytes).unwrap_or_default()
            }
            fn write(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_ne_bytes());
            }
        }
        impl Element for $number {
            const ELEM: Elem = Elem::$elem;
        }
    )*};
}

elements! { f32 => F32, i8 => I8, u8 => U8, i16 => I16, u16 => U16, i32 => I32, i64 => I64 }

/// A tensor borrowed for reading.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    elem: Elem,
    dims: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Views `bytes` as a tensor.
    ///
    /// # Errors
    /// [`RuntimeError::BufferLength`] or [`RuntimeError::ShapeOverflow`] when shape and bytes disagree.
    pub fn new(elem: Elem, dims: &'a [usize], bytes: &'a [u8]) -> Result<Self, RuntimeError> {
        check_length(elem, dims, bytes.len())?;
        Ok(Self { elem, dims, bytes })
    }

    /// Views a slice of numbers as a tensor.
    ///
    /// # Errors
    /// As [`TensorView::new`].
    pub fn of<T: Element>(dims: &'a [usize], numbers: &'a [T]) -> Result<Self, RuntimeError> {
        // SAFETY: `Plain` types have no padding, so all their bytes are initialised; `u8` needs no alignment.
        let bytes = unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(numbers)) };
        Self::new(T::ELEM, dims, bytes)
    }

    /// Element type.
    pub fn elem(&self) -> Elem {
        self.elem
    }

    /// Shape, the batch included.
    pub fn dims(&self) -> &'a [usize] {
        self.dims
    }

    /// Element bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// A tensor borrowed for writing.
#[derive(Debug)]
pub struct TensorViewMut<'a> {
    elem: Elem,
    dims: &'a [usize],
    bytes: &'a mut [u8],
}

impl<'a> TensorViewMut<'a> {
    /// Views `bytes` as a tensor to be written.
    ///
    /// # Errors
    /// [`RuntimeError::BufferLength`] or [`RuntimeError::ShapeOverflow`] when shape and bytes disagree.
    pub fn new(elem: Elem, dims: &'a [usize], bytes: &'a mut [u8]) -> Result<Self, RuntimeError> {
        check_length(elem, dims, bytes.len())?;
        Ok(Self { elem, dims, bytes })
    }

    /// Views a slice of numbers as a tensor to be written.
    ///
    /// # Errors
    /// As [`TensorViewMut::new`].
    pub fn of<T: Element>(dims: &'a [usize], numbers: &'a mut [T]) -> Result<Self, RuntimeError> {
        let len = size_of_val(numbers);
        // SAFETY: `Plain` types have no padding and every bit pattern is a value of theirs, so writing bytes is sound.
        let bytes = unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast::<u8>(), len) };
        Self::new(T::ELEM, dims, bytes)
    }

    /// Element type.
    pub fn elem(&self) -> Elem {
        self.elem
    }

    /// Shape, the batch included.
    pub fn dims(&self) -> &'a [usize] {
        self.dims
    }

    /// Element bytes for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

/// A tensor that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    elem: Elem,
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    /// Makes a tensor of `bytes`.
    ///
    /// # Errors
    /// [`RuntimeError::BufferLength`] or [`RuntimeError::ShapeOverflow`] when shape and bytes disagree.
    pub fn new(elem: Elem, dims: Vec<usize>, bytes: Vec<u8>) -> Result<Self, RuntimeError> {
        check_length(elem, &dims, bytes.len())?;
        Ok(Self { elem, dims, bytes })
    }

    /// Makes a tensor of zeros.
    ///
    /// # Errors
    /// [`RuntimeError::ShapeOverflow`] when the shape is larger than the address space.
    pub fn zeros(elem: Elem, dims: Vec<usize>) -> Result<Self, RuntimeError> {
        let len = byte_len(elem, &dims)?;
        Ok(Self { elem, dims, bytes: vec![0; len] })
    }

    /// Makes a tensor of numbers.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn of<T: Element>(dims: Vec<usize>, numbers: &[T]) -> Result<Self, RuntimeError> {
        let bytes = TensorView::of(&dims, numbers)?.bytes().to_vec();
        Ok(Self { elem: T::ELEM, dims, bytes })
    }

    /// Element type.
    pub fn elem(&self) -> Elem {
        self.elem
    }

    /// Shape, the batch included.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Element bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The elements as numbers.
    ///
    /// # Errors
    /// [`RuntimeError::ElemMismatch`] when the elements are of another type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, RuntimeError> {
        if self.elem != T::ELEM {
            return Err(RuntimeError::ElemMismatch { expected: T::ELEM, given: self.elem });
        }
        Ok(self.bytes.chunks_exact(self.elem.bytes()).map(T::read).collect())
    }

    /// Borrows the tensor for reading.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { elem: self.elem, dims: &self.dims, bytes: &self.bytes }
    }

    /// Borrows the tensor for writing.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        TensorViewMut { elem: self.elem, dims: &self.dims, bytes: &mut self.bytes }
    }
}

/// Product of `dims` times the element size, or `None` beyond what a slice may span.
pub(crate) fn checked_byte_len(elem: Elem, dims: &[usize]) -> Option<usize> {
    let len = dims.iter().try_fold(elem.bytes(), |len, &dim| len.checked_mul(dim))?;
    isize::try_from(len).is_ok().then_some(len)
}

fn byte_len(elem: Elem, dims: &[usize]) -> Result<usize, RuntimeError> {
    checked_byte_len(elem, dims).ok_or_else(|| RuntimeError::ShapeOverflow { elem, dims: dims.to_vec() })
}

fn check_length(elem: Elem, dims: &[usize], given: usize) -> Result<(), RuntimeError> {
    let expected = byte_len(elem, dims)?;
    if given != expected {
        return Err(RuntimeError::BufferLength { elem, dims: dims.to_vec(), expected, given });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_match_the_shape() {
        let bytes = [0u8; 24];
        assert!(TensorView::new(Elem::F32, &[2, 3], &bytes).is_ok());
        let short = TensorView::new(Elem::F32, &[2, 3], &bytes[..23]).unwrap_err();
        assert_eq!(short.to_string(), "a f32 tensor of shape [2, 3] takes 24 bytes, 23 given");
        assert!(TensorView::new(Elem::I16, &[2, 3], &bytes).is_err());
        assert!(TensorViewMut::new(Elem::I32, &[7], &mut [0; 24]).is_err());
        assert!(Tensor::new(Elem::U8, vec![25], bytes.to_vec()).is_err());
    }

    #[test]
    fn shapes_that_overflow_are_refused() {
        let dims = [usize::MAX, 2];
        assert!(matches!(TensorView::new(Elem::U8, &dims, &[]), Err(RuntimeError::ShapeOverflow { .. })));
        assert!(matches!(Tensor::zeros(Elem::I64, vec![1 << 60]), Err(RuntimeError::ShapeOverflow { .. })));
    }

    #[test]
    fn numbers_survive_the_bytes() {
        let tensor = Tensor::of(vec![3], &[-1i16, 2, i16::MIN]).unwrap();
        assert_eq!(tensor.to_vec::<i16>().unwrap(), [-1, 2, i16::MIN]);
        assert!(matches!(tensor.to_vec::<u16>(), Err(RuntimeError::ElemMismatch { .. })));
    }

    #[test]
    fn a_scalar_has_one_element() {
        assert_eq!(Tensor::zeros(Elem::I32, vec![]).unwrap().bytes().len(), 4);
    }
}
