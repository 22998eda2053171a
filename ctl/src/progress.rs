//! A progress bar for anything over a second, on a terminal.
//!
//! Invariants: nothing is drawn in the first second, on anything but a terminal, or with `-q`; the
//! bar is gone when the work is done.
//! Absent: progress for programs, which poll the job.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work that is done sooner needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Progress {
    what: String,
    begun: Instant,
    wanted: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Progress of some work on bytes.
    pub fn new(what: impl Into<String>, quiet: bool) -> Self {
        let wanted = !quiet && io::stderr().is_terminal();
        Progress { what: what.into(), begun: Instant::now(), wanted, bar: None }
    }

    /// Shows how far the work is.
    pub fn show(&mut self, done: u64, total: u64) {
        if !self.wanted || self.begun.elapsed() < PATIENCE {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| bar(&self.what, self.begun.elapsed()));
        bar.set_length(total);
        bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &str, elapsed: Duration) -> ProgressBar {
    let target = ProgressDrawTarget::stderr();
    let bar = ProgressBar::with_draw_target(Some(0), target).with_elapsed(elapsed);
    let template = "{msg} {wide_bar} {percent:>3} % {binary_bytes}/{binary_total_bytes} \
                    {binary_bytes_per_sec} {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}
