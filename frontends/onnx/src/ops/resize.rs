//! Resizing of images to constant sizes: along one axis after the other, each a choice of positions (nearest) or a product
//! with a constant matrix (linear, cubic).

use vitc_ir::{Dim, ValueId};

use super::{Table, map};
use crate::call::Call;
use crate::import::shorten;
use crate::known::{Known, Linear};
use crate::problem::{Fallible, invalid, unsupported};
use crate::proto::kind;

pub(super) const OPS: Table = &[("Resize", resize), ("Upsample", upsample)];

/// How positions of the result are positions of the operand.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    /// Nearest neighbours of TensorFlow.
    HalfPixelCorner,
    AlignCorners,
    Asymmetric,
}

/// How a position between two elements is rounded.
#[derive(Clone, Copy, Debug)]
enum Rounding {
    PreferFloor,
    PreferCeil,
    Floor,
    Ceil,
}

/// What is done between elements.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Nearest(Rounding),
    Linear,
    /// With the coefficient `a` of the Keys kernel.
    Cubic(f64),
}

/// The attributes.
#[derive(Clone, Copy, Debug)]
struct Method {
    mode: Mode,
    coordinates: Coordinates,
    antialias: bool,
    exclude_outside: bool,
}

/// One axis: how many elements there are and will be, and their ratio as given.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    size: usize,
    results: usize,
    scale: f64,
}

fn resize(call: &mut Call<'_, '_>) -> Fallible<()> {
    let first = call.importer.opset < 11;
    let method = if first { simple(call)? } else { method(call)? };
    let rank = call.shape(0)?.rank();
    let axes = match call.ints("axes")? {
        Some(axes) => call.axes(axes, rank)?,
        None => (0..rank).collect(),
    };
    let scales = given(call, if first { 1 } else { 2 }, "the scales")?;
    match scales {
        Some(scales) => by_scales(call, method, &axes, &scales.numbers()?),
        None => {
            let sizes = given(call, 3, "the sizes")?.ok_or_else(|| invalid("neither scales nor sizes are given"))?;
            by_sizes(call, method, &axes, &sizes.data)
        }
    }
}

/// `Upsample`, and `Resize` before opset 11.
fn upsample(call: &mut Call<'_, '_>) -> Fallible<()> {
    let method = simple(call)?;
    let attribute = call.node.attribute.iter().find(|a| a.name == "scales" && a.kind == kind::FLOATS);
    let scales = match attribute {
        Some(scales) => scales.floats.iter().map(|&s| s.into()).collect(),
        None => call.content(1, "the scales")?.numbers()?,
    };
    let axes: Vec<usize> = (0..call.shape(0)?.rank()).collect();
    by_scales(call, method, &axes, &scales)
}

fn simple(call: &Call<'_, '_>) -> Fallible<Method> {
    let mode = match call.word_or("mode", "nearest")? {
        "nearest" => Mode::Nearest(Rounding::Floor),
        "linear" | "bilinear" => Mode::Linear,
        other => return Err(unsupported(format!("mode={:?}", shorten(other)))),
    };
    Ok(Method { mode, coordinates: Coordinates::Asymmetric, antialias: false, exclude_outside: false })
}

fn method(call: &Call<'_, '_>) -> Fallible<Method> {
    let coordinates = match call.word_or("coordinate_transformation_mode", "half_pixel")? {
        "half_pixel" => Coordinates::HalfPixel,
        "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
        "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        "tf_half_pixel_for_nn" => Coordinates::HalfPixelCorner,
        "align_corners" => Coordinates::AlignCorners,
        "asymmetric" => Coordinates::Asymmetric,
        other => return Err(unsupported(format!("coordinate_transformation_mode={:?}", shorten(other)))),
    };
    let rounding = match call.word_or("nearest_mode", "round_prefer_floor")? {
        "round_prefer_floor" => Rounding::PreferFloor,
        "round_prefer_ceil" => Rounding::PreferCeil,
        "floor" => Rounding::Floor,
        "ceil" => Rounding::Ceil,
        other => return Err(invalid(format!("nearest_mode={:?}", shorten(other)))),
    };
    let mode = match call.word_or("mode", "nearest")? {
        "nearest" => Mode::Nearest(rounding),
        "linear" => Mode::Linear,
        "cubic" => Mode::Cubic(call.float_or("cubic_coeff_a", -0.75)?.into()),
        other => return Err(invalid(format!("mode={:?}", shorten(other)))),
    };
    let antialias = call.int_or("antialias", 0)? != 0;
    Ok(Method { mode, coordinates, antialias, exclude_outside: call.int_or("exclude_outside", 0)? != 0 })
}

/// The content of an operand that is left out by being empty.
fn given(call: &mut Call<'_, '_>, i: usize, what: &str) -> Fallible<Option<std::rc::Rc<Known>>> {
    match call.name(i) {
        Some(_) => Ok(Some(call.content(i, what)?).filter(|k| !k.data.is_empty())),
        None => Ok(None),
    }
}

fn dim(call: &Call<'_, '_>, axis: usize) -> Fallible<Dim> {
    call.shape(0)?.0.get(axis).copied().ok_or_else(|| invalid("an axis is out of range"))
}

fn by_scales(call: &mut Call<'_, '_>, method: Method, axes: &[usize], scales: &[f64]) -> Fallible<()> {
    if scales.len() != axes.len() || !scales.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(invalid(format!("{} scales for {} axes, or one is not positive", scales.len(), axes.len())));
    }
    let mut list = Vec::new();
    for (&axis, &scale) in axes.iter().zip(scales) {
        match dim(call, axis)?.as_fixed() {
            Some(size) => list.push((axis, Axis { size, results: (size as f64 * scale).floor() as usize, scale })),
            None if scale == 1.0 => {}
            None => return Err(unsupported("the batch is resized")),
        }
    }
    resized(call, method, &list)
}

fn by_sizes(call: &mut Call<'_, '_>, method: Method, axes: &[usize], sizes: &[Linear]) -> Fallible<()> {
    if sizes.len() != axes.len() {
        return Err(invalid(format!("{} sizes for {} axes", sizes.len(), axes.len())));
    }
    let mut list = Vec::new();
    for (&axis, &wanted) in axes.iter().zip(sizes) {
        let own = dim(call, axis)?;
        let one_image = call.importer.rebatch && wanted == Linear::from(own.size as f64);
        match (own.as_fixed(), wanted.dim().and_then(Dim::as_fixed)) {
            (Some(size), Some(results)) if size > 0 => {
                list.push((axis, Axis { size, results, scale: results as f64 / size as f64 }));
            }
            (None, _) if wanted == Linear::from(own) || one_image => {}
            _ => return Err(unsupported("the batch is resized")),
        }
    }
    let scales = list.iter().map(|(_, a)| a.scale);
    let common = match call.word_or("keep_aspect_ratio_policy", "stretch")? {
        "stretch" => None,
        "not_larger" => Some(scales.fold(f64::INFINITY, f64::min)),
        "not_smaller" => Some(scales.fold(0.0, f64::max)),
        other => return Err(invalid(format!("keep_aspect_ratio_policy={:?}", shorten(other)))),
    };
    if let Some(scale) = common {
        list.iter_mut().for_each(|(_, a)| {
            *a = Axis { size: a.size, results: (scale * a.size as f64 + 0.5).floor() as usize, scale };
        });
    }
    resized(call, method, &list)
}

fn resized(call: &mut Call<'_, '_>, method: Method, axes: &[(usize, Axis)]) -> Fallible<()> {
    let mut x = call.tensor(0)?;
    for &(axis, a) in axes.iter().filter(|(_, a)| a.size != a.results || a.scale != 1.0) {
        x = along(call, x, axis, a, method)?;
    }
    call.give_value(x);
    Ok(())
}

fn along(call: &mut Call<'_, '_>, x: ValueId, axis: usize, a: Axis, method: Method) -> Fallible<ValueId> {
    if a.results == 0 || a.results > call.importer.limits.elements {
        return Err(unsupported(format!("a dimension of {} is resized to {}", a.size, a.results)));
    }
    map::room(call, x, a.results)?;
    let places = (0..a.results).map(|o| position(method.coordinates, a, o));
    if let Mode::Nearest(rounding) = method.mode {
        let positions = places.map(|p| nearest(p, rounding).clamp(0.0, a.size as f64 - 1.0) as usize).collect();
        return map::choose(call, x, axis, positions);
    }
    let count = a.results.checked_mul(a.size).ok_or_else(|| invalid("too many elements"))?;
    map::room(call, x, count)?;
    let rows: Vec<Vec<f64>> = places.map(|p| row(p, a, method)).collect();
    map::linear(call, x, axis, a.results, |o, i| rows.get(o).and_then(|r| r.get(i)).copied().unwrap_or(0.0))
}

/// Where element `o` of the result lies in the operand. In `f32`, as others compute it: on a border between two elements
/// the last bit decides which is the nearest.
fn position(coordinates: Coordinates, a: Axis, o: usize) -> f64 {
    let (o, scale, size) = (o as f32, a.scale as f32, a.size as f32);
    let results = size * scale;
    f64::from(match coordinates {
        Coordinates::HalfPixel => (o + 0.5) / scale - 0.5,
        Coordinates::HalfPixelSymmetric => size / 2.0 * (1.0 - a.results as f32 / results) + (o + 0.5) / scale - 0.5,
        Coordinates::PytorchHalfPixel if a.results == 1 => 0.0,
        Coordinates::PytorchHalfPixel => (o + 0.5) / scale - 0.5,
        Coordinates::HalfPixelCorner => (o + 0.5) / scale,
        Coordinates::AlignCorners if results == 1.0 => 0.0,
        Coordinates::AlignCorners => o * (size - 1.0) / (results - 1.0),
        Coordinates::Asymmetric => o / scale,
    })
}

fn nearest(p: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::PreferFloor => (p - 0.5).ceil(),
        Rounding::PreferCeil => (p + 0.5).floor(),
        Rounding::Floor => p.floor(),
        Rounding::Ceil => p.ceil(),
    }
}

/// The weights of the operand's elements at position `p`; elements beyond an end are those at the end, or nothing.
fn row(p: f64, a: Axis, method: Method) -> Vec<f64> {
    // Antialiasing widens the kernel by the factor of shrinking.
    let scale = if method.antialias { a.scale.min(1.0) } else { 1.0 };
    let (radius, kernel): (f64, &dyn Fn(f64) -> f64) = match &method.mode {
        Mode::Cubic(coefficient) => (2.0, &|d| cubic(d, *coefficient)),
        _ => (1.0, &|d| (1.0 - d).max(0.0)),
    };
    let reach = radius / scale;
    let (from, to) = ((p - reach).ceil() as i64, (p + reach).floor() as i64);
    let mut row = vec![0.0; a.size];
    for i in from..=to {
        let inside = usize::try_from(i).is_ok_and(|i| i < a.size);
        let at = i.clamp(0, a.size as i64 - 1) as usize;
        if let Some(weight) = row.get_mut(at).filter(|_| inside || !method.exclude_outside) {
            *weight += kernel((i as f64 - p).abs() * scale);
        }
    }
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|w| *w /= sum);
    row
}

/// The kernel of Keys at distance `d`.
fn cubic(d: f64, a: f64) -> f64 {
    match d {
        _ if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        _ if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_as_asked() {
        let all =
            |p| [Rounding::PreferFloor, Rounding::PreferCeil, Rounding::Floor, Rounding::Ceil].map(|r| nearest(p, r));
        assert_eq!(all(1.5), [1.0, 2.0, 1.0, 2.0]);
        assert_eq!(all(1.25), [1.0, 1.0, 1.0, 2.0]);
        assert_eq!(all(2.0), [2.0; 4]);
        assert_eq!(all(-0.5), [-1.0, 0.0, -1.0, 0.0]);
    }

    #[test]
    fn weights_sum_to_one_and_interpolate_what_is_there() {
        let axis = Axis { size: 4, results: 8, scale: 2.0 };
        for mode in [Mode::Linear, Mode::Cubic(-0.75)] {
            let method = Method { mode, coordinates: Coordinates::HalfPixel, antialias: false, exclude_outside: false };
            for o in 0..8 {
                let row = row(position(method.coordinates, axis, o), axis, method);
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
            assert_eq!(row(2.0, axis, method), [0.0, 0.0, 1.0, 0.0]);
        }
    }
}
