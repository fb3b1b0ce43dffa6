//! From modules and what the rooms said of them to a report's data.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use vitc_codegen::Tier;
use vitc_ir::eval::Tensor;
use vitc_ir::{Class, Module, Node, Op, Stage, ValueId};
use vitc_passes::integerize::report::{Error, Site as Form};
use vitc_passes::quantize::Placed;

use super::ladder::{self, Rung};
use super::noise::{self, Measured, Probe, Subject, Value};
use super::spread::{self, Spread};
use super::{Kept, Request, data};
use crate::accuracy::Score;
use crate::calibrate;
use crate::io::progress::Progress;
use crate::walk::{self, Journal, WalkOptions, preprocess_of};

/// Inputs that sites are measured on, at most.
const INPUTS: usize = 8;

/// The data of a report.
pub(super) fn report(request: &Request<'_>) -> Result<data::Report> {
    let Request { kept, compiled, options, .. } = request;
    let quantize = kept.quantized()?;
    let (inputs, is_noise) = calibrate::sample(kept.float()?, &options.calibration, INPUTS)?;
    let journal = &compiled.journal;
    let float = journal.float.as_ref().context("nothing was quantized; this is a bug in vitc")?;
    let mut table = Table::new(&journal.quantized);
    if journal.calibration_images > 0 {
        for rung in ladder::rungs(options) {
            table.rung(rung, kept.float()?, &inputs, options)?;
        }
    }
    let bench = Bench { origin: kept.float()?, float, inputs: &inputs, options };
    let rewrites = journal.transformed.len();
    let values = table.stage(&bench, Named::quantized(rewrites), (quantize, simulated(&journal.quantized)))?;
    table.stage(
        &bench,
        Named::integers(rewrites),
        (kept.integer()?, integers(&journal.quantized, quantize, journal)),
    )?;
    let progress = Progress::new("drawing histograms", inputs.len(), options.quiet);
    let spreads = spread::spreads(float, &journal.quantized, &values, &inputs, (options.threads, &progress))?;
    let measured_on =
        data::MeasuredOn { inputs: inputs.len(), noise: is_noise, calibration: journal.calibration_images };
    Ok(data::Report {
        format: data::FORMAT,
        vitc: env!("CARGO_PKG_VERSION").into(),
        model: model(request)?,
        settings: request.settings.clone(),
        measured_on,
        sites: worst_first(sites(&bench, quantize, &journal.quantized, &table.noise, &values, spreads)),
        stages: table.stages,
        transforms: transforms(journal),
        forms: journal.integerized.iter().flat_map(|r| &r.sites).map(form).collect(),
        layers: compiled.module.nodes.iter().filter_map(|n| layer(&compiled.module, n)).collect(),
        size: size(request)?,
        predicted: predicted(&compiled.module, request.tier),
        accuracy: request.score.map(accuracy),
    })
}

fn model(request: &Request<'_>) -> Result<data::Model> {
    let plan = &request.compiled.module;
    let preprocessing = preprocess_of(plan)?.map(|p| p.to_string());
    Ok(data::Model { file: request.file.to_string(), name: plan.name.clone(), preprocessing })
}

fn size(request: &Request<'_>) -> Result<data::Size> {
    let bytes = |m: &Module| m.consts.iter().map(|c| c.data.len()).sum();
    let plan = &request.compiled.module;
    Ok(data::Size {
        artifact: request.artifact_bytes,
        constants: bytes(plan),
        float_constants: bytes(request.kept.float()?),
        arena: plan.arena,
    })
}

/// What stages are measured against and on.
struct Bench<'m> {
    origin: &'m Module,
    float: &'m Module,
    inputs: &'m [Vec<Tensor>],
    options: &'m WalkOptions,
}

impl Bench<'_> {
    fn measure(&self, name: &str, module: &Module, probes: Vec<Probe>) -> Result<Measured> {
        let progress = Progress::new(&format!("measuring {name}"), self.inputs.len(), self.options.quiet);
        let subject = Subject { origin: self.origin, float: self.float, module, probes };
        noise::measure(&subject, self.inputs, self.options.threads, &progress)
    }
}

/// A stage before it is measured.
struct Named {
    name: String,
    what: String,
    rewrites: usize,
}

impl Named {
    fn quantized(rewrites: usize) -> Named {
        let what = "as it was compiled: ranges, bits and rounding by the options";
        Named { name: "quantized".into(), what: what.into(), rewrites }
    }

    fn integers(rewrites: usize) -> Named {
        let what = "that in integers, nonlinear ops in their integer forms: what runs";
        Named { name: "integers".into(), what: what.into(), rewrites }
    }
}

/// Stages, and the noise of every site at each.
struct Table {
    /// Sites by value and role.
    index: BTreeMap<(ValueId, &'static str), usize>,
    stages: Vec<data::Stage>,
    /// By site, then by stage.
    noise: Vec<Vec<Option<data::Noise>>>,
}

impl Table {
    fn new(sites: &[Placed]) -> Table {
        let index = sites.iter().enumerate().map(|(i, s)| ((s.value, s.role), i)).collect();
        Table { index, stages: Vec::new(), noise: vec![Vec::new(); sites.len()] }
    }

    /// Quantizes the float graph by a rung's options and measures that.
    fn rung(&mut self, rung: Rung, origin: &Module, inputs: &[Vec<Tensor>], asked: &WalkOptions) -> Result<()> {
        let mut journal = Journal::default();
        let module = walk::advance(origin.clone(), Stage::Quantize, &rung.options, &mut journal)?;
        let float = journal.float.as_ref().unwrap_or(origin);
        let bench = Bench { origin, float, inputs, options: asked };
        let named = Named { name: rung.name, what: rung.what, rewrites: journal.transformed.len() };
        self.stage(&bench, named, (&module, simulated(&journal.quantized))).map(drop)
    }

    /// Measures the sites that have a probe; what was seen of them, in the probes' order.
    fn stage(
        &mut self,
        bench: &Bench<'_>,
        named: Named,
        (module, probes): (&Module, Vec<(Key, Probe)>),
    ) -> Result<Vec<Value>> {
        let (keys, probes): (Vec<Key>, Vec<Probe>) = probes.into_iter().unzip();
        let measured = bench.measure(&named.name, module, probes)?;
        let at = self.stages.len();
        self.noise.iter_mut().for_each(|n| n.push(None));
        for (key, value) in keys.iter().zip(&measured.probes) {
            if let Some(&site) = self.index.get(key) {
                self.noise[site][at] = Some(value.noise);
            }
        }
        let Named { name, what, rewrites } = named;
        self.stages.push(data::Stage { name, what, outputs: measured.outputs, rewrites });
        Ok(measured.probes)
    }
}

/// What a site is known by in every stage.
type Key = (ValueId, &'static str);

/// Sites where the quantized module simulates them.
fn simulated(sites: &[Placed]) -> Vec<(Key, Probe)> {
    let probe = |s: &Placed| ((s.value, s.role), Probe { truth: s.value, found: s.simulated, quant: None });
    sites.iter().map(probe).collect()
}

/// Sites where the integer module computes them; some it does not, such as a map of attention that is divided later, or rows
/// with scales of their own.
fn integers(sites: &[Placed], quantize: &Module, journal: &Journal) -> Vec<(Key, Probe)> {
    let probe = |s: &Placed| {
        if s.rows.is_some() {
            return None; // the codes of a row stand for reals by its peak
        }
        let quantized = *quantize.node_of(s.simulated)?.operands.first()?;
        let found = *journal.integerized.as_ref()?.values.get(&quantized)?;
        Some(((s.value, s.role), Probe { truth: s.value, found, quant: Some(s.quant.clone()) }))
    };
    sites.iter().filter_map(probe).collect()
}

fn sites(
    bench: &Bench<'_>,
    quantize: &Module,
    placed: &[Placed],
    noise: &[Vec<Option<data::Noise>>],
    values: &[Value],
    spreads: Vec<Spread>,
) -> Vec<data::Site> {
    let readers = Readers::of(quantize);
    let site = |(index, spread): (usize, Spread)| {
        let (site, noise, value) = (&placed[index], &noise[index], &values[index]);
        let (node, op) = origin(bench.float, site.value);
        data::Site {
            node,
            op,
            index,
            role: site.role.into(),
            read_by: readers.of_value(site.simulated),
            elem: site.elem.name().into(),
            bits: site.bits(),
            range: spread::range(site),
            seen: value.seen,
            scale: site.quant.scale.iter().map(|s| s.0).collect(),
            zero_point: site.quant.zero_point,
            noise: noise.clone(),
            own: Some(spread.own),
            clipped: spread.clipped,
            histogram: spread.histogram,
        }
    };
    spreads.into_iter().enumerate().map(site).collect()
}

/// The name of what makes a value, and its op.
fn origin(float: &Module, v: ValueId) -> (String, String) {
    match float.node_of(v) {
        Some(node) => (node.loc.as_deref().unwrap_or(node.op.name()).to_string(), node.op.name().to_string()),
        None => {
            let input = float.inputs.iter().find(|i| i.value == v);
            (input.map_or_else(String::new, |i| i.name.clone()), "input".into())
        }
    }
}

fn worst_first(mut sites: Vec<data::Site>) -> Vec<data::Site> {
    let rank = |s: &data::Site| s.last().map_or(f64::INFINITY, |n| n.rank());
    sites.sort_by(|a, b| rank(a).total_cmp(&rank(b)).then(a.index.cmp(&b.index)));
    sites
}

/// Who reads a value, through movement.
struct Readers<'m> {
    by_value: BTreeMap<ValueId, Vec<&'m Node>>,
}

impl<'m> Readers<'m> {
    fn of(module: &'m Module) -> Readers<'m> {
        let mut by_value: BTreeMap<ValueId, Vec<&Node>> = BTreeMap::new();
        for node in &module.nodes {
            node.operands.iter().for_each(|v| by_value.entry(*v).or_default().push(node));
        }
        Readers { by_value }
    }

    /// The ops, each once.
    fn of_value(&self, v: ValueId) -> Vec<String> {
        let (mut found, mut open, mut seen) = (BTreeSet::new(), vec![v], BTreeSet::new());
        while let Some(v) = open.pop().filter(|v| seen.insert(*v)) {
            for node in self.by_value.get(&v).into_iter().flatten() {
                match node.op.class() {
                    Class::Move => open.push(node.result),
                    _ => {
                        found.insert(node.op.name());
                    }
                }
            }
        }
        found.into_iter().map(str::to_string).collect()
    }
}

fn transforms(journal: &Journal) -> Vec<data::Transformed> {
    let one = |a: &vitc_passes::transform::Applied| data::Transformed {
        transform: a.transform.word().into(),
        node: a.node.clone(),
        gain_db: a.gain,
    };
    journal.transformed.iter().map(one).collect()
}

fn form(site: &Form) -> data::Form {
    let (error, unit) = match site.error {
        Error::Steps(steps) => (steps, "steps"),
        Error::Relative(share) => (share, "relative"),
    };
    data::Form {
        node: site.loc.as_deref().unwrap_or(site.op).into(),
        op: site.op.into(),
        form: site.form.into(),
        error,
        unit: unit.into(),
        cost: site.cost,
        allowed: site.allowed,
        chosen: site.chosen,
    }
}

/// The weights of a node that has some: their bits are those that the layout stores, their bytes those of the file.
fn layer(module: &Module, node: &Node) -> Option<data::Layer> {
    let product = matches!(
        node.op,
        Op::IntMatMul { .. } | Op::FusedMatMul { .. } | Op::IntConv2d { .. } | Op::FusedConv2d { .. }
    );
    let weights = node.operands.get(1).and_then(|&w| module.const_of(w)).filter(|_| product)?;
    Some(data::Layer {
        node: node.loc.as_deref().unwrap_or(&weights.name).into(),
        shape: weights.ty.shape.at(1),
        bits: weights.layout.map_or(8.0 * weights.ty.elem.bytes() as f64, |layout| layout.mean_bits()),
        bytes: weights.data.len(),
    })
}

fn predicted(plan: &Module, tier: Tier) -> data::Predicted {
    let prediction = vitc_codegen::predict(plan, tier);
    let mut by_op: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for node in &prediction.nodes {
        let sum = by_op.entry(node.op).or_default();
        *sum = (sum.0 + 1, sum.1 + node.cycles);
    }
    let cost = |(op, (nodes, cycles)): (&str, (usize, f64))| data::OpCost { op: op.into(), nodes, cycles };
    let mut ops: Vec<data::OpCost> = by_op.into_iter().map(cost).collect();
    ops.sort_by(|a, b| b.cycles.total_cmp(&a.cycles));
    data::Predicted {
        tier: tier.word().into(),
        ms: prediction.ms(),
        cycles: prediction.cycles(),
        clock_ghz: prediction.clock_ghz,
        ops,
    }
}

fn accuracy(score: &Score) -> data::Accuracy {
    let (low, high) = score.top1_interval();
    let float = score.reference.as_ref();
    data::Accuracy {
        images: score.images,
        top1: score.percent(score.top1),
        top1_interval: [low, high],
        top5: score.percent(score.top5),
        float_top1: float.map(|r| score.percent(r.top1)),
        agreement: float.map(|r| score.percent(r.agreement)),
        logit_sqnr_db: float.map(|r| r.sqnr_db()).filter(|db| db.is_finite()),
    }
}

impl Kept {
    fn stage(&self, stage: Stage) -> Result<&Module> {
        self.0.iter().find(|m| m.stage == stage).with_context(|| format!("the model has no stage {}", stage.word()))
    }

    fn float(&self) -> Result<&Module> {
        self.stage(Stage::Shape)
    }

    fn quantized(&self) -> Result<&Module> {
        self.stage(Stage::Quantize)
    }

    fn integer(&self) -> Result<&Module> {
        self.stage(Stage::Integerize)
    }
}
