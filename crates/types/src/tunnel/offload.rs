//! Tests of the offloads of a tunnel: what the loss of packets that need the hardware says.
//!
//! The same segments are sent in three forms. Only the work that is left to the hardware differs,
//! so only a difference of the losses is evidence. Loss of all forms says nothing.

use std::fmt;
use std::time::Duration;

/// The number of segments of a form in a round from which small differences count.
const MANY_SEGMENTS: u32 = 200;
/// The least difference of the loss, in parts of 1000, between many segments and between few.
const LOSS_DIFFERENCE: u32 = 100;
const LOSS_DIFFERENCE_FEW: u32 = 500;
/// The loss of complete segments above which nothing can be compared.
const LOSS_MAX: u32 = 500;
/// A form that is slower by this factor, for at least this duration, is slow.
const SLOW_FACTOR: u32 = 4;
const SLOW_MIN: Duration = Duration::from_millis(200);
/// Loss, in parts of 1000, up to which rates are compared.
const LOSS_OF_RATES_MAX: u32 = 10;

/// The work on a packet that is offloaded to the hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SegmentForm {
    /// Nothing: the packet has its checksum.
    Complete,
    /// The checksum of the packet inside of the tunnel.
    Checksum,
    /// The division of a large packet into segments, and their checksums.
    Segmentation,
}

impl SegmentForm {
    /// All forms, in the order in which a round sends them.
    pub const ALL: [Self; 3] = [Self::Complete, Self::Checksum, Self::Segmentation];
}

/// The segments of one form in one round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentTally {
    /// Number of segments sent.
    pub sent: u32,
    /// Number of segments that the peer answered.
    pub answered: u32,
    /// Bytes of the segments sent, with their IP headers.
    pub bytes: u64,
    /// Time from the first segment to the last answer.
    pub duration: Duration,
}

impl SegmentTally {
    /// Returns the loss in parts of 1000.
    fn loss(self) -> u32 {
        let lost = u64::from(self.sent.saturating_sub(self.answered)) * 1000;
        u32::try_from(lost / u64::from(self.sent).max(1)).unwrap_or(1000)
    }

    /// Adds another tally.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            answered: self.answered + other.answered,
            bytes: self.bytes + other.bytes,
            duration: self.duration + other.duration,
        }
    }
}

/// Shows the loss, and the rate if segments arrived.
impl fmt::Display for SegmentTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} % lost", self.loss().div_ceil(10))?;
        let milliseconds = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX).max(1);
        let arrived = self.bytes * u64::from(self.answered) / u64::from(self.sent).max(1);
        match arrived * 8 / 1000 / milliseconds {
            0 => Ok(()),
            rate => write!(f, " at {rate} Mbit/s"),
        }
    }
}

/// The tallies of one round, one of each form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OffloadRound {
    /// Segments with their checksums.
    pub complete: SegmentTally,
    /// Segments whose checksum is left to the hardware.
    pub checksum: SegmentTally,
    /// Segments of large packets.
    pub segmentation: SegmentTally,
}

impl OffloadRound {
    /// Returns the tally of a form.
    pub const fn of(&mut self, form: SegmentForm) -> &mut SegmentTally {
        match form {
            SegmentForm::Complete => &mut self.complete,
            SegmentForm::Checksum => &mut self.checksum,
            SegmentForm::Segmentation => &mut self.segmentation,
        }
    }

    /// Adds another round.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            complete: self.complete.plus(other.complete),
            checksum: self.checksum.plus(other.checksum),
            segmentation: self.segmentation.plus(other.segmentation),
        }
    }
}

/// An offload that the hardware or the hypervisor does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// The checksums of packets inside of the tunnel are wrong.
    Checksum,
    /// Segments of large packets inside of the tunnel are lost, or are sent slowly.
    Segmentation,
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checksum => "checksum offload",
            Self::Segmentation => "segmentation offload",
        })
    }
}

/// What a test of the offloads says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffloadVerdict {
    /// Packets that need the hardware arrive as the others do.
    Works,
    /// Packets that need this offload are lost or slow, and others are not.
    Broken(Offload),
    /// The peer answers none of the segments: its firewalls drop them, or it is gone.
    NoAnswer,
    /// Too many segments are lost that need no offload.
    Lossy,
}

impl OffloadVerdict {
    /// Compares the forms. A form is broken only if its least loss in any round is clearly above
    /// the largest loss of complete segments, so that a burst of loss breaks nothing.
    #[must_use]
    pub fn of(rounds: &[OffloadRound]) -> Self {
        if rounds.iter().all(|round| round.complete.answered == 0) {
            return Self::NoAnswer;
        }
        let complete = || rounds.iter().map(|round| round.complete);
        let reference = complete().map(SegmentTally::loss).max().unwrap_or(1000);
        if reference > LOSS_MAX {
            return Self::Lossy;
        }
        let is_lost = |of: fn(&OffloadRound) -> SegmentTally| {
            let tallies = || rounds.iter().map(of);
            let is_many = tallies().chain(complete()).all(|tally| tally.sent >= MANY_SEGMENTS);
            let difference = if is_many { LOSS_DIFFERENCE } else { LOSS_DIFFERENCE_FEW };
            // Twice a loss of almost half would never be reached.
            let least = (2 * reference + difference).min(950);
            tallies().all(|tally| tally.sent > 0 && tally.loss() > least)
        };
        if is_lost(|round| round.checksum) {
            Self::Broken(Offload::Checksum)
        } else if is_lost(|round| round.segmentation) || rounds.iter().all(is_slow) {
            Self::Broken(Offload::Segmentation)
        } else {
            Self::Works
        }
    }
}

/// Returns whether large packets arrive, and far slower than single segments.
fn is_slow(round: &OffloadRound) -> bool {
    let OffloadRound { complete, segmentation, .. } = round;
    complete.loss().max(segmentation.loss()) <= LOSS_OF_RATES_MAX
        && segmentation.duration > SLOW_MIN
        && segmentation.duration > complete.duration * SLOW_FACTOR
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a tally of 700 segments that took so many milliseconds.
    fn tally(lost: u32, milliseconds: u64) -> SegmentTally {
        SegmentTally {
            sent: 700,
            answered: 700 - lost,
            bytes: 1_000_000,
            duration: Duration::from_millis(milliseconds),
        }
    }

    fn round(lost: [u32; 3]) -> OffloadRound {
        let [complete, checksum, segmentation] = lost.map(|lost| tally(lost, 20));
        OffloadRound { complete, checksum, segmentation }
    }

    fn verdict(rounds: [[u32; 3]; 2]) -> OffloadVerdict {
        OffloadVerdict::of(&rounds.map(round))
    }

    #[test]
    fn loss_of_one_form_only_is_a_broken_offload() {
        use OffloadVerdict::{Broken, Works};
        assert_eq!(verdict([[0; 3]; 2]), Works);
        assert_eq!(verdict([[0, 700, 700]; 2]), Broken(Offload::Checksum));
        assert_eq!(verdict([[0, 0, 700]; 2]), Broken(Offload::Segmentation));
        // A hypervisor that sends only the first segment of a large packet.
        assert_eq!(verdict([[0, 0, 656]; 2]), Broken(Offload::Segmentation));
        assert_eq!(verdict([[35, 40, 700]; 2]), Broken(Offload::Segmentation));
    }

    #[test]
    fn loss_of_all_forms_breaks_nothing() {
        use OffloadVerdict::{Lossy, NoAnswer, Works};
        assert_eq!(verdict([[35, 45, 60], [30, 35, 50]]), Works);
        assert_eq!(verdict([[35, 700, 700], [40, 50, 30]]), Works, "a burst of loss");
        assert_eq!(verdict([[0, 0, 0], [600, 700, 700]]), Lossy);
        assert_eq!(verdict([[700; 3]; 2]), NoAnswer);
        assert_eq!(OffloadVerdict::of(&[]), NoAnswer);
    }

    #[test]
    fn few_segments_need_a_large_difference() {
        let few = |lost: [u32; 3]| {
            let [complete, checksum, segmentation] =
                lost.map(|lost| SegmentTally { sent: 16, answered: 16 - lost, ..tally(0, 20) });
            OffloadVerdict::of(&[OffloadRound { complete, checksum, segmentation }; 2])
        };
        assert_eq!(few([0, 8, 4]), OffloadVerdict::Works);
        assert_eq!(few([0, 15, 0]), OffloadVerdict::Broken(Offload::Checksum));
        assert_eq!(few([3, 13, 13]), OffloadVerdict::Works);
        assert_eq!(few([3, 16, 16]), OffloadVerdict::Broken(Offload::Checksum));
    }

    #[test]
    fn slow_large_packets_are_a_broken_segmentation() {
        let slow = |milliseconds| {
            let segmentation = tally(0, milliseconds);
            OffloadVerdict::of(&[OffloadRound { segmentation, ..round([0; 3]) }; 2])
        };
        assert_eq!(slow(900), OffloadVerdict::Broken(Offload::Segmentation));
        assert_eq!(slow(150), OffloadVerdict::Works, "too short to compare");
    }

    #[test]
    fn tally_shows_loss_and_rate() {
        assert_eq!(tally(0, 20).to_string(), "0 % lost at 400 Mbit/s");
        assert_eq!(tally(1, 20).to_string(), "1 % lost at 399 Mbit/s");
        assert_eq!(tally(700, 0).to_string(), "100 % lost");
    }
}
