//! Network namespaces that have a name while they live and leave nothing behind.

use std::{
    fs::{self, File},
    io::Write,
    marker::PhantomData,
    net::{SocketAddr, TcpListener},
    os::{
        fd::AsFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

/// Where `ip netns` looks: a lab's namespaces can be entered by name with everyday tools.
pub const NETNS_DIR: &str = "/run/netns";

/// A named network namespace; dropping it ends the processes inside and removes the name.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
}

/// This thread is inside a namespace until the guard goes.
#[must_use]
pub struct Inside {
    home: File,
    _this_thread: PhantomData<*mut ()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        // A thread lost in a lab's namespace would make the next test lie.
        if setns(&self.home, CloneFlags::CLONE_NEWNET).is_err() {
            std::process::abort();
        }
    }
}

/// Namespaces, mounts and bpffs need root; a lab that cannot have them fails instead of passing.
pub fn require_root() -> Result<()> {
    ensure!(geteuid().is_root(), "the lab needs root: it builds network namespaces and mounts a bpffs");
    Ok(())
}

impl Netns {
    /// A new, empty namespace under [`NETNS_DIR`], with forwarding off and duplicate address detection off.
    pub fn create(name: &str) -> Result<Self> {
        require_root()?;
        fs::create_dir_all(NETNS_DIR)?;
        let path = Path::new(NETNS_DIR).join(name);
        File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let pinned = thread::scope(|scope| scope.spawn(|| pin_new_namespace(&path)).join())
            .expect("pinning a namespace does not panic");
        if let Err(error) = pinned {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let netns = Self { name: name.to_owned(), handle: File::open(&path)? };
        // An address that is tentative for a second would make every start of a lab or pod a second slower.
        netns.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Moves the calling thread inside until the guard is dropped.
    pub fn enter(&self) -> Result<Inside> {
        let home = File::open("/proc/thread-self/ns/net")?;
        setns(&self.handle, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter {}", self.name))?;
        Ok(Inside { home, _this_thread: PhantomData })
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let handle = self.handle.try_clone()?;
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only `setns` runs: one system call, no allocation, no lock.
        unsafe {
            command.pre_exec(move || Ok(setns(handle.as_fd(), CloneFlags::CLONE_NEWNET)?));
        }
        Ok(command)
    }

    /// Makes listening sockets inside, from any thread.
    pub fn listener(&self) -> Result<impl Fn(SocketAddr) -> Result<TcpListener> + Send + Sync + use<>> {
        let handle = self.handle.try_clone()?;
        Ok(move |at| {
            let listen = || {
                setns(&handle, CloneFlags::CLONE_NEWNET)?;
                TcpListener::bind(at).with_context(|| format!("cannot listen on {at}"))
            };
            thread::scope(|scope| scope.spawn(listen).join()).expect("listening does not panic")
        })
    }

    /// A thread that lives inside from its first to its last instruction.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let handle = self.handle.try_clone()?;
        Ok(thread::Builder::new().name(self.name.clone()).spawn(move || {
            setns(&handle, CloneFlags::CLONE_NEWNET).expect("an open namespace can be entered by root");
            work()
        })?)
    }

    /// Carries out lines for `ip -batch` inside.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], lines)
    }

    /// Carries out lines for `bridge -batch` inside.
    pub fn bridge(&self, lines: &str) -> Result<()> {
        self.feed("bridge", &["-batch", "-"], lines)
    }

    /// Writes below `/proc/sys`, as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let _inside = self.enter()?;
        let path = Path::new("/proc/sys").join(key);
        fs::write(&path, value)
            .with_context(|| format!("cannot write {value} to {} in {}", path.display(), self.name))
    }

    /// TCP segments that any socket inside has had to send twice.
    pub fn retransmitted(&self) -> Result<u64> {
        let _inside = self.enter()?;
        let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let mut counters = names.split(' ').zip(values.split(' '));
        let (_, count) = counters.find(|(name, _)| *name == "RetransSegs").context("no RetransSegs")?;
        Ok(count.parse()?)
    }

    /// Runs a tool of the distribution inside, with these lines on its standard input.
    pub(crate) fn feed(&self, tool: &str, arguments: &[&str], lines: &str) -> Result<()> {
        let mut child = self
            .command(tool)?
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {tool} (Debian packages iproute2, iptables, nftables)"))?;
        // A tool that stops at an error has not read everything (EPIPE); its exit status tells.
        let _ = child.stdin.take().expect("stdin is piped").write_all(lines.as_bytes());
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{tool} in {}: {}\n{lines}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove_namespace(&self.path());
    }
}

fn pin_new_namespace(path: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot create a network namespace")?;
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot pin a network namespace at {}", path.display()))
}

/// Ends the processes inside and removes the name; what is already gone is no error.
pub fn remove_namespace(path: &Path) {
    if let Ok(namespace) = fs::metadata(path) {
        for pid in processes_inside(namespace.ino()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

/// Other processes whose network namespace has this inode.
fn processes_inside(inode: u64) -> Vec<Pid> {
    let me = Pid::this();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|pid| *pid != me)
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| m.ino() == inode))
        .collect()
}
