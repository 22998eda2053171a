//! Disks from and to qcow2 files, by qemu-img, which reads or writes the file and an NBD export.
//!
//! Invariants: qemu-img never guesses a format and never opens a file but the one the caller named: a file
//! that refers to others is refused here, by its own header, and opened without what it refers to. It runs as
//! the caller, and ends with this process. A file appears under its name only when it is complete and synced.
//! Absent: the format itself, beyond its header; snapshots inside a qcow2 file, of which the present counts.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rowd_proto::ErrorKind;
use serde_json::{Value, json};

use super::{Interrupt, Part, refuse_existing};
use crate::error::{Failure, Result};
use crate::progress::Progress;

const PROGRAM: &str = "qemu-img";
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The part of the header that is in all versions, and the features of version 3 behind it.
const HEADER_BYTES: usize = 80;
/// Bits of the features that a reader must understand.
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
/// The longest name of a backing file that the format allows.
const BACKING_NAME_MAX: usize = 1023;
/// Of what qemu-img says when it fails; the end of it counts.
const SAID_MAX: usize = 16 << 10;
/// How soon Ctrl-C is noticed.
const GLANCE: Duration = Duration::from_millis(100);

/// An export, as qemu-img is told of it.
#[derive(Debug)]
pub struct Export<'a> {
    pub socket: &'a Path,
    pub name: &'a str,
    pub size: u64,
}

impl Export<'_> {
    fn node(&self) -> Result<Value> {
        let server = json!({"type": "unix", "path": text(self.socket)?});
        Ok(json!({"driver": "nbd", "server": server, "export": self.name}))
    }
}

/// A qcow2 file that stands alone.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    /// Of the disk in it.
    pub size: u64,
}

impl Source {
    /// Looks at a file's header.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e: io::Error| Failure::io(format!("cannot read {}", path.display()), &e);
        let kind = fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let message = format!("{} is neither a file nor a block device", path.display());
            return Err(Failure::invalid(message));
        }
        let file = File::open(path).map_err(failed)?;
        let mut header = [0; HEADER_BYTES];
        let read = file.read_at(&mut header, 0).map_err(failed)?;
        let size =
            standalone_size(&header[..read], |offset, name| file.read_exact_at(name, offset))
                .map_err(|failure| failure.context(path.display()))?;
        let path = std::path::absolute(path).map_err(failed)?;
        Ok(Source { path, size })
    }
}

/// The size of the disk in a file with this header, if it needs no other file. `name_at` reads the name of a
/// backing file.
fn standalone_size(
    header: &[u8],
    name_at: impl FnOnce(u64, &mut [u8]) -> io::Result<()>,
) -> Result<u64> {
    let word = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let long = |at: usize| header.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    let not_one = || {
        Failure::invalid("this is no qcow2 file")
            .hint("formats are never guessed: say --format raw if it is raw")
    };
    if header.get(..4) != Some(&MAGIC) {
        return Err(not_one());
    }
    let version = word(4).ok_or_else(not_one)?;
    let (backing, name_length) = (long(8).ok_or_else(not_one)?, word(16).ok_or_else(not_one)?);
    let (size, crypt) = (long(24).ok_or_else(not_one)?, word(32).ok_or_else(not_one)?);
    let features = match version {
        2 => 0,
        3 => long(72).ok_or_else(not_one)?,
        other => {
            let message = format!("this is qcow2 of version {other}; 2 and 3 are known");
            return Err(Failure::new(ErrorKind::Unsupported, message));
        }
    };
    let alone = "make a file that stands alone: qemu-img convert -O qcow2 FILE NEW";
    if backing != 0 {
        let length = usize::try_from(name_length).unwrap_or(usize::MAX).min(BACKING_NAME_MAX);
        let mut name = vec![0; length];
        let name = match name_at(backing, &mut name) {
            Ok(()) => String::from_utf8_lossy(&name).into_owned(),
            Err(_) => "of unknown name".to_owned(),
        };
        return Err(Failure::invalid(format!(
            "it has only what differs from a backing file, {name:?}"
        ))
        .hint(alone));
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(Failure::invalid("its data are in another file").hint(alone));
    }
    if features & CORRUPT != 0 {
        return Err(Failure::new(ErrorKind::Corrupt, "it is marked as corrupt")
            .hint("look at it with: qemu-img check"));
    }
    if crypt != 0 {
        return Err(Failure::invalid("it is encrypted")
            .hint("decrypt it first: qemu-img convert, with its secret"));
    }
    Ok(size)
}

/// Copies a file to an export that reads as zeros so far. The caller flushes.
pub fn import(
    source: &Source,
    to: &Export<'_>,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    // No backing file whatever the header says by now.
    let file = json!({"driver": "file", "filename": text(&source.path)?});
    let from = json!({"driver": "qcow2", "file": file, "backing": null});
    let mut command = Command::new(PROGRAM);
    command.args(["convert", "-p", "-n", "--target-is-zero", "-W", "-m", "16", "-O", "raw"]);
    command.arg(node(&from)).arg(node(&json!({"driver": "raw", "file": to.node()?})));
    run(command, source.size, progress, interrupt)
}

/// Copies an export to a new file.
pub fn export(
    from: &Export<'_>,
    path: &Path,
    force: bool,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    refuse_existing(path, force)?;
    let part = Part::create(path, 0)?;
    let mut command = Command::new(PROGRAM);
    command.args(["convert", "-p", "-m", "16", "-O", "qcow2"]);
    command.arg(node(&json!({"driver": "raw", "file": from.node()?})));
    // An absolute path is never taken for anything but a path.
    let target = std::path::absolute(&part.path);
    command.arg(target.map_err(|e| Failure::io(format!("cannot find {}", path.display()), &e))?);
    run(command, from.size, progress, interrupt)?;
    part.finish(path, force)
}

/// A description of what to open, as a file name: `json:` followed by it.
fn node(node: &Value) -> String {
    format!("json:{node}")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Failure::invalid(format!("qemu-img cannot be told of {}: not UTF-8", path.display()))
    })
}

/// A child that does not outlive us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended is what is normal.
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("rowctl: cannot end {PROGRAM}: {error}");
        }
    }
}

fn run(
    mut command: Command,
    size: u64,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::new(ErrorKind::Condition, format!("{PROGRAM} is not installed")).hint(
                "install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora), or use --format raw",
            )
        }
        _ => Failure::io(format!("cannot start {PROGRAM}"), &error),
    })?;
    let mut running = Running(child);
    let (sender, receiver) = mpsc::channel();
    let stdout = running.0.stdout.take();
    let stderr = running.0.stderr.take();
    thread::spawn(move || {
        stdout.map(|out| percentages(out, |percent| sender.send(percent).is_ok()))
    });
    let said = thread::spawn(move || stderr.map(all_of).unwrap_or_default());
    loop {
        interrupt.check()?;
        match receiver.recv_timeout(GLANCE) {
            Ok(percent) => progress.show(share(size, percent), size),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let ended = running.0.wait();
    let status = ended.map_err(|e| Failure::io(format!("cannot wait for {PROGRAM}"), &e))?;
    // Ctrl-C reaches both of us.
    interrupt.check()?;
    if status.success() {
        return Ok(());
    }
    let said = said.join().unwrap_or_default();
    let why = said.lines().rfind(|line| !line.trim().is_empty());
    let why = why.map_or_else(|| status.to_string(), |line| line.trim().to_owned());
    let kind = match why.contains("No space left on device") {
        true => ErrorKind::NoSpace,
        false => ErrorKind::Io,
    };
    let why = why.strip_prefix("qemu-img: ").unwrap_or(&why);
    Err(Failure::new(kind, format!("{PROGRAM} failed: {why}")))
}

/// Reads `(12.34/100%)`, again and again, until the end or until nobody listens.
fn percentages(mut from: impl Read, tell: impl Fn(f64) -> bool) {
    let (mut word, mut buffer) = (String::new(), [0; 256]);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        for &byte in &buffer[..count] {
            match byte {
                b'(' => word.clear(),
                b'/' if word.parse().is_ok_and(|percent| !tell(percent)) => return,
                _ if word.len() < buffer.len() => word.push(char::from(byte)),
                _ => {}
            }
        }
    }
}

/// Everything to the end, of which a limited part is kept.
fn all_of(mut from: impl Read) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        kept.drain(..kept.len().saturating_sub(SAID_MAX));
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a length for a progress bar"
)]
fn share(size: u64, percent: f64) -> u64 {
    (size as f64 * percent.clamp(0.0, 100.0) / 100.0) as u64
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A header of version 3 and 1 GiB, with one field changed.
    fn header(at: usize, value: &[u8]) -> Vec<u8> {
        let mut header = vec![0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[7] = 3;
        header[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        header[at..at + value.len()].copy_from_slice(value);
        header
    }

    fn judged(header: &[u8]) -> Result<u64> {
        standalone_size(header, |_, name| {
            name.copy_from_slice(&b"/etc/shadow"[..name.len()]);
            Ok(())
        })
    }

    #[test]
    fn a_file_that_stands_alone_has_its_size_in_the_header() {
        assert_eq!(judged(&header(0, &[])), Ok(1 << 30));
        assert_eq!(judged(&header(7, &[2])), Ok(1 << 30));
    }

    #[test]
    fn a_file_that_refers_to_another_or_is_something_else_is_refused() {
        let mut backed = header(8, &512u64.to_be_bytes());
        backed[19] = 11;
        let failure = judged(&backed).unwrap_err();
        let Failure::Told(body) = &failure else { panic!("{failure:?}") };
        assert!(body.message.contains("/etc/shadow"), "{body:?}");
        for (at, value) in [(79, [1 << 2]), (0, [b'q']), (35, [2])] {
            assert_eq!(judged(&header(at, &value)).unwrap_err().kind(), Some(ErrorKind::Invalid));
        }
        assert_eq!(judged(&header(7, &[4])).unwrap_err().kind(), Some(ErrorKind::Unsupported));
        assert_eq!(judged(&header(79, &[2])).unwrap_err().kind(), Some(ErrorKind::Corrupt));
        for length in 0..72 {
            assert!(judged(&header(0, &[])[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn progress_is_read_as_it_is_written() {
        let told = RefCell::new(Vec::new());
        percentages(&b"    (0.00/100%)\r    (12.50/100%)\r (100.00/100%)\n"[..], |percent| {
            told.borrow_mut().push(share(200, percent));
            true
        });
        assert_eq!(*told.borrow(), [0, 25, 200]);
    }
}
