//! The image door against Pillow's bytes, and hostile images.

use super::*;
use std::path::PathBuf;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/io/testdata").join(name)
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

fn plain(resize: usize, crop: (usize, usize), filter: Filter, channels: usize) -> Preprocess {
    Preprocess { resize, crop, filter, ..Preprocess::for_input(crop.0, crop.1, channels) }
}

/// A PNG of `width` x `height` whose header is right and whose pixels are missing.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut crc = !0u32;
    for byte in &chunk {
        crc = (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()));
    }
    [b"\x89PNG\r\n\x1a\n\0\0\0\x0d".as_slice(), &chunk, &(!crc).to_be_bytes(), b"\0\0\0\0IDAT\x35\xaf\x06\x1e"].concat()
}

fn error_of(bytes: &[u8]) -> String {
    format!("{:#}", pixels_of(bytes, &Preprocess::default(), Layout::Planes).unwrap_err())
}

#[test]
fn files_equal_pillow_and_torchvision_to_the_bit() {
    let mut cases = 0;
    for line in include_str!("testdata/files.txt").lines().filter(|l| !l.starts_with('#')) {
        let word: Vec<&str> = line.split_whitespace().collect();
        let [short, height, width] = [2, 3, 4].map(|i: usize| word[i].parse().unwrap());
        let filter = if word[5] == "bicubic" { Filter::Bicubic } else { Filter::Bilinear };
        let preprocess = plain(short, (height, width), filter, if word[1] == "L" { 1 } else { 3 });
        let got = load_pixels_as(&file(word[0]), &preprocess, Layout::Interleaved).unwrap();
        assert_eq!(got.len(), preprocess.pixels());
        assert_eq!(format!("{:016x}", fnv1a(&got)), word[6], "{line}");
        cases += 1;
    }
    assert_eq!(cases, 48);
}

#[test]
fn jpeg_is_within_two_units_of_libjpeg() {
    let preprocess = plain(23, (23, 30), Filter::Bicubic, 3);
    let got = load_pixels_as(&file("smooth.jpg"), &preprocess, Layout::Interleaved).unwrap();
    let want = include_bytes!("testdata/smooth.rgb");
    assert_eq!(got.len(), want.len());
    let worst = got.iter().zip(want).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(worst <= 2, "{worst}");
}

#[test]
fn sixteen_bit_grey_keeps_its_high_byte() {
    let preprocess = plain(11, (11, 14), Filter::Bicubic, 1);
    let wide = load_pixels(&file("grey16.png"), &preprocess).unwrap();
    assert_eq!(wide, load_pixels(&file("grey.png"), &preprocess).unwrap());
}

#[test]
fn planes_are_the_transpose_of_interleaved() {
    let preprocess = plain(9, (7, 5), Filter::Bilinear, 3);
    let flat = load_pixels(&file("rgb.png"), &preprocess).unwrap();
    let woven = load_pixels_as(&file("rgb.png"), &preprocess, Layout::Interleaved).unwrap();
    for (at, value) in woven.iter().enumerate() {
        assert_eq!(flat[at % 3 * 35 + at / 3], *value);
    }
}

#[test]
fn normalize_is_to_tensor_then_normalize() {
    let preprocess = plain(1, (1, 2), Filter::Bicubic, 3);
    let got = normalize(&[0, 255, 128, 7, 255, 0], &preprocess);
    // torch: ((torch.tensor(v, dtype=uint8) / 255) - mean) / std in f32
    let want = [-2.117904, 2.2489083, 0.20518208, -1.9131652, 2.64, -1.8044444];
    assert_eq!(got.len(), want.len());
    assert!(got.iter().zip(want).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{got:?}");
    let batch = normalize(&[[0, 255, 128, 7, 255, 0], [9; 6]].concat(), &preprocess);
    assert_eq!(batch[..6], got[..]);
    assert_eq!(batch[6..8], [(9.0 / 255.0 - 0.485) / 0.229; 2]);
}

#[test]
fn defaults_are_imagenets_and_survive_json() {
    let preprocess = Preprocess::default();
    preprocess.validate().unwrap();
    let line = "RGB, short side 256 bicubic, centre crop 224x224, mean 0.485,0.456,0.406, std 0.229,0.224,0.225";
    assert_eq!(preprocess.to_string(), line);
    let json = serde_json::to_string(&preprocess).unwrap();
    assert_eq!(serde_json::from_str::<Preprocess>(&json).unwrap(), preprocess);
    Preprocess::for_input(28, 28, 1).validate().unwrap();
}

#[test]
fn impossible_settings_are_refused() {
    let base = Preprocess::default();
    let bad = [
        Preprocess { resize: 0, ..base.clone() },
        Preprocess { crop: (0, 224), ..base.clone() },
        Preprocess { crop: (16384, 16384), ..base.clone() },
        Preprocess { channels: 4, ..base.clone() },
        Preprocess { mean: vec![0.5], ..base.clone() },
        Preprocess { std: vec![1.0, 0.0, 1.0], ..base.clone() },
        Preprocess { mean: vec![f32::NAN; 3], ..base },
    ];
    for preprocess in bad {
        assert!(preprocess.validate().is_err(), "{preprocess}");
        assert!(load_pixels(&file("rgb.png"), &preprocess).is_err());
    }
}

#[test]
fn absurd_dimensions_are_refused_before_decoding() {
    assert!(error_of(&png_header(16385, 4)).contains("larger than allowed"), "{}", error_of(&png_header(16385, 4)));
    assert!(error_of(&png_header(16384, 4097)).contains("is 16384x4097"));
    assert!(error_of(&png_header(u32::MAX, u32::MAX)).len() > 10);
    assert!(error_of(&png_header(16, 16)).contains("damaged or incomplete"));
}

#[test]
fn a_strip_costs_no_more_than_its_crop() {
    let strip = ::image::GrayImage::from_pixel(8192, 1, ::image::Luma([9]));
    let mut png = Cursor::new(Vec::new());
    strip.write_to(&mut png, ::image::ImageFormat::Png).unwrap();
    let pixels = pixels_of(png.get_ref(), &plain(256, (224, 224), Filter::Bicubic, 1), Layout::Planes).unwrap();
    assert_eq!(pixels, vec![9; 224 * 224]);
}

#[test]
fn errors_name_the_file() {
    let message = |name: &str| format!("{:#}", load_pixels(&file(name), &Preprocess::default()).unwrap_err());
    assert!(message("nowhere.jpg").contains("nowhere.jpg'; check the path"));
    assert!(message("").contains("not a regular file"));
    assert!(message("generate.py").contains("generate.py': is not a JPEG or PNG"), "{}", message("generate.py"));
}

#[test]
fn a_jpeg_needs_its_own_end() {
    let whole = std::fs::read(file("smooth.jpg")).unwrap();
    assert!(jpeg_has_end(&whole));
    assert!(jpeg_has_end(&[&whole, b"trailing".as_slice()].concat()));
    // A thumbnail's end inside a segment does not count.
    let segment = [0xff, 0xe1, 0, 4, 0xff, 0xd9];
    let cut = [&whole[..2], &segment, &whole[2..whole.len() - 2]].concat();
    assert!(!jpeg_has_end(&cut));
    assert!(!jpeg_has_end(&[]) && !jpeg_has_end(&[0xff]) && !jpeg_has_end(&[0xff, 0xd8, 0xff, 0xc0, 0]));
}

#[test]
fn every_prefix_is_an_error_and_no_flip_panics() {
    for name in ["rgb.png", "palette.png", "smooth.jpg"] {
        let whole = std::fs::read(file(name)).unwrap();
        let preprocess = plain(9, (7, 7), Filter::Bicubic, 3);
        // The last 12 bytes of a PNG are a chunk without content.
        let needed = if name.ends_with(".png") { whole.len() - 12 - 4 } else { whole.len() };
        for length in 0..needed {
            let result = pixels_of(&whole[..length], &preprocess, Layout::Planes);
            assert!(result.is_err(), "{name} cut to {length} of {}", whole.len());
        }
        for at in 0..whole.len() {
            let mut hurt = whole.clone();
            hurt[at] ^= 0x5a;
            let _ = pixels_of(&hurt, &preprocess, Layout::Planes);
        }
    }
}
