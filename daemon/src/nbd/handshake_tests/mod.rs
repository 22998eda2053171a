//! The handshake as a client sees it: bytes in, bytes out.
//!
//! Every test sends a script, closes its side, and looks at all replies and at what was negotiated.
//! The probes are those that tell existing servers apart: lengths that lie, options out of order, a
//! client that stops at any byte.
//! Absent: real sockets and clients, which the behaviour tests of the whole daemon use.

mod client;
mod limits;
mod options;
