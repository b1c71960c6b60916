//! Files and text that commands read and write.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use kinora::engine::DeviceChoice;

/// Where to run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The processor; works everywhere.
    Cpu,
    /// The graphics device, by Vulkan, Metal or Direct3D.
    Gpu,
}

impl From<Device> for DeviceChoice {
    fn from(device: Device) -> Self {
        match device {
            Device::Cpu => Self::Cpu,
            Device::Gpu => Self::Gpu { strict_limits: false },
        }
    }
}

pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes under another name first: a file with the right name is always a whole one.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = part(path);
    fs::write(&part, bytes).with_context(|| format!("cannot write {}", part.display()))?;
    publish(path)
}

/// The name of a file that is not complete yet.
pub fn part(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// Gives a complete file its name.
pub fn publish(path: &Path) -> Result<()> {
    fs::rename(part(path), path).with_context(|| format!("cannot write {}", path.display()))
}

/// Text for stdout. A closed pipe (`kinora inspect … | head`) is no error.
pub fn print(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{}", text.to_string().trim_end());
}

/// A number with a unit: `4GiB`, `800MB`, `1.5 GB`, or bytes without one.
pub fn bytes(text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1u64,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => bail!("{text:?} has no unit that is known; write it like 4GiB or 800MB"),
    };
    let number: f64 = number.parse().with_context(|| format!("{text:?} is no number of bytes; write it like 4GiB"))?;
    Ok((number * unit as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_with_its_unit() {
        assert_eq!(bytes("4GiB").unwrap(), 4 << 30);
        assert_eq!(bytes("1.5 MB").unwrap(), 1_500_000);
        assert_eq!(bytes("77").unwrap(), 77);
        assert!(bytes("4 apples").is_err() && bytes("GiB").is_err());
    }
}
