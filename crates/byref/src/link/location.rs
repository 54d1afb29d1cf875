//! Which directory endpoints meet in: what the environment says, as an absolute path.
//!
//! `$BYREF_DIR`; else `/run/user/UID/byref` where `/run/user/UID` exists; else `byref-UID` among the temporary files. A relative
//! path is resolved once for the whole process, against the directory in which the process was when the library was loaded:
//! a later `chdir` must not part endpoints of one program.

use crate::error::{Error, Result};
use rustix::fs::OFlags;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

/// The working directory that relative paths are resolved against; `None`: the system could not name it.
static BASE: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Remembers the working directory, if that has not been done.
pub(crate) fn prepare() {
    base();
}

fn base() -> Option<&'static Path> {
    BASE.get_or_init(|| std::env::current_dir().ok()).as_deref()
}

/// Where endpoints meet, as the environment said it when the first of them was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// The directory that `$BYREF_DIR` names.
    named: Option<PathBuf>,
    /// The directory of this user's own, as long as it has a session.
    runtime: PathBuf,
    temporary: PathBuf,
    user: u32,
}

impl Location {
    pub fn from_environment() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let user = rustix::process::geteuid().as_raw();
        let named = variable("BYREF_DIR").map(|text| absolute("BYREF_DIR", &text)).transpose()?;
        let temporary = match variable("TMPDIR") {
            Some(text) if named.is_none() => absolute("TMPDIR", &text)?,
            // It is only looked at for a hint: an odd one must not matter.
            Some(text) => absolute("TMPDIR", &text).unwrap_or_else(|_| "/tmp".into()),
            None => "/tmp".into(),
        };
        Ok(Location { named, runtime: format!("/run/user/{user}").into(), temporary, user })
    }

    /// The path at this moment, and whether a link in its place is followed. It is followed only where the user named it: anybody
    /// can make one among the temporary files.
    pub fn path(&self) -> (PathBuf, OFlags) {
        if let Some(path) = &self.named {
            return (path.clone(), OFlags::empty());
        }
        if self.runtime.is_dir() {
            return (self.runtime.join("byref"), OFlags::NOFOLLOW);
        }
        (self.in_temporary(&self.temporary), OFlags::NOFOLLOW)
    }

    /// Other directories that processes of this user may meet in: those that other settings lead to.
    pub fn others(&self) -> Vec<PathBuf> {
        let own = self.path().0;
        let likely = [
            self.runtime.join("byref"),
            self.in_temporary(&self.temporary),
            self.in_temporary(Path::new("/tmp")),
            self.in_temporary(Path::new("/var/tmp")),
        ];
        let mut others = Vec::new();
        for path in likely {
            if path != own && !others.contains(&path) {
                others.push(path);
            }
        }
        others
    }

    fn in_temporary(&self, temporary: &Path) -> PathBuf {
        temporary.join(format!("byref-{}", self.user))
    }
}

/// The absolute path that the value of a variable means.
fn absolute(variable: &str, text: &OsStr) -> Result<PathBuf> {
    let path = Path::new(text);
    let refused = |reason: String| Error::directory(path, reason);
    let mut components = path.components();
    let path = match components.next() {
        Some(Component::Normal(first)) if first == "~" => {
            let home = std::env::var_os("HOME").filter(|home| Path::new(home).is_absolute());
            let home = home.ok_or_else(|| {
                refused(format!("{variable} begins with '~', and HOME is not set; write the path in full"))
            })?;
            PathBuf::from(home).join(components.as_path())
        }
        Some(Component::Normal(first)) if first.as_bytes().starts_with(b"~") => {
            let text = format!(
                "{variable}: the home directory of '{}' is not looked up; write the path in full, or './~...' for a name that begins so",
                first.to_string_lossy().escape_debug()
            );
            return Err(refused(text));
        }
        Some(Component::RootDir) => path.to_owned(),
        _ => {
            let base = base().ok_or_else(|| {
                refused(format!(
                    "{variable} is a relative path, and the working directory cannot be told; write an absolute path"
                ))
            })?;
            base.join(path)
        }
    };
    // Without what changes nothing: `/a/./b/` is `/a/b`.
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute() {
        let base = base().expect("the tests run somewhere").to_owned();
        let home = PathBuf::from(std::env::var_os("HOME").expect("the tests run at home"));
        for (text, path) in [
            ("/a/b", PathBuf::from("/a/b")),
            ("/a/./b/", "/a/b".into()),
            ("a/b", base.join("a/b")),
            ("./a", base.join("a")),
            ("./~", base.join("~")),
            ("a/~", base.join("a/~")),
            ("~", home.clone()),
            ("~/a/b", home.join("a/b")),
        ] {
            assert_eq!(absolute("BYREF_DIR", OsStr::new(text)).unwrap(), path, "{text}");
        }
        let refused = absolute("BYREF_DIR", OsStr::new("~ada/x")).unwrap_err().to_string();
        assert!(refused.contains("'~ada'") && refused.contains("in full"), "{refused}");
    }

    #[test]
    fn other_likely_directories() {
        let location = |named: Option<&str>| Location {
            named: named.map(PathBuf::from),
            runtime: "/nowhere/7".into(),
            temporary: "/scratch".into(),
            user: 7,
        };
        assert_eq!(location(None).path().0, Path::new("/scratch/byref-7"));
        let others = ["/nowhere/7/byref", "/tmp/byref-7", "/var/tmp/byref-7"].map(PathBuf::from);
        assert_eq!(location(None).others(), others);
        assert_eq!(location(Some("/tmp/byref-7")).others().len(), 3);
        assert!(location(Some("/own")).others().contains(&"/scratch/byref-7".into()));
    }
}
