//! `stella`: operator commands, the four services, and the demo, in one program.

fn main() -> std::process::ExitCode {
    stella_cli::main()
}
