//! Choices that the cost model or a person makes: none changes a bit, each is what the kernel then does, and the model ranks
//! alternatives as the clock does.

use super::wide::product;
use super::*;
use crate::cost::{Core, Sizes};
use crate::{Choice, Choices, Split, Unit};

fn options(tier: Tier, threads: usize, all: Choice) -> Options {
    Options { tier, threads, choices: Choices { all, ..Choices::default() }, ..Options::default() }
}

/// Columns shared by threads: whole panels only, a narrow last one, one panel, fewer panels than threads, rows of every kind.
#[test]
fn threads_share_columns() {
    let all = Choice { split: Some(Split::Columns), ..Choice::default() };
    for tier in Tier::available() {
        for (i, n) in [64, 65, 128, 190, 200, 1, 256].into_iter().enumerate() {
            for (j, rows) in [1, 5, 17, 40].into_iter().enumerate() {
                let k = [64, 37, 640][(i + j) % 3];
                let to = [Elem::U8, Elem::I8, Elem::I16, Elem::I32][(i + j) % 4];
                let (mut m, y) = product(rows, k, n, to, (i + j) % 3 == 0, j % 2 == 0);
                m.output("y", y);
                let threads = 1 + (i + j) % 3;
                check_with(&m, &options(tier, threads, all), 1 + j % 2, threads, 5, &[]);
            }
        }
    }
}

#[test]
fn any_unit_and_any_size_of_copies_gives_the_same_bits() {
    for tier in Tier::available() {
        for (i, unit) in [Unit::Tiles, Unit::Vectors, Unit::Portable].into_iter().enumerate() {
            // Rows of 37 bytes are copied.
            for (k, copied_bytes) in [(37, 64), (37, 2000), (64, 0)] {
                let all = Choice { unit: Some(unit), copied_bytes: Some(copied_bytes), ..Choice::default() };
                let (mut m, y) = product(50, k, 70, Elem::I8, i == 1, false);
                m.output("y", y);
                check_with(&m, &options(tier, 2, all), 2, 2, 5, &[]);
            }
        }
    }
}

/// Every kernel that a tier has an alternative for says so, and takes it.
#[test]
fn what_is_offered_can_be_chosen() {
    let (mut m, y) = product(48, 384, 192, Elem::U8, true, false);
    m.output("y", y);
    for tier in Tier::available() {
        let compiled = compile(&m, &options(tier, 2, Choice::default())).unwrap();
        let offers: Vec<_> = compiled.offers.iter().flatten().collect();
        assert_eq!(offers.is_empty(), !tier.is_wide(), "{tier:?}");
        for offer in offers {
            for other in &offer.others {
                let choices = Choices { kernels: [(offer.key.clone(), *other)].into(), ..Choices::default() };
                let options = Options { tier, threads: 2, choices, ..Options::default() };
                let chosen = compile(&m, &options).unwrap();
                match &chosen.offers[0] {
                    Some(taken) => assert_eq!(taken.chosen, *other),
                    None => assert_eq!(other.unit, Some(Unit::Portable)),
                }
                check_with(&m, &options, 1, 2, 5, &[]);
            }
        }
    }
}

#[test]
fn one_row_and_two_threads_share_columns_by_themselves() {
    let (mut m, y) = product(1, 768, 3072, Elem::I8, false, false);
    m.output("y", y);
    for tier in Tier::available().into_iter().filter(|t| t.is_wide()) {
        let panels = compile(&m, &options(tier, 2, Choice::default())).unwrap().parts.steps[0].items;
        assert_eq!((panels.per_batch, panels.fixed), (0, 48));
        check_with(&m, &options(tier, 2, Choice::default()), 3, 2, 5, &[]);
    }
}

/// The cost model beside the clock: the cycles it counts, at the clock that fits best, may be half or twice what is measured.
#[test]
#[ignore = "a measurement"]
fn measured() {
    let shapes = [(197, 384, 1536), (197, 1536, 384), (197, 192, 192), (49, 96, 96), (12, 384, 384), (1, 384, 1000)];
    let core = Core::of(Tier::Avx512Vnni);
    let mut ratios = Vec::new();
    for (rows, k, n) in shapes {
        for unit in [Unit::Vectors, Unit::Portable] {
            let (mut m, y) = product(rows, k, n, Elem::I8, false, false);
            m.output("y", y);
            let all = Choice { unit: Some(unit), ..Choice::default() };
            let compiled = compile(&m, &options(Tier::Avx512Vnni, 1, all)).unwrap();
            let options = SessionOptions { threads: 1, ..SessionOptions::default() };
            let mut session = Session::new(Arc::new(compiled.into_program().unwrap()), options).unwrap();
            let bytes = Random(3).bytes(rows * k);
            let dims = [1, rows, k];
            let view = TensorView::new(vitc_runtime::Elem::U8, &dims, &bytes).unwrap();
            let mut best = u64::MAX;
            for _ in 0..300 {
                session.profile(true);
                session.run(&[view], OutputForm::Raw).unwrap();
                best = best.min(session.step_profiles()[0].nanos);
            }
            let cycles = core.product(unit, Sizes { rows, k, n });
            println!("MEASURED {rows:4} x {k:4} x {n:4} {unit:?}: {cycles:9.0} cycles, {:8.1} us", best as f64 / 1e3);
            ratios.push(cycles / best as f64);
        }
    }
    let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len() as f64).exp();
    assert!(ratios.iter().all(|r| (0.5..2.0).contains(&(r / mean))), "{mean:.2} cycles a nanosecond: {ratios:.2?}");
}
