//! Calibration input: a folder of images, or seeded noise for timing.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use vitc_ir::eval::{Data, Tensor};
use vitc_ir::{Diagnostic, Diagnostics, Elem, Module};
use vitc_passes::quantize;

use crate::error::Failure;
use crate::io::image::{self, Layout, Preprocess};
use crate::io::labels::list_images;
use crate::io::progress::Progress;
use crate::walk::{WalkOptions, preprocess_of};

/// What to calibrate on.
#[derive(Clone, Debug, PartialEq)]
pub enum Calibration {
    /// The first `limit` images of a folder, in name order.
    Images {
        /// The folder.
        folder: PathBuf,
        /// At most so many.
        limit: usize,
    },
    /// Nothing: a quantized model may bring every range itself.
    Given,
    /// Seeded noise, shaped like smooth images. Good for timing, says nothing about accuracy.
    Synthetic {
        /// How many.
        images: usize,
    },
}

/// Images used when no limit is given: the ranges of min-max calibration hardly move beyond.
pub const DEFAULT_IMAGES: usize = 64;

impl Calibration {
    /// The images of a folder, up to [`DEFAULT_IMAGES`].
    pub fn images(folder: impl Into<PathBuf>) -> Calibration {
        Calibration::Images { folder: folder.into(), limit: DEFAULT_IMAGES }
    }
}

/// The calibration input of a module: read once, run through as often as somebody wants to see something else of it.
pub(crate) struct Feed {
    sources: Vec<Source>,
    /// The inputs read so far, in order.
    read: Vec<Vec<Tensor>>,
    preprocess: Option<Preprocess>,
    quiet: bool,
}

impl Feed {
    /// The calibration input for a module of stage `shape`; empty when calibration can tell nothing about it.
    pub(crate) fn of(module: &Module, options: &WalkOptions) -> Result<Feed> {
        let missing = quantize::missing_ranges(module);
        if options.calibration == Calibration::Given && !missing.is_empty() {
            return Err(no_ranges(&missing, quantize::is_quantized(module)));
        }
        let is_idle = options.calibration == Calibration::Given || !quantize::wants_calibration(module);
        let sources = if is_idle { Vec::new() } else { sources(&options.calibration)? };
        Ok(Feed { sources, read: Vec::new(), preprocess: preprocess_of(module)?, quiet: options.quiet })
    }

    /// How many inputs.
    pub(crate) fn len(&self) -> usize {
        self.sources.len()
    }

    /// Shows `see` all inputs, under a progress bar that says what for; `see` reports how many are done.
    pub(crate) fn pass<T>(
        &mut self,
        module: &Module,
        purpose: &'static str,
        see: impl FnOnce(&mut Inputs<'_>, &mut dyn FnMut(usize)) -> Result<T, Diagnostics>,
    ) -> Result<T> {
        let progress = Progress::new(purpose, self.sources.len(), self.quiet);
        let mut done = 0;
        let mut inputs = Inputs { feed: self, module, next: 0 };
        let seen = see(&mut inputs, &mut |n| {
            progress.advance(n.saturating_sub(done));
            done = n;
        });
        Ok(seen.map_err(|d| Failure::invalid("calibration failed", d))?)
    }
}

/// One pass over the inputs.
pub(crate) struct Inputs<'a> {
    feed: &'a mut Feed,
    module: &'a Module,
    next: usize,
}

impl Iterator for Inputs<'_> {
    type Item = Result<Vec<Tensor>, Diagnostic>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.next;
        self.next += 1;
        if let Some(known) = self.feed.read.get(at) {
            return Some(Ok(known.clone()));
        }
        let input = input_of(self.module, self.feed.preprocess.as_ref(), self.feed.sources.get(at)?);
        if let Ok(input) = &input {
            self.feed.read.push(input.clone());
        }
        Some(input.map_err(|e| Diagnostic::new("calibration", format!("{e:#}"))))
    }
}

/// At most `most` calibration inputs of a module, spread evenly, and whether they are noise: where calibration is given none, they
/// are.
pub(crate) fn sample(module: &Module, calibration: &Calibration, most: usize) -> Result<(Vec<Vec<Tensor>>, bool)> {
    let is_noise = !matches!(calibration, Calibration::Images { .. });
    let sources = match calibration {
        Calibration::Given => sources(&Calibration::Synthetic { images: most })?,
        known => sources(known)?,
    };
    let preprocess = preprocess_of(module)?;
    let chosen = every_nth(sources, most);
    let inputs = chosen.iter().map(|source| input_of(module, preprocess.as_ref(), source)).collect::<Result<_>>()?;
    Ok((inputs, is_noise))
}

/// What to do without calibration; a quantized model is told which of its values it gives no range.
fn no_ranges(missing: &[String], quantized: bool) -> anyhow::Error {
    const ADVICE: &str = "calibration needs images: give --calibrate DIR with a few dozen typical images, or --calibrate synthetic for timing only";
    if !quantized {
        return anyhow::anyhow!(ADVICE);
    }
    const SHOWN: usize = 20;
    let mut list = missing.iter().take(SHOWN).map(|m| format!("\n  {m}")).collect::<String>();
    if missing.len() > SHOWN {
        list.push_str(&format!("\n  and {} more", missing.len() - SHOWN));
    }
    anyhow::anyhow!("{ADVICE}; the model is quantized, but gives these {} values no range:{list}", missing.len())
}

#[derive(Clone)]
enum Source {
    File(PathBuf),
    Noise(u64),
}

fn sources(calibration: &Calibration) -> Result<Vec<Source>> {
    match calibration {
        Calibration::Given => Ok(Vec::new()),
        Calibration::Synthetic { images } => Ok((0..*images as u64).map(Source::Noise).collect()),
        Calibration::Images { folder, limit } => {
            let files = list_images(folder).context("calibration needs a folder of images")?;
            if *limit == 0 {
                bail!("calibration on 0 images; give --calibrate-images at least 1");
            }
            Ok(every_nth(files, *limit).into_iter().map(Source::File).collect())
        }
    }
}

/// At most `limit` of what is there, spread evenly, so that a folder sorted by class is not sampled from one end.
fn every_nth<T: Clone>(all: Vec<T>, limit: usize) -> Vec<T> {
    let count = all.len();
    if count <= limit {
        return all;
    }
    (0..limit).map(|i| all[i * count / limit].clone()).collect()
}

fn input_of(module: &Module, preprocess: Option<&Preprocess>, source: &Source) -> Result<Vec<Tensor>> {
    let [input] = module.inputs.as_slice() else {
        bail!("the model has {} inputs; calibration on images needs exactly one", module.inputs.len());
    };
    let ty = module.ty(input.value);
    let shape = ty.shape.at(1);
    let count: usize = shape.iter().product();
    let data = match (ty.elem, source, preprocess) {
        (Elem::U8, Source::File(path), Some(p)) => Data::U8(repeat(image::load_pixels(path, p)?, count)?),
        (Elem::F32, Source::File(path), Some(p)) => {
            Data::F32(repeat(image::normalize(&image::load_pixels(path, p)?, p), count)?)
        }
        (_, Source::File(_), None) => bail!("the model does not take images; its input is {ty}"),
        (Elem::U8, Source::Noise(seed), _) => Data::U8(noisy_pixels(*seed, &shape, preprocess)),
        // where the graph normalises, what is around zero is no image
        (Elem::F32, Source::Noise(seed), Some(p)) if p.mean.iter().all(|m| *m == 0.0) => {
            Data::F32(image::normalize(&noisy_pixels(*seed, &shape, preprocess), p))
        }
        (Elem::F32, Source::Noise(seed), _) => Data::F32(noise(*seed, &shape)),
        (elem, ..) => bail!("cannot calibrate an input of {elem}"),
    };
    Ok(vec![Tensor { shape, data }])
}

/// One image for each place of a fixed batch.
fn repeat<T: Copy>(image: Vec<T>, count: usize) -> Result<Vec<T>> {
    if image.is_empty() || !count.is_multiple_of(image.len()) {
        bail!(
            "the preprocessing yields {} values, the model's input wants {count}; check --crop and --channels",
            image.len()
        );
    }
    Ok(image.repeat(count / image.len()))
}

/// Noise as pixels, smooth in the two dimensions of the image.
pub(crate) fn noisy_pixels(seed: u64, shape: &[usize], preprocess: Option<&Preprocess>) -> Vec<u8> {
    let pixel = |v: f32| (128.0 + 60.0 * v).clamp(0.0, 255.0) as u8;
    match (preprocess.map(|p| p.layout), shape) {
        (Some(Layout::Interleaved), &[n, h, w, c]) => {
            let planes = noise(seed, &[n, c, h, w]);
            let at = |i: usize| planes[(i / (h * w * c) * c + i % c) * h * w + i / c % (h * w)];
            (0..n * h * w * c).map(|i| pixel(at(i))).collect()
        }
        _ => noise(seed, shape).into_iter().map(pixel).collect(),
    }
}

/// Smooth noise with a unit standard deviation or so: coarse blocks and a little per-pixel noise, as images have.
pub fn noise(seed: u64, shape: &[usize]) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f32 / (1u64 << 53) as f32 - 0.5
    };
    let width = shape.last().copied().unwrap_or(1);
    let height = if shape.len() >= 2 { shape[shape.len() - 2] } else { 1 };
    let planes = shape.iter().product::<usize>() / (width * height).max(1);
    const CELLS: usize = 14;
    let mut out = Vec::with_capacity(planes * width * height);
    for _ in 0..planes {
        let coarse: Vec<f32> = (0..CELLS * CELLS).map(|_| 3.0 * uniform()).collect();
        for y in 0..height {
            for x in 0..width {
                let cell = (y * CELLS / height) * CELLS + x * CELLS / width;
                out.push(coarse[cell] + uniform());
            }
        }
    }
    out
}
