//! Operations in all clusters, in turn: every round measures every operation in every cluster, one cluster
//! right after the other, and every second round in the opposite order. What happens on the machine
//! meanwhile happens to all.

use std::{fmt, time::Duration};

use anyhow::Result;
use serde::Serialize;

use super::{
    mode::Mode,
    work::{Sample, Work},
};
use crate::probe::Family;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Path {
    SameNode,
    CrossNode,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SameNode => "same node",
            Self::CrossNode => "cross node",
        })
    }
}

/// One operation over one path.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    pub work: Work,
    pub path: Path,
    /// By mode, then by round.
    pub samples: Vec<Vec<Sample>>,
}

pub fn measure(modes: &[Mode], family: Family, rounds: u32, sample: Duration) -> Result<Vec<Figure>> {
    let mut figures: Vec<_> = Work::ALL
        .into_iter()
        .flat_map(|work| [Path::SameNode, Path::CrossNode].map(|path| (work, path)))
        .map(|(work, path)| Figure { work, path, samples: vec![Vec::new(); modes.len()] })
        .collect();
    for round in 0..rounds {
        for figure in &mut figures {
            let mut order: Vec<_> = (0..modes.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for mode in order {
                let Mode { client, near, far, .. } = &modes[mode];
                let server = match figure.path {
                    Path::SameNode => near,
                    Path::CrossNode => far,
                };
                let taken = figure.work.measure(client.netns(), server.netns(), server.ip(family), sample)?;
                figure.samples[mode].push(taken);
            }
        }
    }
    Ok(figures)
}
