//! Bounds on what a model may ask for. Every bound is checked before the memory or the time is spent.

/// Bounds that import enforces; the defaults suit any real Vision Transformer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the model file.
    pub file_bytes: u64,
    /// Bytes of all external data files together.
    pub external_bytes: u64,
    /// Elements of one tensor, per image of the batch.
    pub elements: usize,
    /// Dimensions of one tensor.
    pub rank: usize,
    /// Nodes of the ONNX graph.
    pub nodes: usize,
    /// Nodes that import may create.
    pub emitted_nodes: usize,
    /// Initializers of the ONNX graph.
    pub initializers: usize,
    /// Bytes of one name.
    pub name_bytes: usize,
    /// Encoded protobuf fields of the model without its tensor data; decoded fields are larger than their encoding.
    pub fields: usize,
    /// Bytes of everything that import evaluates by itself (the exporter's shape arithmetic).
    pub fold_bytes: usize,
    /// How many times larger than its operands one evaluated result may be.
    pub fold_growth: usize,
    /// Evaluated results up to this many bytes are not held to `fold_growth`.
    pub fold_floor_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            file_bytes: 2 << 30,
            external_bytes: 16 << 30,
            elements: 1 << 31,
            rank: 8,
            nodes: 200_000,
            emitted_nodes: 1_000_000,
            initializers: 100_000,
            name_bytes: 4 << 10,
            fields: 8_000_000,
            fold_bytes: 2 << 30,
            fold_growth: 4,
            fold_floor_bytes: 64 << 20,
        }
    }
}
