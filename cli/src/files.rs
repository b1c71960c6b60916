//! Files and text that commands read and write.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
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
