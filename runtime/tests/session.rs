//! What a session computes, on how many threads, and what it refuses.

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use common::{CHANNELS, IMAGE, ROWS, checked, expected, parts, pixels, program, scale_rows, step, tensor};
use vitc_runtime::{
    Elem, Extent, InputSpec, OutputForm, ProgramParts, RuntimeError, Session, SessionOptions, Step, Tensor, TensorView,
    TensorViewMut,
};

fn session(threads: usize) -> Session {
    Session::new(program(), on(threads)).unwrap()
}

fn on(threads: usize) -> SessionOptions {
    SessionOptions { threads, ..SessionOptions::default() }
}

fn run(session: &mut Session, pixels: &[u8]) -> Vec<i32> {
    let dims = [pixels.len() / IMAGE, ROWS, CHANNELS];
    let input = TensorView::of(&dims, pixels).unwrap();
    session.run(&[input], OutputForm::Raw).unwrap()[0].to_vec().unwrap()
}

#[test]
fn every_thread_count_and_grain_gives_the_same_bits() {
    for grain in [1, 4, 64, 1000] {
        let program = checked(parts(grain));
        for threads in [1, 2, 3, 4, 7, 16] {
            let mut session = Session::new(Arc::clone(&program), on(threads)).unwrap();
            for batch in [1, 3, 2, 1] {
                let pixels = pixels(batch);
                assert_eq!(run(&mut session, &pixels), expected(&pixels), "grain {grain}, {threads} threads");
            }
        }
    }
}

#[test]
fn many_short_runs_do_not_lose_each_other() {
    for threads in [2, 5] {
        let (mut session, pixels) = (session(threads), pixels(1));
        let expected = expected(&pixels);
        for _ in 0..500 {
            assert_eq!(run(&mut session, &pixels), expected);
        }
    }
}

#[test]
fn a_row_of_a_batch_is_the_single_run() {
    let mut session = session(3);
    let pixels = pixels(4);
    let together = run(&mut session, &pixels);
    let alone: Vec<i32> = pixels.chunks_exact(IMAGE).flat_map(|image| run(&mut session, image)).collect();
    assert_eq!(together, alone);
}

#[test]
fn a_session_may_move_between_threads() {
    let mut session = session(2);
    let pixels = pixels(1);
    let first = run(&mut session, &pixels);
    let second = std::thread::spawn(move || run(&mut session, &pixels)).join().unwrap();
    assert_eq!(first, second);
}

#[test]
fn floats_are_converted_at_both_ends() {
    let mut session = session(2);
    let reals: Vec<f32> = pixels(2).iter().map(|&q| (f32::from(q) - 100.0) * 0.5).collect();
    let dims = [2, ROWS, CHANNELS];
    let outputs = session.run(&[TensorView::of(&dims, &reals).unwrap()], OutputForm::Dequantized).unwrap();
    let expected: Vec<f32> = expected(&pixels(2)).iter().map(|&q| (q - 10) as f32 * 0.25).collect();
    assert_eq!(outputs[0].to_vec::<f32>().unwrap(), expected);
    assert_eq!(outputs[0].dims(), [2, CHANNELS]);
}

#[test]
fn nan_and_infinity_come_in_as_offset_and_ends() {
    let mut session = session(1);
    let image = |nan: u8, high: u8, low: u8| -> Vec<u8> { (0..IMAGE).map(|i| [nan, high, low][i % 3]).collect() };
    let reals: Vec<f32> = (0..IMAGE).map(|i| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3]).collect();
    let dims = [1, ROWS, CHANNELS];
    let outputs = session.run(&[TensorView::of(&dims, &reals).unwrap()], OutputForm::Raw).unwrap();
    assert_eq!(outputs[0].to_vec::<i32>().unwrap(), expected(&image(100, 255, 0)));
}

static SEEN: Mutex<Option<HashSet<ThreadId>>> = Mutex::new(None);

unsafe extern "C" fn note_thread(_: *const *mut u8, begin: i64, end: i64, _: i64, scratch: *mut u8) {
    assert_eq!((end - begin, scratch as usize % 64), (1, 0));
    SEEN.lock().unwrap().get_or_insert_default().insert(std::thread::current().id());
}

/// How far [`slow_first`] and [`quick_second`] are.
static FIRST_DONE: AtomicUsize = AtomicUsize::new(0);
static SECOND_BEGUN: AtomicBool = AtomicBool::new(false);
/// Whether the second step began before the first had ended.
static AHEAD: AtomicBool = AtomicBool::new(false);
/// Milliseconds after which [`slow_first`] no longer waits.
static PATIENCE: AtomicU64 = AtomicU64::new(0);

/// The second of two items waits until the next step has begun elsewhere, or long enough for it to show.
unsafe extern "C" fn slow_first(_: *const *mut u8, begin: i64, end: i64, _: i64, _: *mut u8) {
    let patience = Instant::now() + Duration::from_millis(PATIENCE.load(Ordering::SeqCst));
    while end == 2 && !SECOND_BEGUN.load(Ordering::SeqCst) && Instant::now() < patience {
        std::thread::yield_now();
    }
    FIRST_DONE.fetch_add((end - begin) as usize, Ordering::SeqCst);
}

unsafe extern "C" fn quick_second(_: *const *mut u8, _: i64, _: i64, _: i64, _: *mut u8) {
    SECOND_BEGUN.store(true, Ordering::SeqCst);
    AHEAD.fetch_or(FIRST_DONE.load(Ordering::SeqCst) < 2, Ordering::SeqCst);
}

#[test]
fn threads_meet_where_there_is_a_barrier_and_only_there() {
    let runs_ahead = |barrier: bool| {
        PATIENCE.store(if barrier { 100 } else { 30_000 }, Ordering::SeqCst);
        let mut two = lone_step(slow_first, 2);
        two.steps.push(Step { kernel: quick_second, ..two.steps[0].clone() });
        two.steps[0].barrier = barrier;
        FIRST_DONE.store(0, Ordering::SeqCst);
        SECOND_BEGUN.store(false, Ordering::SeqCst);
        AHEAD.store(false, Ordering::SeqCst);
        Session::new(checked(two), on(2)).unwrap().run(&[], OutputForm::Raw).unwrap();
        AHEAD.load(Ordering::SeqCst)
    };
    assert!(!runs_ahead(true));
    assert!(runs_ahead(false));
}

#[test]
fn steps_without_a_barrier_have_the_same_shares() {
    for (items, grain) in [(197, 12), (1, 3), (16, 1), (5, 8)] {
        let rows = Step { grain, ..step(scale_rows, "rows", vec![], items, grain) };
        let parts = Step { grain: 3 * grain, ..step(scale_rows, "parts", vec![], 3 * items, grain) };
        for (batch, threads) in [(1, 1), (1, 2), (3, 5), (2, 8)] {
            for thread in 0..threads {
                let (rows, parts) = (rows.share(batch, thread, threads), parts.share(batch, thread, threads));
                assert_eq!((3 * rows.start, 3 * rows.end), (parts.start, parts.end), "{items} rows of {grain}");
            }
        }
    }
}

/// A program whose one kernel has no arguments.
fn lone_step(kernel: vitc_runtime::KernelFn, items: usize) -> ProgramParts {
    let mut lone = step(kernel, "lone", vec![], 0, 1);
    lone.items = Extent { per_batch: 0, fixed: items };
    ProgramParts { steps: vec![lone], inputs: vec![], outputs: vec![], ..parts(1) }
}

#[test]
fn as_many_threads_run_as_were_asked_for() {
    for threads in [1, 2, 7] {
        *SEEN.lock().unwrap() = None;
        let mut session = Session::new(checked(lone_step(note_thread, threads)), on(threads)).unwrap();
        assert_eq!(session.threads(), threads);
        session.run(&[], OutputForm::Raw).unwrap();
        session.run(&[], OutputForm::Raw).unwrap();
        let seen = SEEN.lock().unwrap().take().unwrap();
        assert_eq!(seen.len(), threads);
        assert!(seen.contains(&std::thread::current().id()));
    }
}

#[test]
fn programs_without_steps_or_items_run() {
    unsafe extern "C" fn unreachable(_: *const *mut u8, _: i64, _: i64, _: i64, _: *mut u8) {
        std::process::abort();
    }
    let mut idle = Session::new(checked(lone_step(unreachable, 0)), on(3)).unwrap();
    let empty = ProgramParts { steps: vec![], ..lone_step(unreachable, 0) };
    let mut empty = Session::new(checked(empty), on(3)).unwrap();
    for _ in 0..100 {
        idle.run(&[], OutputForm::Raw).unwrap();
        empty.run(&[], OutputForm::Raw).unwrap();
    }
}

#[cfg(target_arch = "x86_64")]
mod mxcsr {
    use super::*;

    static ODD: AtomicUsize = AtomicUsize::new(0);

    /// The control bits (rounding, masks, denormals); the low six are sticky status.
    fn control() -> u32 {
        let mut word = 0u32;
        // SAFETY: stmxcsr writes four bytes to the given address and nothing else.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack)) };
        word & !0x3f
    }

    unsafe extern "C" fn check_control(_: *const *mut u8, _: i64, _: i64, _: i64, _: *mut u8) {
        ODD.fetch_add(usize::from(control() != 0x1f80), Ordering::Relaxed);
    }

    #[test]
    fn mxcsr_is_the_default_in_kernels_and_untouched_after_a_run() {
        let before = control();
        let mut lone = Session::new(checked(lone_step(check_control, 4)), on(4)).unwrap();
        lone.run(&[], OutputForm::Raw).unwrap();
        floats_are_converted_at_both_ends();
        assert_eq!((ODD.load(Ordering::Relaxed), control()), (0, before));
    }
}

#[test]
fn the_profile_names_steps_and_counts_work() {
    let mut session = session(2);
    run(&mut session, &pixels(1));
    assert!(session.step_profiles().iter().all(|step| step.nanos == 0 && step.waited == Some(0) && step.macs == 0));
    session.profile(true);
    run(&mut session, &pixels(2));
    run(&mut session, &pixels(1));
    session.profile(false);
    run(&mut session, &pixels(1));
    let profiles = session.step_profiles();
    let names: Vec<&str> = profiles.iter().map(|step| &*step.name).collect();
    assert_eq!(names, ["scale_rows", "mix_rows", "reduce_rows"]);
    assert!(profiles.iter().all(|step| step.nanos > 0 && step.macs == 3 * IMAGE as u64));
    assert!(profiles.iter().all(|step| &*step.source == "/blocks.0"));
    assert!(profiles.iter().all(|step| step.waited > Some(0)), "reading the clock alone takes time");
}

fn refusal(inputs: &[TensorView<'_>], outputs: &mut [TensorViewMut<'_>]) -> String {
    let mut session = session(2);
    let message = session.run_into(inputs, outputs).unwrap_err().to_string();
    assert_eq!(run(&mut session, &pixels(1)), expected(&pixels(1)), "still usable");
    message
}

fn input_refusal(elem: Elem, dims: &[usize]) -> String {
    let input = Tensor::zeros(elem, dims.to_vec()).unwrap();
    let mut output = Tensor::zeros(Elem::I32, vec![1, CHANNELS]).unwrap();
    refusal(&[input.view()], &mut [output.view_mut()])
}

fn output_refusal(elem: Elem, dims: &[usize]) -> String {
    let input = Tensor::zeros(Elem::U8, vec![1, ROWS, CHANNELS]).unwrap();
    let mut output = Tensor::zeros(elem, dims.to_vec()).unwrap();
    refusal(&[input.view()], &mut [output.view_mut()])
}

#[test]
fn wrong_inputs_are_refused_by_name() {
    assert_eq!(input_refusal(Elem::I8, &[1, ROWS, CHANNELS]), "tensor 'pixels': expected u8 elements, given i8");
    let shape = "tensor 'pixels': expected shape [N, 197, 8], given";
    assert_eq!(input_refusal(Elem::U8, &[1, ROWS, 7]), format!("{shape} [1, 197, 7]"));
    assert_eq!(input_refusal(Elem::F32, &[ROWS, CHANNELS]), format!("{shape} [197, 8]"));
    assert_eq!(input_refusal(Elem::U8, &[]), format!("{shape} []"));
    assert_eq!(input_refusal(Elem::U8, &[0, ROWS, CHANNELS]), "tensor 'pixels': the batch is empty");
    assert_eq!(refusal(&[], &mut []), "the program takes 1 inputs, 0 given");
}

#[test]
fn wrong_outputs_are_refused_by_name() {
    assert_eq!(output_refusal(Elem::I8, &[1, CHANNELS]), "tensor 'logits': expected i32 elements, given i8");
    assert_eq!(output_refusal(Elem::I32, &[2, CHANNELS]), "tensor 'logits': expected batch 1, given 2");
    assert_eq!(output_refusal(Elem::I32, &[1, 9]), "tensor 'logits': expected shape [N, 8], given [1, 9]");
    let input = Tensor::zeros(Elem::U8, vec![1, ROWS, CHANNELS]).unwrap();
    assert_eq!(refusal(&[input.view()], &mut []), "the program gives 1 outputs, 0 asked for");
}

#[test]
fn outputs_without_a_scale_stay_integers() {
    let mut parts = parts(1);
    parts.outputs[0].scale.clear();
    let mut session = Session::new(checked(parts), on(1)).unwrap();
    let input = Tensor::zeros(Elem::U8, vec![1, ROWS, CHANNELS]).unwrap();
    let error = session.run(&[input.view()], OutputForm::Dequantized).unwrap_err();
    assert!(matches!(error, RuntimeError::NoScale { tensor } if tensor == "logits"));
    assert!(session.run(&[input.view()], OutputForm::Raw).is_ok());
}

#[test]
fn floats_without_a_quantization_are_refused() {
    let mut parts = parts(1);
    parts.inputs[0].quantize = None;
    let mut session = Session::new(checked(parts), on(1)).unwrap();
    let input = Tensor::zeros(Elem::F32, vec![1, ROWS, CHANNELS]).unwrap();
    let error = session.run(&[input.view()], OutputForm::Raw).unwrap_err();
    assert!(matches!(error, RuntimeError::DtypeMismatch { .. }));
}

#[test]
fn batches_of_all_inputs_and_the_fixed_batch_agree() {
    let second = InputSpec { spec: tensor("mask", Elem::U8, &[0, 1]), quantize: None };
    let mut two = parts(1);
    two.inputs.push(second);
    let mut session = Session::new(checked(two), on(1)).unwrap();
    let (image, mask) = (Tensor::zeros(Elem::U8, vec![2, ROWS, CHANNELS]).unwrap(), [0u8; 3]);
    let mask = TensorView::of(&[3, 1], &mask).unwrap();
    let error = session.run(&[image.view(), mask], OutputForm::Raw).unwrap_err();
    assert_eq!(error.to_string(), "tensor 'mask': expected batch 2, given 3");

    let fixed = ProgramParts { fixed_batch: Some(3), ..parts(1) };
    let mut session = Session::new(checked(fixed), on(1)).unwrap();
    let error = session.run(&[image.view()], OutputForm::Raw).unwrap_err();
    assert_eq!(error.to_string(), "tensor 'pixels': expected batch 3, given 2");
    assert_eq!(run(&mut session, &pixels(3)), expected(&pixels(3)));
}

#[test]
fn the_memory_limit_holds_to_the_byte() {
    let program = program();
    let needed = program.arena_bytes_per_image() + IMAGE.next_multiple_of(64) + CHANNELS * 4;
    let limited = |memory_limit| {
        let options = SessionOptions { threads: 1, memory_limit };
        let mut session = Session::new(Arc::clone(&program), options).unwrap();
        let input = Tensor::zeros(Elem::U8, vec![1, ROWS, CHANNELS]).unwrap();
        session.run(&[input.view()], OutputForm::Raw).map(drop)
    };
    assert!(limited(needed).is_ok());
    assert!(matches!(limited(needed - 1), Err(RuntimeError::BatchTooLarge { batch: 1, .. })));
}

#[test]
fn impossible_sizes_are_errors() {
    assert!(matches!(Session::new(program(), on(0)), Err(RuntimeError::ZeroThreads)));
    let wide = ProgramParts { scratch_bytes: isize::MAX as usize, ..parts(1) };
    assert!(matches!(Session::new(checked(wide), on(4)), Err(RuntimeError::Map { .. })));
    let deep = ProgramParts { arena_bytes_per_image: isize::MAX as usize, ..parts(1) };
    let options = SessionOptions { threads: 1, memory_limit: usize::MAX };
    let mut session = Session::new(checked(deep), options).unwrap();
    let input = |batch| Tensor::zeros(Elem::U8, vec![batch, ROWS, CHANNELS]).unwrap();
    for batch in [1, 3] {
        assert!(session.run(&[input(batch).view()], OutputForm::Raw).is_err());
    }
}

#[test]
fn default_threads_are_the_cores_allowed() {
    let allowed = std::thread::available_parallelism().unwrap().get();
    assert_eq!(SessionOptions::default().threads, allowed);
}
