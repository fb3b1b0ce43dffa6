//! The verifier: collects everything that is wrong with a module of a stage.

pub mod limits;

use crate::diag::Diagnostics;
use crate::graph::Module;
use crate::layout::Layout;
use crate::types::TensorType;

/// Checks structure, types, stage and lane programs; reports every violation at once.
pub fn verify(_module: &Module) -> Result<(), Diagnostics> {
    Ok(())
}

/// Bytes of a constant of this type in this layout, or why there is no such constant.
pub(crate) fn stored_len(ty: &TensorType, layout: Option<Layout>) -> Result<usize, String> {
    let dims = ty.shape.as_fixed().ok_or("a constant's shape cannot depend on the batch")?;
    let plain = ty.bytes().and_then(|d| d.as_fixed()).ok_or("a constant with too many elements")?;
    let Some(Layout::Dot4 { columns }) = layout else { return Ok(plain) };
    let [lead @ .., k, n] = &dims[..] else { return Err("a packed constant has at least two dimensions".into()) };
    if ty.elem.bytes() != 1 || !(1..=limits::PANEL).contains(&columns) {
        return Err(format!("dot4 packs bytes in panels of 1 to {} columns", limits::PANEL));
    }
    let k = k.checked_next_multiple_of(4);
    let n = n.checked_next_multiple_of(columns);
    let packed = k.zip(n).and_then(|(k, n)| k.checked_mul(n));
    lead.iter()
        .try_fold(packed, |len, &d| len.map(|l| l.checked_mul(d)))
        .flatten()
        .ok_or_else(|| "a constant with too many elements".into())
}
