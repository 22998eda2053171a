//! A real S3 server on loopback, with signatures, that keeps its objects in a directory.
//!
//! Invariants: it answers when `start` returns, and ends with its owner.
//! Absent: TLS.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rowd_tests::process::Daemon;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

pub const KEY: &str = "AKIATESTTESTTEST";
pub const SECRET: &str = "a-secret-that-nobody-may-see-0123";
pub const BUCKET: &str = "rowd";

/// The server and its directory.
#[derive(Debug)]
pub struct S3Server {
    pub address: SocketAddr,
    home: TempDir,
    _runtime: Runtime,
}

impl S3Server {
    #[track_caller]
    pub fn start() -> S3Server {
        let home = TempDir::with_prefix("rowd-s3-").unwrap();
        fs::create_dir(home.path().join(BUCKET)).unwrap();
        let service = {
            let mut builder = S3ServiceBuilder::new(FileSystem::new(home.path()).unwrap());
            builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
            builder.build()
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let server = Builder::new(TokioExecutor::new());
            while let Ok((socket, _)) = listener.accept().await {
                let connection = server.serve_connection(TokioIo::new(socket), service.clone());
                let connection = connection.into_owned();
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        eprintln!("a connection to the S3 server ended: {error}");
                    }
                });
            }
        });
        S3Server { address, home, _runtime: runtime }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the objects of the bucket are.
    pub fn objects(&self) -> PathBuf {
        self.home.path().join(BUCKET)
    }
}

/// A file of credentials for the server, private unless `mode` says otherwise.
pub fn key_file(daemon: &Daemon, secret: &str, mode: u32) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = daemon.path("s3.keys");
    fs::write(&path, format!("AWS_ACCESS_KEY_ID={KEY}\nAWS_SECRET_ACCESS_KEY={secret}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// Makes the repository `name` below `prefix` on the server known to a daemon.
#[track_caller]
pub fn add(daemon: &Daemon, name: &str, prefix: &str, endpoint: &str) {
    let keys = format!("file:{}", key_file(daemon, SECRET, 0o600));
    let url = format!("s3://{BUCKET}/{prefix}");
    daemon.ctl(&["repo", "add", name, &url, "--endpoint", endpoint, "--credentials", &keys]);
}

/// All files below a directory.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}
