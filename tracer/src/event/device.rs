//! A network interface.

use std::borrow::Cow;

use super::owner::Comm;

/// `net_device.name`: at most 15 bytes, NUL-padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device(pub [u8; 16]);

impl Device {
    /// The bytes before the first NUL; what is not UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn to_text(self) -> Cow<'static, str> {
        Comm(self.0).to_text()
    }
}
