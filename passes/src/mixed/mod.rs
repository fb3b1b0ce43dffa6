//! Greedy mixed precision: which products get fewer bits (Greedy MP of MPTQ-ViT, arXiv 2401.14895; the paper's metric is not
//! published in full, this one is ours).
//!
//! 1. [`knobs`] lists what can be chosen: for each name of products the bits of its weights, and the bits of what products
//!    read. Products that share a name share a width, and so do those that read the same values.
//! 2. [`measure`] fills a table of losses. The graph stays float, one knob at a time is quantized at one width, and the loss is
//!    the Kullback-Leibler divergence of the logits, as distributions, from those of the float graph: mean nats per image. All values of
//!    the float graph are kept for an image, so only what depends on the knob is evaluated again.
//! 3. [`search`] starts at 8 bits everywhere and lowers, step after step, the knob with the least added loss for what it saves.
//!    Losses add up, which holds to first order: roundings of different knobs are independent, so their noise powers add.
//!    Where they do not, the joint loss tells: what weights alone and inputs alone lose together is measured on the quantized
//!    simulation, each half of the table is scaled to it, and the greedy is repeated; the best state measured wins. A limit on the loss of agreement is found by
//!    bisection on the greedy path.
//!
//! Costs are [`Cost`]s of a state, which is one number of bits for each knob. Nothing here reads a clock or a file: times of
//! kernels come in as numbers, and measuring is a function that the caller gives.

mod cost;
mod knobs;
mod measure;
mod replay;
mod search;
#[cfg(test)]
mod tests;

pub use cost::{Cost, Costs, Factor, Product, Times};
pub use knobs::{Kind, Knob, Knobs};
pub use measure::{Loss, Losses, logits, loss_of, measure, measurements};
pub use search::{Limit, Outcome, Problem, Step, check, search};
