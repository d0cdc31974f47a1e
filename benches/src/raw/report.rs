//! The line of JSON: the fields that the comparison's other programs print.

use serde::{Deserialize, Serialize};

use super::Measured;
use super::args::RawArgs;
use super::work::Workload;

/// One measurement.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Line {
    /// What moved the bytes.
    pub peer: String,
    /// What the bytes went over; nothing for a limit without a transport.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<String>,
    /// W1 to W5; `pages` for other numbers and sizes of pages.
    pub workload: String,
    /// Bytes of a request.
    pub bytes: u64,
    /// Pages of a request.
    pub pages: u64,
    /// Requests measured.
    pub iters: usize,
    /// 10^9 bytes a second, of the median request.
    pub gbps: f64,
    /// Microseconds per request, half of them within this; of a ping-pong half the round trip.
    pub p50_us: f64,
    /// 90 of 100.
    pub p90_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1000.
    pub p999_us: f64,
    /// The fastest.
    pub min_us: f64,
    /// The slowest.
    pub max_us: f64,
    /// Seconds of user and system time of both processes per 10^9 bytes.
    pub cpu_s_per_gb: f64,
    /// The same in microseconds per request.
    pub cpu_us_per_req: f64,
    /// Most memory of the sending process, MB.
    pub rss_tx_mb: u64,
    /// Most memory of the receiving process, MB.
    pub rss_rx_mb: u64,
    /// Pages of one side, MB.
    pub pool_mb: u64,
    /// Whether every byte was where it must be, and nothing else was touched.
    pub verified: bool,
}

impl Line {
    pub(super) fn new(
        args: &RawArgs,
        work: &Workload,
        sent: &Measured,
        received: &Measured,
    ) -> Self {
        let micros = if work.is_ping_pong() { half_trips(sent) } else { one_way(sent, received) };
        let median = median(&micros);
        let requests = micros.len() as f64 * if work.is_ping_pong() { 2.0 } else { 1.0 };
        let workload = if args.pages.is_some() { "pages" } else { work.name.short() };
        let cpu = sent.cpu + received.cpu;
        let moved = work.bytes() as f64 * requests / 1e9;
        let within = |thousandths: usize| {
            let rank = micros.len() * thousandths / 1000;
            round(micros[rank.min(micros.len() - 1)], 2)
        };
        Self {
            peer: args.fabric.label().to_owned(),
            over: sent.over.clone(),
            workload: workload.to_owned(),
            bytes: work.bytes(),
            pages: work.pages(),
            iters: micros.len(),
            gbps: round(work.bytes() as f64 / median / 1e3, 4),
            p50_us: round(median, 2),
            p90_us: within(900),
            p99_us: within(990),
            p999_us: within(999),
            min_us: round(micros[0], 2),
            max_us: round(micros[micros.len() - 1], 2),
            cpu_s_per_gb: round(cpu / moved, 4),
            cpu_us_per_req: round(cpu / requests * 1e6, 1),
            rss_tx_mb: sent.rss_mb,
            rss_rx_mb: received.rss_mb,
            pool_mb: work.pages_bytes() >> 20,
            verified: sent.verified && received.verified,
        }
    }
}

/// From the sender's start to the receiver's completion, sorted.
fn one_way(sent: &Measured, received: &Measured) -> Vec<f64> {
    let pairs = sent.stamps.iter().zip(&received.stamps);
    sorted(pairs.map(|(start, end)| end.saturating_sub(*start) as f64 / 1e3))
}

/// The sender of a ping-pong stamps the start of each trip, and the end of the last.
fn half_trips(sent: &Measured) -> Vec<f64> {
    sorted(sent.stamps.chunks_exact(2).map(|trip| (trip[1] - trip[0]) as f64 / 2e3))
}

fn sorted(micros: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut all: Vec<f64> = micros.collect();
    all.sort_by(f64::total_cmp);
    all
}

fn median(sorted: &[f64]) -> f64 {
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    f64::midpoint(low, high)
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }

    #[test]
    fn trips_are_halved_and_sorted() {
        let stamps = vec![0, 8_000, 10_000, 14_000];
        let sent = Measured { stamps, ..Measured::default() };
        assert_eq!(half_trips(&sent), [2.0, 4.0]);
    }
}
