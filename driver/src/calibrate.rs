//! Calibration input: a folder of images, or seeded noise for timing.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use vitc_ir::eval::{Data, Tensor};
use vitc_ir::{Elem, Module};
use vitc_passes::quantize::{self, QuantOptions};

use crate::error::Failure;
use crate::io::image::{self, Preprocess};
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

/// Ranges seen, and on how many images.
pub struct Observed {
    /// The ranges.
    pub calibration: quantize::Calibration,
    /// Images used.
    pub images: usize,
}

/// Runs the calibration input through a module of stage `shape`.
pub(crate) fn observe(module: &Module, options: &WalkOptions, quant: &QuantOptions) -> Result<Observed> {
    let missing = quantize::missing_ranges(module);
    if options.calibration == Calibration::Given && !missing.is_empty() {
        return Err(no_ranges(&missing, quantize::is_quantized(module)));
    }
    if options.calibration == Calibration::Given || !quantize::wants_calibration(module) {
        return Ok(Observed { calibration: quantize::Calibration::default(), images: 0 });
    }
    let images = sources(&options.calibration)?.len();
    let mut calibration =
        pass(module, options, "calibrating", |inputs, progress| quantize::observe(module, inputs, quant, progress))?;
    if quantize::wants_products(module, quant) {
        pass(module, options, "measuring products", |inputs, progress| {
            quantize::observe_products(module, &mut calibration, inputs, quant, progress)
        })?;
    }
    Ok(Observed { calibration, images })
}

type Inputs<'a> = &'a mut dyn Iterator<Item = Result<Vec<Tensor>, vitc_ir::Diagnostic>>;

/// One pass over the calibration input, with a progress bar.
fn pass<T>(
    module: &Module,
    options: &WalkOptions,
    what: &str,
    run: impl FnOnce(Inputs<'_>, &mut dyn FnMut(usize)) -> Result<T, vitc_ir::Diagnostics>,
) -> Result<T> {
    let preprocess = preprocess_of(module)?;
    let sources = sources(&options.calibration)?;
    let progress = Progress::new(what, sources.len(), options.quiet);
    let mut done = 0;
    let mut inputs = sources.into_iter().map(|source| {
        input_of(module, preprocess.as_ref(), &source)
            .map_err(|e| vitc_ir::Diagnostic::new("calibration", format!("{e:#}")))
    });
    let made = run(&mut inputs, &mut |n| {
        progress.advance(n.saturating_sub(done));
        done = n;
    });
    made.map_err(|d| Failure::invalid("calibration failed", d).into())
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

/// At most `limit` files spread evenly over the folder, so that a folder sorted by class is not sampled from one end.
fn every_nth(files: Vec<PathBuf>, limit: usize) -> Vec<PathBuf> {
    let count = files.len();
    if count <= limit {
        return files;
    }
    (0..limit).map(|i| files[i * count / limit].clone()).collect()
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
        (Elem::U8, Source::Noise(seed), _) => {
            Data::U8(noise(*seed, &shape).into_iter().map(|v| (128.0 + 60.0 * v).clamp(0.0, 255.0) as u8).collect())
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
