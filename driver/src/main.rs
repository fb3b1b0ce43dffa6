//! The `vitc` command.
fn main() {}
