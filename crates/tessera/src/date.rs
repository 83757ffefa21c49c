//! Dates of the system message.

use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_PER_DAY: u64 = 86_400;

/// `YYYY-MM-DD`, UTC.
pub fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    iso_date(seconds / SECONDS_PER_DAY)
}

/// The date that `text` is.
///
/// # Errors
/// What was expected, when it is no day of the calendar.
pub fn parse(text: &str) -> Result<String, String> {
    if is_date(text) { Ok(text.to_owned()) } else { Err(format!("found {text:?}, expected a day as YYYY-MM-DD")) }
}

fn is_date(text: &str) -> bool {
    let is_digit_or_dash = |(i, c): (usize, char)| if i == 4 || i == 7 { c == '-' } else { c.is_ascii_digit() };
    if text.len() != "YYYY-MM-DD".len() || !text.chars().enumerate().all(is_digit_or_dash) {
        return false;
    }
    let [year, month, day] = [&text[..4], &text[5..7], &text[8..]].map(|n| n.parse().unwrap_or(0u32));
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day)
}

/// The Gregorian date of a day counted from 1970-01-01. Years begin in March here, so that a leap day ends one.
fn iso_date(days: u64) -> String {
    const DAYS_TO_1970: u64 = 719_468; // from 0000-03-01
    const DAYS_PER_ERA: u64 = 146_097; // 400 years
    let days = days + DAYS_TO_1970;
    let (era, day) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_days_of_the_calendar_are_dates() {
        for date in ["2025-06-28", "2024-02-29", "2000-02-29", "1999-12-31"] {
            assert_eq!(parse(date).as_deref(), Ok(date));
        }
        let none = ["", "today", "2025-6-28", "2025-13-01", "2025-00-10", "2025-01-00", "2025-04-31", "2025-02-29"];
        for text in none.into_iter().chain(["1900-02-29", "2025/06/28", "2025-06-281", "+025-06-28", "２025-06-2"]) {
            assert!(parse(text).is_err_and(|error| error.contains("YYYY-MM-DD")), "{text}");
        }
    }

    #[test]
    fn days_have_their_dates() {
        // From `date -u -d @$((day * 86400)) +%F`.
        for (day, date) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (789, "1972-02-29"),
            (10_957, "2000-01-01"),
            (11_016, "2000-02-29"),
            (20_267, "2025-06-28"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(iso_date(day), date, "day {day}");
        }
    }
}
