//! One exchange with the kernel over netlink, in the calling thread's network namespace, and the ones that all else
//! about interfaces begins with.

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use netlink_packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkUnspec};

/// Brings up the loopback interface of the calling thread's namespace. The kernel gives it its
/// addresses of both families before it answers.
pub fn raise_loopback() -> Result<()> {
    set_up("lo")
}

/// Brings up an interface of the calling thread's namespace.
pub(crate) fn set_up(name: &str) -> Result<()> {
    with_handle(async |handle: &Handle| {
        let index = find(handle, name).await?.header.index;
        let message = LinkUnspec::new_with_index(index).up().build();
        handle
            .link()
            .set(message)
            .execute()
            .await
            .with_context(|| format!("setting {name} up"))
    })
}

/// An interface of the handle's namespace.
pub(crate) async fn find(handle: &Handle, name: &str) -> Result<LinkMessage> {
    handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await
        .with_context(|| format!("asking for interface {name}"))?
        .with_context(|| format!("no interface {name}"))
}

/// Runs one exchange over a netlink socket of the calling thread's namespace.
pub(crate) fn with_handle<T>(exchange: impl AsyncFnOnce(&Handle) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("starting a runtime")?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("opening a netlink socket")?;
        let connection = tokio::spawn(connection);
        let result = exchange(&handle).await;
        connection.abort();
        result
    })
}
