//! What ranks numbers at the end of a model: the class of an image, the best five, a map of labels.
//!
//! vitc computes the numbers that are ranked; ranking them is left to the reader of the outputs. So an output that ranks is left out
//! where its numbers are an output as well, and else its numbers are the output, under their own name, and a note says either.
//! Anything else that the graph does with ranks is refused.

use vitc_ir::{Op, ValueId};

use crate::import::{Importer, Slot, is_default_domain, shorten};
use crate::problem::{Fallible, Problem, unsupported};
use crate::proto;

/// Key of the note of what ranks what.
const RANKS_KEY: &str = "onnx.ranks";
/// Ops that rank.
const RANKING: &[&str] = &["ArgMax", "ArgMin", "TopK"];
/// Ops that ranks may pass on the way to an output.
const PASSING: &[&str] = &["Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten"];

/// Where some numbers lie, or which come first.
#[derive(Clone)]
pub(crate) struct Ranks<'a> {
    /// The numbers.
    of: ValueId,
    /// Their name in the model.
    name: &'a str,
    /// What ranks them.
    by: &'a str,
}

/// The slots of a node that ranks, or passes ranks on; `None` for other nodes. The operands are defined and known.
pub(crate) fn step<'a>(importer: &Importer<'a>, node: &'a proto::Node) -> Option<Fallible<Vec<Option<Slot<'a>>>>> {
    let slot = |name: &String| importer.slots.get(name.as_str());
    let ranks = ranks_of(importer, node).or_else(|| slot(node.input.first()?)?.ranks.clone());
    let is_passed = RANKING.contains(&node.op_type.as_str()) || PASSING.contains(&node.op_type.as_str());
    if let Some(ranks) = ranks.filter(|_| is_passed && is_default_domain(&node.domain)) {
        let slot = Slot { ranks: Some(ranks), ..Slot::default() };
        return Some(Ok(node.output.iter().map(|_| Some(slot.clone())).collect()));
    }
    let read = node.input.iter().find_map(|name| slot(name)?.ranks.as_ref().map(|ranks| (name, ranks)))?;
    Some(Err(refused(read)))
}

/// Whether a node ranks what it reads.
pub(crate) fn is_ranking(node: &proto::Node) -> bool {
    is_default_domain(&node.domain) && RANKING.contains(&node.op_type.as_str())
}

/// What a node ranks, when that is computed.
fn ranks_of<'a>(importer: &Importer<'a>, node: &'a proto::Node) -> Option<Ranks<'a>> {
    let name = node.input.first().filter(|_| is_ranking(node))?.as_str();
    let of = importer.slots.get(name)?.value.filter(|&v| importer.module.const_of(v).is_none())?;
    Some(Ranks { of, name, by: &node.op_type })
}

fn refused((name, ranks): (&String, &Ranks<'_>)) -> Problem {
    let (name, of) = (shorten(name), shorten(ranks.name));
    unsupported(format!("`{name}` says where numbers of `{of}` lie ({}), and the graph goes on from there", ranks.by))
        .code("unsupported-op")
        .help("end the model at the numbers: `vitc run` ranks the classes")
}

/// The output that stands for one that ranks, if any: the numbers, unless they, or what a softmax makes them of, are an output.
/// Notes which.
pub(crate) fn output<'a>(importer: &mut Importer<'a>, output: &str, ranks: &Ranks<'a>) -> Option<(&'a str, ValueId)> {
    let module = &mut importer.module;
    let before = match module.node_of(ranks.of) {
        Some(node) if node.op == (Op::Softmax {}) => node.operands.first().copied(),
        _ => None,
    };
    let is_given = |v: ValueId| importer.given.iter().find(|(_, given)| *given == v).map(|(name, _)| *name);
    let there = is_given(ranks.of).or_else(|| before.and_then(is_given));
    let note = match there {
        Some(name) => format!("{} ({} of {name})", shorten(output), ranks.by),
        None => format!("{} ({} of {}, which is given instead)", shorten(output), ranks.by, shorten(ranks.name)),
    };
    let notes = module.meta.entry(RANKS_KEY.into()).or_default();
    *notes = [notes.as_str(), &note].into_iter().filter(|n| !n.is_empty()).collect::<Vec<_>>().join(", ");
    if there.is_some() {
        return None;
    }
    importer.given.push((ranks.name, ranks.of));
    Some((ranks.name, ranks.of))
}
