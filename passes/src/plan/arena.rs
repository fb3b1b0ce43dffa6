//! Places in the arena: first fit over the interference graph of the values' lifetimes.
//!
//! What a region uses lives to the region's end: a thread that is ahead must not write over what another still reads.

use petgraph::graph::{NodeIndex, UnGraph};
use vitc_ir::{Module, Op, ValueId, region};

use super::ALIGN;

/// Lifetime and size of one buffer; the buffer may serve several values (a reshape shares its operand's).
#[derive(Clone, Debug)]
struct Buffer {
    bytes: usize,
    /// First and last node that need it.
    from: usize,
    to: usize,
    owner: ValueId,
}

/// What becomes of a node's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    /// A buffer of its own.
    Own,
    /// The same bytes as its operand: a reshape of something contiguous.
    Alias,
    /// Nothing: its users address through it.
    View,
}

/// Gives every materialised value a place and the module its arena size.
pub(super) fn place(mut module: Module, storage: &[Storage]) -> Result<Module, String> {
    let roots = roots(&module, storage);
    let buffers = buffers(&module, storage, &roots)?;
    let places = first_fit(&interference(&buffers), &buffers);
    let place_of = |v: ValueId| buffers.iter().position(|b| b.owner == v).map(|i| places[i]);
    for n in 0..module.nodes.len() {
        let root = roots[module.nodes[n].result.0 as usize];
        module.nodes[n].place = if storage[n] == Storage::View { None } else { place_of(root) };
    }
    module.arena = buffers.iter().zip(&places).map(|(b, p)| p + b.bytes).max().unwrap_or(0).next_multiple_of(ALIGN);
    Ok(module)
}

/// What becomes of each node's result; `views` are the nodes that only move and that all users address through.
pub(super) fn storage(module: &Module, views: &[bool]) -> Vec<Storage> {
    let mut contiguous = vec![true; module.values.len()];
    let mut storage = Vec::with_capacity(module.nodes.len());
    for (n, node) in module.nodes.iter().enumerate() {
        let flat = node.operands.first().is_some_and(|v| contiguous[v.0 as usize]);
        let kind = match node.op {
            Op::Dequantize {} => Storage::View, // the runtime does it at the door
            Op::Reshape { .. } if flat => Storage::Alias,
            _ if views[n] => Storage::View,
            _ => Storage::Own,
        };
        contiguous[node.result.0 as usize] = kind != Storage::View || matches!(node.op, Op::Dequantize {});
        storage.push(kind);
    }
    storage
}

/// The value whose buffer holds (or is addressed through for) each value.
fn roots(module: &Module, storage: &[Storage]) -> Vec<ValueId> {
    let mut roots: Vec<ValueId> = (0..module.values.len() as u32).map(ValueId).collect();
    for (node, kind) in module.nodes.iter().zip(storage) {
        if let (true, Some(x)) = (*kind != Storage::Own, node.operands.first()) {
            roots[node.result.0 as usize] = roots[x.0 as usize];
        }
    }
    roots
}

fn buffers(module: &Module, storage: &[Storage], roots: &[ValueId]) -> Result<Vec<Buffer>, String> {
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut index = vec![None; module.values.len()];
    let ends = region::ends(module);
    for (n, node) in module.nodes.iter().enumerate() {
        for v in &node.operands {
            if let Some(b) = index[roots[v.0 as usize].0 as usize] {
                let buffer: &mut Buffer = &mut buffers[b];
                buffer.to = buffer.to.max(ends[n]);
            }
        }
        if storage[n] == Storage::Own {
            let bytes = module.ty(node.result).bytes().ok_or("a value is too large")?.size;
            index[node.result.0 as usize] = Some(buffers.len());
            buffers.push(Buffer { bytes: bytes.next_multiple_of(ALIGN), from: n, to: ends[n], owner: node.result });
        }
    }
    for output in &module.outputs {
        if let Some(b) = index[roots[output.value.0 as usize].0 as usize] {
            buffers[b].to = module.nodes.len();
        }
    }
    Ok(buffers)
}

fn interference(buffers: &[Buffer]) -> UnGraph<usize, ()> {
    let mut graph = UnGraph::with_capacity(buffers.len(), buffers.len() * 4);
    let nodes: Vec<NodeIndex> = (0..buffers.len()).map(|b| graph.add_node(b)).collect();
    for (i, a) in buffers.iter().enumerate() {
        for (j, b) in buffers.iter().enumerate().skip(i + 1) {
            if a.from <= b.to && b.from <= a.to {
                graph.add_edge(nodes[i], nodes[j], ());
            }
        }
    }
    graph
}

/// Largest first, each at the lowest offset that no placed neighbour covers.
fn first_fit(graph: &UnGraph<usize, ()>, buffers: &[Buffer]) -> Vec<usize> {
    let mut order: Vec<NodeIndex> = graph.node_indices().collect();
    order.sort_by_key(|&n| (std::cmp::Reverse(buffers[graph[n]].bytes), graph[n]));
    let mut places: Vec<Option<usize>> = vec![None; buffers.len()];
    for n in order {
        let mut taken: Vec<(usize, usize)> =
            graph.neighbors(n).filter_map(|m| places[graph[m]].map(|p| (p, p + buffers[graph[m]].bytes))).collect();
        taken.sort_unstable();
        let size = buffers[graph[n]].bytes;
        let mut offset = 0;
        for (from, to) in taken {
            if from >= offset + size {
                break;
            }
            offset = offset.max(to);
        }
        places[graph[n]] = Some(offset);
    }
    places.into_iter().map(|p| p.unwrap_or(0)).collect()
}
