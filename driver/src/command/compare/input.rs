//! What both sides of a comparison are run on: an image, an array or seeded noise.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use vitc_ir::eval::{Data, Tensor};
use vitc_ir::{Elem, Module, Quant};

use crate::calibrate::noise;
use crate::io::image::{self, Preprocess};
use crate::io::npy::{self, Array, Elements};

/// The flags for it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct InputFlags {
    /// Run on this `.npy` array (f32 as the ONNX model takes it, or u8 pixels).
    #[arg(long, value_name = "FILE.npy", conflicts_with = "image")]
    input: Option<PathBuf>,
    /// Run on this image, preprocessed as the model says.
    #[arg(long, value_name = "IMAGE")]
    image: Option<PathBuf>,
    /// Run on noise of this seed, when neither an array nor an image is given.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
}

impl InputFlags {
    /// Whether an array or an image is given.
    pub(super) fn given(&self) -> bool {
        self.input.is_some() || self.image.is_some()
    }

    /// The input of one image or array, or noise, before it is bound to a graph's element types.
    pub(super) fn arrays(&self, module: &Module, p: Option<&Preprocess>) -> Result<Vec<Array>> {
        if let Some(path) = &self.input {
            ensure!(module.inputs.len() == 1, "the model has {} inputs; --input stands for one", module.inputs.len());
            return Ok(vec![npy::read_npy(path)?]);
        }
        if let Some(path) = &self.image {
            let p = p.context("the model does not take images; give --input x.npy")?;
            return Ok(vec![image_array(module, &image::load_pixels(path, p)?, p)?]);
        }
        Ok((0..module.inputs.len()).map(|i| noise_array(module, i, self.seed)).collect())
    }
}

/// The arrays as the inputs of `module`, one for each.
pub(super) fn bind_all(module: &Module, arrays: &[Array], p: Option<&Preprocess>) -> Result<Vec<Tensor>> {
    arrays.iter().enumerate().map(|(i, array)| bind(module, i, array, p)).collect()
}

/// An array as input `index` of `module`: pixels are normalised, and real numbers quantized or turned back into pixels, as the
/// graph takes them at its stage.
pub(super) fn bind(module: &Module, index: usize, array: &Array, p: Option<&Preprocess>) -> Result<Tensor> {
    let input = &module.inputs[index];
    let ty = module.ty(input.value);
    let data = match (ty.elem, &array.elements, &ty.quant, p) {
        (Elem::F32, Elements::U8(pixels), _, Some(p)) => Data::F32(image::normalize(pixels, p)),
        (Elem::F32, elements, ..) => Data::F32(elements.to_f32()),
        (Elem::U8, Elements::F32(v), _, Some(p)) if takes_pixels(module) => Data::U8(pixels_of(v, p)?),
        (elem, Elements::F32(v), Some(quant), _) => quantized(elem, v, quant)?,
        (elem, Elements::U8(pixels), Some(quant), Some(p)) if !takes_pixels(module) => {
            quantized(elem, &image::normalize(pixels, p), quant)?
        }
        (Elem::U8, Elements::U8(v), ..) => Data::U8(v.clone()),
        (elem, other, ..) => bail!("input '{}' is {elem}, the array is {}", input.name, other.dtype()),
    };
    Tensor::new(&array.shape, data).with_context(|| format!("input '{}': shape and elements disagree", input.name))
}

/// Whether pixels enter the graph as they are.
fn takes_pixels(module: &Module) -> bool {
    module.meta.get("input.kind").is_some_and(|kind| kind == "pixels")
}

/// What the runtime does at the door.
fn quantized(elem: Elem, values: &[f32], quant: &Quant) -> Result<Data> {
    let scale = quant.single().context("an input has one scale")?;
    let (lo, hi) = elem.range().context("an input is quantized to integers")?;
    let int = |v: &f32| (f64::from(*v) * (1.0 / scale) + f64::from(quant.zero_point)).round_ties_even() as i64;
    Ok(Data::from_ints(elem, values.iter().map(int).map(|q| q.clamp(lo, hi))))
}

/// Undoes the normalisation. Values that no pixel gives are an error, not rounded away.
fn pixels_of(values: &[f32], p: &Preprocess) -> Result<Vec<u8>> {
    let pixel = |(i, v): (usize, &f32)| {
        let c = i / p.channel_run() % p.channels.max(1);
        let exact = (f64::from(*v) * f64::from(p.std[c]) + f64::from(p.mean[c])) * 255.0;
        let near = exact.round();
        let fits = (0.0..=255.0).contains(&near) && (exact - near).abs() < 0.02;
        fits.then_some(near as u8).with_context(|| {
            format!("element {i} of the input is {v}, which no pixel gives with this preprocessing ({p}); the model takes u8 pixels")
        })
    };
    values.iter().enumerate().map(pixel).collect()
}

/// An image as often as a fixed batch wants it.
fn image_array(module: &Module, pixels: &[u8], p: &Preprocess) -> Result<Array> {
    let [input] = module.inputs.as_slice() else {
        bail!("the model has {} inputs, not one image", module.inputs.len())
    };
    let shape = module.ty(input.value).shape.at(1);
    let copies = shape.iter().product::<usize>() / p.pixels().max(1);
    Ok(Array { shape, elements: Elements::U8(pixels.repeat(copies)) })
}

fn noise_array(module: &Module, index: usize, seed: u64) -> Array {
    let shape = module.ty(module.inputs[index].value).shape.at(1);
    let noise = noise(seed.wrapping_add(index as u64), &shape);
    let elements = match takes_pixels(module) {
        true => Elements::U8(noise.iter().map(|v| (128.0 + 60.0 * v) as u8).collect()),
        false => Elements::F32(noise),
    };
    Array { shape, elements }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalising_is_undone_exactly() {
        let p = Preprocess::for_input(2, 2, 3);
        let pixels: Vec<u8> = (0..12).map(|i| (i * 23) as u8).collect();
        let normal = image::normalize(&pixels, &p);
        assert_eq!(pixels_of(&normal, &p).unwrap(), pixels);
        let error = pixels_of(&[0.123; 12], &p).unwrap_err();
        assert!(error.to_string().contains("no pixel"), "{error}");
    }

    #[test]
    fn the_door_rounds_half_to_even_and_clamps() {
        let found = quantized(Elem::U8, &[0.25, 0.75, -100.0, 100.0], &Quant::per_tensor(0.5, 10)).unwrap();
        assert_eq!(found, Data::U8(vec![10, 12, 0, 210]));
    }
}
