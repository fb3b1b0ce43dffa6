//! A compiled program: a list of kernel calls over planned buffers, every figure of which has been checked.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::RuntimeError;
use crate::tensor::{Elem, checked_byte_len};

/// A compiled kernel.
///
/// `args` is the step's table of buffer pointers, in the order of [`Step::args`]. The kernel handles the work items
/// `begin..end`. `batch` is the number of images `N` of the run. `scratch` points to [`Program::scratch_bytes`] bytes
/// that belong to the calling thread alone, 64-byte aligned, with unspecified contents.
///
/// A kernel is called for disjoint ranges by several threads at once, leaves MXCSR, the callee-saved registers and
/// the tile state as the platform's ABI asks, and never unwinds.
pub type KernelFn = unsafe extern "C" fn(args: *const *mut u8, begin: i64, end: i64, batch: i64, scratch: *mut u8);

/// A count that grows with the batch: `per_batch * N + fixed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Factor of the batch.
    pub per_batch: usize,
    /// Part that does not depend on the batch.
    pub fixed: usize,
}

impl Extent {
    /// The count for a batch of `batch` images, or `None` when it does not fit.
    pub fn at(self, batch: usize) -> Option<usize> {
        let count = self.per_batch.checked_mul(batch)?.checked_add(self.fixed)?;
        i64::try_from(count).is_ok().then_some(count)
    }
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// Activations: `len * N` bytes at `arena + offset * N`. The arena is at least 64-byte aligned.
    Arena {
        /// Bytes from the start of the arena, per image.
        offset: usize,
        /// Bytes, per image.
        len: usize,
    },
    /// Constants: `len` bytes at `consts + offset`. Kernels only read them.
    Const {
        /// Bytes from the start of the constants.
        offset: usize,
        /// Bytes.
        len: usize,
    },
    /// Constants that lie where they were stored: all `len` bytes of the stored constant of this index, 64-byte aligned.
    /// Kernels only read them.
    Stored {
        /// Index among the stored constants.
        index: usize,
        /// Bytes.
        len: usize,
    },
    /// The whole input of this index, 64-byte aligned, in its declared element type. Kernels only read it.
    Input(usize),
    /// The whole output of this index, 64-byte aligned, in its declared element type.
    Output(usize),
}

/// One kernel call.
#[derive(Clone, Debug)]
pub struct Step {
    /// The kernel.
    pub kernel: KernelFn,
    /// Its buffers.
    pub args: Vec<Buffer>,
    /// Number of work items.
    pub items: Extent,
    /// Threads share the items at multiples of this number.
    pub grain: usize,
    /// Whether all threads finish this step before any starts the next one. Otherwise each goes on by itself, and the
    /// next step divides into the same shares: as many grains for every batch.
    pub barrier: bool,
    /// Name of the kernel.
    pub name: Arc<str>,
    /// Names of the ONNX nodes that the step came from.
    pub source: Arc<str>,
    /// Multiply-accumulates per image, for the profile.
    pub macs_per_image: u64,
}

impl Step {
    /// The items of one of `threads` threads; none when they are more than can be counted.
    pub fn share(&self, batch: usize, thread: usize, threads: usize) -> Range<usize> {
        share(self.items.at(batch).unwrap_or(0), self.grain, thread, threads)
    }

    /// Whether both steps have as many grains, whole or not, for every batch.
    fn divides_like(&self, other: &Step) -> bool {
        let same = |a: usize, b: usize| a as u128 * other.grain as u128 == b as u128 * self.grain as u128;
        same(self.items.per_batch, other.items.per_batch) && same(self.items.fixed, other.items.fixed)
    }
}

/// The items of `thread`: whole grains, contiguous, in order of the threads, the earlier threads taking the remainder.
fn share(items: usize, grain: usize, thread: usize, threads: usize) -> Range<usize> {
    let grains = items.div_ceil(grain);
    let (each, extra) = (grains / threads, grains % threads);
    let first = each * thread + thread.min(extra);
    let end = first + each + usize::from(thread < extra);
    first.saturating_mul(grain).min(items)..end.saturating_mul(grain).min(items)
}

/// Name, element type and shape of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the ONNX graph.
    pub name: String,
    /// Element type inside the program.
    pub elem: Elem,
    /// Shape; a leading `0` is the batch. No other dimension may be zero.
    pub dims: Vec<usize>,
}

impl TensorSpec {
    /// Whether the first dimension is the batch.
    pub fn has_batch(&self) -> bool {
        self.dims.first() == Some(&0)
    }

    /// The shape for a batch of `batch` images.
    pub fn dims_at(&self, batch: usize) -> Vec<usize> {
        let mut dims = self.dims.clone();
        if let Some(first) = dims.first_mut().filter(|first| **first == 0) {
            *first = batch;
        }
        dims
    }

    /// Bytes for a batch of `batch` images.
    pub(crate) fn bytes_at(&self, batch: usize) -> Option<usize> {
        let (leading, rest) = if self.has_batch() { (batch, &self.dims[1..]) } else { (1, &self.dims[..]) };
        checked_byte_len(self.elem, rest)?.checked_mul(leading)
    }

    fn fault(&self, fault: impl Into<String>) -> RuntimeError {
        RuntimeError::InvalidSpec { tensor: self.name.clone(), fault: fault.into() }
    }

    fn check(&self) -> Result<(), RuntimeError> {
        if self.dims.iter().skip(1).any(|&dim| dim == 0) {
            return Err(self.fault("only the first dimension may be the batch (0)"));
        }
        self.bytes_at(1).map(drop).ok_or_else(|| self.fault("the shape is larger than the address space"))
    }
}

/// How an `f32` input becomes integers at the door:
/// `q = clamp(round_half_even(x * (1 / scale[c]) + offset[c]))`, computed in `f64` with the reciprocal rounded once.
///
/// A NaN counts as zero and infinities clamp to the ends of the element type.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantize {
    /// Step sizes: one for the tensor, or one for each channel.
    pub scale: Vec<f64>,
    /// Offsets (zero points, not necessarily integers): as many as scales.
    pub offset: Vec<f64>,
    /// The axis of the input's shape that channels run along; of no meaning with a single scale.
    pub axis: usize,
}

/// An input of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// The tensor that the program reads.
    pub spec: TensorSpec,
    /// Accept `f32` as well and convert it like this.
    pub quantize: Option<Quantize>,
}

impl InputSpec {
    fn check(&self) -> Result<(), RuntimeError> {
        self.spec.check()?;
        self.quantize.as_ref().map_or(Ok(()), |quantize| self.check_quantize(quantize))
    }

    fn check_quantize(&self, quantize: &Quantize) -> Result<(), RuntimeError> {
        if matches!(self.spec.elem, Elem::F32 | Elem::I64) {
            return Err(self.spec.fault("only integers of up to 32 bits can be quantized to"));
        }
        if quantize.scale.len() != quantize.offset.len() {
            return Err(self.spec.fault("scales and offsets differ in number"));
        }
        check_channels(&self.spec, quantize.scale.len(), quantize.axis)?;
        check_scales(&self.spec, &quantize.scale)?;
        if quantize.offset.iter().any(|offset| !offset.is_finite()) {
            return Err(self.spec.fault("an offset is not finite"));
        }
        Ok(())
    }
}

/// An output of a program; its real value is `(q - zero_point) * scale[c]`.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputSpec {
    /// The tensor that the program writes.
    pub spec: TensorSpec,
    /// One scale for the tensor, or one for each channel of the last axis; none when `f32` is not on offer.
    pub scale: Vec<f64>,
    /// The integer that stands for zero.
    pub zero_point: i32,
}

impl OutputSpec {
    fn check(&self) -> Result<(), RuntimeError> {
        self.spec.check()?;
        if self.scale.is_empty() {
            return Ok(());
        }
        check_channels(&self.spec, self.scale.len(), self.spec.dims.len().wrapping_sub(1))?;
        check_scales(&self.spec, &self.scale)
    }
}

/// Everything a [`Program`] is made of.
#[derive(Clone)]
pub struct ProgramParts {
    /// Kernel calls in order.
    pub steps: Vec<Step>,
    /// Owner of the constants; [`ConstMemory`](crate::ConstMemory) gives page-aligned ones.
    pub consts: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// Owners of constants that are used where they lie, such as parts of a mapped file.
    pub stored: Vec<Arc<dyn AsRef<[u8]> + Send + Sync>>,
    /// Bytes of activations for each image.
    pub arena_bytes_per_image: usize,
    /// Bytes of scratch for each thread.
    pub scratch_bytes: usize,
    /// Inputs in order.
    pub inputs: Vec<InputSpec>,
    /// Outputs in order.
    pub outputs: Vec<OutputSpec>,
    /// Keeps the machine code of the kernels alive.
    pub code: Arc<dyn Any + Send + Sync>,
    /// The only batch the program was compiled for, if any.
    pub fixed_batch: Option<usize>,
}

/// A checked program. It is immutable and can be shared by any number of sessions.
pub struct Program {
    parts: ProgramParts,
    /// Position of each step's first argument in the flat pointer table, and the table's length at the end.
    arg_starts: Vec<usize>,
}

impl Program {
    /// Checks every figure of `parts`.
    ///
    /// # Errors
    /// [`RuntimeError::InvalidStep`], [`RuntimeError::InvalidSpec`] or [`RuntimeError::InvalidProgram`] for the first
    /// buffer outside its arena, constants or list, the first malformed tensor, and the like.
    ///
    /// # Safety
    /// What cannot be checked here is the machine code. For every step, batch and range of items, the kernel follows
    /// the [`KernelFn`] ABI and touches no memory but the step's buffers (within their declared lengths), its scratch
    /// and memory of its own; it does not write to constants and inputs; calls for disjoint ranges of items do not
    /// race, nor do those of steps between which there is no barrier, where the items are those of different shares; the
    /// kernels stay callable for as long as `parts.code` lives; and `parts.consts` and `parts.stored` give the same bytes
    /// every time.
    pub unsafe fn new(parts: ProgramParts) -> Result<Self, RuntimeError> {
        parts.inputs.iter().try_for_each(InputSpec::check)?;
        parts.outputs.iter().try_for_each(OutputSpec::check)?;
        parts.check_figures()?;
        let const_bytes = (*parts.consts).as_ref().len();
        for (index, step) in parts.steps.iter().enumerate() {
            parts.check_step(step, const_bytes).map_err(|fault| RuntimeError::InvalidStep {
                step: index,
                name: step.name.to_string(),
                fault,
            })?;
        }
        parts.check_barriers()?;
        let arg_starts = arg_starts(&parts.steps);
        Ok(Self { parts, arg_starts })
    }

    /// Kernel calls in order.
    pub fn steps(&self) -> &[Step] {
        &self.parts.steps
    }

    /// Inputs in order.
    pub fn inputs(&self) -> &[InputSpec] {
        &self.parts.inputs
    }

    /// Outputs in order.
    pub fn outputs(&self) -> &[OutputSpec] {
        &self.parts.outputs
    }

    /// Bytes of activations for each image.
    pub fn arena_bytes_per_image(&self) -> usize {
        self.parts.arena_bytes_per_image
    }

    /// Bytes of scratch for each thread.
    pub fn scratch_bytes(&self) -> usize {
        self.parts.scratch_bytes
    }

    /// The only batch the program was compiled for, if any.
    pub fn fixed_batch(&self) -> Option<usize> {
        self.parts.fixed_batch
    }

    /// The constants.
    pub fn consts(&self) -> &[u8] {
        (*self.parts.consts).as_ref()
    }

    /// The stored constant of this index.
    pub(crate) fn stored(&self, index: usize) -> &[u8] {
        (*self.parts.stored[index]).as_ref()
    }

    /// Position of a step's first argument in the flat pointer table.
    pub(crate) fn arg_start(&self, step: usize) -> usize {
        self.arg_starts[step]
    }

    /// Length of the flat pointer table.
    pub(crate) fn arg_count(&self) -> usize {
        self.arg_starts.last().copied().unwrap_or(0)
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("steps", &self.parts.steps.len()).finish_non_exhaustive()
    }
}

impl ProgramParts {
    fn check_figures(&self) -> Result<(), RuntimeError> {
        if self.fixed_batch == Some(0) {
            return Err(RuntimeError::InvalidProgram { fault: "the fixed batch is zero" });
        }
        if self.scratch_bytes > isize::MAX as usize || self.arena_bytes_per_image > isize::MAX as usize {
            return Err(RuntimeError::InvalidProgram { fault: "arena or scratch larger than the address space" });
        }
        Ok(())
    }

    fn check_step(&self, step: &Step, const_bytes: usize) -> Result<(), String> {
        if step.grain == 0 {
            return Err("the grain is zero".to_owned());
        }
        if step.items.at(1).is_none() {
            return Err("the number of items overflows".to_owned());
        }
        for (index, &arg) in step.args.iter().enumerate() {
            self.check_arg(arg, const_bytes).map_err(|fault| format!("argument {index}: {fault}"))?;
        }
        Ok(())
    }

    /// Threads that do not wait for each other must have the same shares of both steps.
    fn check_barriers(&self) -> Result<(), RuntimeError> {
        for (index, step) in self.steps.iter().enumerate().filter(|(_, step)| !step.barrier) {
            let fault = match self.steps.get(index + 1) {
                None => "the last step has no barrier",
                Some(next) if !step.divides_like(next) => "it has no barrier and the next step divides differently",
                Some(_) => continue,
            };
            return Err(RuntimeError::InvalidStep {
                step: index,
                name: step.name.to_string(),
                fault: fault.to_owned(),
            });
        }
        Ok(())
    }

    fn check_arg(&self, arg: Buffer, const_bytes: usize) -> Result<(), String> {
        match arg {
            Buffer::Arena { offset, len } => check_range("arena", offset, len, self.arena_bytes_per_image),
            Buffer::Const { offset, len } => check_range("constants", offset, len, const_bytes),
            Buffer::Stored { index, len } => {
                check_index("stored constant", index, self.stored.len())?;
                let bytes = (*self.stored[index]).as_ref();
                check_range("stored constant", 0, len, bytes.len())?;
                let aligned = bytes.as_ptr().addr().is_multiple_of(64);
                if aligned { Ok(()) } else { Err(format!("stored constant {index} is not aligned")) }
            }
            Buffer::Input(index) => check_index("input", index, self.inputs.len()),
            Buffer::Output(index) => check_index("output", index, self.outputs.len()),
        }
    }
}

fn arg_starts(steps: &[Step]) -> Vec<usize> {
    let ends = steps.iter().scan(0, |end, step| {
        *end += step.args.len();
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

fn check_range(place: &str, offset: usize, len: usize, limit: usize) -> Result<(), String> {
    match offset.checked_add(len) {
        Some(end) if end <= limit => Ok(()),
        _ => Err(format!("{len} bytes at {offset} leave the {limit} bytes of the {place}")),
    }
}

fn check_index(kind: &str, index: usize, count: usize) -> Result<(), String> {
    if index < count { Ok(()) } else { Err(format!("{kind} {index} of {count}")) }
}

/// One channel, or as many as `axis` is long.
fn check_channels(spec: &TensorSpec, channels: usize, axis: usize) -> Result<(), RuntimeError> {
    if channels == 1 || (channels > 1 && spec.dims.get(axis) == Some(&channels)) {
        return Ok(());
    }
    Err(spec.fault(format!("{channels} scales do not match the channel axis")))
}

fn check_scales(spec: &TensorSpec, scales: &[f64]) -> Result<(), RuntimeError> {
    if scales.iter().all(|scale| scale.is_normal() && *scale > 0.0 && scale.recip().is_normal()) {
        return Ok(());
    }
    Err(spec.fault("a scale is not a positive normal number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn nothing(_: *const *mut u8, _: i64, _: i64, _: i64, _: *mut u8) {}

    fn spec(elem: Elem, dims: &[usize]) -> TensorSpec {
        TensorSpec { name: "t".to_owned(), elem, dims: dims.to_vec() }
    }

    fn parts(args: Vec<Buffer>) -> ProgramParts {
        let items = Extent { per_batch: 1, fixed: 0 };
        let (name, source) = (Arc::from("nothing"), Arc::from("/node"));
        ProgramParts {
            steps: vec![Step {
                kernel: nothing,
                args,
                items,
                grain: 1,
                barrier: true,
                name,
                source,
                macs_per_image: 0,
            }],
            consts: Arc::new(vec![0u8; 100]),
            stored: vec![],
            arena_bytes_per_image: 64,
            scratch_bytes: 0,
            inputs: vec![InputSpec { spec: spec(Elem::U8, &[0, 3, 4]), quantize: None }],
            outputs: vec![OutputSpec { spec: spec(Elem::I32, &[0, 4]), scale: vec![0.5], zero_point: 0 }],
            code: Arc::new(()),
            fixed_batch: None,
        }
    }

    fn check(parts: ProgramParts) -> Result<Program, RuntimeError> {
        // SAFETY: the only kernel touches nothing.
        unsafe { Program::new(parts) }
    }

    fn fault(parts: ProgramParts) -> String {
        check(parts).unwrap_err().to_string()
    }

    #[test]
    fn shares_cover_all_items_once_at_multiples_of_the_grain() {
        for items in [0, 1, 2, 15, 16, 17, 197, 1000] {
            for grain in [1, 2, 16, 64, 5000] {
                for threads in [1, 2, 3, 4, 7, 16] {
                    check_shares(items, grain, threads);
                }
            }
        }
    }

    fn check_shares(items: usize, grain: usize, threads: usize) {
        let mut next = 0;
        for thread in 0..threads {
            let share = share(items, grain, thread, threads);
            assert!(share.start == next && share.start <= share.end);
            assert!(share.start == items || share.start.is_multiple_of(grain));
            next = share.end;
        }
        assert_eq!(next, items);
    }

    #[test]
    fn shares_differ_by_at_most_one_grain() {
        let sizes: Vec<usize> = (0..7).map(|thread| share(30, 1, thread, 7).len()).collect();
        assert_eq!(sizes, [5, 5, 4, 4, 4, 4, 4]);
    }

    #[test]
    fn huge_counts_do_not_overflow() {
        let huge = i64::MAX as usize;
        assert_eq!(share(huge, huge - 1, 1, 2), huge - 1..huge);
        assert_eq!(share(1, usize::MAX, 0, 3), 0..1);
    }

    #[test]
    fn buffers_may_fill_their_place_exactly() {
        let args = vec![
            Buffer::Arena { offset: 0, len: 64 },
            Buffer::Const { offset: 100, len: 0 },
            Buffer::Const { offset: 36, len: 64 },
            Buffer::Input(0),
            Buffer::Output(0),
        ];
        let program = check(parts(args)).unwrap();
        assert_eq!((program.arg_start(0), program.arg_count()), (0, 5));
    }

    /// Bytes at a multiple of 64, or one behind it.
    struct At(Vec<u8>, usize);

    impl AsRef<[u8]> for At {
        fn as_ref(&self) -> &[u8] {
            let start = self.0.as_ptr().addr().next_multiple_of(64) - self.0.as_ptr().addr() + self.1;
            &self.0[start..start + 10]
        }
    }

    #[test]
    fn stored_constants_are_aligned_and_whole() {
        let with = |offset, index, len| {
            let stored: Vec<Arc<dyn AsRef<[u8]> + Send + Sync>> = vec![Arc::new(At(vec![0; 256], offset))];
            check(ProgramParts { stored, ..parts(vec![Buffer::Stored { index, len }]) })
        };
        assert!(with(0, 0, 10).is_ok());
        assert!(with(0, 0, 11).unwrap_err().to_string().contains("leave the 10 bytes"));
        assert!(with(0, 1, 1).is_err() && with(1, 0, 10).is_err());
    }

    #[test]
    fn buffers_outside_their_place_are_refused() {
        let outside = [
            Buffer::Arena { offset: 1, len: 64 },
            Buffer::Arena { offset: usize::MAX, len: 2 },
            Buffer::Const { offset: 0, len: 101 },
            Buffer::Const { offset: 101, len: 0 },
            Buffer::Input(1),
            Buffer::Output(1),
        ];
        for arg in outside {
            assert!(fault(parts(vec![Buffer::Input(0), arg])).starts_with("step 0 (nothing): argument 1: "), "{arg:?}");
        }
    }

    #[test]
    fn figures_that_cannot_run_are_refused() {
        let mut zero_grain = parts(vec![]);
        zero_grain.steps[0].grain = 0;
        assert_eq!(fault(zero_grain), "step 0 (nothing): the grain is zero");
        let mut many_items = parts(vec![]);
        many_items.steps[0].items = Extent { per_batch: usize::MAX, fixed: 1 };
        assert_eq!(fault(many_items), "step 0 (nothing): the number of items overflows");
        let no_batch = ProgramParts { fixed_batch: Some(0), ..parts(vec![]) };
        assert_eq!(fault(no_batch), "invalid program: the fixed batch is zero");
        let large = ProgramParts { arena_bytes_per_image: usize::MAX, ..parts(vec![]) };
        assert!(check(large).is_err());
    }

    #[test]
    fn steps_without_a_barrier_divide_alike() {
        let fault = |second: Extent, grain: usize, barrier: bool| {
            let mut parts = parts(vec![]);
            let next = Step { items: second, grain, barrier, ..parts.steps[0].clone() };
            parts.steps[0].barrier = false;
            parts.steps[0].items = Extent { per_batch: 10, fixed: 0 };
            parts.steps[0].grain = 4;
            parts.steps.push(next);
            check(parts).err().map(|e| e.to_string())
        };
        let rows = |per_batch| Extent { per_batch, fixed: 0 };
        assert_eq!(fault(rows(10), 4, true), None);
        assert_eq!(fault(rows(30), 12, true), None);
        assert_eq!(fault(rows(5), 2, true), None);
        let differs = "step 0 (nothing): it has no barrier and the next step divides differently";
        assert_eq!(fault(rows(10), 5, true).as_deref(), Some(differs));
        assert_eq!(fault(rows(30), 4, true).as_deref(), Some(differs));
        assert_eq!(fault(Extent { per_batch: 10, fixed: 1 }, 4, true).as_deref(), Some(differs));
        assert_eq!(fault(Extent { per_batch: 0, fixed: 10 }, 4, true).as_deref(), Some(differs));
        assert_eq!(fault(rows(10), 4, false).as_deref(), Some("step 1 (nothing): the last step has no barrier"));
    }

    #[test]
    fn malformed_tensors_are_refused() {
        for dims in [vec![2, 0], vec![0, 0], vec![0, usize::MAX, 2]] {
            let mut parts = parts(vec![]);
            parts.inputs[0].spec.dims = dims;
            assert!(fault(parts).starts_with("tensor 't': "));
        }
    }

    #[test]
    fn malformed_quantization_is_refused() {
        let quantize = |scale: &[f64], offset: &[f64], axis| {
            let mut parts = parts(vec![]);
            parts.inputs[0].quantize = Some(Quantize { scale: scale.to_vec(), offset: offset.to_vec(), axis });
            check(parts).is_ok()
        };
        assert!(quantize(&[0.5], &[1.5], 9));
        assert!(quantize(&[0.5; 3], &[0.0; 3], 1));
        assert!(!quantize(&[0.5; 3], &[0.0; 3], 2));
        assert!(!quantize(&[0.5; 3], &[0.0; 3], 3));
        assert!(!quantize(&[0.5; 3], &[0.0; 1], 1));
        assert!(!quantize(&[], &[], 0));
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-310, f64::MAX] {
            assert!(!quantize(&[scale], &[0.0], 0), "{scale}");
        }
        assert!(!quantize(&[1.0], &[f64::NAN], 0));
    }

    #[test]
    fn malformed_dequantization_is_refused() {
        let dequantize = |scale: &[f64]| {
            let mut parts = parts(vec![]);
            parts.outputs[0].scale = scale.to_vec();
            check(parts).is_ok()
        };
        assert!(dequantize(&[]) && dequantize(&[1.0]) && dequantize(&[1.0; 4]));
        assert!(!dequantize(&[1.0; 3]) && !dequantize(&[0.0]));
    }

    #[test]
    fn extents_grow_with_the_batch() {
        assert_eq!(Extent { per_batch: 3, fixed: 4 }.at(5), Some(19));
        assert_eq!(Extent { per_batch: 2, fixed: 0 }.at(usize::MAX), None);
        assert_eq!(Extent { per_batch: 1, fixed: 0 }.at(usize::MAX), None);
    }
}
