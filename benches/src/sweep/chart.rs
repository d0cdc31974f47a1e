//! Lines over an axis, as SVG.

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::SweepError;

const SIZE: (u32, u32) = (760, 380);
/// Colours that people who confuse red and green can tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(120, 120, 120)];

/// A picture.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    /// What the horizontal axis has, from left to right.
    pub(super) places: Vec<String>,
    pub(super) across: &'a str,
    pub(super) up: &'a str,
    /// Each line's name, and its height at every place.
    pub(super) lines: Vec<(&'a str, Vec<f64>)>,
    /// Whether heights are told apart by how many times one is the other.
    pub(super) logarithmic: bool,
}

impl Chart<'_> {
    /// Draws it.
    pub(super) fn svg(&self) -> Result<String, SweepError> {
        let mut svg = String::new();
        let drawn = {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            if self.logarithmic {
                self.draw(&area, (self.lowest()..self.highest()).log_scale())
            } else {
                self.draw(&area, 0.0..self.highest())
            }
        };
        drawn.map_err(|error| SweepError::Chart(error.to_string()))?;
        Ok(svg)
    }

    fn draw<Y>(&self, area: &Area<'_>, heights: Y) -> Result<(), Failed>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        area.fill(&WHITE)?;
        let last = self.places.len().saturating_sub(1) as f64;
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(-0.2..last + 0.2, heights)?;
        let place = |at: &f64| {
            let whole = (at - at.round()).abs() < 1e-6 && *at >= 0.0;
            let label = whole.then(|| self.places.get(at.round() as usize)).flatten();
            label.cloned().unwrap_or_default()
        };
        chart
            .configure_mesh()
            .x_desc(self.across)
            .y_desc(self.up)
            .x_labels(2 * self.places.len() + 1)
            .x_label_formatter(&place)
            .disable_x_mesh()
            .draw()?;
        for ((name, heights), colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let points: Vec<(f64, f64)> =
                heights.iter().enumerate().map(|(at, height)| (at as f64, *height)).collect();
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.clone(), style))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            chart.draw_series(points.into_iter().map(|at| Circle::new(at, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .position(SeriesLabelPosition::UpperLeft)
            .draw()?;
        area.present()
    }

    fn heights(&self) -> impl Iterator<Item = f64> {
        self.lines.iter().flat_map(|(_, heights)| heights.iter().copied())
    }

    /// With room above for the names.
    fn highest(&self) -> f64 {
        let highest = self.heights().fold(0.0, f64::max);
        let room = if self.logarithmic { 10.0 } else { 1.25 };
        if highest > 0.0 { highest * room } else { 1.0 }
    }

    fn lowest(&self) -> f64 {
        let lowest = self.heights().filter(|height| *height > 0.0).fold(f64::MAX, f64::min);
        if lowest < f64::MAX { lowest / 2.0 } else { 0.1 }
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Failed = DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_and_every_line_is_named_in_the_picture() {
        let places = ["4 KiB", "64 KiB", "4 MiB"].map(str::to_owned).to_vec();
        let lines = vec![("local", vec![9.0, 10.0, 10.5]), ("memcpy", vec![13.0, 13.5, 14.0])];
        for logarithmic in [false, true] {
            let (places, lines) = (places.clone(), lines.clone());
            let chart = Chart { places, across: "page", up: "GB/s", lines, logarithmic };
            let svg = chart.svg().expect("it is drawn");
            for word in ["4 KiB", "64 KiB", "4 MiB", "local", "memcpy", "GB/s"] {
                assert!(svg.contains(word), "{word}");
            }
            assert_eq!(svg.matches("<circle").count(), 6);
        }
    }
}
