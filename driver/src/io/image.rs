//! Image files to the pixels and floats a model expects: decode, resize of the short side, centre crop, normalise.
//!
//! The steps are those of a torchvision pipeline on Pillow images: `convert('RGB')` or `convert('L')` (EXIF, colour
//! profile and alpha ignored), `Resize(short side)` with antialias, `CenterCrop` (zeros where the image is too small),
//! `ToTensor`, `Normalize`. After the decoder every step is equal to Pillow's to the bit; JPEG decoders differ by a few
//! units a pixel. Unlike Pillow, which clips it, 16-bit grey keeps its high byte, as 16-bit colour does in both.

use super::read_bounded;
use super::resample::{Pixels, resize_window};
use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use vitc_ir::Module;
use vitc_passes::clean::{Counts, counts_in};

pub use super::resample::Filter;

/// Longest side of an image file that is decoded, and of a crop.
pub const MAX_SIDE: usize = 16384;
/// Most pixels of an image file that is decoded.
pub const MAX_PIXELS: usize = 64 << 20;
/// Largest image file that is read.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// How an image becomes the input of a model; stored in the artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// The short side after resizing, in pixels; the long side keeps the aspect ratio, rounded down.
    pub resize: usize,
    /// Height and width of the centre crop: the spatial shape of the model's input.
    pub crop: (usize, usize),
    /// The resampling kernel.
    pub filter: Filter,
    /// 3 for RGB, 1 for grey.
    pub channels: usize,
    /// Mean of each channel, in units of the pixel range 0..1.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, in the same units.
    pub std: Vec<f32>,
    /// Where the model's input has its channels.
    #[serde(default, skip_serializing_if = "Layout::is_planes")]
    pub layout: Layout,
}

impl Default for Preprocess {
    /// ImageNet's usual: short side 256, bicubic, crop 224x224.
    fn default() -> Self {
        Self::for_input(224, 224, 3)
    }
}

impl Preprocess {
    /// ImageNet's defaults for an input of `height` x `width`: short side = crop / 0.875, bicubic, ImageNet's mean and
    /// deviation (their averages over the channels for grey).
    pub fn for_input(height: usize, width: usize, channels: usize) -> Self {
        let resize = (height.max(width) as f64 / 0.875).round() as usize;
        let of = |values: [f32; 3]| match channels {
            3 => values.to_vec(),
            n => vec![values.iter().sum::<f32>() / 3.0; n],
        };
        let (mean, std) = (of(IMAGENET_MEAN), of(IMAGENET_STD));
        let (crop, filter, layout) = ((height, width), Filter::Bicubic, Layout::Planes);
        Self { resize, crop, filter, channels, mean, std, layout }
    }

    /// The same for an input that counts in something else than normalised numbers.
    pub fn counting_in(self, counts: Counts) -> Self {
        let std = match counts {
            Counts::Normalised => return self,
            Counts::Fractions => 1.0,
            Counts::Pixels => 1.0 / 255.0,
        };
        Self { mean: vec![0.0; self.channels], std: vec![std; self.channels], ..self }
    }

    /// The defaults for a module whose only input is an image: three channels or one, first or last; `None` for other models. Where
    /// the graph normalises its input itself, images are handed over as it counts them.
    pub fn of_input(module: &Module) -> Option<Self> {
        let [input] = module.inputs.as_slice() else { return None };
        let dims = module.ty(input.value).shape.0.get(1..).filter(|d| d.len() == 3)?;
        let &[a, b, c] = dims.iter().map(|d| d.as_fixed()).collect::<Option<Vec<_>>>()?.as_slice() else { return None };
        let is_channels = |n: usize| matches!(n, 1 | 3);
        let (planes, layout) = match (is_channels(a), is_channels(c)) {
            (true, _) => ([b, c, a], Layout::Planes),
            (false, true) => ([a, b, c], Layout::Interleaved),
            (false, false) => return None,
        };
        let [height, width, channels] = planes;
        let counts = counts_in(module, layout.axis());
        Some(Self { layout, ..Self::for_input(height, width, channels).counting_in(counts) })
    }

    /// The shape of an image without its batch.
    pub fn dims(&self) -> [usize; 3] {
        let (height, width) = self.crop;
        match self.layout {
            Layout::Planes => [self.channels, height, width],
            Layout::Interleaved => [height, width, self.channels],
        }
    }

    /// Elements of a channel that lie in a row.
    pub fn channel_run(&self) -> usize {
        match self.layout {
            Layout::Planes => (self.crop.0 * self.crop.1).max(1),
            Layout::Interleaved => 1,
        }
    }

    /// Bytes of one preprocessed image: channels x height x width.
    pub fn pixels(&self) -> usize {
        self.channels * self.crop.0 * self.crop.1
    }

    /// Refuses settings that no image can satisfy, whether they came from flags or from a file.
    pub fn validate(&self) -> Result<()> {
        let sides = [("resize", self.resize), ("crop height", self.crop.0), ("crop width", self.crop.1)];
        for (name, side) in sides {
            ensure!((1..=MAX_SIDE).contains(&side), "{name} {side} is out of range; give 1 to {MAX_SIDE}");
        }
        ensure!(self.crop.0 * self.crop.1 <= MAX_PIXELS, "crop {:?} has more than {MAX_PIXELS} pixels", self.crop);
        ensure!(matches!(self.channels, 1 | 3), "{} image channels; give 1 (grey) or 3 (RGB)", self.channels);
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            let (have, want) = (values.len(), self.channels);
            ensure!(have == want, "{name} has {have} values for {want} channels; give one a channel");
            ensure!(values.iter().all(|v| v.is_finite()), "{name} {values:?} must be finite");
        }
        ensure!(self.std.iter().all(|v| *v > 0.0), "std {:?} must be positive", self.std);
        Ok(())
    }

    /// Size of an image of `width` x `height` after resizing its short side.
    fn resized(&self, width: usize, height: usize) -> (usize, usize) {
        let long = |long: usize, short: usize| self.resize * long / short;
        if width <= height { (self.resize, long(height, width)) } else { (long(width, height), self.resize) }
    }
}

impl fmt::Display for Preprocess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |v: &[f32]| v.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
        let color = if self.channels == 1 { "grey" } else { "RGB" };
        let (height, width) = self.crop;
        write!(f, "{color}, short side {} {}, centre crop {height}x{width}, ", self.resize, self.filter)?;
        let all = |v: &[f32], x: f32| v.iter().all(|v| (v - x).abs() < 1e-6);
        match (all(&self.mean, 0.0), all(&self.std, 1.0), all(&self.std, 1.0 / 255.0)) {
            (true, true, _) => f.write_str("numbers 0 to 1")?,
            (true, _, true) => f.write_str("numbers 0 to 255")?,
            _ => write!(f, "mean {}, std {}", list(&self.mean), list(&self.std))?,
        }
        if self.layout == Layout::Interleaved { f.write_str(", channels last") } else { Ok(()) }
    }
}

/// Order of the bytes of a preprocessed image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Channel planes, as most ONNX models expect (NCHW with N = 1).
    #[default]
    Planes,
    /// Interleaved channels (HWC).
    Interleaved,
}

impl Layout {
    /// The dimension of a batch of images that channels run along.
    pub fn axis(self) -> usize {
        match self {
            Layout::Planes => 1,
            Layout::Interleaved => 3,
        }
    }

    fn is_planes(&self) -> bool {
        *self == Layout::Planes
    }
}

/// Reads the JPEG or PNG at `path` into u8 pixels of `preprocess.crop`, in the layout of the model's input.
pub fn load_pixels(path: &Path, preprocess: &Preprocess) -> Result<Vec<u8>> {
    load_pixels_as(path, preprocess, preprocess.layout)
}

/// [`load_pixels`] in the layout of the caller's choice.
pub fn load_pixels_as(path: &Path, preprocess: &Preprocess, layout: Layout) -> Result<Vec<u8>> {
    let bytes = read_bounded(path, MAX_FILE_BYTES, "an image (JPEG or PNG)")?;
    pixels_of(&bytes, preprocess, layout).with_context(|| format!("image '{}'", path.display()))
}

/// Decodes and preprocesses the bytes of a JPEG or PNG file.
pub fn pixels_of(file: &[u8], preprocess: &Preprocess, layout: Layout) -> Result<Vec<u8>> {
    preprocess.validate()?;
    let image = convert(decode(file)?, preprocess.channels);
    let cropped = resize_and_crop(&image, preprocess);
    Ok(match layout {
        Layout::Planes => planes(&cropped),
        Layout::Interleaved => cropped.data,
    })
}

/// u8 pixels in the model's layout (one image or a whole batch) to (p / 255 - mean) / std, in the same order.
pub fn normalize(pixels: &[u8], preprocess: &Preprocess) -> Vec<f32> {
    let plane = preprocess.channel_run();
    let affine: Vec<(f32, f32)> = preprocess.mean.iter().copied().zip(preprocess.std.iter().copied()).collect();
    let tables: Vec<[f32; 256]> = affine.iter().map(|&(m, s)| table(m, s)).collect();
    let channels = tables.iter().cycle();
    pixels.chunks(plane).zip(channels).flat_map(|(p, table)| p.iter().map(|v| table[usize::from(*v)])).collect()
}

fn table(mean: f32, std: f32) -> [f32; 256] {
    std::array::from_fn(|v| (v as f32 / 255.0 - mean) / std)
}

/// Decodes after checking the dimensions that the header declares.
fn decode(file: &[u8]) -> Result<DynamicImage> {
    let mut reader = ImageReader::new(Cursor::new(file)).with_guessed_format()?;
    let format = reader.format().context("is not a JPEG or PNG file; convert it to one")?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE as u32), Some(MAX_SIDE as u32));
    limits.max_alloc = Some(MAX_PIXELS as u64 * 8 + (64 << 20));
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(explain)?;
    check_dimensions(decoder.dimensions())?;
    decoder.set_limits(limits).map_err(explain)?;
    if format == ImageFormat::Jpeg && !jpeg_has_end(file) {
        bail!("ends before its last pixel; the file is incomplete");
    }
    DynamicImage::from_decoder(decoder).map_err(explain)
}

/// Whether the marker that ends a JPEG is there; without it the decoder fills up with grey and says nothing.
fn jpeg_has_end(file: &[u8]) -> bool {
    let mut rest = &file[2.min(file.len())..];
    while let Some(at) = rest.windows(2).position(is_marker) {
        if rest[at + 1] == 0xd9 {
            return true;
        }
        // A segment starts with its length, which counts itself; what follows a scan's is found by its next marker.
        let Some(length) = rest.get(at + 2..at + 4) else { return false };
        let length = usize::from(length[0]) << 8 | usize::from(length[1]);
        rest = rest.get(at + 2 + length..).unwrap_or_default();
    }
    false
}

/// A marker is 0xff and a code; 0, a restart's and a second 0xff belong to the data or the padding.
fn is_marker(pair: &[u8]) -> bool {
    pair[0] == 0xff && !matches!(pair[1], 0 | 0x01 | 0xd0..=0xd8 | 0xff)
}

fn explain(error: ::image::ImageError) -> anyhow::Error {
    use ::image::ImageError::{Limits, Unsupported};
    let advice = match error {
        Limits(_) => "is larger than allowed; make it smaller",
        Unsupported(_) => "is of a kind that is not read; convert it to an ordinary JPEG or PNG",
        _ => "cannot be decoded; the file is damaged or incomplete",
    };
    anyhow::Error::new(error).context(advice)
}

fn check_dimensions((width, height): (u32, u32)) -> Result<()> {
    let (w, h) = (width as usize, height as usize);
    if w == 0 || h == 0 {
        bail!("has no pixels ({w}x{h}); give another image");
    }
    if w > MAX_SIDE || h > MAX_SIDE || w * h > MAX_PIXELS {
        bail!("is {w}x{h}; at most {MAX_SIDE} a side and {MAX_PIXELS} pixels are read; make it smaller");
    }
    Ok(())
}

/// Drops alpha, keeps the high byte of 16-bit samples, and converts to grey or RGB as Pillow does.
fn convert(image: DynamicImage, channels: usize) -> Pixels {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let source = usize::from(image.color().channel_count());
    let bytes = to_bytes(image);
    let data = match (source, channels) {
        (1, 1) | (3, 3) => bytes,
        (2, 1) => bytes.chunks_exact(source).map(|p| p[0]).collect(),
        (1 | 2, _) => bytes.chunks_exact(source).flat_map(|p| [p[0]; 3]).collect(),
        (_, 1) => bytes.chunks_exact(source).map(luma).collect(),
        (_, _) => bytes.chunks_exact(source).flat_map(|p| [p[0], p[1], p[2]]).collect(),
    };
    Pixels { width, height, channels, data }
}

/// The samples of a decoded image, each as one byte.
fn to_bytes(image: DynamicImage) -> Vec<u8> {
    let high = |samples: Vec<u16>| samples.into_iter().map(|v| (v >> 8) as u8).collect();
    match image {
        DynamicImage::ImageLuma16(i) => high(i.into_raw()),
        DynamicImage::ImageLumaA16(i) => high(i.into_raw()),
        DynamicImage::ImageRgb16(i) => high(i.into_raw()),
        DynamicImage::ImageRgba16(i) => high(i.into_raw()),
        other => other.into_bytes(),
    }
}

/// ITU-R 601 luma in 16-bit fixed point, Pillow's `L`.
fn luma(rgb: &[u8]) -> u8 {
    let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(u32::from);
    ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16) as u8
}

fn resize_and_crop(image: &Pixels, preprocess: &Preprocess) -> Pixels {
    let (width, height) = preprocess.resized(image.width, image.height);
    let (columns, left) = centre(width, preprocess.crop.1);
    let (rows, top) = centre(height, preprocess.crop.0);
    let window = resize_window(image, (width, height), (columns, rows), preprocess.filter);
    pad(window, preprocess.crop, (top, left))
}

/// The part of `size` pixels that a centred crop keeps, and the zeros before it when the crop is larger.
fn centre(size: usize, crop: usize) -> (Range<usize>, usize) {
    if crop > size {
        return (0..size, (crop - size) / 2);
    }
    let start = ((size - crop) as f64 / 2.0).round_ties_even() as usize;
    (start..start + crop, 0)
}

/// Puts `image` at `(top, left)` of a black canvas of `(height, width)`.
fn pad(image: Pixels, (height, width): (usize, usize), (top, left): (usize, usize)) -> Pixels {
    if (image.height, image.width) == (height, width) {
        return image;
    }
    let channels = image.channels;
    let mut data = vec![0; height * width * channels];
    let stride = image.width * channels;
    for (y, row) in image.data.chunks_exact(stride).enumerate() {
        data[((top + y) * width + left) * channels..][..stride].copy_from_slice(row);
    }
    Pixels { width, height, channels, data }
}

/// Interleaved channels to channel planes.
fn planes(image: &Pixels) -> Vec<u8> {
    let channel = |c: usize| image.data.iter().skip(c).step_by(image.channels).copied();
    (0..image.channels).flat_map(channel).collect()
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
