//! A copy of a disk that is large and full, for those who have not the room for one: of its chunks one is there, which
//! is the last of the disk and the first ones, with which the background begins.
//!
//! Invariants: header and table are what FORMAT-VAULT.md says, written without any code of the daemon.
//! Absent: all other chunks.

use std::fs;
use std::path::Path;

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

/// Bytes of the disk.
pub const DISK: u64 = 1 << 40;
/// Bytes of blocks in a chunk.
pub const CHUNK: u64 = 4 << 20;
const CHUNK_BLOCKS: u32 = 1024;
const CHUNKS: u32 = 1 << 18;
/// So many chunks at the beginning are there.
const FIRST: u32 = 256;
/// Rows in a part of the table.
const ROWS: usize = 4096;

/// The form of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it was before there were parts.
    OnePiece,
    Parts,
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("32 bytes")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The rows of the table. The last chunk and the first ones are that one, the others have sums of nothing.
struct Rows {
    chunks: Vec<[u8; 44]>,
    pieces: Vec<[u8; 20]>,
}

fn rows(there: [u8; 32], stored: u32) -> Rows {
    let chunk = |number: u32| {
        let is_there = !(FIRST..CHUNKS - 1).contains(&number);
        let sum = if is_there { there } else { sha256(&number.to_le_bytes()) };
        let mut row = [0; 44];
        row[4..36].copy_from_slice(&sum);
        row[36..40].copy_from_slice(&(CHUNK_BLOCKS * 4096).to_le_bytes());
        row[40..].copy_from_slice(&stored.to_le_bytes());
        row
    };
    let piece = |number: u32| {
        let mut row = [0; 20];
        row[..8].copy_from_slice(&u64::from(number * CHUNK_BLOCKS).to_le_bytes());
        row[8..12].copy_from_slice(&CHUNK_BLOCKS.to_le_bytes());
        row[12..16].copy_from_slice(&number.to_le_bytes());
        row
    };
    Rows { chunks: (0..CHUNKS).map(chunk).collect(), pieces: (0..CHUNKS).map(piece).collect() }
}

fn head(magic: &[u8; 8], owner: &str) -> Vec<u8> {
    let mut head = magic.to_vec();
    let length = u32::try_from(owner.len()).expect("a short id");
    for number in [1, CHUNKS, CHUNKS, length] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    head.extend_from_slice(owner.as_bytes());
    head
}

fn pack(raw: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(raw, 3).expect("it compresses")
}

/// The object of a table in one piece, and the bytes in it.
fn one_piece(owner: &str, rows: &Rows) -> (Vec<u8>, usize) {
    let raw = [head(b"ROWDTAB1", owner), rows.chunks.concat(), rows.pieces.concat()].concat();
    (pack(&raw), raw.len())
}

/// The object of a table in parts, and its root.
fn parts(owner: &str, rows: &Rows) -> (Vec<u8>, Vec<u8>) {
    let (mut root, mut rest) = (head(b"ROWDTAB2", owner), Vec::new());
    let mut part = |first: &[u8], raw: &[u8], contents: &[u8]| {
        let packed = pack(raw);
        root.extend_from_slice(first);
        root.extend_from_slice(&u32::try_from(packed.len()).expect("a part").to_le_bytes());
        root.extend_from_slice(&sha256(&packed));
        root.extend_from_slice(&sha256(contents));
        rest.extend_from_slice(&packed);
    };
    for chunks in rows.chunks.chunks(ROWS) {
        let without_owners: Vec<u8> = chunks.iter().flat_map(|row| row[4..].to_vec()).collect();
        part(&[], &chunks.concat(), &without_owners);
    }
    for pieces in rows.pieces.chunks(ROWS) {
        part(&pieces[0][..8], &pieces.concat(), &pieces.concat());
    }
    ([root.clone(), rest].concat(), root)
}

/// Makes a plain copy of 4 MiB one of a disk without a hole, whose last 4 MiB are those. `repository` is where its
/// objects are. Returns the bytes of the table.
pub fn enlarge(repository: &Path, copy: &str, form: Form) -> u64 {
    let one = |dir: &Path| {
        let mut found =
            fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("it").path());
        found.next().expect("something is there")
    };
    let chunk = one(&repository.join("chunks").join(copy));
    let name = chunk.file_name().and_then(|name| name.to_str()).expect("a sum");
    let byte = |at: usize| u8::from_str_radix(&name[2 * at..2 * at + 2], 16).expect("digits");
    let stored = u32::try_from(fs::metadata(&chunk).expect("it").len()).expect("a chunk");
    let rows = rows(std::array::from_fn(byte), stored);
    let headers = fs::read_dir(repository.join("copies")).expect("copies");
    let mut headers = headers.map(|entry| entry.expect("a header").path());
    let header =
        headers.find(|path| path.display().to_string().contains(copy)).expect("its header");
    let text = fs::read_to_string(&header).expect("text");
    let mut record: Value =
        serde_json::from_str(text.lines().next().expect("a line")).expect("a record");
    record["size"] = json!(DISK);
    record["data_bytes"] = json!(DISK);
    let (object, raw) = one_piece(copy, &rows);
    record["table_raw"] = json!(raw);
    let object = match form {
        Form::OnePiece => {
            record["version"] = json!(1);
            record.as_object_mut().expect("a record").remove("parts");
            object
        }
        Form::Parts => {
            let (object, root) = parts(copy, &rows);
            record["version"] = json!(3);
            let sum = hex(&sha256(&root));
            record["parts"] = json!({ "rows": ROWS, "root": root.len(), "root_sum": sum });
            object
        }
    };
    record["table_sum"] = json!(hex(&sha256(&object)));
    record["table_stored"] = json!(object.len());
    fs::write(repository.join("tables").join(copy), &object).expect("write the table");
    let line = record.to_string();
    fs::write(&header, format!("{line}\n{}\n", hex(&sha256(line.as_bytes())))).expect("write it");
    object.len() as u64
}
