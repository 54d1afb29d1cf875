//! `Message`: a lease, seen from Python.
#![allow(unsafe_code)]

use crate::array::{self, ElementType, contiguous_strides};
use crate::arrow::Arrow;
use crate::dlpack;
use crate::ending;
use crate::errors::{closed, to_python};
use crate::foreign::{Foreign, ForeignViews};
use crate::guarded::Guarded;
use crate::headers;
use crate::identity::Identity;
use crate::owner::{Memory, Owner};
use crate::value::{self, Shown};
use byref::{Cause, Layout};
use byref_parts::arrow::{Class, plain};
use byref_parts::layout::{Place, Whole};
use byref_parts::packed;
use byref_parts::plan::ALIGNMENT;
use byref_parts::tokens::{self, Token};
use numpy::PyArrayDescr;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule, PyDict, PyMemoryView, PyTuple};
use std::ffi::CString;
use std::os::raw::{c_int, c_void};
use std::sync::{Arc, OnceLock};

#[doc = doc!("PublisherInfo")]
#[pyclass(frozen, eq, hash, module = "byref")]
#[derive(PartialEq, Eq, Hash)]
pub struct PublisherInfo(pub Arc<byref::PublisherInfo>);

#[pymethods]
impl PublisherInfo {
    #[doc = doc!("PublisherInfo.id")]
    #[getter]
    fn id(&self) -> String {
        format!("{:032x}", self.0.id)
    }

    #[doc = doc!("PublisherInfo.pid")]
    #[getter]
    fn pid(&self) -> i32 {
        self.0.pid
    }

    #[doc = doc!("PublisherInfo.name")]
    #[getter]
    fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    #[doc = doc!("PublisherInfo.topic")]
    #[getter]
    fn topic(&self) -> &str {
        &self.0.topic
    }

    fn __repr__(&self) -> String {
        let name = self.0.name.as_deref().map(|name| format!(" {name:?}")).unwrap_or_default();
        format!("<byref.PublisherInfo{name} of {:?}, process {}>", self.0.topic, self.0.pid)
    }
}

#[doc = doc!("Message")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Message {
    state: Guarded<State>,
    manner: Manner,
    /// Made with the first typed buffer.
    extents: OnceLock<Box<Extents>>,
}

/// How a subscriber wants its messages.
#[derive(Clone, Copy, Default)]
pub struct Manner {
    /// `value` is a private writable view.
    pub writable: bool,
    /// `value` may be unpickled.
    pub allow_pickle: bool,
    /// A mailbox received it.
    pub is_direct: bool,
}

struct State {
    /// `None` after `release()`.
    message: Option<byref::Message>,
    /// What it may be acknowledged by after that.
    receipt: Option<byref::Receipt>,
    /// Buffers and arrays that show the payload.
    views: usize,
    /// Views outside of Python's objects; made with the first of them.
    foreign: Option<ForeignViews>,
}

impl State {
    fn open_views(&self) -> usize {
        self.views + self.foreign.as_ref().map_or(0, ForeignViews::count)
    }
}

/// What a typed view of a payload needs.
struct View {
    element: Option<Arc<ElementType>>,
    shape: Vec<u64>,
}

impl Message {
    #[inline]
    pub fn new(message: byref::Message, manner: Manner) -> Self {
        Message {
            state: Guarded::new(State { message: Some(message), receipt: None, views: 0, foreign: None }),
            manner,
            extents: OnceLock::new(),
        }
    }

    /// Runs `look` on the message, unless it was released; with its lock held (see [`guarded`](crate::guarded)).
    fn with<T>(&self, py: Python<'_>, look: impl FnOnce(&byref::Message) -> T + Send) -> PyResult<T> {
        let seen = self.state.with(|state| state.message.as_ref().map(look));
        seen.ok_or_else(|| released(py))
    }

    /// Counts one more view; its bytes stay valid until `close_view`.
    fn open_view(&self, py: Python<'_>) -> PyResult<(*mut u8, usize)> {
        let bytes = self.state.with(|State { message, views, .. }| {
            let message = message.as_ref()?;
            *views += 1;
            Some((message.as_ptr().cast_mut(), message.len()))
        });
        bytes.ok_or_else(|| released(py))
    }

    pub fn close_view(&self) {
        self.state.with(|state| state.views -= 1);
    }

    /// A view that lives outside of Python's objects, with a hold of its own.
    pub fn open_foreign(&self, py: Python<'_>) -> PyResult<Foreign> {
        let opened = self.state.with(|State { message, foreign, .. }| {
            Some(Foreign::new(message.as_ref()?.clone(), foreign.get_or_insert_default()))
        });
        opened.ok_or_else(|| released(py))
    }

    /// The message itself, and how its payload is to be understood.
    pub fn whole(&self, py: Python<'_>) -> PyResult<(byref::Message, Option<Layout>)> {
        let (message, layout) = self.with(py, |message| (message.clone(), layout_of(message)))?;
        if layout.as_ref().is_some_and(|layout| value::place(layout).is_none()) {
            self.view(py)?; // The array has to be one.
        }
        Ok((message, layout))
    }

    /// The message itself if it has several parts, and where these are described.
    pub fn parts(&self, py: Python<'_>) -> PyResult<Option<(byref::Message, Layout)>> {
        self.with(py, |message| {
            let layout = layout_of(message).filter(|layout| value::place(layout).is_some());
            layout.map(|layout| (message.clone(), layout))
        })
    }

    /// What the message consists of; `None`: bytes, or an array.
    fn tokens(&self, py: Python<'_>) -> PyResult<Option<Vec<Token>>> {
        let tokens = self.with(py, |message| {
            let at = match value::place(&layout_of(message)?)? {
                Place::Whole(whole) => return Some(Ok(vec![whole.token(message.len())])),
                Place::Described(at) => at,
            };
            if !(message.as_ptr() as usize).is_multiple_of(ALIGNMENT as usize) {
                return Some(Err((message.topic().to_owned(), "it is not aligned".to_owned())));
            }
            Some(tokens::decode(message, at).map_err(|why| (message.topic().to_owned(), why)))
        })?;
        tokens.transpose().map_err(|(topic, why)| value::wrong(py, &topic, &why))
    }

    /// Arrow data over the payload, if that is what it is.
    fn arrow(&self, py: Python<'_>) -> PyResult<Arrow> {
        ending::outlive();
        if let Some(tokens) = self.tokens(py)? {
            let payload = Arc::new(self.open_foreign(py)?);
            return match <[Token; 1]>::try_from(tokens) {
                Ok([Token::Arrow { class, schema, chunks }]) => {
                    let field =
                        value::field(&payload, schema).map_err(|why| value::wrong(py, payload.topic(), &why))?;
                    Ok(Arrow::new(field, class, chunks, payload))
                }
                _ => Err(PyTypeError::new_err("this message is no Arrow data; take its parts with msg.value")),
            };
        }
        // What was checked is what is used: the attributes are not decoded again.
        let View { element, shape } = self.view(py)?;
        let itemsize = element.as_ref().map_or(1, |element| element.itemsize);
        let kind: String = match &element {
            Some(element) => element.dtype.bind(py).getattr("str")?.extract()?,
            None => "|u1".to_owned(),
        };
        let payload = self.open_foreign(py)?;
        let (field, chunk) = plain(&kind, &shape, payload.len()).map_err(PyTypeError::new_err)?;
        if !(payload.as_ptr() as usize).is_multiple_of(itemsize.max(1)) {
            return Err(PyTypeError::new_err("this array is not aligned as Arrow data have to be; use msg.copy()"));
        }
        Ok(Arrow::new(Arc::new(field), Class::Array, vec![chunk], Arc::new(payload)))
    }

    /// The value of a message that has nothing but scalars and their containers, or is a short pickle.
    fn whole_value<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let found = self.with(py, |message| {
            let Some(Place::Whole(whole)) = value::place(&layout_of(message)?) else { return None };
            // A copy, since its sender may change it meanwhile; a large pickle is read where it lies.
            let is_copied = whole == Whole::Packed || message.len() <= byref::INLINE_LIMIT;
            is_copied.then(|| (whole, Arc::clone(message.publisher()), message.to_vec()))
        })?;
        let value = found.map(|(whole, publisher, stream)| match whole {
            Whole::Packed => value::unpacked(py, &publisher.topic, &stream),
            Whole::Pickle => value::unpickled(py, &publisher.topic, &stream, self.manner.allow_pickle),
        });
        value.transpose()
    }

    /// The value that `tokens` describe, over the payload or over a private copy of it.
    fn value_of<'py>(slf: &Bound<'py, Self>, tokens: Vec<Token>, writable: bool) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let payload = Arc::new(this.open_foreign(py)?);
        let (data, memory) = if writable {
            let private = payload.writable().map_err(|error| to_python(py, error))?;
            (private.as_ptr(), Memory::Private(private))
        } else {
            (this.open_view(py)?.0, Memory::Message(slf.clone().unbind()))
        };
        let owner = Owner::wrap(py, memory)?;
        Shown { payload, data, writable, owner, allow_pickle: this.manner.allow_pickle }.value(py, tokens)
    }

    /// What `repr` says of the payload; nothing of plain bytes, and of what its sender described wrongly.
    fn what(&self, py: Python<'_>) -> String {
        if let Ok(Some(tokens)) = self.tokens(py) {
            return match tokens.first() {
                Some(Token::Packed { at, .. }) => {
                    let told = self.with(py, |message| packed::head(at.of(message)?));
                    told.ok().flatten().map_or_else(String::new, |(kind, entries)| format!("{kind} of {entries}, "))
                }
                Some(Token::Arrow { class, .. }) => format!("Arrow {class:?}, "),
                Some(Token::Pickle { .. }) => "pickle, ".to_owned(),
                _ => String::new(),
            };
        }
        match self.view(py) {
            Ok(View { element: Some(element), shape }) => {
                format!("{} of {}, ", shape_text(&shape), element.dtype.bind(py))
            }
            _ => String::new(),
        }
    }

    /// How the payload is to be shown, checked against what is there.
    fn view(&self, py: Python<'_>) -> PyResult<View> {
        ending::outlive(); // What is made of it may run NumPy's code, a consumer's, or the garbage collector.
        let (layout, len) = self.with(py, |message| (layout_of(message), message.len()))?;
        let Some(layout) = layout else { return Ok(View { element: None, shape: vec![len as u64] }) };
        if value::place(&layout).is_some() {
            let text = "a message of Arrow data, of several parts, or with a pickle is not one array; use msg.value";
            return Err(PyTypeError::new_err(text));
        }
        let Layout { kind, shape } = layout;
        let element = array::declared_type(py, &kind, &shape, len)?;
        Ok(View { element: Some(element), shape })
    }
}

/// A shape as Python writes it.
pub fn shape_text(shape: &[u64]) -> String {
    match shape {
        [extent] => format!("({extent},)"),
        _ => format!("({})", shape.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
    }
}

#[cold]
fn released(py: Python<'_>) -> PyErr {
    closed(py, "this message was released")
}

#[inline]
fn layout_of(message: &byref::Message) -> Option<Layout> {
    if message.has_attributes() { message.attributes().layout } else { None }
}

/// What the consumers of typed buffers point into, until they release them.
///
/// It belongs to the message, not to a buffer: some give back another `Py_buffer` than they got (msgspec's `Raw` does), so
/// nothing may depend on what is in that.
struct Extents {
    itemsize: usize,
    shape: Vec<ffi::Py_ssize_t>,
    strides: Vec<ffi::Py_ssize_t>,
    /// `None` for a type that the buffer protocol cannot name.
    format: Option<CString>,
}

impl Extents {
    fn of(view: &View) -> Self {
        let itemsize = view.element.as_ref().map_or(1, |element| element.itemsize);
        Extents {
            itemsize,
            shape: view.shape.iter().map(|extent| *extent as ffi::Py_ssize_t).collect(),
            strides: contiguous_strides(&view.shape, itemsize),
            format: view.element.as_ref().map_or_else(|| Some(c"B".to_owned()), |element| element.format.clone()),
        }
    }
}

fn dtype_of<'py>(py: Python<'py>, view: &View) -> Bound<'py, PyArrayDescr> {
    view.element.as_ref().map_or_else(|| numpy::dtype::<u8>(py), |element| element.dtype.bind(py).clone())
}

/// A read-only array over the payload, which counts as a view.
fn array_of<'py>(this: &Bound<'py, Message>, view: &View) -> PyResult<Bound<'py, PyAny>> {
    let py = this.py();
    let (data, _) = this.get().open_view(py)?;
    let owner = Owner::wrap(py, Memory::Message(this.clone().unbind()))?;
    // SAFETY: `Message::view` checked type and shape against the payload's length, `element_type` refuses objects, and the
    // owner keeps the view, so the lease, open.
    unsafe { array::over(dtype_of(py, view), &view.shape, data, false, owner) }
}

#[pymethods]
impl Message {
    #[doc = doc!("Message.topic")]
    #[getter]
    fn topic(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |message| message.topic().to_owned())
    }

    #[doc = doc!("Message.sequence")]
    #[getter]
    fn sequence(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, byref::Message::sequence)
    }

    #[doc = doc!("Message.timestamp_ns")]
    #[getter]
    fn timestamp_ns(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, byref::Message::timestamp_ns)
    }

    #[doc = doc!("Message.tag")]
    #[getter]
    fn tag(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, byref::Message::tag)
    }

    #[doc = doc!("Message.sender")]
    #[getter]
    fn sender(&self, py: Python<'_>) -> PyResult<Option<Identity>> {
        let sender = self.with(py, |message| message.sender())?;
        Ok(self.manner.is_direct.then_some(Identity(sender)))
    }

    #[doc = doc!("Message.publisher")]
    #[getter]
    fn publisher(&self, py: Python<'_>) -> PyResult<PublisherInfo> {
        self.with(py, |message| PublisherInfo(Arc::clone(message.publisher())))
    }

    #[doc = doc!("Message.headers")]
    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        headers::to_python(py, &self.with(py, |message| message.attributes().headers)?)
    }

    #[doc = doc!("Message.nbytes")]
    #[getter]
    fn nbytes(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |message| message.len())
    }

    #[doc = doc!("Message.shape")]
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.view(py)?.shape)
    }

    #[doc = doc!("Message.dtype")]
    #[getter]
    fn dtype<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDescr>> {
        Ok(dtype_of(py, &self.view(py)?))
    }

    #[doc = doc!("Message.value")]
    #[getter]
    pub fn value<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        if this.manner.writable {
            return Self::writable(slf);
        }
        if let Some(value) = this.whole_value(slf.py())? {
            return Ok(value);
        }
        if let Some(tokens) = this.tokens(slf.py())? {
            return Self::value_of(slf, tokens, false);
        }
        let view = this.view(slf.py())?;
        if view.element.is_none() {
            return Ok(PyMemoryView::from(slf)?.into_any());
        }
        array_of(slf, &view)
    }

    #[doc = doc!("Message.writable")]
    fn writable<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if let Some(tokens) = slf.get().tokens(py)? {
            return Self::value_of(slf, tokens, true);
        }
        let view = slf.get().view(py)?;
        let private = slf.get().with(py, byref::Message::writable)?.map_err(|error| to_python(py, error))?;
        let data = private.as_ptr();
        let owner = Owner::wrap(py, Memory::Private(private))?;
        // SAFETY: `Message::view` checked type and shape against the payload's length, which is the private view's, too; the
        // owner keeps that.
        unsafe { array::over(dtype_of(py, &view), &view.shape, data, true, owner) }
    }

    #[doc = doc!("Message.ack")]
    fn ack(&self, py: Python<'_>) -> PyResult<()> {
        let receipt =
            self.state.with(|state| state.message.as_ref().map(byref::Message::receipt).or(state.receipt.clone()));
        receipt.ok_or_else(|| released(py))?.ack().map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Message.release")]
    fn release(&self) -> PyResult<()> {
        let released = self.state.with(|state| match state.open_views() {
            0 => {
                let message = state.message.take();
                if let Some(message) = message.as_ref().filter(|message| message.is_acked_by_hand()) {
                    state.receipt = Some(message.receipt());
                }
                Ok(message)
            }
            views => Err(views),
        });
        match released {
            Ok(message) => {
                drop(message);
                Ok(())
            }
            Err(views) => {
                let text = format!("cannot release a message while {views} views of it are alive; delete them first");
                Err(PyBufferError::new_err(text))
            }
        }
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release()
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.view(py)?.shape.first().copied().unwrap_or(1) as usize)
    }

    /// Always true, also for an empty payload: `while msg := sub.try_recv()` ends only at None.
    fn __bool__(&self) -> bool {
        true
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let message = self.with(py, byref::Message::clone)?;
        byref::count_copied(Cause::Asked, message.len());
        Ok(PyBytes::new(py, &message))
    }

    /// For NumPy, where the buffer protocol cannot express the element type (`datetime64` and others).
    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__<'py>(
        slf: &Bound<'py, Self>,
        dtype: Option<Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let array = array_of(slf, &slf.get().view(slf.py())?)?;
        let array = match dtype {
            Some(dtype) => array.call_method1("astype", (dtype, "K", "unsafe", true, copy.unwrap_or(false)))?,
            None => array,
        };
        if copy == Some(true) { array.call_method0("copy") } else { Ok(array) }
    }

    /// The Arrow type of the payload, as an `arrow_schema` capsule.
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.arrow(py)?.__arrow_c_schema__(py)
    }

    /// The payload, Arrow data or an array of numbers, as capsules `arrow_schema` and `arrow_array`.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let _ = requested_schema;
        self.arrow(py)?.capsules(py)
    }

    /// The payload, Arrow data or an array of numbers, as an `arrow_array_stream` capsule.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.arrow(py)?.__arrow_c_stream__(py, requested_schema)
    }

    #[doc = doc!("Message.copy")]
    #[pyo3(signature = (out=None))]
    fn copy<'py>(slf: &Bound<'py, Self>, out: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        array::copy(&array_of(slf, &slf.get().view(slf.py())?)?, out)
    }

    #[doc = doc!("Message.__dlpack__")]
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        slf: &Bound<'py, Self>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let (py, this) = (slf.py(), slf.get());
        let view = this.view(py)?;
        let request = dlpack::Request { stream, max_version, dl_device, copy };
        dlpack::export(py, &request, &dtype_of(py, &view), &view.shape, this.manner.writable, || this.open_foreign(py))
    }

    #[doc = doc!("Message.__dlpack_device__")]
    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::CPU
    }

    /// # Safety
    ///
    /// Called by the interpreter with a valid `view`.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err("messages are read-only; take a private copy with msg.writable()"));
        }
        let wants = |flag: c_int| flags & flag == flag;
        if !this.with(py, byref::Message::has_attributes)? {
            let (data, len) = this.open_view(py)?;
            // SAFETY: the interpreter gave a writable view; `data` and `len` are those of the open view, which its release
            // closes; the reference is given away. For bytes it needs no memory of its own: shape and strides are its
            // own length and item size.
            let failed =
                unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), data.cast(), len as ffi::Py_ssize_t, 1, flags) };
            debug_assert!(failed == 0, "only a request to write is refused");
            return Ok(());
        }
        let extents = match this.extents.get() {
            Some(extents) => extents,
            None => {
                let view = this.view(py).map_err(|error| match error.is_instance_of::<PyTypeError>(py) {
                    true => PyBufferError::new_err(error.value(py).to_string()),
                    false => error,
                })?;
                this.extents.get_or_init(|| Box::new(Extents::of(&view)))
            }
        };
        let format = match &extents.format {
            _ if !wants(ffi::PyBUF_FORMAT) => std::ptr::null(),
            Some(format) => format.as_ptr(),
            None => {
                let text = "the buffer protocol has no name for this element type; use msg.value, np.asarray(msg) or bytes(msg)";
                return Err(PyBufferError::new_err(text));
            }
        };
        let wants_shape = wants(ffi::PyBUF_ND);
        let pointer =
            |to: &[ffi::Py_ssize_t], wanted| if wanted { to.as_ptr().cast_mut() } else { std::ptr::null_mut() };
        let (data, len) = this.open_view(py)?;
        let filled = ffi::Py_buffer {
            buf: data.cast::<c_void>(),
            len: len as ffi::Py_ssize_t,
            itemsize: extents.itemsize as ffi::Py_ssize_t,
            readonly: 1,
            ndim: if wants_shape { extents.shape.len() as c_int } else { 1 },
            format: format.cast_mut(),
            shape: pointer(&extents.shape, wants_shape),
            strides: pointer(&extents.strides, wants(ffi::PyBUF_STRIDES)),
            suboffsets: std::ptr::null_mut(),
            internal: std::ptr::null_mut(),
            obj: slf.into_ptr(),
        };
        // SAFETY: the interpreter gave a writable view.
        unsafe { view.write(filled) };
        Ok(())
    }

    /// # Safety
    ///
    /// None beyond the interpreter's own: the view is not looked at.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.close_view();
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a message is a lease of this process and cannot be pickled; send msg.value or bytes(msg)",
        ))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let Ok((topic, sequence, len)) =
            self.with(py, |message| (message.topic().to_owned(), message.sequence(), message.len()))
        else {
            return "<byref.Message, released>".to_owned();
        };
        format!("<byref.Message {sequence} of {topic:?}, {}{len} bytes>", self.what(py))
    }
}
