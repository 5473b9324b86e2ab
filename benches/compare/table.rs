//! The rows of the comparison, for a terminal and for the documentation.

use std::fmt;

use crate::samples::Samples;

/// A measured figure, in its unit.
#[derive(Debug, Clone)]
pub(crate) enum Figure {
    Seconds(Samples),
    BytesPerSecond(Samples),
    PerSecond(Samples),
    Bytes(u64),
    /// Seconds of processor time for each GiB.
    CpuPerGib(Samples),
}

impl Figure {
    /// A figure that is a limit and was not measured.
    pub(crate) fn seconds(seconds: f64) -> Self {
        Self::Seconds(Samples::from_runs(vec![seconds]))
    }

    fn median(&self) -> f64 {
        match self {
            Self::Seconds(samples)
            | Self::BytesPerSecond(samples)
            | Self::PerSecond(samples)
            | Self::CpuPerGib(samples) => samples.median(),
            Self::Bytes(bytes) => *bytes as f64,
        }
    }
}

impl fmt::Display for Figure {
    /// The median, and the least and the most where there are several runs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (samples, unit, scale, digits) = match self {
            Self::Seconds(samples) if samples.median() < 1e-3 => (samples, "µs", 1e6, 0),
            Self::Seconds(samples) if samples.median() < 0.1 => (samples, "ms", 1e3, 1),
            Self::Seconds(samples) if samples.median() < 1.0 => (samples, "ms", 1e3, 0),
            Self::Seconds(samples) => (samples, "s", 1.0, 2),
            Self::BytesPerSecond(samples) => (samples, "GB/s", 1e-9, 2),
            Self::PerSecond(samples) if samples.median() < 1e3 => (samples, "/s", 1.0, 0),
            Self::PerSecond(samples) => (samples, "k/s", 1e-3, 1),
            Self::CpuPerGib(samples) => (samples, "s/GiB", 1.0, 2),
            Self::Bytes(bytes) => {
                return write!(f, "{:.1} MiB", *bytes as f64 / f64::from(1 << 20));
            }
        };
        write!(f, "{:.digits$} {unit}", samples.median() * scale)?;
        if samples.runs() > 1 {
            write!(
                f,
                " ({:.digits$} to {:.digits$})",
                samples.least() * scale,
                samples.most() * scale
            )?;
        }
        Ok(())
    }
}

/// The target for the ratio of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    /// At least this many times as fast as the other.
    TimesAsFast(f64),
    /// At most this many times what the other takes.
    TimesAsMuch(f64),
    /// None: a row that explains another.
    Nothing,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) against: String,
    pub(crate) ours: Figure,
    pub(crate) theirs: Figure,
    pub(crate) wanted: Wanted,
    /// How it was measured, where that is not obvious.
    pub(crate) note: &'static str,
}

impl Row {
    /// How many times as fast, or as much: the ratio that `wanted` is about.
    fn ratio(&self) -> f64 {
        let as_much = self.ours.median() / self.theirs.median();
        match (self.wanted, &self.ours) {
            (Wanted::TimesAsMuch(_), _) | (_, Figure::BytesPerSecond(_) | Figure::PerSecond(_)) => {
                as_much
            }
            (_, Figure::Seconds(_) | Figure::Bytes(_) | Figure::CpuPerGib(_)) => 1.0 / as_much,
        }
    }

    /// `None` if there is no target.
    pub(crate) fn met(&self) -> Option<bool> {
        match self.wanted {
            Wanted::TimesAsFast(least) => Some(self.ratio() >= least),
            Wanted::TimesAsMuch(most) => Some(self.ratio() <= most),
            Wanted::Nothing => None,
        }
    }

    fn cells(&self) -> [String; 7] {
        let wanted = match self.wanted {
            Wanted::TimesAsFast(least) => format!("at least {least} x"),
            Wanted::TimesAsMuch(most) => format!("at most {most} x"),
            Wanted::Nothing => String::new(),
        };
        let met = match self.met() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        [
            self.what.clone(),
            self.ours.to_string(),
            self.against.clone(),
            self.theirs.to_string(),
            format!("{:.2} x", self.ratio()),
            wanted,
            met.to_owned(),
        ]
    }
}

/// All rows, and the measurements that failed.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) rows: Vec<Row>,
    /// Reasons, in words.
    pub(crate) unmeasured: Vec<String>,
}

const HEADINGS: [&str; 7] = [
    "what",
    "Varve",
    "against",
    "which takes",
    "ratio",
    "wanted",
    "met",
];

impl Table {
    /// As Markdown, with columns that line up in a terminal too.
    pub(crate) fn markdown(&self) -> String {
        let mut lines = vec![HEADINGS.map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::cells));
        let widths: [usize; 7] = std::array::from_fn(|column| {
            lines
                .iter()
                .map(|cells| cells[column].chars().count())
                .max()
                .unwrap_or(0)
        });
        let mut text = String::new();
        for (number, cells) in lines.iter().enumerate() {
            for (cell, width) in cells.iter().zip(widths) {
                text += &format!("| {cell:width$} ");
            }
            text += "|\n";
            if number == 0 {
                for width in widths {
                    text += &format!("| {} ", "-".repeat(width));
                }
                text += "|\n";
            }
        }
        for row in self.rows.iter().filter(|row| !row.note.is_empty()) {
            text += &format!("\n- {}, against {}: {}", row.what, row.against, row.note);
        }
        for reason in &self.unmeasured {
            text += &format!("\n- Not measured: {reason}");
        }
        text.trim_end().to_owned() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: Figure, theirs: Figure, wanted: Wanted) -> Row {
        Row {
            what: "import".to_owned(),
            against: "peer".to_owned(),
            ours,
            theirs,
            wanted,
            note: "",
        }
    }

    fn seconds(value: f64) -> Figure {
        Figure::Seconds(Samples::from_runs(vec![value]))
    }

    #[test]
    fn a_ratio_says_how_many_times_as_fast() {
        assert_eq!(
            row(seconds(2.0), seconds(9.0), Wanted::TimesAsFast(4.5)).met(),
            Some(true)
        );
        assert_eq!(
            row(seconds(2.0), seconds(8.9), Wanted::TimesAsFast(4.5)).met(),
            Some(false)
        );
        let rate = |value| Figure::BytesPerSecond(Samples::from_runs(vec![value]));
        assert_eq!(
            row(rate(3e9), rate(2e9), Wanted::TimesAsFast(1.5)).met(),
            Some(true)
        );
        assert_eq!(
            row(rate(2e9), rate(3e9), Wanted::TimesAsFast(1.0)).met(),
            Some(false)
        );
    }

    #[test]
    fn or_how_many_times_as_much() {
        assert_eq!(
            row(
                Figure::Bytes(10),
                Figure::Bytes(10),
                Wanted::TimesAsMuch(1.0)
            )
            .met(),
            Some(true)
        );
        assert_eq!(
            row(seconds(11.1), seconds(10.0), Wanted::TimesAsMuch(1.1)).met(),
            Some(false)
        );
        assert_eq!(
            row(seconds(1.0), seconds(10.0), Wanted::Nothing).met(),
            None
        );
    }

    #[test]
    fn columns_line_up() {
        let table = Table {
            rows: vec![row(seconds(0.5), seconds(12.0), Wanted::TimesAsFast(10.0))],
            unmeasured: vec!["casync is not here".to_owned()],
        };
        assert_eq!(
            table.markdown(),
            "\
| what   | Varve  | against | which takes | ratio   | wanted        | met |
| ------ | ------ | ------- | ----------- | ------- | ------------- | --- |
| import | 500 ms | peer    | 12.00 s     | 24.00 x | at least 10 x | yes |

- Not measured: casync is not here
"
        );
    }
}
