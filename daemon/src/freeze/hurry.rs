//! How the kernel waits for all processors while it freezes: three times ten milliseconds and more as a rule,
//! microseconds with `rcu_expedited`.
//!
//! Invariants: what an administrator has turned on stays on; what was turned on here is off again when everything is
//! frozen or thawed, whoever dies: the record of a freeze says that it was off before. Only before the first freeze is a
//! file opened. The helper is built of this file too, without the library.
//! Absent: kernels without the setting, and sandboxes that forbid it. A freeze takes longer there.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

const FILE: &str = "/sys/kernel/rcu_expedited";

/// Whether it is there, and nobody has turned it on.
#[must_use]
pub fn is_off() -> bool {
    fs::read_to_string(FILE).is_ok_and(|text| text.trim() == "0")
}

/// Turns it off in place of one that died.
///
/// # Errors
/// It cannot be written.
pub fn undo() -> io::Result<()> {
    fs::write(FILE, "0")
}

/// The setting, while this process has it on.
#[derive(Debug, Default)]
pub struct Hurry(Option<File>);

impl Hurry {
    /// Turns it on, unless somebody has.
    pub fn begin(&mut self) {
        if is_off() {
            // What is refused is no reason not to freeze.
            let file = File::options().write(true).open(FILE);
            self.0 = file.and_then(|file| file.write_all_at(b"1", 0).map(|()| file)).ok();
        }
    }

    /// Turns it off again.
    pub fn end(&mut self) {
        if let Some(file) = self.0.take() {
            // As it could be turned on it can be turned off; the record brings it to the next start otherwise.
            let _off = file.write_all_at(b"0", 0);
        }
    }
}
