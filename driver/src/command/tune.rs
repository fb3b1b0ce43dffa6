//! `vitc tune`: times the alternatives to the cost model's choices on this machine and keeps what is faster beside the artifact.
//!
//! Of every kernel that has alternatives, one is tried at a time, all kernels together; each model runs in turn with the model's
//! own choices, and the fastest run of each kernel counts. What is left at the end must be faster as a whole.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use vitc_codegen::{Choice, Choices, Offer, Tier};

use super::source::{self, CompileFlags, Kind};
use super::{Global, say};
use crate::compiler::Compiled;
use crate::io::progress::Progress;
use crate::io::table::{Cell, Record, Table};
use crate::model::{Feed, Model};
use crate::tuning::{Finding, Found, Tuning, cpu, hash_of};

/// Arguments of `vitc tune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitc tune deit.vitc --threads 2        writes deit.vitc.tune, which run and bench pick up for two threads

The file holds for this artifact, this processor, this tier and this number of threads, and is ignored with a note elsewhere.
It changes no bit of any result.")]
pub struct Args {
    /// The artifact.
    model: PathBuf,
    /// Timed runs of each alternative.
    #[arg(long, value_name = "R", default_value_t = 40)]
    runs: usize,
    #[command(flatten)]
    flags: CompileFlags,
}

/// By how much an alternative must be faster to be taken: less is noise.
const GAIN: f64 = 0.97;
/// How many times as many runs decide about the whole.
const FINAL: usize = 3;

/// Runs the verb.
pub fn run(args: Args, global: Global) -> Result<u8> {
    ensure!(args.runs > 0, "--runs 0 measures nothing; give at least 1");
    if source::kind_of(&args.model)? != Kind::Artifact {
        bail!("'{}' is not an artifact; `vitc compile` makes one", args.model.display());
    }
    let mut compiled = source::compiled(&args.model, &args.flags, global)?;
    compiled.tuning = Found::Nothing;
    let bench = Bench { compiled, tier: args.flags.tier()?, threads: args.flags.thread_count(), runs: args.runs };
    let base = bench.load(Choices::default())?;
    let findings = bench.alternatives(&base, global)?;
    let (findings, whole) = bench.decide(findings)?;
    let tuning = Tuning {
        vitc: env!("CARGO_PKG_VERSION").into(),
        artifact: hash_of(&args.model).unwrap_or_default(),
        cpu: cpu(),
        tier: bench.tier.word().into(),
        threads: bench.threads,
        kernels: findings,
    };
    tuning.save(&args.model)?;
    say(&report(&args, &tuning, whole, global))?;
    Ok(0)
}

fn report(args: &Args, tuning: &Tuning, [before, after]: [f64; 2], global: Global) -> String {
    let mut record = Record::new();
    record
        .field("file", Tuning::path(&args.model).display().to_string())
        .field("kernels_changed", tuning.kernels.len())
        .field("min_ms_before", Cell::number(before, 3))
        .field("min_ms_after", Cell::number(after, 3));
    let mut table = Table::new(&["kernel", "unit", "split", "copied_bytes", "streamed", "ms_before", "ms_after"]);
    let text = |t: &Option<String>| t.clone().map_or(Cell::none(), Cell::from);
    for (key, f) in &tuning.kernels {
        let copied = f.copied_bytes.map_or(Cell::none(), Cell::from);
        let streamed = f.streamed.map_or(Cell::none(), Cell::from);
        let [before, after] = f.ms.map(|ms| Cell::number(ms, 4));
        table.row([key.clone().into(), text(&f.unit), text(&f.split), copied, streamed, before, after]);
    }
    if global.json {
        return format!("{:#}", serde_json::json!({ "tuned": record.to_json(), "kernels": table.to_json() }));
    }
    if tuning.kernels.is_empty() { record.to_string() } else { format!("{record}\n\n{table}") }
}

/// What is timed.
struct Bench {
    compiled: Compiled,
    tier: Tier,
    threads: usize,
    runs: usize,
}

/// A loaded model with its inputs.
struct Loaded {
    model: Model,
    feed: Feed,
}

/// The fastest nanoseconds of each step.
type Times = Vec<u64>;

impl Loaded {
    /// One run: nanoseconds of every step with the wait behind it.
    fn steps(&mut self) -> Result<Times> {
        self.model.profile(true);
        self.model.run_feed(&mut self.feed)?;
        Ok(self.model.step_profiles().iter().map(|s| s.nanos + s.waited.unwrap_or(0)).collect())
    }

    /// One run, without looking at the clock between steps.
    fn whole(&mut self) -> Result<Duration> {
        let started = std::time::Instant::now();
        self.model.run_feed(&mut self.feed)?;
        Ok(started.elapsed())
    }
}

impl Bench {
    fn load(&self, choices: Choices) -> Result<Loaded> {
        let model = Model::load_with(&self.compiled, self.threads, self.tier, choices)?;
        let feed = model.noise_feed(model.fixed_images().unwrap_or(1), 1)?;
        Ok(Loaded { model, feed })
    }

    /// Tries every alternative of every kernel; what is faster by itself.
    fn alternatives(&self, base: &Loaded, global: Global) -> Result<BTreeMap<String, Finding>> {
        let offers: Vec<Option<Offer>> = base.model.offers().to_vec();
        let rounds = offers.iter().flatten().map(|o| o.others.len()).max().unwrap_or(0);
        let progress = Progress::new("timing", rounds, global.quiet || global.json);
        let mut best: BTreeMap<String, Finding> = BTreeMap::new();
        for round in 0..rounds {
            let tried: BTreeMap<String, Choice> =
                offers.iter().flatten().filter_map(|o| Some((o.key.clone(), *o.others.get(round)?))).collect();
            let times = self.compare(&Choices { kernels: tried.clone(), ..Choices::default() })?;
            let [before, after] = times.map(|times| by_key(&offers, &times));
            for (key, choice) in tried {
                let ms = [before[&key], after[&key]];
                let least = best.get(&key).map_or(GAIN, |f| f.ms[1] / f.ms[0]);
                if ms[1] < least * ms[0] {
                    best.insert(key, Finding::of(choice, ms));
                }
            }
            progress.advance(1);
        }
        Ok(best)
    }

    /// The cost model's choices and others in turn: the fastest time of each step.
    fn compare(&self, choices: &Choices) -> Result<[Times; 2]> {
        let mut models = [self.load(Choices::default())?, self.load(choices.clone())?];
        let mut fastest = [models[0].steps()?, models[1].steps()?];
        for _ in 0..self.runs {
            for (model, fastest) in models.iter_mut().zip(&mut fastest) {
                fastest.iter_mut().zip(model.steps()?).for_each(|(f, t)| *f = t.min(*f));
            }
        }
        Ok(fastest)
    }

    /// Keeps the findings if the model as a whole is faster with them; milliseconds without and with what is kept.
    fn decide(&self, findings: BTreeMap<String, Finding>) -> Result<(BTreeMap<String, Finding>, [f64; 2])> {
        let tuning =
            Tuning { tier: self.tier.word().into(), threads: self.threads, kernels: findings, ..Tuning::default() };
        let choices = tuning.choices(self.tier, self.threads).map_err(anyhow::Error::msg)?;
        let mut models = [self.load(Choices::default())?, self.load(choices)?];
        let mut fastest = [f64::MAX; 2];
        for _ in 0..FINAL * self.runs {
            for (model, fastest) in models.iter_mut().zip(&mut fastest) {
                *fastest = fastest.min(model.whole()?.as_secs_f64() * 1e3);
            }
        }
        let [before, after] = fastest;
        if after < before { Ok((tuning.kernels, fastest)) } else { Ok((BTreeMap::new(), [before; 2])) }
    }
}

/// Milliseconds of all steps of a kernel.
fn by_key(offers: &[Option<Offer>], times: &Times) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for (offer, &nanos) in offers.iter().zip(times) {
        if let Some(offer) = offer {
            *sums.entry(offer.key.clone()).or_insert(0.0) += nanos as f64 / 1e6;
        }
    }
    sums
}
