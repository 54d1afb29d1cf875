//! What event queues and receivers tell of themselves, as dicts.

use crate::ending;
use crate::errors::to_python;
use byref::{Figures, QueueReport, ReceiverReport};
use pyo3::prelude::*;
use pyo3::types::PyDict;

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 * 1e-9
}

fn add_callbacks(dict: &Bound<'_, PyDict>, figures: &Figures) -> PyResult<()> {
    dict.set_item("callbacks", figures.callbacks)?;
    dict.set_item("callback_time", seconds(figures.callback_ns))?;
    dict.set_item("longest_callback", seconds(figures.longest_ns))
}

/// Adds the numbers of a queue or receiver.
pub fn add_figures(dict: &Bound<'_, PyDict>, figures: &Figures) -> PyResult<()> {
    add_callbacks(dict, figures)?;
    dict.set_item("waiting", figures.waiting)?;
    dict.set_item("oldest_age", figures.oldest_age_ns.map(seconds))?;
    dict.set_item("lost", figures.lost)
}

fn receiver_dict<'py>(py: Python<'py>, report: &ReceiverReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("topic", &report.topic)?;
    dict.set_item("name", &report.name)?;
    add_figures(&dict, &report.figures)?;
    Ok(dict)
}

fn timer_dict<'py>(py: Python<'py>, report: &ReceiverReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", &report.name)?;
    add_callbacks(&dict, &report.figures)?;
    dict.set_item("missed", report.figures.lost)?;
    Ok(dict)
}

/// A queue's report as a dict.
pub fn queue_dict<'py>(py: Python<'py>, report: &QueueReport) -> PyResult<Bound<'py, PyDict>> {
    ending::outlive();
    let dict = PyDict::new(py);
    dict.set_item("name", &report.name)?;
    dict.set_item("pid", report.pid)?;
    add_figures(&dict, &report.figures)?;
    let running = report.running.as_ref().map(|running| {
        let dict = PyDict::new(py);
        dict.set_item("topic", &running.topic)?;
        dict.set_item("name", &running.name)?;
        dict.set_item("time", seconds(running.time_ns))?;
        PyResult::Ok(dict)
    });
    dict.set_item("running", running.transpose()?)?;
    dict.set_item("receiver_count", report.count)?;
    let receivers: Vec<_> =
        report.receivers.iter().map(|receiver| receiver_dict(py, receiver)).collect::<PyResult<_>>()?;
    dict.set_item("receivers", receivers)?;
    dict.set_item("timer_count", report.timer_count)?;
    let timers: Vec<_> = report.timers.iter().map(|timer| timer_dict(py, timer)).collect::<PyResult<_>>()?;
    dict.set_item("timers", timers)?;
    Ok(dict)
}

#[doc = doc!("monitors")]
#[pyfunction]
pub fn monitors(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let reports = py.detach(byref::monitors).map_err(|error| to_python(py, error))?;
    reports.iter().map(|report| queue_dict(py, report)).collect()
}
