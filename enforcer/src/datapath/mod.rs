//! What the kernel holds: desired against actual. The only module that touches aya.
//!
//! ```text
//! compiled ─▶ transition (numbers) ─▶ ops ─▶ kernel (maps)          programs (pins, links)
//! ```
pub mod engine;
pub mod frame;
mod image;
pub mod kernel;
mod numbers;
pub mod programs;
pub mod sweep;
#[cfg(test)]
mod tests;
mod transition;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};
use bulkhead_ebpf::abi;

pub use self::{
    image::{Image, Op, Rule, ServiceAddress},
    numbers::{Numbers, NumbersError},
    transition::{Expanded, Local, Plan},
};
use crate::{
    datapath::kernel::Kernel,
    policy::model::{Compiled, Scope},
};

#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error("the kernel refused the programs or their maps")]
    Load(#[from] EbpfError),
    #[error("program: {0}")]
    Program(#[from] ProgramError),
    #[error("map: {0}")]
    Map(#[from] MapError),
    #[error("link: {0}")]
    Link(aya::programs::links::LinkError),
    #[error("cannot write {op}")]
    Write { op: String, source: MapError },
    #[error("cannot pin {path}")]
    PinLink { path: PathBuf, source: PinError },
    #[error("cannot use {path} (is bpffs mounted there?)")]
    Pin { path: PathBuf, source: io::Error },
    #[error("the object has no map {0}")]
    NoSuchMap(&'static str),
    #[error("the object has no program {0}")]
    NoSuchProgram(&'static str),
    #[error(transparent)]
    Numbers(#[from] NumbersError),
    #[error("more than {} pods on one node: the marks of their packets do not suffice", abi::ORIGINS - 1)]
    OutOfMarks,
}

/// The policy maps of one node, with what they mean.
pub struct Tables<K> {
    kernel: K,
    /// Mirror of the kernel's maps: we are their only writer.
    actual: Image,
    numbers: Numbers,
    expanded: Expanded,
    /// `None`: the numbers end with the process (simulate, benches).
    numbers_file: Option<PathBuf>,
}

/// What an update wrote; a restart into an unchanged cluster writes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    pub rules: usize,
    /// Of pods, nodes, prefixes and Services.
    pub addresses: usize,
    pub endpoints: usize,
}

impl<K: Kernel> Tables<K> {
    /// Reads what the kernel holds and what its numbers mean.
    pub fn open(kernel: K, numbers_file: Option<&Path>) -> Result<Self, DatapathError> {
        let actual = kernel.snapshot()?;
        let mut numbers = numbers_file.map(Numbers::load).transpose()?.unwrap_or_default();
        numbers.stay_above(&actual);
        let numbers_file = numbers_file.map(Path::to_path_buf);
        Ok(Self { kernel, actual, numbers, expanded: Expanded::new(), numbers_file })
    }

    fn save_numbers(&mut self) -> Result<(), DatapathError> {
        match &self.numbers_file {
            Some(path) => Ok(self.numbers.save_if_changed(path)?),
            None => Ok(()),
        }
    }

    /// How to bring the kernel to what `compile` says of the cluster. Every number of the plan is on disk, and
    /// none in the kernel, when this returns.
    pub fn plan(
        &mut self,
        compile: impl Fn(&Scope) -> Compiled,
        scope: Scope,
        locals: &BTreeMap<u32, Local>,
    ) -> Result<Plan, DatapathError> {
        let plan = transition::plan(&mut self.numbers, &self.actual, &self.expanded, compile, scope, locals);
        self.save_numbers()?;
        if plan.target.endpoints.values().any(|endpoint| endpoint.mark == 0) {
            return Err(DatapathError::OutOfMarks); // the pod's egress to Services could not be judged
        }
        Ok(plan)
    }

    /// Writes of which every prefix is safe. After an error the kernel holds a consistent older state, and a
    /// new plan goes on from there.
    pub fn carry_out(&mut self, plan: Plan) -> Result<Written, DatapathError> {
        let written = self.write(&plan.ops).inspect_err(|_| self.expanded.clear())?;
        self.expanded = plan.expanded;
        self.numbers.set_scope(plan.scope);
        self.save_numbers()?;
        Ok(written)
    }

    /// Removes rules that nothing can reach any more, and forgets their numbers. To be called some time
    /// after the last update (a second is plenty): no packet may still be on its way to them.
    pub fn tidy(&mut self) -> Result<Written, DatapathError> {
        let ops = transition::stale_rules(&self.actual, &mut self.expanded);
        let written = self.write(&ops)?;
        self.numbers.forget_unused(&self.actual);
        self.save_numbers()?;
        Ok(written)
    }

    fn write(&mut self, ops: &[Op]) -> Result<Written, DatapathError> {
        let mut written = Written::default();
        for op in ops {
            self.kernel.apply(op)?;
            self.actual.apply(*op);
            *match op {
                Op::SetRule(..) | Op::RemoveRule(_) => &mut written.rules,
                Op::SetEndpoint(_) | Op::RemoveEndpoint(_) => &mut written.endpoints,
                _ => &mut written.addresses,
            } += 1;
        }
        Ok(written)
    }

    pub fn actual(&self) -> &Image {
        &self.actual
    }

    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    pub fn next_endpoint(&mut self) -> u32 {
        self.numbers.next_endpoint()
    }

    pub fn kernel_ref(&self) -> &K {
        &self.kernel
    }

    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }
}
