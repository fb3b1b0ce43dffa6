//! Bad input to the command: a clear error, the right exit status, no panic, no partial file.

mod common;

use std::path::Path;

use bytes::Bytes;
use common::*;
use vitc::artifact::from_bytes;
use vitc::io::npy::write_npy_f32;

/// Flags of a compilation that would succeed.
fn compile(model: &str, output: &str) -> Vec<String> {
    with(&["compile", model, "-o", output], &compile_flags())
}

fn contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

/// A numbers generator for positions; the same sequence every time.
fn positions(count: usize, below: usize) -> impl Iterator<Item = (usize, u8)> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state % below as u64) as usize, 1 << (state >> 61))
    })
}

#[test]
fn models_that_are_missing_or_no_models() {
    let dir = temp();
    let out = arg(dir.path().join("a.vitc"));
    let missing = arg(dir.path().join("none.onnx"));
    contains(&fails(&compile(&missing, &out)), &["none.onnx"]);
    contains(&fails(&["run", &missing, &image(0)]), &["none.onnx"]);
    contains(&fails(&["bench", &missing]), &["none.onnx"]);
    fails(&compile(&arg(dir.path()), &out));
    for (name, bytes) in [("empty.onnx", &b""[..]), ("noise.onnx", &[0xA7; 5000]), ("text.onnx", b"not a model at all")]
    {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        contains(&fails(&compile(&arg(&path), &out)), &[name]);
        std::fs::remove_file(path).unwrap();
    }
    assert!(names(dir.path()).is_empty());
}

#[test]
fn truncated_models() {
    let dir = temp();
    let model = std::fs::read(model()).unwrap();
    let path = dir.path().join("cut.onnx");
    for length in [1, 100, model.len() / 3, model.len() / 2, model.len() - 1] {
        std::fs::write(&path, &model[..length]).unwrap();
        let run = output(&compile(&arg(&path), &arg(dir.path().join("a.vitc"))));
        assert!(matches!(run.status.code(), Some(1 | 2)), "{length}: {}", stderr(&run));
        assert!(!stderr(&run).contains("panicked"), "{length}: {}", stderr(&run));
    }
    assert_eq!(names(dir.path()), ["cut.onnx"]);
}

#[test]
fn an_unsupported_op_ends_with_status_2_and_is_named() {
    let dir = temp();
    let mut model = std::fs::read(model()).unwrap();
    let places: Vec<usize> = (0..model.len() - 7).filter(|&i| &model[i..i + 7] == b"Softmax").collect();
    assert!(!places.is_empty());
    places.iter().for_each(|&i| model[i..i + 7].copy_from_slice(b"Softmux"));
    let path = dir.path().join("strange.onnx");
    std::fs::write(&path, model).unwrap();
    let message = fails_with(2, &compile(&arg(&path), &arg(dir.path().join("a.vitc"))));
    contains(&message, &["strange.onnx", "Softmux"]);
    assert_eq!(names(dir.path()), ["strange.onnx"]);
}

#[test]
fn images_that_are_missing_or_no_images() {
    let dir = temp();
    let artifact = artifact(dir.path());
    contains(&fails(&["run", &artifact, "none.png"]), &["none.png"]);
    contains(&fails(&["run", &artifact, &arg(dir.path())]), &["not a regular file"]);
    let text = dir.path().join("text.png");
    std::fs::write(&text, "no pixels").unwrap();
    contains(&fails(&["run", &artifact, &arg(&text)]), &["text.png", "not a JPEG or PNG"]);
    let png = std::fs::read(image(0)).unwrap();
    let cut = dir.path().join("cut.png");
    std::fs::write(&cut, &png[..png.len() / 2]).unwrap();
    contains(&fails(&["run", &artifact, &image(0), &arg(&cut)]), &["cut.png"]);
}

#[test]
fn damaged_artifacts_are_refused() {
    let dir = temp();
    let good = artifact_bytes();
    let path = dir.path().join("bad.vitc");
    let run = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        fails(&["run", &arg(&path), &image(0)])
    };
    contains(&run(&good[..good.len() - 1]), &["bad.vitc", "truncated"]);
    contains(&run(&good[..40]), &["bad.vitc"]);
    let mut flipped = good.to_vec();
    flipped[good.len() / 2] ^= 4;
    contains(&run(&flipped), &["bad.vitc", "damaged"]);
    let mut newer = good.to_vec();
    newer[8] += 1;
    contains(&run(&newer), &[&format!("version {}", newer[8])]);
}

#[test]
fn every_flip_and_truncation_of_an_artifact_is_an_error() {
    let good = artifact_bytes();
    assert!(from_bytes(Bytes::from_static(good)).is_ok());
    let mut bytes = good.to_vec();
    let (header, anywhere) = ((0..64).map(|i| (i, 1 << (i % 8))), positions(500, good.len()));
    for (at, bit) in header.chain(anywhere) {
        // The four bytes after the version are not read and not hashed.
        if (12..16).contains(&at) {
            continue;
        }
        bytes[at] ^= bit;
        assert!(from_bytes(Bytes::copy_from_slice(&bytes)).is_err(), "bit {bit} of byte {at}");
        bytes[at] ^= bit;
    }
    for length in (0..70).chain(positions(200, good.len()).map(|(at, _)| at)) {
        assert!(from_bytes(Bytes::from_static(&good[..length])).is_err(), "{length} bytes");
    }
}

const FORGED: usize = 100;

/// Either an error or some logits.
fn run_forged(module: vitc_ir::Module) {
    let compiled = vitc::Compiled { module, journal: Default::default(), tuning: Default::default() };
    let Ok(mut model) = vitc::Model::load(&compiled, 1) else { return };
    let Ok(p) = model.image_input() else { return };
    let pixels = vec![100; p.pixels()];
    let _ = model.classify(&pixels);
}

/// An author of hostile files can compute hashes. Whatever passes the parser and the verifier then must at least load
/// without a panic.
#[test]
fn forged_plans_are_refused_or_sound() {
    let good = artifact_bytes();
    let text = u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize;
    let mut refused = 0;
    for (at, bit) in positions(FORGED, text) {
        let mut bytes = good.to_vec();
        bytes[64 + at] ^= bit;
        let hash = blake3::hash(&bytes[64..]);
        bytes[32..64].copy_from_slice(hash.as_bytes());
        match from_bytes(Bytes::from(bytes)) {
            Err(_) => refused += 1,
            Ok(module) => run_forged(module),
        }
    }
    assert!(refused > FORGED / 2, "{refused} of {FORGED} refused");
}

#[test]
fn arrays_that_do_not_fit() {
    let dir = temp();
    let artifact = artifact(dir.path());
    let x = dir.path().join("x.npy");
    let run = |named: &str| fails(&["run", &artifact, "--input", named, "--output", &arg(dir.path().join("y.npy"))]);
    let named = format!("input={}", arg(&x));
    let floats = |shape: &[usize]| write_npy_f32(&x, shape, &vec![0.0; shape.iter().product()]).unwrap();
    floats(&[1, 3, 32, 48]);
    contains(&run(&named), &["'input'", "[N, 3, 48, 48]", "[1, 3, 32, 48]"]);
    floats(&[3, 48, 48]);
    contains(&run(&named), &["'input'", "[N, 3, 48, 48]", "[3, 48, 48]"]);
    write_npy_bytes(&x, "<f4", &[1_000_000_000_000, 0, 48, 48], &[]);
    contains(&run(&named), &["'input'", "[N, 3, 48, 48]", "[1000000000000, 0, 48, 48]"]);
    floats(&[0, 3, 48, 48]);
    contains(&run(&named), &["'input'", "empty"]);
    floats(&[1, 3, 48, 48]);
    contains(&run(&format!("pixels={}", arg(&x))), &["no input 'pixels'", "'input'"]);
    contains(&run(&format!("input={}", arg(dir.path().join("none.npy")))), &["none.npy"]);
    write_npy_bytes(&x, "<f8", &[1, 3, 48, 48], &[0; 8 * 3 * 48 * 48]);
    contains(&run(&named), &["'input'", "float64", "float32"]);
    write_npy_bytes(&x, "<f4", &[1, 3, 48, 48], &[0; 100]);
    contains(&run(&named), &["x.npy"]);
    std::fs::write(&x, "no array").unwrap();
    contains(&run(&named), &["x.npy"]);
    assert_eq!(names(dir.path()), ["demo.vitc", "x.npy"]);
}

#[test]
fn calibration_that_cannot_be() {
    let dir = temp();
    let out = arg(dir.path().join("a.vitc"));
    let images = dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let run = |folder: &str| fails(&["compile", &model(), "--calibrate", folder, "-o", &out]);
    contains(&run(&arg(&images)), &["no .png, .jpg or .jpeg", "images"]);
    contains(&run(&arg(dir.path().join("none"))), &["none"]);
    std::fs::write(images.join("broken.png"), b"\x89PNG\r\n\x1a\nnothing").unwrap();
    contains(&run(&arg(&images)), &["broken.png"]);
    contains(&fails(&["compile", &model(), "-o", &out]), &["--calibrate"]);
    contains(&fails(&[&compile(&model(), &out)[..], &["--crop".into(), "32".into()]].concat()), &["48x48"]);
    assert_eq!(names(dir.path()), ["images"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let dir = temp();
    let run = |output: &Path| fails(&compile(&model(), &arg(output)));
    contains(&run(&dir.path().join("none/a.vitc")), &["does not exist"]);
    contains(&run(dir.path()), &["is a folder"]);
    let fixed = dir.path().join("fixed.vitc");
    std::fs::write(&fixed, "kept").unwrap();
    let mut permissions = std::fs::metadata(&fixed).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&fixed, permissions).unwrap();
    contains(&run(&fixed), &["read-only"]);
    assert_eq!(std::fs::read(&fixed).unwrap(), b"kept");
    let own = dir.path().join("own.onnx");
    std::fs::copy(demo().join("model.onnx"), &own).unwrap();
    contains(&fails(&compile(&arg(&own), &arg(&own))), &["the model itself"]);
    assert_eq!(names(dir.path()), ["fixed.vitc", "own.onnx"]);
}

#[test]
fn an_unwritable_output_is_refused_before_the_long_work() {
    let dir = temp();
    // The model does not exist either: what is reported tells what was looked at first.
    let missing = arg(dir.path().join("none.onnx"));
    contains(&fails(&compile(&missing, &arg(dir.path().join("none/a.vitc")))), &["does not exist; create it first"]);
}

#[test]
fn targets_of_mixed_precision_that_cannot_be() {
    let dir = temp();
    let output = arg(dir.path().join("a.vitc"));
    let run = |more: &[&str]| with(&[&["compile", &model(), "-o", &output], more].concat(), &compile_flags());
    contains(&fails(&run(&["--mixed"])), &["--target-bytes", "--max-drop"]);
    contains(&fails(&run(&["--mixed", "--target-bits", "5", "--target-bytes", "4M"])), &["cannot be used with"]);
    contains(&fails(&run(&["--target-bits", "5"])), &["--mixed"]);
    contains(&fails(&run(&["--mixed", "--target-bits", "5", "--weight-bits", "4"])), &["cannot be used with"]);
    contains(&fails(&run(&["--mixed", "--target-bytes", "4MB"])), &["4MB", "no number of bytes"]);
    contains(&fails(&run(&["--mixed", "--max-drop=-1"])), &["no number from 0 on"]);
    let unreachable = run(&["--mixed", "--target-bytes", "1k", "--calibrate-images", "2"]);
    contains(&fails(&unreachable), &["1000 bytes", "cannot be reached", "the fewest bits"]);
    let given = ["compile", &model(), "-o", &output, "--mixed", "--target-bits", "5"];
    contains(&fails(&given), &["--calibrate"]);
    let compiled = arg(artifact(dir.path()));
    let again = ["compile", &compiled, "-o", &output, "--mixed", "--target-bits", "5"];
    contains(&fails(&again), &["quantized already"]);
}

#[test]
fn labels_that_do_not_fit() {
    let dir = temp();
    let artifact = artifact(dir.path());
    let (labels, images) = (dir.path().join("labels.txt"), arg(demo().join("eval")));
    let run = |text: &str| {
        std::fs::write(&labels, text).unwrap();
        fails(&["eval", &artifact, "--images", &images, "--labels", &arg(&labels)])
    };
    contains(&run("000.png\n"), &["line 1"]);
    contains(&run("000.png 1\nnone.png 2\n"), &["none.png", "1 of 2 images are missing"]);
    contains(&run("000.png 10\n"), &["000.png", "10 classes"]);
    contains(&run(""), &["no labels"]);
    std::fs::remove_file(&labels).unwrap();
    contains(&fails(&["eval", &artifact, "--images", &images, "--labels", &arg(&labels)]), &["labels.txt"]);
    std::fs::write(&labels, "000.png 1\n").unwrap();
    let base = ["eval", &artifact, "--images", &images, "--labels", &arg(&labels)];
    contains(&fails(&[&base[..], &["--limit", "0"]].concat()), &["at least 1"]);
    contains(&fails(&[&base[..], &["--reference", &image(0)]].concat()), &["000.png"]);
}

#[test]
fn settings_that_make_no_sense() {
    let dir = temp();
    let artifact = artifact(dir.path());
    fails(&["run", &artifact]);
    fails(&["run", &artifact, &image(0), "--top", "0"]);
    fails(&["run", &artifact, &image(0), "--threads", "0"]);
    fails(&["bench", &artifact, "--runs", "0"]);
    fails(&["bench", &artifact, "--batch", "0"]);
    fails(&["bench", &artifact, "--batch", "1000000000000"]);
    fails(&["frobnicate"]);
    contains(&fails(&["run", &artifact, &image(0), "--mean", "0.1,0.1,0.1"]), &["compiled already"]);
    contains(&fails(&["run", &artifact, &image(0), "--calibrate", "x"]), &["compiled already"]);
    contains(&fails(&["run", &artifact, &image(0), "--weight-bits", "4"]), &["compiled already"]);
    contains(&fails(&["run", &artifact, &image(0), "--activation-bits", "6"]), &["compiled already"]);
    contains(&fails(&["run", &artifact, &image(0), "--codes", "lloyd"]), &["compiled already"]);
    contains(&fails(&["run", &model(), &image(0), "--codes", "log3"]), &["opt-m", "log-sqrt2"]);
    let unmatched = with(&["run", &model(), &image(0), "--codes", "*fc7*=lloyd"], &compile_flags());
    contains(&fails_with(2, &unmatched), &["*fc7*"]);
    contains(&fails(&["run", &model(), &image(0), "--weight-bits", "7"]), &["2, 3, 4, 5, 6 or 8"]);
    contains(&fails(&["run", &model(), &image(0), "--weight-bits", "*mlp*"]), &["PATTERN=BITS"]);
    contains(&fails(&["run", &model(), &image(0), "--activation-bits", "*mlp*=3"]), &["4, 5, 6, 7 or 8"]);
    let unmatched = with(&["run", &model(), &image(0), "--activation-bits", "*fc7*=4"], &compile_flags());
    contains(&fails_with(2, &unmatched), &["*fc7*"]);
    let unmatched = with(&["run", &model(), &image(0), "--weight-bits", "*fc7*=4"], &compile_flags());
    contains(&fails_with(2, &unmatched), &["*fc7*"]);
    let classes = dir.path().join("two.txt");
    std::fs::write(&classes, "one\ntwo\n").unwrap();
    contains(&fails(&["run", &artifact, &image(0), "--classes", &arg(&classes)]), &["2 names", "10 classes"]);
    contains(&fails(&["demo", "--dir", &arg(dir.path())]), &["--dir"]);
}
