//! Loss that holds one connection down, whatever its ratio: the window stays small for loss alone, while data waits and
//! the peer would take more.
//!
//! A loss halves the window, or takes a third of it; at 2 % some nine segments are what is left, whatever the link
//! carries (Mathis et al. 1997: about 1.2 / sqrt(loss) segments). A link that is full loses, too, and then its queue
//! shows in the round trip.

use std::time::Duration;

use crate::{detect::facts::Facts, event::Tcp, time::Ktime};

/// Segments in flight up to which loss holds a window down: what 0.4 % of loss leaves at most. At 0.1 % they are twice as
/// many, which a path of 20 ms bears.
const FEW_SEGMENTS: u32 = 24;

/// From this rate on a connection is not slow, whatever it loses: a link of 100 Mbit/s.
const FAST_BYTES_PER_S: f64 = 12_500_000.0;

/// Longer than the smallest round trip by this, a queue has grown: the link is full, and its losses are how TCP finds
/// that out.
const QUEUED: f64 = 1.5;

/// Losses as far apart are none of one condition.
const PAUSE: Duration = Duration::from_secs(5);

/// So many have to show it, of how many: a window that has just grown for a while is larger.
const SHARE: (u64, u64) = (3, 4);

/// The losses of one connection since the last pause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costly {
    since: Ktime,
    last: Ktime,
    events: u64,
    held_down: u64,
    /// As the last that showed it was: in flight, and what the peer would take.
    flight: u32,
    window: u32,
    /// What was acknowledged at the first and at the last.
    acked_first: u64,
    acked_last: u64,
}

impl Costly {
    /// One more retransmission, as it left the socket.
    pub(super) fn saw(&mut self, tcp: &Tcp, min_rtt_us: Option<u32>, events: u64, now: Ktime) {
        if events == 0 {
            return;
        }
        if self.events == 0 || now.since(self.last) > PAUSE {
            *self = Self {
                since: now,
                acked_first: tcp.bytes_acked,
                ..Self::default()
            };
        }
        self.last = now;
        self.acked_last = tcp.bytes_acked;
        self.events = self.events.saturating_add(events);
        if !is_held_down(tcp, min_rtt_us) {
            return;
        }
        self.held_down = self.held_down.saturating_add(events);
        self.flight = tcp.packets_out;
        self.window = tcp.snd_wnd_bytes.checked_div(tcp.mss_bytes).unwrap_or(0);
    }

    /// Whether loss has held the connection down long enough to say so.
    pub(super) fn is_worth(&self, (losses, time): (u64, Duration)) -> bool {
        let (showing, of) = SHARE;
        self.events >= losses
            && self.last.since(self.since) >= time
            && self.held_down.saturating_mul(of) >= self.events.saturating_mul(showing)
    }

    /// What came through meanwhile, in Mbit/s.
    fn mbit_per_s(&self) -> f64 {
        let acked = self.acked_last.saturating_sub(self.acked_first);
        let lasted = self.last.since(self.since).as_secs_f64();
        if lasted > 0.0 {
            acked as f64 * 8.0 / 1e6 / lasted
        } else {
            0.0
        }
    }

    pub(super) fn facts(&self, facts: Facts) -> Facts {
        facts
            .count("segments_in_flight", self.flight)
            .count("peer_takes_segments", self.window)
            .number("rate_mbit_per_s", self.mbit_per_s())
    }

    /// The rest of a sentence that says that packets are lost.
    pub(super) fn said(&self) -> String {
        format!(
            ", which holds it down to about {:.1} Mbit/s: {} segments in flight, where the peer would take {}",
            self.mbit_per_s(),
            self.flight,
            self.window
        )
    }
}

/// Whether it is loss that holds a connection down: not that nothing waits to be sent, nor that the peer would take no
/// more, nor that the link is full. Of a fast one nothing is said.
fn is_held_down(tcp: &Tcp, min_rtt_us: Option<u32>) -> bool {
    let flight = tcp.packets_out.saturating_mul(tcp.mss_bytes);
    let waits = tcp.write_seq.wrapping_sub(tcp.snd_nxt) >= tcp.mss_bytes;
    let is_small = (1..=FEW_SEGMENTS).contains(&tcp.packets_out) && tcp.mss_bytes > 0;
    let would_take = tcp.snd_wnd_bytes >= flight.saturating_mul(2);
    let round_trip = tcp.srtt.as_secs_f64();
    let is_slow = f64::from(flight) < FAST_BYTES_PER_S * round_trip;
    let is_queued = min_rtt_us.is_none_or(|us| round_trip > QUEUED * f64::from(us) / 1e6);
    waits && is_small && would_take && is_slow && !is_queued
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{super::thresholds::Thresholds, *};

    /// Nine segments of a window of 64 in flight, and the rest waits.
    fn lossy() -> Tcp {
        Tcp {
            snd_una: 1000,
            snd_nxt: 1000 + 9 * 1448,
            write_seq: 1000 + 500 * 1448,
            snd_wnd_bytes: 64 * 1448,
            packets_out: 9,
            mss_bytes: 1448,
            srtt: Duration::from_millis(20),
            ..Tcp::default()
        }
    }

    #[rstest]
    #[case::loss_holds_it_down(|_: &mut Tcp| {}, Some(19_800), true)]
    #[case::nothing_waits(|tcp: &mut Tcp| tcp.write_seq = tcp.snd_nxt, Some(19_800), false)]
    #[case::the_peer_takes_no_more(|tcp: &mut Tcp| tcp.snd_wnd_bytes = 10 * 1448, Some(19_800), false)]
    #[case::the_window_is_large(|tcp: &mut Tcp| tcp.packets_out = 40, Some(19_800), false)]
    #[case::it_is_fast_all_the_same(|tcp: &mut Tcp| tcp.srtt = Duration::from_micros(200), Some(190), false)]
    #[case::the_link_is_full(|_: &mut Tcp| {}, Some(10_000), false)]
    #[case::the_round_trip_is_not_known(|_: &mut Tcp| {}, None, false)]
    fn what_else_keeps_a_window_small_is_no_loss(
        #[case] change: fn(&mut Tcp),
        #[case] min_rtt_us: Option<u32>,
        #[case] expected: bool,
    ) {
        let mut tcp = lossy();
        change(&mut tcp);
        assert_eq!(is_held_down(&tcp, min_rtt_us), expected);
    }

    #[test]
    fn it_takes_a_while_and_most_of_the_losses() {
        let rules = Thresholds::default();
        let run = |events: u64, apart_ms: u64, of_four: u64| {
            let mut costly = Costly::default();
            for event in 0..events {
                let mut tcp = lossy();
                if event % 4 >= of_four {
                    tcp.packets_out = 40;
                }
                costly.saw(
                    &tcp,
                    Some(19_000),
                    1,
                    Ktime(1_000_000_000 + event * apart_ms * 1_000_000),
                );
            }
            costly.is_worth(rules.costly())
        };
        assert!(run(120, 28, 4), "36 a second");
        assert!(!run(60, 28, 4), "for less than 3 s");
        assert!(run(25, 1000, 4), "one a second, for long");
        assert!(!run(15, 1000, 4), "a few");
        assert!(!run(100, 6000, 4), "now and then");
        assert!(run(120, 28, 3));
        assert!(!run(120, 28, 2), "it was larger in between");
    }
}
