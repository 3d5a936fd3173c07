//! Where a silence stands, and where each end leads.

use crate::detect::errno;

/// `suspected` until something ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Suspected,
    /// The kernel gave up, with the error that it told; without one where nothing told it.
    Confirmed(Option<u32>),
    Recovered,
    Reset,
    Closed,
    Forgotten,
}

/// What ends a silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Something was acknowledged.
    Heard,
    /// The peer sent a reset.
    ResetReceived,
    /// The socket went, with an error.
    Failed(u32),
    /// The socket went without a word, after a silence as long as the kernel bears or not.
    Vanished { is_outlasted: bool },
    /// Nobody watches it any more.
    Unwatched,
}

impl Stage {
    pub(super) const fn after(end: End) -> Self {
        match end {
            End::Heard => Self::Recovered,
            End::ResetReceived | End::Failed(errno::ECONNRESET | errno::EPIPE) => Self::Reset,
            End::Failed(errno) if is_given_up(errno) => Self::Confirmed(Some(errno)),
            End::Vanished { is_outlasted: true } => Self::Confirmed(None),
            End::Failed(_) | End::Vanished { .. } => Self::Closed,
            End::Unwatched => Self::Forgotten,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Suspected => "suspected",
            Self::Confirmed(_) => "confirmed",
            Self::Recovered => "recovered",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Forgotten => "forgotten",
        }
    }

    /// The error with which the kernel gave up.
    pub(super) const fn errno(self) -> Option<u32> {
        match self {
            Self::Confirmed(errno) => errno,
            _ => None,
        }
    }
}

/// Whether an error is the kernel's own end of a connection that nobody answers on.
const fn is_given_up(errno: u32) -> bool {
    matches!(
        errno,
        errno::ETIMEDOUT | errno::EHOSTUNREACH | errno::ENETUNREACH | errno::EHOSTDOWN
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::acknowledged(End::Heard, Stage::Recovered)]
    #[case::reset_by_peer(End::ResetReceived, Stage::Reset)]
    #[case::reset_told_by_the_socket(End::Failed(errno::ECONNRESET), Stage::Reset)]
    #[case::written_after_a_reset(End::Failed(errno::EPIPE), Stage::Reset)]
    #[case::timed_out(
        End::Failed(errno::ETIMEDOUT),
        Stage::Confirmed(Some(errno::ETIMEDOUT))
    )]
    #[case::icmp(
        End::Failed(errno::EHOSTUNREACH),
        Stage::Confirmed(Some(errno::EHOSTUNREACH))
    )]
    #[case::killed(End::Failed(errno::ECONNABORTED), Stage::Closed)]
    #[case::gone_in_time(End::Vanished { is_outlasted: false }, Stage::Closed)]
    #[case::gone_after_all_retries(End::Vanished { is_outlasted: true }, Stage::Confirmed(None))]
    #[case::no_room(End::Unwatched, Stage::Forgotten)]
    fn each_end_leads_to_its_stage(#[case] end: End, #[case] stage: Stage) {
        assert_eq!(Stage::after(end), stage);
    }

    #[test]
    fn only_a_confirmed_silence_has_an_error() {
        let errno = |error| Stage::after(End::Failed(error)).errno();
        assert_eq!(errno(errno::ETIMEDOUT), Some(errno::ETIMEDOUT));
        assert_eq!(errno(errno::ECONNRESET), None);
        assert_eq!(Stage::Suspected.errno(), None);
    }
}
