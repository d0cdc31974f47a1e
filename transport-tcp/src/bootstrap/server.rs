//! The server: one thread, a bounded number of connections, a bounded time for each request.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use transport_core::disagg::directory::Limits;
use transport_core::disagg::trust::SharedKey;

use super::guard::{self, Guard};
use super::local::LocalDirectory;
use super::{Warning, routes};
use crate::socket;

/// How long accepting rests after the system ran out of descriptors or memory.
const REST: Duration = Duration::from_millis(100);

/// Room for the head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Settings of a [`BootstrapServer`].
#[derive(Clone, Debug)]
pub struct BootstrapConfig {
    /// What the directory holds, and for how long.
    pub limits: Limits,
    /// With a key, only who has it too is answered. Default `None`: everybody is.
    pub key: Option<SharedKey>,
    /// Longest body of a request, in bytes. Default 256 KiB: a query for more than 12000 rooms.
    pub max_body: usize,
    /// Most connections at a time; more wait in the kernel's queue. Default 1024.
    pub max_connections: usize,
    /// How long a new connection may take to say what it wants. Default 5 s.
    pub first_request: Duration,
    /// How long a request may take, its body included. Default 5 s.
    pub request: Duration,
    /// How long a connection may be silent between two requests. Longer than any client keeps one,
    /// so that it is not closed under a request. Default 75 s.
    pub idle: Duration,
    /// How long requests in progress may take when the server stops. Default 1 s.
    pub drain: Duration,
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            key: None,
            max_body: 256 << 10,
            max_connections: 1024,
            first_request: Duration::from_secs(5),
            request: Duration::from_secs(5),
            idle: Duration::from_secs(75),
            drain: Duration::from_secs(1),
        }
    }
}

/// A bootstrap server that listens, and serves once it is told to.
///
/// ```
/// use transport_tcp::bootstrap::{BootstrapClient, BootstrapConfig, BootstrapServer, ClientConfig};
///
/// let server = BootstrapServer::bind("127.0.0.1:0".parse()?, BootstrapConfig::default())?;
/// for warning in server.warnings() {
///     eprintln!("bootstrap: {warning}");
/// }
/// let running = server.spawn()?;
/// let client = BootstrapClient::new(running.address(), ClientConfig::default());
/// assert!(client.health().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct BootstrapServer {
    listener: TcpListener,
    address: SocketAddr,
    directory: LocalDirectory,
    guard: Option<Guard>,
    config: BootstrapConfig,
    stop: Stopper,
}

/// Stops a server from any thread.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<watch::Sender<bool>>);

impl Stopper {
    /// Tells the server to finish the requests in progress and return. May be called before it
    /// serves.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl BootstrapServer {
    /// Listens at `address`; port 0 takes a free one, `[::]` serves IPv4 as well. Fails when the
    /// system does not give the port, or no randomness.
    pub fn bind(address: SocketAddr, config: BootstrapConfig) -> io::Result<Self> {
        let listener = socket::listen(address)?;
        let address = listener.local_addr()?;
        let mut random = [0; 40];
        getrandom::fill(&mut random)?;
        let (epoch, secret) = random.split_first_chunk().expect("40 bytes begin with 8");
        let directory = LocalDirectory::new(config.limits, u64::from_le_bytes(*epoch));
        let secret = *secret.first_chunk().expect("40 bytes less 8 are 32");
        let guard = |key| Guard::new(key, secret, directory.clone(), config.max_body);
        let guard = config.key.clone().map(guard);
        let stop = Stopper(Arc::new(watch::Sender::new(false)));
        Ok(Self { listener, address, directory, guard, config, stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What whoever starts it should know. Say it once.
    pub fn warnings(&self) -> Vec<Warning> {
        self.config.key.is_none().then_some(Warning::NoKey).into_iter().collect()
    }

    /// The directory, for nodes in this process.
    pub fn directory(&self) -> LocalDirectory {
        self.directory.clone()
    }

    /// What stops it.
    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
    }

    /// Serves on this thread until it is stopped. Fails when it cannot begin; nothing that comes in
    /// fails it.
    pub fn serve(self) -> io::Result<()> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        runtime.block_on(self.run())
    }

    /// Serves on a thread of its own. Fails when the system gives none.
    pub fn spawn(self) -> io::Result<RunningBootstrap> {
        let (address, directory, stop) = (self.address, self.directory(), self.stopper());
        let thread = thread::Builder::new().name("bootstrap".to_owned());
        let thread = Some(thread.spawn(|| self.serve())?);
        Ok(RunningBootstrap { address, directory, stop, thread })
    }

    async fn run(self) -> io::Result<()> {
        let router = self.router();
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let mut stop = self.stop.0.subscribe();
        let mut connections = JoinSet::new();
        let slots = Arc::new(Semaphore::new(self.config.max_connections));
        let accept =
            accept_all(&listener, &router, &self.config, &slots, &mut connections, &self.stop);
        tokio::select! {
            () = accept => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        // Connections see the stop as well. What has not ended by then ends with the runtime.
        drop(listener);
        let _ =
            timeout(self.config.drain, async { while connections.join_next().await.is_some() {} })
                .await;
        Ok(())
    }

    fn router(&self) -> Router {
        let (limit, most) = (self.config.request, self.config.max_body);
        let mut router = routes::router(self.directory());
        if let Some(guard) = &self.guard {
            router = router.layer(middleware::from_fn_with_state(guard.clone(), guard::prove));
        }
        router
            .layer(DefaultBodyLimit::max(most))
            .layer(middleware::from_fn(move |request, next| in_size(most, request, next)))
            .layer(middleware::from_fn(move |request, next| in_time(limit, request, next)))
            .layer(middleware::from_fn_with_state(self.directory(), routes::count))
    }
}

/// Refuses a body that says it is too long, instead of waiting for all that may be read of it.
async fn in_size(most: usize, request: Request, next: Next) -> Response {
    if request.body().size_hint().lower() > most as u64 {
        let too_long = (StatusCode::PAYLOAD_TOO_LARGE, [(header::CONNECTION, "close")]);
        return too_long.into_response();
    }
    next.run(request).await
}

async fn in_time(limit: Duration, request: Request, next: Next) -> Response {
    let too_slow = (StatusCode::REQUEST_TIMEOUT, [(header::CONNECTION, "close")]);
    timeout(limit, next.run(request)).await.unwrap_or_else(|_| too_slow.into_response())
}

async fn accept_all(
    listener: &tokio::net::TcpListener,
    router: &Router,
    config: &BootstrapConfig,
    slots: &Arc<Semaphore>,
    connections: &mut JoinSet<()>,
    stop: &Stopper,
) {
    loop {
        // Nobody closes the semaphore.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection =
                    Connection { slot, config: config.clone(), stop: stop.0.subscribe() };
                connections.spawn(connection.serve(stream, router.clone()));
            }
            // The peer is gone already, or the system has no room for one more.
            Err(_) => sleep(REST).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One connection, for as long as it lasts.
struct Connection {
    slot: OwnedSemaphorePermit,
    config: BootstrapConfig,
    stop: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(mut self, stream: TcpStream, router: Router) {
        let _slot = self.slot;
        let spoke = Arc::new(AtomicBool::new(false));
        let service = Spoken { inner: TowerToHyperService::new(router), spoke: spoke.clone() };
        // A request's answer is one write, and the client waits for it.
        let _ = stream.set_nodelay(true);
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.config.idle)
                .title_case_headers(true)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service)
        );
        let mut first = pin!(sleep(self.config.first_request));
        let (mut may_speak, mut stopping) = (true, false);
        loop {
            tokio::select! {
                // Whatever went wrong with it, it is over.
                _ = connection.as_mut() => return,
                () = first.as_mut(), if may_speak => {
                    if !spoke.load(Ordering::Relaxed) {
                        return;
                    }
                    may_speak = false;
                }
                _ = self.stop.wait_for(|stop| *stop), if !stopping => {
                    connection.as_mut().graceful_shutdown();
                    stopping = true;
                }
            }
        }
    }
}

/// Remembers that a connection has made a request.
#[derive(Clone)]
struct Spoken<S> {
    inner: S,
    spoke: Arc<AtomicBool>,
}

impl<S: Service<R>, R> Service<R> for Spoken<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: R) -> S::Future {
        self.spoke.store(true, Ordering::Relaxed);
        self.inner.call(request)
    }
}

/// A server on a thread of its own. Dropping it stops the server and waits for its end.
pub struct RunningBootstrap {
    address: SocketAddr,
    directory: LocalDirectory,
    stop: Stopper,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl RunningBootstrap {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The directory, for nodes in this process.
    pub fn directory(&self) -> &LocalDirectory {
        &self.directory
    }
}

impl Drop for RunningBootstrap {
    fn drop(&mut self) {
        self.stop.stop();
        // A thread that panicked has said so on stderr; there is nothing to add in a drop.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl fmt::Debug for RunningBootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningBootstrap").field("address", &self.address).finish_non_exhaustive()
    }
}
