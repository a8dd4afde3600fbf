//! What CNI ADD takes longer: the plugin's own time, its process included.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::mode::Mode;
use crate::pod::PodSpec;

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Starts {
    pub mode: String,
    /// In milliseconds, sorted.
    pub took: Vec<f64>,
}

/// Starts and stops pods one after the other, in turn in every cluster that has agents. They are selected by
/// the policy, so what ADD waits for is all that they may do.
pub fn measure(modes: &[Mode], starts: usize) -> Result<Vec<Starts>> {
    let guarded: Vec<_> = modes.iter().filter(|mode| mode.rules.is_some()).collect();
    let mut figures: Vec<_> =
        guarded.iter().map(|mode| Starts { mode: mode.name.clone(), took: Vec::new() }).collect();
    for number in 0..starts {
        for (mode, figure) in guarded.iter().zip(&mut figures) {
            let spec = PodSpec::new(&format!("bench/start-{number}")).label("app", "bench");
            let pod = mode.lab.start_pod(spec)?;
            figure.took.push(milliseconds(pod.added_by_bulkhead()));
            mode.lab.stop_pod(&pod.key())?;
        }
    }
    for figure in &mut figures {
        figure.took.sort_by(f64::total_cmp);
    }
    Ok(figures)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
