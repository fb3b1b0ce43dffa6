//! Accuracy of a compiled model on labelled images, beside the float graph when there is one.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Elem, Module, Stage};

use crate::compiler::Compiler;
use crate::io::image::{self, Preprocess};
use crate::io::labels::Labelled;
use crate::io::progress::Progress;
use crate::model::{Model, top_k};
use crate::walk::{self, Journal, WalkOptions};

/// The float graph of a model, evaluated by `vitc_ir::eval` on the images that the compiled model sees.
pub struct Reference {
    module: Module,
    preprocess: Preprocess,
}

impl Reference {
    /// Imports and cleans an ONNX file that takes one image.
    pub fn load(path: impl AsRef<Path>, preprocess: &Preprocess) -> Result<Reference> {
        Reference::of(Compiler::new().import(path)?, preprocess)
    }

    /// Cleans an imported module that takes one image.
    pub fn of(module: Module, preprocess: &Preprocess) -> Result<Reference> {
        let options = WalkOptions { preprocess: None, ..WalkOptions::default() };
        let module = walk::advance(module, Stage::Clean, &options, &mut Journal::default())?;
        let [input] = module.inputs.as_slice() else {
            anyhow::bail!("the reference has {} inputs; one image is wanted", module.inputs.len());
        };
        let (shape, wanted) = (&module.ty(input.value).shape, preprocess);
        let image = vitc_ir::Shape::fixed(&wanted.dims());
        ensure!(
            shape.rank() == 4 && shape.0[1..] == image.0,
            "the reference's input '{}' has shape [{shape}], the images have {image}",
            input.name
        );
        Ok(Reference { module, preprocess: preprocess.clone() })
    }

    /// The logits of one image given as pixels. A fixed batch is filled with copies.
    pub fn logits(&self, pixels: &[u8]) -> Result<Vec<f32>> {
        let ty = self.module.ty(self.module.inputs[0].value);
        let shape = ty.shape.at(1);
        let images = shape[0];
        let data = match ty.elem {
            Elem::U8 => Data::U8(pixels.repeat(images)),
            _ => Data::F32(image::normalize(pixels, &self.preprocess).repeat(images)),
        };
        let input = Tensor { shape, data };
        let outputs = eval::run(&self.module, &[input]).context("the float graph cannot be evaluated")?;
        match outputs.into_iter().next().map(|t| t.data) {
            Some(Data::F32(mut logits)) => {
                logits.truncate(logits.len() / images);
                Ok(logits)
            }
            _ => anyhow::bail!("the first output of the reference is not a float tensor"),
        }
    }
}

/// What an evaluation counted. Shares are methods, in percent.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// Images seen.
    pub images: usize,
    /// Images whose class came first.
    pub top1: usize,
    /// Images whose class was among the first five.
    pub top5: usize,
    /// Time of the compiled model for each image, in order.
    pub latency: Vec<Duration>,
    /// The same with the float graph, when there is one.
    pub reference: Option<ReferenceScore>,
    /// The classes that the compiled model found, in order.
    pub found: Vec<usize>,
}

/// The float graph's part of a [`Score`].
#[derive(Clone, Debug, Default)]
pub struct ReferenceScore {
    /// Images whose class came first.
    pub top1: usize,
    /// Images whose class was among the first five.
    pub top5: usize,
    /// Images on which both have the same first class.
    pub agreement: usize,
    /// Sum of the squares of all float logits.
    pub signal: f64,
    /// Sum of the squares of all differences of the logits.
    pub noise: f64,
    /// Time of the float graph for each image, in order.
    pub latency: Vec<Duration>,
}

impl Score {
    /// A count of images in percent.
    pub fn percent(&self, count: usize) -> f64 {
        100.0 * count as f64 / self.images.max(1) as f64
    }

    /// The 95 % interval of the top-1 accuracy in percent, by Wilson's formula.
    pub fn top1_interval(&self) -> (f64, f64) {
        wilson(self.top1, self.images)
    }

    fn add(&mut self, class: usize, logits: &[f32], reference: Option<&[f32]>) -> Result<()> {
        let best = top_k(logits, 5);
        self.images += 1;
        self.top1 += usize::from(is_first(&best, class));
        self.top5 += usize::from(is_among(&best, class));
        self.found.push(best.first().map_or(0, |b| b.0));
        let Some(float) = reference else { return Ok(()) };
        ensure!(
            float.len() == logits.len(),
            "the reference has {} logits, the compiled model {}: is it the same model?",
            float.len(),
            logits.len()
        );
        let score = self.reference.get_or_insert_default();
        let float_best = top_k(float, 5);
        score.top1 += usize::from(is_first(&float_best, class));
        score.top5 += usize::from(is_among(&float_best, class));
        score.agreement += usize::from(best.first().map(|b| b.0) == float_best.first().map(|b| b.0));
        for (&f, &q) in float.iter().zip(logits) {
            score.signal += f64::from(f).powi(2);
            score.noise += (f64::from(f) - f64::from(q)).powi(2);
        }
        Ok(())
    }
}

impl ReferenceScore {
    /// Signal to quantization noise of the logits in decibels.
    pub fn sqnr_db(&self) -> f64 {
        10.0 * (self.signal / self.noise).log10()
    }
}

fn is_first(best: &[(usize, f32)], class: usize) -> bool {
    best.first().is_some_and(|b| b.0 == class)
}

fn is_among(best: &[(usize, f32)], class: usize) -> bool {
    best.iter().any(|b| b.0 == class)
}

/// Wilson's score interval at 95 %, in percent (E. B. Wilson, JASA 22, 1927).
fn wilson(hits: usize, total: usize) -> (f64, f64) {
    if total == 0 {
        return (0.0, 100.0);
    }
    const Z: f64 = 1.959_963_984_540_054;
    let (n, p) = (total as f64, hits as f64 / total as f64);
    let centre = p + Z * Z / (2.0 * n);
    let spread = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 100.0 / (1.0 + Z * Z / n);
    ((centre - spread) * scale, (centre + spread) * scale)
}

/// Mean in milliseconds.
pub fn mean_ms(times: &[Duration]) -> f64 {
    1e3 * times.iter().map(Duration::as_secs_f64).sum::<f64>() / times.len().max(1) as f64
}

/// Median in milliseconds; that of an even number is the upper of the two.
pub fn median_ms(times: &[Duration]) -> f64 {
    quantile_ms(times, 0.5)
}

/// A quantile in milliseconds.
pub fn quantile_ms(times: &[Duration], quantile: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = (sorted.len() as f64 * quantile) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).map_or(f64::NAN, |t| 1e3 * t.as_secs_f64())
}

/// Runs all images, one at a time; they are read, and the float graph evaluated, on `threads` threads.
pub fn evaluate(
    model: &mut Model,
    reference: Option<&Reference>,
    images: &[Labelled],
    threads: usize,
    progress: &Progress,
) -> Result<Score> {
    check_classes(model, images)?;
    let preprocess = model.image_input()?.clone();
    let mut score = Score::default();
    for part in images.chunks(4 * threads.max(1)) {
        let prepared = parallel(part, threads, |image| prepare(&preprocess, reference, image));
        for (image, prepared) in part.iter().zip(prepared) {
            let prepared = prepared?;
            let started = Instant::now();
            let logits = model.classify(&prepared.pixels)?;
            score.latency.push(started.elapsed());
            score.add(image.class, &logits, prepared.float.as_ref().map(|f| f.0.as_slice()))?;
            if let (Some(r), Some((_, took))) = (&mut score.reference, prepared.float) {
                r.latency.push(took);
            }
            progress.advance(1);
        }
    }
    Ok(score)
}

fn check_classes(model: &Model, images: &[Labelled]) -> Result<()> {
    let classes = model.classes();
    let wrong = images.iter().find(|i| i.class >= classes);
    wrong.map_or(Ok(()), |i| {
        let (class, path) = (i.class, i.path.display());
        anyhow::bail!("'{path}' is labelled {class}, but the model has {classes} classes (0 is the first)")
    })
}

struct Prepared {
    pixels: Vec<u8>,
    float: Option<(Vec<f32>, Duration)>,
}

fn prepare(preprocess: &Preprocess, reference: Option<&Reference>, labelled: &Labelled) -> Result<Prepared> {
    let pixels = image::load_pixels(&labelled.path, preprocess)?;
    let started = Instant::now();
    let float = reference.map(|r| r.logits(&pixels)).transpose()?.map(|logits| (logits, started.elapsed()));
    Ok(Prepared { pixels, float })
}

/// `work` on every item, on several threads; results in the order of the items.
pub(crate) fn parallel<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    vitc_passes::parallel::parallel(items.len(), threads, |i, _| work(&items[i]), &mut |_| {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order() {
        let items: Vec<usize> = (0..100).collect();
        for threads in [0, 1, 3, 200] {
            assert_eq!(parallel(&items, threads, |i| i * 2), items.iter().map(|i| i * 2).collect::<Vec<_>>());
        }
        assert!(parallel(&[0; 0], 4, |i| *i).is_empty());
    }

    #[test]
    fn wilsons_interval() {
        let (lo, hi) = wilson(8, 10);
        assert!((lo - 49.02).abs() < 0.01 && (hi - 94.33).abs() < 0.01, "{lo} {hi}");
        assert_eq!(wilson(0, 0), (0.0, 100.0));
        let (lo, hi) = wilson(10, 10);
        assert!(lo > 70.0 && (hi - 100.0).abs() < 1e-9);
    }

    #[test]
    fn counts_agreement_and_noise() {
        let mut score = Score::default();
        score.add(1, &[0.0, 2.0], Some(&[0.0, 1.0])).unwrap();
        score.add(0, &[0.0, 2.0], Some(&[3.0, 2.0])).unwrap();
        let r = score.reference.as_ref().unwrap();
        assert_eq!((score.top1, score.top5, r.top1, r.agreement), (1, 2, 2, 1));
        assert_eq!((r.signal, r.noise), (14.0, 10.0));
        assert!((r.sqnr_db() - 1.461).abs() < 1e-3);
        assert_eq!(score.percent(1), 50.0);
        assert!(score.add(0, &[0.0], Some(&[1.0, 2.0])).is_err());
    }

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let times: Vec<Duration> = [5, 1, 3, 2, 4].map(Duration::from_millis).to_vec();
        assert_eq!((median_ms(&times), quantile_ms(&times, 0.9), quantile_ms(&times, 0.0)), (3.0, 5.0, 1.0));
        assert!((mean_ms(&times) - 3.0).abs() < 1e-9);
        assert!(median_ms(&[]).is_nan());
    }
}
