//! Type rules of the ops: element type and shape of the result from those of the operands.
//!
//! Every rule checks everything it relies on and never panics: the parser feeds it text from anywhere.

mod compute;
mod movement;

pub use compute::LONGEST_NORM;
pub(crate) use compute::*;
pub(crate) use movement::*;

use crate::types::{Dim, Shape, TensorType};

/// What a type rule returns: the result type, or what does not fit.
pub(crate) type Inferred = Result<TensorType, String>;

/// The numpy broadcast of two shapes.
pub fn broadcast(a: &Shape, b: &Shape) -> Result<Shape, String> {
    let rank = a.rank().max(b.rank());
    let dim = |s: &Shape, i: usize| (i + s.rank()).checked_sub(rank).map_or(Dim::fixed(1), |j| s.0[j]);
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Ok(x),
            (x, y) if x == Dim::fixed(1) => Ok(y),
            (x, y) if y == Dim::fixed(1) => Ok(x),
            (x, y) => Err(format!("shapes [{a}] and [{b}] do not broadcast: {x} against {y}")),
        })
        .collect::<Result<_, _>>()
        .map(Shape)
}

fn check_axis(axis: usize, shape: &Shape) -> Result<(), String> {
    if axis < shape.rank() { Ok(()) } else { Err(format!("axis {axis} is outside a shape of rank {}", shape.rank())) }
}

fn ensure(ok: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(message()) }
}
