//! Files that commands write.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;

/// Whether a file could be written; leaves what is there as it is.
pub fn check_writable(file: &Path) -> io::Result<()> {
    match OpenOptions::new().append(true).open(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            drop(File::create_new(file)?);
            std::fs::remove_file(file)
        }
        opened => opened.map(drop),
    }
}
