//! What Arrow data must be so that no consumer reads outside of them. Both sides ask: the sender before anybody gets the
//! message, the receiver before a consumer gets the data.

use super::schema::Field;

/// Bits, from the one at `start` on.
#[derive(Clone, Copy)]
pub struct Bits<'a> {
    pub bytes: &'a [u8],
    pub start: usize,
}

impl Bits<'_> {
    #[inline]
    pub fn get(self, index: usize) -> bool {
        let at = self.start + index;
        self.bytes[at / 8] >> (at % 8) & 1 == 1
    }
}

/// Whether an element is not null.
#[inline]
pub fn is_valid(validity: Option<Bits<'_>>, index: usize) -> bool {
    validity.is_none_or(|bits| bits.get(index))
}

/// How many of the first `len` bits are not set.
pub fn count_zeros(bytes: &[u8], len: usize) -> usize {
    let ones: u32 = bytes[..len / 8].iter().map(|byte| byte.count_ones()).sum();
    let last = if len.is_multiple_of(8) { 0 } else { (bytes[len / 8] & ((1 << (len % 8)) - 1)).count_ones() };
    len - ones as usize - last as usize
}

/// The signed integers of `N` bytes that `bytes` are.
#[inline]
pub fn integers<const N: usize>(bytes: &[u8]) -> impl ExactSizeIterator<Item = i64> + DoubleEndedIterator + '_ {
    bytes.chunks_exact(N).map(|word| match N {
        1 => i64::from(word[0] as i8),
        2 => i64::from(i16::from_ne_bytes([word[0], word[1]])),
        4 => i64::from(i32::from_ne_bytes([word[0], word[1], word[2], word[3]])),
        _ => i64::from_ne_bytes(word.try_into().expect("eight bytes")),
    })
}

/// Stores `value` in the `N` bytes of `to`.
#[inline]
pub fn store<const N: usize>(to: &mut [u8], value: i64) {
    to.copy_from_slice(&value.to_ne_bytes()[if cfg!(target_endian = "big") { 8 - N..8 } else { 0..N }]);
}

/// Calls a function that is generic in the bytes of an integer.
macro_rules! by_width {
    ($width:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $width {
            1 => $function::<1>($($argument),*),
            2 => $function::<2>($($argument),*),
            4 => $function::<4>($($argument),*),
            _ => $function::<8>($($argument),*),
        }
    };
}
pub(super) use by_width;

/// The first and the last of offsets, which must not decrease, nor be negative. There is at least one.
pub fn offsets<const N: usize>(bytes: &[u8]) -> Result<(usize, usize), String> {
    let first = integers::<N>(bytes).next().expect("the caller has one");
    let (mut last, mut ordered) = (first, first >= 0);
    for offset in integers::<N>(bytes) {
        ordered &= offset >= last;
        last = offset;
    }
    if ordered { Ok((first as usize, last as usize)) } else { Err("offsets that decrease, or are negative".into()) }
}

/// Each value between two offsets, of which the first is 0 in `data`, has to be UTF-8, unless it is null.
pub fn text<const N: usize>(bytes: &[u8], data: &[u8], validity: Option<Bits<'_>>) -> Result<(), String> {
    let first = integers::<N>(bytes).next().unwrap_or(0);
    if let Ok(whole) = std::str::from_utf8(data)
        && (whole.is_ascii() || integers::<N>(bytes).all(|offset| whole.is_char_boundary((offset - first) as usize)))
    {
        return Ok(());
    }
    let ends = integers::<N>(bytes).skip(1);
    for (index, (start, end)) in integers::<N>(bytes).zip(ends).enumerate() {
        let value = &data[(start - first) as usize..(end - first) as usize];
        if is_valid(validity, index) && std::str::from_utf8(value).is_err() {
            return Err("text that is not UTF-8".into());
        }
    }
    Ok(())
}

/// A value among views.
pub enum View {
    /// The value itself lies in the view: how long it is.
    Short { len: usize },
    /// It lies in a buffer: which one, from where, how long.
    Long { buffer: usize, offset: usize, len: usize },
}

/// The longest value that lies in its view.
const SHORT: usize = 12;

/// Reads the 16 bytes of a view.
#[inline]
pub fn view(bytes: &[u8]) -> Result<View, String> {
    let [len, _, buffer, offset] =
        [0, 4, 8, 12].map(|at| i32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")));
    let number = |value| usize::try_from(value).map_err(|_| "views with negative numbers");
    let len = number(len)?;
    if len <= SHORT {
        Ok(View::Short { len })
    } else {
        Ok(View::Long { buffer: number(buffer)?, offset: number(offset)?, len })
    }
}

/// Looks at each view that is not null: its bytes have to be there, and UTF-8 if it is `text`.
pub fn views(
    bytes: &[u8],
    validity: Option<Bits<'_>>,
    text: bool,
    buffers: &[&[u8]],
    mut each: impl FnMut(usize, usize, usize),
) -> Result<(), String> {
    for (index, found) in bytes.chunks_exact(16).enumerate() {
        if !is_valid(validity, index) {
            continue;
        }
        let value = match view(found)? {
            View::Short { len } => {
                let (value, padding) = found[4..].split_at(len);
                if padding.iter().any(|byte| *byte != 0) {
                    return Err("views whose padding is not zero".into());
                }
                value
            }
            View::Long { buffer, offset, len } => {
                let value = buffers.get(buffer).and_then(|bytes| bytes.get(offset..offset + len));
                let value = value.ok_or("views of bytes that are not there")?;
                if value[..4] != found[4..8] {
                    return Err("views that do not begin as their values do".into());
                }
                each(buffer, offset, offset + len);
                value
            }
        };
        if text && std::str::from_utf8(value).is_err() {
            return Err("text that is not UTF-8".into());
        }
    }
    Ok(())
}

/// Where the elements that list views name begin and end among those of a child, and the furthest place that any view
/// names, also one without elements.
pub fn list_views<const N: usize>(offsets: &[u8], sizes: &[u8]) -> Result<(usize, usize, usize), String> {
    let (mut from, mut to, mut furthest) = (i64::MAX, 0, 0);
    for (offset, size) in integers::<N>(offsets).zip(integers::<N>(sizes)) {
        if offset < 0 || size < 0 {
            return Err("list views with negative numbers".into());
        }
        let end = offset.checked_add(size).ok_or("list views that are too long")?;
        furthest = furthest.max(end as usize);
        if size > 0 {
            from = from.min(offset);
            to = to.max(end);
        }
    }
    Ok(if from < to { (from as usize, to as usize, furthest) } else { (0, 0, furthest) })
}

/// Indices of a dictionary that has `len` values. `format` says whether they are signed.
pub fn indices<const N: usize>(
    bytes: &[u8],
    validity: Option<Bits<'_>>,
    format: &str,
    len: usize,
) -> Result<(), String> {
    let unsigned = format.starts_with(|letter: char| letter.is_ascii_uppercase());
    let mask = if unsigned && N < 8 { (1u64 << (8 * N)) - 1 } else { u64::MAX };
    // A negative one is large as an unsigned one.
    let inside = |index: i64| (index as u64 & mask) < len as u64;
    let all = match validity {
        None => integers::<N>(bytes).all(inside),
        Some(bits) => integers::<N>(bytes).enumerate().all(|(at, index)| !bits.get(at) || inside(index)),
    };
    if all { Ok(()) } else { Err(format!("indices beyond the {len} values of their dictionary")) }
}

/// The numbers of a union's children, and where each value lies in its child: there, and none before an earlier one.
pub fn union(types: &[u8], offsets: Option<&[u8]>, ids: &[i8], lengths: &[usize]) -> Result<(), String> {
    let mut child_of = [None; 256];
    for (child, id) in ids.iter().enumerate() {
        child_of[*id as u8 as usize] = Some(child);
    }
    let mut offsets = offsets.map(integers::<4>);
    let mut reached = vec![0; ids.len()];
    for id in types {
        let child = child_of[*id as usize].ok_or("a union of a type that it does not have")?;
        if let Some(offset) = offsets.as_mut().and_then(Iterator::next) {
            let offset = usize::try_from(offset).ok().filter(|offset| *offset < lengths[child]);
            let offset = offset.ok_or("a union's offset beyond its child")?;
            if offset < reached[child] {
                return Err("a union's offsets that decrease".into());
            }
            reached[child] = offset;
        }
    }
    Ok(())
}

/// Run ends, which must grow from 1 on, and reach `len`.
pub fn runs<const N: usize>(bytes: &[u8], len: usize) -> Result<(), String> {
    let mut last = 0;
    for end in integers::<N>(bytes) {
        if end <= last {
            return Err("run ends that do not grow".into());
        }
        last = end;
    }
    if (last as usize) < len { Err("runs that end too early".into()) } else { Ok(()) }
}

/// The width of run ends of that type.
pub fn width_of_run_ends(field: &Field) -> Result<usize, String> {
    match field.format() {
        "s" => Ok(2),
        "i" => Ok(4),
        "l" => Ok(8),
        _ => Err("run ends that are no integers of 16, 32 or 64 bits".into()),
    }
}
