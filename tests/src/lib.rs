//! Witnesses: tests that cross a crate.
