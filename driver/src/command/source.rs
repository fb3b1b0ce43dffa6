//! Where a model comes from: an ONNX file, a `.vir` text or a `.vitc` artifact, with the flags that decide how the first two
//! are compiled.

use std::fmt::{self, Display, Formatter};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::ValueEnum;
use vitc_codegen::Tier;
use vitc_ir::{Module, Stage, text};
use vitc_passes::integerize::Nonlinear;
use vitc_passes::quantize::{ByNode, Codes, Groups, Observer, Rounding, Width, Widths};
use vitc_passes::transform::{Choice, Smoothing, Transform};

use super::Global;
use crate::artifact;
use crate::calibrate::{Calibration, DEFAULT_IMAGES};
use crate::compiler::{Compiled, Compiler};
use crate::error::Failure;
use crate::io::image::{Filter, Preprocess};
use crate::model::Model;
use crate::report::data::Setting;
use crate::tuning::Found;
use crate::walk::{Journal, available_threads};

/// The words of `--tier`.
const TIERS: [&str; 5] = ["auto", "amx-int8", "avx512-vnni", "portable", "baseline"];

/// How to compile.
#[derive(Clone, Debug, clap::Args)]
pub struct CompileFlags {
    /// Folder of images to calibrate on, or `synthetic` for seeded noise (for timing only: ranges will be wrong). A model that
    /// came quantized may need none.
    #[arg(long, value_name = "DIR|synthetic")]
    pub calibrate: Option<String>,
    /// Use at most so many calibration images, spread evenly over the folder.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_IMAGES)]
    pub calibrate_images: usize,
    /// How the range of an activation with evenly spaced levels is chosen: `min-max`, `mse`, `percentile:P` with P such as 99.99,
    /// or `auto`: min-max at 8 bits, percentile:99.999 at 6 and 7, mse below; and for what only a function such as GELU reads, the least error behind it.
    /// `output` starts from `auto` and searches the range, or with `--codes opt-m` the regions, by the error of the products that read it.
    #[arg(long, value_name = "OBSERVER", default_value = "auto", value_parser = parse_observer)]
    pub observer: Observer,
    /// Bits of the weights of products and convolutions: 2 to 6 or 8 (default: 8). `PATTERN=BITS` is for the nodes of these
    /// ONNX names alone, `*` standing for any characters; may be repeated, the last pattern that matches counts. What reads
    /// the image keeps 8 unless a pattern names it.
    #[arg(long, value_name = "[PATTERN=]BITS", value_parser = parse_weight_bits)]
    pub weight_bits: Vec<Bits>,
    /// Rows of a product's weights that have a step of their own, a small multiple of their column's scale: 8, 16, 32, 64 or `none`.
    /// Kept in 4 bits a group, free at run time. `auto`: 16 for weights of 5 bits and fewer.
    #[arg(long, value_name = "ROWS", default_value = "auto", value_parser = parse_groups)]
    pub weight_groups: Groups,
    /// Bits of what products read: 4 to 8 (default: 8); `PATTERN=BITS` for what these products read. What several read has
    /// the most that one of them wants; the image keeps 8, and the input of the classifier unless a pattern names it.
    #[arg(long, value_name = "[PATTERN=]BITS", value_parser = parse_activation_bits)]
    pub activation_bits: Vec<Bits>,
    /// Which levels activations of fewer than 8 bits have: `uniform`, `opt-m` (two regions whose steps are a power of two apart,
    /// MPTQ-ViT), `lloyd` (those of least squared error), and for maps of softmax `log2` (FQ-ViT) or `log-sqrt2` (RepQ-ViT), which
    /// leave `auto` elsewhere. `auto`: logarithmic for maps of softmax, `lloyd` elsewhere.
    /// `PATTERN=CODES` for what these products read; may be repeated.
    #[arg(long, value_name = "[PATTERN=]CODES", value_parser = parse_codes)]
    pub codes: Vec<Coded>,
    /// How weights are rounded: `gptq` looks at what they multiply, in a second pass over the calibration images. `auto` does so
    /// for matrix products of 6 bits and fewer.
    #[arg(long, value_enum, default_value_t = RoundingFlag::Auto)]
    pub rounding: RoundingFlag,
    /// Leave a transform out: `smooth` (channels of LayerNorm outputs), `values` (channels of the values of attention),
    /// `balance` (queries against keys), `migrate` and `shift` (factors and centres of channels between
    /// convolutions), `rows` (scales of rows for what products read), `bias` (mean errors of products, taken off their
    /// biases) or `all`; `NAME=PATTERN` leaves it out at these nodes only. May be repeated.
    #[arg(long, value_name = "NAME[=PATTERN]", value_parser = parse_without)]
    pub without: Vec<Without>,
    /// Take mean errors off biases at 8 bits too, where that gains little (0.2 dB) for some seconds; below 8 bits it is done anyway.
    #[arg(long)]
    pub correct_bias: bool,
    /// How LayerNorm outputs are smoothed: factor and centre of every channel (`sq-b`, MPTQ-ViT), factors only
    /// (`smoothquant`), or the whole range of every channel (`repq`).
    #[arg(long, value_enum, default_value_t = SmoothingFlag::SqB)]
    pub smoothing: SmoothingFlag,
    /// Integer forms of GELU, softmax and LayerNorm: the cheapest within the error budget, or the published ones of I-ViT
    /// (`shift`) or I-BERT (`ibert`).
    #[arg(long, value_enum, default_value_t = NonlinearFlag::Auto)]
    pub nonlinear: NonlinearFlag,
    /// Kernels to run: `auto` takes the fastest tier of this machine.
    #[arg(long, value_name = "TIER", default_value = "auto", value_parser = TIERS)]
    pub tier: String,
    /// Threads (default: the cores this process may use). Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// How images become the input.
    #[command(flatten)]
    pub image: ImageFlags,
}

/// Values of a flag that may be repeated.
fn listed(values: &[impl ToString], none: &str) -> String {
    match values {
        [] => none.into(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}

/// How images become the model's input. What is not given is ImageNet's at the model's input size.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Images (default: ImageNet's at the model's input size)")]
pub struct ImageFlags {
    /// Length of the short side after resizing.
    #[arg(long, value_name = "PIXELS")]
    pub resize: Option<usize>,
    /// Centre crop after resizing: `SIDE` or `HEIGHTxWIDTH`; must be the model's input size.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub crop: Option<(usize, usize)>,
    /// Resampling filter, with antialias as in PIL.
    #[arg(long, value_enum)]
    pub filter: Option<Filter>,
    /// Mean of each channel, of pixels scaled to 0..1. Where the graph normalises its input itself, the default is what it counts in:
    /// fractions (mean 0, std 1) or pixels (mean 0, std 1/255).
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel.
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    pub std: Option<Vec<f32>>,
}

/// `--nonlinear`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NonlinearFlag {
    /// The cheapest form within the error budget.
    Auto,
    /// The published shift forms (I-ViT).
    Shift,
    /// The published polynomial forms (I-BERT).
    Ibert,
}

impl From<NonlinearFlag> for Nonlinear {
    fn from(flag: NonlinearFlag) -> Nonlinear {
        match flag {
            NonlinearFlag::Auto => Nonlinear::Auto,
            NonlinearFlag::Shift => Nonlinear::Shift,
            NonlinearFlag::Ibert => Nonlinear::Ibert,
        }
    }
}

/// `--rounding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoundingFlag {
    /// `gptq` for matrix products of 6 bits and fewer, `nearest` for the rest.
    Auto,
    /// To the nearest level.
    Nearest,
    /// By second moments of what matrix products read, weights of 8 bits too.
    Gptq,
}

impl From<RoundingFlag> for Rounding {
    fn from(flag: RoundingFlag) -> Rounding {
        match flag {
            RoundingFlag::Auto => Rounding::Auto,
            RoundingFlag::Nearest => Rounding::Nearest,
            RoundingFlag::Gptq => Rounding::Gptq,
        }
    }
}

/// What `--without` leaves out, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Without(Vec<(Transform, String)>);

fn parse_without(text: &str) -> Result<Without, String> {
    let (word, pattern) = text.split_once('=').unwrap_or((text, "*"));
    let all = Transform::WORDS.iter().filter(|(_, w)| *w == word || word == "all");
    let left_out: Vec<_> = all.map(|(t, _)| (*t, pattern.to_string())).collect();
    if left_out.is_empty() {
        let words = Transform::WORDS.map(|(_, w)| w).join(", ");
        return Err(format!("there is no transform `{word}`; there are {words} and all"));
    }
    Ok(Without(left_out))
}

/// `--smoothing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SmoothingFlag {
    /// Factor and centre.
    SqB,
    /// Factors only.
    Smoothquant,
    /// The whole range of every channel.
    Repq,
}

impl From<SmoothingFlag> for Smoothing {
    fn from(flag: SmoothingFlag) -> Smoothing {
        match flag {
            SmoothingFlag::SqB => Smoothing::SqB,
            SmoothingFlag::Smoothquant => Smoothing::SmoothQuant,
            SmoothingFlag::Repq => Smoothing::RepQ,
        }
    }
}

impl Display for Without {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let all = self.0.iter().map(|(t, pattern)| format!("{}={pattern}", t.word()));
        f.write_str(&all.collect::<Vec<_>>().join(" "))
    }
}

fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let side = |s: &str| {
        s.parse::<usize>().ok().filter(|&n| n > 0).ok_or_else(|| format!("`{text}` is not SIDE or HEIGHTxWIDTH"))
    };
    match text.split_once('x') {
        Some((h, w)) => Ok((side(h)?, side(w)?)),
        None => side(text).map(|s| (s, s)),
    }
}

fn parse_observer(text: &str) -> Result<Observer, String> {
    match text {
        "auto" => Ok(Observer::Auto),
        "min-max" => Ok(Observer::MinMax),
        "mse" => Ok(Observer::Mse),
        "output" => Ok(Observer::Output),
        _ => match text.strip_prefix("percentile:").and_then(|p| p.parse::<f64>().ok()) {
            Some(p) if p > 50.0 && p <= 100.0 => Ok(Observer::Percentile(p)),
            _ => Err("expected auto, min-max, mse, output or percentile:P with P above 50 and at most 100".into()),
        },
    }
}

/// Bits for all nodes or for those of a pattern.
#[derive(Clone, Debug, PartialEq)]
pub struct Bits {
    pattern: Option<String>,
    width: Width,
}

fn observer_word(observer: Observer) -> String {
    match observer {
        Observer::Auto => "auto".into(),
        Observer::MinMax => "min-max".into(),
        Observer::Mse => "mse".into(),
        Observer::Output => "output".into(),
        Observer::Percentile(p) => format!("percentile:{p}"),
    }
}

fn parse_weight_bits(text: &str) -> Result<Bits, String> {
    parse_bits(text, Width::of_weights, "2, 3, 4, 5, 6 or 8")
}

fn parse_groups(text: &str) -> Result<Groups, String> {
    match text {
        "auto" => Ok(Groups::Auto),
        "none" => Ok(Groups::None),
        rows => {
            let rows = rows.parse().ok().filter(|rows| Groups::ROWS.contains(rows));
            rows.map(Groups::Rows).ok_or_else(|| "expected 8, 16, 32, 64, none or auto".into())
        }
    }
}

fn groups_word(groups: Groups) -> String {
    match groups {
        Groups::Auto => "auto".into(),
        Groups::None => "none".into(),
        Groups::Rows(rows) => rows.to_string(),
    }
}

fn parse_activation_bits(text: &str) -> Result<Bits, String> {
    parse_bits(text, Width::of_activations, "4, 5, 6, 7 or 8")
}

/// Codes for all nodes or for those of a pattern.
#[derive(Clone, Debug, PartialEq)]
pub struct Coded {
    pattern: Option<String>,
    codes: Codes,
}

fn parse_codes(text: &str) -> Result<Coded, String> {
    let (pattern, word) = match text.rsplit_once('=') {
        Some((pattern, word)) => (Some(pattern.to_string()), word),
        None => (None, text),
    };
    let codes = Codes::WORDS.iter().find(|(_, w)| *w == word).map(|(codes, _)| *codes);
    let words = || Codes::WORDS.map(|(_, word)| word).join(", ");
    let codes = codes.ok_or_else(|| format!("expected CODES or PATTERN=CODES with CODES of {}", words()))?;
    Ok(Coded { pattern, codes })
}

impl Display for Coded {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let word = Codes::WORDS.iter().find(|(codes, _)| *codes == self.codes).map_or("", |(_, word)| word);
        self.pattern.as_ref().map_or(write!(f, "{word}"), |pattern| write!(f, "{pattern}={word}"))
    }
}

/// The flags as one choice; the last one without a pattern is for what no pattern matches.
fn by_node<T: Copy + Default>(flags: impl Iterator<Item = (Option<String>, T)>) -> ByNode<T> {
    let mut all = ByNode::default();
    for (pattern, choice) in flags {
        match pattern {
            Some(pattern) => all.of.push((pattern, choice)),
            None => all.default = choice,
        }
    }
    all
}

fn parse_bits(text: &str, width: fn(u32) -> Option<Width>, known: &str) -> Result<Bits, String> {
    let (pattern, bits) = match text.rsplit_once('=') {
        Some((pattern, bits)) => (Some(pattern.to_string()), bits),
        None => (None, text),
    };
    let width = bits.parse().ok().and_then(width);
    let width = width.ok_or_else(|| format!("expected BITS or PATTERN=BITS with BITS of {known}"))?;
    Ok(Bits { pattern, width })
}

impl Display for Bits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bits = self.width.bits();
        self.pattern.as_ref().map_or(write!(f, "{bits}"), |pattern| write!(f, "{pattern}={bits}"))
    }
}

fn widths(flags: &[Bits]) -> Widths {
    by_node(flags.iter().map(|bits| (bits.pattern.clone(), bits.width)))
}

impl CompileFlags {
    /// Threads to use.
    pub fn thread_count(&self) -> usize {
        self.threads.map_or_else(available_threads, usize::from)
    }

    /// The compiler that these flags ask for, for a model whose preprocessing defaults follow `module`'s input.
    pub fn compiler(&self, module: &Module, global: Global) -> Result<Compiler> {
        if let Some(ranks) = module.meta.get("onnx.ranks") {
            super::note(global, &format!("the artifact does not rank: what ranks numbers is no output: {ranks}"));
        }
        let mut compiler = Compiler::new()
            .observer(self.observer)
            .weights(widths(&self.weight_bits))
            .groups(self.weight_groups)
            .activations(widths(&self.activation_bits))
            .codes(by_node(self.codes.iter().map(|c| (c.pattern.clone(), c.codes))))
            .rounding(self.rounding.into())
            .transforms(Choice {
                without: self.without.iter().flat_map(|w| w.0.clone()).collect(),
                smoothing: self.smoothing.into(),
                bias_of_bytes: self.correct_bias,
            })
            .nonlinear(self.nonlinear.into())
            .threads(self.thread_count())
            .progress(!global.quiet && !global.json);
        if let Some(p) = self.image.preprocess(module)? {
            compiler = compiler.preprocess(p);
        }
        if module.stage < Stage::Quantize {
            compiler = compiler.calibration(self.calibration());
        }
        Ok(compiler)
    }

    /// The choices that decide what is computed, in words; those that only say how fast are not among them.
    pub(super) fn settings(&self) -> Vec<Setting> {
        let CompileFlags { calibrate, calibrate_images, observer, weight_bits, activation_bits, codes, .. } = self;
        let CompileFlags {
            weight_groups,
            correct_bias,
            rounding,
            without,
            smoothing,
            nonlinear,
            tier: _,
            threads: _,
            image: _,
            ..
        } = self;
        let word = |flag: Option<clap::builder::PossibleValue>| flag.map_or_else(String::new, |v| v.get_name().into());
        let settings = [
            ("calibrate", calibrate.clone().unwrap_or_else(|| "nothing".into())),
            ("calibrate-images", calibrate_images.to_string()),
            ("observer", observer_word(*observer)),
            ("weight-bits", listed(weight_bits, "8")),
            ("weight-groups", groups_word(*weight_groups)),
            ("activation-bits", listed(activation_bits, "8")),
            ("codes", listed(codes, "auto")),
            ("rounding", word(rounding.to_possible_value())),
            ("without", listed(without, "nothing")),
            ("correct-bias", correct_bias.to_string()),
            ("smoothing", word(smoothing.to_possible_value())),
            ("nonlinear", word(nonlinear.to_possible_value())),
        ];
        settings.map(|(flag, value)| Setting { flag: flag.into(), value }).into()
    }

    fn calibration(&self) -> Calibration {
        match self.calibrate.as_deref() {
            None => Calibration::Given,
            Some("synthetic") => Calibration::Synthetic { images: self.calibrate_images.min(8) },
            Some(folder) => Calibration::Images { folder: folder.into(), limit: self.calibrate_images },
        }
    }

    /// Flags that can no longer take effect on a compiled model are an error, not ignored.
    fn refuse_late_choices(&self, path: &Path) -> Result<()> {
        let bits = !self.weight_bits.is_empty() || !self.activation_bits.is_empty() || !self.codes.is_empty();
        if bits
            || self.rounding != RoundingFlag::Auto
            || self.weight_groups != Groups::Auto
            || self.image.any()
            || self.calibrate.as_deref().is_some_and(|c| c != "synthetic")
        {
            bail!(
                "'{}' is compiled already; --calibrate, --weight-bits, --weight-groups, --activation-bits, --codes, --rounding and the image flags are for `vitc compile`, which records them",
                path.display()
            );
        }
        Ok(())
    }

    /// Whether the machine decides which tier it is.
    pub fn auto_tier(&self) -> bool {
        self.tier == "auto"
    }

    /// The tier to emit kernels for; one that this machine cannot run is an error.
    pub fn tier(&self) -> Result<Tier> {
        Ok(Tier::named(&self.tier).map_or_else(|| Ok(Tier::best()), Tier::checked)?)
    }

    /// Whether calibration is on noise.
    pub fn synthetic(&self) -> bool {
        self.calibrate.as_deref() == Some("synthetic")
    }
}

impl ImageFlags {
    fn any(&self) -> bool {
        self.resize.is_some()
            || self.crop.is_some()
            || self.filter.is_some()
            || self.mean.is_some()
            || self.std.is_some()
    }

    /// The preprocessing for a model whose only input is an image; `None` for other models.
    fn preprocess(&self, module: &Module) -> Result<Option<Preprocess>> {
        let Some(mut p) = Preprocess::of_input(module) else {
            if self.any() {
                bail!(
                    "the model does not take one image, so --resize, --crop, --filter, --mean and --std do not apply"
                );
            }
            return Ok(None);
        };
        let (height, width) = p.crop;
        if let Some(crop) = self.crop {
            if crop != (height, width) {
                bail!("--crop {}x{} does not give the model's input of {height}x{width}", crop.0, crop.1);
            }
            p.crop = crop;
        }
        p.resize = self.resize.unwrap_or(p.resize);
        p.filter = self.filter.unwrap_or(p.filter);
        p.mean = self.mean.clone().unwrap_or(p.mean);
        p.std = self.std.clone().unwrap_or(p.std);
        p.validate()?;
        Ok(Some(p))
    }
}

/// What a file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A `.vitc` artifact.
    Artifact,
    /// A `.vir` text.
    Text,
    /// Anything else is taken for ONNX.
    Onnx,
}

/// Tells by the first bytes (not the name) what a file is.
pub fn kind_of(path: &Path) -> Result<Kind> {
    let mut head = [0u8; 64];
    let mut file =
        std::fs::File::open(path).with_context(|| format!("cannot open '{}'; check the path", path.display()))?;
    let mut len = 0;
    while len < head.len() {
        match file.read(&mut head[len..]).with_context(|| format!("cannot read '{}'", path.display()))? {
            0 => break,
            n => len += n,
        }
    }
    let head = &head[..len];
    Ok(if artifact::is_artifact(head) {
        Kind::Artifact
    } else if head.trim_ascii_start().starts_with(b"module ") || head.trim_ascii_start().starts_with(b"//") {
        Kind::Text
    } else {
        Kind::Onnx
    })
}

/// The constants file beside a `.vir` text.
pub fn blob_path(text: &Path) -> PathBuf {
    let mut name = text.as_os_str().to_owned();
    name.push(".bin");
    name.into()
}

/// Reads a module at whatever stage the file holds it.
pub fn read(path: &Path) -> Result<Module> {
    match kind_of(path)? {
        Kind::Artifact => artifact::open(path),
        Kind::Text => read_text(path),
        Kind::Onnx => Compiler::new().import(path),
    }
}

fn read_text(path: &Path) -> Result<Module> {
    let shown = path.display();
    let source = std::fs::read_to_string(path).with_context(|| format!("cannot read '{shown}'"))?;
    let blob = blob_path(path);
    let bytes = match blob.exists() {
        true => Bytes::from_owner(vitc_runtime::MappedRegion::open_file(&blob)?),
        false => Bytes::new(),
    };
    text::parse(&source, bytes).map_err(|d| {
        Failure::invalid(format!("'{shown}' does not parse (constants are read from '{}')", blob.display()), d).into()
    })
}

/// Reads a model and takes it to a stage; a module already past that stage is an error.
pub fn read_at(path: &Path, stage: Stage, flags: &CompileFlags, global: Global) -> Result<(Module, Journal)> {
    let module = read(path)?;
    if module.stage > stage {
        bail!("'{}' is at stage {} already, past {}", path.display(), module.stage.word(), stage.word());
    }
    if module.stage == stage {
        return Ok((module, Journal::default()));
    }
    flags.compiler(&module, global)?.advance(module, stage)
}

/// Reads a model and compiles it as far as needed.
pub fn compiled(path: &Path, flags: &CompileFlags, global: Global) -> Result<Compiled> {
    let (module, journal) = read_at(path, Stage::Plan, flags, global)?;
    if journal.times.is_empty() {
        flags.refuse_late_choices(path)?;
    }
    Ok(Compiled { module, journal, tuning: Found::beside(path) })
}

/// Reads a model, compiles it as far as needed and loads it.
pub fn model(path: &Path, flags: &CompileFlags, global: Global) -> Result<Model> {
    let tier = flags.tier()?;
    let compiled = compiled(path, flags, global)?;
    if flags.synthetic() && !compiled.journal.times.is_empty() {
        super::note(global, SYNTHETIC);
    }
    let model = Model::load_on(&compiled, flags.thread_count(), tier)?;
    if let Some(why) = model.untuned() {
        super::note(global, why);
    }
    Ok(model)
}

/// Why the fastest tier of this machine is not fast.
pub fn slow_tier() -> Option<String> {
    let wide = Tier::Avx512Vnni.missing()?;
    Some(format!("kernels are of the tier {}, which is not the fast one: {wide}", Tier::best().word()))
}

/// What is said whenever a model was calibrated on noise.
pub const SYNTHETIC: &str = "calibrated on seeded noise: the timing is right, the accuracy means nothing";
