//! The compiled code computes what `ir::eval` says, to the bit, in integers only, whatever the threads (T15) and the batch
//! neighbours (T16).

use std::sync::LazyLock;

use vitc::Compiled;
use vitc::model::Emitted;
use vitc_codegen::Tier;
use vitc_passes::integerize::Nonlinear;
use vitc_passes::quantize::{Codes, CodesOf, Width, Widths};
use vitc_tests::{Sample, bundled, deit, evaluated, executed, plan_input, program, program_on, tiers};

static BUNDLED: LazyLock<(Sample, Compiled)> = LazyLock::new(|| {
    let sample = bundled();
    let compiled = sample.compiler(16).compile_file(&sample.model).unwrap();
    (sample, compiled)
});

/// On every tier.
fn equals_the_evaluator(sample: &Sample, compiled: &Compiled, images: usize) {
    let plan = &compiled.module;
    let programs: Vec<_> = tiers().into_iter().map(|tier| (tier, program_on(plan, tier).unwrap())).collect();
    let pixels = sample.pixels(images).unwrap();
    for (i, image) in pixels.chunks(sample.preprocess.pixels()).enumerate() {
        let input = plan_input(plan, image, 1).unwrap();
        let want = evaluated(plan, &input).unwrap();
        assert!(want.iter().any(|v| *v != want[0]), "{}: image {i} has a constant output", sample.name);
        for (tier, program) in &programs {
            let have = executed(program, &input, 1).unwrap();
            assert!(want == have, "{}: image {i} differs from the evaluator on {tier:?}", sample.name);
        }
    }
}

#[test]
fn the_bundled_model_equals_the_evaluator() {
    equals_the_evaluator(&BUNDLED.0, &BUNDLED.1, 8);
}

#[test]
fn the_published_forms_equal_the_evaluator() {
    let sample = &BUNDLED.0;
    for nonlinear in [Nonlinear::Shift, Nonlinear::Ibert] {
        let compiled = sample.compiler(16).nonlinear(nonlinear).compile_file(&sample.model).unwrap();
        equals_the_evaluator(sample, &compiled, 3);
        computes_in_integers(sample, &compiled);
    }
}

#[test]
fn activations_of_few_bits_equal_the_evaluator() {
    let sample = &BUNDLED.0;
    let four = Widths::all(Width::of_activations(4).unwrap());
    for (codes, word) in Codes::WORDS {
        let compiler = sample.compiler(16).activations(four.clone()).codes(CodesOf::all(codes));
        let compiled = compiler.compile_file(&sample.model).unwrap();
        equals_the_evaluator(sample, &compiled, 2);
        let attention = compiled.module.nodes.iter().any(|n| n.op.name() == "fused.attention");
        assert!(attention, "{word}: attention is one kernel, whatever the codes");
    }
}

#[test]
fn extreme_bytes_equal_the_evaluator() {
    let (sample, compiled) = &*BUNDLED;
    let program = program(&compiled.module).unwrap();
    for byte in [0u8, 255] {
        let input = plan_input(&compiled.module, &vec![byte; sample.preprocess.pixels()], 1).unwrap();
        assert!(evaluated(&compiled.module, &input).unwrap() == executed(&program, &input, 2).unwrap(), "all {byte}");
    }
}

#[test]
fn real_deit_equals_the_evaluator() {
    let Some(sample) = deit("real_deit_equals_the_evaluator") else { return };
    let compiled = sample.compiler(4).compile_file(&sample.model).unwrap();
    equals_the_evaluator(&sample, &compiled, 1);
    computes_in_integers(&sample, &compiled);
}

fn computes_in_integers(sample: &Sample, compiled: &Compiled) {
    let emitted = Emitted::of(&compiled.module, Tier::best()).unwrap();
    assert!(emitted.code_bytes() > 0 && emitted.macs_per_image() > 0);
    for kernel in &emitted.kernels {
        let floats = vitc_codegen::count_float_instructions(&kernel.code[..kernel.instructions]);
        assert_eq!(floats, 0, "{}: kernel {} computes with floats", sample.name, kernel.name);
    }
    assert_eq!(emitted.float_instructions(), 0);
}

#[test]
fn the_compiled_code_has_no_float_instruction() {
    computes_in_integers(&BUNDLED.0, &BUNDLED.1);
}

#[test]
fn every_tier_gives_the_same_bits() {
    let (sample, compiled) = &*BUNDLED;
    let input = plan_input(&compiled.module, &sample.pixels(1).unwrap(), 1).unwrap();
    let run = |tier| executed(&Emitted::of(&compiled.module, tier).unwrap().program, &input, 1).unwrap();
    let baseline = run(Tier::Baseline);
    for tier in Tier::available() {
        assert!(run(tier) == baseline, "{}", tier.word());
    }
}

#[test]
fn t15_threads_do_not_change_a_bit() {
    let (sample, compiled) = &*BUNDLED;
    let program = program(&compiled.module).unwrap();
    for images in [1, 3] {
        let input = plan_input(&compiled.module, &sample.pixels(images).unwrap(), images).unwrap();
        let one = executed(&program, &input, 1).unwrap();
        for threads in (2..=8).chain([16]) {
            assert!(executed(&program, &input, threads).unwrap() == one, "{threads} threads give other bits than one");
        }
    }
}

#[test]
fn threads_carry_their_rows_through_regions() {
    let barriers = |steps: &[vitc_runtime::Step]| steps.iter().filter(|step| step.barrier).count();
    let (sample, compiled) = &*BUNDLED;
    let program = program(&compiled.module).unwrap();
    let softmax = ["int.exp", "fused.attention"];
    let blocks = compiled.module.nodes.iter().filter(|n| softmax.contains(&n.op.name())).count();
    assert!(blocks > 0);
    // Two a block, after the tokens and after the attention; the rest is for the patches and the classes.
    assert!(barriers(program.steps()) <= 2 * blocks + 8, "{} barriers", barriers(program.steps()));
    equals_the_evaluator(sample, compiled, 1);
}

#[test]
fn t16_a_row_of_a_batch_is_the_single_run() {
    let (sample, compiled) = &*BUNDLED;
    let program = program(&compiled.module).unwrap();
    let pixels = sample.pixels(5).unwrap();
    let batch = executed(&program, &plan_input(&compiled.module, &pixels, 5).unwrap(), 2).unwrap();
    let rows: Vec<&[i64]> = batch.chunks(batch.len() / 5).collect();
    for (i, image) in pixels.chunks(sample.preprocess.pixels()).enumerate() {
        let single = executed(&program, &plan_input(&compiled.module, image, 1).unwrap(), 1).unwrap();
        assert!(single == rows[i], "row {i} of the batch is not the single run");
    }
}
