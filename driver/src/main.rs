//! The `vitc` command.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    vitc::command::main(std::env::args_os()).into()
}
