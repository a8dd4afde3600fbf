//! Samples as tables.

use std::{
    fmt::{Display, Write as _},
    fs,
};

use anyhow::{Context, Result};
use comfy_table::{Table, presets};

use super::{RULES, cpu::Cpus, kernel, live, start::Starts, work::Sample};
use crate::probe::Family;

/// What the figures were measured on.
pub fn machine(cpus: &Cpus) -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("no /proc")?;
    let processor = fs::read_to_string("/proc/cpuinfo").context("no /proc")?;
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    Ok(format!("kernel {}, {model}; client and server share CPU {}", kernel.trim(), cpus.bench()))
}

/// One row per operation and path: the reference's median, then for each mode how many times as fast it is
/// (above 1: faster). The ratio is the median of the rounds' ratios, the range in brackets their extremes.
pub fn operations(modes: &[String], figures: &[live::Figure]) -> String {
    let mut table = table(["p50 of one operation", "path"].map(str::to_owned).into_iter().chain(
        modes.iter().enumerate().map(|(mode, name)| match mode {
            0 => format!("{name}, µs"),
            _ => format!("{} / {name}", modes[0]),
        }),
    ));
    let mut rates = String::from("operations per second, ratio to the reference (above 1: more):\n");
    for live::Figure { work, path, samples } in figures {
        let micros = median(samples[0].iter().map(|sample| sample.p50 / 1e3));
        let ratios = samples[1..]
            .iter()
            .map(|mode| spread(&ratios(&samples[0], mode, |flat, other| flat.p50 / other.p50)));
        table.add_row([work.to_string(), path.to_string(), format!("{micros:.2}")].into_iter().chain(ratios));
        let per_second = median(samples[0].iter().map(|sample| sample.per_second));
        let others = samples[1..].iter().zip(&modes[1..]).map(|(mode, name)| {
            let ratio = median(ratios_of_rates(&samples[0], mode));
            format!("{name} {ratio:.3}")
        });
        let others: Vec<_> = others.collect();
        let others = others.join("   ");
        let _ = writeln!(rates, "  {work:<22} {path:<11} {per_second:>9.0}/s   {others}");
    }
    format!("{table}\n\n{rates}")
}

fn ratios(flat: &[Sample], mode: &[Sample], ratio: impl Fn(&Sample, &Sample) -> f64) -> Vec<f64> {
    flat.iter().zip(mode).map(|(flat, other)| ratio(flat, other)).collect()
}

fn ratios_of_rates(flat: &[Sample], mode: &[Sample]) -> Vec<f64> {
    ratios(flat, mode, |flat, other| other.per_second / flat.per_second)
}

/// Nanoseconds per packet, net of an empty program: the median, and the middle half in brackets.
pub fn packets(figures: &[kernel::Figure]) -> String {
    let columns: Vec<_> =
        [Family::V4, Family::V6].into_iter().flat_map(|family| RULES.map(|rules| (family, rules))).collect();
    let title = |(family, rules): &(Family, usize)| {
        format!("{family}, {rules} {}", if *rules == 1 { "rule" } else { "rules" })
    };
    let mut table = table(["ns per packet, net".to_owned()].into_iter().chain(columns.iter().map(title)));
    let mut paths: Vec<_> = Vec::new();
    for figure in figures {
        if !paths.contains(&figure.path) {
            paths.push(figure.path);
        }
    }
    for path in paths {
        let cells = columns.iter().map(|(family, rules)| {
            let samples = figures.iter().find(|f| (f.path, f.family, f.rules) == (path, *family, *rules));
            samples.map_or(String::new(), |figure| {
                let [low, middle, high] = quartiles(&figure.samples);
                format!("{middle:.1} ({low:.0}-{high:.0})")
            })
        });
        table.add_row([path.title().to_owned()].into_iter().chain(cells));
    }
    table.to_string()
}

/// What ADD takes longer, in milliseconds.
pub fn starts(figures: &[Starts]) -> String {
    let mut table = table(["bulkhead-cni in ADD, ms", "pods", "p50", "p99", "max"]);
    for Starts { mode, took } in figures {
        let at = |share: usize| took.get((took.len() * share / 100).min(took.len().saturating_sub(1)));
        let cell = |value: Option<&f64>| value.map_or(String::new(), |ms| format!("{ms:.1}"));
        table.add_row([mode.clone(), took.len().to_string(), cell(at(50)), cell(at(99)), cell(took.last())]);
    }
    table.to_string()
}

fn table<T: Display>(header: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header.into_iter().map(|title| title.to_string()));
    table
}

/// The median, and the extremes in brackets.
pub(super) fn spread(ratios: &[f64]) -> String {
    let (low, high) = extremes(ratios);
    format!("{:.3} ({low:.2}-{high:.2})", median(ratios.iter().copied()))
}

fn extremes(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)))
}

fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values.get(values.len() * quarter / 4).copied().unwrap_or(f64::NAN))
}

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::{extremes, median, operations};
    use crate::bench::{
        live::{Figure, Path},
        work::{Sample, Work},
    };

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        assert_eq!(
            [median([3.0, 1.0, 2.0]), median([4.0, 1.0, 3.0, 2.0])].map(f64::to_bits),
            [2.0, 2.5].map(f64::to_bits)
        );
        assert_eq!(extremes(&[2.0, 0.5, 1.0]), (0.5, 2.0));
    }

    /// A mode that takes twice as long has half the speed: rounds are compared with their own reference.
    #[test]
    fn ratios_are_of_one_round_each_and_below_one_for_the_slower() {
        let at = |p50: f64| Sample { p50, per_second: 1e9 / p50 };
        let samples = vec![vec![at(10e3), at(20e3), at(30e3)], vec![at(20e3), at(40e3), at(60e3)]];
        let figures = [Figure { work: Work::TcpEcho, path: Path::CrossNode, samples }];
        let text = operations(&["flat".to_owned(), "slow".to_owned()], &figures);
        assert!(
            text.contains("20.00") && text.contains("0.500 (0.50-0.50)") && text.contains("slow 0.500"),
            "{text}"
        );
    }
}
