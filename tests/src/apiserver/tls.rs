//! TLS in front of an API server, under an authority of its own, as every cluster has it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// Ends when dropped, and with it every connection.
#[derive(Debug)]
pub struct Tls {
    address: SocketAddr,
    authority: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Tls {
    /// Hands on to `backend` what comes by TLS. The authority's certificate is left in `dir`.
    pub fn before(backend: SocketAddr, dir: &Path) -> Result<Self> {
        let at = |name: &str| dir.join(name);
        let authority = at("ca.crt");
        certify(&at("ca.key"), &authority, &["-subj", "/CN=lab authority"])?;
        let [ca, ca_key] = [&authority, &at("ca.key")].map(|path| path.display().to_string());
        let server = ["-subj", "/CN=lab API server", "-CA", &ca, "-CAkey", &ca_key];
        let what =
            ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
        certify(&at("tls.key"), &at("tls.crt"), &[&server[..], &what].concat())?;
        let certificate = CertificateDer::from_pem_file(at("tls.crt"))?;
        let key = PrivateKeyDer::from_pem_file(at("tls.key"))?;
        let config = ServerConfig::builder_with_provider(default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("tls".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, TlsAcceptor::from(Arc::new(config)), backend) => {}
                    _ = stopped => {}
                }
            });
            drop(runtime); // takes every connection with it
        });
        let thread = thread.context("cannot start a thread")?;
        Ok(Self { address, authority, stop: Some(stop), thread: Some(thread) })
    }

    /// As a kubeconfig's `cluster` says it.
    pub fn cluster(&self) -> Value {
        json!({"server": format!("https://{}", self.address), "certificate-authority": self.authority})
    }
}

/// A new key, and a certificate for a day.
fn certify(key: &Path, certificate: &Path, words: &[&str]) -> Result<()> {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
        ])
        .arg("-keyout")
        .arg(key)
        .arg("-out")
        .arg(certificate)
        .args(words)
        .stderr(Stdio::null())
        .status()
        .context("cannot run openssl")?;
    ensure!(made.success(), "openssl makes no {}", certificate.display());
    Ok(())
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, backend: SocketAddr) {
    while let Ok((socket, _)) = listener.accept().await {
        let tls = tls.clone();
        tokio::spawn(async move {
            // A client that does not believe us goes away by itself.
            let Ok(mut from) = tls.accept(socket).await else { return };
            if let Ok(mut to) = TcpStream::connect(backend).await {
                let _ = copy_bidirectional(&mut from, &mut to).await;
            }
        });
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
