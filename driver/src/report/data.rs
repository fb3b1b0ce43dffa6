//! What a report says, as plain data: this is its JSON, and all that the page is drawn from.

use serde::{Deserialize, Serialize};

/// Version of the JSON; it grows when a field changes its meaning.
pub const FORMAT: u32 = 1;

/// A quantization report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of vitc.
    pub vitc: String,
    /// What was compiled.
    pub model: Model,
    /// The choices that decide the outcome, by the name of their flag.
    pub settings: Vec<Setting>,
    /// What sites were measured on.
    pub measured_on: MeasuredOn,
    /// The way from the plainest quantization to the integers, in order.
    pub stages: Vec<Stage>,
    /// Every quantized activation, the worst first.
    pub sites: Vec<Site>,
    /// What the transforms did, in the order they ran.
    pub transforms: Vec<Transformed>,
    /// Candidate forms of every nonlinear op.
    pub forms: Vec<Form>,
    /// Weights, in the order of the plan.
    pub layers: Vec<Layer>,
    /// Sizes in bytes.
    pub size: Size,
    /// What the cost model expects.
    pub predicted: Predicted,
    /// Accuracy on labelled images, where some were given.
    pub accuracy: Option<Accuracy>,
}

/// What was compiled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// The file.
    pub file: String,
    /// The graph's name.
    pub name: String,
    /// How images become the input.
    pub preprocessing: Option<String>,
}

/// A choice of the user's, or its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The flag without its dashes.
    pub flag: String,
    /// Its value in words.
    pub value: String,
}

/// What sites were measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredOn {
    /// How many inputs.
    pub inputs: usize,
    /// Whether they are seeded noise: then no figure says anything about images.
    pub noise: bool,
    /// Inputs that calibration saw; those measured on are among them.
    pub calibration: usize,
}

/// A module on the way to integers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// What it is, in a sentence.
    pub what: String,
    /// The model's outputs against the float graph's.
    pub outputs: Option<Noise>,
    /// Places at which transforms rewrote something, up to this stage.
    pub rewrites: usize,
}

/// Mean squares of what should be and of what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Of the float values.
    pub signal: f64,
    /// Of the errors.
    pub noise: f64,
    /// `10 log10(signal / noise)`; nothing when there is no error, or no signal.
    pub sqnr_db: Option<f64>,
}

impl Noise {
    /// From the two mean squares.
    pub fn of(signal: f64, noise: f64) -> Noise {
        let db = 10.0 * (signal / noise).log10();
        Noise { signal, noise, sqnr_db: db.is_finite().then_some(db) }
    }

    /// For comparing: no error is better than any.
    pub fn rank(&self) -> f64 {
        match (self.sqnr_db, self.noise > 0.0) {
            (Some(db), _) => db,
            (None, true) => f64::NEG_INFINITY,
            (None, false) => f64::INFINITY,
        }
    }
}

/// A quantized activation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// Name of the ONNX node whose result it is, or of the graph input.
    pub node: String,
    /// The float op that makes it; `input` for one of the graph's.
    pub op: String,
    /// Place in the graph: sites in its order count from 0.
    pub index: usize,
    /// `unsigned`, `signed` or `wide`.
    pub role: String,
    /// The ops that read it quantized like this.
    pub read_by: Vec<String>,
    /// Element type.
    pub elem: String,
    /// Bits that are used of it.
    pub bits: u32,
    /// The least and the largest real that it can be.
    pub range: [f64; 2],
    /// What was seen of it in the float graph.
    pub seen: [f64; 2],
    /// Scales: one, or one for each channel.
    pub scale: Vec<f64>,
    /// The integer that stands for zero.
    pub zero_point: i32,
    /// At every stage of the report, against the float graph; nothing where the stage does not compute it.
    pub noise: Vec<Option<Noise>>,
    /// What rounding the float values to this grid alone costs, nothing before it being quantized.
    pub own: Option<Noise>,
    /// Share of its values beyond the range.
    pub clipped: f64,
    /// Its values in the float graph that was quantized.
    pub histogram: Histogram,
}

impl Site {
    /// The last stage that computes it.
    pub fn last(&self) -> Option<Noise> {
        self.noise.iter().rev().find_map(|n| *n)
    }
}

/// Counts of values in bins of one width.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Left end of the first bin.
    pub low: f64,
    /// Right end of the last one.
    pub high: f64,
    /// Counts.
    pub counts: Vec<u64>,
}

/// What a transform did at a place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transformed {
    /// Its word.
    pub transform: String,
    /// Name of the ONNX node whose channels changed.
    pub node: String,
    /// Predicted noise saved, in decibels.
    pub gain_db: f64,
}

/// A form that a nonlinear op could take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Form {
    /// Name of the ONNX node.
    pub node: String,
    /// The float op.
    pub op: String,
    /// The form.
    pub form: String,
    /// Measured error.
    pub error: f64,
    /// What the error is counted in: `steps` of the result, or `relative`.
    pub unit: String,
    /// Cost in the planner's units.
    pub cost: u64,
    /// Whether the error is within the budget.
    pub allowed: bool,
    /// Whether it was taken.
    pub chosen: bool,
}

/// The weights of a product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Name of the ONNX node.
    pub node: String,
    /// Shape of the weights.
    pub shape: Vec<usize>,
    /// Bits of a weight as stored, its part of the steps of groups counted.
    pub bits: f64,
    /// Bytes as stored.
    pub bytes: usize,
}

/// Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// The artifact.
    pub artifact: usize,
    /// All constants: weights, multipliers, tables.
    pub constants: usize,
    /// Constants of the float graph.
    pub float_constants: usize,
    /// Memory for activations, an image.
    pub arena: usize,
}

/// What the cost model expects of one image on one core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// The tier that it is predicted for.
    pub tier: String,
    /// Milliseconds.
    pub ms: f64,
    /// Cycles.
    pub cycles: f64,
    /// Clock of the core that the model is of, in GHz.
    pub clock_ghz: f64,
    /// The same by op, most expensive first.
    pub ops: Vec<OpCost>,
}

/// Cycles of all nodes of an op.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpCost {
    /// The op.
    pub op: String,
    /// Nodes.
    pub nodes: usize,
    /// Cycles.
    pub cycles: f64,
}

/// Accuracy on labelled images; shares in percent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Images.
    pub images: usize,
    /// Of the integers.
    pub top1: f64,
    /// 95 % interval of that.
    pub top1_interval: [f64; 2],
    /// Among the first five.
    pub top5: f64,
    /// Of the float graph, where it can be evaluated.
    pub float_top1: Option<f64>,
    /// Both find the same class.
    pub agreement: Option<f64>,
    /// All logits against the float graph's, in decibels.
    pub logit_sqnr_db: Option<f64>,
}
