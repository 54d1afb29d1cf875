//! Tells the compiler which Python this is for, and the binding the docstrings of its type stubs.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

const STUBS: &str = "../../python/byref/_byref.pyi";

fn main() {
    pyo3_build_config::use_pyo3_cfgs();
    println!("cargo::rerun-if-changed={STUBS}");
    let stubs = fs::read_to_string(STUBS).unwrap_or_else(|problem| panic!("{STUBS}: {problem}"));
    let target = Path::new(&env::var_os("OUT_DIR").expect("set by cargo")).join("docs.rs");
    fs::write(target, doc_macro(docstrings(&stubs))).expect("a file in OUT_DIR can be written");
}

/// The docstrings of classes, functions and methods, under names such as "Publisher.send".
fn docstrings(stubs: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let (mut class, mut name) = ("", None);
    let mut lines = stubs.lines();
    while let Some(line) = lines.next() {
        let (indent, code) = split_indent(line);
        if let Some(rest) = code.strip_prefix("class ") {
            class = identifier(rest);
            name = Some(class.to_owned());
        } else if let Some(rest) = code.strip_prefix("def ") {
            let function = identifier(rest);
            name = Some(if indent == 0 { function.to_owned() } else { format!("{class}.{function}") });
        } else if let Some(begin) = code.strip_prefix("\"\"\"") {
            let mut text = begin.to_owned();
            while !text.ends_with("\"\"\"") {
                let line = lines.next().expect("a docstring ends");
                write!(text, "\n{}", line.get(indent..).unwrap_or_default()).expect("a String takes all");
            }
            // What stands below a constant has no function or class in front of it.
            if let Some(name) = name.take() {
                found.push((name, text.trim_end_matches("\"\"\"").trim_end().to_owned()));
            }
        }
    }
    found
}

fn split_indent(line: &str) -> (usize, &str) {
    let code = line.trim_start();
    (line.len() - code.len(), code)
}

fn identifier(text: &str) -> &str {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next().unwrap_or_default()
}

/// A macro that gives each of them. Python shows the docstring of `__new__` nowhere, so the class has it, too.
fn doc_macro(docstrings: Vec<(String, String)>) -> String {
    let mut rules = String::new();
    for (name, text) in &docstrings {
        let constructor = docstrings.iter().find(|(other, _)| *other == format!("{name}.__new__"));
        let more = constructor.map(|(_, more)| format!("\n\n{more}")).unwrap_or_default();
        writeln!(rules, "    ({name:?}) => {{ {:?} }};", format!("{text}{more}")).expect("a String takes all");
    }
    format!("macro_rules! doc {{\n{rules}}}\n")
}
