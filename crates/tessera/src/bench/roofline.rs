//! Tests below the roofline (Williams et al. 2009): operations per byte to the right, rate upwards.

use anyhow::anyhow;
use plotters::prelude::*;

use super::cost::Ceilings;

const SIZE: (u32, u32) = (960, 600);
const ROOF: RGBColor = RGBColor(85, 85, 85);
const POINT: RGBColor = RGBColor(11, 61, 145);
const FONT: &str = "sans-serif";
/// Free room around the points, as a factor.
const MARGIN: f64 = 2.0;

/// What is drawn.
pub struct Roofline {
    pub title: String,
    /// What the axis to the right counts.
    pub per: &'static str,
    pub ceilings: Ceilings,
    pub points: Vec<Point>,
}

pub struct Point {
    pub intensity: f64, // operations per byte
    pub tflop_s: f64,
    pub label: String,
}

/// A whole SVG document.
pub fn draw(roofline: &Roofline) -> anyhow::Result<String> {
    let mut svg = String::new();
    // The back end's errors borrow it.
    draw_on(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), roofline)
        .map_err(|error| anyhow!("the roofline cannot be drawn: {error}"))?;
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn draw_on<'a>(area: &Area<'a>, roofline: &Roofline) -> Result<(), DrawError<'a>> {
    area.fill(&WHITE)?;
    let Roofline { title, per, ceilings, points } = roofline;
    let of_copy = |x: f64| x * ceilings.copy_gb_s / 1e3; // TFLOP/s at x operations a byte
    let most = ceilings.cublas_tflop_s.unwrap_or(f64::INFINITY);
    let (left, right) = range(points.iter().map(|p| p.intensity));
    let (low, high) =
        range(points.iter().map(|p| p.tflop_s).chain([of_copy(left).min(most), of_copy(right).min(most)]));
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d((left..right).log_scale(), (low..high).log_scale())?;
    chart.configure_mesh().x_desc(*per).y_desc("TFLOP/s").label_style((FONT, 13)).light_line_style(WHITE).draw()?;

    let steps = 64;
    let roof = (0..=steps).map(|i| left * (right / left).powf(f64::from(i) / f64::from(steps)));
    chart.draw_series(LineSeries::new(roof.map(|x| (x, of_copy(x).min(most))), ROOF.stroke_width(2)))?;
    let copying = format!("copying {:.0} GB/s", ceilings.copy_gb_s);
    let mut roofs = vec![(left * 1.2, of_copy(left * 1.2), copying)];
    if let Some(rate) = ceilings.cublas_tflop_s {
        roofs.push((right / 6.0, rate, format!("cuBLAS {rate:.0} TFLOP/s")));
    }
    let name = |(x, y, text): (f64, f64, String)| EmptyElement::at((x, y)) + Text::new(text, (0, -18), (FONT, 13));
    chart.draw_series(roofs.into_iter().map(name))?;
    let point = |p: &Point| {
        EmptyElement::at((p.intensity, p.tflop_s))
            + Circle::new((0, 0), 5, POINT.filled())
            + Text::new(p.label.clone(), (8, 2), (FONT, 13))
    };
    chart.draw_series(points.iter().map(point))?;
    area.present()
}

/// Of positive numbers, with room around them.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
    (low / MARGIN, high * MARGIN)
}
