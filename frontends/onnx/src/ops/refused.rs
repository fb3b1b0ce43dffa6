//! Advice for ops that are known and not supported.

const CONTROL: &str = "control flow is not supported: trace the model with fixed shapes when exporting";
const DATA: &str = "shapes that depend on the image are not supported";

const ADVICE: &[(&[&str], &str)] = &[
    (&["Loop", "Scan", "SequenceMap"], CONTROL),
    (&["NonZero", "Unique", "Compress", "NonMaxSuppression"], DATA),
    (&["ArgMax", "ArgMin", "TopK"], "end the model at the numbers: `vitc run` ranks the classes"),
    (&["GridSample"], "export with a fixed image size, so that positions need no interpolation"),
    (&["LSTM", "GRU", "RNN"], "Vision Transformers rarely need it; tell us if yours does"),
];

/// What to do about an op that has no handler.
pub(super) fn help(op: &str) -> Option<&'static str> {
    ADVICE.iter().find(|(names, _)| names.contains(&op)).map(|(_, help)| *help)
}
