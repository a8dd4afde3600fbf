//! Where something stands: inside an object, and inside the document that holds it.

use std::fmt;

/// Way to a field inside a document; prints as the way inside its object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::source) struct Path {
    steps: Vec<Step>,
    /// How many of the steps lead to the object (an item of a list).
    to_object: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::source) enum Step {
    Key(String),
    Index(usize),
}

impl Path {
    pub fn key(&self, key: &str) -> Self {
        self.with([Step::Key(key.to_owned())])
    }

    pub fn index(&self, index: usize) -> Self {
        self.with([Step::Index(index)])
    }

    /// The same place as the root of an object.
    pub fn object(&self) -> Self {
        Self { steps: self.steps.clone(), to_object: self.steps.len() }
    }

    /// This path continued by one that a decoder tells.
    pub fn join(&self, inner: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment;
        self.with(inner.iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } | Segment::Enum { variant: key } => Some(Step::Key(key.clone())),
            Segment::Unknown => None,
        }))
    }

    fn with(&self, steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: self.steps.iter().cloned().chain(steps).collect(), to_object: self.to_object }
    }

    /// Leads to the object itself.
    pub fn is_empty(&self) -> bool {
        self.steps.len() == self.to_object
    }

    /// From the document's root.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.steps[self.to_object..].iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.contains(['.', '/']) => write!(f, "[{key:?}]")?,
                Step::Key(key) if place == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}
