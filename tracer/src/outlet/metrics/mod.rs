//! Metrics over HTTP, for Prometheus and whatever else scrapes: `GET /metrics`.

mod exposition;
mod figures;
mod process;

use std::{
    cell::RefCell,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::AsFd as _,
    rc::Rc,
    time::Duration,
};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::unix::pipe,
    sync::Semaphore,
    task::{LocalSet, spawn_local},
};

use self::{exposition::Exposition, figures::Figures, process::Process};

/// Scrapers at once; more wait to be accepted.
const CONNECTIONS: usize = 16;
/// How long a scraper may take to ask, or to read its answer.
const PATIENCE: Duration = Duration::from_secs(10);

const PLAIN: &str = "text/plain; charset=utf-8";

/// Metrics, about to be served.
#[derive(Debug)]
pub(super) struct Server {
    listener: TcpListener,
    tracer: Process,
}

/// An address and port, or a port of the loopback address.
fn address(text: &str) -> anyhow::Result<SocketAddr> {
    if let Ok(port) = text.parse() {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    text.parse().with_context(|| {
        format!("metrics:{text} is no address: name a port, or ADDRESS:PORT such as 127.0.0.1:9752 or [::1]:9752")
    })
}

impl Server {
    /// While it may still have a port below 1024.
    pub(super) fn bind(text: &str) -> anyhow::Result<Self> {
        let address = address(text)?;
        let listener = TcpListener::bind(address)
            .with_context(|| format!("metrics cannot be served at {address}"))?;
        listener
            .set_nonblocking(true)
            .context("preparing the listener")?;
        Ok(Self {
            listener,
            tracer: Process::parent(),
        })
    }

    /// Serves what the lines of standard input come to, until they end.
    pub(super) fn serve(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the event loop")?;
        let figures = Rc::new(RefCell::new(Figures::new()));
        LocalSet::new().block_on(&runtime, async {
            let listener = tokio::net::TcpListener::from_std(self.listener)?;
            let tracer = Rc::new(self.tracer);
            spawn_local(accept(listener, Rc::clone(&figures), tracer));
            read(&figures).await
        })
    }
}

async fn read(figures: &RefCell<Figures>) -> anyhow::Result<()> {
    let input = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(pipe::Receiver::from_owned_fd)
        .context("standard input, which is a pipe from the tracer")?;
    let mut lines = BufReader::new(input).lines();
    while let Some(line) = lines.next_line().await.context("reading the lines")? {
        figures.borrow_mut().take(&line);
    }
    Ok(())
}

async fn accept(
    listener: tokio::net::TcpListener,
    figures: Rc<RefCell<Figures>>,
    tracer: Rc<Process>,
) {
    let places = std::sync::Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Of one connection that is gone again, or no descriptor to spare: the next may do.
                log::warn!("metrics: accepting a connection: {error}");
                tokio::time::sleep(PATIENCE / 100).await;
                continue;
            }
        };
        let (figures, tracer) = (Rc::clone(&figures), Rc::clone(&tracer));
        spawn_local(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &figures.borrow(), &tracer);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            // A scraper that hangs or goes away is its own affair.
            if let Ok(Err(error)) = tokio::time::timeout(6 * PATIENCE, connection).await {
                log::debug!("metrics: {error}");
            }
            drop(place);
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    figures: &Figures,
    tracer: &Process,
) -> Response<Full<Bytes>> {
    let accept = request.headers().get(ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    let path = request.uri().path();
    let page = |status, content_type: &'static str, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let content_type = hyper::header::HeaderValue::from_static(content_type);
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    };
    match (request.method(), path) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let exposition = Exposition::asked(accept);
            let text = figures.text(exposition, tracer);
            page(StatusCode::OK, exposition.content_type(), text)
        }
        (&Method::GET | &Method::HEAD, "/") => page(
            StatusCode::OK,
            PLAIN,
            "conntracer: its metrics are at /metrics\n".to_owned(),
        ),
        (&Method::GET | &Method::HEAD, _) => page(
            StatusCode::NOT_FOUND,
            PLAIN,
            "nothing is here: metrics are at /metrics\n".to_owned(),
        ),
        _ => {
            let mut response = page(
                StatusCode::METHOD_NOT_ALLOWED,
                PLAIN,
                "only GET and HEAD are answered\n".to_owned(),
            );
            let allowed = hyper::header::HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allowed);
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_the_loopback_address() {
        assert_eq!(address("9752").unwrap(), "127.0.0.1:9752".parse().unwrap());
        assert_eq!(address("[::]:80").unwrap(), "[::]:80".parse().unwrap());
        let error = address("localhost").unwrap_err().to_string();
        assert!(error.contains("name a port"), "{error}");
    }
}
