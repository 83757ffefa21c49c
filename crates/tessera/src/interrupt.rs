//! Ctrl-C: a request to stop where something listens, else the end of the program.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// The shell's exit status of a command that Ctrl-C ended: 128 + SIGINT.
pub const EXIT_STATUS: u8 = 130;

/// What a second Ctrl-C does while the first is still being obeyed.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Second {
    Ends = 1,
    Waits = 2,
}

/// The error of a command that stopped because of Ctrl-C, having said all there was to say.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// While this lives, Ctrl-C only sets what [`stopped`] tells.
#[must_use]
pub struct Listening(());

const NOBODY: u8 = 0;
static LISTENER: AtomicU8 = AtomicU8::new(NOBODY);
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Takes over Ctrl-C for the whole process; once, at the start.
pub fn install() {
    let handler = || {
        let listener = LISTENER.load(Ordering::Relaxed);
        let is_second = STOPPED.swap(true, Ordering::Relaxed);
        if listener == NOBODY || (is_second && listener == Second::Ends as u8) {
            if std::io::stderr().is_terminal() {
                eprintln!(); // after ^C, and a progress bar perhaps
            }
            std::process::exit(EXIT_STATUS.into());
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::warn!("Ctrl-C will end the program at once: {error}");
    }
}

/// Begins to listen, with a clean slate.
pub fn listen(second: Second) -> Listening {
    STOPPED.store(false, Ordering::Relaxed);
    LISTENER.store(second as u8, Ordering::Relaxed);
    Listening(())
}

/// Whether Ctrl-C was pressed since somebody began to listen.
pub fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENER.store(NOBODY, Ordering::Relaxed);
    }
}
