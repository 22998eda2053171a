//! The daemon with faults compiled in.
fn main() -> std::process::ExitCode {
    rowd::cli::main()
}
