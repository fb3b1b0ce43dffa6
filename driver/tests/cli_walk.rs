//! The command on the bundled model: demo, compile, run, eval, bench and the worker.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use common::*;
use serde_json::Value;
use vitc::Preprocess;
use vitc::io::image::{load_pixels, normalize};
use vitc::io::npy::{Elements, read_npy, write_npy_f32};
use vitc_codegen::Tier;

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {value:#}"))
}

fn preprocess() -> Preprocess {
    Preprocess { resize: 48, mean: vec![0.5; 3], std: vec![0.5; 3], ..Preprocess::for_input(48, 48, 3) }
}

fn pixels(image_number: usize) -> Vec<u8> {
    load_pixels(Path::new(&image(image_number)), &preprocess()).unwrap()
}

/// The logits that `vitc run` gives for an array.
fn run_array(artifact: &str, input: &Path, more: &[&str]) -> (Vec<usize>, Vec<f32>) {
    let output = input.with_extension("out.npy");
    let input = format!("input={}", arg(input));
    succeeds(&[&["run", artifact, "--input", &input, "--output", &arg(&output)], more].concat());
    let array = read_npy(&output).unwrap();
    match array.elements {
        Elements::F32(values) => (array.shape, values),
        other => panic!("{}", other.dtype()),
    }
}

#[test]
fn the_demo_walks_from_onnx_to_classes() {
    let report = json(&["demo"]);
    assert_eq!(report["float_instructions"], 0);
    assert!(number(&report, "images") >= 100.0);
    assert!(number(&report, "agreement") >= 94.0, "{report:#}");
    assert!(number(&report, "logit_sqnr_db") >= 16.0, "{report:#}");
    let (float, integer) = (number(&report, "float_top1"), number(&report, "integer_top1"));
    assert!((float - integer).abs() <= 2.0, "{report:#}");
    let expected: Value = serde_json::from_slice(&std::fs::read(demo().join("expected.json")).unwrap()).unwrap();
    assert!((float - 100.0 * number(&expected, "float_top1")).abs() < 0.5, "onnxruntime gave {expected}, vitc {float}");
    assert!(report["examples"].as_array().unwrap().len() >= 5);
    for key in ["float_median_ms", "integer_median_ms", "compile_ms", "macs", "calibration_images"] {
        assert!(number(&report, key) > 0.0, "{key}");
    }
    let text = succeeds(&["demo", "--nonlinear", "shift", "--quiet"]);
    for line in ["truth", "float top1", "integer top1", "float instructions  0"] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn compiling_reports_and_repeats_itself_to_the_byte() {
    let (dir, other) = (temp(), temp());
    let path = arg(dir.path().join("a.vitc"));
    let mut flags = compile_flags();
    // A number that f32 does not hold exactly must not come back with more digits than it was given with.
    flags.iter_mut().filter(|f| *f == "0.5,0.5,0.5").take(1).for_each(|f| *f = "0.485,0.5,0.5".into());
    let report = json(&with(&["compile", &model(), "-o", &path], &flags));
    assert_eq!(report["float_instructions"], 0);
    assert_eq!(number(&report, "artifact_bytes") as u64, std::fs::metadata(&path).unwrap().len());
    assert_eq!(report["preprocessing"]["mean"], serde_json::json!([0.485, 0.5, 0.5]));
    assert_eq!(report["content_hash"].as_str().unwrap().len(), 64);
    for key in ["weight_bytes", "arena_bytes_per_image", "macs", "kernels", "calibration_images"] {
        assert!(number(&report, key) > 0.0, "{key}");
    }
    for stage in ["import", "clean", "shape", "quantize", "integerize", "fuse", "plan", "emit", "total"] {
        assert!(number(&report["times_ms"], stage) >= 0.0, "{stage}");
    }
    let again = arg(other.path().join("b.vitc"));
    let again_flags = with(&["compile", &model(), "-o", &again, "--threads", "3"], &flags);
    let run = vitc(&again_flags).current_dir(other.path()).env("LANG", "tr_TR.UTF-8").output().unwrap();
    assert!(run.status.success(), "{}", stderr(&run));
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&again).unwrap(), "the artifacts differ");
    assert_eq!(names(dir.path()), ["a.vitc"]);
}

/// Half the weights' bytes, classes that mostly survive, and the same logits on every tier.
#[test]
fn weights_of_four_bits_are_packed_two_to_a_byte() {
    let dir = temp();
    let compiled = |name: &str, more: &[&str]| {
        let path = arg(dir.path().join(name));
        let all = with(&[&["compile", &model(), "-o", &path], more].concat(), &compile_flags());
        let report = json(&all);
        (path, number(&report, "weight_bytes"))
    };
    let (_, bytes) = compiled("8.vitc", &[]);
    let (four, nibbles) = compiled("4.vitc", &["--weight-bits", "4"]);
    let (_, mixed) = compiled("mixed.vitc", &["--weight-bits", "4", "--weight-bits", "*mlp*=8"]);
    assert!(nibbles < 0.7 * bytes, "{nibbles} of {bytes}");
    assert!(nibbles < mixed && mixed < bytes, "{nibbles}, {mixed}, {bytes}");
    let (three, fewest) = compiled("3.vitc", &["--weight-bits", "3", "--activation-bits", "6"]);
    assert!(fewest < nibbles, "{fewest}, {nibbles}");
    let layers = json(&["inspect", &three])["layers"].as_array().unwrap().clone();
    let bits: Vec<f64> = layers.iter().map(|l| number(l, "bits")).collect();
    assert_eq!(bits.iter().filter(|&&b| b == 8.0).count(), 2, "patches and classifier keep 8: {layers:?}");
    assert!(bits.iter().all(|&b| b == 3.25 || b == 8.0), "{layers:?}");
    let (_, ungrouped) = compiled("3n.vitc", &["--weight-bits", "3", "--weight-groups", "none"]);
    assert!(ungrouped < fewest, "{ungrouped}, {fewest}");
    let labels = arg(demo().join("eval/labels.txt"));
    let images = arg(demo().join("eval"));
    let report = json(&["eval", &four, "--images", &images, "--labels", &labels, "--reference", &model()]);
    assert!(number(&report, "agreement") >= 80.0, "{report:#}");
    let input = dir.path().join("bytes.npy");
    write_npy_bytes(&input, "|u1", &[1, 3, 48, 48], &pixels(3));
    let logits = run_array(&four, &input, &[]).1;
    for tier in Tier::available() {
        assert_eq!(run_array(&four, &input, &["--tier", tier.word()]).1, logits, "{tier:?}");
    }
}

/// The search meets its target, says which flags repeat it to the byte, and does not measure twice.
#[test]
fn mixed_precision_meets_a_target_and_can_be_repeated_without_the_search() {
    let dir = temp();
    let path = arg(dir.path().join("m.vitc"));
    let search = |target: &[&str], threads: &str| {
        let args =
            [&["compile", &model(), "-o", &path, "--calibrate-images", "12", "--mixed", "--threads", threads], target];
        json(&with(&args.concat(), &compile_flags()))["mixed"].clone()
    };
    let mixed = search(&["--target-bits", "5.5"], "1");
    assert!(number(&mixed, "mean_bits") <= 5.5 && number(&mixed, "mean_bits") > 5.0, "{mixed:#}");
    assert_eq!(mixed["losses_from_cache"], false);
    assert!(number(&mixed, "divergence") >= 0.0 && !mixed["products"].as_array().unwrap().is_empty());
    assert_eq!(names(dir.path()), ["m.vitc", "m.vitc.sensitivity.json"]);
    let again = search(&["--target-bits", "5.5"], "3");
    assert_eq!((&again["losses_from_cache"], &again["flags"]), (&true.into(), &mixed["flags"]));
    let table = dir.path().join("m.vitc.sensitivity.json");
    let kept = std::fs::read(&table).unwrap();
    std::fs::write(&table, "{").unwrap();
    assert_eq!(search(&["--target-bits", "5.5"], "3")["losses_from_cache"], false);
    assert!(std::fs::read(&table).unwrap() == kept, "losses depend on the number of threads");
    let searched = std::fs::read(&path).unwrap();
    let flags: Vec<String> = mixed["flags"].as_array().unwrap().iter().map(|f| f.as_str().unwrap().into()).collect();
    let other = arg(dir.path().join("flags.vitc"));
    let repeat =
        with(&["compile", &model(), "-o", &other, "--calibrate-images", "12"], &[compile_flags(), flags].concat());
    succeeds(&repeat);
    assert!(searched == std::fs::read(&other).unwrap(), "the flags give another artifact");
    let bytes = search(&["--target-bytes", "250k"], "2");
    assert!(number(&bytes, "product_weight_bytes") <= 250e3 && bytes["losses_from_cache"] == true, "{bytes:#}");
    let drop = search(&["--max-drop", "0"], "2");
    assert!(
        number(&drop, "agreement") >= number(&drop, "agreement_8_bits") && number(&drop, "mean_bits") < 8.0,
        "{drop:#}"
    );
    let timed = search(&["--max-drop", "10", "--cost", "ns"], "1");
    assert_eq!(timed["cost"], "ns");
}

#[test]
fn images_are_classified_alike_from_artifact_and_onnx() {
    let dir = temp();
    let artifact = artifact(dir.path());
    let classes = arg(demo().join("classes.txt"));
    let images = [image(0), image(1), image(2)];
    let run = ["run", &artifact, &images[0], &images[1], &images[2], "--top", "3", "--classes", &classes];
    let report = json(&run);
    assert_eq!(report["preprocessing"]["resize"], 48);
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    for (result, image) in results.iter().zip(&images) {
        assert_eq!(result["image"], image.as_str());
        let top = result["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert!(number(&top[0], "probability") >= number(&top[1], "probability"));
        assert!(top[0]["name"].is_string());
    }
    let mut from_onnx =
        json(&with(&["run", &model(), &images[0], "--top", "3", "--classes", &classes], &compile_flags()));
    assert_eq!(from_onnx["results"][0].take(), results[0]);
    let text = succeeds(&run);
    assert!(text.starts_with("preprocessing: RGB, short side 48"), "{text}");
    assert!(text.contains("percent"), "{text}");
}

#[test]
fn arrays_give_the_bits_that_images_give() {
    let dir = temp();
    let artifact = artifact(dir.path());
    let report = json(&["run", &artifact, &image(3), "--top", "10"]);
    let top = report["results"][0]["top"].as_array().unwrap().clone();
    let float = dir.path().join("float.npy");
    write_npy_f32(&float, &[1, 3, 48, 48], &normalize(&pixels(3), &preprocess())).unwrap();
    let (shape, logits) = run_array(&artifact, &float, &[]);
    assert_eq!(shape, [1, 10]);
    for guess in top {
        assert_eq!(logits[number(&guess, "class") as usize], number(&guess, "logit") as f32);
    }
    let bytes = dir.path().join("bytes.npy");
    write_npy_bytes(&bytes, "|u1", &[1, 3, 48, 48], &pixels(3));
    assert_eq!(run_array(&artifact, &bytes, &[]).1, logits);
}

/// Findings beside the artifact: used where they hold, ignored with a note elsewhere, and no bit changes.
#[test]
fn tuning_is_kept_beside_the_artifact_and_changes_no_bit() {
    let dir = temp();
    let artifact = artifact(dir.path());
    let input = dir.path().join("bytes.npy");
    write_npy_bytes(&input, "|u1", &[1, 3, 48, 48], &pixels(3));
    let logits = run_array(&artifact, &input, &["--threads", "2"]).1;
    let report = json(&["tune", &artifact, "--threads", "2", "--runs", "2"]);
    let file = format!("{artifact}.tune");
    assert_eq!(report["tuned"]["file"], file.as_str());
    assert_eq!(run_array(&artifact, &input, &["--threads", "2"]).1, logits);

    // Whatever was found: choices that the cost model would not make.
    let mut tuning: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let all = json(&["bench", &artifact, "--threads", "2", "--runs", "1"]);
    assert!(number(&all, "min_ms") > 0.0);
    let compiled = vitc::Compiled::open(&artifact).unwrap();
    let model = vitc::Model::load(&compiled, 2).unwrap();
    assert!(model.untuned().is_none());
    let keys: Vec<String> = model.offers().iter().flatten().map(|o| o.key.clone()).collect();
    let finding = serde_json::json!({"split": "columns", "copied_bytes": 4096, "ms": [2.0, 1.0]});
    tuning["kernels"] = keys.into_iter().map(|key| (key, finding.clone())).collect::<serde_json::Map<_, _>>().into();
    std::fs::write(&file, tuning.to_string()).unwrap();
    assert_eq!(run_array(&artifact, &input, &["--threads", "2"]).1, logits);

    let run = output(&["bench", &artifact, "--threads", "1", "--runs", "1"]);
    assert!(
        run.status.success() && stderr(&run).contains("note: what `vitc tune` found is not used"),
        "{}",
        stderr(&run)
    );
    tuning["artifact"] = "0".into();
    std::fs::write(&file, tuning.to_string()).unwrap();
    let run = output(&["bench", &artifact, "--threads", "2", "--runs", "1"]);
    assert!(run.status.success() && stderr(&run).contains("another artifact"), "{}", stderr(&run));
    assert!(fails(&["tune", &crate::common::model()]).contains("not an artifact"));
}

#[test]
fn neither_batch_nor_threads_change_a_bit() {
    let dir = temp();
    let artifact = artifact(dir.path());
    let images: Vec<Vec<u8>> = (0..5).map(pixels).collect();
    let singles: Vec<f32> = (0..5)
        .flat_map(|i| {
            let path = dir.path().join(format!("{i}.npy"));
            write_npy_bytes(&path, "|u1", &[1, 3, 48, 48], &images[i]);
            run_array(&artifact, &path, &["--threads", "1"]).1
        })
        .collect();
    let batch = dir.path().join("batch.npy");
    write_npy_bytes(&batch, "|u1", &[5, 3, 48, 48], &images.concat());
    for threads in ["1", "2", "3", "7"] {
        let (shape, logits) = run_array(&artifact, &batch, &["--threads", threads]);
        assert_eq!(shape, [5, 10]);
        assert!(logits.iter().zip(&singles).all(|(a, b)| a.to_bits() == b.to_bits()), "{threads} threads");
    }
}

#[test]
fn evaluation_counts_beside_the_float_graph() {
    let dir = temp();
    let artifact = artifact(dir.path());
    let (images, labels) = (arg(demo().join("eval")), arg(demo().join("eval/labels.txt")));
    let base = ["eval", &artifact, "--images", &images, "--labels", &labels, "--limit", "40"];
    let plain = json(&base);
    assert_eq!(plain["images"], 40);
    assert!(plain.get("agreement").is_none());
    let report = json(&[&base[..], &["--reference", &model()]].concat());
    assert_eq!(report["top1"], plain["top1"]);
    for key in ["top1", "top5", "reference_top1", "agreement"] {
        assert!((0.0..=100.0).contains(&number(&report, key)), "{key}");
    }
    assert!(number(&report, "top5") >= number(&report, "top1"));
    assert!(number(&report, "logit_sqnr_db") > 10.0, "{report:#}");
    assert!(number(&report, "mean_ms") > 0.0 && number(&report, "reference_mean_ms") > 0.0);
    let interval = &report["top1_interval"];
    let top1 = number(&report, "top1");
    assert!(interval[0].as_f64().unwrap() <= top1 && top1 <= interval[1].as_f64().unwrap());
    assert!(succeeds(&base).contains("top1 interval"));
}

#[test]
fn a_tier_is_auto_or_one_that_this_machine_has() {
    let dir = temp();
    let artifact = artifact(dir.path());
    for tier in Tier::ALL {
        let bench = ["bench", &artifact, "--runs", "3", "--tier", tier.word()];
        match tier.missing() {
            None => assert_eq!(json(&bench)["tier"], tier.word()),
            Some(why) => {
                let said = fails(&bench);
                assert!(said.contains(&why) && said.contains("portable, baseline"), "{said}");
            }
        }
    }
}

#[test]
fn bench_reports_latency_and_the_share_of_each_kernel() {
    let dir = temp();
    let artifact = artifact(dir.path());
    let report = json(&["bench", &artifact, "--runs", "5", "--threads", "1", "--batch", "2"]);
    assert_eq!(
        (&report["threads"], &report["batch"], &report["tier"]),
        (&1.into(), &2.into(), &Tier::best().word().into())
    );
    assert!(number(&report, "min_ms") <= number(&report, "median_ms"));
    assert!(number(&report, "median_ms") <= number(&report, "p90_ms"));
    assert!(number(&report, "macs") > 1e6 && number(&report, "gmacs_per_s") > 0.0);
    for (by, key) in [("kernel", "kernels"), ("node", "nodes")] {
        let profile = json(&["bench", &artifact, "--runs", "3", "--profile", "--by", by]);
        let rows = profile[key].as_array().unwrap();
        let total: f64 = rows.iter().map(|r| number(r, "share")).sum();
        assert!((total - 100.0).abs() < 1e-6 && rows.iter().all(|r| r[by].is_string()), "{rows:?}");
        let regions = profile["regions"].as_array().unwrap();
        let steps: f64 = regions.iter().map(|r| number(r, "steps")).sum();
        let calls: f64 = rows.iter().map(|r| number(r, "calls")).sum();
        assert!(
            steps == calls && regions.len() < rows.iter().map(|r| number(r, "calls") as usize).sum(),
            "{regions:?}"
        );
        assert!(regions.iter().all(|r| number(r, "waited_ms") > 0.0), "{regions:?}");
    }
}

#[test]
fn bench_calibrates_an_onnx_file_on_noise_and_says_so() {
    let run = output(&["bench", &model(), "--runs", "2", "--json"]);
    assert!(run.status.success(), "{}", stderr(&run));
    assert!(stderr(&run).contains("seeded noise"), "{}", stderr(&run));
    assert!(number(&serde_json::from_slice(&run.stdout).unwrap(), "median_ms") > 0.0);
}

#[test]
fn the_worker_speaks_the_line_protocol() {
    let mut child = vitc(["bench", &model(), "--batch", "2", "--threads", "1", "--worker"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut stdin = child.stdin.take().unwrap();
    let ready = lines.next().unwrap().unwrap();
    let ready: Value = serde_json::from_str(ready.strip_prefix("READY ").unwrap()).unwrap();
    assert!(number(&ready, "load_s") > 0.0);
    for runs in [2usize, 3] {
        writeln!(stdin, "{runs}").unwrap();
        let answer: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(answer["t"].as_array().unwrap().len(), runs);
        assert!(number(&answer, "cpu_wall") > 0.0 && number(&answer, "hwm_mb") > 0.0, "{answer}");
    }
    writeln!(stdin, "quit").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(lines.next().is_none());
}

#[test]
fn the_worker_ends_with_its_input_and_refuses_nonsense() {
    let dir = temp();
    let artifact = artifact(dir.path());
    for (text, success) in [("", true), ("1\n", true), ("many\n", false)] {
        let mut child = vitc(["bench", &artifact, "--worker"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let run = child.wait_with_output().unwrap();
        assert_eq!(run.status.success(), success, "{text:?}: {}", stderr(&run));
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let dir = temp();
    let artifact = artifact(dir.path());
    let mut child = vitc(["run", &artifact, &image(0)]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let run = child.wait_with_output().unwrap();
    assert!(run.status.success(), "{}", stderr(&run));
}

#[test]
fn help_has_examples() {
    for verb in ["demo", "compile", "run", "eval", "bench"] {
        let text = succeeds(&[verb, "--help"]);
        assert!(text.contains("Usage:"), "{text}");
        assert!(verb == "demo" || text.contains("Examples:"), "{text}");
    }
}
