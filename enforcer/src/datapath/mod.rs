//! What the kernel holds: desired against actual. The only module that touches aya.
//!
//! ```text
//! compiled ─▶ transition (numbers) ─▶ ops ─▶ kernel (maps)          programs (pins, links)
//! ```
mod batch;
pub mod bpffs;
pub mod connections;
pub mod crowd;
pub mod engine;
pub mod frame;
mod image;
pub mod imports;
mod journal;
pub mod kernel;
mod ledger;
mod numbers;
mod overlay;
pub mod predecessor;
pub mod programs;
pub mod removal;
pub mod ruling;
pub mod shares;
mod sizes;
pub mod sweep;
mod table;
#[cfg(test)]
mod tests;
mod tidy;
mod transition;
mod usage;
mod views;
mod withdrawal;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};
use bulkhead_ebpf::abi;

use self::{
    crowd::Crowded,
    journal::Journal,
    kernel::Kernel,
    numbers::Mark,
    tidy::Idle,
    transition::{Changed, Draft, Expanded, Held},
    usage::Usage,
};
pub use self::{
    image::{Image, Op, Rule, ServiceAddress},
    journal::NumbersError,
    numbers::Numbers,
    sizes::Sizes,
    transition::{Local, Plan},
};
use crate::{
    cluster::{Frontend, Index, Touched},
    policy::{
        Compiler,
        model::{Compiled, Scope},
    },
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
    #[error("a table cannot be read through")]
    Walk(#[source] io::Error),
    #[error("cannot write {op}")]
    Write { op: String, source: MapError },
    #[error("cannot pin {path}")]
    PinLink { path: PathBuf, source: PinError },
    #[error("cannot use {path} (is bpffs mounted there?)")]
    Pin { path: PathBuf, source: io::Error },
    /// Nothing was written: what is in force stays (semantics 42).
    #[error("map {map} is too small: {needed} entries needed, {capacity} possible")]
    Full { map: &'static str, needed: usize, capacity: usize },
    #[error("the object has no map {0}")]
    NoSuchMap(&'static str),
    #[error("there is no interface {ifname} with index {ifindex} any more")]
    NoSuchInterface { ifname: String, ifindex: u32 },
    #[error("a thread that was to attach a program broke down")]
    Interrupted,
    #[error("the object has no program {0}")]
    NoSuchProgram(&'static str),
    #[error(transparent)]
    Numbers(#[from] NumbersError),
    #[error(transparent)]
    Bpffs(#[from] bpffs::BpffsError),
    #[error("more than {} pods on one node: the marks of their packets do not suffice", abi::ORIGINS - 1)]
    OutOfMarks,
}

/// The policy maps of one node, with what they mean.
pub struct Tables<K> {
    kernel: K,
    capacity: Sizes,
    /// Mirror of the kernel's maps: we are their only writer.
    actual: Image,
    sizes: Sizes,
    usage: Usage,
    numbers: Numbers,
    /// `None`: the numbers end with the process (simulate, benches).
    journal: Option<Journal>,
    expanded: Expanded,
    locals: BTreeMap<u32, Local>,
    /// Namespaces for whose rules there is no room.
    crowded: Crowded,
    /// What there was to enforce when these had to go without.
    crowded_for: BTreeMap<u32, Local>,
    /// Where Services are reached for which there is no room.
    unlisted: BTreeSet<Frontend>,
    /// What the last plan brought into scope: nothing in the kernel knows of it yet.
    entering: Scope,
    /// What the kernel holds may be anything, not only what the last plan said: at the start, and after a
    /// plan that was not carried out whole.
    unsure: bool,
    /// How far numbers had been given when last tidied; `None`: nothing is known about what is stale.
    tidied: Option<Mark>,
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
        let (journal, mut numbers) = match numbers_file.map(Journal::open).transpose()? {
            Some((journal, numbers)) => (Some(journal), numbers),
            None => (None, Numbers::default()),
        };
        numbers.stay_above(&actual);
        Ok(Self {
            capacity: kernel.capacity()?,
            kernel,
            sizes: Sizes::of(&actual),
            usage: Usage::of(&actual),
            actual,
            numbers,
            journal,
            expanded: Expanded::new(),
            locals: BTreeMap::new(),
            crowded: Crowded::new(),
            crowded_for: BTreeMap::new(),
            unlisted: BTreeSet::new(),
            entering: Scope::default(),
            unsure: true,
            tidied: None,
        })
    }

    fn save_numbers(&mut self) -> Result<(), DatapathError> {
        match &mut self.journal {
            Some(journal) => Ok(journal.save(&mut self.numbers)?),
            None => Ok(()),
        }
    }

    /// How to bring the kernel to what the cluster is now. `touched`: what changed since the last plan, at
    /// first everything. Every number of the plan is on disk, and none in the kernel, when this returns; until
    /// the plan is carried out, the next one starts from what the kernel holds then.
    pub fn plan(
        &mut self,
        compiler: &mut Compiler,
        index: &Index,
        touched: &Touched,
        locals: &BTreeMap<u32, Local>,
    ) -> Result<Plan, DatapathError> {
        if self.may_fit_now(touched, locals) {
            self.crowded.clear();
            self.unsure = true;
        }
        let mut plan = self.draft_plan(compiler, index, touched, locals);
        while plan.needed.rules > self.capacity.rules
            && crowd::give_up(&mut self.crowded, &plan, &self.actual, self.capacity.rules)
        {
            self.crowded_for.clone_from(locals);
            self.numbers.leave(&std::mem::take(&mut self.entering));
            plan = self.draft_plan(compiler, index, &Touched::default(), locals);
        }
        self.checked(plan)
    }

    /// Those that had no room: to try again costs as much as there is room, so it takes a reason.
    fn may_fit_now(&self, touched: &Touched, locals: &BTreeMap<u32, Local>) -> bool {
        let is_theirs = touched.policies.iter().any(|policy| self.crowded.contains_key(&*policy.namespace));
        let is_empty = self.sizes.rules <= self.capacity.rules / 2 && !touched.policies.is_empty();
        !self.crowded.is_empty() && (is_theirs || is_empty || self.crowded_for != *locals)
    }

    /// Namespaces whose policies are not in force on this node as they are written, because the rules of all do not fit.
    pub fn crowded(&self) -> &Crowded {
        &self.crowded
    }

    /// Addresses and ports of Services that the kernel does not know as such: connections there are judged as to any other
    /// address, and what they are translated to by the other end alone.
    pub fn unlisted(&self) -> &BTreeSet<Frontend> {
        &self.unlisted
    }

    fn draft_plan(
        &mut self,
        compiler: &mut Compiler,
        index: &Index,
        touched: &Touched,
        locals: &BTreeMap<u32, Local>,
    ) -> Plan {
        let unsure = std::mem::replace(&mut self.unsure, true) || compiler.is_new();
        // What is in the kernel may be projected onto more than the compiler's last result.
        let also = if unsure { self.numbers.scope.clone() } else { Scope::default() };
        let delta = compiler.advance(index, touched, &also);
        let entered = if unsure { compiler.scope() } else { &delta.entered };
        self.entering = entered.minus(&self.numbers.scope);
        self.numbers.enter(entered);
        let changed = |delta| if unsure { Changed::Everything } else { Changed::Only(delta) };

        let held = Held {
            image: &self.actual,
            sizes: self.sizes,
            expanded: &self.expanded,
            locals: &self.locals,
            crowded: &self.crowded,
            unlisted: &self.unlisted,
            room: self.capacity,
        };
        let mut draft = Draft::new(&mut self.numbers, held);
        draft.change(compiler.compiled(), changed(&delta), locals);
        let delta = compiler.settle(index);
        if !delta.left.is_empty() {
            draft.rescope(compiler.compiled(), changed(&delta), locals);
        }
        draft.finish(locals, delta.left)
    }

    /// How to bring the kernel to a cluster that has nothing to do with what it holds now.
    pub fn plan_whole(
        &mut self,
        compiled: &Compiled,
        locals: &BTreeMap<u32, Local>,
    ) -> Result<Plan, DatapathError> {
        self.unsure = true;
        let held = Held {
            image: &self.actual,
            sizes: self.sizes,
            expanded: &self.expanded,
            locals: &self.locals,
            crowded: &self.crowded,
            unlisted: &self.unlisted,
            room: self.capacity,
        };
        let mut draft = Draft::new(&mut self.numbers, held);
        draft.change(compiled, Changed::Everything, locals);
        let plan = draft.finish(locals, Scope::default());
        self.checked(plan)
    }

    fn checked(&mut self, plan: Plan) -> Result<Plan, DatapathError> {
        if let Err(error) = plan.needed.fit(&self.capacity) {
            // Otherwise what is mentioned no more would ask for room for ever.
            self.numbers.leave(&std::mem::take(&mut self.entering));
            return Err(error);
        }
        if plan.endpoints.values().any(|endpoint| endpoint.mark == 0) {
            return Err(DatapathError::OutOfMarks); // the pod's egress to Services could not be judged
        }
        self.save_numbers()?;
        Ok(plan)
    }

    /// Writes of which every prefix is safe. After an error the kernel holds a consistent older state, and a
    /// new plan goes on from there.
    pub fn carry_out(&mut self, plan: Plan) -> Result<Written, DatapathError> {
        let written = self.write(&plan.ops).inspect_err(|_| self.expanded.clear())?;
        self.expanded.extend(plan.expanded);
        self.locals = plan.locals;
        self.unlisted = plan.unlisted;
        self.numbers.leave(&plan.left);
        self.save_numbers()?;
        self.unsure = false;
        Ok(written)
    }

    /// After a plan that was refused: takes away what must not stay, although what is to come has no room yet.
    pub fn withdraw(
        &mut self,
        compiled: &Compiled,
        locals: &BTreeMap<u32, Local>,
    ) -> Result<Written, DatapathError> {
        let ops = withdrawal::withdrawals(&self.actual, &mut self.numbers, compiled, locals, &self.crowded);
        self.unsure = true;
        self.save_numbers()?;
        self.write(&ops)
    }

    /// Removes rules that nothing can reach any more, and forgets their numbers. To be called some time
    /// after the last update (a second is plenty): no packet may still be on its way to them.
    pub fn tidy(&mut self) -> Result<Written, DatapathError> {
        let idle = match self.tidied.take() {
            Some(mark) => Idle::since(mark, &mut self.usage, &self.numbers),
            None => Idle::all(&mut self.usage, &self.numbers, &self.actual),
        };
        // Forgotten first: a number that came back into use could find a part of its rules gone.
        idle.forget(&mut self.numbers);
        idle.rule_sets.iter().for_each(|number| _ = self.expanded.remove(number));
        self.save_numbers()?;
        let written = self.write(&idle.removals(&self.actual))?;
        self.tidied = Some(self.numbers.mark());
        Ok(written)
    }

    fn write(&mut self, ops: &[Op]) -> Result<Written, DatapathError> {
        let mut written = Written::default();
        for op in ops {
            self.kernel.apply(op)?;
            self.usage.note(op, &self.actual);
            self.sizes.note(op, &self.actual);
            self.actual.apply(*op);
            *match op {
                Op::SetRule(..) | Op::RemoveRule(_) => &mut written.rules,
                Op::SetEndpoint(_) | Op::RemoveEndpoint(_) => &mut written.endpoints,
                _ => &mut written.addresses,
            } += 1;
        }
        Ok(written)
    }

    /// Entries in the maps, and what there is room for.
    pub fn fill(&self) -> (Sizes, Sizes) {
        (self.sizes, self.capacity)
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
