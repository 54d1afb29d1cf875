//! Tables, numbers and JSON.

use serde_json::Value;
use std::io::{self, Write};

/// Writes rows in columns, the first of which is the head. Numbers are the caller's texts; `right` says which columns end together.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = io::stdout().lock();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            let is_right = right.contains(&column);
            line += if is_right { pad.as_str() } else { "" };
            line += cell;
            line += if is_right { "" } else { pad.as_str() };
            line += "  ";
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Writes one object in a line of its own, at once.
pub fn json(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

/// A number of bytes, in the unit that suits it.
pub fn bytes(count: f64) -> String {
    scaled(count, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// A number, shortened by thousands.
pub fn number(count: f64) -> String {
    scaled(count, 1000.0, &["", "k", "M", "G"])
}

fn scaled(count: f64, step: f64, units: &[&str]) -> String {
    let mut count = count + 0.0; // An empty sum is -0.
    let mut unit = 0;
    while count.abs() >= step && unit + 1 < units.len() {
        count /= step;
        unit += 1;
    }
    let digits = if unit == 0 && count.fract() == 0.0 || count >= 100.0 { 0 } else { 1 };
    format!("{count:.digits$} {}", units[unit]).trim_end().to_owned()
}

/// A process, with the name that an endpoint in it has.
pub fn who(pid: i32, name: Option<&str>) -> String {
    name.map_or_else(|| pid.to_string(), |name| format!("{pid} '{name}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let told: Vec<_> = [0.0, 7.0, 999.5, 1023.0, 1024.0, 1536.0, 150.0 * 1024.0, 3e15].map(bytes).into();
        assert_eq!(told, ["0 B", "7 B", "1000 B", "1023 B", "1.0 KiB", "1.5 KiB", "150 KiB", "2728 TiB"]);
        let told: Vec<_> = [0.0, -0.0, 0.5, 30.0, 1234.0, 250_000.0, 9.87e6].map(number).into();
        assert_eq!(told, ["0", "0", "0.5", "30", "1.2 k", "250 k", "9.9 M"]);
    }
}
