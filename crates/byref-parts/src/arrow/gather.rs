//! What of an exported array has to travel: the buffers of its slice, and no more.
//!
//! A slice becomes an array without an offset: bits are shifted, and offsets start at 0, on their way into the message.
#![allow(unsafe_code)]

use super::abi;
use super::check::{self, Bits, by_width, integers, is_valid, store};
use super::kind::Kind;
use super::schema::Field;
use crate::plan::{Part, Plan};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// An array within a message: for its field and those below, depth first, the dictionary last, the lengths and the buffers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// Of each field, how many elements; of views, also how many buffers they name.
    pub lengths: Vec<u64>,
    /// Those that the C data interface lists, without the lengths of such buffers.
    pub buffers: Vec<Option<Part>>,
}

/// Plans the parts of an array of the type `field`.
pub fn gather<'a, E>(field: &Field, array: &'a abi::Array, plan: &mut Plan<'a, E>) -> Result<Chunk, String> {
    let mut gatherer = Gatherer { plan, chunk: Chunk::default() };
    gatherer.slice(field, array, 0, length(array.length)?)?;
    Ok(gatherer.chunk)
}

struct Gatherer<'p, 'a, E> {
    plan: &'p mut Plan<'a, E>,
    chunk: Chunk,
}

impl<'a, E> Gatherer<'_, 'a, E> {
    /// The `len` elements from number `from` on.
    fn slice(&mut self, field: &Field, array: &'a abi::Array, from: usize, len: usize) -> Result<(), String> {
        let outside = || format!("an Arrow array of type '{}' that is shorter than what it belongs to", field.format());
        let (children, end) = (children(field, array)?, from.checked_add(len).ok_or_else(outside)?);
        if end > length(array.length)? {
            return Err(outside());
        }
        let start = length(array.offset)?.checked_add(from).ok_or_else(outside)?;
        let end = start.checked_add(len).ok_or_else(outside)?;
        self.chunk.lengths.push(len as u64);
        let validity = self.validity(field, array, start, len)?;
        let items = |index, width: usize| -> Result<&'a [u8], String> {
            if len == 0 {
                return Ok(&[]);
            }
            let bytes = end.checked_mul(width).ok_or_else(outside)?;
            Ok(&buffer(field, array, index, bytes)?[start * width..])
        };
        match &field.kind {
            Kind::Null => {}
            Kind::Bits => {
                let bits = Bits { bytes: buffer(field, array, 1, end.div_ceil(8))?, start };
                self.bits(bits, len);
            }
            Kind::Fixed(width) => {
                let values = items(1, *width)?;
                match (&field.dictionary, validity) {
                    // What is under a null may be anything, and some consumers look at it.
                    (Some(_), Some(bits)) => self.make(values.len(), {
                        let width = *width;
                        move |to| copy_valid(to, values, width, bits)
                    }),
                    _ => self.copy(values),
                }
                if let Some(dictionary) = &field.dictionary {
                    let of = child(array.dictionary)?;
                    let count = length(of.length)?;
                    by_width!(*width, check_indices(values, validity, field.format(), count))?;
                    self.slice(dictionary, of, 0, count)?;
                }
            }
            Kind::Bytes { wide: false, text } => self.bytes::<4>(field, array, start..end, validity, *text)?,
            Kind::Bytes { wide: true, text } => self.bytes::<8>(field, array, start..end, validity, *text)?,
            Kind::Views { text } => self.views(field, array, items(1, 16)?, validity, *text)?,
            Kind::List { wide } => {
                let (first, last) = match wide {
                    false => self.offsets::<4>(field, array, start, len)?.1,
                    true => self.offsets::<8>(field, array, start, len)?.1,
                };
                if field.format() == "+m" {
                    refuse_null_keys(&field.children[0], children[0], first, last - first)?;
                }
                self.slice(&field.children[0], children[0], first, last - first)?;
            }
            Kind::ListView { wide: false } => self.list_view::<4>(field, children[0], items(1, 4)?, items(2, 4)?)?,
            Kind::ListView { wide: true } => self.list_view::<8>(field, children[0], items(1, 8)?, items(2, 8)?)?,
            Kind::FixedList(size) => {
                let [from, len] = [start, len].map(|count| count.checked_mul(*size).ok_or_else(outside));
                self.slice(&field.children[0], children[0], from?, len?)?;
            }
            Kind::Struct => {
                for (below, child) in field.children.iter().zip(children) {
                    self.slice(below, child, start, len)?;
                }
            }
            Kind::Union { dense, ids } => {
                let types = items(0, 1)?;
                let offsets = if *dense { Some(items(1, 4)?) } else { None };
                let lengths = children.iter().map(|child| length(child.length)).collect::<Result<Vec<_>, _>>()?;
                check::union(types, offsets, ids, &lengths)?;
                self.copy(types);
                offsets.into_iter().for_each(|offsets| self.copy(offsets));
                for ((below, child), whole) in field.children.iter().zip(children).zip(lengths) {
                    let (from, len) = if *dense { (0, whole) } else { (start, len) };
                    self.slice(below, child, from, len)?;
                }
            }
            Kind::Runs => {
                let [ends, values] = [0, 1].map(|index| (&field.children[index], children[index]));
                match check::width_of_run_ends(ends.0)? {
                    2 => self.runs::<2>(ends, values, start, len)?,
                    4 => self.runs::<4>(ends, values, start, len)?,
                    _ => self.runs::<8>(ends, values, start, len)?,
                }
            }
        }
        Ok(())
    }

    fn copy(&mut self, bytes: &'a [u8]) {
        let part = self.plan.copy(bytes);
        self.chunk.buffers.push(Some(part));
    }

    fn make(&mut self, len: usize, write: impl FnOnce(&mut [u8]) + Send + 'a) {
        let part = self.plan.make(len, write);
        self.chunk.buffers.push(Some(part));
    }

    /// Which elements are not null, where that is said.
    fn validity(
        &mut self,
        field: &Field,
        array: &'a abi::Array,
        start: usize,
        len: usize,
    ) -> Result<Option<Bits<'a>>, String> {
        if !field.kind.has_validity() {
            return Ok(None);
        }
        if array.null_count == 0 || pointers(field, array)?[0].is_null() {
            self.chunk.buffers.push(None);
            return Ok(None);
        }
        let bits = Bits { bytes: buffer(field, array, 0, (start + len).div_ceil(8))?, start };
        self.bits(bits, len);
        Ok(Some(bits))
    }

    /// `len` bits, so shifted that they begin with a byte.
    fn bits(&mut self, from: Bits<'a>, len: usize) {
        let Bits { bytes, start } = from;
        let (bytes, shift, needed) = (&bytes[start / 8..], start % 8, len.div_ceil(8));
        if shift == 0 {
            return self.copy(&bytes[..needed]);
        }
        self.make(needed, move |to| {
            for (index, byte) in to.iter_mut().enumerate() {
                let next = bytes.get(index + 1).copied().unwrap_or(0);
                *byte = bytes[index] >> shift | next << (8 - shift);
            }
        });
    }

    /// Offsets, so moved that they start at 0: as they were, the first and the last of them.
    fn offsets<const N: usize>(
        &mut self,
        field: &Field,
        array: &'a abi::Array,
        start: usize,
        len: usize,
    ) -> Result<(&'a [u8], (usize, usize)), String> {
        let zeros: &[u8] = &[0; N];
        let offsets = if len == 0 && (array.length == 0 || pointers(field, array)?[1].is_null()) {
            zeros // An empty array may have no offsets at all.
        } else {
            let end = (start + len + 1).checked_mul(N).ok_or("an Arrow array that is too long")?;
            &buffer(field, array, 1, end)?[start * N..]
        };
        let (first, last) = check::offsets::<N>(offsets)?;
        if first == 0 {
            self.copy(offsets);
        } else {
            self.make(offsets.len(), move |to| rebase::<N>(to, offsets, first));
        }
        Ok((offsets, (first, last)))
    }

    fn bytes<const N: usize>(
        &mut self,
        field: &Field,
        array: &'a abi::Array,
        range: Range<usize>,
        validity: Option<Bits<'a>>,
        text: bool,
    ) -> Result<(), String> {
        let (offsets, (first, last)) = self.offsets::<N>(field, array, range.start, range.len())?;
        let data = &buffer(field, array, 2, last)?[first..];
        match validity {
            _ if !text => self.copy(data),
            // What is under a null may be anything, and some consumers look at it.
            Some(bits) if check::text::<N>(offsets, data, None).is_err() => {
                check::text::<N>(offsets, data, validity)?;
                self.make(data.len(), move |to| copy_valid_text::<N>(to, data, offsets, first, bits));
            }
            _ => {
                check::text::<N>(offsets, data, validity)?;
                self.copy(data);
            }
        }
        Ok(())
    }

    /// Views, and of each buffer what they name.
    fn views(
        &mut self,
        field: &Field,
        array: &'a abi::Array,
        views: &'a [u8],
        validity: Option<Bits<'a>>,
        text: bool,
    ) -> Result<(), String> {
        let count = pointers(field, array)?.len() - Kind::Views { text }.buffers();
        let lengths = buffer(field, array, 2 + count, count * 8)?;
        let buffers = integers::<8>(lengths)
            .enumerate()
            .map(|(index, len)| buffer(field, array, 2 + index, length(len)?))
            .collect::<Result<Vec<_>, _>>()?;
        let mut used = vec![(usize::MAX, 0); count];
        check::views(views, validity, text, &buffers, |buffer, from, to| {
            let range: &mut (usize, usize) = &mut used[buffer];
            *range = (range.0.min(from), range.1.max(to));
        })?;
        self.chunk.lengths.push(count as u64);
        let ranges: Vec<_> = used.into_iter().map(|(from, to)| from.min(to)..to).collect();
        let starts: Vec<_> = ranges.iter().map(|range| range.start as i32).collect();
        self.make(views.len(), move |to| {
            to.copy_from_slice(views);
            for (index, view) in to.chunks_exact_mut(16).enumerate() {
                match check::view(view) {
                    // What is under a null may be anything.
                    _ if !is_valid(validity, index) => view.fill(0),
                    Ok(check::View::Long { buffer, offset, .. }) => {
                        // A buffer that is none: its owner wrote there meanwhile.
                        let start = starts.get(buffer).copied().unwrap_or(0);
                        view[12..].copy_from_slice(&(offset as i32).wrapping_sub(start).to_ne_bytes());
                    }
                    _ => {}
                }
            }
        });
        for (bytes, range) in buffers.into_iter().zip(ranges) {
            self.copy(&bytes[range]);
        }
        Ok(())
    }

    fn list_view<const N: usize>(
        &mut self,
        field: &Field,
        child: &'a abi::Array,
        offsets: &'a [u8],
        sizes: &'a [u8],
    ) -> Result<(), String> {
        let (from, to, _) = check::list_views::<N>(offsets, sizes)?;
        self.make(offsets.len(), move |out| {
            for ((out, offset), size) in out.chunks_exact_mut(N).zip(integers::<N>(offsets)).zip(integers::<N>(sizes)) {
                store::<N>(out, if size == 0 { 0 } else { offset.wrapping_sub(from as i64) });
            }
        });
        self.copy(sizes);
        self.slice(&field.children[0], child, from, to - from)
    }

    fn runs<const N: usize>(
        &mut self,
        (ends_field, ends): (&Field, &'a abi::Array),
        (values_field, values): (&Field, &'a abi::Array),
        start: usize,
        len: usize,
    ) -> Result<(), String> {
        children(ends_field, ends)?;
        let (offset, count) = (length(ends.offset)?, length(ends.length)?);
        let end =
            offset.checked_add(count).and_then(|end| end.checked_mul(N)).ok_or("an Arrow array that is too long")?;
        let ends = &buffer(ends_field, ends, 1, end)?[offset * N..];
        check::runs::<N>(ends, start + len)?;
        let first = integers::<N>(ends).take_while(|end| *end as usize <= start).count();
        let runs = if len == 0 {
            0
        } else {
            1 + integers::<N>(ends).skip(first).take_while(|end| (*end as usize) < start + len).count()
        };
        let ends = &ends[first * N..(first + runs) * N];
        self.chunk.lengths.push(runs as u64);
        self.chunk.buffers.push(None);
        self.make(ends.len(), move |out| {
            for (out, end) in out.chunks_exact_mut(N).zip(integers::<N>(ends)) {
                store::<N>(out, end.wrapping_sub(start as i64).min(len as i64));
            }
        });
        self.slice(values_field, values, first, runs)
    }
}

use check::indices as check_indices;

/// Copies values of `width` bytes, with zeros for those that are null.
fn copy_valid(to: &mut [u8], values: &[u8], width: usize, validity: Bits<'_>) {
    to.copy_from_slice(values);
    for (index, value) in to.chunks_exact_mut(width).enumerate() {
        if !validity.get(index) {
            value.fill(0);
        }
    }
}

/// Copies texts, with zeros for those that are null. (Nobody changes offsets meanwhile but by breaking the interface's rules.)
fn copy_valid_text<const N: usize>(to: &mut [u8], data: &[u8], offsets: &[u8], first: usize, validity: Bits<'_>) {
    to.copy_from_slice(data);
    let ends = integers::<N>(offsets).skip(1);
    for (index, (start, end)) in integers::<N>(offsets).zip(ends).enumerate() {
        let place = (start as usize).wrapping_sub(first)..(end as usize).wrapping_sub(first);
        if !validity.get(index)
            && let Some(text) = to.get_mut(place)
        {
            text.fill(0);
        }
    }
}

fn rebase<const N: usize>(to: &mut [u8], offsets: &[u8], first: usize) {
    for (to, offset) in to.chunks_exact_mut(N).zip(integers::<N>(offsets)) {
        store::<N>(to, offset.wrapping_sub(first as i64));
    }
}

/// Looks at the entries of a map: pyarrow ends the process that meets one with a null among the keys.
fn refuse_null_keys(field: &Field, entries: &abi::Array, from: usize, len: usize) -> Result<(), String> {
    let start = length(entries.offset)?.checked_add(from).ok_or("an Arrow array that is too long")?;
    let keys = children(field, entries)?[0];
    let key_start = length(keys.offset)?.checked_add(start).ok_or("an Arrow array that is too long")?;
    for (field, array, start) in [(field, entries, start), (&field.children[0], keys, key_start)] {
        if !field.kind.has_validity() || array.null_count == 0 || pointers(field, array)?[0].is_null() {
            continue;
        }
        let end = start.checked_add(len).ok_or("an Arrow array that is too long")?;
        let bits = Bits { bytes: buffer(field, array, 0, end.div_ceil(8))?, start };
        if (0..len).any(|index| !bits.get(index)) {
            return Err("a map with keys that are null".into());
        }
    }
    Ok(())
}

/// A length, offset or count of a struct.
fn length(value: i64) -> Result<usize, String> {
    usize::try_from(value).map_err(|_| format!("an Arrow array with a length or offset of {value}"))
}

fn child<'a>(child: *mut abi::Array) -> Result<&'a abi::Array, String> {
    // SAFETY: by the interface a child is a valid struct as long as its parent is.
    unsafe { child.as_ref() }.ok_or_else(|| "an Arrow array with a missing child".to_owned())
}

/// The children, as many as the type has; and the buffers are counted.
fn children<'a>(field: &Field, array: &'a abi::Array) -> Result<Vec<&'a abi::Array>, String> {
    pointers(field, array)?;
    if usize::try_from(array.n_children) != Ok(field.children.len()) {
        let (format, count) = (field.format(), array.n_children);
        return Err(format!("an Arrow array of type '{format}' with {count} children"));
    }
    // SAFETY: by the interface there are so many pointers, of the struct's own lifetime.
    let pointers = unsafe { abi::items(array.children, field.children.len()) };
    pointers.iter().map(|pointer| child(*pointer)).collect()
}

/// The pointers to the buffers, as many as the type has.
fn pointers<'a>(field: &Field, array: &'a abi::Array) -> Result<&'a [*const std::ffi::c_void], String> {
    let (needed, count) = (field.kind.buffers(), usize::try_from(array.n_buffers).unwrap_or(0));
    let fits = match field.kind {
        Kind::Views { .. } => count >= needed,
        Kind::Null => true, // Polars has one buffer here, which nobody needs.
        _ => count == needed,
    };
    // SAFETY: by the interface there are so many pointers, of the struct's own lifetime.
    let pointers = unsafe { abi::items(array.buffers, count) };
    if !fits || pointers.len() != count {
        return Err(format!("an Arrow array of type '{}' with {count} buffers", field.format()));
    }
    Ok(pointers)
}

/// The first `len` bytes of a buffer.
fn buffer<'a>(field: &Field, array: &'a abi::Array, index: usize, len: usize) -> Result<&'a [u8], String> {
    let pointer = pointers(field, array)?[index].cast::<u8>();
    if len == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() || len > isize::MAX as usize {
        return Err(format!("an Arrow array of type '{}' without its buffer {index}", field.format()));
    }
    // SAFETY: by the interface a buffer has what the array's length and offset, and the offsets in it, call for; it lives as
    // long as the struct. Whoever writes to it meanwhile tears this one message.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}
