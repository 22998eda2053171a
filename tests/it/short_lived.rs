//! Data that does not live long: what is replaced before anybody asks for it to be durable.
//!
//! Absent: when exactly the device begins (`pool/behind.rs` has tests of its own), and how fast it is (`make bench`).

use std::time::{Duration, Instant};

use rowd_tests::client::Client;
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::wait;

const PIECE: usize = 1 << 20;
const PIECES: u64 = 16;
/// Small segments, so that little is written before the first is written again.
const POOL: &str = "[pool]\nsegment = \"4MiB\"\nhost_reserve = \"64MiB\"\n";

/// A client that overwrites the same 16 MiB over and over, and how much of it becomes work for the device.
struct Rewriter<'a> {
    daemon: &'a Daemon,
    client: Client,
    data: Vec<u8>,
}

impl Rewriter<'_> {
    /// Overwrites for a while; the bytes written, and those that the kernel had to take note of for writeback: a page that
    /// waits for it already is not counted again.
    fn rewrite(&mut self) -> (u64, u64) {
        let (began, before) = (Instant::now(), self.for_writeback());
        let mut written = 0;
        while began.elapsed() < Duration::from_secs(1) {
            for piece in 0..PIECES {
                self.client.write(piece * PIECE as u64, &self.data);
                written += PIECE as u64;
            }
        }
        (written, self.for_writeback() - before)
    }

    fn for_writeback(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/io", self.daemon.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("write_bytes:"));
        line.unwrap_or_else(|| panic!("no write_bytes in {text}")).trim().parse().unwrap()
    }
}

/// What a client replaces at once stays in memory, and is on the device when somebody asks for it.
#[test]
fn data_that_is_replaced_at_once_hardly_reaches_the_device() {
    let daemon = Setup::default().config(POOL).start();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    let client = Client::connect(&daemon.nbd_socket(), "disk");
    let mut rewriter = Rewriter { daemon: &daemon, client, data: vec![7; PIECE] };
    wait::until("most data stays in memory", || {
        let (written, for_writeback) = rewriter.rewrite();
        println!("{for_writeback} of {written} bytes are for the device");
        assert!(for_writeback > 0, "the pool of the test is on a file system in memory");
        (for_writeback < written / 5).then_some(())
    });
    // Who asks for a sync finds that nothing is held back from then on.
    rewriter.client.flush();
    let (written, for_writeback) = rewriter.rewrite();
    assert!(for_writeback > written / 5, "{for_writeback} of {written} bytes are for the device");
}
