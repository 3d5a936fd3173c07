//! How long what follows from a server's end waits for another in its place: connections that ended with it, SYNs and
//! attempts that met nobody. Where one begins to listen in time it was a restart, as every deploy makes them, and nothing
//! that an operator has to hear of.

use std::time::Duration;

/// What service managers and deploys take from the end of one process to the next one's listen().
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
