//! Single kernels of a DeiT-S block, on every tier of this machine: `cargo bench --manifest-path bench/Cargo.toml`.
//!
//! Each is a module of stage `fuse` with one node, planned and compiled as `vitc compile` would; inputs are seeded noise over
//! the whole range of their type, never zeros. Products report multiply-accumulates per second as elements per second.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vitc_bench::{Epilogue, Kernel, layernorm, product};
use vitc_codegen::{Options, Tier, compile};
use vitc_runtime::{Session, SessionOptions, TensorView};

/// Rows of a 224 x 224 image in patches of 16 x 16, and the class token.
const TOKENS: usize = 197;

fn kernels() -> Vec<Kernel> {
    vec![
        product("qkv_tiny", [TOKENS, 192, 192], Epilogue::Requantize),
        product("qkv_tiny_bare", [TOKENS, 192, 192], Epilogue::Saturate),
        product("qkv", [TOKENS, 384, 384], Epilogue::Requantize),
        product("qkv_bare", [TOKENS, 384, 384], Epilogue::Saturate),
        product("fc1", [TOKENS, 384, 1536], Epilogue::Table),
        product("fc1_bare", [TOKENS, 384, 1536], Epilogue::Saturate),
        product("fc2", [TOKENS, 1536, 384], Epilogue::Requantize),
        product("head", [1, 384, 1000], Epilogue::Requantize),
        layernorm("layernorm", TOKENS, 384),
    ]
}

fn run(c: &mut Criterion) {
    for kernel in kernels() {
        let mut group = c.benchmark_group(kernel.name);
        group.throughput(Throughput::Elements(kernel.work));
        for tier in Tier::available() {
            let options = Options { tier, ..Options::default() };
            let program = compile(&kernel.module, &options).and_then(|c| c.into_program()).expect("compiles");
            let options = SessionOptions { threads: 1, ..SessionOptions::default() };
            let mut session = Session::new(Arc::new(program), options).expect("starts");
            let (elem, dims) = kernel.input;
            let x = TensorView::new(elem, &dims, &kernel.noise).expect("fits");
            group.bench_function(BenchmarkId::from_parameter(tier.word()), |b| {
                b.iter(|| black_box(session.run(&[x], vitc_runtime::OutputForm::Raw).expect("runs")));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, run);
criterion_main!(benches);
