//! The local side of a copy: finding data, and files that appear whole or not at all.

use super::*;

#[test]
fn runs_of_data_leave_out_whole_blocks_of_zeros() {
    let mut data = vec![0u8; 5 * BLOCK + 10];
    data[0] = 1;
    data[2 * BLOCK + 5] = 1;
    data[4 * BLOCK - 1] = 1;
    data[5 * BLOCK + 9] = 1;
    let runs: Vec<(usize, usize)> = data_runs(&data).map(|(from, run)| (from, run.len())).collect();
    assert_eq!(runs, [(0, BLOCK), (2 * BLOCK, 2 * BLOCK), (5 * BLOCK, 10)]);
}

#[test]
fn zeros_alone_make_no_run() {
    assert_eq!(data_runs(&[]).count(), 0);
    assert_eq!(data_runs(&[0; 3 * BLOCK + 1]).count(), 0);
}

#[test]
fn holes_of_a_source_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"x", 32 << 20).unwrap();
    let source = Source::open(&path).unwrap();
    assert_eq!(source.size, 64 << 20);
    let (start, end) = source.next_data(0).unwrap().unwrap();
    assert!(start <= 32 << 20 && end > 32 << 20, "{start}..{end}");
    // A file system without holes may call all of it data, but then it must reach the end.
    assert!(source.next_data(end).unwrap().is_none() || end < source.size);
}

#[test]
fn a_source_that_became_shorter_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, [1; 8192]).unwrap();
    let source = Source::open(&path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let failure = source.read(&mut [0; 8192], 0).unwrap_err();
    assert_eq!(failure.kind(), Some(ErrorKind::Io));
}

#[test]
fn a_part_that_is_not_finished_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out.img");
    drop(Part::create(&target, 4096).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_finished_part_has_its_name_and_size() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out.img");
    let part = Part::create(&target, 8192).unwrap();
    assert!(!target.exists());
    (&mut &part.file).put(4096, b"x").unwrap();
    part.finish(&target, false).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().len(), 8192);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Somebody makes the target while the export runs: it must not be lost.
#[test]
fn a_file_that_appeared_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out.img");
    let part = Part::create(&target, 4096).unwrap();
    fs::write(&target, "precious").unwrap();
    assert_eq!(part.finish(&target, false).unwrap_err().kind(), Some(ErrorKind::Exists));
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    Part::create(&target, 4096).unwrap().finish(&target, true).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().len(), 4096);
}

#[test]
fn only_a_regular_file_is_ever_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let failure = refuse_existing(dir.path(), true).unwrap_err();
    assert_eq!(failure.kind(), Some(ErrorKind::Exists));
    assert!(refuse_existing(Path::new("/dev/null"), true).is_err());
    assert!(refuse_existing(&dir.path().join("new"), false).is_ok());
}
