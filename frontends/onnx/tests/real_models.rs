//! Real and realistic exports import whole. The models lie in the folder that `VITC_SHARED` names; without it the tests say
//! that they skip.

use std::path::{Path, PathBuf};

use vitc_ir::{Class, Dim, Module, Stage};
use vitc_onnx::{BatchMode, Options, import_file, inspect_file};

fn models(test: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("VITC_SHARED").map(|p| Path::new(&p).join("models"));
    if shared.is_none() {
        println!("{test}: skipped, VITC_SHARED is not set");
    }
    shared
}

fn onnx_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    files.sort();
    assert!(!files.is_empty(), "no models in {}", folder.display());
    files
}

fn import(path: &Path) -> Module {
    let module = import_file(path, &Options::default()).unwrap_or_else(|e| panic!("{}:\n{e}", path.display()));
    assert_eq!(module.stage, Stage::Import);
    assert!(module.nodes.iter().all(|n| n.loc.is_some() && matches!(n.op.class(), Class::Move | Class::Float)));
    vitc_ir::verify::verify(&module).unwrap_or_else(|e| panic!("{}:\n{e}", path.display()));
    for output in &module.outputs {
        assert_eq!(module.ty(output.value).shape.0[0], Dim::N, "{}", path.display());
    }
    println!("{}: {} nodes, {} constants", path.display(), module.nodes.len(), module.consts.len());
    module
}

fn import_all(test: &str, folder: &str) {
    let Some(models) = models(test) else { return };
    for file in onnx_files(&models.join(folder)) {
        import(&file);
        assert!(inspect_file(&file, &Options::default()).unwrap().unsupported.0.is_empty());
    }
}

#[test]
fn deit_imports_with_a_free_batch() {
    import_all("deit_imports_with_a_free_batch", "");
}

#[test]
fn vit_mnist_imports_with_a_free_batch() {
    import_all("vit_mnist_imports_with_a_free_batch", "vit_mnist");
}

#[test]
fn efficientvit_and_swin_import() {
    import_all("efficientvit_and_swin_import", "cifar10");
}

#[test]
fn a_fixed_batch_stays_on_request() {
    let Some(models) = models("a_fixed_batch_stays_on_request") else { return };
    for file in onnx_files(&models) {
        let options = Options { batch: BatchMode::AsIs, ..Options::default() };
        let module = import_file(&file, &options).unwrap_or_else(|e| panic!("{}:\n{e}", file.display()));
        assert_eq!(module.ty(module.outputs[0].value).shape.0[0], Dim::fixed(1));
    }
}

#[test]
fn skeletons_import_when_filled() {
    let test = "skeletons_import_when_filled";
    let Some(models) = models(test) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let python = std::env::var("VITC_PYTHON").unwrap_or_else(|_| "python3".into());
    let packed = std::fs::read_dir(models.join("skeletons")).unwrap().map(|e| e.unwrap().path());
    for packed in packed.filter(|p| p.extension().is_some_and(|e| e == "gz")) {
        let skeleton = scratch.path().join("model.skel.onnx");
        let filled = scratch.path().join("model.onnx");
        let unpack = "import gzip, sys; open(sys.argv[2], 'wb').write(gzip.open(sys.argv[1]).read())";
        let unpacked = std::process::Command::new(&python).args(["-c", unpack]).arg(&packed).arg(&skeleton).status();
        let mut fill = std::process::Command::new(&python);
        fill.arg(models.join("skeleton.py")).arg("fill").arg(&skeleton).arg(&filled);
        let filling = fill.output();
        if !unpacked.is_ok_and(|s| s.success()) || !filling.is_ok_and(|o| o.status.success()) {
            println!("{test}: skipped, no python with onnx to fill {}", packed.display());
            return;
        }
        import(&filled);
    }
}
