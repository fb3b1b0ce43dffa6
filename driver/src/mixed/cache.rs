//! The table of losses beside the output, so that a second target is quick.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use vitc_ir::eval::Tensor;
use vitc_ir::{Module, text};
use vitc_passes::mixed::Knobs;

use crate::io::atomic::write_atomically;

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Version of the vitc that measured.
    vitc: String,
    /// Hash of all that the losses depend on.
    key: String,
    knobs: Vec<KeptKnob>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptKnob {
    kind: String,
    names: Vec<String>,
    /// Divergence in nats by bits.
    losses: BTreeMap<u32, f64>,
}

/// Hash of the float graph, the images and the options.
pub(super) fn key(module: &Module, inputs: &[Vec<Tensor>], options: &str) -> String {
    let printed = text::print(module);
    let mut hash = blake3::Hasher::new();
    hash.update(printed.text.as_bytes()).update(&printed.blob).update(options.as_bytes());
    for tensor in inputs.iter().flatten() {
        hash.update(tensor.data.as_bytes());
    }
    hash.finalize().to_hex().to_string()
}

/// The losses of a file, if they are those of these knobs. A file that cannot be read is one that is not there: it will be
/// replaced.
pub(super) fn read(path: &Path, key: &str, knobs: &Knobs) -> Option<Vec<Vec<(u32, f64)>>> {
    let kept: Kept = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let same = kept.vitc == env!("CARGO_PKG_VERSION") && kept.key == key && kept.knobs.len() == knobs.all.len();
    let knobs = knobs.all.iter().zip(kept.knobs);
    let losses = |(knob, kept): (&vitc_passes::mixed::Knob, KeptKnob)| {
        let bits: Vec<u32> = kept.losses.keys().rev().copied().collect();
        let same = kept.names == knob.names && kept.kind == knob.kind.word() && bits == knob.kind.widths();
        (same && kept.losses.values().all(|l| l.is_finite())).then(|| kept.losses.into_iter().rev().collect())
    };
    same.then(|| knobs.map(losses).collect())?
}

pub(super) fn write(path: &Path, key: &str, knobs: &Knobs, table: &[Vec<(u32, f64)>]) -> Result<()> {
    let knob = |(knob, losses): (&vitc_passes::mixed::Knob, &Vec<(u32, f64)>)| KeptKnob {
        kind: knob.kind.word().into(),
        names: knob.names.clone(),
        losses: losses.iter().copied().collect(),
    };
    let knobs = knobs.all.iter().zip(table).map(knob).collect();
    let kept = Kept { vitc: env!("CARGO_PKG_VERSION").into(), key: key.into(), knobs };
    let text = serde_json::to_string_pretty(&kept)?;
    write_atomically(path, |w| Ok(writeln!(w, "{text}")?))
}
