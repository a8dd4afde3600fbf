//! The archive is what its indexes say, blob by blob.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use lab::image::{self, Architecture, BINARIES, Binaries};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A 64-bit ELF header for this machine and one program header of this kind: what the image's maker looks at.
fn elf(machine: u8, program_header: u8) -> Vec<u8> {
    let mut elf = vec![0_u8; 64 + 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = machine;
    elf[32] = 64; // the table's offset, its entries' size, their number
    elf[54] = 56;
    elf[56] = 1;
    elf[64] = program_header;
    elf
}

const LOAD: u8 = 1;
const INTERPRETER: u8 = 3;

fn binaries(directory: &Path, architecture: Architecture, machine: u8, kind: u8) -> Binaries {
    let directory = directory.join(architecture.name());
    fs::create_dir_all(&directory).unwrap();
    for name in BINARIES {
        fs::write(directory.join(name), [elf(machine, kind), name.into()].concat()).unwrap();
    }
    Binaries { architecture, directory }
}

/// The archive's files.
fn unpacked(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    entries(File::open(archive).unwrap()).into_iter().map(|(path, (_, content))| (path, content)).collect()
}

/// Mode and content by path.
fn entries(archive: impl Read) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let files = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
        let (mode, path) = (header.mode().unwrap(), entry.path().unwrap().display().to_string());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (path, (mode, content))
    });
    files.collect()
}

/// The blob that a descriptor describes, checked against it.
fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap();
    let content = &files[&format!("blobs/{}", digest.replace(':', "/"))];
    assert_eq!(descriptor["size"], json!(content.len()));
    let hex: Vec<_> = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, format!("sha256:{}", hex.concat()));
    content
}

fn json_blob(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Value {
    serde_json::from_slice(blob(files, descriptor)).unwrap()
}

fn check_platform(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value, architecture: &str, elf: &[u8]) {
    assert_eq!(descriptor["platform"], json!({"architecture": architecture, "os": "linux"}));
    let manifest = json_blob(files, descriptor);
    assert_eq!(manifest["mediaType"], descriptor["mediaType"]);
    let config = json_blob(files, &manifest["config"]);
    assert_eq!((&config["architecture"], &config["os"]), (&json!(architecture), &json!("linux")));
    assert_eq!(config["config"]["Entrypoint"], json!(["/bulkhead"]));
    let layers = manifest["layers"].as_array().unwrap();
    let digests: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
    assert_eq!(
        config["rootfs"],
        json!({"type": "layers", "diff_ids": digests}),
        "a layer that is not packed"
    );
    let contents: BTreeMap<String, (u32, Vec<u8>)> =
        layers.iter().flat_map(|layer| entries(blob(files, layer))).collect();
    let binary = |name: &str| (0o755, [elf, name.as_bytes()].concat());
    assert_eq!(contents, BINARIES.map(|name| (name.to_owned(), binary(name))).into());
}

#[test]
fn an_archive_holds_what_its_indexes_say_for_every_architecture() {
    let directory = tempfile::tempdir().unwrap();
    let amd64 = binaries(directory.path(), Architecture::Amd64, 62, LOAD);
    let arm64 = binaries(directory.path(), Architecture::Arm64, 183, LOAD);
    let names = json!({
        "org.opencontainers.image.ref.name": "1.2.3",
        "io.containerd.image.name": "docker.io/bulkhead/bulkhead:1.2.3",
    });
    for (case, parts) in [("one", vec![amd64.clone()]), ("two", vec![amd64, arm64])] {
        let archive = directory.path().join(format!("{case}.tar"));
        image::write(&parts, "bulkhead/bulkhead:1.2.3", &archive).unwrap();
        let files = unpacked(&archive);
        let file = |name: &str| -> Value { serde_json::from_slice(&files[name]).unwrap() };
        assert_eq!(file("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}));
        let index = file("index.json");
        let [top] = &index["manifests"].as_array().unwrap()[..] else { panic!("{index:#}") };
        assert_eq!(top["annotations"], names);
        let platforms = match &parts[..] {
            [_] => vec![top.clone()],
            _ => json_blob(&files, top)["manifests"].as_array().unwrap().clone(),
        };
        assert_eq!(platforms.len(), parts.len());
        for (descriptor, (name, machine)) in platforms.iter().zip([("amd64", 62), ("arm64", 183)]) {
            check_platform(&files, descriptor, name, &elf(machine, LOAD));
        }
        let docker = file("manifest.json");
        let [docker] = &docker.as_array().unwrap()[..] else { panic!("{docker:#}") };
        assert_eq!(docker["RepoTags"], json!(["bulkhead/bulkhead:1.2.3"]));
        let manifest = json_blob(&files, &platforms[0]);
        for (path, descriptor) in
            [(&docker["Config"], &manifest["config"]), (&docker["Layers"][0], &manifest["layers"][0])]
        {
            assert_eq!(files[path.as_str().unwrap()], blob(&files, descriptor));
        }
        let again = directory.path().join("again.tar");
        image::write(&parts, "bulkhead/bulkhead:1.2.3", &again).unwrap();
        assert!(
            fs::read(&archive).unwrap() == fs::read(&again).unwrap(),
            "the same binaries, the same bytes"
        );
    }
}

#[test]
fn binaries_that_could_not_start_in_an_empty_image_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let write = |part: Binaries| {
        let archive = directory.path().join("refused.tar");
        format!("{:#}", image::write(&[part], "bulkhead:1", &archive).unwrap_err())
    };
    let own = lab::binaries::agent().unwrap().parent().map(PathBuf::from).unwrap();
    for (part, why) in [
        (Binaries { architecture: Architecture::native(), directory: own }, "it is linked dynamically"),
        (binaries(directory.path(), Architecture::Amd64, 62, INTERPRETER), "it is linked dynamically"),
        (
            binaries(directory.path(), Architecture::Arm64, 62, LOAD),
            "for another architecture (ELF machine 62)",
        ),
        (
            Binaries { architecture: Architecture::Amd64, directory: "/nowhere".into() },
            "cannot read /nowhere/bulkhead",
        ),
    ] {
        let said = write(part);
        assert!(said.contains(why), "{said}");
    }
}
