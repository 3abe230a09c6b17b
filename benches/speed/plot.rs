//! The growth as a picture.

/// Both axes are logarithmic: what grows in proportion to the number of domains ends parallel to the dashed line.
pub(crate) fn svg(lines: &[(String, Vec<(f64, f64)>)]) -> String {
    const COLOURS: [&str; 8] = ["#888", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b"];
    let (width, height, left, top) = (640.0, 400.0, 60.0, 20.0);
    let all = || lines.iter().flat_map(|(_, points)| points);
    let most_x = all().map(|point| point.0).fold(1.0, f64::max);
    let most_y = 10_f64.powf(all().map(|point| point.1).fold(1.0, f64::max).log10().ceil());
    let x = |domains: f64| left + (width - left - 180.0) * domains.ln() / most_x.ln();
    let y = |ms: f64| top + (height - top - 40.0) * (1.0 - ms.ln() / most_y.ln());
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' font-family='sans-serif' font-size='12'>\n\
         <rect width='100%' height='100%' fill='white'/>\n"
    );
    let mut tick = 1.0;
    while tick <= most_y {
        let at = y(tick);
        svg += &format!(
            "<line x1='{left}' x2='{:.0}' y1='{at:.0}' y2='{at:.0}' stroke='#ddd'/><text x='4' y='{:.0}'>{tick} ms</text>\n",
            width - 180.0,
            at + 4.0
        );
        tick *= 10.0;
    }
    for (domains, _) in &lines[0].1 {
        svg +=
            &format!("<text x='{:.0}' y='{:.0}' text-anchor='middle'>{domains}</text>\n", x(*domains), height - 22.0);
    }
    svg += &format!("<text x='{left}' y='{:.0}'>domains</text>\n", height - 6.0);
    svg += &format!(
        "<line x1='{:.0}' y1='{:.0}' x2='{:.0}' y2='{:.0}' stroke='#bbb' stroke-dasharray='4'/>\n",
        x(1.0),
        y(1.0),
        x(most_x),
        y(most_x)
    );
    for (number, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let path: Vec<String> =
            points.iter().map(|(domains, ms)| format!("{:.1},{:.1}", x(*domains), y(*ms))).collect();
        svg += &format!("<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2'/>\n", path.join(" "));
        let row = top + 16.0 * number as f64 + 10.0;
        svg += &format!("<text x='{:.0}' y='{row:.0}' fill='{colour}'>{name}</text>\n", width - 170.0);
    }
    svg + "</svg>\n"
}
