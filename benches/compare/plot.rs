//! The results as an SVG: bars with the ratios to Node and to the best peer, and a panel for each
//! curve.

use std::fmt::Write;

use crate::report::{Advantage, Curve, Results, grouped, short};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
const BAR: f64 = 22.0;
/// The size of a panel with its title and labels.
const PANEL: (f64, f64) = (WIDTH / 2.0, 260.0);
/// The label of a logarithmic axis.
const LOGARITHMIC: &str = "logarithmic scale";
const GOOD: &str = "#15803d";
const PEER: &str = "#1d4ed8";
const BAD: &str = "#c2410c";

/// The SVG.
pub fn svg(results: &Results, subtitle: &str) -> String {
    let bars = results.advantages();
    let bars_end = 84.0 + bars.len() as f64 * BAR;
    let height = bars_end + results.curves.len().div_ceil(2) as f64 * PANEL.1 + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let title = match bars.iter().any(|bar| bar.peer.is_some()) {
        true => "Cost: how many times less than Node (green), than the best peer (blue); red: more",
        false => "Cost: how many times less than Node",
    };
    let subtitle = format!("{subtitle}; {LOGARITHMIC}");
    text(&mut out, MARGIN, 30.0, "font-size=\"18\" font-weight=\"600\"", title);
    text(&mut out, MARGIN, 50.0, "fill=\"#6b7280\"", &subtitle);
    push_bars(&mut out, &bars);
    for (index, curve) in results.curves.iter().enumerate() {
        let x = (index % 2) as f64 * PANEL.0;
        let y = bars_end + (index / 2) as f64 * PANEL.1;
        push_curve(&mut out, curve, x, y);
    }
    out.push_str("</svg>\n");
    out
}

fn push_bars(out: &mut String, bars: &[Advantage]) {
    const LEFT: f64 = 480.0;
    let all = bars.iter().flat_map(|bar| [Some(bar.node), bar.peer]).flatten();
    let scale = Scale::new(all.chain([1.0, 10.0]), true).onto(LEFT, WIDTH - 80.0);
    let end = 66.0 + bars.len() as f64 * BAR;
    for tick in scale.ticks() {
        let x = scale.at(tick);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"60\" y2=\"{end:.1}\" stroke=\"#e5e7eb\"/>"
        );
        text(
            out,
            x,
            end + 12.0,
            "text-anchor=\"middle\" fill=\"#6b7280\"",
            &format!("{} ×", if tick < 1.0 { short(tick) } else { grouped(tick, 0) }),
        );
    }
    for (index, bar) in bars.iter().enumerate() {
        let y = 66.0 + index as f64 * BAR;
        text(out, LEFT - 8.0, y + 14.0, "text-anchor=\"end\"", &bar.title);
        let (height, small) = match bar.peer {
            Some(_) => ((BAR - 4.0) / 2.0, "font-size=\"10\""),
            None => (BAR - 5.0, ""),
        };
        let both = [Some((bar.node, GOOD)), bar.peer.map(|peer| (peer, PEER))];
        for (nth, (times, good)) in both.into_iter().flatten().enumerate() {
            let y = y + nth as f64 * height;
            let (from, to) = (scale.at(1.0), scale.at(times));
            let colour = if times >= 1.0 { good } else { BAD };
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
                from.min(to),
                (to - from).abs().max(1.0),
                height - 0.5
            );
            let times = format!("{} ×", short(times));
            text(out, from.max(to) + 6.0, y + height / 2.0 + 4.0, small, &times);
        }
    }
}

fn push_curve(out: &mut String, curve: &Curve, left: f64, top: f64) {
    let points = || curve.lines.iter().flat_map(|(_, line)| line);
    let (x0, x1) = (left + 64.0, left + PANEL.0 - 1.5 * MARGIN);
    let (y0, y1) = (top + PANEL.1 - 48.0, top + 48.0);
    let mut xs = Scale::new(points().map(|(x, _)| *x), true).onto(x0 + 8.0, x1 - 8.0);
    xs.low = points().map(|(x, _)| *x).fold(f64::MAX, f64::min);
    let spread = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
        high > low.max(1e-9) * 30.0
    };
    let is_wide = spread(&mut points().map(|(_, y)| *y));
    // From zero, so that a constant cost looks flat, unless the range is too wide.
    let zero = (!is_wide).then_some(0.0);
    let ys = Scale::new(points().map(|(_, y)| *y).chain(zero), is_wide).onto(y0, y1);
    text(out, left + MARGIN, top + 24.0, "font-weight=\"600\"", &curve.title);
    let vertical = format!("{}, {}", curve.y, if is_wide { LOGARITHMIC } else { "scale from 0" });
    text(out, left + MARGIN, top + 40.0, "fill=\"#6b7280\"", &vertical);
    let horizontal = format!("{}, {LOGARITHMIC}", curve.x);
    text(out, (x0 + x1) / 2.0, y0 + 34.0, "text-anchor=\"middle\" fill=\"#6b7280\"", &horizontal);
    for tick in ys.ticks() {
        let y = ys.at(tick);
        let _ = writeln!(
            out,
            "<line x1=\"{x0}\" x2=\"{x1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#e5e7eb\"/>"
        );
        text(out, x0 - 6.0, y + 4.0, "text-anchor=\"end\"", &short(tick));
    }
    let mut measured: Vec<f64> = points().map(|(x, _)| *x).collect();
    measured.sort_by(f64::total_cmp);
    measured.dedup();
    for x in measured {
        text(out, xs.at(x), y0 + 16.0, "text-anchor=\"middle\"", &grouped(x, 0));
    }
    for (index, (name, line)) in curve.lines.iter().enumerate() {
        let colour = colour(name);
        let path: Vec<_> =
            line.iter().map(|(x, y)| format!("{:.1},{:.1}", xs.at(*x), ys.at(*y))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (x, y) in line {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                xs.at(*x),
                ys.at(*y)
            );
        }
        let y = top + 24.0 + index as f64 * 14.0;
        text(out, x1, y, &format!("text-anchor=\"end\" fill=\"{colour}\""), name);
    }
}

/// The same colour for the same contender in every panel.
fn colour(line: &str) -> &'static str {
    match line {
        "Node" => BAD,
        "floor" => "#6b7280",
        "Bun" => "#7c3aed",
        "uWS" => "#0e7490",
        "axum" => "#be185d",
        "ours, Socket.IO" | "ours, p99" => "#1d4ed8",
        "ours, MongoDB" => "#a16207",
        _ => GOOD,
    }
}

/// Maps values to coordinates.
struct Scale {
    low: f64,
    high: f64,
    is_logarithmic: bool,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, is_logarithmic: bool) -> Self {
        let floor = if is_logarithmic { 1e-3 } else { 0.0 };
        let (low, high) = values
            .map(|value| value.max(floor))
            .fold((f64::MAX, floor), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if is_logarithmic {
            (10_f64.powf(low.log10().floor()), high)
        } else {
            (low, high * 1.1)
        };
        Self { low, high: high.max(low * 1.0001 + 1e-9), is_logarithmic, from: 0.0, to: 1.0 }
    }

    fn onto(self, from: f64, to: f64) -> Self {
        Self { from, to, ..self }
    }

    fn at(&self, value: f64) -> f64 {
        let share = if self.is_logarithmic {
            (value.max(1e-3) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.is_logarithmic {
            let first = self.low.log10().round() as i32;
            let powers = (first..).map(|power| 10_f64.powi(power));
            return powers.take_while(|tick| *tick <= self.high * 1.01).collect();
        }
        let rough = (self.high - self.low) / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let ticks = (0..).map(|number| self.low + f64::from(number) * step);
        ticks.take_while(|tick| *tick <= self.high).collect()
    }
}

fn text(out: &mut String, x: f64, y: f64, attributes: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>");
}
