//! What each ONNX op becomes. One file a family; each has a table from op names to handlers.

mod activation;
mod arithmetic;
mod attention;
mod constant;
mod einsum;
mod index;
mod layout;
mod linear;
mod logic;
mod map;
mod norm;
mod pad;
mod pool;
mod reduce;
mod refused;
mod resize;
mod scatter;
mod select;
mod transposed;

use crate::call::Call;
use crate::import::{is_default_domain, shorten};
use crate::problem::{Fallible, unsupported};

/// Imports one node: reads the operands and attributes, adds nodes or evaluates, gives the outputs.
pub(crate) type Handler = fn(&mut Call<'_, '_>) -> Fallible<()>;

/// A family's ops.
type Table = &'static [(&'static str, Handler)];

const TABLES: [Table; 17] = [
    activation::OPS,
    arithmetic::OPS,
    attention::OPS,
    constant::OPS,
    einsum::OPS,
    index::OPS,
    layout::OPS,
    linear::OPS,
    logic::OPS,
    norm::OPS,
    pad::OPS,
    pool::OPS,
    reduce::OPS,
    resize::OPS,
    scatter::OPS,
    select::OPS,
    transposed::OPS,
];

/// Every ONNX op that import reads, in alphabetical order.
pub(crate) fn supported() -> Vec<&'static str> {
    let mut names: Vec<_> = TABLES.iter().flat_map(|t| t.iter().map(|(name, _)| *name)).collect();
    names.sort_unstable();
    names
}

/// The handler of an op.
pub(crate) fn handler(domain: &str, op: &str) -> Fallible<Handler> {
    if !is_default_domain(domain) {
        let problem = unsupported(format!("ops of the domain `{}` are not supported", shorten(domain)));
        return Err(problem.code("unsupported-op").help("export without contrib or custom ops (no graph optimizer)"));
    }
    let found = TABLES.iter().find_map(|t| t.iter().find(|(name, _)| *name == op));
    found.map(|(_, handler)| *handler).ok_or_else(|| {
        let problem = unsupported(format!("the op `{}` is not supported", shorten(op))).code("unsupported-op");
        match refused::help(op) {
            Some(help) => problem.help(help),
            None => problem,
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_op_has_one_handler() {
        let names = super::supported();
        assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
        assert!(names.iter().all(|n| super::refused::help(n).is_none()));
    }
}
