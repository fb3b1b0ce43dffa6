//! The doors of the `vitc` command: whatever it reads from files or prints passes through here.
//!
//! Every reader bounds what it allocates by what the file justifies, returns an error that names the file and says
//! what to do, and never panics on hostile bytes. Every writer leaves either the whole file or nothing.
#![forbid(unsafe_code)]

pub mod atomic;
pub mod image;
pub mod labels;
pub mod npy;
pub mod progress;
mod resample;
pub mod table;

use anyhow::{Context, Result, bail};
use std::path::Path;

/// Reads a regular file of at most `limit` bytes; `what` names the kind of file in errors.
fn read_bounded(path: &Path, limit: u64, what: &str) -> Result<Vec<u8>> {
    let shown = path.display();
    let meta = std::fs::metadata(path).with_context(|| format!("cannot open {what} '{shown}'; check the path"))?;
    if !meta.is_file() {
        bail!("'{shown}' is not a regular file; give the path of {what}");
    }
    if meta.len() > limit {
        bail!("'{shown}' has {} bytes, more than the {limit} allowed for {what}; give a smaller file", meta.len());
    }
    std::fs::read(path).with_context(|| format!("cannot read {what} '{shown}'; check its permissions"))
}

/// Joins problems to one message, a line each, and counts those beyond the first twenty.
fn list_problems(problems: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut lines: Vec<String> = problems.iter().take(SHOWN).map(|p| format!("\n  {p}")).collect();
    if problems.len() > SHOWN {
        lines.push(format!("\n  ... and {} more", problems.len() - SHOWN));
    }
    lines.concat()
}
