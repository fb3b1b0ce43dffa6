//! A compiled module that runs: images or arrays in, logits out.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use vitc_codegen::{Choices, CodegenError, Kernel, Offer, Options, Tier};
use vitc_ir::{Diagnostic, Diagnostics, Module};
use vitc_runtime::{
    Elem, InputSpec, OutputSpec, Program, Quantize, Session, SessionOptions, StepProfile, Tensor, TensorSpec,
    TensorView,
};

use crate::compiler::Compiled;
use crate::error::Failure;
use crate::io::image::{self, Preprocess};
use crate::io::npy::{Array, Elements};
use crate::walk::preprocess_of;

/// The machine code of a plan.
pub struct Emitted {
    /// What a session runs.
    pub program: Arc<Program>,
    /// The kernels, each once.
    pub kernels: Vec<Kernel>,
    /// Which instructions they use.
    pub tier: Tier,
    /// What each step could be instead.
    pub offers: Vec<Option<Offer>>,
}

impl Emitted {
    /// Emits the kernels of a module of stage `plan`.
    pub fn of(module: &Module, tier: Tier) -> Result<Emitted> {
        Emitted::with(module, &Options { tier, ..Options::default() })
    }

    /// The same for a number of threads, and with choices made by hand.
    pub fn with(module: &Module, options: &Options) -> Result<Emitted> {
        let mut compiled = vitc_codegen::compile(module, options).map_err(unsupported)?;
        let (kernels, offers) = (std::mem::take(&mut compiled.kernels), std::mem::take(&mut compiled.offers));
        open_doors(module, &mut compiled.parts.inputs)?;
        let program = Arc::new(compiled.into_program().map_err(unsupported)?);
        Ok(Emitted { program, kernels, tier: options.tier, offers })
    }

    /// Floating-point instructions of all kernels together.
    pub fn float_instructions(&self) -> usize {
        let code = self.kernels.iter().map(|k| k.code.get(..k.instructions).unwrap_or(&k.code));
        code.map(vitc_codegen::count_float_instructions).sum()
    }

    /// Bytes of machine code.
    pub fn code_bytes(&self) -> usize {
        self.kernels.iter().map(|k| k.code.len()).sum()
    }

    /// Multiply-accumulates for one image.
    pub fn macs_per_image(&self) -> u64 {
        let macs: u64 = self.program.steps().iter().map(|s| s.macs_per_image).sum();
        macs / fixed_images(&self.program).unwrap_or(1).max(1) as u64
    }
}

/// Lets `f32` in where the program takes integers: normalised images become the pixels they came from, other numbers are
/// quantized as the input's type says.
fn open_doors(module: &Module, inputs: &mut [InputSpec]) -> Result<()> {
    let pixels = preprocess_of(module)?.filter(|_| takes_pixels(module));
    for (input, door) in module.inputs.iter().zip(inputs).filter(|(_, door)| door.quantize.is_none()) {
        door.quantize = match (&pixels, &module.ty(input.value).quant) {
            (Some(p), _) => Some(Quantize {
                scale: p.std.iter().map(|s| 1.0 / (255.0 * f64::from(*s))).collect(),
                offset: p.mean.iter().map(|m| 255.0 * f64::from(*m)).collect(),
                axis: p.layout.axis(),
            }),
            (None, Some(q)) => Some(Quantize {
                scale: q.scale.iter().map(|s| s.0).collect(),
                offset: vec![q.zero_point.into(); q.scale.len()],
                axis: q.axis.unwrap_or(0),
            }),
            (None, None) => None,
        };
    }
    Ok(())
}

/// Whether pixels enter the graph as they are; otherwise images are normalised and quantized at the door.
fn takes_pixels(module: &Module) -> bool {
    module.meta.get("input.kind").is_some_and(|kind| kind == "pixels")
}

/// A node without code is the model's matter, everything else a failure.
fn unsupported(error: CodegenError) -> anyhow::Error {
    let at = |e: &CodegenError| {
        let place = match e {
            CodegenError::Node { node, .. } => node.clone(),
            CodegenError::Tensor { tensor, .. } => tensor.clone(),
            _ => return None,
        };
        Some(Diagnostic::new("no-code", e.to_string()).at(place))
    };
    let found: Option<Vec<Diagnostic>> = match &error {
        CodegenError::Nodes(all) => all.iter().map(at).collect(),
        one => at(one).map(|d| vec![d]),
    };
    match found {
        Some(found) => Failure::Unsupported(Diagnostics(found)).into(),
        None => anyhow::Error::from(error).context("code generation failed"),
    }
}

/// A compiled model with memory and threads to run on.
pub struct Model {
    session: Session,
    emitted: Emitted,
    preprocess: Option<Preprocess>,
    takes_pixels: bool,
    untuned: Option<String>,
}

/// One output of a run, as real numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Name in the ONNX graph.
    pub name: String,
    /// Shape, the batch included.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub values: Vec<f32>,
}

/// Inputs and outputs of repeated runs, made once.
pub struct Feed {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl Model {
    /// Emits the kernels for this machine and starts `threads` threads (the caller's included).
    pub fn load(compiled: &Compiled, threads: usize) -> Result<Model> {
        Model::load_on(compiled, threads, Tier::best())
    }

    /// [`Model::load`] with kernels of that tier.
    pub fn load_on(compiled: &Compiled, threads: usize, tier: Tier) -> Result<Model> {
        let (choices, untuned) = compiled.tuning.choices(tier, threads);
        Ok(Model { untuned, ..Model::load_with(compiled, threads, tier, choices)? })
    }

    /// [`Model::load_on`] with these choices instead of what `vitc tune` has found.
    pub fn load_with(compiled: &Compiled, threads: usize, tier: Tier, choices: Choices) -> Result<Model> {
        let module = &compiled.module;
        let emitted = Emitted::with(module, &Options { tier, threads, choices, ..Options::default() })?;
        let preprocess = preprocess_of(module)?;
        if let Some(p) = &preprocess {
            p.validate().context("the recorded preprocessing is not valid")?;
            check_image_input(&emitted.program, p)?;
        }
        let options = SessionOptions { threads, ..SessionOptions::default() };
        let session = Session::new(Arc::clone(&emitted.program), options)?;
        Ok(Model { session, emitted, preprocess, takes_pixels: takes_pixels(module), untuned: None })
    }

    /// How an image file becomes the input; `None` when the model does not take images.
    pub fn preprocess(&self) -> Option<&Preprocess> {
        self.preprocess.as_ref()
    }

    /// Shape of the first input for a batch.
    pub fn input_shape(&self, batch: usize) -> Vec<usize> {
        self.program().inputs().first().map(|i| i.spec.dims_at(batch)).unwrap_or_default()
    }

    /// Name and shape of each output for a batch.
    pub fn outputs(&self, batch: usize) -> Vec<(String, Vec<usize>)> {
        self.program().outputs().iter().map(|o| (o.spec.name.clone(), o.spec.dims_at(batch))).collect()
    }

    /// Number of classes: the elements of the first output for one image.
    pub fn classes(&self) -> usize {
        let dims = self.program().outputs().first().map(|o| o.spec.dims.as_slice()).unwrap_or_default();
        dims.iter().skip(1).product()
    }

    /// The number of images of every run, when the model's batch is fixed.
    pub fn fixed_images(&self) -> Option<usize> {
        fixed_images(self.program())
    }

    /// Threads that run kernels.
    pub fn threads(&self) -> usize {
        self.session.threads()
    }

    /// Which instructions the kernels use.
    pub fn tier(&self) -> Tier {
        self.emitted.tier
    }

    /// What each step could be instead.
    pub fn offers(&self) -> &[Option<Offer>] {
        &self.emitted.offers
    }

    /// Why what `vitc tune` has found is not used, where it has found something.
    pub fn untuned(&self) -> Option<&str> {
        self.untuned.as_deref()
    }

    /// Machine code and figures.
    pub fn emitted(&self) -> &Emitted {
        &self.emitted
    }

    /// Names of the kernels, each once.
    pub fn kernels(&self) -> Vec<&str> {
        self.emitted.kernels.iter().map(|k| k.name.as_str()).collect()
    }

    /// Multiply-accumulates for one image.
    pub fn macs_per_image(&self) -> u64 {
        self.emitted.macs_per_image()
    }

    /// Floating-point instructions of all kernels together: 0, unless something is wrong.
    pub fn float_instructions(&self) -> usize {
        self.emitted.float_instructions()
    }

    /// Reads an image file as the recorded preprocessing says: u8 pixels in the layout of the input.
    pub fn load_image(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        image::load_pixels(path.as_ref(), self.image_input()?)
    }

    /// The logits of one image given as pixels.
    pub fn classify(&mut self, pixels: &[u8]) -> Result<Vec<f32>> {
        self.run_pixels(pixels, 1)
    }

    /// The first output (logits) for `images` images given as pixels, one after another. A model with a fixed batch is
    /// run as often as needed, the last time with copies of the last image.
    pub fn run_pixels(&mut self, pixels: &[u8], images: usize) -> Result<Vec<f32>> {
        let image = self.image_input()?.pixels();
        ensure!(images > 0, "no images to run");
        ensure!(
            image.checked_mul(images) == Some(pixels.len()),
            "{images} images of {image} pixels wanted, {} bytes given",
            pixels.len()
        );
        let at_once = self.fixed_images().unwrap_or(images);
        let mut logits = Vec::with_capacity(images * self.classes());
        for part in pixels.chunks(at_once * image) {
            let given = part.len() / image;
            let mut values = match at_once - given {
                0 => self.run_part(part, at_once)?,
                missing => {
                    let last = &part[part.len() - image..];
                    self.run_part(&[part, &last.repeat(missing)].concat(), at_once)?
                }
            };
            values.truncate(values.len() / at_once * given);
            logits.extend(values);
        }
        Ok(logits)
    }

    fn run_part(&mut self, pixels: &[u8], images: usize) -> Result<Vec<f32>> {
        let dims = self.input_shape(images);
        let normalized: Vec<f32>;
        let view = match &self.preprocess {
            Some(p) if !self.takes_pixels => {
                normalized = image::normalize(pixels, p);
                TensorView::of(&dims, &normalized)?
            }
            _ => TensorView::of(&dims, pixels)?,
        };
        let mut outputs = empty_outputs(self.session.program(), images)?;
        run_session(&mut self.session, &[view], &mut outputs)?;
        real_values(outputs.first().context("the model has no output")?)
    }

    /// Runs on named arrays, one for each input. Arrays are f32, converted at the door, or of the input's own element
    /// type; u8 images that the model wants normalised are normalised. The batch is the arrays' first dimension.
    pub fn run_tensors(&mut self, arrays: &[(String, Array)]) -> Result<Vec<Output>> {
        let tensors = self.bind(arrays)?;
        let views: Vec<TensorView<'_>> = tensors.iter().map(Tensor::view).collect();
        let batch = self.batch_of(&views);
        let mut outputs = empty_outputs(self.program(), batch)?;
        run_session(&mut self.session, &views, &mut outputs)?;
        let names = self.program().outputs().iter().map(|o| o.spec.name.clone());
        let output =
            |(name, t): (String, &Tensor)| Ok(Output { name, shape: t.dims().to_vec(), values: real_values(t)? });
        names.zip(&outputs).map(output).collect()
    }

    /// Inputs of noise and room for the outputs, for a batch. An input that is quantized at the door is fed as the numbers of the
    /// float model are.
    pub fn noise_feed(&self, batch: usize, seed: u64) -> Result<Feed> {
        ensure!(batch > 0, "a batch of 0 images; give at least 1");
        if let Some(fixed) = self.fixed_images().filter(|fixed| *fixed != batch) {
            bail!("the model's batch is fixed at {fixed}, so a batch of {batch} cannot be run");
        }
        self.check_memory(batch)?;
        let inputs = self.program().inputs().iter().zip(seed..).map(|(input, seed)| noise_tensor(input, batch, seed));
        let inputs = inputs.collect::<Result<_>>()?;
        Ok(Feed { inputs, outputs: empty_outputs(self.program(), batch)? })
    }

    /// A batch that the session would refuse must not first ask the system for that much memory.
    fn check_memory(&self, batch: usize) -> Result<()> {
        let limit = SessionOptions::default().memory_limit;
        let elements: usize = self.input_shape(1).iter().product();
        let per_image =
            elements.saturating_mul(size_of::<f32>()).saturating_add(self.program().arena_bytes_per_image());
        let fits = per_image.checked_mul(batch).is_some_and(|bytes| bytes <= limit);
        ensure!(fits, "a batch of {batch} images of {per_image} bytes exceeds the memory limit of {limit} bytes");
        Ok(())
    }

    /// Runs on the feed's inputs, into its outputs.
    pub fn run_feed(&mut self, feed: &mut Feed) -> Result<()> {
        let views: Vec<TensorView<'_>> = feed.inputs.iter().map(Tensor::view).collect();
        run_session(&mut self.session, &views, &mut feed.outputs)
    }

    /// Switches the profile of the kernels on, from zero, or off.
    pub fn profile(&mut self, on: bool) {
        self.session.profile(on);
    }

    /// Time spent in each kernel call since profiling was switched on.
    pub fn step_profiles(&self) -> Vec<StepProfile> {
        self.session.step_profiles()
    }

    fn program(&self) -> &Program {
        self.session.program()
    }

    /// The preprocessing, or an error that says what the model takes instead of an image.
    pub fn image_input(&self) -> Result<&Preprocess> {
        let inputs = || {
            let named = |i: &InputSpec| format!("'{}' {}", i.spec.name, shape_text(&i.spec.dims));
            self.program().inputs().iter().map(named).collect::<Vec<_>>().join(", ")
        };
        self.preprocess.as_ref().with_context(|| {
            format!(
                "the model does not take one image, its inputs are {}; give arrays with --input NAME=x.npy",
                inputs()
            )
        })
    }

    /// The arrays in the order of the inputs, in element types that the session takes.
    fn bind(&self, arrays: &[(String, Array)]) -> Result<Vec<Tensor>> {
        let known: Vec<&str> = self.program().inputs().iter().map(|i| i.spec.name.as_str()).collect();
        for (at, (name, _)) in arrays.iter().enumerate() {
            ensure!(known.contains(&name.as_str()), "the model has no input '{name}'; it has '{}'", known.join("', '"));
            ensure!(arrays[..at].iter().all(|(n, _)| n != name), "input '{name}' is given twice");
        }
        let array_of = |name: &str| arrays.iter().find(|(n, _)| n == name).map(|(_, array)| array);
        let tensor = |door: &InputSpec| {
            let name = &door.spec.name;
            let array =
                array_of(name).with_context(|| format!("input '{name}' is missing; give --input {name}=x.npy"))?;
            self.tensor_of(array, &door.spec).with_context(|| format!("input '{name}'"))
        };
        self.program().inputs().iter().map(tensor).collect()
    }

    /// The shape is checked first: room for the outputs is made by what the array claims the batch to be.
    fn tensor_of(&self, array: &Array, spec: &TensorSpec) -> Result<Tensor> {
        let (dims, batch) = (&array.shape, usize::from(spec.has_batch()));
        let fits = dims.len() == spec.dims.len() && dims[batch..] == spec.dims[batch..];
        ensure!(fits, "expected shape {}, given {}", shape_text(&spec.dims), shape_text(dims));
        let dims = dims.clone();
        Ok(match (&array.elements, &self.preprocess) {
            (Elements::F32(v), _) => Tensor::of(dims, v)?,
            (Elements::U8(v), _) if self.takes_pixels => Tensor::of(dims, v)?,
            (Elements::U8(v), Some(p)) => Tensor::of(dims, &image::normalize(v, p))?,
            (other, _) => bail!("is {}; save it as float32 with numpy.astype", other.dtype()),
        })
    }

    /// The batch of a run: the first dimension of the first array whose input has one.
    fn batch_of(&self, views: &[TensorView<'_>]) -> usize {
        let batched = self.program().inputs().iter().zip(views).find(|(i, _)| i.spec.has_batch());
        let given = batched.and_then(|(_, view)| view.dims().first().copied());
        self.program().fixed_batch().or(given).unwrap_or(1)
    }
}

impl Feed {
    /// The first numbers of the first output, to be shown.
    pub fn first_values(&self, count: usize) -> Result<Vec<f32>> {
        let mut values = real_values(self.outputs.first().context("the model has no output")?)?;
        values.truncate(count);
        Ok(values)
    }
}

/// The `k` largest of `logits`, largest first, with their classes. Of equals the lower class comes first; NaN comes last.
pub fn top_k(logits: &[f32], k: usize) -> Vec<(usize, f32)> {
    let mut ranked: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
    let key = |v: f32| if v.is_nan() { f32::NEG_INFINITY } else { v };
    ranked.sort_by(|a, b| key(b.1).total_cmp(&key(a.1)));
    ranked.truncate(k);
    ranked
}

/// Probabilities of the classes: `exp(x - max) / sum`.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = logits.iter().map(|x| f64::from(x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// `[N, 3, 224, 224]`, where a leading zero is the batch.
pub(crate) fn shape_text(dims: &[usize]) -> String {
    let word = |(axis, dim): (usize, &usize)| if axis == 0 && *dim == 0 { "N".into() } else { dim.to_string() };
    format!("[{}]", dims.iter().enumerate().map(word).collect::<Vec<String>>().join(", "))
}

fn fixed_images(program: &Program) -> Option<usize> {
    let spec = &program.inputs().first()?.spec;
    if spec.has_batch() { program.fixed_batch() } else { spec.dims.first().copied() }
}

/// The recorded preprocessing must yield what the program reads.
fn check_image_input(program: &Program, p: &Preprocess) -> Result<()> {
    let [input] = program.inputs() else {
        bail!("the model has preprocessing for images recorded, but {} inputs", program.inputs().len());
    };
    let wanted = p.dims();
    ensure!(
        input.spec.dims.get(1..) == Some(wanted.as_slice()),
        "the recorded preprocessing yields images of {wanted:?}, the input '{}' has shape {}",
        input.spec.name,
        shape_text(&input.spec.dims)
    );
    Ok(())
}

/// Room for every output: real numbers where there is a scale, integers as they are elsewhere.
fn empty_outputs(program: &Program, batch: usize) -> Result<Vec<Tensor>> {
    let room = |o: &OutputSpec| {
        let elem = if o.scale.is_empty() { o.spec.elem } else { Elem::F32 };
        Ok(Tensor::zeros(elem, o.spec.dims_at(batch))?)
    };
    program.outputs().iter().map(room).collect()
}

fn run_session(session: &mut Session, inputs: &[TensorView<'_>], outputs: &mut [Tensor]) -> Result<()> {
    let mut views: Vec<_> = outputs.iter_mut().map(Tensor::view_mut).collect();
    Ok(session.run_into(inputs, &mut views)?)
}

fn real_values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(match tensor.elem() {
        Elem::F32 => tensor.to_vec()?,
        Elem::I8 => tensor.to_vec::<i8>()?.into_iter().map(f32::from).collect(),
        Elem::U8 => tensor.to_vec::<u8>()?.into_iter().map(f32::from).collect(),
        Elem::I16 => tensor.to_vec::<i16>()?.into_iter().map(f32::from).collect(),
        Elem::U16 => tensor.to_vec::<u16>()?.into_iter().map(f32::from).collect(),
        Elem::I32 => tensor.to_vec::<i32>()?.into_iter().map(|v| v as f32).collect(),
        Elem::I64 => tensor.to_vec::<i64>()?.into_iter().map(|v| v as f32).collect(),
    })
}

/// Seeded noise in the input's own element type.
fn noise_tensor(input: &InputSpec, batch: usize, seed: u64) -> Result<Tensor> {
    let spec = &input.spec;
    let dims = spec.dims_at(batch);
    let noise = crate::calibrate::noise(seed, &dims);
    let spread = |mid: f32, width: f32| noise.iter().map(move |v| mid + width * v);
    let elem = if input.quantize.is_some() { Elem::F32 } else { spec.elem };
    Ok(match elem {
        Elem::U8 => Tensor::of(dims, &spread(128.0, 60.0).map(|v| v as u8).collect::<Vec<_>>())?,
        Elem::I8 => Tensor::of(dims, &spread(0.0, 60.0).map(|v| v as i8).collect::<Vec<_>>())?,
        Elem::F32 => Tensor::of(dims, &noise)?,
        other => bail!("there is no noise for input '{}' of {other} elements", spec.name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_ties_by_class() {
        assert_eq!(top_k(&[1.0, 3.0, f32::NAN, 3.0, -1.0], 3), [(1, 3.0), (3, 3.0), (0, 1.0)]);
        assert_eq!(top_k(&[2.0], 5), [(0, 2.0)]);
        assert!(top_k(&[f32::NAN, f32::NEG_INFINITY], 2)[0].1.is_nan());
    }

    #[test]
    fn probabilities_sum_to_one_whatever_the_range() {
        let p = softmax(&[1000.0, 1001.0, 1000.0]);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((p[1] / p[0] - std::f64::consts::E).abs() < 1e-9);
    }

    #[test]
    fn a_leading_zero_is_the_batch() {
        assert_eq!(shape_text(&[0, 3, 0]), "[N, 3, 0]");
        assert_eq!(shape_text(&[]), "[]");
    }
}
