//! Whether anything grows: what agents and kernel hold in quiet moments, from the first to the last.

use std::{collections::BTreeMap, fmt, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use comfy_table::{Table, presets};

/// What is there in one quiet moment on one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Since the soak began.
    pub at: Duration,
    pub node: usize,
    pub figures: BTreeMap<String, u64>,
}

/// How much more of something is no growth, in the middle of the last third over the middle of the first after the
/// warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    pub more: u64,
    /// Of what there was, in hundredths.
    pub percent: u64,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub node: usize,
    pub figure: String,
    pub first: u64,
    pub last: u64,
    pub least: u64,
    pub most: u64,
    /// Of a straight line through all samples, per hour.
    pub slope: f64,
    pub tolerance: Option<Tolerance>,
}

impl Line {
    pub fn grows(&self) -> bool {
        let allowed =
            |tolerance: Tolerance| self.first + (self.first * tolerance.percent / 100).max(tolerance.more);
        self.tolerance.is_some_and(|tolerance| self.last > allowed(tolerance))
    }
}

/// The table after the soak.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Growth(pub Vec<Line>);

impl Growth {
    /// The first quarter of each node's samples is warm-up, but for very few.
    pub fn of(samples: &[Sample], tolerance: impl Fn(&str) -> Option<Tolerance>) -> Self {
        let mut series = BTreeMap::<(usize, &str), Vec<(f64, u64)>>::new();
        for sample in samples {
            for (figure, value) in &sample.figures {
                let series = series.entry((sample.node, figure.as_str())).or_default();
                series.push((sample.at.as_secs_f64() / 3600.0, *value));
            }
        }
        let lines = series.into_iter().filter_map(|((node, figure), values)| {
            let warm = &values[values.len() / 4..];
            let third = warm.len().div_ceil(3);
            let [first, last] = [&warm[..third], &warm[warm.len() - third..]].map(median);
            Some(Line {
                node,
                figure: figure.to_owned(),
                first: first?,
                last: last?,
                least: warm.iter().map(|(_, value)| *value).min()?,
                most: warm.iter().map(|(_, value)| *value).max()?,
                slope: slope(warm),
                tolerance: tolerance(figure),
            })
        });
        Self(lines.collect())
    }

    pub fn growing(&self) -> Vec<&Line> {
        self.0.iter().filter(|line| line.grows()).collect()
    }
}

fn median(values: &[(f64, u64)]) -> Option<u64> {
    let mut values: Vec<_> = values.iter().map(|(_, value)| *value).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// Least squares.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn slope(values: &[(f64, u64)]) -> f64 {
    let count = values.len() as f64;
    let mean = |of: fn(&(f64, u64)) -> f64| values.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|(at, _)| *at), mean(|(_, value)| *value as f64));
    let (above, below) = values.iter().fold((0.0, 0.0), |(above, below), (at, value)| {
        (above + (at - x) * (*value as f64 - y), below + (at - x).powi(2))
    });
    if below > 0.0 { above / below } else { 0.0 }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header([
            "NODE",
            "WHAT",
            "FIRST THIRD",
            "LAST THIRD",
            "LEAST",
            "MOST",
            "PER HOUR",
            "",
        ]);
        for line in &self.0 {
            table.add_row([
                format!("node-{}", line.node + 1),
                line.figure.clone(),
                line.first.to_string(),
                line.last.to_string(),
                line.least.to_string(),
                line.most.to_string(),
                format!("{:+.1}", line.slope),
                match line.tolerance {
                    _ if line.grows() => "GROWS".to_owned(),
                    Some(Tolerance { more, percent: 0 }) => format!("+{more} is none"),
                    Some(Tolerance { more, percent }) => format!("+{percent} % or +{more} is none"),
                    None => String::new(),
                },
            ]);
        }
        write!(f, "{table}")
    }
}

/// Of a process: resident memory in KiB, descriptors by kind, threads.
pub fn of_process(pid: u32) -> Result<BTreeMap<String, u64>> {
    let process = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(process.join("status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        value.with_context(|| format!("no {name} in the status of {pid}"))
    };
    let mut figures = BTreeMap::from([
        ("memory, KiB".to_owned(), field("VmRSS:")?),
        ("threads".to_owned(), field("Threads:")?),
    ]);
    for entry in fs::read_dir(process.join("fd"))? {
        let Ok(target) = fs::read_link(entry?.path()) else { continue }; // closed meanwhile
        let target = target.to_string_lossy().into_owned();
        let kind = match target.split_once(':') {
            Some(("anon_inode", kind)) => kind.trim_matches(['[', ']']).to_owned(),
            Some((kind, _)) => kind.to_owned(),
            None => "file".to_owned(),
        };
        *figures.entry(format!("descriptors: {kind}")).or_default() += 1;
        *figures.entry("descriptors".to_owned()).or_default() += 1;
    }
    Ok(figures)
}

/// Files below a directory.
pub fn files(directory: &Path) -> Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[u64]) -> Vec<Sample> {
        let sample = |(number, value): (u64, &u64)| Sample {
            at: Duration::from_secs(number * 60),
            node: 0,
            figures: [("x".to_owned(), *value)].into(),
        };
        (0..).zip(values).map(sample).collect()
    }

    #[test]
    fn what_grows_after_the_warm_up_is_told_and_noise_is_not() {
        let grows = |values: &[u64], more, percent| {
            !Growth::of(&samples(values), |_| Some(Tolerance { more, percent })).growing().is_empty()
        };
        let warming = [10, 20, 50, 50, 50, 50, 50, 51, 50];
        assert!(!grows(&warming, 0, 0));
        let leaking = [50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61];
        assert!(grows(&leaking, 5, 0) && grows(&leaking, 1, 10) && !grows(&leaking, 10, 0));
        let line = &Growth::of(&samples(&leaking), |_| None).0[0];
        assert!((line.slope - 60.0).abs() < 1e-6, "{}", line.slope);
        assert!(grows(&[50, 60], 1, 0) && !grows(&[50], 0, 0));
    }
}
