//! Times of kernels by the bits of weights: plans whose weights all have so many bits, each run a few times on noise. Bits of what
//! products read change no instruction.

use std::time::Duration;

use anyhow::Result;
use vitc_ir::Stage;
use vitc_passes::mixed::{Kind, Times};
use vitc_passes::quantize::{self, QuantOptions, Rounding, Width, Widths};

use super::Study;
use crate::compiler::Compiled;
use crate::io::progress::Progress;
use crate::model::Model;
use crate::tuning::Found;
use crate::walk::{self, Journal, WalkOptions};

/// Runs of which the fastest time of each step counts.
const RUNS: usize = 9;

/// What every product takes for an image with weights of each width.
pub(super) fn measure(study: &Study<'_>, tier: vitc_codegen::Tier, walk: &WalkOptions) -> Result<Times> {
    let mut times = Times::default();
    let progress = Progress::new("timing kernels", Kind::Weights.widths().len(), study.quiet);
    for &bits in Kind::Weights.widths() {
        let steps = steps(study, bits, tier, walk)?;
        let (mut of_products, total) = (0.0, steps.iter().map(|(_, nanos)| nanos).sum::<f64>());
        for name in study.knobs.products.iter().filter(|p| p.elements > 0).map(|p| &p.name) {
            if times.products.contains_key(&(name.clone(), bits)) {
                continue;
            }
            let nanos: f64 = steps.iter().filter(|(source, _)| is_of(source, name)).map(|(_, nanos)| nanos).sum();
            of_products += nanos;
            times.products.insert((name.clone(), bits), nanos);
        }
        if bits == 8 {
            times.rest = (total - of_products).max(0.0);
        }
        progress.advance(1);
    }
    Ok(times)
}

/// Whether a step came from a product: it has the names of all nodes that were fused.
fn is_of(source: &str, product: &str) -> bool {
    let first = product.split(" + ").next().unwrap_or(product);
    source.split(" + ").any(|part| part == first)
}

/// Each step of a plan with the nodes that it came from and its nanoseconds for an image.
fn steps(study: &Study<'_>, bits: u32, tier: vitc_codegen::Tier, walk: &WalkOptions) -> Result<Vec<(String, f64)>> {
    let named = Width::of_weights(bits).map(|width| ("*".to_string(), width));
    let options = QuantOptions {
        weights: Widths { of: named.into_iter().collect(), ..Widths::default() },
        activations: Widths::default(),
        rounding: Rounding::Nearest,
        ..study.base.clone()
    };
    let quantized = quantize::run(study.module, &study.seen, &options).map_err(super::failed)?;
    let module = walk::advance(quantized, Stage::Plan, walk, &mut Journal::default())?;
    let compiled = Compiled { module, journal: Journal::default(), tuning: Found::Nothing };
    let mut model = Model::load_on(&compiled, study.base.threads, tier)?;
    let images = model.fixed_images().unwrap_or(1);
    let mut feed = model.noise_feed(images, 1)?;
    model.run_feed(&mut feed)?;
    let mut least: Vec<(String, Duration)> = Vec::new();
    for _ in 0..RUNS {
        model.profile(true);
        model.run_feed(&mut feed)?;
        for (i, step) in model.step_profiles().iter().enumerate() {
            let took = Duration::from_nanos(step.nanos + step.waited.unwrap_or(0));
            match least.get_mut(i) {
                Some((_, known)) => *known = took.min(*known),
                None => least.push((step.source.to_string(), took)),
            }
        }
    }
    Ok(least.into_iter().map(|(source, took)| (source, took.as_nanos() as f64 / images as f64)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_of_the_products_fused_into_it() {
        assert!(is_of("/fc1/MatMul + /fc1/Add + /act", "/fc1/MatMul + /fc1/Add"));
        assert!(!is_of("/fc10/MatMul", "/fc1/MatMul"));
    }
}
