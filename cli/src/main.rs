//! `kinora`: the engine's command line. One file a command; what a command does is in the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod download;
mod files;
mod generate;
mod inspect;
mod lora;
mod models;
mod output;
mod pack;
mod pack_family;
mod progress;
mod prompts;
mod stage;
mod verify;

/// Text to video on your own machine: packs models for the browser, checks them, and runs them.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Pack(pack::Pack),
    Models(models::Models),
    Download(download::Download),
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Generate(generate::Generate),
    Prompts(prompts::Prompts),
    Stage(stage::StageCommand),
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Pack(command) => command.run(),
        Command::Models(command) => command.run(),
        Command::Download(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Verify(command) => command.run(),
        Command::Generate(command) => command.run(),
        Command::Prompts(command) => command.run(),
        Command::Stage(command) => command.run(),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A user gets one sentence, also for a bug; whoever looks for the bug asks for more with RUST_BACKTRACE.
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        std::panic::set_hook(Box::new(|bug| {
            eprintln!("error: the program has a bug, please report it with the command you gave: {bug}");
        }));
    }
    match std::panic::catch_unwind(|| run(cli.command)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}
