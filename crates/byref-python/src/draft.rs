//! What can be sent beside bytes and arrays: Arrow data, containers of parts, pickles, and messages of these kinds.
#![allow(unsafe_code)]

use crate::array::{self, describe_type};
use crate::arrow::{self, Imported};
use crate::errors::to_python;
use crate::message::Message;
use crate::outlet::Outlet;
use crate::owner::{Memory, Owner};
use crate::packed::{Other, Packing, Unpackable, pack, too_deep};
use crate::payload::{Payload, numpy_scalar};
use crate::refusals::{check_polars, class_name, located, resolve};
use crate::value;
use byref::{Attributes, Encoded, HeaderValue, Layout};
use byref_parts::arrow::gather;
use byref_parts::bounds::{MOST_LEVELS, MOST_TOKENS};
use byref_parts::layout::{Place, Whole};
use byref_parts::packed::{self, MOST_CONTAINERS};
use byref_parts::plan::{self, Part, Source};
use byref_parts::tokens::{self, Token, Words};
use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyMemoryView, PyTuple};

type Plan<'a> = plan::Plan<'a, &'a Bound<'a, PyUntypedArray>>;

/// What a message is to be made of, in this process's memory.
pub struct Draft<'py>(Vec<Item<'py>>);

enum Item<'py> {
    /// A container of scalars, into which all further items belong, in order.
    Packed(Packing),
    Payload(Payload<'py>),
    /// A NumPy scalar, as an array.
    Scalar(Bound<'py, PyUntypedArray>),
    Arrow(Imported),
    /// A received message, how its payload is to be understood, and how deep it lies.
    Message(byref::Message, Option<Layout>, usize),
    Pickle {
        stream: Bound<'py, PyBytes>,
        buffers: Vec<Payload<'py>>,
    },
}

impl<'py> Draft<'py> {
    /// What `data`, for that topic, is: the payload of bytes or an array, or a draft of anything else.
    #[inline]
    pub fn of(data: &Bound<'py, PyAny>, topic: &str) -> PyResult<Result<Payload<'py>, Self>> {
        if data.is_exact_instance_of::<PyBytes>() || data.is_exact_instance_of::<PyUntypedArray>() {
            return Payload::of(data).map(Ok).map_err(|error| located(data.py(), topic, "", error));
        }
        let mut items = Vec::new();
        match Self::of_other(data, &mut items) {
            Ok(Some(payload)) => Ok(Ok(payload)),
            Ok(None) => Ok(Err(Draft(items))),
            Err((place, error)) => Err(located(data.py(), topic, &place, error)),
        }
    }

    /// The error comes with its place.
    fn of_other(data: &Bound<'py, PyAny>, items: &mut Vec<Item<'py>>) -> Result<Option<Payload<'py>>, (String, PyErr)> {
        let here = |error| (String::new(), error);
        let packed = pack(data).map_err(|Unpackable { stream, others, error }| {
            let key = |number: usize| key_of(numpy_scalar(&others[number].object).ok().flatten().as_ref());
            (place_in(&stream, usize::MAX, key), error)
        })?;
        if let Some((packing, others)) = packed {
            items.reserve(1 + others.len());
            items.push(Item::Packed(packing));
            for other in &others {
                collect(other, items).map_err(|error| (place_of(items, items.len()), error))?;
            }
            Ok(None)
        } else if let Ok(message) = data.cast::<Message>() {
            match message.get().parts(data.py()).map_err(here)? {
                Some((message, layout)) => items.push(Item::Message(message, Some(layout), 0)),
                None => return Payload::of(data).map(Some).map_err(here),
            }
            Ok(None)
        } else if has_own_payload(data) {
            Payload::of(data).map(Some).map_err(here)
        } else if let Some(array) = numpy_scalar(data).map_err(here)? {
            Payload::of(array.as_any()).map(Some).map_err(here)
        } else {
            arrow_or_payload(data, items).map_err(here)
        }
    }

    /// The stream of a value or pickle that has nothing beside it.
    pub fn whole(&self) -> Option<(Whole, &[u8])> {
        match &self.0[..] {
            [Item::Packed(packing)] => Some((Whole::Packed, &packing.stream)),
            [Item::Pickle { stream, buffers }] if buffers.is_empty() => Some((Whole::Pickle, stream.as_bytes())),
            _ => None,
        }
    }

    /// The pickle of any object, its buffers beside it.
    pub fn pickle(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = object.py();
        let dumps = DUMPS.get_or_try_init(py, || py.import("byref._pickles")?.getattr("dumps").map(Bound::unbind))?;
        let (stream, buffers): (Bound<'py, PyBytes>, Bound<'py, PyList>) =
            dumps.bind(py).call1((object,))?.extract()?;
        let buffers = buffers.iter().map(|buffer| Payload::of(&buffer)).collect::<PyResult<_>>()?;
        Ok(Draft(vec![Item::Pickle { stream, buffers }]))
    }

    /// Where everything goes in a message that `outlet` sends.
    pub fn plan<'a>(
        &'a self,
        py: Python<'py>,
        outlet: &'a dyn Outlet,
        headers: Vec<(String, HeaderValue)>,
    ) -> PyResult<Planned<'a>> {
        let mut planner = Planner {
            py,
            outlet,
            plan: Plan::default(),
            tokens: Vec::new(),
            others: self.0.len() as u64 - 1,
            containers: 0,
            refers: false,
        };
        for (index, item) in self.0.iter().enumerate() {
            planner.add(item).map_err(|error| located(py, outlet.topic(), &place_of(&self.0, index), error))?;
        }
        if planner.tokens.len() > MOST_TOKENS || planner.containers > MOST_CONTAINERS {
            return Err(too_many());
        }
        let Planner { mut plan, mut tokens, refers, .. } = planner;
        // Behind all arrays.
        if let (Some(Item::Packed(packing)), Some(Token::Packed { at, .. })) = (self.0.first(), tokens.first_mut()) {
            *at = plan.copy(&packing.stream);
        }
        let description = tokens::encode(&tokens);
        let at = plan.make(description.len(), move |to| to.copy_from_slice(&description));
        let attributes = Attributes { layout: Some(value::layout(Place::Described(at))), headers };
        let encoded = attributes.encode().map_err(|error| to_python(py, error))?;
        let attributes = if refers { encoded.with_glossary() } else { encoded.in_pool() };
        Ok(Planned { plan, attributes })
    }
}

/// A message that lacks its memory.
pub struct Planned<'a> {
    plan: Plan<'a>,
    pub attributes: Encoded,
}

impl Planned<'_> {
    /// How many bytes the payload takes.
    pub fn size(&self) -> usize {
        self.plan.size as usize
    }

    /// Copies everything to its place in a loan of that size; gives the attributes to send along.
    pub fn fill(self, py: Python<'_>, loan: &mut byref::Loan) -> PyResult<Encoded> {
        fill(py, loan, self.plan.parts)?;
        Ok(self.attributes)
    }
}

/// Whether it is sent by its buffer although it may offer Arrow data, too.
fn has_own_payload(data: &Bound<'_, PyAny>) -> bool {
    data.is_exact_instance_of::<PyByteArray>()
        || data.is_exact_instance_of::<PyMemoryView>()
        || data.is_exact_instance_of::<PyUntypedArray>()
}

/// Appends the Arrow data that an object stands for, or gives the bytes or the array.
fn arrow_or_payload<'py>(data: &Bound<'py, PyAny>, items: &mut Vec<Item<'py>>) -> PyResult<Option<Payload<'py>>> {
    let found = resolve(data)?;
    if has_own_payload(&found) {
        return Payload::of_resolved(&found).map(Some);
    }
    let imported = arrow::import(&found);
    if imported.as_ref().map_or(true, |imported| imported.as_ref().is_some_and(|it| it.kind.may_be_pointers)) {
        check_polars(&found)?;
    }
    match imported? {
        Some(imported) => items.push(Item::Arrow(imported)),
        None => return Payload::of_resolved(&found).map(Some),
    }
    Ok(None)
}

/// Appends what belongs beside a packed container, as one item.
fn collect<'py>(other: &Other<'py>, items: &mut Vec<Item<'py>>) -> PyResult<()> {
    let (data, py) = (&other.object, other.object.py());
    if let Some(array) = numpy_scalar(data)? {
        items.push(Item::Scalar(array));
    } else if other.is_key {
        let found = class_name(data);
        let text = format!(
            "cannot send a dict with a key of type {found}; keys are str, numbers, bool or None, of these types exactly, or \
             NumPy scalars; convert the keys, or send list(x.items())"
        );
        return Err(PyTypeError::new_err(text));
    } else if let Ok(message) = data.cast::<Message>() {
        let (message, layout) = message.get().whole(py)?;
        items.push(Item::Message(message, layout, other.level));
    } else if has_own_payload(data) || data.is_exact_instance_of::<PyBytes>() {
        items.push(Item::Payload(Payload::of(data)?));
    } else if let Some(payload) = arrow_or_payload(data, items)? {
        items.push(Item::Payload(payload));
    }
    Ok(())
}

/// The most steps of a place that are told, from the outside and from the inside.
const MOST_STEPS: (usize, usize) = (6, 3);
/// The most characters of a key that are told.
const MOST_KEY: usize = 40;

/// Where in a container the item of that index belongs: `['a'][3]`.
fn place_of(items: &[Item<'_>], index: usize) -> String {
    match (items.first(), index.checked_sub(1)) {
        (Some(Item::Packed(packing)), Some(other)) => {
            let key = |number: usize| match &items[number + 1] {
                Item::Scalar(array) => key_of(Some(array)),
                _ => key_of(None),
            };
            place_in(&packing.stream, other, key)
        }
        _ => String::new(),
    }
}

/// A key that is a NumPy scalar, as text.
fn key_of(array: Option<&Bound<'_, PyUntypedArray>>) -> String {
    let key = array.and_then(|array| array.get_item(PyTuple::empty(array.py())).ok());
    key.map_or_else(|| "?".to_owned(), |key| key.to_string())
}

/// Where the value of that number beside a stream belongs, or what follows its end. `key` tells a key that stands beside it.
fn place_in(stream: &[u8], other: usize, key: impl Fn(usize) -> String) -> String {
    let cut = |step: String| match step.char_indices().nth(MOST_KEY) {
        Some((end, _)) => format!("[{}...]", &step[..end]),
        None => format!("[{step}]"),
    };
    let steps: Vec<String> = packed::place(stream, other, key).into_iter().map(cut).collect();
    let (first, last) = MOST_STEPS;
    if steps.len() <= first + last {
        return steps.concat();
    }
    format!("{}...{}", steps[..first].concat(), steps[steps.len() - last..].concat())
}

fn too_many() -> PyErr {
    let text =
        format!("cannot send a message of more than {MOST_TOKENS} parts and containers; put numbers into arrays");
    PyValueError::new_err(text)
}

struct Planner<'p, 'a> {
    py: Python<'p>,
    outlet: &'a dyn Outlet,
    plan: Plan<'a>,
    tokens: Vec<Token>,
    /// How many items belong into the packed container.
    others: u64,
    /// How many containers are packed.
    containers: usize,
    /// Something is explained in the glossary.
    refers: bool,
}

impl<'a> Planner<'_, 'a> {
    fn add(&mut self, item: &'a Item<'a>) -> PyResult<()> {
        let token = match item {
            Item::Packed(packing) => {
                self.containers += packing.containers;
                // Its place is known when those of the others are.
                Token::Packed { at: Part { at: 0, len: 0 }, others: self.others }
            }
            Item::Payload(payload) => self.payload(payload)?,
            Item::Scalar(array) => self.array(array, true)?,
            Item::Arrow(Imported { kind, class, arrays }) => {
                let plan = &mut self.plan;
                let chunks = arrays.iter().map(|array| gather(&kind.field, array, plan)).collect::<Result<_, _>>();
                let refused = |why| PyValueError::new_err(format!("cannot send this Arrow data: {why}"));
                let schema = self.explain(&kind.encoded)?;
                Token::Arrow { class: *class, schema, chunks: chunks.map_err(refused)? }
            }
            Item::Message(message, layout, level) => return self.message(message, layout.as_ref(), *level),
            Item::Pickle { stream, buffers } => {
                let stream = self.plan.copy(stream.as_bytes());
                let buffers = buffers.iter().map(|buffer| self.part(buffer)).collect();
                Token::Pickle { stream, buffers }
            }
        };
        self.tokens.push(token);
        Ok(())
    }

    fn payload(&mut self, payload: &'a Payload<'a>) -> PyResult<Token> {
        match payload {
            Payload::Array(array) => self.array(array, false),
            _ => Ok(Token::Bytes(self.part(payload))),
        }
    }

    fn part(&mut self, payload: &'a Payload<'a>) -> Part {
        match (payload.bytes(), payload) {
            (Some(bytes), _) => self.plan.copy(bytes),
            (None, Payload::Array(array)) => self.plan.add(payload.len(), Source::Own(array)),
            (None, _) => unreachable!("only arrays come in pieces"),
        }
    }

    fn array(&mut self, array: &'a Bound<'a, PyUntypedArray>, scalar: bool) -> PyResult<Token> {
        let shape = array.shape().iter().map(|extent| *extent as u64).collect();
        // SAFETY: a concurrent writer tears this one message, no more.
        let at = match unsafe { array::contiguous_bytes(array) } {
            Some(bytes) => self.plan.copy(bytes),
            None => self.plan.add(array.len() * array::itemsize(&array.dtype()), Source::Own(array)),
        };
        Ok(Token::Array { kind: describe_type(&array.dtype())?, shape, at, scalar })
    }

    /// A message as a part of another: its payload as it is, its description moved to where that will be.
    fn message(&mut self, message: &'a byref::Message, layout: Option<&Layout>, level: usize) -> PyResult<()> {
        let Some(layout) = layout else {
            let at = self.plan.copy(message);
            self.tokens.push(Token::Bytes(at));
            return Ok(());
        };
        // Parts lie before the description.
        let (inner, parts_end) = match value::place(layout) {
            Some(Place::Described(at)) => (tokens::decode(message, at), at.at as usize),
            Some(Place::Whole(whole)) => (Ok(vec![whole.token(message.len())]), message.len()),
            None => {
                let Layout { kind, shape } = layout.clone();
                let at = self.plan.copy(message);
                self.tokens.push(Token::Array { kind, shape, at, scalar: false });
                return Ok(());
            }
        };
        let py = self.py;
        let wrong = |why: String| value::wrong(py, message.topic(), &why);
        let inner = inner.map_err(wrong)?;
        let (levels, containers) = tokens::depth(&inner, message).map_err(wrong)?;
        self.containers += containers;
        if level + levels > MOST_LEVELS {
            return Err(too_deep());
        }
        let payload = &message[..parts_end];
        let distance = self.plan.copy(payload).at;
        for mut token in inner {
            token.relocate(payload, distance).ok_or_else(|| wrong("a part outside of it, or not aligned".into()))?;
            if let Token::Arrow { schema, .. } = &mut token
                && let Words::Explained(..) = schema
            {
                let field = value::field(message, *schema).map_err(wrong)?;
                *schema = self.explain(&field.encode())?;
            }
            self.tokens.push(token);
        }
        Ok(())
    }

    /// Where an Arrow type is described for all messages; in this one, if there is no room for that.
    fn explain(&mut self, encoded: &[u8]) -> PyResult<Words> {
        if let Some(entry) = explain(self.py, self.outlet, encoded)? {
            self.refers = true;
            return Ok(Words::Explained(entry.offset, entry.len));
        }
        let words = encoded.to_vec();
        Ok(Words::Here(self.plan.make(words.len(), move |to| to.copy_from_slice(&words))))
    }
}

/// Describes an Arrow type in the publisher's glossary, if there is room for it.
pub fn explain(py: Python<'_>, outlet: &dyn Outlet, encoded: &[u8]) -> PyResult<Option<byref::Entry>> {
    outlet.explain(encoded).map_err(|error| to_python(py, error))
}

/// From this size on, the interpreter is released while parts are copied, in bytes.
const COPY_DETACHED: u64 = 64 << 10;

/// Copies all parts to their places.
fn fill(
    py: Python<'_>,
    loan: &mut byref::Loan,
    parts: Vec<(Part, Source<'_, &Bound<'_, PyUntypedArray>>)>,
) -> PyResult<()> {
    let memory = loan.memory().map_err(|error| to_python(py, error))?;
    let mut elements = Vec::new();
    let mut copies = Vec::new();
    let mut size = 0;
    for (part, source) in parts {
        let range = part.at as usize..(part.at + part.len) as usize;
        match source {
            Source::Own(array) => elements.push((range, array)),
            Source::Copy(bytes) => {
                size += part.len;
                copies.push((range, Ok(bytes)));
            }
            Source::Make(write) => {
                size += part.len;
                copies.push((range, Err(write)));
            }
        }
    }
    loan.count_copied(loan.len());
    let copy = || {
        for (range, source) in copies {
            match source {
                Ok(from) => loan.write(range.start, from),
                Err(write) => write(&mut loan[range]),
            }
        }
    };
    if size < COPY_DETACHED {
        copy()
    } else {
        py.detach(copy)
    }
    for (range, array) in elements {
        let shape: Vec<u64> = array.shape().iter().map(|extent| *extent as u64).collect();
        // Another thread may have changed it meanwhile.
        if array::size_of_shape(&shape, array::itemsize(&array.dtype()))? != range.len() {
            return Err(crate::outlet::resized());
        }
        let data = memory.as_ptr().wrapping_add(range.start);
        let owner = Owner::wrap(py, Memory::Loan(memory.clone()))?;
        // SAFETY: the plan has so many bytes for this array in the loan, which the owner keeps.
        let place = unsafe { array::over(array.dtype(), &shape, data, true, owner) }?;
        array::copy_elements(&place, array)?;
    }
    Ok(())
}
