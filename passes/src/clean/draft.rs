//! A module under rewriting: rules add nodes and replace values; use counts are exact at every moment, and
//! [`Draft::finish`] rebuilds a module in topological order without dead code and common subexpressions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use vitc_ir::{Const, Def, Elem, Module, Node, Op, Shape, Stage, TensorType, ValueId};

/// A rule looks at one node and returns the value that shall stand for its result.
pub(crate) type Rule = fn(&mut Draft, usize) -> Option<ValueId>;

/// How often each named rule fired.
pub type Fired = BTreeMap<&'static str, usize>;

/// A module that rules may change in place.
pub(crate) struct Draft {
    module: Module,
    /// For each value the nodes that use it, once per operand.
    users: Vec<Vec<usize>>,
    alive: Vec<bool>,
}

impl Draft {
    pub(crate) fn new(module: Module) -> Draft {
        let mut users = vec![Vec::new(); module.values.len()];
        for (n, node) in module.nodes.iter().enumerate() {
            node.operands.iter().for_each(|v| users[v.0 as usize].push(n));
        }
        let alive = vec![true; module.nodes.len()];
        Draft { module, users, alive }
    }

    /// Number of nodes, dead ones included; new ones come last.
    pub(crate) fn len(&self) -> usize {
        self.module.nodes.len()
    }

    /// The module as it stands.
    pub(crate) fn into_module(self) -> Module {
        self.module
    }

    pub(crate) fn module(&self) -> &Module {
        &self.module
    }

    pub(crate) fn node(&self, n: usize) -> &Node {
        &self.module.nodes[n]
    }

    /// Index of the node that computes a value.
    pub(crate) fn def(&self, v: ValueId) -> Option<usize> {
        match self.module.values[v.0 as usize].def {
            Def::Node(n) => Some(n),
            _ => None,
        }
    }

    /// Op and operands of the node that computes a value.
    pub(crate) fn op_of(&self, v: ValueId) -> Option<(&Op, &[ValueId])> {
        self.module.node_of(v).map(|n| (&n.op, n.operands.as_slice()))
    }

    pub(crate) fn ty(&self, v: ValueId) -> &TensorType {
        self.module.ty(v)
    }

    pub(crate) fn shape(&self, v: ValueId) -> &Shape {
        &self.module.ty(v).shape
    }

    /// The nodes that use a value, once per operand.
    pub(crate) fn users(&self, v: ValueId) -> &[usize] {
        &self.users[v.0 as usize]
    }

    pub(crate) fn is_output(&self, v: ValueId) -> bool {
        self.module.outputs.iter().any(|o| o.value == v)
    }

    /// Whether a value has exactly one use.
    pub(crate) fn used_once(&self, v: ValueId) -> bool {
        self.users(v).len() == 1 && !self.is_output(v)
    }

    pub(crate) fn constant_of(&self, v: ValueId) -> Option<&Const> {
        self.module.const_of(v)
    }

    pub(crate) fn is_const(&self, v: ValueId) -> bool {
        self.constant_of(v).is_some()
    }

    /// The value of a float constant all of whose elements are equal.
    pub(crate) fn uniform(&self, v: ValueId) -> Option<f64> {
        let c = self.constant_of(v).filter(|c| c.ty.elem == Elem::F32)?;
        let values = c.values::<f32>();
        let first = *values.first()?;
        values.iter().all(|x| x.to_bits() == first.to_bits()).then_some(f64::from(first))
    }

    /// The value of a float constant of one element.
    pub(crate) fn scalar(&self, v: ValueId) -> Option<f64> {
        let count = self.shape(v).count()?.as_fixed()?;
        (count == 1).then(|| self.uniform(v)).flatten()
    }

    pub(crate) fn loc(&self, n: usize) -> Option<Arc<str>> {
        self.module.nodes[n].loc.clone()
    }

    /// The places of several nodes as one.
    pub(crate) fn join_locs(&self, nodes: impl IntoIterator<Item = usize>) -> Option<Arc<str>> {
        nodes.into_iter().fold(None, |acc, n| join(acc, self.loc(n)))
    }

    /// Adds a constant.
    pub(crate) fn constant(&mut self, c: Const) -> ValueId {
        self.users.push(Vec::new());
        self.module.constant(c)
    }

    /// Adds a float constant.
    pub(crate) fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> ValueId {
        self.constant(Const::new(name, TensorType::f32(Shape::fixed(shape)), values))
    }

    /// Adds a node whose type inference alone cannot tell (its quantization); `None` when it contradicts the inferred one.
    pub(crate) fn push_typed(
        &mut self,
        op: Op,
        operands: &[ValueId],
        ty: TensorType,
        loc: Option<Arc<str>>,
    ) -> Option<ValueId> {
        let inferred = op.infer(&operands.iter().map(|&v| self.ty(v)).collect::<Vec<_>>()).ok()?;
        if inferred.elem != ty.elem || inferred.shape != ty.shape {
            return None;
        }
        let result = self.module.push_typed(op, operands, ty, loc);
        self.note_node(operands);
        Some(result)
    }

    /// Adds a node, `None` when the operands do not fit or the result would have more dimensions than a value may.
    pub(crate) fn push(&mut self, op: Op, operands: &[ValueId], loc: Option<Arc<str>>) -> Option<ValueId> {
        let inferred = op.infer(&operands.iter().map(|&v| self.ty(v)).collect::<Vec<_>>()).ok()?;
        if inferred.shape.rank() > vitc_ir::verify::limits::RANK {
            return None;
        }
        let result = self.module.push_typed(op, operands, inferred, loc);
        self.note_node(operands);
        Some(result)
    }

    /// Keeps the books of a node just added.
    fn note_node(&mut self, operands: &[ValueId]) {
        let n = self.module.nodes.len() - 1;
        self.users.push(Vec::new());
        self.alive.push(true);
        operands.iter().for_each(|v| self.users[v.0 as usize].push(n));
    }

    /// Lets `new` stand wherever `old` was used, and removes what is then dead.
    pub(crate) fn replace(&mut self, old: ValueId, new: ValueId) {
        for n in std::mem::take(&mut self.users[old.0 as usize]) {
            let operands = &mut self.module.nodes[n].operands;
            let slot = operands.iter().position(|&v| v == old).expect("a user uses the value");
            operands[slot] = new;
            self.users[new.0 as usize].push(n);
        }
        self.module.outputs.iter_mut().filter(|o| o.value == old).for_each(|o| o.value = new);
        self.remove_if_dead(old);
    }

    fn remove_if_dead(&mut self, v: ValueId) {
        let mut work = vec![v];
        while let Some(v) = work.pop() {
            let Some(n) = self.def(v).filter(|&n| self.alive[n]) else { continue };
            if !self.users(v).is_empty() || self.is_output(v) {
                continue;
            }
            self.alive[n] = false;
            for operand in self.module.nodes[n].operands.clone() {
                let users = &mut self.users[operand.0 as usize];
                let at = users.iter().position(|&u| u == n).expect("an operand knows its user");
                users.swap_remove(at);
                work.push(operand);
            }
        }
    }

    /// Tries a rule on a node; what a rule leaves unused is removed again.
    fn attempt(&mut self, rule: Rule, n: usize) -> bool {
        let before = self.len();
        let old = self.module.nodes[n].result;
        let new = rule(self, n).filter(|&new| new != old && self.ty(new) == self.ty(old));
        if let Some(new) = new {
            self.replace(old, new);
        }
        for fresh in (before..self.len()).rev() {
            self.remove_if_dead(self.module.nodes[fresh].result);
        }
        new.is_some()
    }

    /// Applies the rules to every node, new ones included, until none fires. `limit` bounds the number of firings.
    pub(crate) fn saturate(&mut self, rules: &[(&'static str, Rule)], limit: usize, fired: &mut Fired) {
        let mut total = 0;
        loop {
            let before = total;
            let mut n = 0;
            while n < self.len() && total < limit {
                let hit = rules.iter().find(|(_, rule)| self.alive[n] && self.attempt(*rule, n));
                match hit {
                    Some((name, _)) => {
                        *fired.entry(name).or_default() += 1;
                        total += 1;
                    }
                    None => n += 1,
                }
            }
            if total == before || total >= limit {
                return;
            }
        }
    }

    /// The module of `stage`: topological order, no dead code, equal nodes and constants merged.
    pub(crate) fn finish(&self, stage: Stage) -> Module {
        let mut out = Rebuild { from: &self.module, to: self.module.successor(stage), ..Rebuild::empty(&self.module) };
        out.run();
        out.to
    }
}

/// Two places as one; a name is not repeated.
pub(crate) fn join(a: Option<Arc<str>>, b: Option<Arc<str>>) -> Option<Arc<str>> {
    let (Some(x), Some(y)) = (&a, &b) else { return a.or(b) };
    let known: Vec<_> = x.split(" + ").collect();
    let added: Vec<_> = y.split(" + ").filter(|p| !known.contains(p)).collect();
    if added.is_empty() { a } else { Some(Arc::from([&known[..], &added[..]].concat().join(" + "))) }
}

struct Rebuild<'a> {
    from: &'a Module,
    to: Module,
    map: Vec<Option<ValueId>>,
    nodes: HashMap<(Op, Vec<ValueId>, TensorType), ValueId>,
    consts: HashMap<(TensorType, ConstKey), ValueId>,
}

/// Small constants are equal when their bytes are; large ones when they are the same bytes in memory.
#[derive(PartialEq, Eq, Hash)]
enum ConstKey {
    Bytes(Vec<u8>),
    Place(usize, usize),
}

fn const_key(c: &Const) -> ConstKey {
    if c.data.len() <= 4096 {
        ConstKey::Bytes(c.data.to_vec())
    } else {
        ConstKey::Place(c.data.as_ptr() as usize, c.data.len())
    }
}

impl<'a> Rebuild<'a> {
    fn empty(from: &'a Module) -> Rebuild<'a> {
        Rebuild {
            from,
            to: Module::new("", from.stage),
            map: vec![None; from.values.len()],
            nodes: HashMap::new(),
            consts: HashMap::new(),
        }
    }

    fn run(&mut self) {
        self.to.lanes = self.from.lanes.clone();
        for input in &self.from.inputs {
            let v = self.to.input(input.name.clone(), self.from.ty(input.value).clone());
            self.map[input.value.0 as usize] = Some(v);
        }
        for output in &self.from.outputs {
            let v = self.visit(output.value);
            self.to.output(output.name.clone(), v);
        }
    }

    /// Depth first, operands before results, without recursion.
    fn visit(&mut self, root: ValueId) -> ValueId {
        let mut work = vec![root];
        while let Some(&v) = work.last() {
            if self.map[v.0 as usize].is_some() {
                work.pop();
                continue;
            }
            let operands = self.from.node_of(v).map_or(&[][..], |n| &n.operands);
            let missing = operands.iter().rev().filter(|o| self.map[o.0 as usize].is_none());
            let waiting = work.len();
            work.extend(missing);
            if work.len() == waiting {
                self.map[v.0 as usize] = Some(self.copy(v));
                work.pop();
            }
        }
        self.map[root.0 as usize].expect("visited")
    }

    fn copy(&mut self, v: ValueId) -> ValueId {
        match self.from.values[v.0 as usize].def {
            Def::Input(i) => self.to.inputs[i].value,
            Def::Const(c) => self.copy_const(&self.from.consts[c]),
            Def::Node(n) => self.copy_node(&self.from.nodes[n]),
        }
    }

    fn copy_const(&mut self, c: &Const) -> ValueId {
        let key = (c.ty.clone(), const_key(c));
        if let Some(&known) = self.consts.get(&key).filter(|_| c.layout.is_none()) {
            return known;
        }
        let v = self.to.constant(c.clone());
        self.consts.insert(key, v);
        v
    }

    fn copy_node(&mut self, node: &Node) -> ValueId {
        let operands: Vec<_> = node.operands.iter().map(|o| self.map[o.0 as usize].expect("operands first")).collect();
        let ty = self.from.ty(node.result).clone();
        let key = (node.op.clone(), operands.clone(), ty.clone());
        if let Some(&known) = self.nodes.get(&key) {
            if let Def::Node(n) = self.to.values[known.0 as usize].def {
                self.to.nodes[n].loc = join(self.to.nodes[n].loc.take(), node.loc.clone());
            }
            return known;
        }
        let v = self.to.push_typed(node.op.clone(), &operands, ty, node.loc.clone());
        self.nodes.insert(key, v);
        v
    }
}
