//! Ids, definitions, order and names.

use std::collections::HashSet;

use super::{Checker, limits};
use crate::graph::{Def, ValueId};

impl Checker<'_> {
    /// Names are unique and short, and there are not too many of anything.
    pub(super) fn names(&mut self) {
        let m = self.m;
        let kinds: [(&str, bool, Vec<&str>); 4] = [
            ("const", true, m.consts.iter().map(|c| c.name.as_str()).collect()),
            ("input", true, m.inputs.iter().map(|i| i.name.as_str()).collect()),
            ("output", false, m.outputs.iter().map(|o| o.name.as_str()).collect()),
            ("lane", true, m.lanes.keys().map(String::as_str).collect()),
        ];
        for (kind, unique, names) in kinds {
            self.name_list(kind, unique, &names);
        }
        if m.nodes.len() > limits::NODES {
            self.report("limit-nodes", "the module".into(), format!("{} nodes", m.nodes.len()));
        }
    }

    fn name_list(&mut self, kind: &str, unique: bool, names: &[&str]) {
        let mut seen = HashSet::new();
        for (i, name) in names.iter().enumerate() {
            if name.len() > limits::NAME {
                self.report("limit-name", format!("{kind} {i}"), format!("a name of {} bytes", name.len()));
            } else if !seen.insert(name) && unique {
                self.report("duplicate-name", format!("{kind} {i}"), format!("the name {name:?} is taken"));
            }
        }
        if names.len() > limits::CONSTS {
            self.report("limit-consts", "the module".into(), format!("{} of {kind}", names.len()));
        }
    }

    /// Ids, definitions and order. Returns for each node whether its operands and its result are there.
    pub(super) fn structure(&mut self) -> Vec<bool> {
        let m = self.m;
        for (i, input) in m.inputs.iter().enumerate() {
            self.defines(Def::Input(i), input.value, format!("input {i}"));
        }
        for v in 0..m.values.len() {
            self.definition(v);
        }
        self.constants_have_one_value();
        for (i, output) in m.outputs.iter().enumerate() {
            self.exists(output.value, format!("output {i}"));
        }
        (0..m.nodes.len()).map(|n| self.node_ids(n)).collect()
    }

    fn node_ids(&mut self, node: usize) -> bool {
        let m = self.m;
        let mut sound = self.defines(Def::Node(node), m.nodes[node].result, self.node_place(node));
        for &operand in &m.nodes[node].operands {
            sound &= self.exists(operand, self.node_place(node));
            if let Some(Def::Node(before)) = m.values.get(operand.0 as usize).map(|v| v.def)
                && before >= node
            {
                self.at_node(node, "order", format!("uses the result of %{before}, which does not come before it"));
            }
        }
        sound
    }

    fn exists(&mut self, v: ValueId, place: String) -> bool {
        let there = (v.0 as usize) < self.m.values.len();
        if !there {
            self.report("value-id", place, format!("there is no value {}", v.0));
        }
        there
    }

    /// Whether the value is there; reports when it says that something else defines it.
    fn defines(&mut self, def: Def, v: ValueId, place: String) -> bool {
        match self.m.values.get(v.0 as usize) {
            Some(value) if value.def != def => {
                self.report("value-def", place, format!("value {} is {:?}, not {def:?}", v.0, value.def));
                true
            }
            _ => self.exists(v, place),
        }
    }

    /// What value `v` says to define it does so.
    fn definition(&mut self, v: usize) {
        let (m, value) = (self.m, &self.m.values[v]);
        let id = ValueId(v as u32);
        let agrees = match value.def {
            Def::Input(i) => m.inputs.get(i).is_some_and(|input| input.value == id),
            Def::Node(n) => m.nodes.get(n).is_some_and(|node| node.result == id),
            Def::Const(c) => m.consts.get(c).is_some_and(|c| c.ty == value.ty),
        };
        if !agrees {
            self.report("value-def", format!("value {v}"), format!("{:?} does not define this value", value.def));
        }
    }

    fn constants_have_one_value(&mut self) {
        let m = self.m;
        let mut values = vec![0usize; m.consts.len()];
        for value in &m.values {
            if let Def::Const(c) = value.def
                && let Some(count) = values.get_mut(c)
            {
                *count += 1;
            }
        }
        for (c, count) in values.into_iter().enumerate().filter(|(_, count)| *count != 1) {
            self.report("value-def", format!("const {:?}", m.consts[c].name), format!("has {count} values"));
        }
    }
}
