//! `QuantizeLinear`, `DequantizeLinear`, and how the integers of a model enter the module: as values whose type says what
//! they stand for, between `quantize` and `dequantize`.

use vitc_ir::{Elem, Op, Quant, Real, Shape, TensorType, ValueId};

use super::Table;
use crate::call::Call;
use crate::import::Slot;
use crate::known::{Kind, Known, Linear};
use crate::problem::{Fallible, Problem, invalid, unsupported};
use crate::proto::dtype;
use crate::tensor::{self, Integers};

pub(super) const OPS: Table = &[("DequantizeLinear", dequantize_linear), ("QuantizeLinear", quantize_linear)];

/// The operands of a node that hold integers, their scale (one where there is none) and their zero point.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) x: usize,
    pub(super) scale: Option<usize>,
    pub(super) zero: usize,
    /// Along which scales run when there are several.
    pub(super) axis: i64,
}

impl At {
    /// Integers, scale and zero point in a row, as most ops have them.
    pub(super) fn row(x: usize) -> At {
        At { x, scale: Some(x + 1), zero: x + 2, axis: -1 }
    }

    pub(super) fn along(self, axis: i64) -> At {
        At { axis, ..self }
    }
}

/// How integers stand for reals, in terms of the module's element type.
struct Grid {
    scale: Vec<f64>,
    zero: Vec<i64>,
    axis: Option<usize>,
}

impl Grid {
    /// The quantization, when all channels have one zero point.
    fn quant(&self) -> Option<Quant> {
        let first = *self.zero.first()?;
        let zero_point = i32::try_from(first).ok().filter(|_| self.zero.iter().all(|&z| z == first))?;
        match self.axis {
            Some(axis) => Some(Quant::per_axis(self.scale.iter().copied(), axis, zero_point)),
            None => Some(Quant::per_tensor(*self.scale.first()?, zero_point)),
        }
    }

    fn scale_at(&self, channel: usize) -> f64 {
        self.scale.get(channel).or(self.scale.first()).copied().unwrap_or(1.0)
    }

    fn zero_at(&self, channel: usize) -> i64 {
        self.zero.get(channel).or(self.zero.first()).copied().unwrap_or(0)
    }
}

fn dequantize_linear(call: &mut Call<'_, '_>) -> Fallible<()> {
    let at = At::row(0).along(call.int_or("axis", 1)?);
    if let Some(size) = block_size(call)? {
        let value = read_blocks(call, at, size)?;
        call.give_value(value);
        return Ok(());
    }
    if let Some(single) = single_constant(call, at)? {
        call.give_known(single);
        return Ok(());
    }
    let value = read(call, at)?;
    call.give_value(value);
    Ok(())
}

fn block_size(call: &Call<'_, '_>) -> Fallible<Option<usize>> {
    match usize::try_from(call.int_or("block_size", 0)?) {
        Ok(0) => Ok(None),
        Ok(size) => Ok(Some(size)),
        Err(_) => Err(invalid("`block_size` is negative")),
    }
}

fn blocks_of_activations() -> Problem {
    unsupported("blocks of activations that have a scale each are not supported")
        .help("quantize activations with one scale for all")
}

/// Constants of which every `size` elements along the axis have a scale of their own, as floats: no integer product takes them
/// as they are, so the passes quantize them anew, with a scale a channel. The module's notes count them.
fn read_blocks(call: &mut Call<'_, '_>, at: At, size: usize) -> Fallible<ValueId> {
    let slot = call.slot(at.x)?;
    if slot.value.is_some() {
        return Err(blocks_of_activations());
    }
    let data_type = type_of(call, &slot).or(zero_type(call, at)?).unwrap_or(dtype::INT32);
    let integers = integers_of(call, at.x, &slot, data_type)?;
    let axis = call.axis(at.axis, integers.dims.len())?;
    let blocks = Blocks::of(&integers.dims, axis, size).ok_or_else(|| invalid("the axis of blocks"))?;
    let mut wrong = Vec::new();
    let scales = scales(call, at, &mut wrong)?;
    let zeros = match call.name(at.zero) {
        Some(_) => call.content(at.zero, "the zero point")?.integers()?,
        None => vec![0; blocks.count],
    };
    for (what, given) in [("scales", scales.len()), ("zero points", zeros.len())] {
        if given != blocks.count {
            wrong.push(format!("{given} {what} for {} blocks of {size}", blocks.count));
        }
    }
    if !wrong.is_empty() {
        return Err(invalid(wrong.join("; ")));
    }
    let shift = tensor::held_as(data_type).map_or(0, |(_, shift)| shift);
    let values = numbers(&integers);
    call.importer.spend(values.len())?;
    let grids: Vec<(f64, i64)> = scales.into_iter().zip(zeros).collect();
    let real = |(i, q): (usize, &i64)| {
        let (scale, zero) = grids.get(blocks.at(i)).copied().unwrap_or((1.0, 0));
        ((q - zero - shift) as f64 * scale) as f32
    };
    let data: Vec<u8> = values.iter().enumerate().flat_map(|i| real(i).to_le_bytes()).collect();
    let notes = &mut call.importer.module.meta;
    let before = notes.get(BLOCKS_KEY).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
    notes.insert(BLOCKS_KEY.into(), (before + 1).to_string());
    let name = shortened(call, at.x);
    Ok(call.importer.constant(&name, Shape::fixed(&integers.dims), data.into()))
}

/// Key of the note of how many constants had a scale for each block, and are quantized anew.
const BLOCKS_KEY: &str = "onnx.blocks_quantized_anew";

/// Where the scales of blocks along an axis are: the shape of the scales is that of the integers but for the axis.
struct Blocks {
    size: usize,
    /// Elements along the axis, and behind each of them.
    along: usize,
    inner: usize,
    /// Blocks along the axis.
    per_row: usize,
    count: usize,
}

impl Blocks {
    /// `None` where there is no such axis.
    fn of(dims: &[usize], axis: usize, size: usize) -> Option<Blocks> {
        let (outer, rest) = dims.split_at_checked(axis)?;
        let (&along, inner) = rest.split_first()?;
        let (outer, inner): (usize, usize) = (outer.iter().product(), inner.iter().product());
        let per_row = along.div_ceil(size);
        Some(Blocks { size, along, inner, per_row, count: outer * per_row * inner })
    }

    /// The block of an element.
    fn at(&self, i: usize) -> usize {
        let (row, j) = (i / self.inner, i % self.inner);
        let (outer, a) = (row / self.along, row % self.along);
        (outer * self.per_row + a / self.size) * self.inner + j
    }
}

/// The content of a constant of one element: a value to pad with, a bound, a factor that some op has to know.
fn single_constant(call: &mut Call<'_, '_>, at: At) -> Fallible<Option<Known>> {
    let slot = call.slot(at.x)?;
    let shape = call.shape(at.x)?;
    if slot.value.is_some() || shape.count().and_then(|c| c.as_fixed()) != Some(1) {
        return Ok(None);
    }
    let data_type = type_of(call, &slot).unwrap_or(dtype::INT32);
    if tensor::held_as(data_type).is_none() {
        return Ok(None);
    }
    let grid = grid(call, at, data_type, &shape)?;
    let integers = integers_of(call, at.x, &slot, data_type)?;
    let integer = numbers(&integers).first().copied().unwrap_or(0);
    let real = (integer - grid.zero_at(0)) as f64 * grid.scale_at(0);
    Ok(Some(Known { kind: Kind::F32, dims: integers.dims, data: vec![f64::from(real as f32).into()] }))
}

fn quantize_linear(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.tensor(0)?;
    let axis = call.int_or("axis", 1)?;
    let data_type = match call.int_or("output_dtype", 0)? {
        0 => None,
        given => Some(i32::try_from(given).unwrap_or(-1)),
    };
    let value = write_as(call, x, At { x: 0, scale: Some(1), zero: 2, axis }, data_type)?;
    call.give_value(value);
    Ok(())
}

/// The ONNX type of an operand's integers, when it is known: what is computed from constants at import has lost it.
fn type_of(call: &Call<'_, '_>, slot: &Slot<'_>) -> Option<i32> {
    let of_value = |v: ValueId| match call.importer.module.ty(v).elem {
        Elem::U8 => Some(dtype::UINT8),
        Elem::I8 => Some(dtype::INT8),
        Elem::I16 => Some(dtype::INT16),
        Elem::I32 => Some(dtype::INT32),
        Elem::F32 => Some(dtype::FLOAT),
        _ => None,
    };
    slot.tensor.map(|t| t.data_type).or_else(|| slot.value.and_then(of_value))
}

fn zero_type(call: &Call<'_, '_>, at: At) -> Fallible<Option<i32>> {
    match call.name(at.zero) {
        Some(_) => Ok(call.slot(at.zero)?.tensor.map(|t| t.data_type)),
        None => Ok(None),
    }
}

/// Least and largest integer of an ONNX type.
fn limits(data_type: i32) -> (i64, i64) {
    match data_type {
        dtype::UINT8 => (0, 255),
        dtype::INT8 => (-128, 127),
        dtype::UINT16 => (0, 65535),
        dtype::INT16 => (-32768, 32767),
        dtype::UINT4 => (0, 15),
        dtype::INT4 => (-8, 7),
        _ => (i32::MIN.into(), i32::MAX.into()),
    }
}

/// Scales and zero points of integers of that ONNX type and shape; everything wrong with them is said at once.
fn grid(call: &mut Call<'_, '_>, at: At, data_type: i32, shape: &Shape) -> Fallible<Grid> {
    let mut wrong = Vec::new();
    if block_size(call)?.is_some() {
        return Err(blocks_of_activations());
    }
    let scale = scales(call, at, &mut wrong)?;
    let mut zero = match call.name(at.zero) {
        Some(_) => call.content(at.zero, "the zero point")?.integers()?,
        None => vec![0],
    };
    let given = zero_type(call, at)?.unwrap_or(data_type);
    // of computed integers only the type that holds them is known
    let computed = call.slot(at.x)?.tensor.is_none();
    let held = |t: i32| tensor::held_as(t).map(|(elem, _)| elem);
    if given != data_type && !(computed && held(given) == held(data_type)) {
        wrong.push(format!("the zero point is {}, the integers are {}", dtype::name(given), dtype::name(data_type)));
    }
    let (low, high) = limits(given);
    if let Some(outside) = zero.iter().find(|z| !(low..=high).contains(z)) {
        wrong.push(format!("the zero point {outside} is not within {low}..={high}"));
    }
    if call.name(at.zero).is_some() && zero.len() != scale.len() && (at.scale.is_some() || scale.len() != 1) {
        wrong.push(format!("{} scales, but {} zero points", scale.len(), zero.len()));
    }
    let several = scale.len().max(zero.len());
    let axis = if several > 1 { channel_axis(at.axis, several, shape, &mut wrong) } else { None };
    if !wrong.is_empty() {
        return Err(invalid(wrong.join("; ")));
    }
    let scale = if scale.len() == 1 && several > 1 { scale.repeat(several) } else { scale };
    let shift = tensor::held_as(given).map_or(0, |(_, shift)| shift);
    zero.iter_mut().for_each(|z| *z += shift);
    Ok(Grid { scale, zero, axis })
}

fn scales(call: &mut Call<'_, '_>, at: At, wrong: &mut Vec<String>) -> Fallible<Vec<f64>> {
    let Some(scale) = at.scale else { return Ok(vec![1.0]) };
    let known = call.content(scale, "the scale")?;
    if known.kind != Kind::F32 {
        wrong.push("the scale is no float32 tensor".into());
    }
    let scales = known.numbers()?;
    if scales.is_empty() {
        wrong.push("there is no scale".into());
    }
    let bad: Vec<_> = scales.iter().enumerate().filter(|(_, s)| !(s.is_finite() && **s > 0.0)).collect();
    if let Some((channel, s)) = bad.first() {
        let more = if bad.len() > 1 { format!(" (and {} more)", bad.len() - 1) } else { String::new() };
        wrong.push(format!("scale {channel} is {s}, scales are finite and above 0{more}"));
    }
    Ok(scales)
}

fn channel_axis(axis: i64, channels: usize, shape: &Shape, wrong: &mut Vec<String>) -> Option<usize> {
    let resolved = crate::call::resolve_axis(axis, shape.rank());
    let size = resolved.as_ref().ok().and_then(|&a| shape.0.get(a)).and_then(|d| d.as_fixed());
    match (resolved, size) {
        (Err(problem), _) => wrong.push(problem.message),
        (Ok(axis), Some(size)) if size == channels => return Some(axis),
        (Ok(axis), _) => {
            wrong.push(format!("{channels} scales or zero points for axis {axis} of [{shape}]"));
        }
    }
    None
}

/// Integers of the model as reals: a `dequantize`, or a float constant where no integer op could take them.
pub(super) fn read(call: &mut Call<'_, '_>, at: At) -> Fallible<ValueId> {
    let slot = call.slot(at.x)?;
    let data_type = match type_of(call, &slot) {
        Some(known) => known,
        None => zero_type(call, at)?.unwrap_or(dtype::INT32),
    };
    if data_type == dtype::FLOAT {
        return stand_in(call, at, &slot);
    }
    let shape = call.shape(at.x)?;
    let grid = grid(call, at, data_type, &shape)?;
    match slot.value {
        Some(value) => read_value(call, value, &grid),
        None => read_constant(call, at.x, &slot, data_type, &grid),
    }
}

/// What `DynamicQuantizeLinear` yields is the value itself (see there), so reading it back is nothing but the scale.
fn stand_in(call: &mut Call<'_, '_>, at: At, slot: &Slot<'_>) -> Fallible<ValueId> {
    let value = slot.value.filter(|_| slot.dynamic);
    let value = value.ok_or_else(|| invalid(format!("operand {} is float32 where integers are needed", at.x)))?;
    let Some(scale) = at.scale else { return Ok(value) };
    match call.content(scale, "the scale")?.single().and_then(Linear::fixed) {
        Some(1.0) => Ok(value),
        Some(scale) => {
            let scale = call.scalar(scale);
            call.push(Op::Mul {}, &[value, scale])
        }
        None => Err(unsupported("several scales of one activation")),
    }
}

/// Integers that are computed. Read on another grid than they were written on, they are an affine function of what they
/// stood for.
fn read_value(call: &mut Call<'_, '_>, value: ValueId, grid: &Grid) -> Fallible<ValueId> {
    let Some(target) = grid.quant().filter(|q| q.axis.is_none()) else {
        return Err(unsupported("activations with several scales are not supported"));
    };
    let ty = call.importer.module.ty(value);
    let Some(source) = ty.quant.clone() else {
        return Err(unsupported("integers that were never quantized are not supported")
            .help("export the model with a float32 input"));
    };
    let real = call.push(Op::Dequantize {}, &[value])?;
    if source == target {
        return Ok(real);
    }
    let (from, to) = (source.scale_at(0), target.scale_at(0));
    let factor = call.scalar(to / from);
    let scaled = call.push(Op::Mul {}, &[real, factor])?;
    let offset = call.scalar(to * f64::from(source.zero_point - target.zero_point));
    call.push(Op::Add {}, &[scaled, offset])
}

/// Computed integers as the numbers that they are, whatever they stand for.
pub(super) fn as_number(call: &mut Call<'_, '_>, value: ValueId) -> Fallible<ValueId> {
    read_value(call, value, &Grid { scale: vec![1.0], zero: vec![0], axis: None })
}

fn read_constant(call: &mut Call<'_, '_>, x: usize, slot: &Slot<'_>, data_type: i32, grid: &Grid) -> Fallible<ValueId> {
    let integers = integers_of(call, x, slot, data_type)?;
    let name = format!("{}.integers", shortened(call, x));
    if integers.data.is_empty() {
        return Err(unsupported("the integers are empty"));
    }
    let shape = Shape::fixed(&integers.dims);
    if let (Some(quant), true) = (grid.quant(), integers.elem != Elem::I32) {
        let ty = TensorType::new(integers.elem, shape).with_quant(quant);
        let value = call.importer.constant_as(&name, ty, integers.data);
        return call.push(Op::Dequantize {}, &[value]);
    }
    if integers.elem == Elem::I32 && grid.zero.iter().any(|&z| z != 0) {
        return Err(invalid("integers of 32 bits have zero point 0"));
    }
    read_channels(call, &name, &integers, grid)
}

fn shortened(call: &Call<'_, '_>, x: usize) -> String {
    crate::import::shorten(call.name(x).unwrap_or("constant"))
}

/// Constants whose channels have zero points of their own: one zero point where the integers less theirs fit `i8`, else
/// (and for biases) floats.
fn read_channels(call: &mut Call<'_, '_>, name: &str, integers: &Integers, grid: &Grid) -> Fallible<ValueId> {
    let values = numbers(integers);
    call.importer.spend(values.len())?;
    let axis = grid.axis.unwrap_or(0);
    let channels = integers.dims.get(axis).copied().unwrap_or(1).max(1);
    let inner: usize = integers.dims.iter().skip(axis + 1).product();
    let channel = |i: usize| i / inner.max(1) % channels;
    let centred: Vec<i64> = values.iter().enumerate().map(|(i, q)| q - grid.zero_at(channel(i))).collect();
    let shape = Shape::fixed(&integers.dims);
    let narrow: Option<Vec<u8>> = centred.iter().map(|&q| i8::try_from(q).ok().map(|q| q as u8)).collect();
    if let (Some(data), Some(quant), true) =
        (narrow, Grid { zero: vec![0], scale: grid.scale.clone(), ..*grid }.quant(), integers.elem != Elem::I32)
    {
        let ty = TensorType::new(Elem::I8, shape).with_quant(quant);
        let value = call.importer.constant_as(name, ty, data.into());
        return call.push(Op::Dequantize {}, &[value]);
    }
    let real = |(i, &q): (usize, &i64)| ((q as f64 * grid.scale_at(channel(i))) as f32).to_le_bytes();
    let data: Vec<u8> = centred.iter().enumerate().flat_map(real).collect();
    Ok(call.importer.constant(name, shape, data.into()))
}

fn integers_of(call: &mut Call<'_, '_>, x: usize, slot: &Slot<'_>, data_type: i32) -> Fallible<Integers> {
    if let Some(tensor) = slot.tensor {
        let limits = call.importer.limits;
        return tensor::integers(tensor, limits, &mut call.importer.external);
    }
    let known = call.content(x, "the operand")?;
    let held = tensor::held_as(data_type);
    let (elem, shift) = held.ok_or_else(|| unsupported(format!("integers of {}", dtype::name(data_type))))?;
    let (low, high) = limits(data_type);
    let values = known.integers()?;
    if let Some(outside) = values.iter().find(|v| !(low..=high).contains(v)) {
        return Err(invalid(format!("{outside} is no {}", dtype::name(data_type))));
    }
    let bytes = |v: &i64| v.wrapping_add(shift).to_le_bytes().into_iter().take(elem.bytes());
    Ok(Integers { elem, dims: known.dims.clone(), data: values.iter().flat_map(bytes).collect::<Vec<u8>>().into() })
}

fn numbers(integers: &Integers) -> Vec<i64> {
    let data = &integers.data;
    match integers.elem {
        Elem::U8 => data.iter().map(|&b| b.into()).collect(),
        Elem::I8 => data.iter().map(|&b| i64::from(b as i8)).collect(),
        Elem::I16 => data.as_chunks::<2>().0.iter().map(|&b| i16::from_le_bytes(b).into()).collect(),
        _ => data.as_chunks::<4>().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect(),
    }
}

/// A real value as integers: a `quantize`.
pub(super) fn write(call: &mut Call<'_, '_>, value: ValueId, scale: usize, zero: usize) -> Fallible<ValueId> {
    write_as(call, value, At { x: 0, scale: Some(scale), zero, axis: -1 }, None)
}

fn write_as(call: &mut Call<'_, '_>, value: ValueId, at: At, data_type: Option<i32>) -> Fallible<ValueId> {
    let data_type = match zero_type(call, at)? {
        Some(known) => known,
        None => data_type.unwrap_or(dtype::UINT8),
    };
    let Some((elem, _)) = tensor::held_as(data_type).filter(|(elem, _)| *elem != Elem::I32) else {
        return Err(unsupported(format!("quantization to {} is not supported", dtype::name(data_type))));
    };
    let shape = call.shape_of(value);
    let grid = grid(call, at, data_type, &shape)?;
    let constant = call.importer.module.const_of(value).is_some();
    if grid.axis.is_some() && !constant {
        return Err(unsupported("activations with several scales are not supported"));
    }
    let quant = grid.quant().ok_or_else(|| unsupported("zero points that differ from channel to channel"))?;
    let value = match data_type {
        dtype::INT4 | dtype::UINT4 => clipped(call, value, data_type, &quant)?,
        _ => value,
    };
    call.push_as(Op::Quantize { to: elem }, &[value], quant)
}

/// Integers of 4 bits are held in 8, so their range is that of the reals before.
fn clipped(call: &mut Call<'_, '_>, value: ValueId, data_type: i32, quant: &Quant) -> Fallible<ValueId> {
    let scale = quant.single().ok_or_else(|| unsupported("several scales of 4 bits"))?;
    let (low, high) = limits(data_type);
    let bound = |q: i64| Real(scale * (q - i64::from(quant.zero_point)) as f64);
    call.push(Op::Clip { lo: bound(low), hi: bound(high) }, &[value])
}

/// A bias of 32 bits whose scale is the product of two others; `factor` belongs to it as well.
pub(super) fn read_bias(call: &mut Call<'_, '_>, x: usize, scales: [usize; 2], factor: f64) -> Fallible<ValueId> {
    let slot = call.slot(x)?;
    if slot.value.is_some() || type_of(call, &slot).is_some_and(|t| t != dtype::INT32) {
        return Err(unsupported("a bias that is no constant of int32"));
    }
    let integers = integers_of(call, x, &slot, dtype::INT32)?;
    let values = numbers(&integers);
    let mut wrong = Vec::new();
    let at = |i: usize| At { x, scale: Some(i), zero: usize::MAX, axis: 0 };
    let [a, b] = scales;
    let (a, b) = (self::scales(call, at(a), &mut wrong)?, self::scales(call, at(b), &mut wrong)?);
    for list in [&a, &b] {
        if list.len() != 1 && list.len() != values.len() {
            wrong.push(format!("{} scales for {} channels", list.len(), values.len()));
        }
    }
    if !wrong.is_empty() {
        return Err(invalid(wrong.join("; ")));
    }
    call.importer.spend(values.len())?;
    let of = |list: &[f64], c: usize| list.get(c).or(list.first()).copied().unwrap_or(1.0);
    let real = |(c, &q): (usize, &i64)| ((q as f64 * of(&a, c) * of(&b, c) * factor) as f32).to_le_bytes();
    let data: Vec<u8> = values.iter().enumerate().flat_map(real).collect();
    let name = shortened(call, x);
    Ok(call.importer.constant(&name, Shape::fixed(&[values.len()]), data.into()))
}
