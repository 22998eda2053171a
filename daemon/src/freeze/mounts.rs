//! What is mounted: mountinfo, parsed.
//!
//! Invariants: a line that cannot be understood is left out, never half understood; a superblock is
//! known by its device number, however often it is mounted.
//! Absent: opening anything (`discover.rs`), and which mounts are wanted.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::dev::Dev;

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub dev: Dev,
    pub point: PathBuf,
    /// The type of the file system.
    pub kind: String,
    /// The device as it was named when it was mounted.
    pub source: PathBuf,
}

/// All lines of a mountinfo file, in its order: later mounts, which may lie inside earlier ones, come later.
#[must_use]
pub fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// `36 35 98:0 /root /point options [optional fields] - type source super-options`
fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let dev = Dev::parse(std::str::from_utf8(fields.nth(2)?).ok()?)?;
    let point = unescape(fields.nth(1)?);
    let mut behind = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8(behind.next()?.to_vec()).ok()?;
    let source = unescape(behind.next()?);
    point.is_absolute().then_some(Mount { dev, point, kind, source })
}

/// The kernel writes blank, tab, line feed and backslash as `\040` and so on.
#[must_use]
pub fn unescape(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        if let (b'\\', Some((code, after))) = (byte, octal(after)) {
            plain.push(code);
            rest = after;
        } else {
            plain.push(byte);
            rest = after;
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

fn octal(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, rest) = text.split_at_checked(3)?;
    let digits = std::str::from_utf8(digits).ok()?;
    Some((u8::from_str_radix(digits, 8).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
40 28 43:1 / /srv/my\\040data\\134x rw shared:20 master:3 - ext4 /dev/nbd0p1 rw
41 28 43:1 /sub /srv/bind rw - ext4 /dev/nbd0p1 rw
42 28 0:44 / /srv/b rw - btrfs /dev/nbd1 rw,subvol=/
half a line
43 28 253:x / /bad rw - ext4 /dev/dm-0 rw
";

    #[test]
    fn mounts_are_read_in_order_with_their_escapes() {
        let mounts = parse(TEXT);
        let points: Vec<_> = mounts.iter().map(|mount| mount.point.to_str().unwrap()).collect();
        assert_eq!(points, ["/sys", "/", "/srv/my data\\x", "/srv/bind", "/srv/b"]);
        assert_eq!(mounts[2].dev, Dev { major: 43, minor: 1 });
        assert_eq!(mounts[2].kind, "ext4");
        assert_eq!(mounts[3].dev, mounts[2].dev);
        assert_eq!(mounts[4].source, PathBuf::from("/dev/nbd1"));
    }

    #[test]
    fn an_escape_that_is_none_stays_as_it_is() {
        assert_eq!(unescape(b"a\\04"), PathBuf::from("a\\04"));
        assert_eq!(unescape(b"a\\999b"), PathBuf::from("a\\999b"));
        assert_eq!(unescape(b"\\011"), PathBuf::from("\t"));
    }

    #[test]
    fn this_machine_s_own_mounts_are_understood() {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        let mounts = parse(&text);
        assert!(mounts.iter().any(|mount| mount.point.as_os_str() == "/"));
        assert_eq!(mounts.len(), text.iter().filter(|byte| **byte == b'\n').count());
    }
}
