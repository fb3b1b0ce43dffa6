//! Constants, casts, and what only passes a value on.

use vitc_ir::{Dim, Elem, ValueId};

use super::{Table, counted};
use crate::call::Call;
use crate::import::shorten;
use crate::known::{Kind, Known, Linear};
use crate::problem::{Fallible, invalid, unsupported};
use crate::proto::{dtype, kind};
use crate::tensor;

pub(super) const OPS: Table = &[
    ("Cast", cast),
    ("CastLike", cast_like),
    ("Constant", constant),
    ("ConstantOfShape", constant_of_shape),
    ("Dropout", dropout),
    ("EyeLike", eye_like),
    ("Identity", identity),
    ("OneHot", one_hot),
    ("Range", range),
    ("Shape", shape),
    ("Size", size),
];

fn constant(call: &mut Call<'_, '_>) -> Fallible<()> {
    if let Some(tensor) = call.tensor_attr("value")? {
        tensor::dims(tensor, call.importer.limits)?;
        call.give(crate::import::Slot { tensor: Some(tensor), ..Default::default() });
        return Ok(());
    }
    let attribute = call.node.attribute.first().ok_or_else(|| invalid("it has no value"))?;
    let known = match (attribute.name.as_str(), attribute.kind) {
        ("value_float", kind::FLOAT) => Known::scalar(Kind::F32, f64::from(attribute.f)),
        ("value_int", kind::INT) => Known::scalar(Kind::Int, attribute.i as f64),
        ("value_floats", kind::FLOATS) => {
            call.room(attribute.floats.len())?;
            Known::vector(Kind::F32, attribute.floats.iter().map(|&v| f64::from(v).into()).collect())
        }
        ("value_ints", kind::INTS) => {
            call.room(attribute.ints.len())?;
            Known::vector(Kind::Int, attribute.ints.iter().map(|&v| (v as f64).into()).collect())
        }
        (name, _) => return Err(unsupported(format!("a constant given as `{}` is not supported", shorten(name)))),
    };
    call.give_known(known);
    Ok(())
}

fn identity(call: &mut Call<'_, '_>) -> Fallible<()> {
    call.give_operand(0)
}

fn dropout(call: &mut Call<'_, '_>) -> Fallible<()> {
    if call.name(2).is_some() && call.content(2, "training_mode")?.data.iter().any(|v| v.fixed() != Some(0.0)) {
        return Err(unsupported("training_mode").help("export the model in evaluation mode (model.eval())"));
    }
    call.give_operand(0)?;
    if call.only_outputs(1).is_err() {
        // The mask: everything is kept.
        let dims = call.shape(0)?.as_fixed().ok_or_else(|| unsupported("the mask of a batch"))?;
        let count = crate::known::count(&dims).ok_or_else(|| invalid("too many elements"))?;
        call.room(count)?;
        call.give_known(Known { kind: Kind::Bool, dims, data: vec![1.0.into(); count] });
    }
    Ok(())
}

fn cast(call: &mut Call<'_, '_>) -> Fallible<()> {
    let to = call.int("to")?.ok_or_else(|| invalid("attribute `to` is missing"))?;
    cast_to(call, i32::try_from(to).unwrap_or(0))
}

fn cast_like(call: &mut Call<'_, '_>) -> Fallible<()> {
    let like = call.slot(1)?;
    let to = match (&like.known, like.tensor) {
        (Some(known), _) => match known.kind {
            Kind::Bool => dtype::BOOL,
            Kind::Int => dtype::INT64,
            Kind::F32 => dtype::FLOAT,
            Kind::F64 => dtype::DOUBLE,
        },
        (None, Some(tensor)) => tensor.data_type,
        (None, None) => dtype::FLOAT,
    };
    cast_to(call, to)
}

fn cast_to(call: &mut Call<'_, '_>, to: i32) -> Fallible<()> {
    let slot = call.slot(0)?;
    if let Some(condition) = slot.positive.filter(|_| tensor::is_float(to)) {
        let number = super::logic::choose(call, condition, [1.0, 0.0])?;
        call.give_value(number);
        return Ok(());
    }
    if let Some(value) = slot.value.filter(|&v| call.importer.module.ty(v).elem != Elem::F32) {
        return cast_integers(call, value, to);
    }
    // All widths of floats are held in one, so there is nothing to do between them.
    let is_float = slot.value.is_some() || slot.tensor.is_some_and(|t| tensor::is_float(t.data_type));
    if tensor::is_float(to) && is_float {
        return call.give_operand(0);
    }
    // what nodes compute from constants alone is known once it is asked for
    if slot.value.is_some() && call.known_or_repeated(0, usize::MAX)?.is_none() {
        let problem = unsupported(format!("a cast of computed floats to {}", dtype::name(to)));
        return Err(problem.help("export the model in float32, without casts of activations"));
    }
    let kind = tensor::kind(to)?;
    let (x, _) = call.content_of_image(0, "the operand")?;
    call.room(x.data.len())?;
    let data = x.data.iter().map(|&v| convert(v, x.kind, kind)).collect::<Option<Vec<_>>>();
    let data = data.ok_or_else(|| unsupported("this cast of a value that depends on the batch"))?;
    let known = Known { kind, dims: x.dims.clone(), data };
    match slot.repeated {
        Some(repeated) => call.give_repeated(known, repeated.shape),
        None => call.give_known(known),
    }
    Ok(())
}

/// Computed integers as floats, which are their numbers, or in a type that holds them all.
fn cast_integers(call: &mut Call<'_, '_>, value: ValueId, to: i32) -> Fallible<()> {
    let from = call.importer.module.ty(value).elem;
    // 16 bits are held as signed ones, whatever they were
    if tensor::is_float(to) && matches!(from, Elem::U8 | Elem::I8) {
        let number = super::quantized::as_number(call, value)?;
        call.give_value(number);
        return Ok(());
    }
    match (from, to) {
        (Elem::U8, dtype::UINT8 | dtype::INT16 | dtype::UINT16 | dtype::INT32 | dtype::INT64) => call.give_operand(0),
        (Elem::I8, dtype::INT8 | dtype::INT16 | dtype::INT32 | dtype::INT64) => call.give_operand(0),
        (from, _) => Err(unsupported(format!("a cast of computed integers of {from} to {}", dtype::name(to)))
            .help("cast to float32")),
    }
}

fn convert(v: Linear, from: Kind, to: Kind) -> Option<Linear> {
    match to {
        Kind::Bool => match v.fixed() {
            Some(v) => Some(f64::from(u8::from(v != 0.0)).into()),
            // `a N + b` of the same sign, or a positive one, is never zero.
            None => (v.batch > 0.0 && v.batch + v.constant > 0.0).then_some(1.0.into()),
        },
        Kind::Int if from.is_float() => v.round(f64::trunc),
        _ => Some(to.round(v)),
    }
}

fn shape(call: &mut Call<'_, '_>) -> Fallible<()> {
    let shape = call.shape(0)?;
    let rank = shape.rank() as i64;
    let clamp = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
    let start = clamp(call.int_or("start", 0)?);
    let end = clamp(call.int_or("end", rank)?).max(start);
    let dims = shape.0.get(start..end).unwrap_or_default();
    call.give_vector(dims.iter().map(|&d| d.into()).collect())
}

fn size(call: &mut Call<'_, '_>) -> Fallible<()> {
    let count = call.shape(0)?.count().ok_or_else(|| unsupported("too many elements"))?;
    call.give_known(Known::scalar(Kind::Int, count));
    Ok(())
}

fn constant_of_shape(call: &mut Call<'_, '_>) -> Fallible<()> {
    let target = call.content(0, "the shape")?;
    let fill = match call.tensor_attr("value")? {
        Some(tensor) => call.importer.attribute(tensor)?,
        None => Known::scalar(Kind::F32, 0.0),
    };
    let value = fill.single().ok_or_else(|| invalid("`value` must have one element"))?;
    super::layout::filled(call, fill.kind, value, &target.data)
}

fn range(call: &mut Call<'_, '_>) -> Fallible<()> {
    if counted::range(call)? {
        return Ok(());
    }
    let mut ends = Vec::new();
    for (i, what) in ["the start", "the limit", "the step"].into_iter().enumerate() {
        let known = call.content(i, what)?;
        let value = known.numbers()?.first().copied();
        ends.push((known.kind, value.ok_or_else(|| invalid(format!("{what} is empty")))?));
    }
    let &[(kind, start), (_, limit), (_, step)] = ends.as_slice() else {
        return Err(invalid("three operands are needed"));
    };
    let length = ((limit - start) / step).ceil().max(0.0);
    if !length.is_finite() || length > call.importer.limits.elements as f64 {
        return Err(invalid(format!("a range from {start} to {limit} by {step}")));
    }
    call.room(length as usize)?;
    let data = (0..length as usize).map(|i| kind.round((start + i as f64 * step).into())).collect();
    call.give_known(Known::vector(kind, data));
    Ok(())
}

fn eye_like(call: &mut Call<'_, '_>) -> Fallible<()> {
    let shape = call.shape(0)?;
    let dims = shape.as_fixed().ok_or_else(|| unsupported("a diagonal over the batch"))?;
    let &[rows, columns] = dims.as_slice() else { return Err(invalid("a matrix is needed")) };
    let kind = match call.int("dtype")? {
        Some(to) => tensor::kind(i32::try_from(to).unwrap_or(0))?,
        None => call.slot(0)?.known.map_or(Kind::F32, |known| known.kind),
    };
    let diagonal = call.int_or("k", 0)?;
    let count = crate::known::count(&dims).ok_or_else(|| invalid("too many elements"))?;
    call.room(count)?;
    let set = |row: usize, column: usize| (column as i64).checked_sub(row as i64) == Some(diagonal);
    let data = (0..rows).flat_map(|row| (0..columns).map(move |column| f64::from(u8::from(set(row, column))).into()));
    let data = data.collect();
    call.give_known(Known { kind, dims, data });
    Ok(())
}

fn one_hot(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (places, values) = (call.content(0, "the indices")?, call.content(2, "the values")?);
    let depth = call.content(1, "the depth")?.single().and_then(Linear::dim).and_then(Dim::as_fixed);
    let depth = depth.filter(|&d| d > 0).ok_or_else(|| invalid("the depth is not a positive number"))?;
    let &[off, on] = values.data.as_slice() else { return Err(invalid("the values are not two")) };
    let axis = call.axis(call.int_or("axis", -1)?, places.dims.len() + 1)?;
    let mut dims = places.dims.clone();
    dims.insert(axis, depth);
    let count = crate::known::count(&dims).ok_or_else(|| invalid("too many elements"))?;
    call.room(count)?;
    let inner: usize = places.dims.iter().skip(axis).product();
    let places = places.numbers()?;
    let set = |i: usize| {
        let (place, class) = (i / (inner * depth) * inner + i % inner, (i / inner % depth) as f64);
        places.get(place).is_some_and(|&p| (if p < 0.0 { p + depth as f64 } else { p }) == class)
    };
    let data = (0..count).map(|i| if set(i) { on } else { off }).collect();
    call.give_known(Known { kind: values.kind, dims, data });
    Ok(())
}
