//! The examples run, and are content with what they see.

use std::process::Command;

#[test]
fn a_thousand_topics() {
    let directory = std::env::temp_dir().join(format!("byref-examples-{}", std::process::id()));
    let deps = std::env::current_exe().unwrap();
    // `cargo test` builds the examples beside the tests.
    let example = deps.parent().unwrap().with_file_name("examples").join("thousand_topics");
    let ran = Command::new(example).env("BYREF_DIR", &directory).output().unwrap();
    let _ = std::fs::remove_dir_all(directory);
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("1000 frames of the dead process are held and whole"), "{said}");
}
