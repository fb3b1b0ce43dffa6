//! `vitc hw`: what this machine can do.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use vitc_codegen::Tier;
use vitc_ir::{Const, Dim, Elem, Module, Op, Quant, Shape, Stage, TensorType};
use vitc_runtime::{OutputForm, Session, SessionOptions, TensorView};

use super::source::slow_tier;
use super::{Global, note, say};
use crate::compiler::Compiler;
use crate::io::progress::Progress;
use crate::io::table::{Cell, Record, Table};
use crate::model::Emitted;
use crate::tuning::cpu_info;
use crate::walk::available_threads;

/// Options of `vitc hw`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitc hw                    tiers, peak int8 rates, memory bandwidth; takes some seconds
  vitc hw --no-measure       only what is found, at once")]
pub struct Args {
    /// Only list what is found; measure nothing.
    #[arg(long)]
    no_measure: bool,
}

/// Bytes read, and half of them copied, to measure memory: beyond any cache.
const STREAM_BYTES: usize = 256 << 20;
/// Time spent on each figure.
const MEASURED_FOR: Duration = Duration::from_millis(700);
/// The product that is timed: rows, inner size and columns of a ViT-B projection.
const GEMM: (usize, usize, usize) = (196, 768, 768);

/// Runs the verb; the exit status.
pub fn run(args: Args, global: Global) -> Result<u8> {
    let machine = machine();
    let tiers = tiers(&args, global)?;
    let memory = if args.no_measure { None } else { Some(memory()) };
    if let Some(why) = slow_tier() {
        note(global, &why);
    }
    let text = if global.json {
        let memory = memory.as_ref().map(Record::to_json);
        format!("{:#}\n", json!({ "machine": machine.to_json(), "tiers": tiers.to_json(), "memory": memory }))
    } else {
        let memory = memory.map_or(String::new(), |m| format!("\n{m}\n"));
        format!("{machine}\n\n{tiers}\n{memory}")
    };
    say(text.trim_end())?;
    Ok(0)
}

/// The processor as the system describes it.
fn machine() -> Record {
    let mut record = Record::new();
    record
        .field("architecture", std::env::consts::ARCH)
        .field("system", std::env::consts::OS)
        .field("processor", cpu_info("model name").map_or(Cell::none(), Cell::from))
        .field("cores_allowed", available_threads());
    for (key, level, kind) in [("l1_data", 1, "Data"), ("l2", 2, "Unified"), ("l3", 3, "Unified")] {
        record.field(key, cache(level, kind).map_or(Cell::none(), Cell::from));
    }
    record
}

/// Size of a cache of the first core, `48K`, where the system tells.
fn cache(level: u32, kind: &str) -> Option<String> {
    let read = |index: u32, file: &str| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}");
        std::fs::read_to_string(path).ok().map(|s| s.trim().to_owned())
    };
    let is = |&i: &u32| read(i, "level") == Some(level.to_string()) && read(i, "type").as_deref() == Some(kind);
    (0..8).find(is).and_then(|i| read(i, "size"))
}

/// Every tier: why this machine cannot run it, or what it reaches in billions of multiply-accumulates a second. The peaks are
/// those of the instruction on one thread, without loads and with those of a product; `product` is vitc's own.
fn tiers(args: &Args, global: Global) -> Result<Table> {
    let plan = if args.no_measure { None } else { Some(gemm_plan()?) };
    let progress = Progress::new("measuring", Tier::ALL.len(), global.quiet || global.json);
    let mut table = Table::new(&[
        "tier",
        "available",
        "peak_gmacs",
        "loaded_peak_gmacs",
        "product_gmacs",
        "product_gmacs_all_threads",
        "why_not",
    ]);
    for tier in Tier::ALL {
        let missing = tier.missing();
        let [registers, loaded, one, many] = match &plan {
            Some(plan) if missing.is_none() => rates(plan, tier)?,
            _ => Default::default(),
        }
        .map(|rate| rate.map_or(Cell::none(), |r| Cell::number(r / 1e9, 1)));
        let why = missing.as_deref().map_or(Cell::shown_as("", serde_json::Value::Null), Cell::from);
        table.row([tier.word().into(), missing.is_none().into(), registers, loaded, one, many, why]);
        progress.advance(1);
    }
    Ok(table)
}

/// Multiply-accumulates per second: both peaks, where there is one, and the product on one thread and on all.
fn rates(plan: &Module, tier: Tier) -> Result<[Option<f64>; 4]> {
    let peak = vitc_codegen::peak(tier, MEASURED_FOR)?;
    let product = |threads| gemm_rate(plan, tier, threads).map(Some);
    Ok([peak.map(|p| p.registers), peak.map(|p| p.loaded), product(1)?, product(available_threads())?])
}

/// A plan of one matrix product with its requantization, on weights that are not zero.
fn gemm_plan() -> Result<Module> {
    let (rows, inner, columns) = GEMM;
    let mut m = Module::new("gemm", Stage::Integerize);
    let quant = Quant::per_tensor(0.02, 0);
    let shape = Shape(vec![Dim::N, rows.into(), inner.into()]);
    let x = m.input("x", TensorType::new(Elem::U8, shape).with_quant(quant.clone()));
    let weights: Vec<i8> = scrambled(inner * columns).map(|v| v as i8).collect();
    let ty = TensorType::new(Elem::I8, Shape::fixed(&[inner, columns])).with_quant(quant.clone());
    let w = m.constant(Const::new("w", ty, &weights));
    let ty = TensorType::new(Elem::I32, Shape::fixed(&[columns]));
    let multiplier = m.constant(Const::new("multiplier", ty, &vec![1i32 << 28; columns]));
    let requant = Op::IntRequant { axis: 2, x_zero: 0, shift: 40, zero_point: 128, to: Elem::U8 };
    let build = |m: &mut Module| -> Result<_, String> {
        let product =
            m.push_quant(Op::IntMatMul { a_zero: 0, b_zero: 0 }, &[x, w], Quant::per_tensor(4e-4, 0), None)?;
        let narrow = m.push_quant(requant, &[product, multiplier], Quant::per_tensor(1.6, 128), None)?;
        m.push(Op::Dequantize {}, &[narrow], None)
    };
    let y = build(&mut m).map_err(anyhow::Error::msg)?;
    m.output("y", y);
    Ok(Compiler::new().compile(m).context("the product that is timed does not compile")?.module)
}

/// Bytes without a pattern that arithmetic could profit from.
fn scrambled(count: usize) -> impl Iterator<Item = u8> {
    (0..count as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
}

/// Multiply-accumulates per second: those of the fastest run.
fn gemm_rate(plan: &Module, tier: Tier, threads: usize) -> Result<f64> {
    let (rows, inner, columns) = GEMM;
    let program = Emitted::of(plan, tier)?.program;
    let mut session = Session::new(program, SessionOptions { threads, ..SessionOptions::default() })?;
    let pixels: Vec<u8> = scrambled(rows * inner).collect();
    let dims = [1, rows, inner];
    let input = TensorView::of(&dims, &pixels)?;
    let fastest = fastest(|| {
        black_box(session.run(&[input], OutputForm::Raw)?);
        Ok(())
    })?;
    Ok((rows * inner * columns) as f64 / fastest.as_secs_f64())
}

/// The fastest of the runs that fit the time for one figure, at least three.
fn fastest(mut run: impl FnMut() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    let mut fastest = Duration::MAX;
    let mut runs = 0;
    while runs < 3 || started.elapsed() < MEASURED_FOR {
        let start = Instant::now();
        run()?;
        fastest = fastest.min(start.elapsed());
        runs += 1;
    }
    Ok(fastest.max(Duration::from_nanos(1)))
}

/// Streaming reads and copies over memory, on one thread and on all.
fn memory() -> Record {
    let mut words: Vec<u64> = (0..STREAM_BYTES as u64 / 8).collect();
    let all = available_threads();
    let mut record = Record::new();
    record.field("memory_bytes_streamed", STREAM_BYTES);
    for (key, threads) in [("read_gb_per_second_1_thread", 1), ("read_gb_per_second_all_threads", all)] {
        record.field(key, rate_cell(STREAM_BYTES, || read_all(&words, threads)));
    }
    for (key, threads) in [("copy_gb_per_second_1_thread", 1), ("copy_gb_per_second_all_threads", all)] {
        record.field(key, rate_cell(STREAM_BYTES / 2, || copy_half(&mut words, threads)));
    }
    record
}

/// Billions of bytes per second, of a copy each byte counted once.
fn rate_cell(bytes: usize, mut pass: impl FnMut()) -> Cell {
    let timed = fastest(|| {
        pass();
        Ok(())
    });
    timed.map_or(Cell::none(), |t| Cell::number(bytes as f64 / t.as_secs_f64() / 1e9, 1))
}

fn read_all(words: &[u64], threads: usize) {
    let part = words.len().div_ceil(threads.max(1));
    std::thread::scope(|scope| {
        for chunk in words.chunks(part) {
            scope.spawn(move || black_box(sum(chunk)));
        }
    });
}

/// Eight sums at once, so that memory and not one chain of additions is what is waited for.
fn sum(words: &[u64]) -> u64 {
    let (eights, rest) = words.as_chunks::<8>();
    let mut sums = [0u64; 8];
    for eight in eights {
        sums.iter_mut().zip(eight).for_each(|(s, w)| *s = s.wrapping_add(*w));
    }
    sums.iter().chain(rest).fold(0, |a, b| a.wrapping_add(*b))
}

fn copy_half(words: &mut [u64], threads: usize) {
    let (from, to) = words.split_at_mut(words.len() / 2);
    let part = from.len().div_ceil(threads.max(1));
    std::thread::scope(|scope| {
        for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
            scope.spawn(move || to.copy_from_slice(from));
        }
    });
    black_box(words);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_see_every_word() {
        let words: Vec<u64> = (0..1003).collect();
        assert_eq!(sum(&words), 1003 * 1002 / 2);
        let mut words: Vec<u64> = (0..1000).collect();
        copy_half(&mut words, 3);
        assert_eq!(words[..500], words[500..]);
    }

    #[test]
    fn the_timed_product_compiles_to_a_plan() {
        assert_eq!(gemm_plan().unwrap().stage, Stage::Plan);
    }
}
