//! `vitc bench`: latency, the share of each kernel, and a worker for side-by-side measurements.

mod profile;

use std::io::BufRead;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use self::profile::{By, Profile};
use super::source::{self, CompileFlags};
use super::{Global, say};
use crate::accuracy::{median_ms, quantile_ms};
use crate::io::table::{Cell, Record};
use crate::model::{Feed, Model};

/// Arguments of `vitc bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitc bench deit.vitc --threads 1
  vitc bench deit.onnx --batch 8 --json              compiled first, calibrated on noise unless --calibrate is given
  vitc bench deit.vitc --profile                     what each kernel takes and reaches, and where threads wait
  vitc bench deit.vitc --profile --by node           the same for each node of the ONNX graph

The input is seeded noise; `macs` are the multiply-accumulates of one image. With --worker it prints `READY {json}` and
answers each line N with the times of N runs, until `quit`, as bench_peers.py wants it.")]
pub struct Args {
    /// An artifact, an ONNX model or a `.vir` text; the latter two are compiled first.
    model: PathBuf,
    /// Images of each run.
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
    /// Timed runs.
    #[arg(long, value_name = "R", default_value_t = 50)]
    runs: usize,
    /// Runs before the timed ones.
    #[arg(long, value_name = "W", default_value_t = 5)]
    warmup: usize,
    /// Print the time of each kernel, the percentage of the peak that it reaches, and the waits of the calling thread.
    #[arg(long)]
    profile: bool,
    /// What the profile is summed by.
    #[arg(long, value_enum, default_value_t = By::Kernel, requires = "profile")]
    by: By,
    /// Be timed by another process, over standard input and output.
    #[arg(long, conflicts_with = "profile")]
    worker: bool,
    #[command(flatten)]
    flags: CompileFlags,
}

/// Runs the verb.
pub fn run(mut args: Args, global: Global) -> Result<u8> {
    ensure!(args.runs > 0, "--runs 0 measures nothing; give at least 1");
    args.flags.calibrate.get_or_insert_with(|| "synthetic".into());
    let started = Instant::now();
    let mut model = source::model(&args.model, &args.flags, global)?;
    let loaded = started.elapsed();
    let mut feed = model.noise_feed(args.batch, 1)?;
    if args.worker {
        return serve(&mut model, &mut feed, loaded);
    }
    repeat(&mut model, &mut feed, args.warmup)?;
    model.profile(args.profile);
    let times = repeat(&mut model, &mut feed, args.runs)?;
    if args.profile {
        let peak = profile::peak(model.tier(), model.threads())?;
        let profile = Profile { steps: model.step_profiles(), runs: args.runs, peak };
        say(&profile.render(args.by, global.json))?;
        return Ok(0);
    }
    say(&report(&args, &model, &times).render(global.json))?;
    Ok(0)
}

fn repeat(model: &mut Model, feed: &mut Feed, runs: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let started = Instant::now();
        model.run_feed(feed)?;
        times.push(started.elapsed());
    }
    Ok(times)
}

fn report(args: &Args, model: &Model, times: &[Duration]) -> Record {
    let median = median_ms(times);
    let macs = model.macs_per_image();
    let images_at_once = model.fixed_images().unwrap_or(args.batch);
    let gmacs_per_s = macs as f64 * images_at_once as f64 / median / 1e6;
    let mut record = Record::new();
    record
        .field("model", args.model.display().to_string())
        .field("median_ms", Cell::number(median, 3))
        .field("min_ms", Cell::number(quantile_ms(times, 0.0), 3))
        .field("p90_ms", Cell::number(quantile_ms(times, 0.9), 3))
        .field("tier", model.tier().word())
        .field("macs", macs)
        .field("gmacs_per_s", Cell::number(gmacs_per_s, 1))
        .field("threads", model.threads())
        .field("batch", args.batch)
        .field("runs", times.len());
    record
}

/// The worker's side of bench_peers.py's protocol.
fn serve(model: &mut Model, feed: &mut Feed, loaded: Duration) -> Result<u8> {
    repeat(model, feed, 2)?;
    let ready = json!({
        "load_s": loaded.as_secs_f64(),
        "rss_mb": status_mb("VmRSS:"),
        "hwm_mb": status_mb("VmHWM:"),
        "tier": model.tier().word(),
        "macs": model.macs_per_image(),
        "out": feed.first_values(4)?,
    });
    say(&format!("READY {ready}"))?;
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read the next command")?;
        let command = line.trim();
        if command == "quit" {
            break;
        }
        let runs = command.parse().with_context(|| format!("'{command}' is neither a number of runs nor quit"))?;
        say(&slice(model, feed, runs)?.to_string())?;
    }
    Ok(0)
}

/// One slice of runs: the times, the share of processor time, and the peak memory.
fn slice(model: &mut Model, feed: &mut Feed, runs: usize) -> Result<serde_json::Value> {
    let (wall, cpu) = (Instant::now(), cpu_time());
    let times = repeat(model, feed, runs)?;
    let busy = cpu_time().saturating_sub(cpu).as_secs_f64() / wall.elapsed().as_secs_f64().max(1e-9);
    let seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    Ok(json!({"t": seconds, "cpu_wall": busy, "hwm_mb": status_mb("VmHWM:")}))
}

/// Processor time of all threads of this process.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

/// A line of this process's memory figures in MB; 0 where the system does not tell.
fn status_mb(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(key));
    let kilobytes = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_grows() {
        let before = cpu_time();
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(20) {}
        assert!(cpu_time() > before);
        assert!(status_mb("VmHWM:") > 0.0 || !cfg!(target_os = "linux"));
    }
}
