//! What the tests of the command share: the binary, the bundled demo, and one artifact of it.
#![allow(dead_code)] // each test crate uses a part

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

/// The folder of the bundled model and images.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// A path as an argument.
pub fn arg(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("a UTF-8 path").to_owned()
}

/// The bundled model's path, as an argument.
pub fn model() -> String {
    arg(demo().join("model.onnx"))
}

/// The bundled image of that number, as an argument.
pub fn image(number: usize) -> String {
    arg(demo().join(format!("eval/{number:03}.png")))
}

/// The flags that compile the bundled model as it was trained.
pub fn compile_flags() -> Vec<String> {
    let calib = arg(demo().join("calib"));
    ["--calibrate", &calib, "--resize", "48", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"].map(str::to_owned).into()
}

/// A command of the built binary.
pub fn vitc<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vitc"));
    command.args(args);
    command
}

/// Runs the command with these arguments.
pub fn output<S: AsRef<str>>(args: &[S]) -> Output {
    vitc(args.iter().map(AsRef::as_ref)).output().expect("the binary runs")
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output of a run that must succeed.
pub fn succeeds<S: AsRef<str>>(args: &[S]) -> String {
    let output = output(args);
    assert!(output.status.success(), "{:?}: {}", output.status, stderr(&output));
    String::from_utf8(output.stdout).expect("UTF-8 output")
}

/// The JSON that a run with `--json` prints.
pub fn json<S: AsRef<str>>(args: &[S]) -> Value {
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).chain(["--json"]).collect();
    let text = succeeds(&args);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The message of a run that must end with this status and without a panic.
pub fn fails_with<S: AsRef<str> + std::fmt::Debug>(status: i32, args: &[S]) -> String {
    let output = output(args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    assert!(message.contains("error"), "{args:?}: {message}");
    assert!(!message.contains("panicked") && !message.contains("RUST_BACKTRACE"), "{args:?}: {message}");
    message
}

/// The message of a run that must fail on bad input.
pub fn fails<S: AsRef<str> + std::fmt::Debug>(args: &[S]) -> String {
    fails_with(1, args)
}

/// A temporary folder.
pub fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The names of the files in a folder, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// The bundled model's artifact, compiled once for each test crate.
pub fn artifact_bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let dir = temp();
        let path = arg(dir.path().join("demo.vitc"));
        let mut args = vec!["compile".to_owned(), model(), "-o".to_owned(), path.clone()];
        args.extend(compile_flags());
        succeeds(&args);
        std::fs::read(path).expect("the artifact")
    })
}

/// A copy of the bundled model's artifact in a folder, as an argument.
pub fn artifact(dir: &Path) -> String {
    let path = dir.join("demo.vitc");
    std::fs::write(&path, artifact_bytes()).expect("a copy");
    arg(path)
}

/// Adds arguments.
pub fn with(args: &[&str], more: &[String]) -> Vec<String> {
    args.iter().map(|a| (*a).to_owned()).chain(more.iter().cloned()).collect()
}

/// A `.npy` file of bytes, format 1.
pub fn write_npy_bytes(path: &Path, descr: &str, shape: &[usize], bytes: &[u8]) {
    let dims: String = shape.iter().map(|d| format!("{d},")).collect();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}\n");
    let length = u16::try_from(header.len()).expect("a short header").to_le_bytes();
    std::fs::write(path, [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), bytes].concat()).expect("a file");
}
