//! Every transform on a small transformer: the float graph computes the same, and quantized it is nearer to it.

use std::collections::BTreeMap;

use vitc_ir::{Module, Op, ValueId};

use super::*;
use crate::clean::testing::{inputs, outputs, sqnr};
use crate::quantize::tests::{pixel_options, transformer};
use crate::quantize::{self, QuantOptions};

/// A transformer some of whose channels are much wider than others, as those of real ones are.
fn uneven() -> Module {
    let mut m = transformer(&pixel_options(), [0; 4]);
    for n in 0..m.nodes.len() {
        let operands = m.nodes[n].operands.clone();
        match m.nodes[n].op {
            Op::LayerNorm { .. } => {
                let channels = m.ty(m.nodes[n].result).shape.last_fixed().unwrap();
                let gamma = edit::floats(&m, operands[1], channels).unwrap();
                let beta = edit::floats(&m, operands[2], channels).unwrap();
                let wide = |c: usize| if c.is_multiple_of(7) { 8.0 } else { 1.0 };
                edit::replace(&mut m, n, 1, &[channels], gamma.iter().enumerate().map(|(c, g)| g * wide(c)));
                edit::replace(&mut m, n, 2, &[channels], beta.iter().enumerate().map(|(c, b)| b + wide(c) - 1.0));
            }
            Op::MatMul {} => {
                let Some(mut product) = edit::Product::of(&m, n) else { continue };
                (0..product.rows).filter(|k| k % 7 == 0).for_each(|k| product.scale_row(k, 1.0 / 8.0));
                (0..product.columns).filter(|k| k % 5 == 0).for_each(|k| product.scale_column(k, 2.0));
                product.store(&mut m);
            }
            _ => {}
        }
    }
    m
}

fn images(m: &Module) -> impl Iterator<Item = Result<Vec<vitc_ir::eval::Tensor>, Diagnostic>> + '_ {
    (0..20).map(|seed| Ok(inputs(m, seed)))
}

fn seen(m: &Module, choice: &Choice, threads: usize) -> BTreeMap<ValueId, Channels> {
    observe(m, &wanted(m, choice), images(m), threads, &mut |_| {}).unwrap()
}

pub(super) fn transformed(m: &Module, choice: &Choice) -> (Module, Vec<Applied>) {
    run(m.clone(), &seen(m, choice, 1), choice, &QuantOptions::default()).unwrap()
}

/// Only this transform.
pub(super) fn only(transform: Transform) -> Choice {
    let mut choice = Choice::none();
    choice.without.retain(|(t, _)| *t != transform);
    choice
}

/// With one scale for all rows, as far as what a transform gains is concerned.
pub(super) fn quantized(m: &Module) -> Module {
    let options = QuantOptions { without_rows: vec!["*".into()], ..QuantOptions::default() };
    let ranges = quantize::observe(m, images(m), &options, &mut |_| {}).unwrap();
    quantize::run(m, &ranges, &options).unwrap()
}

pub(super) fn float_error(a: &Module, b: &Module) -> f64 {
    (30..33)
        .map(|seed| sqnr(&outputs(a, &inputs(a, seed)), &outputs(b, &inputs(a, seed))))
        .fold(f64::INFINITY, f64::min)
}

#[test]
fn every_transform_is_exact_and_pays() {
    let m = uneven();
    let plain = float_error(&m, &quantized(&m));
    for (transform, sites) in [(Transform::Smooth, 5), (Transform::Values, 2), (Transform::Balance, 2)] {
        let (t, applied) = transformed(&m, &only(transform));
        vitc_ir::verify::verify(&t).unwrap();
        assert_eq!(applied.len(), sites, "{transform:?}: {applied:?}");
        assert!(applied.iter().all(|a| a.transform == transform && a.gain > 0.0), "{applied:?}");
        let exact = float_error(&m, &t);
        assert!(exact > 90.0, "{transform:?}: {exact} dB from the float graph");
        let after = float_error(&m, &quantized(&t));
        assert!(after > plain - 0.5, "{transform:?}: {plain} dB before, {after} dB after");
    }
    let (t, _) = transformed(&m, &Choice::default());
    let after = float_error(&m, &quantized(&t));
    assert!(after > plain + 3.0, "all: {plain} dB before, {after} dB after");
}

#[test]
fn every_form_of_smoothing_is_exact_and_pays() {
    let m = uneven();
    let plain = float_error(&m, &quantized(&m));
    for smoothing in [Smoothing::SmoothQuant, Smoothing::SqB, Smoothing::RepQ] {
        let (t, _) = transformed(&m, &Choice { smoothing, ..only(Transform::Smooth) });
        assert!(float_error(&m, &t) > 90.0, "{smoothing:?}");
        let after = float_error(&m, &quantized(&t));
        assert!(after > plain + 2.0, "{smoothing:?}: {plain} dB before, {after} dB after");
    }
}

#[test]
fn threads_do_not_change_what_is_seen() {
    let m = uneven();
    let one = seen(&m, &Choice::default(), 1);
    assert_eq!(one.len(), wanted(&m, &Choice::default()).len());
    assert_eq!(one, seen(&m, &Choice::default(), 3));
}

#[test]
fn nothing_is_done_where_it_is_not_wanted() {
    let m = uneven();
    assert!(wanted(&m, &Choice::none()).is_empty());
    let choice = Choice { without: vec![(Transform::Smooth, "nowhere*".into())], ..Choice::default() };
    let error = run(m, &BTreeMap::new(), &choice, &QuantOptions::default()).unwrap_err();
    assert!(error.to_string().contains("nowhere*"), "{error}");
}

#[test]
fn a_value_that_something_else_reads_is_left_alone() {
    let mut m = uneven();
    let norm = m.nodes.iter().find(|n| matches!(n.op, Op::LayerNorm { .. })).unwrap().result;
    let before = smooth::subjects(&m).len();
    m.output("norm", norm);
    assert_eq!(smooth::subjects(&m).len(), before - 1);
}

#[test]
fn dead_channels_do_no_harm() {
    let factors = smooth::factors(&[0.0, 1.0, f64::NEG_INFINITY, 4.0], &[1e-5, 1.0, 1.0, 1.0], 1.0);
    assert_eq!((factors[0], factors[2]), (1.0, 1.0));
    assert!((factors[3] / factors[1] - 4.0).abs() < 1e-12);
}
