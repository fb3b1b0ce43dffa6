//! The page about ops, docs/ops.md, made from the table.

use crate::op::{Class, OPS, OpInfo};

const CLASSES: [(Class, &str, &str); 5] = [
    (Class::Move, "Movement", "Rearranges elements of any type; allowed at every stage. Passes a quantization on."),
    (Class::Float, "Float", "Computes on `f32`; gone after `integerize`."),
    (Class::Quant, "Between floats and integers", "From `quantize` on; after `integerize` only at the graph's doors."),
    (Class::Int, "Integer", "From `integerize` on. Exact: every backend gives these bits."),
    (
        Class::Fused,
        "Fused",
        "Kernels that do the work of several ops, most with a lane program attached; from `fuse` on.",
    ),
];

/// The page as Markdown: every op with its operands, attributes and meaning, by class.
pub fn ops_markdown() -> String {
    let mut page = String::from(
        "# Ops\n\nMade from the table in `ir/src/op.rs`; `BLESS=1 cargo test -p vitc-ir docs` writes it again.\n\n\
         An operand with `?` may be left out, one with `...` may be repeated.\n",
    );
    for (class, title, about) in CLASSES {
        page.push_str(&format!("\n## {title}\n\n{about}\n"));
        OPS.iter().filter(|op| op.class == class).for_each(|op| page.push_str(&section(op)));
    }
    page
}

fn section(op: &OpInfo) -> String {
    let attrs: Vec<_> = op.attrs.iter().map(|(name, kind)| format!("{name}: {}", kind.replace('`', ""))).collect();
    let attrs = if attrs.is_empty() { String::new() } else { format!(" {{{}}}", attrs.join(", ")) };
    let doc: Vec<_> = op.doc.iter().map(|line| line.trim()).collect();
    format!(
        "\n### `{}`\n\n```text\n{} {}{attrs}\n```\n\n{}\n",
        op.name,
        op.name,
        op.operands.join(", "),
        doc.join("\n")
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn docs_ops_md_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ops.md");
        let page = super::ops_markdown();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(stored == page, "docs/ops.md is stale; BLESS=1 writes it again");
    }
}
