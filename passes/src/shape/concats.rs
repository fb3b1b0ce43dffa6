//! Concatenations of many parts: rules of the integer room read four at most, so more are joined group by group until that room is
//! left, and all at once again then.

use vitc_ir::{Op, ValueId};

use crate::clean::draft::{Draft, Rule};

/// Parts that rules read.
const MOST: usize = 4;

/// The rule of the shape room.
pub(crate) const RULES: &[(&str, Rule)] = &[("concat-by-groups", by_groups)];
/// The rule that undoes it.
pub(crate) const MERGE: &[(&str, Rule)] = &[("merge-concats", merge)];

fn by_groups(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (op @ Op::Concat { .. }, parts) = (d.node(n).op.clone(), d.node(n).operands.clone()) else { return None };
    if parts.len() <= MOST {
        return None;
    }
    let (type_of, loc) = (d.ty(d.node(n).result).clone(), d.loc(n));
    let groups: Vec<ValueId> = parts
        .chunks(MOST)
        .map(|group| if let [one] = group { Some(*one) } else { d.push(op.clone(), group, loc.clone()) })
        .collect::<Option<_>>()?;
    d.push_typed(op, &groups, type_of, loc)
}

fn merge(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Concat { axis } = d.node(n).op else { return None };
    let inner = |v: &ValueId| match d.op_of(*v) {
        Some((Op::Concat { axis: same }, parts)) if *same == axis && d.used_once(*v) => Some(parts.to_vec()),
        _ => None,
    };
    let parts: Vec<(ValueId, Option<Vec<ValueId>>)> = d.node(n).operands.iter().map(|v| (*v, inner(v))).collect();
    if parts.iter().all(|(_, inner)| inner.is_none()) {
        return None;
    }
    let nested = parts.iter().filter(|(_, inner)| inner.is_some()).filter_map(|(v, _)| d.def(*v));
    let loc = d.join_locs(nested.chain([n]));
    let parts: Vec<ValueId> = parts.into_iter().flat_map(|(v, inner)| inner.unwrap_or(vec![v])).collect();
    let type_of = d.ty(d.node(n).result).clone();
    d.push_typed(Op::Concat { axis }, &parts, type_of, loc)
}

#[cfg(test)]
mod tests {
    use vitc_ir::{Op, Stage};

    use super::*;
    use crate::clean::draft::Fired;
    use crate::clean::testing::{Build, count, inputs, outputs};

    #[test]
    fn parts_are_joined_by_groups_and_at_once_again() {
        for (parts, nodes) in [(4, 1), (5, 2), (9, 3), (17, 6)] {
            let mut b = Build::new(parts as u64);
            let x = b.input(&[3, 5]);
            let parts: Vec<_> = (0..parts).map(|i| b.scale(x, i as f32)).collect();
            let y = b.op(Op::Concat { axis: 1 }, &parts);
            let m = b.done(y);
            let split = crate::shape::run(&m).unwrap();
            assert_eq!(count(&split, "concat"), nodes);
            let most = |m: &vitc_ir::Module| {
                m.nodes.iter().filter(|n| n.op.name() == "concat").map(|n| n.operands.len()).max().unwrap()
            };
            assert!(most(&split) <= MOST);
            let mut draft = Draft::new(split.clone());
            draft.saturate(MERGE, 100, &mut Fired::new());
            let merged = draft.finish(Stage::Shape);
            assert_eq!((count(&merged, "concat"), most(&merged)), (1, parts.len()));
            let images = inputs(&m, 1);
            assert_eq!(outputs(&m, &images), outputs(&split, &images));
            assert_eq!(outputs(&m, &images), outputs(&merged, &images));
        }
    }
}
