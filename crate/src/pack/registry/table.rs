//! The registry as text for people.

use std::fmt;

use super::{PackedSizes, Registry, Sampler, SamplerKind};

impl fmt::Display for PackedSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = |bytes: u64| format!("{:.0} MiB", bytes as f64 / 1_048_576.0);
        let Self { family, format, transformer, text_encoder, autoencoder, shards } = self;
        let [denoiser, text, auto] = [*transformer, *text_encoder, *autoencoder].map(mebibytes);
        write!(f, "{family} as {format}: denoiser {denoiser}, text encoder {text}, autoencoder {auto}, {shards} shards")
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bidirectional => "all at once",
            Self::Causal => "causal",
            Self::Guided => "guided",
        })
    }
}

/// The first numbers of a step table.
fn steps(sampler: &Sampler) -> String {
    const SHOWN: usize = 4;
    let sigmas: Vec<String> = sampler.sigmas.iter().take(SHOWN).map(|sigma| format!("{sigma:.4}")).collect();
    let rest =
        if sampler.sigmas.len() > SHOWN { format!(" … ({} steps)", sampler.sigmas.len()) } else { String::new() };
    sigmas.join(" ") + &rest
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24}{:<24}{:<26}where", "checkpoint", "licence", "--sampler")?;
        for row in &self.checkpoints {
            let size = |bytes: u64| format!("({:.2} GB)", bytes as f64 / 1e9);
            let place = format!("{}  {}  {}", row.repository, row.file, size(row.bytes));
            let sampler = row.samplers.first().map_or("", String::as_str);
            writeln!(f, "{:<24}{:<24}{sampler:<26}{place}", row.id, row.license)?;
            if let Some(lora) = &row.lora {
                writeln!(f, "{:<74}--lora {lora}  {}", "", row.lora_bytes.map_or(String::new(), size))?;
            }
            writeln!(f, "{:<74}revision {}", "", row.revision)?;
            if let Some(sha256) = &row.sha256 {
                writeln!(f, "{:<74}SHA-256 {sha256}", "")?;
            }
            if !row.note.is_empty() {
                writeln!(f, "{:<74}{}", "", row.note)?;
            }
        }
        for family in &self.families {
            writeln!(f, "\nThe other parts of family {}:", family.id)?;
            for row in &family.companions {
                writeln!(f, "  {:<22}--{:<14}{}  {} ({})", row.id, row.part, row.repository, row.file, row.license)?;
                writeln!(f, "  {:<38}{}", "", row.note)?;
            }
        }
        writeln!(f, "\n{:<26}{:<14}sigmas", "sampler", "frames")?;
        for row in &self.samplers {
            writeln!(f, "{:<26}{:<14}{}", row.id, row.kind, steps(row))?;
        }
        Ok(())
    }
}
