//! The forecast of a plan's time.

use super::wide::product;
use super::*;
use crate::cost::{Core, Sizes};
use crate::{Unit, predict};

#[test]
fn a_product_costs_what_the_core_says_and_a_view_nothing() {
    let (mut m, y) = product(48, 384, 192, Elem::U8, false, false);
    let moved = node(&mut m, Op::Reshape { shape: batched(&[48 * 192]) }, &[y]);
    m.output("y", moved);
    m.nodes.iter_mut().filter(|n| n.result == moved).for_each(|n| n.place = None);
    let core = Core::of(Tier::Avx512Vnni);
    let expected = core.pass(Unit::Vectors, Sizes { rows: 48, k: 384, n: 192 }, 1);
    let prediction = predict(&m, Tier::Avx512Vnni);
    assert_eq!(prediction.nodes.len(), 1, "{prediction:?}");
    assert_eq!((prediction.nodes[0].op, prediction.cycles()), ("fused.matmul", expected));
    assert!((prediction.ms() - expected / (1e6 * prediction.clock_ghz)).abs() < 1e-12);
}

/// Twice the sizes cost twice as much and more, and a slower tier more than a faster one.
#[test]
fn work_costs() {
    let cycles = |rows: usize, tier| {
        let (mut m, y) = product(rows, 384, 192, Elem::U8, false, false);
        m.output("y", y);
        predict(&m, tier).cycles()
    };
    let tiers = [Tier::AmxInt8, Tier::Avx512Vnni, Tier::Portable];
    for tier in tiers {
        assert!(cycles(192, tier) > 1.5 * cycles(96, tier), "{tier:?}");
    }
    assert!(tiers.map(|tier| cycles(192, tier)).is_sorted());
}
