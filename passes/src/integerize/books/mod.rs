//! The rule books. Laws are in RULES.md beside this folder's parent.

mod fine_softmax;
pub mod forms;
mod ibert;
pub mod qdq;

use super::rule::Rule;

/// Every graph rule, in the order they are tried.
pub fn all() -> Vec<Rule> {
    [qdq::rules(), forms::rules()].concat()
}
