//! What came of an axis, as rows and columns; and those as Markdown or HTML.

use std::fmt::Write as _;

use super::args::Axis;
use super::measure::{PERCENTILES, Results, Sample};

/// One axis.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) axis: Axis,
    pub(super) title: &'static str,
    /// What the figures are, and of what.
    pub(super) note: &'static str,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(axis: Axis, results: &Results) -> Self {
        let (title, note) = words(axis);
        let places: Vec<_> = results.of(axis).collect();
        let series = places.first().map_or(&[][..], |(_, samples)| samples);
        let (head, rows) = match axis {
            Axis::Latency => {
                let head = PERCENTILES.map(str::to_owned).into_iter();
                let row = |(name, sample): &(&str, Sample)| {
                    let times = sample.percentiles.map(|micros| format!("{micros:.1}"));
                    [(*name).to_owned()].into_iter().chain(times).collect()
                };
                (head.collect::<Vec<_>>(), series.iter().map(row).collect())
            }
            _ => {
                let head = series.iter().map(|(name, _)| (*name).to_owned());
                let row = |(at, samples): &(u64, &[(&str, Sample)])| {
                    let cell = |(_, sample): &(&str, Sample)| {
                        format!("{:.2} ({:.2})", sample.gbps, sample.cpu_s_per_gb)
                    };
                    [label(axis, *at)].into_iter().chain(samples.iter().map(cell)).collect()
                };
                (head.collect(), places.iter().map(row).collect())
            }
        };
        let head = [String::new()].into_iter().chain(head).collect();
        Self { axis, title, note, head, rows }
    }

    pub(super) fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = vec!["---".to_owned(); self.head.len()];
        let mut text =
            format!("## {}\n\n{}\n\n{}{}", self.title, self.note, line(&self.head), line(&rule));
        self.rows.iter().for_each(|row| text.push_str(&line(row)));
        text
    }

    /// Without the title. Names and numbers of ours: nothing needs escaping.
    pub(super) fn html(&self) -> String {
        let mut text = format!("<p>{}</p>\n<table>\n", self.note);
        let rows = [(&self.head, "th")].into_iter().chain(self.rows.iter().map(|row| (row, "td")));
        for (row, tag) in rows {
            let cells = row.iter().map(|cell| format!("<{tag}>{cell}</{tag}>"));
            writeln!(text, "<tr>{}</tr>", cells.collect::<String>()).expect("a string takes it");
        }
        text + "</table>\n"
    }
}

/// A place on an axis, as people write it.
pub(super) fn label(axis: Axis, at: u64) -> String {
    match axis {
        Axis::Pages if at >= 1 << 20 => format!("{} MiB", at >> 20),
        Axis::Pages => format!("{} KiB", at >> 10),
        _ => at.to_string(),
    }
}

fn words(axis: Axis) -> (&'static str, &'static str) {
    match axis {
        Axis::Pages => (
            "Size of pages",
            "Scattered pages of a size in one request: GB/s, and in brackets CPU seconds of both \
             processes per GB. `local` is shared memory; `bare-tcp` and `memcpy` are limits, without \
             a transport.",
        ),
        Axis::Latency => (
            "Latency",
            "A page of 4 KiB and its notification: half the round trip in microseconds, by percentile.",
        ),
        Axis::Lanes => {
            ("Lanes", "Pages of 64 KiB over so many TCP connections: GB/s (CPU seconds per GB).")
        }
        Axis::Rooms => (
            "Rooms",
            "Whole requests of 8 MiB between two nodes, so many in flight: GB/s (CPU seconds per GB).",
        ),
        Axis::Peers => (
            "Peers",
            "The same with 16 in flight, between so many prefill nodes and one decode node, each a \
             process: GB/s (CPU seconds per GB).",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_as_people_do() {
        let of = |at| label(Axis::Pages, at);
        assert_eq!([of(4096), of(256 << 10), of(4 << 20)], ["4 KiB", "256 KiB", "4 MiB"]);
        assert_eq!(label(Axis::Rooms, 64), "64");
    }

    #[test]
    fn a_table_is_markdown_and_html() {
        let cells = |row: [&str; 2]| row.map(str::to_owned).to_vec();
        let table = Table {
            axis: Axis::Lanes,
            title: "Lanes",
            note: "Note.",
            head: cells(["", "tcp"]),
            rows: vec![cells(["1", "3.00 (0.31)"])],
        };
        assert_eq!(
            table.markdown(),
            "## Lanes\n\nNote.\n\n|  | tcp |\n| --- | --- |\n| 1 | 3.00 (0.31) |\n"
        );
        assert_eq!(
            table.html(),
            "<p>Note.</p>\n<table>\n<tr><th></th><th>tcp</th></tr>\n\
             <tr><td>1</td><td>3.00 (0.31)</td></tr>\n</table>\n"
        );
    }
}
