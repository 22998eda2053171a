//! A daemon in a temporary directory, and rowctl talking to it.
//!
//! Invariants: a daemon that was started is killed by its pid and reaped when its owner goes, also in a
//! panic, which prints its log; "started" means that the control socket answers.
//! Absent: NBD (`client`), and other people's programs (`tool`).

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::tool::{self, Outcome};
use crate::wait;

/// Small enough that a daemon starts in milliseconds and a test can fill it. What is deleted is gone at once.
pub const SMALL: &str = r#"
[trash]
hours = 0
[pool]
segment = "4MiB"
journal = "8MiB"
host_reserve = "64MiB"
"#;

/// Lines of a log that a failed test prints.
const LOG_LINES: usize = 60;

/// How to start a daemon.
#[derive(Clone, Debug)]
pub struct Setup {
    program: PathBuf,
    config: String,
    env: Vec<(String, String)>,
    credentials: Vec<(String, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            program: tool::built("rowd"),
            config: SMALL.to_owned(),
            env: Vec::new(),
            credentials: Vec::new(),
        }
    }
}

impl Setup {
    /// Another program: `env!("CARGO_BIN_EXE_rowd-faulty")` is the one with faults.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = path.into();
        self
    }

    /// The whole configuration, in place of [`SMALL`].
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        text.clone_into(&mut self.config);
        self
    }

    /// A variable such as `ROWD_FAIL_POINT` for the daemon.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A master key for encrypted disks, in hexadecimal digits.
    #[must_use]
    pub fn master_key(self, key: &str) -> Self {
        self.credential("rowd-master-key", key)
    }

    /// A credential, as the service manager passes it; an empty one takes it away.
    #[must_use]
    pub fn credential(mut self, name: &str, content: &str) -> Self {
        self.credentials.retain(|(kept, _)| kept != name);
        if !content.is_empty() {
            self.credentials.push((name.to_owned(), content.to_owned()));
        }
        self
    }

    /// Starts a daemon on a new directory.
    ///
    /// # Panics
    /// It does not start.
    #[track_caller]
    #[must_use]
    pub fn start(self) -> Daemon {
        let home = TempDir::with_prefix("rowd-test-").expect("a temporary directory");
        let mut daemon = Daemon { home, setup: self, child: None };
        daemon.start();
        daemon
    }

    /// A directory for a daemon that is not started yet.
    ///
    /// # Panics
    /// There is no temporary directory.
    #[must_use]
    pub fn prepare(self) -> Daemon {
        let home = TempDir::with_prefix("rowd-test-").expect("a temporary directory");
        Daemon { home, setup: self, child: None }
    }
}

/// A daemon and its directory.
#[derive(Debug)]
pub struct Daemon {
    home: TempDir,
    setup: Setup,
    child: Option<Child>,
}

impl Daemon {
    /// A daemon with small sizes on a new directory.
    #[track_caller]
    #[must_use]
    pub fn new() -> Daemon {
        Setup::default().start()
    }

    /// A file of the test, outside the daemon's directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// As [`Daemon::file`], as text.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    /// The directory with pool and sockets.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.file("dir")
    }

    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.dir().join("nbd.sock")
    }

    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.dir().join("control.sock")
    }

    /// The address of an export for NBD clients.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.nbd_socket().display())
    }

    /// # Panics
    /// It is not running.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// Everything the daemon has logged since its directory was made.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("rowd.log")).unwrap_or_default()
    }

    /// Changes how it is started next time.
    pub fn change_setup(&mut self, change: impl FnOnce(Setup) -> Setup) {
        self.setup = change(self.setup.clone());
    }

    /// The command that starts it.
    ///
    /// # Panics
    /// The test's directory cannot be written.
    #[must_use]
    pub fn command(&self) -> Command {
        fs::create_dir_all(self.dir()).expect("make the daemon's directory");
        let config = self.file("rowd.toml");
        fs::write(&config, &self.setup.config).expect("write the configuration");
        let log = File::options().create(true).append(true).open(self.file("rowd.log"));
        let mut command = Command::new(&self.setup.program);
        command.arg("--dir").arg(self.dir()).arg("--config").arg(config);
        self.pass_credentials(&mut command);
        command.envs(self.setup.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("open the log"));
        command
    }

    fn pass_credentials(&self, command: &mut Command) {
        command.env_remove("CREDENTIALS_DIRECTORY");
        if self.setup.credentials.is_empty() {
            return;
        }
        let dir = self.file("credentials");
        if dir.exists() {
            fs::remove_dir_all(&dir).expect("forget old credentials");
        }
        fs::create_dir(&dir).expect("a directory for credentials");
        for (name, content) in &self.setup.credentials {
            fs::write(dir.join(name), content).expect("write a credential");
        }
        command.env("CREDENTIALS_DIRECTORY", dir);
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// It ends, or does not answer in time.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.try_start(), "the daemon ended while starting\n{}", self.log_tail());
    }

    /// Starts it and waits until it answers; `false` when it ends before that.
    ///
    /// # Panics
    /// It does neither in time.
    #[track_caller]
    pub fn try_start(&mut self) -> bool {
        assert!(self.child.is_none(), "the daemon runs already");
        self.child = Some(self.command().spawn().expect("start the daemon"));
        let started = wait::try_until(wait::PATIENCE, || {
            if self.ended().is_some() {
                return Some(false);
            }
            greets(&self.control_socket()).then_some(true)
        });
        started.unwrap_or_else(|| panic!("the daemon does not answer\n{}", self.log_tail()))
    }

    /// How it ended, if it did by itself. It can be started again then.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().expect("ask for the state of a child")?;
        self.child = None;
        Some(status)
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// It runs on.
    #[track_caller]
    pub fn wait_ended(&mut self) -> ExitStatus {
        wait::until("the end of the daemon", || self.ended())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill a child");
            child.wait().expect("reap a child");
        }
    }

    /// Ends it in order.
    ///
    /// # Panics
    /// It does not end, or not well.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait_ended();
        assert!(status.success(), "the daemon ended with {status}\n{}", self.log_tail());
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// It is not running.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        kill(pid, signal).expect("signal a child");
    }

    /// `kill -9` and a new start.
    #[track_caller]
    pub fn crash(&mut self) {
        self.kill();
        self.start();
    }

    /// rowctl with these arguments.
    #[must_use]
    pub fn ctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(tool::built("rowctl"));
        command.arg("--dir").arg(self.dir()).args(args).stdin(Stdio::null());
        command.env_remove("ROWD_DIR").env_remove("ROWD_SOCKET").env("TZ", "UTC");
        command
    }

    /// Runs rowctl, whatever comes of it.
    #[track_caller]
    pub fn try_ctl(&self, args: &[&str]) -> Outcome {
        tool::finish(&mut self.ctl_command(args))
    }

    /// Runs rowctl, which has to succeed.
    #[track_caller]
    pub fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args).ok().stdout
    }

    /// Runs rowctl, which has to succeed, and reads what it prints.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        self.try_ctl(&[&["-o", "json"], args].concat()).ok().json()
    }

    /// Runs rowctl, which has to fail with this code; what it says of the error.
    ///
    /// # Panics
    /// It does not, or says nothing that can be read.
    #[track_caller]
    pub fn json_error(&self, code: i32, args: &[&str]) -> Value {
        let outcome = self.try_ctl(&[&["-o", "json"], args].concat()).fails_with(code);
        let told: Value = serde_json::from_str(&outcome.stderr)
            .unwrap_or_else(|e| panic!("not one JSON error: {e}\n{outcome}"));
        told.get("error").cloned().unwrap_or_else(|| panic!("no error in it\n{outcome}"))
    }

    /// A number from `rowctl status -o json`.
    ///
    /// # Panics
    /// There is no such number.
    #[track_caller]
    #[must_use]
    pub fn status(&self, field: &str) -> u64 {
        let status = self.json(&["status"]);
        status[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {status}"))
    }

    /// Waits until nothing is left to be freed.
    #[track_caller]
    pub fn wait_reclaimed(&self) {
        wait::until("the end of reclaim", || {
            let status = self.json(&["status"]);
            (status["reclaiming"] == 0 && status["pending_bytes"] == 0).then_some(())
        });
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("--- the end of {}\n{}", self.path("rowd.log"), tail.join("\n"))
    }
}

impl Default for Daemon {
    fn default() -> Self {
        Daemon::new()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

/// Whether a daemon answers at this control socket.
fn greets(socket: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(socket) else { return false };
    let timed = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut greeting = String::new();
    timed.is_ok() && BufReader::new(stream).read_line(&mut greeting).is_ok_and(|bytes| bytes > 0)
}
