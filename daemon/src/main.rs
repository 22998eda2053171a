//! The `rowd` program: command line, logging, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    rowd::cli::main()
}
