//! A three-step program with hand-written kernels: scale through the scratch, mix with the next row, reduce.
#![allow(dead_code)]

use std::sync::Arc;

use vitc_runtime::{Buffer, Elem, Extent, InputSpec, OutputSpec, Program, ProgramParts, Quantize, Step, TensorSpec};

pub const ROWS: usize = 197;
pub const CHANNELS: usize = 8;
pub const IMAGE: usize = ROWS * CHANNELS;
pub const WEIGHTS: [i32; CHANNELS] = [3, -5, 7, 11, -13, 17, 19, -23];
const ARENA_BYTES: usize = IMAGE.next_multiple_of(16) * size_of::<i32>();

/// `a[row][c] = x[row][c] * w[c]`, by way of the scratch. Arguments: x, w, a.
pub unsafe extern "C" fn scale_rows(args: *const *mut u8, begin: i64, end: i64, _: i64, scratch: *mut u8) {
    // SAFETY: the step below gives these three arguments, `rows * N` items and a row of scratch.
    unsafe {
        let (x, w, a) = (*args, (*args.add(1)).cast::<i32>(), (*args.add(2)).cast::<i32>());
        let row = scratch.cast::<i32>();
        for item in begin as usize..end as usize {
            for c in 0..CHANNELS {
                row.add(c).write(i32::from(x.add(item * CHANNELS + c).read()) * w.add(c).read());
            }
            a.add(item * CHANNELS).copy_from_nonoverlapping(row, CHANNELS);
        }
    }
}

/// `b[row][c] = a[row][c] + 3 * a[row + 1][c + 1]`, wrapping within the image. Arguments: a, b.
pub unsafe extern "C" fn mix_rows(args: *const *mut u8, begin: i64, end: i64, _: i64, _: *mut u8) {
    // SAFETY: the step below gives these two arguments and `rows * N` items.
    unsafe {
        let (a, b) = ((*args).cast::<i32>(), (*args.add(1)).cast::<i32>());
        for item in begin as usize..end as usize {
            let (image, row) = (item / ROWS, item % ROWS);
            let next = image * ROWS + (row + 1) % ROWS;
            for c in 0..CHANNELS {
                let neighbour = a.add(next * CHANNELS + (c + 1) % CHANNELS).read();
                b.add(item * CHANNELS + c).write(a.add(item * CHANNELS + c).read() + 3 * neighbour);
            }
        }
    }
}

/// `y[image][c] = sum of b[row][c] * (row + 1)`. Arguments: b, y.
pub unsafe extern "C" fn reduce_rows(args: *const *mut u8, begin: i64, end: i64, _: i64, _: *mut u8) {
    // SAFETY: the step below gives these two arguments and `N` items.
    unsafe {
        let (b, y) = ((*args).cast::<i32>(), (*args.add(1)).cast::<i32>());
        for image in begin as usize..end as usize {
            for c in 0..CHANNELS {
                let column = (0..ROWS).map(|row| b.add(image * IMAGE + row * CHANNELS + c).read() * (row as i32 + 1));
                y.add(image * CHANNELS + c).write(column.sum());
            }
        }
    }
}

pub fn step(kernel: vitc_runtime::KernelFn, name: &str, args: Vec<Buffer>, per_batch: usize, grain: usize) -> Step {
    let items = Extent { per_batch, fixed: 0 };
    let (name, source, macs_per_image) = (name.into(), "/blocks.0".into(), IMAGE as u64);
    Step { kernel, args, items, grain, barrier: true, name, source, macs_per_image }
}

pub fn tensor(name: &str, elem: Elem, dims: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), elem, dims: dims.to_vec() }
}

pub fn parts(grain: usize) -> ProgramParts {
    let a = Buffer::Arena { offset: 0, len: IMAGE * 4 };
    let b = Buffer::Arena { offset: ARENA_BYTES, len: IMAGE * 4 };
    let w = Buffer::Const { offset: 4, len: CHANNELS * 4 };
    let consts: Vec<u8> = [0].iter().chain(&WEIGHTS).flat_map(|w| w.to_ne_bytes()).collect();
    let quantize = Quantize { scale: vec![0.5], offset: vec![100.0], axis: 0 };
    ProgramParts {
        steps: vec![
            step(scale_rows, "scale_rows", vec![Buffer::Input(0), w, a], ROWS, grain),
            step(mix_rows, "mix_rows", vec![a, b], ROWS, grain),
            step(reduce_rows, "reduce_rows", vec![b, Buffer::Output(0)], 1, 1),
        ],
        consts: Arc::new(vitc_runtime::ConstMemory::new(&consts).unwrap()),
        stored: vec![],
        arena_bytes_per_image: 2 * ARENA_BYTES,
        scratch_bytes: CHANNELS * 4,
        inputs: vec![InputSpec { spec: tensor("pixels", Elem::U8, &[0, ROWS, CHANNELS]), quantize: Some(quantize) }],
        outputs: vec![OutputSpec {
            spec: tensor("logits", Elem::I32, &[0, CHANNELS]),
            scale: vec![0.25],
            zero_point: 10,
        }],
        code: Arc::new(()),
        fixed_batch: None,
    }
}

pub fn checked(parts: ProgramParts) -> Arc<Program> {
    // SAFETY: the kernels of these tests keep to their arguments as declared in the steps.
    Arc::new(unsafe { Program::new(parts) }.unwrap())
}

pub fn program() -> Arc<Program> {
    checked(parts(4))
}

pub fn pixels(batch: usize) -> Vec<u8> {
    (0..batch * IMAGE).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

/// The program in plain Rust.
pub fn expected(pixels: &[u8]) -> Vec<i32> {
    pixels.chunks_exact(IMAGE).flat_map(expected_image).collect()
}

fn expected_image(x: &[u8]) -> Vec<i32> {
    let a = |row: usize, c: usize| i32::from(x[row * CHANNELS + c]) * WEIGHTS[c];
    let b = |row: usize, c: usize| a(row, c) + 3 * a((row + 1) % ROWS, (c + 1) % CHANNELS);
    (0..CHANNELS).map(|c| (0..ROWS).map(|row| b(row, c) * (row as i32 + 1)).sum()).collect()
}
