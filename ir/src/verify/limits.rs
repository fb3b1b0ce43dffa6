//! What a module may hold at most. The parser and the verifier both enforce these.

/// Dimensions of a tensor.
pub const RANK: usize = 8;
/// Elements of a tensor (per image of the batch, when the batch is a factor).
pub const ELEMENTS: usize = 1 << 31;
/// Nodes of a module.
pub const NODES: usize = 200_000;
/// Constants of a module; also inputs, outputs and lane programs.
pub const CONSTS: usize = 100_000;
/// Bytes of a name (constant, input, output, lane program).
pub const NAME: usize = 4096;
/// Bytes of the arena per image of the batch.
pub const ARENA: usize = 4 << 30;
/// Nesting of lists in a text.
pub const NESTING: usize = 64;
/// Columns of a packed panel.
pub const PANEL: usize = 4096;
