//! `kinora-bindgen IN.wasm OUT_DIR`: writes the JavaScript glue, types and processed module for the browser.

use std::path::PathBuf;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let (Some(input), Some(output), None) = (args.next().map(PathBuf::from), args.next(), args.next()) else {
        anyhow::bail!("usage: kinora-bindgen IN.wasm OUT_DIR");
    };
    let module = std::fs::read(&input).with_context(|| format!("reading {}", input.display()))?;
    // What the linker adds to names of exports that begin with a call of every static constructor; see `start` in web.rs.
    let wrapped = b".command_export";
    if module.windows(wrapped.len()).any(|bytes| bytes == wrapped) {
        anyhow::bail!("{} runs its constructors at each call of an export: nothing calls them once", input.display());
    }
    wasm_bindgen_cli_support::Bindgen::new()
        .input_path(&input)
        .web(true)?
        .typescript(true)
        .omit_default_module_path(false)
        .remove_name_section(true)
        .remove_producers_section(true)
        .generate(&output)
        .with_context(|| format!("processing {}", input.display()))
}
