//! The limits of a disk: `<iotune>`.

use crate::xml::read::decimal;
use crate::xml::write::Escaped;

/// The element `<iotune>`. A total excludes limits of single directions, and a peak counts only if it is above its
/// base.
pub(super) fn limits<'a>(value: &dyn Fn(&str) -> Option<&'a str>) -> String {
    let mut xml = String::new();
    for kind in ["BYTES_SEC", "IOPS_SEC"] {
        let has_total = value(&format!("TOTAL_{kind}")).or_else(|| value(&format!("TOTAL_{kind}_MAX"))).is_some();
        let directions: &[&str] = if has_total { &["TOTAL"] } else { &["READ", "WRITE"] };
        for direction in directions {
            xml += &limit(&format!("{direction}_{kind}"), value);
        }
    }
    let has_iops = ["TOTAL", "READ", "WRITE"].iter().any(|direction| value(&format!("{direction}_IOPS_SEC")).is_some());
    if let Some(size) = value("SIZE_IOPS_SEC").filter(|_| has_iops) {
        xml += &format!("<size_iops_sec>{}</size_iops_sec>", Escaped(size));
    }
    if xml.is_empty() { xml } else { format!("<iotune>{xml}</iotune>") }
}

fn limit<'a>(name: &str, value: &dyn Fn(&str) -> Option<&'a str>) -> String {
    let element = name.to_ascii_lowercase();
    let (base, peak) = (value(name), value(&format!("{name}_MAX")));
    let number = |text: Option<&str>| text.and_then(|text| decimal::<u64>(text).ok()).unwrap_or(0);
    let mut xml = String::new();
    let mut add = |end: &str, text: &str| xml += &format!("<{element}{end}>{}</{element}{end}>", Escaped(text));
    if let Some(base) = base {
        add("", base);
    }
    if let Some(peak) = peak.filter(|peak| number(Some(peak)) > number(base)) {
        add("_max", peak);
        if let Some(length) = value(&format!("{name}_MAX_LENGTH")) {
            add("_max_length", length);
        }
    }
    xml
}
