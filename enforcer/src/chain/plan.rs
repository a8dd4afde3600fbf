//! What there is to write, decided from what is there.

use super::{
    Entry,
    directory::{Directory, File},
    list::{Invalid, List, Single},
    status::Status,
};

/// Plugins that only hand on to another network's configuration, of which they keep a copy or a name.
const META: [&str; 4] = ["multus", "multus-shim", "genie", "danm"];
/// Plugins whose own agent judges the pods, at interfaces that are no flannel bridge's.
const ENFORCING: [(&str, &str); 6] = [
    ("cilium-cni", "Cilium"),
    ("calico", "Calico"),
    ("antrea", "Antrea"),
    ("kube-ovn", "Kube-OVN"),
    ("ovn-k8s-cni-overlay", "OVN-Kubernetes"),
    ("weave-net", "Weave Net"),
];

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The file's text is replaced.
    Edit { file: String, old: String, new: String },
    /// A list takes a single configuration's place. The list is written first: by its name it comes after the single
    /// one, which is used until it is set aside, so that there is a configuration at every moment.
    Convert { single: String, text: String, list: String, old: Option<String>, new: String },
}

/// Whose network a configuration sets up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Interface,
    Meta,
    Enforcing(&'static str),
}

impl Kind {
    /// By the type of a list's first plugin.
    pub fn of(first: &str) -> Self {
        let enforcing = ENFORCING.iter().find(|(kind, _)| *kind == first);
        match enforcing {
            Some((_, name)) => Self::Enforcing(name),
            None if META.contains(&first) => Self::Meta,
            None => Self::Interface,
        }
    }
}

/// The one thing to do next, if any; what is said about the directory goes into `status`.
pub fn plan(directory: &Directory, entry: &Entry, status: &mut Status) -> Option<Step> {
    let (mut step, mut decided) = (None, false);
    for file in &directory.files {
        let read = Read::of(file);
        if read.as_ref().is_ok_and(Read::holds_ours) {
            status.chained.push(file.name.clone());
        }
        let read = match read {
            Ok(read) => read,
            Err(why) => {
                let effect = if decided { "" } else { "; until then containerd starts no pod on this node" };
                status.problem(file, &format!("{why}: it is left as it is{effect}"));
                continue;
            }
        };
        let first = read.first_kind();
        match Kind::of(first) {
            _ if decided => {
                // Runtimes use one; an entry from the time when it was the first does no harm.
                if !read.holds_ours() {
                    status.unused.push(file.name.clone());
                }
            }
            Kind::Meta => {
                let what = "hands on to another network's configuration and may hold a copy of it: the entry goes \
                            into that network's own file, and whoever made the copy has to make it anew";
                status.problem(file, &format!("{first} {what}"));
            }
            Kind::Enforcing(name) => {
                decided = true;
                status.unchained.push(file.name.clone());
                status.problem(file, &format!("{name} wires and judges its pods itself: it is left alone"));
            }
            Kind::Interface => {
                decided = true;
                match read.edited(directory, file, entry) {
                    Ok(edit) => step = edit,
                    Err(why) => status.problem(file, &format!("{why}: it is left as it is")),
                }
                if !read.holds_ours() {
                    status.unchained.push(file.name.clone());
                }
            }
        }
    }
    step
}

/// A file that a runtime can use.
enum Read<'a> {
    List(List<'a>),
    Single(Single<'a>),
}

impl<'a> Read<'a> {
    fn of(file: &'a File) -> Result<Self, String> {
        let text = file.text.as_ref().map_err(Clone::clone)?;
        let read = if file.is_list() {
            List::parse(text).map(Self::List)
        } else {
            Single::parse(text).map(Self::Single)
        };
        read.map_err(|invalid| invalid.to_string())
    }

    fn holds_ours(&self) -> bool {
        matches!(self, Self::List(list) if list.holds_ours())
    }

    fn first_kind(&self) -> &str {
        match self {
            Self::List(list) => list.others().next().unwrap_or_default(),
            Self::Single(single) => &single.kind,
        }
    }

    fn edited(&self, directory: &Directory, file: &File, entry: &Entry) -> Result<Option<Step>, String> {
        let text = file.text.clone()?;
        match self {
            Self::List(list) => {
                let new = list.with(entry).map_err(|invalid| invalid.to_string())?;
                Ok(new.map(|new| Step::Edit { file: file.name.clone(), old: text, new }))
            }
            Self::Single(single) => convert(directory, file, single, entry).map(Some),
        }
    }
}

/// As Istio's and Linkerd's installers do it, but so that the original comes back.
fn convert(directory: &Directory, file: &File, single: &Single, entry: &Entry) -> Result<Step, String> {
    let name = file.name.rsplit_once('.').map_or(file.name.as_str(), |(stem, _)| stem);
    let list = format!("{name}.conflist");
    let (old, new) = match directory.file(&list) {
        None => (None, single.to_list(entry)),
        // Made from an earlier content of the same file; others may have added to it since.
        Some(present) if directory.original(&file.name).is_some() => {
            let text = present.text.clone()?;
            let renewed = List::parse(&text).map_err(|e| e.to_string())?.with_first(single.text());
            let with = List::parse(&renewed).and_then(|list| list.with(entry));
            let with = with.map_err(|invalid: Invalid| invalid.to_string())?;
            (Some(text), with.unwrap_or(renewed))
        }
        Some(_) => return Err(format!("a list must take its place, and there is another {list} already")),
    };
    Ok(Step::Convert { single: file.name.clone(), text: file.text.clone()?, list, old, new })
}

impl File {
    fn is_list(&self) -> bool {
        self.name.ends_with(".conflist")
    }
}
