//! Arrays of numbers as Arrow data: what `pa.array(msg)` gives for a NumPy array, or for bytes.

use super::gather::Chunk;
use super::schema::Field;
use crate::plan::Part;

/// The Arrow type of a NumPy element type, given by its `dtype.str`.
fn format_of(kind: &str) -> Option<&'static str> {
    let native = if cfg!(target_endian = "big") { '>' } else { '<' };
    let name = kind.strip_prefix([native, '|'])?;
    Some(match name {
        "i1" => "c",
        "u1" => "C",
        "i2" => "s",
        "u2" => "S",
        "i4" => "i",
        "u4" => "I",
        "i8" => "l",
        "u8" => "L",
        "f2" => "e",
        "f4" => "f",
        "f8" => "g",
        _ => return None,
    })
}

/// The type and the chunk for a C-ordered array of `shape` and element type `kind` that is the whole payload. Further
/// dimensions are lists of fixed size.
pub fn plain(kind: &str, shape: &[u64], nbytes: usize) -> Result<(Field, Chunk), String> {
    let wrong = || format!("Arrow has no type for elements of type '{kind}' as NumPy keeps them; use msg.value");
    let (Some((_, sizes)), Some(format)) = (shape.split_first(), format_of(kind)) else { return Err(wrong()) };
    let mut field = Field::new(format, Vec::new())?;
    for size in sizes.iter().rev() {
        field = Field::new(&format!("+w:{size}"), vec![field])?;
    }
    let mut chunk = Chunk::default();
    let mut len = 1u64;
    for extent in shape {
        len = len.checked_mul(*extent).ok_or_else(wrong)?;
        chunk.lengths.push(len);
        chunk.buffers.push(None);
    }
    chunk.buffers.push(Some(Part { at: 0, len: nbytes as u64 }));
    Ok((field, chunk))
}
