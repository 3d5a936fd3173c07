//! Evidence in the making.

use std::{borrow::Cow, time::Duration};

use crate::finding::{Evidence, Value};

/// The numbers and words that prove a cause, in the order in which they are told.
#[derive(Default)]
pub(crate) struct Facts(Vec<Evidence>);

impl Facts {
    pub(super) fn into_evidence(self) -> Vec<Evidence> {
        self.0
    }

    pub(crate) fn count(self, name: &'static str, value: impl Into<u64>) -> Self {
        self.push(name, Value::Count(value.into()))
    }

    pub(crate) fn signed(self, name: &'static str, value: i64) -> Self {
        match u64::try_from(value) {
            Ok(value) => self.count(name, value),
            Err(_) => self.number(name, value as f64),
        }
    }

    pub(crate) fn count_if_known(self, name: &'static str, value: Option<u64>) -> Self {
        match value {
            Some(value) => self.count(name, value),
            None => self,
        }
    }

    /// `name` ends in `_s`. To the millisecond, which is finer than what is judged by.
    pub(crate) fn seconds(self, name: &'static str, value: Duration) -> Self {
        self.push(name, Value::Number(value.as_millis() as f64 / 1e3))
    }

    pub(crate) fn number(self, name: &'static str, value: f64) -> Self {
        self.push(name, Value::Number((value * 1e3).round() / 1e3))
    }

    pub(crate) fn text(self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.push(name, Value::Text(value.into()))
    }

    fn push(mut self, name: &'static str, value: Value) -> Self {
        self.0.push(Evidence {
            name: name.into(),
            value,
        });
        self
    }
}
