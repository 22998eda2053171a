//! Quiet file systems and applications around a cut.
//!
//! Absent: everything but what an application is told.

mod child;
pub mod hook;
pub mod script;
#[cfg(test)]
mod testing;
