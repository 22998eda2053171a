//! A copy of a disk that is large and full: what has to be read of it before the first block.
//!
//! The copy is written by the tests: nobody has the room for a real one. Of its chunks one is there. How long it takes
//! is measured by `rowd-bench --only lazy`; here the bytes are counted, which are the same on every machine.
//!
//! Absent: large disks with few blocks (`lazy.rs`); tables in parts that the daemon writes (`parts.rs`).

use std::time::Instant;

use rowd::nbd::wire::command;
use rowd_tests::client::{Ask, Client};
use rowd_tests::dense::{CHUNK, DISK, Form, enlarge};
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::tool;

use super::copies::{copied, id, noise, write};
use super::proxy::Proxy;
use super::server::{S3Server, add};

/// What may be read besides the chunk: of the table, the header and the lists of the repository.
const BESIDES: u64 = 512 << 10;

/// A daemon that fills no disk, and a copy of 1 TiB behind a proxy.
struct World {
    daemon: Daemon,
    proxy: Proxy,
    copy: String,
    /// The last chunk of the disk.
    last: Vec<u8>,
    /// Bytes of the table.
    table: u64,
    _server: S3Server,
}

fn world(form: Form) -> World {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address);
    let mut daemon = Setup::default().program(tool::built("rowd-faulty")).prepare();
    let (point, file) = ("fill.begun", daemon.path("hold"));
    let hold = format!("{point}:{file}");
    daemon.change_setup(|setup| setup.env("ROWD_HOLD_POINT", &hold));
    daemon.start();
    add(&daemon, "s3", "host", &proxy.endpoint());
    daemon.ctl(&["disk", "create", "data", "--size", "4MiB"]);
    let last = noise(1, 4 << 20);
    write(&daemon, "data", 0, &last);
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = id(&copied(&daemon, "data@one", "s3")).to_owned();
    let table = enlarge(&server.objects().join("host"), &copy, form);
    World { daemon, proxy, copy, last, table, _server: server }
}

impl World {
    /// Makes a disk and reads a block of its last chunk. Returns the bytes that came from the repository for that.
    fn first_read(&self, name: &str) -> u64 {
        let before = self.proxy.answered();
        let made = self.daemon.json(&["disk", "create", name, "--from", &self.copy]);
        assert_eq!(made["size"], DISK);
        let began = Instant::now();
        let mut client = Client::connect(&self.daemon.nbd_socket(), name);
        assert!(client.read(DISK - 4096, 4096) == self.last[self.last.len() - 4096..]);
        println!("the first read of a full disk of 1 TiB: {:?}", began.elapsed());
        let bytes = self.proxy.answered() - before;
        assert!(client.read(DISK - CHUNK, 4096) == self.last[..4096]);
        client.disconnect();
        bytes
    }
}

/// Promise: before the first read of a disk is answered only a small part of its table is read, however full it is.
#[test]
fn the_first_read_of_a_full_disk_of_1_tib_needs_a_small_part_of_its_table() {
    let world = world(Form::Parts);
    assert!(world.table > 8 << 20, "the table has {} bytes", world.table);
    let bytes = world.first_read("again");
    assert!((CHUNK..CHUNK + BESIDES).contains(&bytes), "{bytes} bytes for one chunk");
    // All of it is read for who wants to know what is stored.
    let before = world.proxy.answered();
    let socket = world.daemon.nbd_socket();
    let mut client = Client::with_contexts(&socket, "again", &["base:allocation"]);
    let ask = Ask { command: command::BLOCK_STATUS, length: 1 << 30, ..Ask::default() };
    assert_eq!(client.ask(ask).error, 0);
    client.disconnect();
    assert!(world.proxy.answered() - before >= world.table);
}

/// Promise: a copy that was made before there were parts is read as well, its table as a whole.
#[test]
fn a_full_disk_of_1_tib_whose_copy_has_a_table_in_one_piece_is_read_too() {
    let world = world(Form::OnePiece);
    let bytes = world.first_read("again");
    assert!(bytes >= CHUNK + world.table, "{bytes} bytes with a table of {}", world.table);
}
