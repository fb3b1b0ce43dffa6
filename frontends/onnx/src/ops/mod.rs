//! What each ONNX op becomes. One file a family; each has a table from op names to handlers.

mod activation;
mod arithmetic;
mod attention;
mod col2im;
mod constant;
mod contrib;
mod control;
pub(crate) mod counted;
mod einsum;
mod index;
mod layout;
mod linear;
mod logic;
mod map;
mod norm;
mod pad;
mod pool;
mod qlinear;
mod quantized;
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

const TABLES: [Table; 21] = [
    activation::OPS,
    arithmetic::OPS,
    attention::OPS,
    col2im::OPS,
    constant::OPS,
    control::OPS,
    einsum::OPS,
    index::OPS,
    layout::OPS,
    linear::OPS,
    logic::OPS,
    norm::OPS,
    pad::OPS,
    pool::OPS,
    qlinear::OPS,
    quantized::OPS,
    reduce::OPS,
    resize::OPS,
    scatter::OPS,
    select::OPS,
    transposed::OPS,
];

/// Ops of the domain that onnxruntime's tools write, and those of the default domain that they write into it.
const CONTRIB: [Table; 3] = [contrib::OPS, qlinear::CONTRIB, quantized::OPS];
const CONTRIB_DOMAIN: &str = "com.microsoft";

/// Every op of the default domain that import reads, in alphabetical order.
pub(crate) fn supported() -> Vec<&'static str> {
    names(&TABLES)
}

/// Every op of `com.microsoft` that import reads, in alphabetical order.
pub(crate) fn supported_contrib() -> Vec<&'static str> {
    names(&CONTRIB)
}

fn names(tables: &[Table]) -> Vec<&'static str> {
    let mut names: Vec<_> = tables.iter().flat_map(|t| t.iter().map(|(name, _)| *name)).collect();
    names.sort_unstable();
    names
}

/// The handler of an op.
pub(crate) fn handler(domain: &str, op: &str) -> Fallible<Handler> {
    let find = |tables: &[Table]| tables.iter().find_map(|t| t.iter().find(|(name, _)| *name == op)).map(|(_, h)| *h);
    if domain == CONTRIB_DOMAIN
        && let Some(handler) = find(&CONTRIB)
    {
        return Ok(handler);
    }
    if !is_default_domain(domain) {
        let name = format!("{}.{}", shorten(domain), shorten(op));
        let problem = unsupported(format!("the op `{name}` is not supported"));
        // the layout of one processor's vectors, which onnxruntime writes at its level `all`
        let help = match domain {
            "com.microsoft.nchwc" => "let onnxruntime optimize at level `extended` or below, or not at all",
            _ => "export without contrib or custom ops (no graph optimizer)",
        };
        return Err(problem.code("unsupported-op").help(help));
    }
    find(&TABLES).ok_or_else(|| {
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
        for names in [&names, &super::supported_contrib()] {
            assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
        }
        assert!(names.iter().all(|n| super::refused::help(n).is_none()));
    }
}
