//! The container image, made without a container engine: an OCI image layout in a tar archive, with the manifest of
//! `docker save` beside it, so that `ctr images import`, `docker load` and `skopeo copy` all take it.
//!
//! ```text
//! binaries per architecture ─▶ layer (tar) ─▶ config ─▶ manifest ┐
//!                                                                ├▶ index ─▶ archive
//! ```
//! The same binaries give the same bytes: no time and no user of the machine goes in.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

/// What is in the image, at its root.
pub const BINARIES: [&str; 2] = ["bulkhead", "bulkhead-cni"];
/// The time of everything in it; any would do.
const CREATED: &str = "1970-01-01T00:00:00Z";

mod media {
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
}

/// A processor architecture, as images name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// ELF's number of it (`e_machine`).
    fn machine(self) -> u16 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }

    /// That of this executable.
    pub fn native() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 }
    }
}

/// `amd64=DIRECTORY`: where the binaries for an architecture are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    pub architecture: Architecture,
    pub directory: PathBuf,
}

impl FromStr for Binaries {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, directory) = text.split_once('=').ok_or("it is not ARCHITECTURE=DIRECTORY")?;
        let known = [Architecture::Amd64, Architecture::Arm64];
        let architecture = known.into_iter().find(|known| known.name() == name);
        let architecture = architecture.ok_or_else(|| format!("{name} is neither amd64 nor arm64"))?;
        Ok(Self { architecture, directory: directory.into() })
    }
}

/// Writes the archive. `reference` is the image's name with its tag, as manifests name it.
pub fn write(binaries: &[Binaries], reference: &str, archive: &Path) -> Result<()> {
    let (repository, tag) = reference.rsplit_once(':').context("the image needs a name and a tag")?;
    ensure!(!binaries.is_empty() && !repository.is_empty(), "an image needs binaries and a name");
    let mut blobs = Blobs::default();
    let mut manifests = Vec::new();
    let mut docker = Value::Null;
    for part in binaries {
        let layer = blobs.put(media::LAYER, layer(part)?);
        let config = blobs.put_json(media::CONFIG, &config(part.architecture, &layer));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config, "layers": [layer],
        });
        let mut manifest = blobs.put_json(media::MANIFEST, &manifest);
        manifest["platform"] = json!({"architecture": part.architecture.name(), "os": "linux"});
        manifests.push(manifest);
        if docker.is_null() {
            // An engine that reads only this knows no platforms: it gets the first.
            docker = json!([{
                "Config": path_of(&config), "RepoTags": [reference], "Layers": [path_of(&layer)],
            }]);
        }
    }
    let mut top = if let [manifest] = &manifests[..] {
        manifest.clone()
    } else {
        let index = json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": manifests});
        blobs.put_json(media::INDEX, &index)
    };
    top["annotations"] = json!({
        "org.opencontainers.image.ref.name": tag,
        "io.containerd.image.name": canonical(reference),
    });
    let index = json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": [top]});

    let file = File::create(archive).with_context(|| format!("cannot write {}", archive.display()))?;
    let mut tar = Builder::new(BufWriter::new(file));
    append(&mut tar, "oci-layout", 0o644, json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
    append(&mut tar, "index.json", 0o644, index.to_string().as_bytes())?;
    append(&mut tar, "manifest.json", 0o644, docker.to_string().as_bytes())?;
    for (digest, content) in &blobs.0 {
        append(&mut tar, &format!("blobs/sha256/{digest}"), 0o644, content)?;
    }
    tar.into_inner()?.flush().with_context(|| format!("cannot write {}", archive.display()))
}

/// Contents by the hexadecimal form of their SHA-256.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Keeps the content and describes it.
    fn put(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = Sha256::digest(&content).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}"); // a string takes everything
            hex
        });
        let descriptor =
            json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()});
        self.0.insert(digest, content);
        descriptor
    }

    fn put_json(&mut self, media_type: &str, content: &Value) -> Value {
        self.put(media_type, content.to_string().into_bytes())
    }
}

fn path_of(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
}

/// As kubelet asks a runtime for it.
fn canonical(reference: &str) -> String {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => reference.to_owned(),
        Some(_) => format!("docker.io/{reference}"),
        None => format!("docker.io/library/{reference}"),
    }
}

fn layer(part: &Binaries) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for name in BINARIES {
        let path = part.directory.join(name);
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        check(&content, part.architecture).with_context(|| path.display().to_string())?;
        append(&mut tar, name, 0o755, &content)?;
    }
    Ok(tar.into_inner()?)
}

/// Nothing but the binaries is in the image: one that asks for a loader of libraries could not start.
fn check(elf: &[u8], architecture: Architecture) -> Result<()> {
    const INTERPRETER: u32 = 3;
    let short = || "it is cut off";
    let u16_at =
        |at: usize| elf.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]])).with_context(short);
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "it is no 64-bit little-endian ELF file");
    let machine = u16_at(18)?;
    ensure!(machine == architecture.machine(), "it is for another architecture (ELF machine {machine})");
    let table = elf.get(32..40).with_context(short)?.try_into().map(u64::from_le_bytes)?;
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for number in 0..count {
        let at = usize::try_from(table)? + number * size;
        let kind = elf.get(at..at + 4).with_context(short)?.try_into().map(u32::from_le_bytes)?;
        ensure!(kind != INTERPRETER, "it is linked dynamically; deploy/image.sh builds static ones");
    }
    Ok(())
}

fn config(architecture: Architecture, layer: &Value) -> Value {
    json!({
        "created": CREATED, "architecture": architecture.name(), "os": "linux",
        "config": {
            "Entrypoint": ["/bulkhead"],
            "Labels": {
                "org.opencontainers.image.title": "bulkhead",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        "history": [{"created": CREATED, "created_by": "bulkhead and bulkhead-cni, static"}],
    })
}

fn append(tar: &mut Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, path, content)
}
