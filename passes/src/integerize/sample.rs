//! Errors of integer forms, measured at compile time: both sides evaluated by `ir::eval` on a fixed sample.

use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Const, Elem, Module, Op, Quant, Shape, Stage, TensorType, ValueId};

use super::report::Error;
use super::rule::Ops;

/// Rows of a sample. Enough for a stable figure, few enough to cost a millisecond a site.
const ROWS: usize = 8;

/// A fixed sequence of normally distributed numbers (sum of twelve uniforms), the same on every machine.
pub struct Normal(u64);

impl Normal {
    /// The sequence of that seed.
    pub fn new(seed: u64) -> Normal {
        Normal(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The next number.
    pub fn next(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// An integer vector constant.
pub enum Vector<'a> {
    /// 32-bit.
    I32(&'a [i32]),
    /// 64-bit.
    I64(&'a [i64]),
}

/// One-input evaluation: `build` adds nodes to a module with that input and returns the result.
fn evaluate(
    ty: TensorType,
    input: Data,
    build: impl FnOnce(&mut Module, ValueId) -> Option<ValueId>,
) -> Option<Vec<f64>> {
    let shape = ty.shape.as_fixed()?;
    let mut module = Module::new("sample", Stage::Quantize);
    let x = module.input("x", ty);
    let y = build(&mut module, x)?;
    module.output("y", y);
    let out = eval::run(&module, &[Tensor { shape, data: input }]).ok()?.pop()?;
    Some(numbers(&out.data))
}

fn numbers(data: &Data) -> Vec<f64> {
    match data {
        Data::F32(v) => v.iter().map(|&x| x.into()).collect(),
        Data::Bool(v) | Data::U8(v) => v.iter().map(|&x| x.into()).collect(),
        Data::I8(v) => v.iter().map(|&x| x.into()).collect(),
        Data::I16(v) => v.iter().map(|&x| x.into()).collect(),
        Data::I32(v) => v.iter().map(|&x| x.into()).collect(),
        Data::I64(v) => v.iter().map(|&x| x as f64).collect(),
    }
}

/// Every value of an 8-bit type, in the order of a table.
fn bytes_of(elem: Elem) -> Option<Data> {
    match elem {
        Elem::U8 => Some(Data::U8((0..=255).collect())),
        Elem::I8 => Some(Data::I8((-128..=127).collect())),
        _ => None,
    }
}

/// The 256 correctly rounded results of `quantize(op(dequantize(x)))` for an 8-bit `x`.
pub fn table_of(op: &Op, x: &TensorType, to: Elem, target: &Quant) -> Option<Vec<i64>> {
    table_of_function(x, to, target, |m, real| m.push(op.clone(), &[real], None).ok())
}

/// The same for a function that `build` adds to a module, given its operand of 256 elements.
pub fn table_of_function(
    x: &TensorType,
    to: Elem,
    target: &Quant,
    build: impl FnOnce(&mut Module, ValueId) -> Option<ValueId>,
) -> Option<Vec<i64>> {
    let quant = x.quant.clone().filter(|q| q.axis.is_none())?;
    let ty = TensorType::new(x.elem, Shape::fixed(&[256])).with_quant(quant);
    let entries = evaluate(ty, bytes_of(x.elem)?, |m, x| {
        let real = m.push(Op::Dequantize {}, &[x], None).ok()?;
        let y = build(m, real)?;
        m.push_quant(Op::Quantize { to }, &[y], target.clone(), None).ok()
    })?;
    Some(entries.into_iter().map(|v| v as i64).collect())
}

impl Ops for Module {
    type Value = ValueId;

    fn op(&mut self, op: Op, quant: Option<Quant>, operands: &[ValueId]) -> Option<ValueId> {
        match quant {
            Some(quant) => self.push_quant(op, operands, quant, None).ok(),
            None => self.push(op, operands, None).ok(),
        }
    }

    fn vector(&mut self, what: &str, values: &[i32]) -> ValueId {
        self.constant(Const::new(what, TensorType::new(Elem::I32, Shape::fixed(&[values.len()])), values))
    }

    fn halves(&mut self, what: &str, values: &[i16]) -> ValueId {
        self.constant(Const::new(what, TensorType::new(Elem::I16, Shape::fixed(&[values.len()])), values))
    }
}

/// Largest distance of an integer form from the correctly rounded results of an op over all 256 inputs. The form is told the
/// type of the sample, whose shape is not that of `x`.
pub fn error_over_bytes(
    op: &Op,
    x: &TensorType,
    (to, target): (Elem, &Quant),
    form: impl FnOnce(&mut Module, ValueId, &TensorType) -> Option<ValueId>,
) -> Option<Error> {
    let truth = table_of(op, x, to, target)?;
    let ty = TensorType::new(x.elem, Shape::fixed(&[256])).with_quant(x.quant.clone()?);
    let got = evaluate(ty.clone(), bytes_of(x.elem)?, |m, v| form(m, v, &ty))?;
    Some(Error::Steps(largest_distance(&got, truth.iter().map(|&t| t as f64))))
}

/// The same over a sixteenth of the values of 16 bits.
pub fn error_over_halves(
    op: &Op,
    x: &TensorType,
    (to, target): (Elem, &Quant),
    form: impl FnOnce(&mut Module, ValueId, &TensorType) -> Option<ValueId>,
) -> Option<Error> {
    let values: Vec<i16> = (i16::MIN..=i16::MAX).step_by(16).collect();
    let ty = TensorType::new(Elem::I16, Shape::fixed(&[values.len()])).with_quant(x.quant.clone()?);
    let truth = evaluate(ty.clone(), Data::I16(values.clone()), |m, x| {
        let real = m.push(Op::Dequantize {}, &[x], None).ok()?;
        let y = m.push(op.clone(), &[real], None).ok()?;
        m.push_quant(Op::Quantize { to }, &[y], target.clone(), None).ok()
    })?;
    let got = evaluate(ty.clone(), Data::I16(values), |m, v| form(m, v, &ty))?;
    Some(Error::Steps(largest_distance(&got, truth.into_iter())))
}

/// The results of an elementwise op.
pub fn apply(op: &Op, points: &[f64]) -> Option<Vec<f64>> {
    let ty = TensorType::f32(Shape::fixed(&[points.len()]));
    let points = points.iter().map(|&x| x as f32).collect();
    evaluate(ty, Data::F32(points), |m, x| m.push(op.clone(), &[x], None).ok())
}

fn scalar(m: &mut Module, value: i32) -> ValueId {
    m.vector("scalar", &[value])
}

fn largest_distance(got: &[f64], truth: impl Iterator<Item = f64>) -> f64 {
    got.iter().zip(truth).map(|(g, t)| (g - t).abs()).fold(0.0, f64::max)
}

/// A float LayerNorm over an `i16` input.
pub struct LayerNorm<'a> {
    /// Per channel.
    pub gamma: &'a [f64],
    /// Per channel.
    pub beta: &'a [f64],
    /// Added to the variance.
    pub epsilon: f64,
    /// Whether the mean is subtracted.
    pub centred: bool,
    /// Scale of the input.
    pub scale: f64,
}

impl LayerNorm<'_> {
    /// Largest distance of an integer form from the real result (unclamped rounding not counted), in output steps. Rows are
    /// normal with a hundredth to a tenth of the input's range, one with an outlier channel.
    pub fn error_of(&self, op: &Op, gamma: Vector<'_>, beta: Vector<'_>, target: &Quant) -> Option<Error> {
        let channels = self.gamma.len();
        let mut normal = Normal::new(1);
        let rows: Vec<i16> = (0..ROWS * channels)
            .map(|i| {
                let (row, channel) = (i / channels, i % channels);
                let spread = if row % 2 == 0 { 327.0 } else { 3276.0 };
                let outlier = if row == ROWS - 1 && channel == 0 { 8.0 } else { 1.0 };
                (normal.next() * spread * outlier).clamp(-32767.0, 32767.0) as i16
            })
            .collect();
        let ty = TensorType::new(Elem::I16, Shape::fixed(&[ROWS, channels]));
        let got = evaluate(ty, Data::I16(rows.clone()), |m, x| {
            let gamma = vector(m, gamma);
            let beta = vector(m, beta);
            m.push(op.clone(), &[x, gamma, beta], None).ok()
        })?;
        let (lo, hi) = match op {
            Op::IntLayerNorm { to, .. } | Op::IntShiftLayerNorm { to, .. } => to.range()?,
            _ => return None,
        };
        let step = target.single()?;
        let truth = rows
            .chunks(channels)
            .flat_map(|row| self.float_row(row))
            .map(|y| (y / step + f64::from(target.zero_point)).clamp(lo as f64, hi as f64));
        // the half step of correct rounding is nobody's error
        Some(Error::Steps((largest_distance(&got, truth) - 0.5).max(0.0)))
    }

    fn float_row(&self, row: &[i16]) -> Vec<f64> {
        let count = row.len() as f64;
        let x: Vec<f64> = row.iter().map(|&v| f64::from(v) * self.scale).collect();
        let mean = if self.centred { x.iter().sum::<f64>() / count } else { 0.0 };
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        let deviation = (variance + self.epsilon).sqrt();
        x.iter().enumerate().map(|(c, v)| (v - mean) / deviation * self.gamma[c] + self.beta[c]).collect()
    }
}

fn vector(m: &mut Module, values: Vector<'_>) -> ValueId {
    match values {
        Vector::I32(v) => m.vector("v", v),
        Vector::I64(v) => m.constant(Const::new("v", TensorType::new(Elem::I64, Shape::fixed(&[v.len()])), v)),
    }
}

/// Sample scores with a standard deviation of two, as integers of that scale, and the float softmax of them.
fn scores(ty: &TensorType) -> Option<(TensorType, Vec<i32>, Vec<f64>)> {
    let scale = ty.quant.as_ref()?.single()?;
    let length = ty.shape.last_fixed()?;
    let mut normal = Normal::new(2);
    // However small the scale, differences of two scores fit 32 bits.
    const LARGEST: f64 = (1 << 29) as f64;
    let one = |x: f64| (2.0 * x / scale).round().clamp(-LARGEST, LARGEST) as i32;
    let ints: Vec<i32> = (0..ROWS * length).map(|_| one(normal.next())).collect();
    let truth = ints.chunks(length).flat_map(|row| {
        let top = row.iter().max().copied().unwrap_or(0);
        let e: Vec<f64> = row.iter().map(|&x| (f64::from(x - top) * scale).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(move |x| x / sum)
    });
    let truth = truth.collect();
    Some((TensorType::new(Elem::I32, Shape::fixed(&[ROWS, length])), ints, truth))
}

/// Relative error of the map that `int.exp` yields once its rows are divided by their sums. A second table, when there is
/// one, is that of the low bytes.
pub fn exp_error(op: &Op, [table, low]: [&[i32]; 2], ty: &TensorType) -> Option<Error> {
    let (sample, ints, truth) = scores(ty)?;
    let length = ty.shape.last_fixed()?;
    let exponentials = |table: &[i32]| {
        evaluate(sample.clone(), Data::I32(ints.clone()), |m, x| {
            let table = vector(m, Vector::I32(table));
            m.push(op.clone(), &[x, table], None).ok()
        })
    };
    let mut got = exponentials(table)?;
    if !low.is_empty() {
        got = got.iter().zip(exponentials(low)?).map(|(high, low)| 256.0 * high + low).collect();
    }
    let normalised = got.chunks(length).flat_map(|row| {
        let sum: f64 = row.iter().sum();
        row.iter().map(move |e| e / sum)
    });
    Some(relative(normalised, &truth))
}

/// Relative error of Shiftmax behind its requantize.
pub fn shiftmax_error(op: &Op, ty: &TensorType, multiplier: i32, shift: u32) -> Option<Error> {
    let (sample, ints, truth) = scores(ty)?;
    let Op::IntShiftmax { bits, .. } = op else { return None };
    let unit = 2f64.powi(1 - *bits as i32);
    let got = evaluate(sample, Data::I32(ints), |m, x| {
        let multiplier = scalar(m, multiplier);
        let requant = Op::IntRequant { axis: 1, x_zero: 0, shift, zero_point: 0, to: Elem::I16 };
        let narrow = m.push(requant, &[x, multiplier], None).ok()?;
        m.push(op.clone(), &[narrow], None).ok()
    })?;
    Some(relative(got.iter().map(|v| v * unit), &truth))
}

fn relative(got: impl Iterator<Item = f64>, truth: &[f64]) -> Error {
    let noise: f64 = got.zip(truth).map(|(g, t)| (g - t).powi(2)).sum();
    let signal: f64 = truth.iter().map(|t| t * t).sum();
    Error::Relative((noise / signal).sqrt())
}
