//! The second room: every type inferred again and checked, images with channels last, movement in normal form, dead code gone.

pub(crate) mod concats;
mod groups;
mod images;
mod long_norms;
mod maps;
mod maxima;
pub(crate) mod movement;
#[cfg(test)]
mod tests;
mod windows;

use vitc_ir::{Diagnostic, Diagnostics, Module, Stage};

use crate::clean::draft::{Draft, Fired};

/// Settles shapes and movement of a cleaned module.
pub fn run(module: &Module) -> Result<Module, Diagnostics> {
    check_types(module)?;
    let mut draft = Draft::new(module.clone());
    let rules =
        [concats::RULES, images::RULES, long_norms::RULES, maps::RULES, maxima::RULES, movement::RULES, windows::RULES]
            .concat();
    draft.saturate(&rules, firing_limit(module), &mut Fired::new());
    let settled = draft.finish(Stage::Shape);
    check_types(&settled)?;
    Ok(settled)
}

/// How many rule firings a module of this size may take.
pub(crate) fn firing_limit(module: &Module) -> usize {
    1000 + 50 * module.nodes.len()
}

/// Infers every result's type again and compares.
fn check_types(module: &Module) -> Result<(), Diagnostics> {
    let mut problems = Diagnostics::default();
    for node in &module.nodes {
        let operands: Vec<_> = node.operands.iter().map(|&v| module.ty(v)).collect();
        let declared = module.ty(node.result);
        let message = match node.op.infer(&operands) {
            Err(message) => message,
            Ok(ty) if ty.elem == declared.elem && ty.shape == declared.shape => continue,
            Ok(ty) => format!("`{}` is declared as {declared} but yields {ty}", node.op.name()),
        };
        let place = node.loc.as_deref().unwrap_or(node.op.name());
        problems.push(Diagnostic::new("type-mismatch", message).at(place));
    }
    problems.or(())
}
