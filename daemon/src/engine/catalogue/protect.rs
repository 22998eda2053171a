//! Which disks and snapshots are protected, in the catalogue.
//!
//! Invariants: a record is there exactly as long as the protection.
//! Absent: what protection means (`engine/protect.rs`).

use super::Catalogue;

impl Catalogue {
    /// Protects an object, or no longer.
    pub fn set_protected(&mut self, object: &str, on: bool) {
        self.dirty.insert(format!("protect/{object}"));
        if on {
            self.protected.insert(object.to_owned());
        } else {
            self.protected.remove(object);
        }
    }

    #[must_use]
    pub fn is_protected(&self, object: &str) -> bool {
        self.protected.contains(object)
    }
}
