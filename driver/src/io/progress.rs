//! A progress bar on standard error: shown only on a terminal and when not told to be quiet.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// Progress of one long piece of work; the bar disappears when dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar of `total` steps named `label`; hidden when `quiet` or when standard error is not a terminal.
    pub fn new(label: &str, total: usize, quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total as u64), target).with_message(label.to_owned());
        // The template is fixed; were it wrong, the default style would do.
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar }
    }

    /// Counts `steps` more as done.
    pub fn advance(&self, steps: usize) {
        self.bar.inc(steps as u64);
    }

    /// Renames the work in hand.
    pub fn label(&self, label: &str) {
        self.bar.set_message(label.to_owned());
    }

    /// Prints a line above the bar, or plainly to standard error where no bar is shown.
    pub fn note(&self, line: &str) {
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// Steps done so far.
    pub fn done(&self) -> usize {
        self.bar.position() as usize
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_while_hidden() {
        let progress = Progress::new("calibrate", 3, true);
        progress.advance(1);
        progress.label("calibrate again");
        progress.advance(2);
        assert_eq!(progress.done(), 3);
        assert!(progress.bar.is_hidden());
        assert_eq!(progress.bar.message(), "calibrate again");
    }

    #[test]
    fn the_template_is_valid() {
        assert!(ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}").is_ok());
    }
}
