//! What a cluster gets: the manifests as kubectl and Helm render them, and the image.
#![expect(clippy::unwrap_used, reason = "tests")]

mod image;
mod manifests;
mod render;
