//! Streams whose range grows from block to block.

use std::collections::BTreeSet;

use vitc_ir::{Elem, Module, Op, ValueId};

use super::tests::{calibrate, compare, pixel_options, transformer};
use super::{QuantOptions, run};
use crate::clean::testing::{Build, batched, inputs, outputs, sqnr};

/// A branch behind LayerNorm that is so many times as large as what it is added to.
fn block(b: &mut Build, x: ValueId, times: f32) -> ValueId {
    let n = b.layernorm(x);
    let y = b.linear(n, 16);
    let y = b.scale(y, times);
    b.add(x, y)
}

/// Blocks that grow, then one product for each of the sums.
fn growing(times: &[f32]) -> Module {
    let mut b = Build::new(3);
    let x = b.m.input("x", vitc_ir::TensorType::f32(batched(&[6, 8])));
    let mut x = b.linear(x, 16);
    let mut read = Vec::new();
    for &t in times {
        x = block(&mut b, x, t);
        let n = b.layernorm(x);
        read.push(b.linear(n, 4));
    }
    let y = b.op(Op::Concat { axis: 2 }, &read);
    let cleaned = crate::clean::run(&b.done(y), &Default::default()).unwrap().module;
    crate::shape::run(&cleaned).unwrap()
}

/// The scales of what is held in 16 bits.
fn scales(q: &Module) -> BTreeSet<vitc_ir::Quant> {
    let wide = q.values.iter().filter(|v| v.ty.elem == Elem::I16);
    wide.filter_map(|v| v.ty.quant.clone()).collect()
}

#[test]
fn a_stream_that_grows_changes_its_scale() {
    let options = QuantOptions { without_rows: vec!["*".into()], ..QuantOptions::default() };
    for (times, parts) in [(vec![1.0, 3.0, 5.0], 1), (vec![1.0, 500.0, 3.0], 2), (vec![300.0, 1e5, 1e7], 4)] {
        let m = growing(&times);
        let q = run(&m, &calibrate(&m, &options), &options).unwrap();
        vitc_ir::verify::verify(&q).unwrap();
        assert_eq!(scales(&q).len(), parts, "{times:?}");
        let db = compare(&m, &q);
        assert!(db > 30.0, "{times:?}: {db} dB");
        // and all of it has integer forms
        let lowered = crate::integerize::run(&q, &Default::default()).unwrap().0;
        let x = inputs(&lowered, 100);
        let db = sqnr(&outputs(&q, &x), &outputs(&lowered, &x));
        assert!(db > 40.0, "{times:?}: {db} dB beside the simulation");
    }
}

#[test]
fn usual_streams_keep_one_scale() {
    let m = transformer(&pixel_options(), [0; 4]);
    let options = QuantOptions { without_rows: vec!["*".into()], ..QuantOptions::default() };
    assert_eq!(scales(&run(&m, &calibrate(&m, &options), &options).unwrap()).len(), 1);
}
