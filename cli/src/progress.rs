//! A progress bar on stderr: one line that is redrawn on a terminal, a line every tenth of the way elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const WIDTH: usize = 30;
/// Time between two redraws.
const REDRAW: Duration = Duration::from_millis(100);

/// Progress of one long task, in bytes.
pub struct Bar {
    terminal: bool,
    started: Instant,
    drawn: Option<Instant>,
    tenth: u64,
    /// Bytes that were there when this run began; they say nothing about its speed.
    first: Option<u64>,
}

impl Bar {
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, started: Instant::now(), drawn: None, tenth: 0, first: None }
    }

    /// Shows how far it is.
    pub fn show(&mut self, done: u64, total: u64, what: &str) {
        let first = *self.first.get_or_insert(done);
        let text = line(done, total, first, self.started.elapsed());
        if !self.terminal {
            let tenth = (10 * done).checked_div(total).unwrap_or(10);
            if tenth > self.tenth {
                self.tenth = tenth;
                eprintln!("{text}");
            }
            return;
        }
        if done == total || self.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW) {
            self.drawn = Some(Instant::now());
            // The name is cut from the front: its end tells tensors apart.
            let from = what.char_indices().rev().nth(39).map_or(0, |(index, _)| index);
            // A terminal that is gone must not stop the work.
            let _ = write!(std::io::stderr(), "\r{text}  {:<40}", &what[from..]);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.terminal && self.drawn.is_some() {
            eprintln!();
        }
    }
}

fn line(done: u64, total: u64, first: u64, elapsed: Duration) -> String {
    let part = if total > 0 { done as f64 / total as f64 } else { 1.0 };
    let filled = (part * WIDTH as f64).round() as usize;
    let bar = format!("{}{}", "#".repeat(filled.min(WIDTH)), "-".repeat(WIDTH - filled.min(WIDTH)));
    let speed = (done - first) as f64 / elapsed.as_secs_f64().max(1e-3);
    let left = if speed > 0.0 { format!("{:.0} s left", (total - done) as f64 / speed) } else { String::new() };
    let mebibytes = |bytes: u64| bytes as f64 / 1_048_576.0;
    format!("[{bar}] {:>3.0} % of {:.0} MiB  {left:<12}", 100.0 * part, mebibytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_part_and_time() {
        let text = line(50 << 20, 100 << 20, 0, Duration::from_secs(10));
        assert!(text.contains("50 % of 100 MiB") && text.contains("10 s left"), "{text}");
        assert_eq!(text.matches('#').count(), WIDTH / 2);
        assert!(line(0, 0, 0, Duration::ZERO).contains("100 %"));
    }
}
