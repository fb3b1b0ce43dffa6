//! Clamps of attention results, and tables that round them to the levels of codes, behind the movement that follows, so that attention stores in the order of its readers.

use vitc_ir::{Module, Op, Stage, ValueId};

use crate::clean::draft::{Draft, Fired, Rule};

const RULES: &[(&str, Rule)] = &[("clamp-transposed", clamp_transposed)];

/// The module with such clamps moved.
pub(super) fn run(module: Module, fired: &mut Fired) -> Module {
    let mut draft = Draft::new(module);
    let mut counts = Fired::new();
    draft.saturate(RULES, usize::MAX, &mut counts);
    if counts.is_empty() {
        return draft.into_module();
    }
    fired.extend(counts);
    draft.finish(Stage::Integerize)
}

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
