//! Grids of rows before movement that only brings rows into another order: products read such an order by addressing, and what
//! would be copied otherwise are peaks, one number for a row.

use vitc_ir::{Op, Shape, ValueId};

use crate::clean::draft::{Draft, Rule};

pub(super) const RULES: &[(&str, Rule)] = &[("rows-before-movement", rows_before_movement)];

/// `peak(move(x)) = move(peak(x))`, and so for codes.
fn rows_before_movement(d: &mut Draft, n: usize) -> Option<ValueId> {
    let op = d.node(n).op.clone();
    let single = match op {
        Op::IntRowPeak { .. } => true,
        Op::IntRowCodes { .. } => false,
        _ => return None,
    };
    let moved = d.node(n).operands[0];
    let (movement, &[x]) = d.op_of(moved)? else { return None };
    let movement = of_rows(movement, &d.ty(x).shape, &d.ty(moved).shape, single)?;
    let loc = d.loc(n);
    let rows = d.push(op, &[x], loc.clone())?;
    d.push(movement, &[rows], loc)
}

/// The movement of rows of one element, or of as many as before, that does with rows what `movement` does; `None` where it does
/// anything else than change their order.
fn of_rows(movement: &Op, from: &Shape, to: &Shape, single: bool) -> Option<Op> {
    let last = from.rank().checked_sub(1)?;
    let same_rows = from.0.last() == to.0.last() && from.count() == to.count();
    match movement {
        Op::Reshape { shape } => {
            let mut shape = shape.clone();
            if single {
                *shape.0.last_mut()? = 1.into();
            }
            same_rows.then_some(Op::Reshape { shape })
        }
        Op::Transpose { perm } if perm.last() == Some(&last) => Some(movement.clone()),
        Op::Gather { axis, .. } if *axis != last && same_rows => Some(movement.clone()),
        _ => None,
    }
}
