//! An HTTP service in a thread of its own, which can be stopped with all its connections and started again.

use std::{
    net::{SocketAddr, TcpListener},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use axum::Router;
use tokio::sync::oneshot;

/// Ends when dropped, and with it every connection.
#[derive(Debug)]
pub struct Task {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Task {
    pub fn serve(name: &str, listen: impl FnOnce() -> Result<TcpListener>, app: Router) -> Result<Self> {
        Self::serve_made(name, listen, || Ok(app))
    }

    /// The service is made in the runtime that it is going to run in.
    pub fn serve_made(
        name: &str,
        listen: impl FnOnce() -> Result<TcpListener>,
        app: impl FnOnce() -> Result<Router> + Send + 'static,
    ) -> Result<Self> {
        let listener = listen()?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(async {
                let (Ok(listener), Ok(app)) = (tokio::net::TcpListener::from_std(listener), app()) else {
                    return; // who connects is refused
                };
                tokio::select! {
                    _ = axum::serve(listener, app) => {}
                    _ = stopped => {}
                }
            });
            drop(runtime); // takes every connection with it
        });
        Ok(Self { address, stop: Some(stop), thread: Some(thread.context("cannot start a thread")?) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
