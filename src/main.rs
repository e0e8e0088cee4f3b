//! The binary: everything is in `quantfs::cli`.

fn main() -> std::process::ExitCode {
    quantfs::cli::main()
}
