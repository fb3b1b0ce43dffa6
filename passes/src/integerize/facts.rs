//! What is known of every e-class: its type, its constant, the ONNX node it came from.

use std::collections::BTreeMap;
use std::sync::Arc;

use egg::{Analysis, DidMerge, Id};
use vitc_ir::{Const, Module, TensorType, ValueId};

use super::Options;
use super::report::Site;
use super::term::{Attrs, Term};

/// The e-graph of this pass.
pub type EGraph = egg::EGraph<Term, Facts>;

/// The pass's context inside the e-graph: the module, and what rules add to it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The module being lowered; values below `module.values.len()` are its own.
    pub module: Arc<Module>,
    /// What the user asked for.
    pub options: Options,
    /// Constants made by rules; constant `i` is value `module.values.len() + i`.
    pub consts: Vec<Const>,
    /// Decisions on nonlinear sites, in the order met.
    pub sites: Vec<Site>,
    /// How often each rule fired at each ONNX node.
    pub fired_at: BTreeMap<(String, String), usize>,
}

/// Facts of one e-class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Type of the value (quantization included); `None` for attribute leaves.
    pub ty: Option<TensorType>,
    /// The attributes, for attribute leaves.
    pub attrs: Option<Box<Attrs>>,
    /// The value, when it is a constant.
    pub constant: Option<ValueId>,
    /// Names of the ONNX nodes this value came from.
    pub loc: Option<Arc<str>>,
}

impl Facts {
    /// The context of a region, before any rule has fired.
    pub fn new(module: Arc<Module>, options: Options) -> Facts {
        Facts { module, options, consts: Vec::new(), sites: Vec::new(), fired_at: BTreeMap::new() }
    }

    /// The constant behind a value, be it the module's or a rule's.
    pub fn const_of(&self, v: ValueId) -> Option<&Const> {
        let own = self.module.values.len();
        match (v.0 as usize).checked_sub(own) {
            Some(i) => self.consts.get(i),
            None => self.module.const_of(v),
        }
    }

    fn value_type(&self, v: ValueId) -> Option<TensorType> {
        let own = self.module.values.len();
        match (v.0 as usize).checked_sub(own) {
            Some(i) => self.consts.get(i).map(|c| c.ty.clone()),
            None => Some(self.module.ty(v).clone()),
        }
    }
}

impl Analysis<Term> for Facts {
    type Data = Fact;

    fn make(egraph: &mut EGraph, term: &Term, _: Id) -> Fact {
        let none = Fact { ty: None, attrs: None, constant: None, loc: None };
        match term {
            Term::Value(v) => {
                Fact { ty: egraph.analysis.value_type(*v), constant: egraph.analysis.const_of(*v).map(|_| *v), ..none }
            }
            Term::Attrs(attrs) => Fact { attrs: Some(attrs.clone()), ..none },
            Term::Apply(_, children) => Fact { ty: applied_type(egraph, children), ..none },
        }
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        let before = a.clone();
        a.ty = a.ty.take().or(b.ty.clone());
        a.attrs = a.attrs.take().or(b.attrs.clone());
        a.constant = a.constant.or(b.constant);
        a.loc = a.loc.take().or(b.loc.clone());
        DidMerge(*a != before, *a != b)
    }
}

/// The type of an application of `children[0]`'s op to the other children.
pub fn applied_type(egraph: &EGraph, children: &[Id]) -> Option<TensorType> {
    let attrs = egraph[*children.first()?].data.attrs.as_ref()?;
    let operands: Vec<&TensorType> =
        children[1..].iter().map(|&c| egraph[c].data.ty.as_ref()).collect::<Option<_>>()?;
    let mut ty = attrs.op.infer(&operands).ok()?;
    if attrs.quant.is_some() {
        ty.quant = attrs.quant.clone();
    }
    Some(ty)
}
