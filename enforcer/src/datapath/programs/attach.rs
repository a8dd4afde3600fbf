//! Programs onto interfaces.
//!
//! A new link costs the kernel a grace period (10 ms and more), during which it holds the lock of all network
//! configuration; even to ask what runs on an interface waits for that lock. So this is work for any thread, and the
//! owner of [`Programs`] only says what is to be done and takes in what came of it.

use std::{fs, path::PathBuf, thread};

use aya::programs::{
    SchedClassifier,
    links::{FdLink, LinkOrder, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};
use nix::net::if_::if_nametoindex;

use super::{
    HOOKS, Programs, Role,
    pins::{pin, remove_pin},
};
use crate::datapath::DatapathError;

/// Programs to be put on one interface.
#[must_use]
pub struct Fitting {
    ifname: String,
    ifindex: u32,
    hooks: Vec<Hook>,
}

struct Hook {
    number: usize,
    program: SchedClassifier,
    pin: PathBuf,
    /// Pin of a predecessor's link that may be there.
    inherited: Option<PathBuf>,
}

/// What came of a [`Fitting`].
#[must_use]
pub struct Fitted {
    pub ifindex: u32,
    links: Vec<(usize, Result<Fit, DatapathError>)>,
}

/// A link that holds a program of ours on its interface, and is pinned.
struct Fit {
    link: FdLink,
    origin: Origin,
}

enum Origin {
    Kept,
    Inherited,
    New,
}

impl Fitting {
    /// Waits for the kernel; for all hooks at once, because each waits in the same queue.
    pub fn carry_out(self) -> Fitted {
        let Self { ifname, ifindex, hooks } = self;
        let ifname = ifname.as_str();
        let links = thread::scope(|scope| {
            let fits: Vec<_> = hooks
                .into_iter()
                .map(|hook| (hook.number, scope.spawn(move || hook.fit(ifname, ifindex))))
                .collect();
            let ended =
                |fit: thread::ScopedJoinHandle<'_, _>| fit.join().unwrap_or(Err(DatapathError::Interrupted));
            fits.into_iter().map(|(number, fit)| (number, ended(fit))).collect()
        });
        Fitted { ifindex, links }
    }
}

impl Hook {
    fn fit(mut self, ifname: &str, ifindex: u32) -> Result<Fit, DatapathError> {
        // Programs are attached by name, and another interface may have it by now.
        if if_nametoindex(ifname) != Ok(ifindex) {
            return Err(DatapathError::NoSuchInterface { ifname: ifname.to_owned(), ifindex });
        }
        let (_, side) = HOOKS[self.number];
        // Without a pin nobody needs to be asked: there is no link of ours.
        if self.pin.exists() && self.is_running(ifname)? {
            return Ok(Fit { link: PinnedLink::from_pin(&self.pin)?.into(), origin: Origin::Kept });
        }
        if let Some(old) = self.inherited.take().filter(|old| old.exists()) {
            let link = update_link(&mut self.program, PinnedLink::from_pin(&old)?)?;
            remove_pin(&self.pin)?; // of an interface that had this index before
            let renamed = fs::rename(&old, &self.pin);
            renamed.map_err(|source| DatapathError::Pin { path: self.pin, source })?;
            return Ok(Fit { link, origin: Origin::Inherited });
        }
        remove_pin(&self.pin)?; // as above
        // First in line: a program of somebody else must not pass packets on unseen.
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = self.program.attach_with_options(ifname, side, options)?;
        let link: FdLink = self.program.take_link(id)?.try_into()?;
        Ok(Fit { link: pin(link, &self.pin)?, origin: Origin::New })
    }

    fn is_running(&self, ifname: &str) -> Result<bool, DatapathError> {
        let (_, running) = SchedClassifier::query_tcx(ifname, HOOKS[self.number].1)?;
        let wanted = self.program.info()?.id();
        Ok(running.iter().any(|info| info.id() == wanted))
    }
}

impl Programs {
    /// Puts the role's programs on the interface and pins their links; what is in place already stays. A predecessor's
    /// link gets our program instead of its own, in one step.
    pub fn attach(&mut self, role: Role, ifname: &str, ifindex: u32) -> Result<(), DatapathError> {
        let fitting = self.fitting(role, ifname, ifindex)?;
        self.take(fitting.carry_out())
    }

    /// As [`Programs::attach`], to be carried out elsewhere; what comes of it must be given to [`Programs::take`].
    /// Nothing else may be begun on the interface before.
    pub fn fitting(&mut self, role: Role, ifname: &str, ifindex: u32) -> Result<Fitting, DatapathError> {
        let hooks = role.hooks().map(|number| {
            let (name, _) = HOOKS[number];
            Ok::<_, DatapathError>(Hook {
                number,
                program: SchedClassifier::from_program_info(self.hooks[number].info()?, name.into())?,
                pin: self.link_pin(ifindex, number),
                inherited: self.inherited(&format!("{ifindex}-{name}")),
            })
        });
        let fitting = Fitting { ifname: ifname.to_owned(), ifindex, hooks: hooks.collect::<Result<_, _>>()? };
        self.being_fitted.insert(ifindex);
        Ok(fitting)
    }

    /// Links that were made are held even if another one of the interface was not.
    pub fn take(&mut self, fitted: Fitted) -> Result<(), DatapathError> {
        self.being_fitted.remove(&fitted.ifindex);
        let mut result = Ok(());
        for (number, fit) in fitted.links {
            match fit {
                Ok(Fit { link, origin }) => {
                    self.links.insert((fitted.ifindex, number), link);
                    match origin {
                        Origin::Kept => self.adoption.links_adopted += 1,
                        Origin::Inherited => self.adoption.links_updated += 1,
                        Origin::New => {}
                    }
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Something is being put on the interface, and has not been taken in yet.
    pub fn is_being_fitted(&self, ifindex: u32) -> bool {
        self.being_fitted.contains(&ifindex)
    }

    /// Swaps the code of every link in one step each: no packet meets neither or both.
    pub(super) fn update_links(&mut self) -> Result<(), DatapathError> {
        for (path, ifindex, hook) in self.links()? {
            let updated = PinnedLink::from_pin(&path)
                .map_err(DatapathError::from)
                .and_then(|link| update_link(&mut self.hooks[hook], link));
            match updated {
                Ok(link) => _ = self.links.insert((ifindex, hook), link),
                // A link whose interface is gone cannot be updated; the sweep removes its pin.
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "link not updated");
                    continue;
                }
            }
            self.adoption.links_updated += 1;
        }
        Ok(())
    }

    /// Both of a pod's programs have been put on the interface, by us or by a predecessor.
    pub fn holds(&self, ifindex: u32) -> bool {
        Role::Pod.hooks().all(|hook| {
            let inherited = self.inherited(&format!("{ifindex}-{}", HOOKS[hook].0));
            inherited.is_some() || self.link_pin(ifindex, hook).exists()
        })
    }

    /// The role's links are ours: who removes their pins takes off nothing.
    pub fn keeps(&self, role: Role, ifindex: u32) -> bool {
        role.hooks().all(|hook| self.links.contains_key(&(ifindex, hook)))
    }

    /// The pin of a predecessor's link that still holds its interface.
    fn inherited(&self, name: &str) -> Option<PathBuf> {
        self.predecessors.iter().map(|predecessor| predecessor.link(name)).find(|path| path.exists())
    }

    /// Are the role's programs running on the interface?
    pub fn attached(&self, role: Role, ifname: &str) -> Result<bool, DatapathError> {
        self.running(role)?.on(ifname)
    }

    /// What runs on an interface that has all of the role's programs.
    pub fn running(&self, role: Role) -> Result<Running, DatapathError> {
        let ids = role.hooks().map(|hook| Ok::<_, DatapathError>((hook, self.hooks[hook].info()?.id())));
        Ok(Running(ids.collect::<Result<_, _>>()?))
    }
}

/// Hooks, and the kernel's numbers of the programs that are wanted there.
#[derive(Clone, Debug)]
pub struct Running(Vec<(usize, u32)>);

impl Running {
    pub fn on(&self, ifname: &str) -> Result<bool, DatapathError> {
        for (hook, wanted) in &self.0 {
            let (_, running) = SchedClassifier::query_tcx(ifname, HOOKS[*hook].1)?;
            if !running.iter().any(|info| info.id() == *wanted) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The pin goes on holding the link, under its new program.
fn update_link(program: &mut SchedClassifier, link: PinnedLink) -> Result<FdLink, DatapathError> {
    let link = SchedClassifierLink::try_from(FdLink::from(link))?;
    let id = program.attach_to_link(link)?;
    Ok(program.take_link(id)?.try_into()?)
}
