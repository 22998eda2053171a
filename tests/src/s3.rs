//! A real S3 server on loopback, with signatures, that keeps its objects in a directory.
//!
//! Invariants: it answers when `start` returns, and ends with its owner.
//! Absent: TLS.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
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
    home: Arc<TempDir>,
    /// Names its unfinished files by a count of its own, so a directory has one.
    store: S3Service,
    _runtime: Runtime,
}

impl S3Server {
    /// With its objects in a temporary directory.
    #[track_caller]
    pub fn start() -> S3Server {
        S3Server::start_in(&std::env::temp_dir())
    }

    /// With its objects in a directory below `dir`.
    #[track_caller]
    pub fn start_in(dir: &Path) -> S3Server {
        let home = TempDir::with_prefix_in("rowd-s3-", dir).expect("make a directory");
        fs::create_dir(home.path().join(BUCKET)).expect("make the bucket");
        let mut builder = S3ServiceBuilder::new(FileSystem::new(home.path()).expect("a store"));
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        S3Server::serve(Arc::new(home), builder.build())
    }

    /// Another one in front of the same store.
    #[track_caller]
    #[must_use]
    pub fn beside(&self) -> S3Server {
        S3Server::serve(Arc::clone(&self.home), self.store.clone())
    }

    #[track_caller]
    fn serve(home: Arc<TempDir>, store: S3Service) -> S3Server {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("start tokio");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("listen");
        let address = listener.local_addr().expect("an address");
        let service = store.clone();
        runtime.spawn(async move {
            let server = Builder::new(TokioExecutor::new());
            while let Ok((socket, _)) = listener.accept().await {
                // As servers do that answer in pieces: the last one does not wait for an acknowledgement.
                socket.set_nodelay(true).expect("set an option of a socket");
                let connection = server.serve_connection(TokioIo::new(socket), service.clone());
                let connection = connection.into_owned();
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        eprintln!("a connection to the S3 server ended: {error}");
                    }
                });
            }
        });
        S3Server { address, home, store, _runtime: runtime }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the objects of the bucket are.
    pub fn objects(&self) -> PathBuf {
        self.home.path().join(BUCKET)
    }
}

/// A file of credentials for the server at `path`, private unless `mode` says otherwise.
pub fn write_keys(path: &Path, secret: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, format!("AWS_ACCESS_KEY_ID={KEY}\nAWS_SECRET_ACCESS_KEY={secret}\n"))
        .expect("write keys");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("make them private");
}
