//! How the buffers of an Arrow type lie in memory.

use std::str::FromStr;

/// The physical layout behind a format string of the C data interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No buffer at all.
    Null,
    /// One bit each.
    Bits,
    /// So many bytes each.
    Fixed(usize),
    /// Offsets into a buffer of bytes; `wide`: of 64 bits. Perhaps they are to be UTF-8.
    Bytes { wide: bool, text: bool },
    /// 16 bytes each, which name one of any number of buffers, or are the value.
    Views { text: bool },
    /// Offsets into the only child.
    List { wide: bool },
    /// Offsets into the only child, and sizes.
    ListView { wide: bool },
    /// So many elements of the only child each.
    FixedList(usize),
    /// As many of each child.
    Struct,
    /// One of the children each; with offsets into it if `dense`. The children's numbers.
    Union { dense: bool, ids: Vec<i8> },
    /// Two children: where each run ends, and the runs' values.
    Runs,
}

impl Kind {
    /// From a format string.
    pub fn of(format: &str) -> Result<Self, String> {
        let unknown = || format!("the Arrow type '{format}' is not known");
        let (name, parameters) = format.split_once(':').map_or((format, None), |(name, after)| (name, Some(after)));
        let number = |text: &str| usize::from_str(text).map_err(|_| unknown());
        Ok(match (name, parameters) {
            ("n", None) => Kind::Null,
            ("b", None) => Kind::Bits,
            ("c" | "C", None) => Kind::Fixed(1),
            ("s" | "S" | "e", None) => Kind::Fixed(2),
            ("i" | "I" | "f" | "tdD" | "tts" | "ttm" | "tiM", None) => Kind::Fixed(4),
            ("l" | "L" | "g" | "tdm" | "ttu" | "ttn" | "tiD", None) => Kind::Fixed(8),
            ("tDs" | "tDm" | "tDu" | "tDn", None) => Kind::Fixed(8),
            ("tss" | "tsm" | "tsu" | "tsn", Some(_)) => Kind::Fixed(8),
            ("tin", None) => Kind::Fixed(16),
            ("d", Some(parameters)) => {
                let mut parameters = parameters.split(',');
                let precision = number(parameters.next().unwrap_or(""))?;
                let _scale = parameters.next().and_then(|scale| i32::from_str(scale).ok()).ok_or_else(unknown)?;
                let (width, most) = match parameters.next() {
                    None | Some("128") => (16, 38),
                    Some("32") => (4, 9),
                    Some("64") => (8, 18),
                    Some("256") => (32, 76),
                    Some(_) => return Err(unknown()),
                };
                if !(1..=most).contains(&precision) || parameters.next().is_some() {
                    return Err(unknown());
                }
                Kind::Fixed(width)
            }
            ("w", Some(width)) => Kind::Fixed(number(width)?),
            ("z", None) => Kind::Bytes { wide: false, text: false },
            ("Z", None) => Kind::Bytes { wide: true, text: false },
            ("u", None) => Kind::Bytes { wide: false, text: true },
            ("U", None) => Kind::Bytes { wide: true, text: true },
            ("vz", None) => Kind::Views { text: false },
            ("vu", None) => Kind::Views { text: true },
            ("+l" | "+m", None) => Kind::List { wide: false },
            ("+L", None) => Kind::List { wide: true },
            ("+vl", None) => Kind::ListView { wide: false },
            ("+vL", None) => Kind::ListView { wide: true },
            ("+w", Some(size)) => Kind::FixedList(number(size)?),
            ("+s", None) => Kind::Struct,
            ("+r", None) => Kind::Runs,
            ("+ud" | "+us", Some(ids)) => {
                let ids = ids.split(',').filter(|id| !id.is_empty()).map(i8::from_str).collect::<Result<_, _>>();
                Kind::Union { dense: name == "+ud", ids: ids.map_err(|_| unknown())? }
            }
            _ => return Err(unknown()),
        })
    }

    /// How many children it has; `None`: any number.
    pub fn children(&self) -> Option<usize> {
        match self {
            Kind::List { .. } | Kind::ListView { .. } | Kind::FixedList(_) => Some(1),
            Kind::Runs => Some(2),
            Kind::Struct => None,
            Kind::Union { ids, .. } => Some(ids.len()),
            _ => Some(0),
        }
    }

    /// Whether its first buffer says which elements are null.
    pub fn has_validity(&self) -> bool {
        !matches!(self, Kind::Null | Kind::Union { .. } | Kind::Runs)
    }

    /// How many buffers it has; those of views that hold bytes come on top.
    pub fn buffers(&self) -> usize {
        match self {
            Kind::Null | Kind::Runs => 0,
            Kind::FixedList(_) | Kind::Struct => 1,
            Kind::Union { dense, .. } => 1 + usize::from(*dense),
            Kind::Bits | Kind::Fixed(_) | Kind::List { .. } => 2,
            Kind::Bytes { .. } | Kind::ListView { .. } => 3,
            Kind::Views { .. } => 3, // Validity, views, and the others' lengths.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let cases = [
            ("tsu:Europe/Zurich", Kind::Fixed(8)),
            ("tsn:", Kind::Fixed(8)),
            ("d:38,10", Kind::Fixed(16)),
            ("d:9,2,32", Kind::Fixed(4)),
            ("w:0", Kind::Fixed(0)),
            ("+w:3", Kind::FixedList(3)),
            ("+us:", Kind::Union { dense: false, ids: vec![] }),
            ("+ud:5,-3", Kind::Union { dense: true, ids: vec![5, -3] }),
        ];
        for (format, kind) in cases {
            assert_eq!(Kind::of(format), Ok(kind));
        }
        for unknown in [
            "",
            "x",
            "l:",
            "w",
            "w:-1",
            "w:99999999999999999999",
            "+ud:500",
            "d:1,2,3",
            "d:39,0",
            "d:10,0,32",
            "d:1,2,128,3",
            "tss",
            "+s:",
        ] {
            assert!(Kind::of(unknown).is_err(), "{unknown}");
        }
    }
}
