//! Tables of the config file: each key with its default and the reason for it, written once.
//!
//! [`section!`] makes the struct that serde reads, its defaults, its checks, and the text that `conntracer config`
//! prints. What a table is about is said where it is made: in [`crate::config`] and in the rooms of
//! [`crate::detect`].

/// What is said of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// As the file has it: `detect.syn_drop`.
    pub path: &'static str,
    /// Lines before the table, and before each key, in order.
    pub about: &'static [&'static str],
    pub keys: &'static [(&'static str, &'static [&'static str])],
}

/// A table of the config file: `about` lines, then for each key its reason as doc comment, its name, type and
/// default, and a function that says what to set in the place of a value that makes no sense.
macro_rules! section {
    (
        $path:literal;
        $(#[doc = $about:literal])*
        $name:ident {
            $(
                $(#[doc = $reason:literal])+
                $(#[serde($($serde:tt)*)])?
                $field:ident: $type:ty = $default:expr $(=> $check:path)?;
            )+
        }
    ) => {
        #[doc = concat!("The table `", $path, "` of the config file.")]
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[doc = $reason])+
                $(#[serde($($serde)*)])?
                pub $field: $type,
            )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $name {
            pub const SECTION: $crate::section::Section = $crate::section::Section {
                path: $path,
                about: &[$($about),*],
                keys: &[$((stringify!($field), &[$($reason),+])),+],
            };

            /// What makes no sense, as one sentence naming the key and the remedy.
            pub fn check(&self) -> Result<(), String> {
                $($(
                    $check(self.$field).map_err(|remedy| {
                        format!(concat!($path, ".", stringify!($field), " is {}: {}"), self.$field, remedy)
                    })?;
                )?)+
                Ok(())
            }
        }
    };
}

pub(crate) use section;

type Checked = Result<(), &'static str>;

/// A count, of which none makes no sense.
pub(crate) fn some(value: impl Into<u64>) -> Checked {
    if value.into() == 0 {
        Err("set at least 1")
    } else {
        Ok(())
    }
}

pub(crate) fn share(value: f64) -> Checked {
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err("set a share from 0 to 1")
    }
}

pub(crate) fn rate(value: f64) -> Checked {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err("set a rate above 0")
    }
}

pub(crate) fn factor(value: f64) -> Checked {
    if value.is_finite() && value >= 0.0 {
        Ok(())
    } else {
        Err("set 0 or more")
    }
}

/// Entries of a table, whose slots are numbered in 32 bits.
pub(crate) fn entries(value: usize) -> Checked {
    if value == 0 {
        return Err("set at least 1");
    }
    entries_or_none(value)
}

pub(crate) fn entries_or_none(value: usize) -> Checked {
    if value > 1 << 24 {
        Err("set at most 16777216")
    } else {
        Ok(())
    }
}
