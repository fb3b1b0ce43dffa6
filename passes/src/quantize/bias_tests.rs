//! Bias correction on small transformer blocks whose roundings err on one side.

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Diagnostic, Module, Op};

use super::bias::{Correction, Errors};
use super::tests::{calibrate, pixel_options, transformer};
use super::{Corrected, QuantOptions, Rounding, Width, Widths, correct, run, wants_correction};
use crate::clean::testing::{inputs, outputs, sqnr};

/// Weights of two bits, to nearest: their errors have means.
fn coarse(threads: usize) -> QuantOptions {
    let weights = Widths::all(Width::of_weights(2).unwrap());
    QuantOptions { weights, rounding: Rounding::Nearest, threads, ..QuantOptions::default() }
}

fn images(m: &Module, seeds: std::ops::Range<u64>) -> impl Iterator<Item = Result<Vec<Tensor>, Diagnostic>> {
    seeds.map(|seed| Ok(inputs(m, seed)))
}

fn corrected(m: &Module, seeds: std::ops::Range<u64>, options: &QuantOptions) -> (Module, Vec<Corrected>) {
    let q = run(m, &calibrate(m, options), options).unwrap();
    correct(m, q, images(m, seeds), options, &mut |_| {}).unwrap()
}

/// The largest mean error of a channel of the products, as a share of the root mean square error, over some images.
fn lopsided(m: &Module, q: &Module, seeds: std::ops::Range<u64>) -> f64 {
    let products = |m: &Module, x: &[Tensor]| {
        let mut all = Vec::new();
        let mut see = |v, t: &Tensor| {
            if m.node_of(v).is_some_and(|n| matches!(n.op, Op::MatMul {}) && n.operands.len() == 3) {
                all.push(t.clone());
            }
        };
        eval::trace(m, x, &mut see).unwrap();
        all
    };
    let mut errors: Vec<Vec<Vec<f64>>> = Vec::new();
    for seed in seeds {
        let x = inputs(m, seed);
        for (i, (a, b)) in products(m, &x).iter().zip(products(q, &x)).enumerate() {
            let channels = *a.shape.last().unwrap();
            errors.resize_with(errors.len().max(i + 1), || vec![Vec::new(); channels]);
            let both = a.as_f32().unwrap().iter().zip(b.as_f32().unwrap());
            both.enumerate().for_each(|(k, (x, y))| errors[i][k % channels].push(f64::from(x - y)));
        }
    }
    let mean = |e: &Vec<f64>| e.iter().sum::<f64>() / e.len() as f64;
    let rms = |e: &Vec<f64>| (e.iter().map(|e| e * e).sum::<f64>() / e.len() as f64).sqrt();
    errors.iter().flatten().map(|e| mean(e).abs() / rms(e)).fold(0.0, f64::max)
}

#[test]
fn means_of_errors_go_and_unseen_images_gain() {
    let m = transformer(&pixel_options(), [0; 4]);
    let options = coarse(1);
    let plain = run(&m, &calibrate(&m, &options), &options).unwrap();
    let (found, report) = corrected(&m, 0..40, &options);
    assert!(report.len() > 8 && report.iter().all(|c| c.gain > 0.0 && !c.node.is_empty()), "{report:?}");
    let (before, after) = (lopsided(&m, &plain, 0..40), lopsided(&m, &found, 0..40));
    assert!(before > 0.5 && after < 0.5 * before, "{before} before, {after} after");
    let db =
        |q: &Module| (200..240).map(|seed| inputs(&m, seed)).map(|x| sqnr(&outputs(&m, &x), &outputs(q, &x))).sum();
    let (before, after): (f64, f64) = (db(&plain), db(&found));
    assert!(after > before + 40.0, "{} dB before, {} dB after", before / 40.0, after / 40.0);
}

#[test]
fn the_same_with_any_number_of_threads_and_only_where_it_may() {
    let m = transformer(&pixel_options(), [0; 4]);
    let bits = |threads| vitc_ir::text::print(&corrected(&m, 0..9, &coarse(threads)).0).blob;
    assert_eq!(bits(1), bits(3));
    let (_, all) = corrected(&m, 0..9, &coarse(1));
    let but_one = QuantOptions { without_bias: vec![all[2].node.clone()], ..coarse(1) };
    let (_, less) = corrected(&m, 0..9, &but_one);
    assert!(less.iter().all(|c| c.node != all[2].node) && less[..2] == all[..2], "{less:?}");
    assert!(corrected(&m, 0..9, &QuantOptions { without_bias: vec!["*".into()], ..coarse(1) }).1.is_empty());
    assert!(corrected(&m, 0..1, &coarse(1)).1.is_empty(), "one image tells nothing of others");
}

/// Below 8 bits, or where it is asked for; never in a model that came quantized, nor where all of it is left out.
#[test]
fn correction_is_wanted_of_few_bits_or_by_name() {
    let m = transformer(&pixel_options(), [0; 4]);
    let (few, bytes) = (coarse(1), QuantOptions::default());
    let asked = QuantOptions { bias_of_bytes: true, ..QuantOptions::default() };
    let left_out = QuantOptions { without_bias: vec!["*".into()], ..coarse(1) };
    assert_eq!([&few, &bytes, &asked, &left_out].map(|o| wants_correction(&m, o)), [true, false, true, false]);
    let came_quantized = run(&m, &calibrate(&m, &bytes), &bytes).unwrap();
    assert!(![&few, &asked].into_iter().any(|o| wants_correction(&came_quantized, o)));
}

/// A channel whose errors have a mean is corrected by nearly all of it, one whose errors cancel by nothing.
#[test]
fn what_may_be_chance_is_left_alone() {
    let image = |a: f32, b: f32| Errors::of(&[a, b, a, b], &[0.0; 4], 2);
    let errors: Vec<Errors> = (0..16).map(|i| image(1.0, if i % 2 == 0 { 1.5 } else { -1.0 })).collect();
    let found = Correction::of(&errors).unwrap();
    assert!((found.bias[0] - 1.0).abs() < 0.01 && found.bias[1] == 0.0, "{:?}", found.bias);
    let noise: Vec<Errors> = (0..16).map(|i| image(0.0, if i % 2 == 0 { 1.0 } else { -1.0 })).collect();
    assert!(Correction::of(&noise).is_none() && Correction::of(&[image(0.0, 0.0), image(0.0, 0.0)]).is_none());
}

/// One row a hundred times as wrong as the rest decides for none but itself.
#[test]
fn rows_with_much_noise_count_little() {
    let mut wrong = vec![0.1f32; 40];
    wrong[..2].copy_from_slice(&[-10.0, -10.0]);
    let errors = Errors::of(&wrong, &[0.0; 40], 2);
    assert!(errors.mean.iter().all(|m| *m > 0.05), "{:?}", errors.mean);
}
