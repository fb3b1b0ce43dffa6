//! Control flow whose course import knows.

use super::Table;
use crate::call::Call;
use crate::problem::{Fallible, invalid};

pub(super) const OPS: Table = &[("If", branch)];

/// The nodes of the branch that is taken stand in the graph as if they were its own; names are unique in all graphs of a model.
/// What is computed from the image cannot be asked.
fn branch(call: &mut Call<'_, '_>) -> Fallible<()> {
    let condition = call.content(0, "the condition")?.single().and_then(|v| v.fixed());
    let condition = condition.ok_or_else(|| invalid("the condition is not one value"))?;
    let taken = if condition != 0.0 { "then_branch" } else { "else_branch" };
    let graph = call.graph_attr(taken)?.ok_or_else(|| invalid(format!("attribute `{taken}` is missing")))?;
    call.importer.inline(graph);
    for output in &graph.output {
        let slot = call.importer.slots.get(output.name.as_str()).cloned();
        let slot = slot.ok_or_else(|| invalid("no node of the branch computes its output"))?;
        call.give(slot);
    }
    Ok(())
}
