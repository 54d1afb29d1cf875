//! An Arrow type with all that belongs to it, as it travels and as it is shown to consumers.
#![allow(unsafe_code)]

use super::abi;
use super::kind::Kind;
use serde::{Deserialize, Serialize};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;
use std::sync::Arc;

/// The deepest nesting, and the most fields in all, of a type that a peer may send.
const MOST_LEVELS: usize = 64;
const MOST_FIELDS: usize = 1 << 16;

/// Extension types that make their consumers follow pointers, or unpickle.
const UNSAFE_EXTENSIONS: [&str; 2] = ["POLARS_EXTENSION_TYPE", "arrow.py_extension_type"];

/// A field as it travels; its children, then its dictionary, follow it.
#[derive(Serialize, Deserialize)]
struct Words {
    format: String,
    name: Option<String>,
    /// Keys and values as the C data interface packs them.
    metadata: Option<Vec<u8>>,
    flags: i64,
    children: u32,
    dictionary: bool,
}

/// A field, and what is below it.
pub struct Field {
    /// How its buffers lie in memory.
    pub kind: Kind,
    /// What it consists of.
    pub children: Vec<Field>,
    /// What its indices refer to.
    pub dictionary: Option<Box<Field>>,
    format: CString,
    name: Option<CString>,
    metadata: Option<Vec<u8>>,
    flags: i64,
}

impl Field {
    /// A field without a name that may have nulls.
    pub fn new(format: &str, children: Vec<Field>) -> Result<Self, String> {
        Ok(Field {
            kind: Kind::of(format)?,
            children,
            dictionary: None,
            format: c_string(format)?,
            name: Some(c"item".to_owned()),
            metadata: None,
            flags: abi::NULLABLE,
        })
    }

    /// The same, as indices of a dictionary.
    #[cfg(any(test, fuzzing))]
    pub fn with_dictionary(self, dictionary: Field) -> Self {
        Field { dictionary: Some(Box::new(dictionary)), ..self }
    }

    /// Whether it is what a record batch or a table is: a struct that cannot be null itself.
    pub fn is_table(&self) -> bool {
        self.kind == Kind::Struct && self.flags & abi::NULLABLE == 0
    }

    /// The name, where it has one.
    pub fn name(&self) -> &str {
        self.name.as_ref().and_then(|name| name.to_str().ok()).unwrap_or("")
    }

    /// The format string.
    pub fn format(&self) -> &str {
        self.format.to_str().unwrap_or("?")
    }

    /// Reads what a producer in this process exported.
    pub fn import(schema: &abi::Schema) -> Result<Self, String> {
        let field = Self::import_below(schema, 0)?;
        match field.count() {
            count if count > MOST_FIELDS => Err(too_wide(count)),
            _ => Ok(field),
        }
    }

    /// Whether `import` would read the very same.
    pub fn is(&self, schema: &abi::Schema) -> bool {
        let below = |field: &Field, schema: *mut abi::Schema| {
            // SAFETY: by the interface a child is a valid struct as long as its parent is.
            unsafe { schema.as_ref() }.is_some_and(|schema| field.is(schema))
        };
        // SAFETY: by the interface there are so many pointers, of the struct's own lifetime.
        let children = unsafe { abi::items(schema.children, usize::try_from(schema.n_children).unwrap_or(0)) };
        self.flags == schema.flags
            && c_text(schema.format) == Some(&self.format)
            && c_text(schema.name) == self.name.as_deref()
            && packed(schema.metadata) == Ok(self.metadata.as_deref())
            && self.children.len() == children.len()
            && self.children.iter().zip(children).all(|(field, child)| below(field, *child))
            && match &self.dictionary {
                Some(dictionary) => below(dictionary, schema.dictionary),
                None => schema.dictionary.is_null(),
            }
    }

    /// How many fields it is, with those below.
    fn count(&self) -> usize {
        1 + self.children.iter().chain(self.dictionary.as_deref()).map(Field::count).sum::<usize>()
    }

    fn import_below(schema: &abi::Schema, level: usize) -> Result<Self, String> {
        if level >= MOST_LEVELS {
            return Err(format!("an Arrow type that is nested deeper than {MOST_LEVELS} levels"));
        }
        let format = text(schema.format)?.ok_or("an Arrow type without a format")?;
        let below = |child: *mut abi::Schema| {
            // SAFETY: by the interface a child is a valid struct as long as its parent is.
            let child = unsafe { child.as_ref() }.ok_or("an Arrow type with a missing child")?;
            Self::import_below(child, level + 1)
        };
        let count =
            usize::try_from(schema.n_children).map_err(|_| "an Arrow type with a negative number of children")?;
        // SAFETY: by the interface there are so many pointers, of the struct's own lifetime.
        let children = unsafe { abi::items(schema.children, count) };
        let children = children.iter().map(|child| below(*child)).collect::<Result<Vec<_>, _>>()?;
        let dictionary = (!schema.dictionary.is_null()).then(|| below(schema.dictionary)).transpose()?;
        let words = Words {
            name: text(schema.name)?,
            metadata: packed(schema.metadata)?.map(<[u8]>::to_vec),
            flags: schema.flags,
            children: children.len() as u32,
            dictionary: dictionary.is_some(),
            format,
        };
        Self::of(words, children, dictionary)
    }

    fn of(words: Words, children: Vec<Field>, dictionary: Option<Field>) -> Result<Self, String> {
        let Words { format, name, metadata, flags, .. } = words;
        let kind = Kind::of(&format)?;
        if kind.children().is_some_and(|count| count != children.len()) {
            return Err(format!("the Arrow type '{format}' with {} children", children.len()));
        }
        if format == "+m" && (children[0].kind != Kind::Struct || children[0].children.len() != 2) {
            return Err("an Arrow map whose entries are no pairs".into());
        }
        let says =
            |name: &[u8]| metadata.as_deref().is_some_and(|all| all.windows(name.len()).any(|part| part == name));
        if let Some(name) = UNSAFE_EXTENSIONS.iter().find(|name| says(name.as_bytes())) {
            return Err(format!("an extension type ('{name}') that means nothing, or worse, in another process"));
        }
        if dictionary.is_some() && !matches!(format.as_str(), "c" | "C" | "s" | "S" | "i" | "I" | "l" | "L") {
            return Err(format!("a dictionary whose indices are of the Arrow type '{format}'"));
        }
        let name = name.as_deref().map(c_string).transpose()?;
        let format = c_string(&format)?;
        Ok(Field { kind, children, dictionary: dictionary.map(Box::new), format, name, metadata, flags })
    }

    /// In the form in which it travels.
    pub fn encode(&self) -> Vec<u8> {
        let mut all = Vec::new();
        self.describe(&mut all);
        postcard::to_stdvec(&all).expect("plain data always encodes")
    }

    fn describe(&self, all: &mut Vec<Words>) {
        all.push(Words {
            format: self.format().to_owned(),
            name: self.name.is_some().then(|| self.name().to_owned()),
            metadata: self.metadata.clone(),
            flags: self.flags,
            children: self.children.len() as u32,
            dictionary: self.dictionary.is_some(),
        });
        self.children.iter().chain(self.dictionary.as_deref()).for_each(|below| below.describe(all));
    }

    /// From what `encode` made; anything else, from a faulty peer, is an error.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let unreadable = |error| format!("not an Arrow type: {error}");
        let (count, _) = postcard::take_from_bytes::<u64>(bytes).map_err(unreadable)?;
        if count > MOST_FIELDS as u64 {
            return Err(too_wide(count as usize));
        }
        let (all, rest) = postcard::take_from_bytes::<Vec<Words>>(bytes).map_err(unreadable)?;
        if !rest.is_empty() {
            return Err("more than an Arrow type".into());
        }
        let mut words = all.into_iter();
        let field = Self::decode_next(&mut words, 0)?;
        if words.next().is_some() { Err("more than one Arrow type".into()) } else { Ok(field) }
    }

    fn decode_next(words: &mut impl Iterator<Item = Words>, level: usize) -> Result<Self, String> {
        let next = words.next().ok_or("half an Arrow type")?;
        if level >= MOST_LEVELS {
            return Err(format!("an Arrow type that is nested deeper than {MOST_LEVELS} levels"));
        }
        if let Some(metadata) = &next.metadata
            && packed_len(|at| metadata.get(at..at + 4).map(|bytes| bytes.try_into().expect("four bytes")))
                != Some(metadata.len())
        {
            return Err("an Arrow type whose metadata are not what they say".into());
        }
        let children = (0..next.children).map(|_| Self::decode_next(words, level + 1)).collect::<Result<_, _>>()?;
        let dictionary = next.dictionary.then(|| Self::decode_next(words, level + 1)).transpose()?;
        Self::of(next, children, dictionary)
    }
}

fn too_wide(count: usize) -> String {
    format!("an Arrow type with {count} fields; {MOST_FIELDS} is the most")
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("a NUL in {text:?}"))
}

/// A C string that a producer exported, if there is one. For no longer than its struct lives.
fn c_text<'a>(pointer: *const c_char) -> Option<&'a CStr> {
    // SAFETY: by the interface it is a C string that lives as long as its struct.
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) })
}

fn text(pointer: *const c_char) -> Result<Option<String>, String> {
    let text =
        |text: &CStr| text.to_str().map(str::to_owned).map_err(|_| format!("a name that is not UTF-8: {text:?}"));
    c_text(pointer).map(text).transpose()
}

/// Packed metadata that a producer exported, if there are any. For no longer than their struct lives.
fn packed<'a>(pointer: *const c_char) -> Result<Option<&'a [u8]>, String> {
    if pointer.is_null() {
        return Ok(None);
    }
    let number = |at: usize| {
        // SAFETY: by the interface the numbers are where the ones before them say.
        Some(unsafe { pointer.wrapping_add(at).cast::<[u8; 4]>().read() })
    };
    let len = packed_len(number).ok_or("metadata with negative lengths")?;
    // SAFETY: by the interface there are as many bytes as its numbers say.
    Ok(Some(unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), len) }))
}

/// How long packed metadata are: a count, then the lengths and bytes of so many keys and values. `number` gives the four
/// bytes at a place.
fn packed_len(number: impl Fn(usize) -> Option<[u8; 4]>) -> Option<usize> {
    let number = |at| usize::try_from(i32::from_ne_bytes(number(at)?)).ok();
    let mut at = 4;
    for _ in 0..number(0)? * 2 {
        at += 4 + number(at)?;
    }
    Some(at)
}

/// What an exported schema keeps: the strings it points to, and the structs below.
struct Kept {
    _field: Arc<Field>,
    children: Box<[*mut abi::Schema]>,
    dictionary: *mut abi::Schema,
}

/// The type for a consumer.
pub fn export(field: &Arc<Field>) -> abi::Schema {
    export_part(field, field)
}

/// `part` is `whole` or below it.
fn export_part(whole: &Arc<Field>, part: &Field) -> abi::Schema {
    let below = |part: &Field| Box::into_raw(Box::new(export_part(whole, part)));
    let mut kept = Box::new(Kept {
        _field: Arc::clone(whole),
        children: part.children.iter().map(below).collect(),
        dictionary: part.dictionary.as_deref().map_or(ptr::null_mut(), below),
    });
    abi::Schema {
        format: part.format.as_ptr(),
        name: part.name.as_ref().map_or(ptr::null(), |name| name.as_ptr()),
        metadata: part.metadata.as_ref().map_or(ptr::null(), |packed| packed.as_ptr().cast()),
        flags: part.flags,
        n_children: kept.children.len() as i64,
        children: kept.children.as_mut_ptr(),
        dictionary: kept.dictionary,
        release: Some(release),
        private_data: Box::into_raw(kept).cast::<c_void>(),
    }
}

unsafe extern "C" fn release(schema: *mut abi::Schema) {
    // SAFETY: called once, by the owner of a struct that `export_part` made.
    let schema = unsafe { &mut *schema };
    schema.release = None;
    // SAFETY: the box that `export_part` leaked.
    let kept = unsafe { Box::from_raw(schema.private_data.cast::<Kept>()) };
    for below in kept.children.iter().chain(Some(&kept.dictionary)).filter(|below| !below.is_null()) {
        // SAFETY: a box that `export_part` leaked; a consumer that moved its content out has marked it as released.
        drop(unsafe { Box::from_raw(*below) });
    }
}

#[cfg(test)]
mod tests {
    use super::abi::Owned;
    use super::*;

    #[test]
    fn what_a_peer_sends_is_checked() {
        let field = Field::new("+s", vec![Field::new("u", vec![]).unwrap()]).unwrap();
        let encoded = field.encode();
        let back = Field::decode(&encoded).unwrap();
        assert_eq!((back.format(), back.children[0].format(), back.encode()), ("+s", "u", encoded.clone()));
        for len in 0..encoded.len() {
            assert!(Field::decode(&encoded[..len]).is_err());
        }
        assert!(refusal(&(0..1000).map(|_| words("+l", 1)).collect::<Vec<_>>()).contains("nested deeper"));
        let wide = MOST_FIELDS as u32;
        let leaves = (0..wide).map(|_| words("c", 0));
        assert!(refusal(&std::iter::once(words("+s", wide)).chain(leaves).collect::<Vec<_>>()).contains("is the most"));
        assert!(refusal(&[words("+l", 0)]).contains("0 children"));
        assert!(refusal(&[words("+s", u32::MAX)]).contains("half"));
        assert!(refusal(&[words("c", 0), words("c", 0)]).contains("more than one"));
        for packed in [vec![], vec![1, 0, 0, 0], vec![0xff; 4], vec![1, 0, 0, 0, 9, 0, 0, 0], vec![0; 5]] {
            assert!(refusal(&[Words { metadata: Some(packed), ..words("u", 0) }]).contains("metadata"));
        }
    }

    fn words(format: &str, children: u32) -> Words {
        Words { format: format.into(), name: None, metadata: None, flags: 0, children, dictionary: false }
    }

    fn refusal(said: &[Words]) -> String {
        Field::decode(&postcard::to_stdvec(said).unwrap()).err().unwrap_or_default()
    }

    #[test]
    fn extension_types_that_run_code_are_refused() {
        let key = b"ARROW:extension:name";
        let of = |name: &str| {
            let mut packed = 1i32.to_ne_bytes().to_vec();
            for text in [&key[..], name.as_bytes()] {
                packed.extend((text.len() as i32).to_ne_bytes());
                packed.extend(text);
            }
            refusal(&[Words { metadata: Some(packed), ..words("w:16", 0) }])
        };
        assert_eq!(of("arrow.uuid"), "");
        for name in UNSAFE_EXTENSIONS {
            assert!(of(name).contains(name));
        }
    }

    #[test]
    fn a_type_is_known_by_all_that_belongs_to_it() {
        let plain = || Field::new("i", vec![]).unwrap();
        let named = |name: &CStr| Field { name: Some(name.to_owned()), ..plain() };
        let with = |metadata: &[u8]| Field { metadata: Some(metadata.to_vec()), ..plain() };
        let of = |child| Field::new("+l", vec![child]).unwrap();
        let all = [
            plain(),
            Field::new("I", vec![]).unwrap(),
            named(c"another"),
            Field { name: None, ..plain() },
            Field { flags: 0, ..plain() },
            with(&[0, 0, 0, 0]),
            with(&[1, 0, 0, 0, 1, 0, 0, 0, b'k', 0, 0, 0, 0]),
            plain().with_dictionary(plain()),
            plain().with_dictionary(named(c"another")),
            of(plain()),
            of(named(c"another")),
            Field::new("+s", vec![]).unwrap(),
            Field::new("+s", vec![plain()]).unwrap(),
        ]
        .map(Arc::new);
        for (index, field) in all.iter().enumerate() {
            let exported = export(field);
            for (other, candidate) in all.iter().enumerate() {
                assert_eq!(candidate.is(&exported), index == other, "{} and {}", index, other);
            }
        }
    }

    #[test]
    fn an_export_reads_back_and_is_released_once() {
        let field = Arc::new(Field::new("+l", vec![Field::new("tsu:UTC", vec![]).unwrap()]).unwrap());
        let mut exported = export(&field);
        assert_eq!(Field::import(&exported).unwrap().encode(), field.encode());
        assert!(field.is(&exported));
        assert_eq!(Arc::strong_count(&field), 3);
        // SAFETY: `children` has one pointer.
        let child = unsafe { *exported.children };
        // SAFETY: a valid struct, of which a consumer may move the content out.
        let child = unsafe { &mut *child };
        let moved = std::mem::replace(child, abi::Schema::empty());
        exported.release();
        drop(exported);
        assert_eq!(Arc::strong_count(&field), 2);
        drop(moved);
        assert_eq!(Arc::strong_count(&field), 1);
    }
}
