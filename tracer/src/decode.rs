//! Bytes of one record to an [`Event`]; total over any bytes.
//!
//! Knows nothing of tables or detectors. What does not fit is a [`DecodeError`] that the pipeline counts.

use conntracer_common::record::Header;
use zerocopy::FromBytes;

pub use crate::event::DecodeError;
use crate::{
    event::{Body, Event},
    time::Ktime,
};

/// Decodes one record. Bytes beyond the header's `size` are a transport's padding and ignored.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let (header, _) = Header::read_from_prefix(bytes).map_err(|_| DecodeError::Short {
        length: bytes.len(),
    })?;
    let size = usize::from(header.size);
    let bytes = bytes.get(..size).ok_or(DecodeError::Truncated {
        size,
        length: bytes.len(),
    })?;
    Ok(Event {
        time: Ktime(header.ktime_ns),
        cpu: header.cpu,
        body: Body::decode(&header, bytes)?,
    })
}

#[cfg(test)]
mod tests {
    use conntracer_common::record::{self, MAX_RECORD, kind};
    use proptest::prelude::*;
    use rstest::rstest;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::testing::any_record;

    fn tick() -> record::Tick {
        let size = u16::try_from(size_of::<record::Tick>()).unwrap();
        record::Tick {
            header: Header {
                ktime_ns: 5,
                kind: kind::TICK,
                size,
                cpu: 3,
            },
        }
    }

    #[test]
    fn padding_behind_a_record_is_ignored() {
        let mut bytes = tick().as_bytes().to_vec();
        bytes.extend([0; 4]);
        let event = Event {
            time: Ktime(5),
            cpu: 3,
            body: Body::Tick,
        };
        assert_eq!(decode(&bytes), Ok(event));
    }

    #[rstest]
    #[case::nothing(0, 0, 0, DecodeError::Short { length: 0 })]
    #[case::half_a_header(0, 0, 8, DecodeError::Short { length: 8 })]
    #[case::no_kind(0, 16, 16, DecodeError::Kind { kind: 0 })]
    #[case::cut_off(kind::CONNECT, 120, 16, DecodeError::Truncated { size: 120, length: 16 })]
    #[case::less_than_its_header(
        kind::NETNS, 0, 16,
        DecodeError::Size { kind: kind::NETNS, size: 0, expected: size_of::<record::Netns>() }
    )]
    #[case::of_another_size(
        kind::CONNECT, 16, 16, DecodeError::Size { kind: kind::CONNECT, size: 16, expected: 120 }
    )]
    fn what_is_no_record_says_why(
        #[case] kind: u16,
        #[case] size: u16,
        #[case] length: usize,
        #[case] error: DecodeError,
    ) {
        let header = Header {
            kind,
            size,
            ..Header::default()
        };
        assert_eq!(decode(&header.as_bytes()[..length]), Err(error));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_say_why(
            bytes in prop::collection::vec(any::<u8>(), 0..MAX_RECORD + 8),
        ) {
            let _total = decode(&bytes);
        }

        #[test]
        fn any_record_of_another_size_decodes_or_says_why(
            bytes in any_record(), share in 0..=u16::MAX,
        ) {
            const SIZE_AT: usize = std::mem::offset_of!(Header, size);
            let cut = bytes.len() * usize::from(share) / usize::from(u16::MAX);
            let mut bytes = bytes[..cut].to_vec();
            if let Some(size) = bytes.get_mut(SIZE_AT..SIZE_AT + 2) {
                size.copy_from_slice(&u16::try_from(cut).unwrap().to_ne_bytes());
            }
            let _total = decode(&bytes);
            // Even shorter than its own header.
            if let Some(size) = bytes.get_mut(SIZE_AT..SIZE_AT + 2) {
                size.copy_from_slice(&(share % 16).to_ne_bytes());
            }
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn any_record_of_the_right_size_decodes_or_names_the_field(bytes in any_record()) {
            let decoded = decode(&bytes);
            prop_assert!(
                matches!(decoded, Ok(_) | Err(DecodeError::Value { .. })), "{:?}", decoded
            );
        }
    }
}
