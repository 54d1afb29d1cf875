//! What a message contains, as JSON, and as a tree of lines for people.

use byref::{HeaderValue, Layout, Message};
use byref_parts::arrow::{Class, Field};
use byref_parts::layout::Place;
use byref_parts::packed::{self, Builder, MOST_CONTAINERS, Sequence};
use byref_parts::plan::Part;
use byref_parts::tokens::{self, Token, Words};
use serde_json::{Map, Number, Value, json};
use std::cell::Cell;
use std::fmt::Write;
use std::sync::Arc;

/// So many bytes, or elements of an array, are shown of each.
const SHOWN: usize = 16;
/// So many characters of a text.
const SHOWN_TEXT: usize = 2000;
/// Extremes are looked for among so many elements: a tool is not to read gigabytes for a line.
const LOOKED_AT: usize = 1 << 20;

/// The payload.
pub fn payload(message: &Message) -> Value {
    let Some(layout) = message.attributes().layout else { return bytes(message) };
    let Layout { kind, shape } = layout;
    let tokens = match Place::of(&kind, &shape) {
        None => return array(&kind, &shape, message),
        Some(Place::Whole(whole)) => Ok(vec![whole.token(message.len())]),
        Some(Place::Described(at)) => tokens::decode(message, at),
    };
    let value = tokens.and_then(|tokens| {
        tokens::levels(&tokens)?;
        let mut teller = Teller { message, tokens: tokens.into_iter(), containers: Cell::new(MOST_CONTAINERS) };
        teller.next(0)
    });
    value.unwrap_or_else(|why| json!({ "unreadable": why }))
}

/// The headers.
pub fn headers(message: &Message) -> Value {
    let each = message.attributes().headers.into_iter().map(|(name, value)| {
        let value = match value {
            HeaderValue::Str(text) => Value::String(text),
            HeaderValue::Bytes(content) => bytes(&content),
            HeaderValue::Int(number) => number.into(),
            HeaderValue::Float(number) => float(number),
            HeaderValue::Bool(flag) => flag.into(),
        };
        (name, value)
    });
    Value::Object(each.collect())
}

/// Plain bytes: text where they are some.
fn bytes(content: &[u8]) -> Value {
    match std::str::from_utf8(content) {
        Ok(text) if !text.chars().any(|c| c.is_control() && !c.is_whitespace()) => {
            json!({ "bytes": content.len(), "text": shortened(text) })
        }
        _ => {
            let shown = content.iter().take(SHOWN).fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            });
            json!({ "bytes": content.len(), "hex": if content.len() > SHOWN { shown + "..." } else { shown } })
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_TEXT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// JSON has no number for all of them.
fn float(number: f64) -> Value {
    Number::from_f64(number).map_or_else(|| Value::String(number.to_string()), Value::Number)
}

/// An array: its type, its shape, its first elements, and the extremes of numbers.
fn array(kind: &[u8], shape: &[u64], content: &[u8]) -> Value {
    let kind = String::from_utf8_lossy(kind).into_owned();
    let mut told = Map::from_iter([("array".to_owned(), kind.clone().into()), ("shape".to_owned(), json!(shape))]);
    if let Some((width, read)) = reader(&kind) {
        let all = content.chunks_exact(width).map(&read);
        told.insert("first".to_owned(), all.clone().take(SHOWN).collect());
        let numbers = || all.clone().take(LOOKED_AT).filter_map(|value| value.as_f64());
        if content.len() / width > SHOWN && content.len() / width <= LOOKED_AT && numbers().next().is_some() {
            told.insert("min".to_owned(), float(numbers().fold(f64::INFINITY, f64::min)));
            told.insert("max".to_owned(), float(numbers().fold(f64::NEG_INFINITY, f64::max)));
        }
    }
    Value::Object(told)
}

/// How elements of NumPy's plain types are read, and how many bytes each has.
#[expect(clippy::type_complexity, reason = "it is used once, above")]
fn reader(kind: &str) -> Option<(usize, Box<dyn Fn(&[u8]) -> Value>)> {
    let (order, code) = kind.split_at_checked(1)?;
    let is_big = order == ">";
    macro_rules! number {
        ($type:ty, $tell:expr) => {{
            let read = move |element: &[u8]| {
                let element = element.try_into().expect("chunks of the type's size");
                $tell(if is_big { <$type>::from_be_bytes(element) } else { <$type>::from_le_bytes(element) })
            };
            (size_of::<$type>(), Box::new(read) as Box<dyn Fn(&[u8]) -> Value>)
        }};
    }
    Some(match code {
        "b1" => (1, Box::new(|element| Value::Bool(element[0] != 0))),
        "u1" => number!(u8, Value::from),
        "u2" => number!(u16, Value::from),
        "u4" => number!(u32, Value::from),
        "u8" => number!(u64, Value::from),
        "i1" => number!(i8, Value::from),
        "i2" => number!(i16, Value::from),
        "i4" => number!(i32, Value::from),
        "i8" => number!(i64, Value::from),
        // By its own shortest digits, not by those of the double next to it.
        "f4" => number!(f32, |number: f32| float(number.to_string().parse().unwrap_or(f64::NAN))),
        "f8" => number!(f64, float),
        _ => return None,
    })
}

/// Tells the value that tokens describe.
struct Teller<'a> {
    message: &'a Message,
    tokens: std::vec::IntoIter<Token>,
    /// How many containers there may still be.
    containers: Cell<usize>,
}

impl Teller<'_> {
    fn part(&self, at: Part) -> Result<&[u8], String> {
        at.of(self.message).ok_or_else(|| "a part outside of it, or not aligned".into())
    }

    fn next(&mut self, level: usize) -> Result<Value, String> {
        let token = self.tokens.next().ok_or("fewer parts than announced")?;
        Ok(match token {
            Token::Bytes(at) => bytes(self.part(at)?),
            Token::Array { kind, shape, at, .. } => array(&kind, &shape, self.part(at)?),
            Token::Pickle { stream, buffers } => {
                let buffers: u64 = buffers.iter().map(|buffer| buffer.len).sum();
                json!({ "pickle": stream.len, "beside": buffers })
            }
            Token::Arrow { class, schema, chunks } => {
                let rows: u64 = chunks.iter().filter_map(|chunk| chunk.lengths.first()).sum();
                json!({ "arrow": class_name(class), "rows": rows, "schema": self.schema(schema)? })
            }
            Token::Packed { at, .. } => {
                let stream = self.part(at)?.to_vec(); // Its sender may change it meanwhile.
                let containers = Cell::new(self.containers.get());
                let value = packed::read(&stream, level, &containers, self)?;
                self.containers.set(containers.get());
                value
            }
        })
    }

    fn schema(&self, words: Words) -> Result<Value, String> {
        let field = match words {
            Words::Explained(offset, len) => {
                let entry = byref::Entry { offset, len };
                let explained = self.message.explained(entry, |bytes| Field::decode(&bytes));
                explained.ok_or("an Arrow type that it never described")??
            }
            Words::Here(at) => {
                let words: Box<[u8]> = self.part(at)?.into(); // A copy, as above.
                Arc::new(Field::decode(&words)?)
            }
        };
        Ok(described(&field))
    }
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::Array => "array",
        Class::Batch => "record batch",
        Class::Chunked => "chunked array",
        Class::Table => "table",
    }
}

/// An Arrow type: a name, or the fields of a structure.
fn described(field: &Field) -> Value {
    let format = field.format();
    if format == "+s" {
        let each = field.children.iter().map(|child| (child.name().to_owned(), described(child)));
        return Value::Object(each.collect());
    }
    let name = match format {
        "n" => "null",
        "b" => "bool",
        "c" => "int8",
        "C" => "uint8",
        "s" => "int16",
        "S" => "uint16",
        "i" => "int32",
        "I" => "uint32",
        "l" => "int64",
        "L" => "uint64",
        "e" => "float16",
        "f" => "float32",
        "g" => "float64",
        "z" | "Z" | "vz" => "binary",
        "u" | "U" | "vu" => "string",
        "tdD" => "date32",
        "tdm" => "date64",
        other => other,
    };
    match (&field.dictionary, &field.children[..]) {
        (Some(values), _) => json!({ "dictionary": described(values) }),
        (None, []) => Value::String(name.to_owned()),
        (None, children) => json!({ name: children.iter().map(described).collect::<Vec<_>>() }),
    }
}

impl Builder for Teller<'_> {
    type Value = Value;
    type Error = String;

    fn wrong(&mut self, why: &'static str) -> String {
        why.into()
    }

    fn none(&mut self) -> Value {
        Value::Null
    }

    fn truth(&mut self, flag: bool) -> Value {
        flag.into()
    }

    fn int(&mut self, number: i64) -> Result<Value, String> {
        Ok(number.into())
    }

    fn unsigned(&mut self, number: u64) -> Result<Value, String> {
        Ok(number.into())
    }

    fn long(&mut self, digits: &str) -> Result<Value, String> {
        let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
        Ok(format!("{sign}0x{digits}").into())
    }

    fn float(&mut self, number: f64) -> Result<Value, String> {
        Ok(float(number))
    }

    fn complex(&mut self, real: f64, imaginary: f64) -> Result<Value, String> {
        Ok(json!({ "real": float(real), "imag": float(imaginary) }))
    }

    fn text(&mut self, bytes: &[u8]) -> Result<Value, String> {
        std::str::from_utf8(bytes).map(|text| shortened(text).into()).map_err(|_| "text that is none".into())
    }

    fn other(&mut self, level: usize) -> Result<Value, String> {
        self.next(level)
    }

    fn sequence(&mut self, _: Sequence, values: std::vec::Drain<'_, Value>) -> Result<Value, String> {
        Ok(values.collect())
    }

    fn floats(&mut self, _: Sequence, numbers: impl ExactSizeIterator<Item = f64>) -> Result<Value, String> {
        Ok(numbers.map(float).collect())
    }

    fn ints(&mut self, _: Sequence, numbers: impl ExactSizeIterator<Item = i64>) -> Result<Value, String> {
        Ok(numbers.collect())
    }

    fn truths(&mut self, _: Sequence, flags: impl ExactSizeIterator<Item = bool>) -> Result<Value, String> {
        Ok(flags.collect())
    }

    fn dict(&mut self) -> Result<Value, String> {
        Ok(Value::Object(Map::new()))
    }

    fn entry(&mut self, dict: &mut Value, key: Value, value: Value) -> Result<(), String> {
        let key = match key {
            Value::String(text) => text,
            other => other.to_string(),
        };
        if let Value::Object(entries) = dict {
            entries.insert(key, value);
        }
        Ok(())
    }
}

/// A value for people, in one line.
pub fn line(value: &Value) -> String {
    match value {
        Value::Object(entries) => leaf(entries).unwrap_or_else(|| value.to_string()),
        _ => tree(value),
    }
}

/// A value for people: a line, or a tree of lines.
pub fn tree(value: &Value) -> String {
    let mut text = String::new();
    write_tree(value, 0, &mut text);
    text
}

fn write_tree(value: &Value, level: usize, text: &mut String) {
    let Value::Object(entries) = value else { return write_leaf(value, text) };
    if let Some(leaf) = leaf(entries) {
        return text.push_str(&leaf);
    }
    for (index, (key, value)) in entries.iter().enumerate() {
        if index > 0 || level > 0 {
            text.push('\n');
            text.push_str(&"  ".repeat(level));
        }
        let is_tree = value.as_object().is_some_and(|entries| leaf(entries).is_none() && !entries.is_empty());
        let _ = write!(text, "{key}:{}", if is_tree { "" } else { " " });
        write_tree(value, level + 1, text);
    }
    if entries.is_empty() {
        text.push_str("{}");
    }
}

fn write_leaf(value: &Value, text: &mut String) {
    match value {
        Value::String(content) => text.push_str(content),
        Value::Array(elements) => {
            let each = elements.iter().take(SHOWN).map(|element| match element {
                Value::Object(entries) => leaf(entries).unwrap_or_else(|| element.to_string()),
                Value::String(content) => content.clone(),
                other => other.to_string(),
            });
            let more = if elements.len() > SHOWN { format!(", ... {} in all", elements.len()) } else { String::new() };
            let _ = write!(text, "[{}{more}]", each.collect::<Vec<_>>().join(", "));
        }
        other => {
            let _ = write!(text, "{other}");
        }
    }
}

/// What this module itself makes of bytes, arrays and the like, in one line.
fn leaf(entries: &Map<String, Value>) -> Option<String> {
    let get = |key: &str| entries.get(key);
    let inline = |value: &Value| {
        let mut text = String::new();
        write_leaf(value, &mut text);
        text
    };
    if let (Some(count), Some(Value::String(text))) = (get("bytes"), get("text").or(get("hex"))) {
        let is_text = entries.contains_key("text");
        return Some(if is_text { text.clone() } else { format!("{count} bytes {text}") });
    }
    if let (Some(Value::String(kind)), Some(Value::Array(shape))) = (get("array"), get("shape")) {
        let shape: Vec<_> = shape.iter().map(Value::to_string).collect();
        let mut told = format!("array {kind} ({})", shape.join(", "));
        if let (Some(least), Some(most)) = (get("min"), get("max")) {
            let _ = write!(told, ", {} to {}", inline(least), inline(most));
        }
        if let Some(Value::Array(first)) = get("first") {
            let product: Option<u64> = shape.iter().map(|extent| extent.parse::<u64>().ok()).product();
            let more = if product.is_some_and(|all| all > first.len() as u64) { ", ..." } else { "" };
            let first = inline(&Value::Array(first.clone()));
            let _ = write!(told, ", {}{more}]", first.trim_end_matches(']'));
        }
        return Some(told);
    }
    if let (Some(Value::String(class)), Some(rows), Some(schema)) = (get("arrow"), get("rows"), get("schema")) {
        return Some(format!("Arrow {class} of {rows} rows, {schema}"));
    }
    if let (Some(len), Some(beside)) = (get("pickle"), get("beside")) {
        return Some(format!("pickle of {len} bytes, {beside} beside it"));
    }
    get("unreadable").map(|why| format!("unreadable: {}", inline(why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_where_they_can_be() {
        assert_eq!(bytes(b"two\tlines\n"), json!({"bytes": 10, "text": "two\tlines\n"}));
        assert_eq!(bytes(b"\x00\xff"), json!({"bytes": 2, "hex": "00ff"}));
        assert_eq!(bytes(&[7; 17]), json!({"bytes": 17, "hex": format!("{}...", "07".repeat(16))}));
        assert_eq!(tree(&bytes(b"hello")), "hello");
        assert_eq!(tree(&bytes(b"\x00\xff")), "2 bytes 00ff");
        let long = "ä".repeat(SHOWN_TEXT + 1);
        assert_eq!(bytes(long.as_bytes())["text"].as_str().unwrap().chars().count(), SHOWN_TEXT + 3);
    }

    #[test]
    fn arrays_are_summarised() {
        let content: Vec<u8> = (0..20u16).flat_map(|number| number.to_be_bytes()).collect();
        let told = array(b">u2", &[4, 5], &content);
        assert_eq!((&told["min"], &told["max"]), (&json!(0.0), &json!(19.0)));
        assert_eq!(told["first"].as_array().unwrap().len(), SHOWN);
        assert!(tree(&told).starts_with("array >u2 (4, 5), 0.0 to 19.0, [0, 1, 2,"), "{}", tree(&told));
        let nan = array(b"<f4", &[1], &f32::NAN.to_le_bytes());
        assert_eq!(nan["first"], json!(["NaN"]));
        assert_eq!(array(b"<M8[ns]", &[1], &[0; 8]), json!({"array": "<M8[ns]", "shape": [1]}));
        assert_eq!(array(b"", &[], &[]), json!({"array": "", "shape": []}));
    }
}
