//! The printer. It prints any module, also one that the verifier refuses; only what refers to nothing is written `%?`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{lane, real};
use crate::attr::AttrValue;
use crate::graph::{Const, Def, Module, Node, Stage, ValueId};
use crate::layout::Layout;
use crate::types::{Elem, Quant, Real, TensorType};

/// Constants of more elements go to the blob.
const INLINE: usize = 16;
/// Alignment of constants in the blob.
const ALIGN: usize = 64;

pub(super) struct Printer<'m> {
    module: &'m Module,
    pub(super) text: String,
    pub(super) blob: Vec<u8>,
    /// Number of each scale list by its contents.
    scales: HashMap<Vec<u64>, usize>,
}

impl<'m> Printer<'m> {
    pub(super) fn new(module: &'m Module) -> Printer<'m> {
        Printer { module, text: String::new(), blob: Vec::new(), scales: HashMap::new() }
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    pub(super) fn module(&mut self) {
        let m = self.module;
        self.line(&format!("module {} stage {} {{", quoted(&m.name), m.stage.word()));
        for (key, value) in &m.meta {
            self.line(&format!("  meta {} = {}", quoted(key), quoted(value)));
        }
        if m.stage == Stage::Plan || m.arena != 0 {
            self.line(&format!("  arena {}", m.arena));
        }
        self.scale_lists();
        m.consts.iter().for_each(|c| self.constant(c));
        for (name, program) in &m.lanes {
            let lines = lane::print(name, program);
            self.text.push_str(&lines);
        }
        self.graph();
        self.line("}");
    }

    /// Gives every scale list a number in the order of first appearance and prints it.
    fn scale_lists(&mut self) {
        let m = self.module;
        let values = m.inputs.iter().map(|i| i.value).chain(m.nodes.iter().map(|n| n.result));
        let types = m.consts.iter().map(|c| &c.ty).chain(values.filter_map(|v| type_of(m, v)));
        for quant in types.filter_map(|ty| ty.quant.as_ref()).filter(|q| !is_inline(q)) {
            let (key, number) = (list_key(&quant.scale), self.scales.len());
            if let Entry::Vacant(entry) = self.scales.entry(key) {
                entry.insert(number);
                let list = self.scale_list(&quant.scale);
                self.line(&format!("  scale @s{number} = {list}"));
            }
        }
    }

    fn scale_list(&mut self, scales: &[Real]) -> String {
        if scales.len() <= INLINE {
            let items: Vec<_> = scales.iter().map(|s| real::print(s.0)).collect();
            return format!("[{}]", items.join(", "));
        }
        let bits = list_key(scales);
        self.blob(bytemuck::cast_slice(&bits))
    }

    fn ty(&self, ty: &TensorType) -> String {
        let quant = ty.quant.as_ref().map(|q| self.quant(q)).unwrap_or_default();
        format!("tensor<{}{}{quant}>", ty.shape, ty.elem)
    }

    fn value_ty(&self, v: ValueId) -> String {
        type_of(self.module, v).map_or("tensor<?>".into(), |ty| self.ty(ty))
    }

    fn quant(&self, q: &Quant) -> String {
        let scale = match self.scales.get(&list_key(&q.scale)) {
            Some(number) if !is_inline(q) => format!("@s{number}"),
            _ => q.scale.first().map(|s| real::print(s.0)).unwrap_or_default(),
        };
        let axis = q.axis.map(|a| format!(", axis={a}")).unwrap_or_default();
        format!(", q({scale}, {}{axis})", q.zero_point)
    }

    fn constant(&mut self, c: &Const) {
        let layout = match c.layout {
            Some(Layout::Dot4 { columns }) => format!(" layout dot4({columns})"),
            Some(Layout::Dot4Nibbles { columns }) => format!(" layout dot4nibbles({columns})"),
            Some(Layout::Bits { bits }) => format!(" layout bits({bits})"),
            Some(Layout::Groups { bits, rows }) => format!(" layout groups({bits}, {rows})"),
            None => String::new(),
        };
        let data = inline(c).unwrap_or_else(|| self.blob(&c.data));
        self.line(&format!("  const {} : {}{layout} = {data}", symbol(&c.name), self.ty(&c.ty)));
    }

    fn blob(&mut self, data: &[u8]) -> String {
        self.blob.resize(self.blob.len().next_multiple_of(ALIGN), 0);
        let offset = self.blob.len();
        self.blob.extend_from_slice(data);
        format!("blob(0x{offset:x}, {})", data.len())
    }

    fn graph(&mut self) {
        let m = self.module;
        let inputs = m.inputs.iter().map(|i| format!("%{}: {}", name(&i.name), self.value_ty(i.value)));
        let outputs = m.outputs.iter().map(|o| format!("{} {}", self.operand(o.value), quoted(&o.name)));
        let (inputs, outputs): (Vec<_>, Vec<_>) = (inputs.collect(), outputs.collect());
        self.line(&format!("  graph ({}) -> ({}) {{", inputs.join(", "), outputs.join(", ")));
        for (i, node) in m.nodes.iter().enumerate() {
            self.node(i, node);
        }
        self.line("  }");
    }

    fn node(&mut self, number: usize, node: &Node) {
        let operands: Vec<_> = node.operands.iter().map(|&v| self.operand(v)).collect();
        let mut line = format!("    %{number} = {}", node.op.name());
        if !operands.is_empty() {
            line.push_str(&format!(" {}", operands.join(", ")));
        }
        let attrs: Vec<_> = node.op.attrs().iter().map(|(k, v)| format!("{k} = {}", attr(v))).collect();
        if !attrs.is_empty() {
            line.push_str(&format!(" {{{}}}", attrs.join(", ")));
        }
        line.push_str(&format!(" : {}", self.value_ty(node.result)));
        if let Some(place) = node.place {
            line.push_str(&format!(" at {place}"));
        }
        if let Some(region) = node.region {
            line.push_str(&format!(" region {region}"));
        }
        if let Some(loc) = &node.loc {
            line.push_str(&format!(" loc({})", quoted(loc)));
        }
        self.line(&line);
    }

    fn operand(&self, v: ValueId) -> String {
        let m = self.module;
        match m.values.get(v.0 as usize).map(|v| v.def) {
            Some(Def::Node(n)) => Some(format!("%{n}")),
            Some(Def::Input(i)) => m.inputs.get(i).map(|input| format!("%{}", name(&input.name))),
            Some(Def::Const(c)) => m.consts.get(c).map(|c| symbol(&c.name)),
            None => None,
        }
        .unwrap_or_else(|| "%?".into())
    }
}

fn type_of(m: &Module, v: ValueId) -> Option<&TensorType> {
    m.values.get(v.0 as usize).map(|v| &v.ty)
}

/// One scale of the whole tensor stands in the type itself.
fn is_inline(q: &Quant) -> bool {
    q.axis.is_none() && q.scale.len() == 1
}

fn list_key(scales: &[Real]) -> Vec<u64> {
    scales.iter().map(|s| if s.0.is_nan() { f64::NAN.to_bits() } else { s.0.to_bits() }).collect()
}

/// The values of a small constant, when they have a spelling that keeps every bit.
fn inline(c: &Const) -> Option<String> {
    let count = c.ty.shape.count()?.as_fixed().filter(|&n| n <= INLINE)?;
    if c.layout.is_some() || c.data.len() != count * c.ty.elem.bytes() {
        return None;
    }
    let items: Option<Vec<String>> = match c.ty.elem {
        Elem::F32 => c.values::<f32>().iter().map(|&v| float(v)).collect(),
        Elem::Bool if c.data.iter().any(|&b| b > 1) => None,
        _ => Some(c.ints().iter().map(i64::to_string).collect()),
    };
    Some(format!("[{}]", items?.join(", ")))
}

fn float(v: f32) -> Option<String> {
    let spelled = !v.is_nan() || v.to_bits() == f32::NAN.to_bits();
    spelled.then(|| real::print(v.into()))
}

fn attr(value: &AttrValue) -> String {
    match value {
        AttrValue::Int(v) => v.to_string(),
        AttrValue::Real(v) => real::print(*v),
        AttrValue::Dim(d) => d.to_string(),
        AttrValue::Word(w) => w.clone(),
        AttrValue::Symbol(s) => symbol(s),
        AttrValue::List(items) => format!("[{}]", items.iter().map(attr).collect::<Vec<_>>().join(", ")),
    }
}

pub(super) fn symbol(text: &str) -> String {
    format!("@{}", name(text))
}

/// A name, quoted unless it is plain.
fn name(text: &str) -> String {
    let starts = |c: char| c.is_ascii_alphabetic() || c == '_';
    let plain = text.starts_with(starts) && text.bytes().all(super::lex::is_word) && !text.contains("//");
    if plain { text.into() } else { quoted(text) }
}

/// A string in quotes; control characters, quotes and backslashes are escaped.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
