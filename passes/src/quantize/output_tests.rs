//! Ranges by the error of products: what nobody multiplies may be clipped, what everybody does may not.

use super::given::Grid;
use super::output::{OutputError, Samples, readers};
use super::sites::{Role, Sites};
use super::tests::{calibrate, pixel_options, transformer};
use super::{Codes, CodesOf, Observer, QuantOptions, Width, Widths, observe, run};
use crate::clean::testing::{Build, batched, inputs, outputs, sqnr};
use vitc_ir::eval::Tensor;
use vitc_ir::{Elem, Module, Op, Quant, TensorType};

fn few(observer: Observer, codes: Codes, threads: usize) -> QuantOptions {
    let activations = Widths::all(Width::of_activations(4).unwrap());
    let codes = CodesOf::all(codes);
    QuantOptions { observer, activations, codes, without_rows: vec!["*".into()], threads, ..QuantOptions::default() }
}

/// A left operand whose first channel is wide and meets no weight.
#[test]
fn a_channel_that_counts_for_nothing_may_be_clipped() {
    let mut b = Build::new(1);
    let x = b.m.input("x", TensorType::f32(batched(&[8, 4])));
    let weights: Vec<f32> = (0..4 * 3).map(|i| if i < 3 { 0.0 } else { 1.0 - 0.1 * i as f32 }).collect();
    let w = b.values(&[4, 3], &weights);
    let y = b.op(Op::MatMul {}, &[x, w]);
    let m = b.done(y);
    let read = readers(&m);
    let mut samples = Samples::default();
    let values = (0..32).map(|i| if i % 4 == 0 { 4.0 } else { (i * 7 % 10) as f32 / 10.0 }).collect();
    samples.add(&m, &read[&m.inputs[0].value], 0, &Tensor::f32(&[1, 8, 4], values));
    let members = [(m.inputs[0].value, Role::Unsigned)];
    let output = OutputError::of(&m, &members, &samples).unwrap();
    let make = |(low, high): (f64, f64)| {
        let scale = (high - low.min(0.0)) / 15.0;
        let quant = Quant::per_tensor(scale, (-low.min(0.0) / scale).round() as i32);
        Grid::narrow(Elem::U8, quant, Width::of_activations(4).unwrap())
    };
    let whole = make((0.0, 4.0));
    let found = output.refine(whole.clone(), make);
    assert!(output.on(&found) < 0.5 * output.on(&whole) && found.quant.scale_at(0) < whole.quant.scale_at(0));
    assert!(OutputError::of(&m, &members, &Samples::default()).is_none());
}

#[test]
fn both_operands_of_attention_tell_of_one_matrix() {
    let m = transformer(&pixel_options(), [0; 4]);
    let calibration = calibrate(&m, &few(Observer::Output, Codes::Uniform, 1));
    let sites = Sites::of(&m);
    let scores = m.nodes.iter().filter(|n| n.op == (Op::MatMul {}) && m.const_of(n.operands[1]).is_none());
    let mut told = 0;
    for (v, role) in scores.flat_map(|n| [(n.operands[0], Role::Unsigned), (n.operands[1], Role::Signed)]) {
        let origins = super::sites::origins(&m, v);
        let members: Vec<_> = origins.into_iter().map(|o| (o, role)).collect();
        assert!(sites.group(members[0]).is_some());
        told += usize::from(OutputError::of(&m, &members, &calibration.samples).is_some());
    }
    assert_eq!(told, 8, "q, k, the map and v of two blocks");
}

#[test]
fn it_beats_the_ranges_it_starts_from_whatever_the_threads() {
    let m = transformer(&pixel_options(), [0; 4]);
    let module = |observer, codes, threads| {
        let options = few(observer, codes, threads);
        let images = (0..9).map(|seed| Ok(inputs(&m, seed)));
        run(&m, &observe(&m, images, &options, &mut |_| {}).unwrap(), &options).unwrap()
    };
    let db = |q: &Module| {
        let each = (200..240).map(|seed| inputs(&m, seed)).map(|x| sqnr(&outputs(&m, &x), &outputs(q, &x)));
        each.sum::<f64>() / 40.0
    };
    let bits = |q: &Module| vitc_ir::text::print(q).text;
    for codes in [Codes::Uniform, Codes::OptM] {
        let found = module(Observer::Output, codes, 1);
        assert!(bits(&found) == bits(&module(Observer::Output, codes, 3)));
        assert!(bits(&found) != bits(&module(Observer::Auto, codes, 1)), "{codes:?}: it chooses otherwise");
    }
    let [found, before] = [Observer::Output, Observer::Auto].map(|o| db(&module(o, Codes::Uniform, 1)));
    assert!(found > before + 0.2, "{found} dB, {before} dB before");
}
