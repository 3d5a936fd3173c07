//! What stands under a headline.

use std::fmt::{self, Write as _};

use super::fill::fill;
use crate::sink::escape::Escaped;

/// Columns by which a block stands under its headline.
pub(super) const INDENT: usize = 2;

/// Indented under a finding's headline, and filled.
pub(super) fn paragraph(text: &mut String, columns: usize, lead: &str, body: &str) -> fmt::Result {
    let taken = INDENT + lead.chars().count();
    let body = Escaped(body).to_string();
    writeln!(text, "  {lead}{}", fill(&body, columns, taken, taken))
}
