//! Arrow arrays over a message's memory, for any consumer: their release gives the lease back.
#![allow(unsafe_code)]

use super::abi;
use super::check::{self, by_width};
use super::gather::Chunk;
use super::kind::Kind;
use super::schema::Field;
use crate::plan::Part;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

/// The array that `chunk` declares, once everything that it says was checked against the payload.
pub fn show<M>(field: &Field, chunk: &Chunk, payload: &Arc<M>) -> Result<abi::Array, String>
where
    M: AsRef<[u8]> + Send + Sync + 'static,
{
    let bytes = (**payload).as_ref();
    let keep = Arc::clone(payload) as Arc<dyn Send + Sync>;
    let mut shower = Shower { payload: bytes, keep, lengths: chunk.lengths.iter(), buffers: chunk.buffers.iter() };
    let array = shower.next(field, None)?;
    if shower.lengths.next().is_some() || shower.buffers.next().is_some() {
        return Err("more Arrow data than its type has".into());
    }
    Ok(array)
}

struct Shower<'a> {
    payload: &'a [u8],
    keep: Arc<dyn Send + Sync>,
    lengths: std::slice::Iter<'a, u64>,
    buffers: std::slice::Iter<'a, Option<Part>>,
}

/// What an exported array keeps: the memory, and the structs below.
struct Kept {
    _payload: Arc<dyn Send + Sync>,
    /// The lengths of the buffers that views name.
    _lengths: Box<[i64]>,
    buffers: Box<[*const c_void]>,
    children: Box<[*mut abi::Array]>,
    dictionary: *mut abi::Array,
}

/// The array of one field, in the making.
#[derive(Default)]
struct Node {
    null_count: usize,
    buffers: Vec<*const c_void>,
    lengths: Box<[i64]>,
    children: Vec<abi::Array>,
    dictionary: Option<abi::Array>,
}

impl<'a> Shower<'a> {
    /// The array of the next field, which has `wanted` elements, if that is known.
    fn next(&mut self, field: &Field, wanted: Option<usize>) -> Result<abi::Array, String> {
        let short = || format!("Arrow data of type '{}' that are shorter than they should be", field.format());
        let len = self.lengths.next().and_then(|len| i64::try_from(*len).ok()).ok_or_else(short)? as usize;
        if wanted.is_some_and(|wanted| wanted != len) {
            return Err(short());
        }
        let mut node = Node::default();
        if field.kind.has_validity() {
            self.validity(&mut node, len)?;
        }
        let sized = |width: usize| len.checked_mul(width).ok_or_else(short);
        match &field.kind {
            Kind::Null => node.null_count = len,
            Kind::Bits => drop(self.buffer(&mut node, len.div_ceil(8))?),
            Kind::Fixed(width) => {
                let values = self.buffer(&mut node, sized(*width)?)?;
                if let Some(of) = &field.dictionary {
                    let dictionary = self.next(of, None)?;
                    let count = dictionary.length as usize;
                    // Also those under nulls: some consumers look at all of them. The sender makes them 0.
                    if count > 0 {
                        by_width!(*width, check_indices(values, None, field.format(), count))?;
                    } else if values.iter().any(|byte| *byte != 0) || node.null_count < len {
                        return Err("indices of an empty dictionary".into());
                    }
                    node.dictionary = Some(dictionary);
                }
            }
            Kind::Bytes { wide: false, text } => self.bytes::<4>(&mut node, len, *text)?,
            Kind::Bytes { wide: true, text } => self.bytes::<8>(&mut node, len, *text)?,
            Kind::Views { text } => {
                let views = self.buffer(&mut node, sized(16)?)?;
                let mut named = Vec::new();
                // As many as there are, up to the next field: the sender says how many with the first of them.
                for _ in 0..self.count()? {
                    named.push(self.any_buffer(&mut node)?);
                }
                check::views(views, None, *text, &named, |_, _, _| {})?; // As above.
                node.lengths = named.iter().map(|bytes| bytes.len() as i64).collect();
                node.buffers.push(node.lengths.as_ptr().cast());
            }
            Kind::List { wide } => {
                let last = if *wide { self.offsets::<8>(&mut node, len) } else { self.offsets::<4>(&mut node, len) }?.1;
                let child = self.next(&field.children[0], Some(last))?;
                if field.format() == "+m" {
                    // pyarrow ends the process that meets such a map.
                    // SAFETY: `next` has made a struct of two children.
                    let keys = unsafe { *child.children };
                    // SAFETY: `next` has made the first, too, and `child` owns it.
                    let null_keys = unsafe { (*keys).null_count };
                    if child.null_count > 0 || null_keys > 0 {
                        return Err("a map with keys that are null".into());
                    }
                }
                node.children.push(child);
            }
            Kind::ListView { wide } => {
                let width = if *wide { 8 } else { 4 };
                let [offsets, sizes] = [self.buffer(&mut node, sized(width)?)?, self.buffer(&mut node, sized(width)?)?];
                let (_, _, end) = if *wide {
                    check::list_views::<8>(offsets, sizes)?
                } else {
                    check::list_views::<4>(offsets, sizes)?
                };
                node.children.push(self.next(&field.children[0], None)?);
                if end > node.children[0].length as usize {
                    return Err(short());
                }
            }
            Kind::FixedList(size) => node.children.push(self.next(&field.children[0], Some(sized(*size)?))?),
            Kind::Struct => {
                for below in &field.children {
                    node.children.push(self.next(below, Some(len))?);
                }
            }
            Kind::Union { dense, ids } => {
                let types = self.buffer(&mut node, len)?;
                let offsets = if *dense { Some(self.buffer(&mut node, sized(4)?)?) } else { None };
                for below in &field.children {
                    node.children.push(self.next(below, (!dense).then_some(len))?);
                }
                let lengths: Vec<_> = node.children.iter().map(|child| child.length as usize).collect();
                check::union(types, offsets, ids, &lengths)?;
            }
            Kind::Runs => {
                let width = check::width_of_run_ends(&field.children[0])?;
                let ends = self.next(&field.children[0], None)?;
                let count = ends.length as usize;
                if ends.null_count > 0 {
                    return Err("run ends that are null".into());
                }
                // SAFETY: `next` has made an array of two buffers, of which the second has `count` elements of that width.
                let values = unsafe { *ends.buffers.wrapping_add(1) }.cast::<u8>();
                // SAFETY: as above; the payload is kept by `ends`.
                let values = unsafe { std::slice::from_raw_parts(values, count * width) };
                by_width!(width, check_runs(values, len))?;
                node.children.push(ends);
                node.children.push(self.next(&field.children[1], Some(count))?);
            }
        }
        Ok(self.finish(len, node))
    }

    fn finish(&self, len: usize, node: Node) -> abi::Array {
        let Node { null_count, buffers, lengths, children, dictionary } = node;
        let below = |array| Box::into_raw(Box::new(array));
        let mut kept = Box::new(Kept {
            _payload: Arc::clone(&self.keep),
            _lengths: lengths,
            buffers: buffers.into(),
            children: children.into_iter().map(below).collect(),
            dictionary: dictionary.map_or(ptr::null_mut(), below),
        });
        abi::Array {
            length: len as i64,
            null_count: null_count as i64,
            offset: 0,
            n_buffers: kept.buffers.len() as i64,
            n_children: kept.children.len() as i64,
            buffers: kept.buffers.as_mut_ptr(),
            children: kept.children.as_mut_ptr(),
            dictionary: kept.dictionary,
            release: Some(release),
            private_data: Box::into_raw(kept).cast(),
        }
    }

    fn part(&mut self) -> Result<Option<&'a [u8]>, String> {
        let part = self.buffers.next().ok_or("Arrow data without some of their buffers")?;
        let inside = |part: &Part| part.of(self.payload).ok_or("Arrow data outside of their message, or not aligned");
        Ok(part.as_ref().map(inside).transpose()?)
    }

    /// The next buffer, whatever its length.
    fn any_buffer(&mut self, node: &mut Node) -> Result<&'a [u8], String> {
        let bytes = self.part()?.ok_or("Arrow data without some of their buffers")?;
        node.buffers.push(bytes.as_ptr().cast());
        Ok(bytes)
    }

    /// The first `len` bytes of the next buffer.
    fn buffer(&mut self, node: &mut Node, len: usize) -> Result<&'a [u8], String> {
        self.any_buffer(node)?.get(..len).ok_or_else(|| "Arrow data in a buffer that is too short".to_owned())
    }

    fn validity(&mut self, node: &mut Node, len: usize) -> Result<(), String> {
        let Some(bytes) = self.part()? else {
            node.buffers.push(ptr::null());
            return Ok(());
        };
        let bytes = bytes.get(..len.div_ceil(8)).ok_or("Arrow data in a buffer that is too short")?;
        node.buffers.push(bytes.as_ptr().cast());
        node.null_count = check::count_zeros(bytes, len);
        Ok(())
    }

    /// Offsets for `len` elements, as they are, and the first and the last.
    fn offsets<const N: usize>(&mut self, node: &mut Node, len: usize) -> Result<(&'a [u8], usize), String> {
        let bytes = len.checked_add(1).and_then(|count| count.checked_mul(N)).ok_or("too many offsets")?;
        let offsets = self.buffer(node, bytes)?;
        match check::offsets::<N>(offsets)? {
            (0, last) => Ok((offsets, last)),
            _ => Err("offsets that do not start at 0".into()),
        }
    }

    fn bytes<const N: usize>(&mut self, node: &mut Node, len: usize, text: bool) -> Result<(), String> {
        let (offsets, last) = self.offsets::<N>(node, len)?;
        let data = self.buffer(node, last)?;
        // Also what lies under nulls: some consumers look at it.
        if text { check::text::<N>(offsets, data, None) } else { Ok(()) }
    }

    /// How many buffers of bytes follow views.
    fn count(&mut self) -> Result<u64, String> {
        self.lengths.next().copied().ok_or_else(|| "views without their buffers".to_owned())
    }
}

use check::{indices as check_indices, runs as check_runs};

unsafe extern "C" fn release(array: *mut abi::Array) {
    // SAFETY: called once, by the owner of a struct that `finish` made.
    let array = unsafe { &mut *array };
    array.release = None;
    // SAFETY: the box that `finish` leaked.
    let kept = unsafe { Box::from_raw(array.private_data.cast::<Kept>()) };
    for below in kept.children.iter().chain(Some(&kept.dictionary)).filter(|below| !below.is_null()) {
        // SAFETY: a box that `finish` leaked; a consumer that moved its content out has marked it as released.
        drop(unsafe { Box::from_raw(*below) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, Source};

    /// What becomes of a chunk with these buffers.
    fn shown(field: &Field, lengths: &[u64], buffers: &[Option<&[u8]>]) -> Result<abi::Array, String> {
        let mut plan: Plan<'_, ()> = Plan::default();
        let buffers = buffers.iter().map(|buffer| buffer.map(|bytes| plan.copy(bytes))).collect();
        let mut payload = vec![0; plan.size as usize];
        for (part, source) in plan.parts {
            let Source::Copy(bytes) = source else { unreachable!("nothing else was planned") };
            payload[part.at as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        show(field, &Chunk { lengths: lengths.to_vec(), buffers }, &Arc::new(payload))
    }

    fn field(format: &str, children: Vec<Field>) -> Field {
        Field::new(format, children).unwrap()
    }

    fn numbers(values: &[i32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    fn view(len: i32, begin: [u8; 4], buffer: i32, offset: i32) -> Vec<u8> {
        [&len.to_ne_bytes()[..], &begin, &buffer.to_ne_bytes(), &offset.to_ne_bytes()].concat()
    }

    /// A field, lengths, the buffers behind the validity, and what is said of a lie.
    type Case = (Field, Vec<u64>, Vec<Option<Vec<u8>>>, Option<&'static str>);

    fn check(cases: Vec<Case>) {
        for (number, (field, lengths, buffers, lie)) in cases.into_iter().enumerate() {
            let all: Vec<_> = buffers.iter().map(Option::as_deref).collect();
            let found = shown(&field, &lengths, &all).map(|_| ()).err();
            let is_as_expected =
                found.as_deref().map_or(lie.is_none(), |found| lie.is_some_and(|lie| found.contains(lie)));
            assert!(is_as_expected, "case {number}, '{}': {found:?} is not {lie:?}", field.format());
        }
    }

    #[test]
    fn lies_about_values_are_refused() {
        let text = || field("u", vec![]);
        let long = b"a text of more than twelve bytes".to_vec();
        let views = |found| vec![None, Some(found), Some(b"a text of more than twelve bytes".to_vec())];
        let words = || field("i", vec![]).with_dictionary(field("c", vec![]));
        let indices = |index| vec![None, Some(numbers(&[index])), None, Some(vec![7, 8])];
        check(vec![
            (field("i", vec![]), vec![2], vec![None, Some(numbers(&[1, 2]))], None),
            (field("i", vec![]), vec![3], vec![None, Some(numbers(&[1, 2]))], Some("too short")),
            (field("i", vec![]), vec![9], vec![Some(vec![0]), Some(numbers(&[0; 9]))], Some("too short")),
            (field("i", vec![]), vec![1], vec![None, Some(numbers(&[1])), None], Some("more Arrow data")),
            (text(), vec![2], vec![None, Some(numbers(&[0, 1, 2])), Some(b"ab".to_vec())], None),
            (text(), vec![2], vec![None, Some(numbers(&[0, 2, 1])), Some(b"ab".to_vec())], Some("decrease")),
            (text(), vec![1], vec![None, Some(numbers(&[0, 3])), Some(b"ab".to_vec())], Some("too short")),
            (text(), vec![1], vec![None, Some(numbers(&[0, 1])), Some(vec![0xff])], Some("UTF-8")),
            (field("vu", vec![]), vec![1, 1], views(view(32, *b"a te", 0, 0)), None),
            (field("vu", vec![]), vec![1, 1], views(view(32, *b"a te", 1, 0)), Some("not there")),
            (field("vu", vec![]), vec![1, 1], views(view(32, *b"text", 0, 2)), Some("not there")),
            (field("vu", vec![]), vec![1, 1], views(view(32, *b"text", 0, 0)), Some("begin")),
            (field("vu", vec![]), vec![1, 0], vec![None, Some(view(1, *b"ab\0\0", 0, 0))], Some("padding")),
            (field("vu", vec![]), vec![1, 1], vec![None, Some(view(-1, *b"a te", 0, 0)), Some(long)], Some("negative")),
            (words(), vec![1, 2], indices(1), None),
            (words(), vec![1, 2], indices(2), Some("indices beyond")),
            (words(), vec![1, 2], indices(-1), Some("indices beyond")),
        ]);
    }

    #[test]
    fn lies_about_children_are_refused() {
        let bytes = |len: u8| Some((0..len).collect::<Vec<u8>>());
        let child = || vec![field("c", vec![])];
        let table = || field("+s", vec![field("c", vec![]), field("c", vec![])]);
        let map = || field("+m", vec![field("+s", vec![field("c", vec![]), field("c", vec![])])]);
        let entries =
            |nulls: Option<Vec<u8>>| vec![None, Some(numbers(&[0, 1])), None, nulls, bytes(1), None, bytes(1)];
        let union = || field("+ud:5", child());
        let runs = || field("+r", vec![field("i", vec![]), field("c", vec![])]);
        let ends = |ends: &[i32]| vec![None, Some(numbers(ends)), None, bytes(2)];
        check(vec![
            (field("+l", child()), vec![1, 3], vec![None, Some(numbers(&[0, 3])), None, bytes(3)], None),
            (field("+l", child()), vec![1, 2], vec![None, Some(numbers(&[0, 3])), None, bytes(2)], Some("shorter")),
            (table(), vec![2, 2, 2], vec![None, None, bytes(2), None, bytes(2)], None),
            (table(), vec![2, 2, 1], vec![None, None, bytes(2), None, bytes(1)], Some("shorter")),
            (lists(), vec![1, 3], list_view(1, 2), None),
            (lists(), vec![1, 3], list_view(2, 2), Some("shorter")),
            (lists(), vec![1, 3], list_view(2, -1), Some("negative")),
            (map(), vec![1, 1, 1, 1], entries(None), None),
            (map(), vec![1, 1, 1, 1], entries(Some(vec![0])), Some("null")),
            (union(), vec![1, 2], vec![Some(vec![5]), Some(numbers(&[1])), None, bytes(2)], None),
            (union(), vec![1, 2], vec![Some(vec![4]), Some(numbers(&[1])), None, bytes(2)], Some("type")),
            (union(), vec![1, 2], vec![Some(vec![5]), Some(numbers(&[2])), None, bytes(2)], Some("beyond")),
            (union(), vec![1, 2], vec![Some(vec![5]), Some(numbers(&[-1])), None, bytes(2)], Some("beyond")),
            (runs(), vec![4, 2, 2], ends(&[2, 4]), None),
            (runs(), vec![4, 2, 2], ends(&[2, 2]), Some("grow")),
            (runs(), vec![4, 2, 2], ends(&[2, 3]), Some("too early")),
        ]);
    }

    fn lists() -> Field {
        field("+vl", vec![field("c", vec![])])
    }

    fn list_view(offset: i32, size: i32) -> Vec<Option<Vec<u8>>> {
        vec![None, Some(numbers(&[offset])), Some(numbers(&[size])), None, Some(vec![1, 2, 3])]
    }

    #[test]
    fn nulls_are_counted() {
        let array = shown(&field("c", vec![]), &[3], &[Some(&[0b101]), Some(&[1, 2, 3])]).unwrap();
        assert_eq!(array.null_count, 1);
    }
}
