//! FORMAT.md and the bytes: what the document says is what a pool file holds, and its numbers are the code's.
//!
//! Invariants: offsets come from the document, values from a pool that the engine has just made.
//! Absent: the map, whose keys RocksDB shows only through the code that made them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use rowd::engine::Engine;
use rowd::map::reclaim::Step;
use rowd::pool::crc32c;
use rowd::pool::journal::{HEADER_BYTES, Kind, MAX_RECORD, MIN_BYTES};
use rowd::pool::superblock::{
    FAMILY_VERSION, JOURNAL_START, LAZY_VERSION, MAGIC, RETURN_VERSION, SEALED_VERSION, VERSION,
};
use rowd::units::{BLOCK_BYTES, BLOCK_SIZE, LEAF_BLOCKS};

use crate::model::machine::{POOL_BLOCKS, SEGMENT_BLOCKS, settings};

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/FORMAT.md");
    fs::read_to_string(path).unwrap()
}

/// The fields of the first table behind a heading: name, offset, length.
fn fields(document: &str, heading: &str) -> HashMap<String, (usize, usize)> {
    let (_, behind) = document.split_once(heading).expect("the heading is there");
    let table = behind.lines().skip_while(|line| !line.starts_with("| offset | length | field |"));
    let rows = table.skip(2).take_while(|line| line.starts_with('|'));
    let field = |row: &str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        Some((cells[3].to_owned(), (cells[1].parse().ok()?, cells[2].parse().ok()?)))
    };
    rows.filter_map(field).collect()
}

/// A number where the document says it is.
fn number(bytes: &[u8], (offset, length): (usize, usize)) -> u64 {
    let mut wide = [0; 8];
    wide[..length].copy_from_slice(&bytes[offset..offset + length]);
    u64::from_le_bytes(wide)
}

/// The superblock and the first record of a new pool lie as the document says.
#[test]
fn the_bytes_of_a_new_pool_are_those_of_the_document() {
    let dir = tempfile::Builder::new().prefix("rowd-format-").tempdir_in("/dev/shm").unwrap();
    drop(Engine::open(settings(dir.path())).unwrap());
    let pool = fs::read(dir.path().join("pool")).unwrap();
    let text = document();
    let fields_of = |heading| fields(&text, heading);

    let superblock = fields_of("## 2. Superblock");
    let copies = pool[..2 * BLOCK_BYTES].chunks_exact(BLOCK_BYTES);
    let page = copies.max_by_key(|page| number(page, superblock["generation"])).unwrap();
    let (magic, length) = superblock["magic"];
    assert_eq!(page[magic..magic + length], MAGIC);
    let value = |name: &str| number(page, superblock[name]);
    assert_eq!(value("version"), u64::from(VERSION));
    assert_eq!(value("segment_blocks"), SEGMENT_BLOCKS);
    assert_eq!(value("journal_bytes"), 2 << 20);
    assert_eq!(value("max_blocks"), POOL_BLOCKS);
    assert_eq!((value("opening"), value("tail_opening")), (1, 1));
    let (sum, _) = superblock["CRC"];
    assert_eq!(value("CRC"), u64::from(crc32c(&page[..sum])));

    let record = fields_of("### 3.2 Record");
    let first = &pool[usize::try_from(JOURNAL_START).unwrap()..];
    let value = |name: &str| number(first, record[name]);
    assert_eq!(&first[..4], b"ROWJ");
    assert_eq!((value("seq"), value("opening"), value("kind")), (1, 1, Kind::Open as u64));
    let (uuid, _) = superblock["uuid"];
    assert_eq!(value("tag"), number(page, (uuid, 8)));
    let length = usize::try_from(value("length")).unwrap();
    assert_eq!((value("CRC"), length), (u64::from(crc32c(&first[8..length])), HEADER_BYTES));
}

/// The document names the numbers that the code has.
#[test]
fn the_numbers_of_the_document_are_those_of_the_code() {
    let text = document();
    let mib = |bytes: u64| bytes >> 20;
    let mut said = vec![
        format!(
            "# Bytes on disk, formats {VERSION}, {SEALED_VERSION}, {LAZY_VERSION}, {RETURN_VERSION} and {FAMILY_VERSION}\n"
        ),
        format!("| `{}` |", String::from_utf8_lossy(&MAGIC)),
        format!("A *block* is {BLOCK_SIZE} bytes"),
        format!("| {} MiB | `journal_bytes` | journal ring |", mib(JOURNAL_START)),
        format!("a multiple of {BLOCK_SIZE}, at least {} MiB", mib(MIN_BYTES)),
        format!("header and body: {HEADER_BYTES} to {MAX_RECORD}"),
        format!("| {HEADER_BYTES} | `length` − {HEADER_BYTES} | body |"),
        format!("`Step`. {} bytes", Step::BYTES),
        format!("A leaf maps {LEAF_BLOCKS} consecutive blocks"),
    ];
    let kinds = [
        Kind::Open,
        Kind::Mark,
        Kind::Data,
        Kind::Catalogue,
        Kind::Reclaim,
        Kind::Move,
        Kind::Fill,
    ];
    said.extend(kinds.map(|kind| format!("| {} | {kind} |", kind as u32)));
    let missing: Vec<&String> = said.iter().filter(|part| !text.contains(*part)).collect();
    assert!(missing.is_empty(), "FORMAT.md does not say {missing:#?}");
}
