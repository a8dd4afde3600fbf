//! etcd and kube-apiserver as separate processes, by the convention of controller-runtime's `envtest`: both are in
//! the directory that `KUBEBUILDER_ASSETS` names.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// How long the two may take together.
const READY_WITHIN: Duration = Duration::from_mins(1);
const TOKEN: &str = "the-admins-token";

/// Both processes; they end when this is dropped.
#[derive(Debug)]
pub struct Envtest {
    port: u16,
    apiserver: Child,
    etcd: Child,
}

impl Envtest {
    /// Where the programs are, if there are any.
    pub fn assets() -> Option<PathBuf> {
        env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
    }

    pub fn start(assets: &Path, dir: &Path) -> Result<Self> {
        let dir = dir.join("apiserver");
        fs::create_dir_all(&dir)?;
        for program in ["etcd", "kube-apiserver"] {
            let path = assets.join(program);
            ensure!(path.is_file(), "KUBEBUILDER_ASSETS is set, but there is no {}", path.display());
        }
        let (port, client, peer) = (free_port()?, free_port()?, free_port()?);
        let key = dir.join("service-account.key");
        let made = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(&key)
            .arg("2048")
            .stderr(Stdio::null())
            .status()
            .context("cannot run openssl")?;
        ensure!(made.success(), "openssl makes no key");
        fs::write(dir.join("tokens.csv"), format!("{TOKEN},admin,admin,system:masters\n"))?;
        let etcd = Command::new(assets.join("etcd"))
            .arg("--data-dir")
            .arg(dir.join("etcd"))
            .args(["--unsafe-no-fsync=true", "--log-level=error"])
            .arg(format!("--listen-client-urls=http://127.0.0.1:{client}"))
            .arg(format!("--advertise-client-urls=http://127.0.0.1:{client}"))
            .arg(format!("--listen-peer-urls=http://127.0.0.1:{peer}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("etcd.log"))?)
            .spawn()
            .context("cannot run etcd")?;
        let log = dir.join("kube-apiserver.log");
        let apiserver = Command::new(assets.join("kube-apiserver"))
            .arg(format!("--etcd-servers=http://127.0.0.1:{client}"))
            .args(["--bind-address=127.0.0.1", "--service-cluster-ip-range=10.96.0.0/16"])
            .args(["--authorization-mode=RBAC", "--service-account-issuer=https://lab.invalid"])
            // No controller makes the service accounts that pods would need.
            .arg("--disable-admission-plugins=ServiceAccount,TaintNodesByCondition,Priority")
            .arg("--allow-privileged=true")
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", dir.join("certs").display()))
            .arg(format!("--token-auth-file={}", dir.join("tokens.csv").display()))
            .arg(format!("--service-account-key-file={}", key.display()))
            .arg(format!("--service-account-signing-key-file={}", key.display()))
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn();
        let mut started = match apiserver {
            Ok(apiserver) => Self { port, apiserver, etcd },
            Err(error) => {
                let mut etcd = etcd;
                let _ = etcd.kill();
                let _ = etcd.wait();
                return Err(error).context("cannot run kube-apiserver");
            }
        };
        started.await_ready(&log)?;
        Ok(started)
    }

    pub fn config(&self) -> Result<kube::Config> {
        let mut config = kube::Config::new(format!("https://127.0.0.1:{}", self.port).parse()?);
        config.accept_invalid_certs = true; // it signs its own, on the loopback device
        let token = serde_json::from_value(serde_json::json!({"token": TOKEN}))?;
        config.auth_info = token;
        Ok(config)
    }

    fn await_ready(&mut self, log: &Path) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let ready = runtime.block_on(async {
                let client = kube::Client::try_from(self.config()?)?;
                let request = axum::http::Request::get("/readyz").body(Vec::new())?;
                let answer = tokio::time::timeout(Duration::from_secs(2), client.request_text(request)).await;
                anyhow::Ok(matches!(answer, Ok(Ok(_))))
            })?;
            if ready {
                return Ok(());
            }
            if let Some(status) = self.apiserver.try_wait()? {
                bail!("kube-apiserver ended ({status}):\n{}", fs::read_to_string(log).unwrap_or_default());
            }
            ensure!(Instant::now() < deadline, "kube-apiserver is not ready; see {}", log.display());
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Envtest {
    fn drop(&mut self) {
        for process in [&mut self.apiserver, &mut self.etcd] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
