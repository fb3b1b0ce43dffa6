//! Clamps of attention results, and tables that round them to the levels of codes, behind the movement that follows, so that attention stores in the order of its readers.

use vitc_ir::{Op, ValueId};

use crate::clean::draft::{Draft, Rule};

pub(super) const RULES: &[(&str, Rule)] = &[("clamp-transposed", clamp_transposed)];

/// `transpose(clamp(y)) = clamp(transpose(y))`, and likewise of a table, for the rows of an attention.
fn clamp_transposed(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Transpose { .. } = d.node(n).op else { return None };
    let clamped = d.node(n).operands[0];
    let (clamp @ (Op::IntClamp { .. } | Op::IntTable {}), [rows, table @ ..]) = d.op_of(clamped)? else { return None };
    let (rows, table) = (*rows, table.to_vec());
    if !matches!(d.op_of(rows)?.0, Op::IntRequantRows { .. }) || !d.used_once(clamped) || !d.used_once(rows) {
        return None;
    }
    let (clamp, transpose) = (clamp.clone(), d.node(n).op.clone());
    let (loc, result) = (d.loc(n), d.ty(d.node(n).result).clone());
    let moved = d.push_typed(transpose, &[rows], result.clone(), loc.clone())?;
    d.push_typed(clamp, &[vec![moved], table].concat(), result, loc)
}
