//! The progress bar.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

use crate::bulk::Progress;

/// A bar on standard error where that is a terminal, otherwise nothing.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar for a job of this name.
    #[must_use]
    pub fn new(job: &'static str) -> Self {
        Self::with_template(job, "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}")
    }

    /// A bar for a job that counts tokens.
    #[must_use]
    pub fn of_tokens(job: &'static str) -> Self {
        Self::with_template(job, "{prefix} {wide_bar} {human_pos}/{human_len} tokens {per_sec} {eta} {msg}")
    }

    fn with_template(job: &'static str, template: &str) -> Self {
        if !stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::new(0).with_style(style).with_prefix(job))
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn begin(&self, total: u64) {
        self.0.set_length(total);
    }

    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn note(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }
}
