//! What the client makes of replies, sound and broken. A peer on a socket pair says exactly what
//! each test wants it to say.

use super::*;

/// A client in transmission, and the far end of its connection.
fn connected(size: u64) -> (Nbd, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    let export = Export {
        size,
        flags: Export::SEND_FLUSH,
        request_max: None,
        structured: true,
        allocation: Some(5),
    };
    (Nbd { stream: near, export, pending: VecDeque::new(), last_cookie: 0 }, far)
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    let mut bytes = SIMPLE_MAGIC.to_be_bytes().to_vec();
    bytes.extend(error.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes
}

fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = STRUCTURED_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn data(at: u64, bytes: &[u8]) -> Vec<u8> {
    [&at.to_be_bytes(), bytes].concat()
}

fn hole(at: u64, length: u32) -> Vec<u8> {
    [at.to_be_bytes().as_slice(), &length.to_be_bytes()].concat()
}

fn extents(context: u32, list: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = context.to_be_bytes().to_vec();
    for (length, state) in list {
        bytes.extend(length.to_be_bytes());
        bytes.extend(state.to_be_bytes());
    }
    bytes
}

/// A read of 8 bytes at 100, answered like this.
fn read_answered(replies: &[Vec<u8>]) -> Result<Finished> {
    let (mut nbd, mut far) = connected(1 << 20);
    nbd.start_read(100, 8).unwrap();
    far.write_all(&replies.concat()).unwrap();
    nbd.finish()
}

fn is_broken<T: std::fmt::Debug>(result: Result<T>) -> bool {
    result.unwrap_err().kind() == Some(ErrorKind::Internal)
}

#[test]
fn a_request_has_the_bytes_of_the_specification() {
    let (mut nbd, mut far) = connected(1 << 20);
    nbd.start_write(0x1000, b"hello").unwrap();
    let mut bytes = [0; 33];
    far.read_exact(&mut bytes).unwrap();
    let expected = [
        [0x25, 0x60, 0x95, 0x13].as_slice(),
        &[0, 0, 0, 1],
        &1u64.to_be_bytes(),
        &0x1000u64.to_be_bytes(),
        &5u32.to_be_bytes(),
        b"hello",
    ];
    assert_eq!(bytes.as_slice(), expected.concat());
}

#[test]
fn a_read_is_put_together_from_its_chunks_in_any_order() {
    let finished = read_answered(&[
        chunk(0, CHUNK_DATA, 1, &data(106, b"gh")),
        chunk(0, CHUNK_DATA, 1, &data(100, b"ab")),
        chunk(0, CHUNK_HOLE, 1, &hole(102, 4)),
        chunk(CHUNK_DONE, CHUNK_NONE, 1, &[]),
    ]);
    let data = b"ab\0\0\0\0gh".to_vec();
    assert_eq!(finished, Ok(Finished::Read { offset: 100, data }));
}

#[test]
fn replies_out_of_order_are_finished_in_order() {
    let (mut nbd, mut far) = connected(1 << 20);
    for offset in [0, 8, 16] {
        nbd.start_read(offset, 1).unwrap();
    }
    for (cookie, at, byte) in [(3, 16, b"c"), (1, 0, b"a"), (2, 8, b"b")] {
        far.write_all(&chunk(CHUNK_DONE, CHUNK_DATA, cookie, &data(at, byte))).unwrap();
    }
    for (offset, byte) in [(0, b"a"), (8, b"b"), (16, b"c")] {
        let data = byte.to_vec();
        assert_eq!(nbd.finish(), Ok(Finished::Read { offset, data }));
    }
    assert_eq!(nbd.in_flight(), 0);
}

#[test]
fn a_read_that_does_not_get_all_its_bytes_fails() {
    assert!(is_broken(read_answered(&[chunk(CHUNK_DONE, CHUNK_DATA, 1, &data(100, b"abcd"))])));
    assert!(is_broken(read_answered(&[chunk(CHUNK_DONE, CHUNK_NONE, 1, &[])])));
}

#[test]
fn data_outside_of_the_question_is_refused() {
    for at in [99, 101, 0, u64::MAX] {
        let reply = chunk(CHUNK_DONE, CHUNK_DATA, 1, &data(at, b"abcdefgh"));
        assert!(is_broken(read_answered(&[reply])), "{at}");
    }
    let hole = chunk(CHUNK_DONE, CHUNK_HOLE, 1, &hole(100, u32::MAX));
    assert!(is_broken(read_answered(&[hole])));
}

#[test]
fn the_same_data_twice_does_not_count_for_other_data() {
    assert!(is_broken(read_answered(&[
        chunk(0, CHUNK_DATA, 1, &data(100, b"abcdef")),
        chunk(CHUNK_DONE, CHUNK_DATA, 1, &data(100, b"abcdef")),
    ])));
}

#[test]
fn replies_that_answer_nothing_end_the_connection() {
    assert!(is_broken(read_answered(&[simple(0, 1)])), "a simple reply to a read");
    assert!(is_broken(read_answered(&[chunk(CHUNK_DONE, CHUNK_NONE, 2, &[])])), "no such cookie");
    assert!(is_broken(read_answered(&[b"NONSENSE".to_vec()])), "no magic");
    assert!(is_broken(read_answered(&[chunk(CHUNK_DONE, 99, 1, &[])])), "no such chunk");
}

#[test]
fn errors_carry_their_meaning_and_the_words_of_the_server() {
    let payload = [5u32.to_be_bytes().as_slice(), &3u16.to_be_bytes(), b"bad"].concat();
    let failure = read_answered(&[chunk(CHUNK_DONE, CHUNK_ERROR | 1, 1, &payload)]).unwrap_err();
    assert_eq!(failure.kind(), Some(ErrorKind::Io));
    let Failure::Told(body) = failure else { panic!("{failure:?}") };
    assert_eq!(body.message, "NBD read at offset 100: input/output error: bad");
    let (mut nbd, mut far) = connected(1 << 20);
    nbd.start_write(0, b"x").unwrap();
    far.write_all(&simple(28, 1)).unwrap();
    assert_eq!(nbd.finish().unwrap_err().kind(), Some(ErrorKind::NoSpace));
}

/// After an error in one request the connection still serves the others.
#[test]
fn an_error_of_one_request_is_not_the_end_of_the_next() {
    let (mut nbd, mut far) = connected(1 << 20);
    nbd.start_read(0, 1).unwrap();
    nbd.start_read(8, 1).unwrap();
    far.write_all(&simple(5, 1)).unwrap();
    far.write_all(&chunk(CHUNK_DONE, CHUNK_DATA, 2, &data(8, b"b"))).unwrap();
    assert_eq!(nbd.finish().unwrap_err().kind(), Some(ErrorKind::Io));
    assert_eq!(nbd.finish(), Ok(Finished::Read { offset: 8, data: b"b".to_vec() }));
}

#[test]
fn extents_are_cut_to_the_question() {
    let (mut nbd, mut far) = connected(1 << 20);
    let list = [(4096, 0), (8192, 3), (1 << 30, 0), (4096, 0)];
    far.write_all(&chunk(CHUNK_DONE, CHUNK_STATUS, 1, &extents(5, &list))).unwrap();
    let told = nbd.status(0, 16384).unwrap();
    let expected = [(4096, false), (8192, true), (4096, false)];
    assert_eq!(told, expected.map(|(length, zero)| Extent { length, zero }));
}

#[test]
fn extents_that_lead_nowhere_are_refused() {
    for reply in [
        chunk(CHUNK_DONE, CHUNK_STATUS, 1, &extents(5, &[(0, 0)])),
        chunk(CHUNK_DONE, CHUNK_STATUS, 1, &extents(6, &[(4096, 0)])),
        chunk(CHUNK_DONE, CHUNK_STATUS, 1, &extents(5, &[])),
        chunk(CHUNK_DONE, CHUNK_NONE, 1, &[]),
    ] {
        let (mut nbd, mut far) = connected(1 << 20);
        far.write_all(&reply).unwrap();
        assert!(is_broken(nbd.status(0, 4096)), "{reply:?}");
    }
}

#[test]
fn a_server_that_hangs_up_is_unreachable() {
    let (mut nbd, far) = connected(1 << 20);
    nbd.start_read(0, 1).unwrap();
    drop(far);
    assert_eq!(nbd.finish().unwrap_err().kind(), Some(ErrorKind::Unreachable));
}
