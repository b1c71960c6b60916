//! The plan as a table.

use std::fmt;

use crate::model::plan::{Both, Item, MemoryPlan, Residency, Target};

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { threads: 1 } => f.write_str("the CPU"),
            Self::Cpu { threads } => write!(f, "the CPU with {threads} threads"),
            Self::Gpu => f.write_str("the GPU"),
        }
    }
}

impl MemoryPlan {
    /// One line of the table; a CPU has one column.
    fn line(&self, f: &mut fmt::Formatter<'_>, what: &str, bytes: Both) -> fmt::Result {
        write!(f, "{what:<36}{:>14}", bytes.host)?;
        if self.target == Target::Gpu {
            write!(f, "{:>14}", bytes.gpu)?;
        }
        writeln!(f)
    }

    fn section(&self, f: &mut fmt::Formatter<'_>, title: &str, items: &[Item], sum: Both) -> fmt::Result {
        writeln!(f, "\n{title}")?;
        for Item { what, bytes } in items {
            self.line(f, &format!("  {what}"), *bytes)?;
        }
        self.line(f, "  together", sum)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { width, height, frames, tokens, target, residency, .. } = self;
        write!(f, "{width}x{height}, {frames} frames, prompts of up to {tokens} tokens, on {target}")?;
        writeln!(
            f,
            "{}",
            if *residency == Residency::Turns { ", text encoder, denoiser and decoder in turns" } else { "" }
        )?;
        writeln!(f, "\nto fetch")?;
        for row in &self.download {
            writeln!(f, "{:<36}{:>14}", format!("  {}", row.what), row.bytes)?;
        }
        writeln!(f, "{:<36}{:>14}", "  together", self.download_bytes)?;
        let columns = if *target == Target::Gpu { format!("{:>14}{:>14}", "host", "GPU") } else { String::new() };
        writeln!(f, "\n{:<36}{columns}", "memory")?;
        for stage in &self.stages {
            self.section(f, stage.name, &stage.items, stage.peak)?;
        }
        writeln!(f)?;
        self.line(f, "peak", self.peak)?;
        if *target == Target::Gpu {
            writeln!(f, "{:<36}{:>14}{:>14}", "largest buffer", "", self.largest_buffer)?;
        }
        writeln!(f, "{:<36}{:>14}", "frames that a page keeps", self.page)
    }
}
