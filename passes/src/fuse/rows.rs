//! Grids of rows before movement that only brings rows into another order: products read such an order by addressing, and what
//! would be copied otherwise are peaks, one number for a row. And behind tables: what a table yields in 16 bits is read as codes
//! of its bytes, so that the product in front of GELU stores bytes and looks nothing up.

use vitc_ir::table::falls_and_rises;
use vitc_ir::{Elem, Op, Shape, ValueId};

use crate::clean::draft::{Draft, Rule};

pub(super) const RULES: &[(&str, Rule)] =
    &[("rows-before-movement", rows_before_movement), ("table-into-rows", table_into_rows)];

/// With fewer columns than a table has entries, looking each element up costs less than a table for each row.
const TABLE_COLUMNS: usize = 256;

/// `peak(table[x])` and `codes(table[x])` as peak and codes of bytes that stand for entries, where the magnitudes of entries
/// fall and then rise: the largest of a row is then that of its least or of its largest byte.
fn table_into_rows(d: &mut Draft, n: usize) -> Option<ValueId> {
    let op = d.node(n).op.clone();
    let &[looked_up] = d.node(n).operands.as_slice() else { return None };
    let wanted = matches!(op, Op::IntRowPeak { .. } | Op::IntRowCodes { .. });
    let (Op::IntTable {}, &[x, table]) = d.op_of(looked_up).filter(|_| wanted)? else { return None };
    let columns = d.ty(x).shape.last_fixed()?;
    let is_row_op = |n: usize| matches!(d.node(n).op, Op::IntRowPeak { .. } | Op::IntRowCodes { .. });
    let alone = !d.is_output(looked_up) && d.users(looked_up).iter().all(|&user| is_row_op(user));
    let entries = d.constant_of(table)?;
    let fits = d.ty(x).elem == Elem::U8 && entries.ty.elem == Elem::I16 && columns >= TABLE_COLUMNS;
    (fits && alone && falls_and_rises(&entries.ints())).then_some(())?;
    let loc = d.loc(n);
    d.push(op, &[x, table], loc)
}

/// `peak(move(x)) = move(peak(x))`, and so for codes.
fn rows_before_movement(d: &mut Draft, n: usize) -> Option<ValueId> {
    let op = d.node(n).op.clone();
    let single = match op {
        Op::IntRowPeak { .. } => true,
        Op::IntRowCodes { .. } => false,
        _ => return None,
    };
    let mut operands = d.node(n).operands.clone();
    let moved = operands[0];
    let (movement, &[x]) = d.op_of(moved)? else { return None };
    let movement = of_rows(movement, &d.ty(x).shape, &d.ty(moved).shape, single)?;
    let loc = d.loc(n);
    operands[0] = x;
    let rows = d.push(op, &operands, loc.clone())?;
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
