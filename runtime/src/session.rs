//! A program with memory and threads to run on; after the first run of a batch size, running allocates nothing.
//!
//! All memory of a run is one region, grown when a larger batch arrives: the arena, then every input and every output
//! in its declared element type. Tensors are copied (or converted) in and out at this door, so kernels see aligned
//! buffers whatever the caller gives.

use std::ops::Range;
use std::sync::Arc;

use crate::door::{self, Quantizer};
use crate::error::RuntimeError;
use crate::memory::MappedRegion;
use crate::pool::{Pool, available_threads};
use crate::program::{Buffer, InputSpec, OutputSpec, Program, TensorSpec};
use crate::tensor::{Elem, Tensor, TensorView, TensorViewMut};

/// Alignment of the arena, of inputs and of outputs.
const ALIGN: usize = 64;

/// How a session runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads that run kernels, the calling thread included. By default the cores that this process may use.
    pub threads: usize,
    /// Bytes that arena, inputs and outputs may take together. By default 4 GiB.
    pub memory_limit: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { threads: available_threads(), memory_limit: usize::try_from(1u64 << 32).unwrap_or(usize::MAX) }
    }
}

/// What [`Session::run`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputForm {
    /// The integers of the program, in their declared element type.
    Raw,
    /// Real numbers: `(q - zero_point) * scale`, rounded to `f32`.
    Dequantized,
}

/// Time spent in one step since profiling was switched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepProfile {
    /// Name of the kernel.
    pub name: Arc<str>,
    /// Names of the ONNX nodes that the step came from.
    pub source: Arc<str>,
    /// Time of the calling thread in the kernel, over all runs.
    pub nanos: u64,
    /// Time that the calling thread then waited for the others, over all runs; `None` when the next step follows without
    /// a barrier.
    pub waited: Option<u64>,
    /// Multiply-accumulates over all runs and images.
    pub macs: u64,
}

/// Runs one program. Holds the arena and the threads; both go when it is dropped.
#[derive(Debug)]
pub struct Session {
    pool: Pool,
    program: Arc<Program>,
    quantizers: Vec<Option<Quantizer>>,
    memory: Memory,
    profiled_images: u64,
}

impl Session {
    /// Starts the threads of a session. Memory for activations comes with the first run.
    ///
    /// # Errors
    /// [`RuntimeError::ZeroThreads`], [`RuntimeError::Spawn`] or [`RuntimeError::Map`].
    pub fn new(program: Arc<Program>, options: SessionOptions) -> Result<Self, RuntimeError> {
        if options.threads == 0 {
            return Err(RuntimeError::ZeroThreads);
        }
        let pool = Pool::new(Arc::clone(&program), options.threads)?;
        let memory = Memory::new(&program, options.memory_limit)?;
        let quantizers = program.inputs().iter().map(quantizer).collect();
        Ok(Self { pool, program, quantizers, memory, profiled_images: 0 })
    }

    /// The program that is run.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// Threads that run kernels, the calling thread included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs the program and returns its outputs in new tensors.
    ///
    /// # Errors
    /// As [`Session::run_into`].
    pub fn run(&mut self, inputs: &[TensorView<'_>], form: OutputForm) -> Result<Vec<Tensor>, RuntimeError> {
        let batch = batch_of(&self.program, inputs)?;
        // before anything is allocated for a batch that only a bad shape claims
        check_inputs(&self.program, inputs, batch)?;
        self.memory.bind(&self.program, batch)?;
        let outputs = self.program.outputs().iter().map(|output| empty_output(output, form, batch));
        let mut outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        let mut views: Vec<_> = outputs.iter_mut().map(Tensor::view_mut).collect();
        self.run_into(inputs, &mut views)?;
        Ok(outputs)
    }

    /// Runs the program and writes its outputs into `outputs`.
    ///
    /// The batch is the first dimension of the inputs that have one. An input is given in its declared element type,
    /// or as `f32` where [`InputSpec::quantize`] allows; an output is written in its declared element type, or as
    /// `f32` where [`OutputSpec::scale`] allows, as the view asks.
    ///
    /// # Errors
    /// Number, element type, shape or batch of a tensor is wrong, or the batch exceeds the memory limit or the memory.
    /// Nothing has been run and no output has been written then.
    pub fn run_into(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
    ) -> Result<(), RuntimeError> {
        let batch = batch_of(&self.program, inputs)?;
        check_inputs(&self.program, inputs, batch)?;
        check_outputs(&self.program, outputs, batch)?;
        self.memory.bind(&self.program, batch)?;
        self.load(inputs);
        // SAFETY: `bind` has just filled the table for this batch and checked the number of items; the memory behind
        // it belongs to `self` (constants to the program, where kernels only read), which is borrowed mutably.
        unsafe { self.pool.run(self.memory.table.0.as_ptr(), batch) };
        self.store(outputs);
        self.count_images(batch);
        Ok(())
    }

    /// Switches the per-step profile on, from zero, or off.
    pub fn profile(&mut self, on: bool) {
        if on {
            self.pool.clear_laps();
            self.profiled_images = 0;
        }
        self.pool.set_profiling(on);
    }

    /// The profile of all steps, in their order; zero if profiling was never on.
    pub fn step_profiles(&self) -> Vec<StepProfile> {
        let steps = self.program.steps().iter().zip(self.pool.laps());
        let profile = steps.map(|(step, lap)| StepProfile {
            name: Arc::clone(&step.name),
            source: Arc::clone(&step.source),
            nanos: lap.work(),
            waited: step.barrier.then(|| lap.wait()),
            macs: step.macs_per_image.saturating_mul(self.profiled_images),
        });
        profile.collect()
    }

    fn load(&mut self, inputs: &[TensorView<'_>]) {
        for (index, view) in inputs.iter().enumerate() {
            let elem = self.program.inputs()[index].spec.elem;
            let target = self.memory.input_mut(index);
            match &self.quantizers[index] {
                Some(quantizer) if view.elem() == Elem::F32 => quantizer.convert(elem, view.bytes(), target),
                _ => target.copy_from_slice(view.bytes()),
            }
        }
    }

    fn store(&mut self, outputs: &mut [TensorViewMut<'_>]) {
        for (index, (output, view)) in self.program.outputs().iter().zip(outputs).enumerate() {
            let source = self.memory.output(index);
            if view.elem() == output.spec.elem {
                view.bytes_mut().copy_from_slice(source);
            } else {
                door::dequantize(output, source, view.bytes_mut());
            }
        }
    }

    fn count_images(&mut self, batch: usize) {
        if self.pool.profiling() {
            self.profiled_images = self.profiled_images.saturating_add(batch as u64);
        }
    }
}

fn quantizer(input: &InputSpec) -> Option<Quantizer> {
    input.quantize.as_ref().map(|quantize| Quantizer::new(&input.spec, quantize))
}

fn empty_output(output: &OutputSpec, form: OutputForm, batch: usize) -> Result<Tensor, RuntimeError> {
    let elem = match form {
        OutputForm::Raw => output.spec.elem,
        OutputForm::Dequantized => Elem::F32,
    };
    Tensor::zeros(elem, output.spec.dims_at(batch))
}

/// The pointers of all steps, one after the other.
#[derive(Debug)]
struct PointerTable(Vec<*mut u8>);

// SAFETY: the pointers lead into memory that the same session owns or shares, none of it bound to a thread.
unsafe impl Send for PointerTable {}

/// The memory of a run and where everything lies in it.
#[derive(Debug)]
struct Memory {
    region: MappedRegion,
    limit: usize,
    /// Inputs, then outputs, as ranges of the region.
    doors: Vec<Range<usize>>,
    inputs: usize,
    table: PointerTable,
    /// The batch that `doors` and `table` are for.
    bound: Option<usize>,
}

impl Memory {
    fn new(program: &Program, limit: usize) -> Result<Self, RuntimeError> {
        Ok(Self {
            region: MappedRegion::new_writable(0)?,
            limit,
            doors: Vec::with_capacity(program.inputs().len() + program.outputs().len()),
            inputs: program.inputs().len(),
            table: PointerTable(Vec::with_capacity(program.arg_count())),
            bound: None,
        })
    }

    /// Makes room for a batch and points all arguments at it. Allocates only when the region has to grow.
    fn bind(&mut self, program: &Program, batch: usize) -> Result<(), RuntimeError> {
        if self.bound == Some(batch) {
            return Ok(());
        }
        self.bound = None;
        let limit = self.limit;
        let bytes = self.lay_out(program, batch).filter(|&bytes| bytes <= limit && items_fit(program, batch));
        let bytes = bytes.ok_or(RuntimeError::BatchTooLarge { batch, limit })?;
        if bytes > self.region.len() {
            self.region = MappedRegion::new_writable(bytes)?;
        }
        self.fill_table(program, batch);
        self.bound = Some(batch);
        Ok(())
    }

    /// Places arena, inputs and outputs; returns their bytes, or `None` on overflow.
    fn lay_out(&mut self, program: &Program, batch: usize) -> Option<usize> {
        self.doors.clear();
        let mut end = program.arena_bytes_per_image().checked_mul(batch)?;
        for spec in specs(program) {
            let start = end.checked_next_multiple_of(ALIGN)?;
            end = start.checked_add(spec.bytes_at(batch)?)?;
            self.doors.push(start..end);
        }
        Some(end)
    }

    fn fill_table(&mut self, program: &Program, batch: usize) {
        let base = self.region.as_mut_ptr();
        let consts = program.consts().as_ptr().cast_mut();
        let (doors, inputs) = (&self.doors, self.inputs);
        // `Program::new` and `lay_out` have checked that none of these leaves its region.
        let address = |arg: &Buffer| match *arg {
            Buffer::Arena { offset, .. } => base.wrapping_add(offset * batch),
            Buffer::Const { offset, .. } => consts.wrapping_add(offset),
            Buffer::Stored { index, .. } => program.stored(index).as_ptr().cast_mut(),
            Buffer::Input(index) => base.wrapping_add(doors[index].start),
            Buffer::Output(index) => base.wrapping_add(doors[inputs + index].start),
        };
        self.table.0.clear();
        self.table.0.extend(program.steps().iter().flat_map(|step| &step.args).map(address));
    }

    fn input_mut(&mut self, index: usize) -> &mut [u8] {
        let door = self.doors[index].clone();
        self.region.as_bytes_mut().and_then(|bytes| bytes.get_mut(door)).unwrap_or_default()
    }

    fn output(&self, index: usize) -> &[u8] {
        &self.region.as_bytes()[self.doors[self.inputs + index].clone()]
    }
}

fn specs(program: &Program) -> impl Iterator<Item = &TensorSpec> {
    let inputs = program.inputs().iter().map(|input| &input.spec);
    inputs.chain(program.outputs().iter().map(|output| &output.spec))
}

fn items_fit(program: &Program, batch: usize) -> bool {
    i64::try_from(batch).is_ok() && program.steps().iter().all(|step| step.items.at(batch).is_some())
}

/// The batch of a run: the program's fixed one, or that of the first input that has one, or a single image.
fn batch_of(program: &Program, inputs: &[TensorView<'_>]) -> Result<usize, RuntimeError> {
    let (expected, given) = (program.inputs().len(), inputs.len());
    if expected != given {
        return Err(RuntimeError::InputCount { expected, given });
    }
    if let Some(batch) = program.fixed_batch() {
        return Ok(batch);
    }
    let mut batched = program.inputs().iter().zip(inputs).filter(|(input, _)| input.spec.has_batch());
    let Some((input, view)) = batched.next() else { return Ok(1) };
    match view.dims().first() {
        Some(0) => Err(RuntimeError::EmptyBatch { tensor: input.spec.name.clone() }),
        Some(&batch) => Ok(batch),
        None => Err(shape_mismatch(&input.spec, view.dims())),
    }
}

fn check_inputs(program: &Program, views: &[TensorView<'_>], batch: usize) -> Result<(), RuntimeError> {
    for (input, view) in program.inputs().iter().zip(views) {
        let convertible = input.quantize.is_some() && view.elem() == Elem::F32;
        if view.elem() != input.spec.elem && !convertible {
            return Err(dtype_mismatch(&input.spec, view.elem()));
        }
        check_shape(&input.spec, view.dims(), batch)?;
    }
    Ok(())
}

fn check_outputs(program: &Program, views: &[TensorViewMut<'_>], batch: usize) -> Result<(), RuntimeError> {
    let (expected, given) = (program.outputs().len(), views.len());
    if expected != given {
        return Err(RuntimeError::OutputCount { expected, given });
    }
    for (output, view) in program.outputs().iter().zip(views) {
        check_output_elem(output, view.elem())?;
        check_shape(&output.spec, view.dims(), batch)?;
    }
    Ok(())
}

fn check_output_elem(output: &OutputSpec, given: Elem) -> Result<(), RuntimeError> {
    if given == output.spec.elem {
        return Ok(());
    }
    if given != Elem::F32 {
        return Err(dtype_mismatch(&output.spec, given));
    }
    if output.scale.is_empty() {
        return Err(RuntimeError::NoScale { tensor: output.spec.name.clone() });
    }
    Ok(())
}

fn check_shape(spec: &TensorSpec, given: &[usize], batch: usize) -> Result<(), RuntimeError> {
    let fixed = usize::from(spec.has_batch());
    if given.len() != spec.dims.len() || given[fixed..] != spec.dims[fixed..] {
        return Err(shape_mismatch(spec, given));
    }
    if spec.has_batch() && given[0] != batch {
        return Err(RuntimeError::BatchMismatch { tensor: spec.name.clone(), expected: batch, given: given[0] });
    }
    Ok(())
}

fn dtype_mismatch(spec: &TensorSpec, given: Elem) -> RuntimeError {
    RuntimeError::DtypeMismatch { tensor: spec.name.clone(), expected: spec.elem, given }
}

fn shape_mismatch(spec: &TensorSpec, given: &[usize]) -> RuntimeError {
    RuntimeError::ShapeMismatch { tensor: spec.name.clone(), expected: spec.dims.clone(), given: given.to_vec() }
}
