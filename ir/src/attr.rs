//! Attributes of ops: the few kinds of values they may have, and the conversion to and from the text form.

use crate::types::{Dim, Elem, Real, Shape};

/// An attribute value as the printer and the parser see it.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrValue {
    /// An integer, `-3`.
    Int(i64),
    /// A real number, printed as an exact hexadecimal float, `0x1.8p-3`.
    Real(f64),
    /// A batch-scaled dimension, `N` or `3N`.
    Dim(Dim),
    /// A word: a boolean, an element type, a variant (`erf`).
    Word(String),
    /// A reference to a named thing of the module, `@name`.
    Symbol(String),
    /// A list, `[1, 2]`.
    List(Vec<AttrValue>),
}

/// A Rust type that can be an attribute.
pub trait Attr: Sized {
    /// What the docs page calls values of this type.
    const KIND: &'static str;
    /// The text-level value.
    fn to_value(&self) -> AttrValue;
    /// The attribute from its text-level value; `None` when it is of another kind or out of range.
    fn from_value(value: &AttrValue) -> Option<Self>;
}

impl Attr for i64 {
    const KIND: &'static str = "integer";
    fn to_value(&self) -> AttrValue {
        AttrValue::Int(*self)
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::Int(v) => Some(*v),
            _ => None,
        }
    }
}

impl Attr for usize {
    const KIND: &'static str = "count";
    fn to_value(&self) -> AttrValue {
        AttrValue::Int(i64::try_from(*self).unwrap_or(i64::MAX))
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        i64::from_value(value).and_then(|v| usize::try_from(v).ok())
    }
}

impl Attr for u32 {
    const KIND: &'static str = "count";
    fn to_value(&self) -> AttrValue {
        AttrValue::Int(i64::from(*self))
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        i64::from_value(value).and_then(|v| u32::try_from(v).ok())
    }
}

impl Attr for bool {
    const KIND: &'static str = "true or false";
    fn to_value(&self) -> AttrValue {
        AttrValue::Word(self.to_string())
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::Word(w) if w == "true" => Some(true),
            AttrValue::Word(w) if w == "false" => Some(false),
            _ => None,
        }
    }
}

impl Attr for Real {
    const KIND: &'static str = "real";
    fn to_value(&self) -> AttrValue {
        AttrValue::Real(self.0)
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::Real(v) => Some(Real(*v)),
            AttrValue::Int(v) => Some(Real(*v as f64)),
            _ => None,
        }
    }
}

impl Attr for Elem {
    const KIND: &'static str = "element type";
    fn to_value(&self) -> AttrValue {
        AttrValue::Word(self.name().into())
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::Word(w) => Elem::from_name(w),
            _ => None,
        }
    }
}

impl Attr for Dim {
    const KIND: &'static str = "dimension";
    fn to_value(&self) -> AttrValue {
        if self.batch { AttrValue::Dim(*self) } else { self.size.to_value() }
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::Dim(d) => Some(*d),
            _ => usize::from_value(value).map(Dim::fixed),
        }
    }
}

impl Attr for Shape {
    const KIND: &'static str = "shape";
    fn to_value(&self) -> AttrValue {
        self.0.to_value()
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        Vec::from_value(value).map(Shape)
    }
}

impl<T: Attr> Attr for Vec<T> {
    const KIND: &'static str = "list";
    fn to_value(&self) -> AttrValue {
        AttrValue::List(self.iter().map(Attr::to_value).collect())
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::List(items) => items.iter().map(T::from_value).collect(),
            _ => None,
        }
    }
}

impl<T: Attr, const L: usize> Attr for [T; L] {
    const KIND: &'static str = "list of fixed length";
    fn to_value(&self) -> AttrValue {
        AttrValue::List(self.iter().map(Attr::to_value).collect())
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        Vec::from_value(value).and_then(|v: Vec<T>| v.try_into().ok())
    }
}

/// The name of a lane program of the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneName(pub String);

impl Attr for LaneName {
    const KIND: &'static str = "lane program";
    fn to_value(&self) -> AttrValue {
        AttrValue::Symbol(self.0.clone())
    }
    fn from_value(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::Symbol(name) => Some(LaneName(name.clone())),
            _ => None,
        }
    }
}

/// Declares a fieldless enum whose variants are words of the text form.
macro_rules! word_enum {
    ($(#[$meta:meta])* $name:ident, $kind:literal { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// Every variant with its word.
            pub const WORDS: &'static [($name, &'static str)] = &[$(($name::$variant, $word)),+];

            /// The word of the text form.
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl Attr for $name {
            const KIND: &'static str = $kind;
            fn to_value(&self) -> AttrValue {
                AttrValue::Word(self.word().into())
            }
            fn from_value(value: &AttrValue) -> Option<Self> {
                match value {
                    AttrValue::Word(w) => Self::WORDS.iter().find(|(_, s)| s == w).map(|(v, _)| *v),
                    _ => None,
                }
            }
        }
    };
}

word_enum! {
    /// How images lie: which dimensions are channels, height and width.
    ImageLayout, "`nchw` or `nhwc`" {
        /// [N, C, H, W].
        ChannelsFirst = "nchw",
        /// [N, H, W, C].
        ChannelsLast = "nhwc",
    }
}

impl ImageLayout {
    /// The dimension of the channels.
    pub fn channel(self) -> usize {
        match self {
            ImageLayout::ChannelsFirst => 1,
            ImageLayout::ChannelsLast => 3,
        }
    }

    /// The dimensions of height and width.
    pub fn plane(self) -> [usize; 2] {
        match self {
            ImageLayout::ChannelsFirst => [2, 3],
            ImageLayout::ChannelsLast => [1, 2],
        }
    }
}

word_enum! {
    /// Which definition of GELU.
    GeluForm, "`erf` or `tanh`" {
        /// The exact form, `x/2 (1 + erf(x/sqrt 2))`.
        Erf = "erf",
        /// The tanh approximation.
        Tanh = "tanh",
    }
}
