//! Progress of long work: a bar on stderr where that is a terminal; of writes, with Ctrl-C as a request to stop.

use std::ops::ControlFlow;

use indicatif::{ProgressBar, ProgressStyle};

use crate::interrupt::{self, Listening, Second};

/// A bar of steps; hidden where stderr is no terminal.
pub fn steps(template: &str, n: usize) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a fixed template");
    ProgressBar::new(n as u64).with_style(style.progress_chars("=> "))
}

/// A bar of bytes; hidden where stderr is no terminal.
pub struct BytesDone {
    bar: ProgressBar,
    _listening: Listening,
}

impl BytesDone {
    /// Shows the bar and, until it is dropped, turns Ctrl-C into a `Break` of the work.
    pub fn start(verb: &'static str) -> Self {
        let template = "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = steps(template, 0).with_message(verb);
        Self { bar, _listening: interrupt::listen(Second::Ends) }
    }

    pub fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
        self.bar.set_length(total);
        self.bar.set_position(done);
        if interrupt::stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
