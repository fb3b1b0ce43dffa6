//! The greedy on made-up tables, and the measurement on a small transformer.

use vitc_ir::Diagnostic;

use super::*;
use crate::clean::CleanOptions;
use crate::clean::testing::inputs;
use crate::quantize::tests::transformer;
use crate::quantize::{self, Groups, QuantOptions, Width, Widths};

/// Two knobs of weights and two of inputs whose losses are a factor times 4 to the bits that are missing.
fn table(factors: [f64; 4]) -> Vec<(Kind, Vec<(u32, f64)>)> {
    let kinds = [Kind::Weights, Kind::Inputs, Kind::Weights, Kind::Inputs];
    let losses =
        |kind: Kind, factor: f64| kind.widths().iter().map(|&b| (b, factor * 4f64.powi(8 - b as i32) * 1e-6)).collect();
    kinds.into_iter().zip(factors).map(|(kind, factor)| (kind, losses(kind, factor))).collect()
}

fn sum(state: &[u32]) -> f64 {
    state.iter().map(|&b| f64::from(b)).sum()
}

/// The true loss: what the table says, with one factor for each kind.
fn truth(table: &[(Kind, Vec<(u32, f64)>)], state: &[u32], inputs: f64) -> Loss {
    let of = |((kind, losses), bits): (&(Kind, Losses), &u32)| {
        let loss = losses.iter().find(|(b, _)| b == bits).unwrap().1;
        if *kind == Kind::Inputs { inputs * loss } else { loss }
    };
    let divergence = table.iter().zip(state).map(of).sum();
    Loss { divergence, agreement: 100.0 - 1000.0 * divergence }
}

fn to_cost(table: &[(Kind, Vec<(u32, f64)>)], most: f64, inputs: f64) -> Result<Outcome, Diagnostic> {
    let limit = Limit::Cost { of: &sum, most, words: &|bits| format!("{bits} bits") };
    search(&Problem { knobs: table, cost: &sum, limit }, &mut |state| Ok(truth(table, state, inputs)))
}

#[test]
fn the_cheapest_loss_comes_first_and_the_target_is_reached() {
    let found = to_cost(&table([1.0, 1000.0, 1.0, 1000.0]), 28.0, 1.0).unwrap();
    assert_eq!(found.state, [6, 8, 6, 8]);
    let found = to_cost(&table([1.0, 1e9, 1e9, 1e9]), 26.0, 1.0).unwrap();
    assert_eq!(found.state, [2, 8, 8, 8]);
    assert_eq!(found.refused[0], None);
    assert!(found.refused[1].is_some());
    assert_eq!(to_cost(&table([1.0; 4]), 32.0, 1.0).unwrap().state, [8; 4]);
}

/// A last step that saves too much takes an earlier one back.
#[test]
fn steps_that_the_target_does_not_need_are_given_back() {
    let table = vec![(Kind::Weights, vec![(8, 0.0), (6, 1.0)]), (Kind::Weights, vec![(8, 0.0), (2, 4.0)])];
    let found = to_cost(&table, 12.0, 1.0).unwrap();
    assert_eq!(found.state, [8, 2]);
}

#[test]
fn a_kind_that_loses_more_than_the_table_says_is_spared() {
    let table = table([1.0; 4]);
    let even = to_cost(&table, 24.0, 1.0).unwrap().state;
    let corrected = to_cost(&table, 24.0, 9.0).unwrap();
    assert_eq!(sum(&even), 24.0);
    assert!(corrected.state[1] + corrected.state[3] > even[1] + even[3], "{even:?} {corrected:?}");
    assert!(corrected.loss.divergence < truth(&table, &even, 9.0).divergence);
}

#[test]
fn a_target_below_the_fewest_bits_is_an_error_that_tells_them() {
    let error = to_cost(&table([1.0; 4]), 11.0, 1.0).unwrap_err().to_string();
    assert!(error.contains("11 bits") && error.contains("32 bits") && error.contains("12 bits"), "{error}");
}

#[test]
fn agreement_drops_no_further_than_asked() {
    let table = table([1.0, 2.0, 3.0, 4.0]);
    let drop = |most| {
        let problem = Problem { knobs: &table, cost: &sum, limit: Limit::Drop(most) };
        search::<Diagnostic>(&problem, &mut |state| Ok(truth(&table, state, 1.0))).unwrap()
    };
    let (tight, loose) = (drop(0.1), drop(1.0));
    assert!(tight.start.agreement - tight.loss.agreement <= 0.1 && loose.start.agreement - loose.loss.agreement <= 1.0);
    assert!(sum(&loose.state) < sum(&tight.state) && sum(&tight.state) < 32.0);
    assert_eq!(sum(&drop(1e9).state), 12.0);
}

fn knob<'k>(knobs: &'k Knobs, kind: Kind, name: &str) -> &'k Knob {
    knobs.all.iter().find(|k| k.kind == kind && k.names.iter().any(|n| n == name)).unwrap()
}

/// The small transformer with a name for every product.
fn named() -> vitc_ir::Module {
    let mut m = transformer(&CleanOptions::default(), [0; 4]);
    for (count, node) in m.nodes.iter_mut().filter(|n| quantize::widths::is_product(&n.op)).enumerate() {
        node.loc = Some(format!("product{count}").into());
    }
    m
}

#[test]
fn knobs_and_costs_of_a_transformer() {
    let m = named();
    let knobs = Knobs::of(&m);
    let of = |kind| knobs.all.iter().filter(|k| k.kind == kind).count();
    // patches, two blocks of q, k, v, projection and two of the MLP, the classifier
    assert_eq!(of(Kind::Weights), 14);
    // for a block: LayerNorm twice, q with k, the map with v, what is projected, GELU; the classifier's
    assert_eq!(of(Kind::Inputs), 13);
    assert!(knobs.all.iter().any(|k| k.kind == Kind::Inputs && k.names.len() == 3), "{:?}", knobs.all);
    let costs = Costs { products: knobs.products.clone(), groups: Groups::None, ..Costs::default() };
    let start = knobs.start();
    let elements: u64 = knobs.products.iter().map(|p| p.elements).sum();
    assert_eq!(costs.of(Cost::Bytes, &start), elements as f64);
    assert_eq!(costs.of(Cost::Bits, &start), 8.0);
    let fours: Vec<u32> = vec![4; start.len()];
    assert_eq!(costs.of(Cost::Bytes, &fours), elements as f64 / 2.0);
    let matrices: u64 = knobs.products.iter().filter(|p| p.matrix).map(|p| p.elements).sum();
    let grouped = Costs { groups: Groups::Auto, ..costs.clone() };
    assert_eq!(grouped.of(Cost::Bytes, &fours), elements as f64 / 2.0 + matrices as f64 / 32.0, "4 bits for 16 rows");
    let patches = &knobs.products[0];
    assert_eq!((patches.factors[0], patches.macs), (Factor::Fixed(8), 9 * 48 * 32));
    let (weights, inputs) = knobs.widths(&fours);
    assert_eq!((weights.of.len(), inputs.default), (14, Width::EIGHT));
    assert_eq!(knob(&knobs, Kind::Weights, "product0").operands.len(), 1);
}

#[test]
fn losses_fall_with_bits_add_up_and_do_not_depend_on_threads() {
    let m = named();
    let knobs = Knobs::of(&m);
    let images: Vec<_> = (0..6).map(|seed| inputs(&m, seed)).collect();
    let options = |threads| QuantOptions {
        threads,
        activations: Widths::all(Width::of_activations(4).unwrap()),
        ..QuantOptions::default()
    };
    let seen = quantize::observe(&m, images.iter().cloned().map(Ok), &options(1), &mut |_| {}).unwrap();
    let of = |threads| {
        let mut done = 0;
        let table = measure(&m, &knobs, (&seen, &images), &[0, 2, 4], &options(threads), &mut |n| done = n).unwrap();
        assert_eq!(done, measurements(&knobs, 3));
        table
    };
    let table = of(1);
    assert_eq!(table, of(3));
    for (knob, losses) in knobs.all.iter().zip(&table) {
        let (first, last) = (losses.first().unwrap(), losses.last().unwrap());
        assert_eq!(losses.iter().map(|l| l.0).collect::<Vec<_>>(), knob.kind.widths());
        assert!(last.1 > 4.0 * first.1 && last.1 > 0.0, "{knob:?} {losses:?}");
    }
    let at = |bits: u32| -> f64 { table.iter().map(|l| l.iter().find(|(b, _)| *b == bits).unwrap().1).sum() };
    let uniform = |bits: u32| {
        let mut options = options(1);
        (options.weights, options.activations) = knobs.widths(&vec![bits; knobs.all.len()]);
        let mut seen = seen.clone();
        quantize::observe_products(&m, &mut seen, images.iter().cloned().map(Ok), &options, &mut |_| {}).unwrap();
        let quantized = quantize::run(&m, &seen, &options).unwrap();
        let few: Vec<_> = [0, 2, 4].map(|i| images[i].clone()).to_vec();
        let (float, other) =
            (logits(&m, &few, 2, &mut |_| {}).unwrap(), logits(&quantized, &few, 2, &mut |_| {}).unwrap());
        loss_of(&float, &other).unwrap().divergence
    };
    let ratio = uniform(5) / at(5);
    assert!((0.2..5.0).contains(&ratio), "{ratio}");
}
