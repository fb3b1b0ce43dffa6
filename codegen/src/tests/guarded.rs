//! Steps run by hand, every buffer of every kernel next to an inaccessible page.

use std::collections::BTreeMap;

use vitc_runtime::Buffer;

use crate::Compiled;
use crate::testing::{Edge, Guarded, call};

/// What tells buffers apart: kind, place or index, length.
type Key = (u8, usize, usize);

fn key(b: &Buffer) -> Key {
    match *b {
        Buffer::Arena { offset, len } => (0, offset, len),
        Buffer::Const { offset, len } => (1, offset, len),
        Buffer::Input(n) => (2, n, 0),
        Buffer::Stored { index, len } => (4, index, len),
        Buffer::Output(n) => (3, n, 0),
    }
}

/// Runs all steps twice, each in one piece and then in up to three of whole grains, and compares the outputs.
pub(super) fn check(compiled: &Compiled, inputs: &[&[u8]], want: &[Vec<u8>], batch: usize, edge: Edge) {
    let parts = &compiled.parts;
    let mut buffers: BTreeMap<Key, Guarded> = BTreeMap::new();
    for b in parts.steps.iter().flat_map(|s| &s.args) {
        buffers.entry(key(b)).or_insert_with(|| match *b {
            Buffer::Arena { len, .. } => Guarded::at(&vec![0x5a; len * batch], edge),
            Buffer::Const { offset, len } => Guarded::at(&(*parts.consts).as_ref()[offset..offset + len], edge),
            Buffer::Stored { index, len } => Guarded::at(&(*parts.stored[index]).as_ref()[..len], edge),
            Buffer::Input(n) => Guarded::at(inputs[n], edge),
            Buffer::Output(n) => Guarded::at(&vec![0x5a; want[n].len()], edge),
        });
    }
    for pieces in [1, 3] {
        for step in &parts.steps {
            let args: Vec<*mut u8> = step.args.iter().map(|b| buffers.get_mut(&key(b)).unwrap().ptr()).collect();
            let items = step.items.at(batch).unwrap();
            let piece = items.div_ceil(pieces).next_multiple_of(step.grain).max(1);
            for begin in (0..items).step_by(piece) {
                call(step.kernel, &args, begin..items.min(begin + piece), batch, parts.scratch_bytes, edge);
            }
        }
        for (n, want) in want.iter().enumerate() {
            if let Some(out) = buffers.get_mut(&(3, n, 0)) {
                assert!(out.values::<u8>() == *want, "output {n} between guards, {edge:?}, in {pieces} pieces");
            }
        }
    }
}

/// Runs the steps between two barriers one thread after the other, each thread going through all of them before the next
/// begins: as far apart as threads can be. Returns the outputs, of these lengths.
pub(super) fn skewed(
    compiled: &Compiled,
    inputs: &[&[u8]],
    outputs: &[usize],
    batch: usize,
    order: &[usize],
) -> Vec<Vec<u8>> {
    let parts = &compiled.parts;
    let mut arena = Guarded::new(&vec![0x5a; parts.arena_bytes_per_image * batch]);
    let mut consts = Guarded::new((*parts.consts).as_ref());
    let mut inputs: Vec<Guarded> = inputs.iter().map(|bytes| Guarded::new(bytes)).collect();
    let mut outputs: Vec<Guarded> = outputs.iter().map(|&len| Guarded::new(&vec![0x5a; len])).collect();
    let mut address = |b: &Buffer| match *b {
        Buffer::Arena { offset, .. } => arena.ptr().wrapping_add(offset * batch),
        Buffer::Const { offset, .. } => consts.ptr().wrapping_add(offset),
        Buffer::Stored { index, .. } => (*parts.stored[index]).as_ref().as_ptr().cast_mut(),
        Buffer::Input(n) => inputs[n].ptr(),
        Buffer::Output(n) => outputs[n].ptr(),
    };
    for joined in parts.steps.chunk_by(|step, _| !step.barrier) {
        for &thread in order {
            for step in joined {
                let args: Vec<*mut u8> = step.args.iter().map(&mut address).collect();
                let share = step.share(batch, thread, order.len());
                if !share.is_empty() {
                    call(step.kernel, &args, share, batch, parts.scratch_bytes, Edge::After);
                }
            }
        }
    }
    outputs.iter_mut().map(Guarded::values).collect()
}
