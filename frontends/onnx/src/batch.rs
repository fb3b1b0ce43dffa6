//! Reshape targets, and where the batch goes when a model exported for one image is given the batch N.

use vitc_ir::{Dim, Shape};

use crate::import::dims_text;
use crate::known::Linear;
use crate::problem::{Fallible, Problem, invalid, unsupported};

/// One entry of a reshape target.
#[derive(Clone, Copy, PartialEq)]
enum Entry {
    /// A dimension.
    Is(Dim),
    /// Whatever is left (`-1`).
    Rest,
}

/// The shape that ONNX `Reshape` of `from` to `target` yields. With `rebatch`, a target without the batch is read as the
/// target for one image and gets the batch where the data has it.
pub(crate) fn reshaped(from: &Shape, target: &[Linear], allow_zero: bool, rebatch: bool) -> Fallible<Shape> {
    let entries = entries(from, target, allow_zero)?;
    let carries = |e: &Entry| matches!(e, Entry::Is(d) if d.batch);
    let misfit = || {
        let target: Vec<_> =
            entries.iter().map(|e| if let Entry::Is(d) = e { d.to_string() } else { "-1".into() }).collect();
        invalid(format!("[{}] cannot be reshaped to [{}]", dims_text(from), target.join(", ")))
    };
    if rebatch && from.0.iter().any(|d| d.batch) && !entries.iter().any(carries) {
        let one = Shape(from.0.iter().map(|d| Dim::fixed(d.size)).collect());
        let shape = fill(&entries, &one).ok_or_else(misfit)?;
        return place_batch(from, shape);
    }
    let shape = fill(&entries, from).ok_or_else(misfit)?;
    if shape.count().is_some() && shape.count() == from.count() { Ok(shape) } else { Err(misfit()) }
}

fn entries(from: &Shape, target: &[Linear], allow_zero: bool) -> Fallible<Vec<Entry>> {
    let entry = |(i, &v): (usize, &Linear)| {
        if v == Linear::from(-1.0) {
            return Ok(Entry::Rest);
        }
        if v == Linear::from(0.0) && !allow_zero {
            let copied = from.0.get(i).copied();
            return copied
                .map(Entry::Is)
                .ok_or_else(|| invalid(format!("entry {i} copies a dimension that is not there")));
        }
        v.dim().map(Entry::Is).ok_or_else(|| not_a_dim(v))
    };
    target.iter().enumerate().map(entry).collect()
}

fn not_a_dim(v: Linear) -> Problem {
    match v.fixed() {
        Some(v) => invalid(format!("{v} is not a dimension")),
        None => unsupported(format!("the dimension {} N + {} is not a multiple of the batch", v.batch, v.constant)),
    }
}

/// Dimensions of a shape given as known content.
pub(crate) fn dims(target: &[Linear]) -> Fallible<Vec<Dim>> {
    target.iter().map(|&v| v.dim().ok_or_else(|| not_a_dim(v))).collect()
}

/// The target with its `-1` replaced so that the element counts agree.
fn fill(entries: &[Entry], from: &Shape) -> Option<Shape> {
    let mut given = entries.iter().filter_map(|e| if let Entry::Is(d) = e { Some(*d) } else { None });
    let given = given.try_fold(Dim::fixed(1), |acc, d| acc.times(d))?;
    let total = from.count()?;
    let rest = match entries.iter().filter(|e| **e == Entry::Rest).count() {
        0 => (given == total).then_some(Dim::fixed(1)),
        1 => total.div_exact(given),
        _ => None,
    }?;
    Some(Shape(entries.iter().map(|e| if let Entry::Is(d) = e { *d } else { rest }).collect()))
}

/// Puts the batch into a shape for one image: into the outermost dimension at which as many elements lie further in as
/// behind the batch in `from`. Then each image's elements are reshaped as they were.
fn place_batch(from: &Shape, mut shape: Shape) -> Fallible<Shape> {
    let behind = |dims: &[Dim]| dims.iter().try_fold(1usize, |acc, d| acc.checked_mul(d.size));
    let at = from.0.iter().position(|d| d.batch).and_then(|p| from.0.get(p..)).and_then(behind);
    let place = (0..shape.rank()).find(|&i| at.is_some() && shape.0.get(i..).and_then(behind) == at);
    match place.and_then(|p| shape.0.get_mut(p)) {
        Some(dim) => dim.batch = true,
        None => {
            let message = format!("[{}] with a free batch cannot become [{}]", dims_text(from), dims_text(&shape));
            return Err(unsupported(message));
        }
    }
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Shape {
        let dim = |t: &str| match t.trim().strip_suffix('N') {
            Some("") => Dim::N,
            Some(size) => Dim { size: size.parse().unwrap(), batch: true },
            None => Dim::fixed(t.trim().parse().unwrap()),
        };
        Shape(text.split(',').map(dim).collect())
    }

    fn numbers(list: &[f64]) -> Vec<Linear> {
        list.iter().map(|&v| v.into()).collect()
    }

    #[test]
    fn minus_one_and_zero_are_resolved() {
        let from = shape("N, 197, 192");
        assert_eq!(reshaped(&from, &numbers(&[0.0, 0.0, 3.0, -1.0]), false, false).unwrap(), shape("N, 197, 3, 64"));
        assert_eq!(reshaped(&from, &numbers(&[-1.0, 64.0]), false, false).unwrap(), shape("591N, 64"));
        assert!(reshaped(&from, &numbers(&[-1.0, -1.0]), false, false).is_err());
        assert!(reshaped(&from, &numbers(&[0.0, 0.0, 0.0, 0.0]), false, false).is_err());
        assert!(reshaped(&from, &numbers(&[1.0, 197.0, 192.0]), false, false).is_err());
        assert!(reshaped(&from, &numbers(&[-2.0, 64.0]), false, false).is_err());
    }

    #[test]
    fn a_static_target_gets_the_batch_where_the_data_has_it() {
        let case = |from: &str, target: &[f64], to: &str| {
            assert_eq!(reshaped(&shape(from), &numbers(target), false, true).unwrap(), shape(to), "{from}");
        };
        case("N, 197, 576", &[1.0, 197.0, 3.0, 3.0, 64.0], "N, 197, 3, 3, 64");
        case("N, 196, 192", &[1.0, -1.0, 192.0], "N, 196, 192");
        case("N, 3, 64, 197", &[-1.0, 64.0, 197.0], "3N, 64, 197");
        case("3N, 64, 197", &[1.0, 3.0, 64.0, 197.0], "N, 3, 64, 197");
        case("3, N, 3, 64", &[3.0, 1.0, 192.0], "3, N, 192");
        case("4N, 16, 8", &[1.0, 2.0, 2.0, 4.0, 4.0, 8.0], "N, 2, 2, 4, 4, 8");
        assert!(reshaped(&shape("3, N, 5"), &numbers(&[5.0, 3.0]), false, true).is_err());
    }
}
