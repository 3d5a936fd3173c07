//! What conntracer knows of itself and the host, arranged for reading.

pub mod doctor;
pub mod explain;
pub mod now;
pub mod report;

use crate::sink::text::fill;
