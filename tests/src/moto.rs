//! moto: an S3 server by other people, in Python, as a second opinion on what S3 is.
//!
//! Invariants: it is installed once, as one version, in a virtual environment of its own in the cache, from the package
//! index; the server answers when `start` returns, and ends with its owner.
//! Absent: signatures, which it does not check; objects that outlive it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::s3::BUCKET;
use crate::{tool, vm, wait};

const VERSION: &str = "5.2.5";

/// The server.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    pub address: SocketAddr,
    _home: TempDir,
}

impl Moto {
    /// Starts one with an empty bucket.
    ///
    /// # Panics
    /// It cannot be installed or started.
    #[track_caller]
    #[must_use]
    pub fn start() -> Moto {
        let home = TempDir::with_prefix("rowd-moto-").expect("make a directory");
        let log = home.path().join("log");
        let output = File::create(&log).expect("make a log");
        let child = Command::new(installed().join("bin/moto_server"))
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("the log again"))
            .stderr(output)
            .spawn()
            .expect("start moto_server");
        let address = wait::until("an address of moto", || {
            let text = fs::read_to_string(&log).ok()?;
            let (_, rest) = text.split_once("Running on http://")?;
            rest.split_whitespace().next()?.parse().ok()
        });
        let moto = Moto { child, address, _home: home };
        let made = moto.request(&format!("PUT /{BUCKET}"));
        assert!(made.starts_with("HTTP/1.1 200"), "make a bucket: {made}");
        moto
    }

    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The keys of all objects below a prefix.
    ///
    /// # Panics
    /// It does not answer.
    #[track_caller]
    #[must_use]
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = self.request(&format!("GET /{BUCKET}?list-type=2&prefix={prefix}/"));
        assert!(!listed.contains("<IsTruncated>true"), "more objects than one answer has");
        let parts = listed.split("<Key>").skip(1).filter_map(|part| part.split_once("</Key>"));
        parts.map(|(key, _)| key.to_owned()).collect()
    }

    fn request(&self, what: &str) -> String {
        let mut stream = TcpStream::connect(self.address).expect("connect to moto");
        let head = format!("{what} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        write!(stream, "{head}Content-Length: 0\r\n\r\n").expect("ask moto");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer of moto");
        answer
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            eprintln!("moto does not end: {error}");
        }
    }
}

/// The virtual environment, made by the first who asks.
fn installed() -> PathBuf {
    let home = vm::image::cache().with_file_name(format!("moto-{VERSION}"));
    fs::create_dir_all(&home).unwrap_or_else(|e| panic!("{}: {e}", home.display()));
    let lock = File::create(home.join("lock")).expect("make a lock");
    lock.lock().expect("lock the environment");
    let whole = home.join("whole");
    if !whole.exists() {
        install(&home);
        File::create(whole).expect("mark the environment");
    }
    home
}

fn install(home: &Path) {
    let path = home.display().to_string();
    tool::run("python3", &["-m", "venv", "--clear", &path]).ok();
    let package = format!("moto[s3,server]=={VERSION}");
    let pip = home.join("bin/pip").display().to_string();
    tool::run(&pip, &["install", "--quiet", "--no-input", &package]).ok();
}
