//! Tensor types: element type, shape with a symbolic batch, optional quantization.

use std::fmt;
use std::sync::Arc;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Elem {
    /// IEEE single precision.
    F32,
    /// Boolean, one byte.
    Bool,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Signed 16-bit integer.
    I16,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
}

impl Elem {
    /// Every element type, in declaration order.
    pub const ALL: [Elem; 7] = [Elem::F32, Elem::Bool, Elem::U8, Elem::I8, Elem::I16, Elem::I32, Elem::I64];

    /// Size of one element in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Elem::Bool | Elem::U8 | Elem::I8 => 1,
            Elem::I16 => 2,
            Elem::F32 | Elem::I32 => 4,
            Elem::I64 => 8,
        }
    }

    /// Name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Elem::F32 => "f32",
            Elem::Bool => "bool",
            Elem::U8 => "u8",
            Elem::I8 => "i8",
            Elem::I16 => "i16",
            Elem::I32 => "i32",
            Elem::I64 => "i64",
        }
    }

    /// The element type of that name in the text form.
    pub fn from_name(name: &str) -> Option<Elem> {
        Elem::ALL.into_iter().find(|e| e.name() == name)
    }

    /// Whether this is an integer type (`bool` is not).
    pub fn is_int(self) -> bool {
        !matches!(self, Elem::F32 | Elem::Bool)
    }

    /// Smallest and largest value of an integer type; `None` for `f32`.
    pub fn range(self) -> Option<(i64, i64)> {
        Some(match self {
            Elem::F32 => return None,
            Elem::Bool => (0, 1),
            Elem::U8 => (0, 255),
            Elem::I8 => (-128, 127),
            Elem::I16 => (i16::MIN.into(), i16::MAX.into()),
            Elem::I32 => (i32::MIN.into(), i32::MAX.into()),
            Elem::I64 => (i64::MIN, i64::MAX),
        })
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A real number with total order and bitwise equality, so that attributes and types can be hashed and compared.
#[derive(Clone, Copy, Debug)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for Real {}
impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}
impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Real {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
impl From<f64> for Real {
    fn from(v: f64) -> Real {
        Real(v)
    }
}

/// One dimension: `size`, or `size * N` where `N` is the batch, a run-time argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    /// Factor (of the batch, or alone).
    pub size: usize,
    /// Whether the batch is a factor too.
    pub batch: bool,
}

impl Dim {
    /// The batch itself.
    pub const N: Dim = Dim { size: 1, batch: true };

    /// A fixed dimension.
    pub const fn fixed(size: usize) -> Dim {
        Dim { size, batch: false }
    }

    /// The dimension for a batch of `n`.
    pub fn at(self, n: usize) -> usize {
        if self.batch { self.size * n } else { self.size }
    }

    /// The size, when the batch is not a factor.
    pub fn as_fixed(self) -> Option<usize> {
        (!self.batch).then_some(self.size)
    }

    /// Product; `None` on overflow or when the batch would be squared.
    pub fn times(self, other: Dim) -> Option<Dim> {
        if self.batch && other.batch {
            return None;
        }
        Some(Dim { size: self.size.checked_mul(other.size)?, batch: self.batch || other.batch })
    }

    /// Exact quotient; `None` when it is not a dimension.
    pub fn div_exact(self, other: Dim) -> Option<Dim> {
        if other.size == 0 || !self.size.is_multiple_of(other.size) || (other.batch && !self.batch) {
            return None;
        }
        Some(Dim { size: self.size / other.size, batch: self.batch && !other.batch })
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Dim {
        Dim::fixed(size)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.batch, self.size) {
            (false, n) => write!(f, "{n}"),
            (true, 1) => write!(f, "N"),
            (true, n) => write!(f, "{n}N"),
        }
    }
}

/// A shape, outermost dimension first; row-major storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// A shape without the batch.
    pub fn fixed(dims: &[usize]) -> Shape {
        Shape(dims.iter().map(|&d| Dim::fixed(d)).collect())
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Concrete sizes for a batch of `n`.
    pub fn at(&self, n: usize) -> Vec<usize> {
        self.0.iter().map(|d| d.at(n)).collect()
    }

    /// Number of elements as a (possibly batch-scaled) dimension; `None` on overflow or a squared batch.
    pub fn count(&self) -> Option<Dim> {
        self.0.iter().try_fold(Dim::fixed(1), |acc, &d| acc.times(d))
    }

    /// The sizes, when no dimension depends on the batch.
    pub fn as_fixed(&self) -> Option<Vec<usize>> {
        self.0.iter().map(|d| d.as_fixed()).collect()
    }

    /// The last dimension, when there is one and it is fixed.
    pub fn last_fixed(&self) -> Option<usize> {
        self.0.last().and_then(|d| d.as_fixed())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for d in &self.0 {
            write!(f, "{d}x")?;
        }
        Ok(())
    }
}

/// How integers stand for reals: `real = scale * (q - zero_point)`, per tensor or per index of one axis.
///
/// On the type of an integer value this is an annotation: integer ops compute on the integers alone, with explicit
/// multipliers; the verifier and `explain` use it to say what the integers mean.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Quant {
    /// One scale, or one for each index along `axis`.
    pub scale: Arc<[Real]>,
    /// Integer that stands for zero.
    pub zero_point: i32,
    /// Axis of per-channel scales; `None` for one scale.
    pub axis: Option<usize>,
}

impl Quant {
    /// One scale for the whole tensor.
    pub fn per_tensor(scale: f64, zero_point: i32) -> Quant {
        Quant { scale: Arc::from([Real(scale)]), zero_point, axis: None }
    }

    /// One scale for each index along `axis`.
    pub fn per_axis(scales: impl IntoIterator<Item = f64>, axis: usize, zero_point: i32) -> Quant {
        Quant { scale: scales.into_iter().map(Real).collect(), zero_point, axis: Some(axis) }
    }

    /// The scale when there is only one.
    pub fn single(&self) -> Option<f64> {
        self.axis.is_none().then(|| self.scale.first().map(|s| s.0)).flatten()
    }

    /// The scale at channel `c` (any `c` for a per-tensor scale).
    pub fn scale_at(&self, c: usize) -> f64 {
        if self.axis.is_some() { self.scale[c].0 } else { self.scale[0].0 }
    }
}

/// Element type, shape and, for quantized values, what the integers mean.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorType {
    /// Element type.
    pub elem: Elem,
    /// Shape.
    pub shape: Shape,
    /// Quantization of integer values.
    pub quant: Option<Quant>,
}

impl TensorType {
    /// A type without quantization.
    pub fn new(elem: Elem, shape: Shape) -> TensorType {
        TensorType { elem, shape, quant: None }
    }

    /// A float tensor.
    pub fn f32(shape: Shape) -> TensorType {
        TensorType::new(Elem::F32, shape)
    }

    /// The same type with a quantization.
    pub fn with_quant(mut self, quant: Quant) -> TensorType {
        self.quant = Some(quant);
        self
    }

    /// The same type with another shape.
    pub fn with_shape(&self, shape: Shape) -> TensorType {
        TensorType { elem: self.elem, shape, quant: self.quant.clone() }
    }

    /// Size in bytes, as a (possibly batch-scaled) dimension; `None` on overflow.
    pub fn bytes(&self) -> Option<Dim> {
        self.shape.count()?.times(Dim::fixed(self.elem.bytes()))
    }
}

/// Short form without scale lists, for messages; the printer writes the full form.
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor<{}{}", self.shape, self.elem)?;
        match &self.quant {
            Some(q) if q.axis.is_some() => write!(f, ", q(per axis, {})", q.zero_point)?,
            Some(q) => write!(f, ", q({:e}, {})", q.scale.first().map_or(f64::NAN, |s| s.0), q.zero_point)?,
            None => {}
        }
        write!(f, ">")
    }
}
