//! `now`: one look at the kernel and a moment of events.

use std::{
    io::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::prepare::{Outcome, event_loop, options, prepare};
use crate::{
    cli::{
        NowArguments,
        conditions::{self, Roots},
        settings,
    },
    detect,
    emit::{Emit, Emits},
    filter::EventFilter,
    kernel, privileges,
    run::{self, Length, Signals},
    sink::{Each, Line, destination::standard_output, line::SharedHost},
    view::now::{Conntrack, Now, thresholds},
    watch::Watch,
};

/// How long events are listened to. With what it takes to load the programs, an answer comes within three seconds.
const MOMENT: Duration = Duration::from_millis(1_250);
/// As many as a process that does not read takes to be told of; on a busy machine they take longer.
const POLLS: u32 = 3;

/// Says what is wrong at this moment; fails where anything is.
pub(super) fn now(typed: &NowArguments) -> anyhow::Result<Outcome> {
    let config = prepare(&typed.common)?;
    let roots = Roots::default();
    let conditions = conditions::resolve(&typed.filter, &roots)?;
    conditions::check_groups(&conditions.owners, &roots)?;
    let owners = conditions.owners.clone();
    privileges::check()?;
    let trace = settings::trace(&typed.kernel, &config);
    let options = options(trace, conditions, typed.common.verbose > 0);
    let runtime = event_loop()?;
    let (host, lines) = runtime.block_on(async {
        let mut signals = Signals::install().context("installing the signal handlers")?;
        let mut kernel = kernel::open(&options)?;
        privileges::reduce();
        let host = Arc::new(detect::with_coverage(kernel.host().clone()));
        let mut watch = Watch::new(
            thresholds(config.detect),
            Arc::clone(&host),
            Emits::of(&[Emit::Seed]),
            EventFilter::live(owners),
        );
        let mut now = Now::new(Arc::clone(&host));
        let begun = Instant::now();
        let duration = typed.duration.unwrap_or(MOMENT);
        run::run(
            &mut kernel,
            &mut watch,
            &mut Each(|line| now.add(line)),
            None,
            Length {
                duration: Some(duration),
                polls: POLLS,
            },
            &mut signals,
        )
        .await?;
        let lines = now.lines(
            watch.now(),
            begun.elapsed(),
            Conntrack::read(Path::new("/proc")),
        );
        anyhow::Ok((host, lines))
    })?;
    print(&lines, host, typed)?;
    let is_well = matches!(lines.first(), Some(Line::Now { moment, .. }) if moment.is_well());
    Ok(Outcome { failed: !is_well })
}

fn print(lines: &[Line], host: SharedHost, typed: &NowArguments) -> anyhow::Result<()> {
    let mut output = standard_output().context("opening standard output")?;
    let mut renderer = typed
        .format
        .renderer(Some(&output), host, typed.common.verbose > 0)
        .context("opening standard output")?;
    let mut bytes = Vec::new();
    for line in lines {
        renderer.render(line, &mut bytes);
    }
    output
        .write_all(&bytes)
        .context("writing to standard output")
}
