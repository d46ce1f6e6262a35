//! Points in time, in whole seconds of UTC.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Seconds since 1970-01-01T00:00:00Z; written as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// The text is not an RFC 3339 date and time, or outside the years 0 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a time is written as in RFC 3339, such as `2025-11-11T12:00:00Z`")]
pub struct TimestampError;

impl TimestampError {
    /// The reason code.
    pub const fn reason(self) -> &'static str {
        "BAD_TIME"
    }
}

/// First second of the year 0 and last of the year 9999, outside of which RFC 3339 cannot write.
const RANGE: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

impl Timestamp {
    /// The time `seconds` after the Unix epoch; held within the years 0 to 9999.
    pub fn from_unix(seconds: i64) -> Self {
        Self(seconds.clamp(*RANGE.start(), *RANGE.end()))
    }

    /// Seconds since the Unix epoch.
    pub const fn unix(self) -> i64 {
        self.0
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    /// Offsets are converted to UTC, fractions of a second are dropped.
    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| TimestampError)?;
        let seconds = time.unix_timestamp();
        if RANGE.contains(&seconds) {
            Ok(Self(seconds))
        } else {
            Err(TimestampError)
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = OffsetDateTime::from_unix_timestamp(self.0).map_err(|_| fmt::Error)?;
        let (date, clock) = (time.date(), time.time());
        let year = date.year().unsigned_abs();
        let mut text = *b"0000-00-00T00:00:00Z";
        for (place, number) in [
            (0, year / 100),
            (2, year % 100),
            (5, u32::from(u8::from(date.month()))),
            (8, u32::from(date.day())),
            (11, u32::from(clock.hour())),
            (14, u32::from(clock.minute())),
            (17, u32::from(clock.second())),
        ] {
            text[place] += (number / 10) as u8;
            text[place + 1] += (number % 10) as u8;
        }
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_any_offset_and_written_in_utc() {
        for (text, want) in [
            ("2025-11-11T12:00:00Z", Ok("2025-11-11T12:00:00Z")),
            ("2025-11-11T12:00:00.999Z", Ok("2025-11-11T12:00:00Z")),
            ("2025-11-11T14:00:00+02:00", Ok("2025-11-11T12:00:00Z")),
            ("1969-12-31T23:59:59Z", Ok("1969-12-31T23:59:59Z")),
            ("2025-11-11", Err(TimestampError)),
            ("2025-11-11T12:00:00", Err(TimestampError)),
            ("2025-02-30T12:00:00Z", Err(TimestampError)),
            ("", Err(TimestampError)),
            ("1731081600", Err(TimestampError)),
        ] {
            assert_eq!(
                text.parse::<Timestamp>().map(|time| time.to_string()),
                want.map(str::to_owned),
                "{text}"
            );
        }
    }

    #[test]
    fn seconds_beyond_what_can_be_written_are_held_at_the_edge() {
        assert_eq!(Timestamp::from_unix(i64::MAX).to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(Timestamp::from_unix(i64::MIN).to_string(), "0000-01-01T00:00:00Z");
    }
}
