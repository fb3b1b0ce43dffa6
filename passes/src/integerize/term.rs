//! The e-graph language: graph ops as terms whose first child carries the attributes.
//!
//! A node `matmul %a, %b {..}` is the term `(matmul ?m a b)`, where `?m` is a leaf with the op, its attributes and the
//! quantization of the result. Patterns bind that leaf like any other child, so rules are written as s-expressions.

use std::fmt;

use egg::{FromOp, Id, Language};
use vitc_ir::{OpInfo, Quant, ValueId};

/// A term.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Term {
    /// A value that is not computed here: an input of the region, or a constant.
    Value(ValueId),
    /// Attributes of an application: the op, and the quantization of its result.
    Attrs(Box<Attrs>),
    /// An application: the op's name, then `[attributes, operands...]`.
    Apply(&'static str, Vec<Id>),
}

/// What an application carries besides its operands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attrs {
    /// The op with its attributes.
    pub op: vitc_ir::Op,
    /// Quantization of the result; `None` for floats and for movement, which passes its operand's on.
    pub quant: Option<Quant>,
}

/// What decides whether two terms can match: the kind, and for applications the op's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A [`Term::Value`].
    Value,
    /// A [`Term::Attrs`].
    Attrs,
    /// A [`Term::Apply`] of that op.
    Apply(&'static str),
}

impl Language for Term {
    type Discriminant = Kind;

    fn discriminant(&self) -> Kind {
        match self {
            Term::Value(_) => Kind::Value,
            Term::Attrs(_) => Kind::Attrs,
            Term::Apply(name, _) => Kind::Apply(name),
        }
    }

    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Term::Apply(a, xs), Term::Apply(b, ys)) => a == b && xs.len() == ys.len(),
            (Term::Value(a), Term::Value(b)) => a == b,
            (Term::Attrs(a), Term::Attrs(b)) => a == b,
            _ => false,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            Term::Apply(_, children) => children,
            _ => &[],
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            Term::Apply(_, children) => children,
            _ => &mut [],
        }
    }
}

impl FromOp for Term {
    type Error = String;

    fn from_op(op: &str, children: Vec<Id>) -> Result<Term, String> {
        let info: &OpInfo =
            vitc_ir::op::OPS.iter().find(|o| o.name == op).ok_or_else(|| format!("there is no op `{op}`"))?;
        Ok(Term::Apply(info.name, children))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Term::Value(v) => write!(f, "%{}", v.0),
            Term::Attrs(a) => write!(f, "<{}>", a.op.name()),
            Term::Apply(name, _) => f.write_str(name),
        }
    }
}
