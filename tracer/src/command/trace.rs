//! `run` and `record`: a live kernel, judged as it goes.

use std::{fs::File, path::Path, sync::Arc, time::Duration};

use anyhow::Context;

use super::prepare::{Outcome, event_loop, options, prepare};
use crate::{
    cli::{
        RunArguments,
        conditions::{self, Roots},
        settings,
    },
    conditions::Conditions,
    config::Config,
    detect,
    emit::Emits,
    filter::EventFilter,
    kernel::{self, LiveKernel},
    privileges,
    run::{self, Length, Recorder, Signals},
    sink::{Line, Lines as _, Output, Sinks, WhenFull, sinks::Opened},
    watch::Watch,
};

/// How long a reader that stopped reading may hold up the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that is decided before the kernel is touched, so that a wrong flag costs nothing.
struct Prepared {
    config: Config,
    options: kernel::Options,
    emits: Emits,
    outputs: Vec<Opened>,
}

impl Prepared {
    fn new(typed: &RunArguments) -> anyhow::Result<Self> {
        let config = prepare(&typed.output.common)?;
        let roots = Roots::default();
        let Conditions { sockets, owners } = conditions::resolve(&typed.filter, &roots)?;
        conditions::check_groups(&owners, &roots)?;
        for pid in conditions::absent(&owners, &roots) {
            log::warn!(
                "--pid {pid}: there is no such process; nothing is shown until one gets that number"
            );
        }
        let mut outputs = vec![settings::output(&typed.output, &config)];
        for also in &config.output.also {
            outputs.push(also.output().map_err(anyhow::Error::msg)?);
        }
        outputs.extend(typed.metrics.as_deref().map(settings::metrics));
        let emits = outputs.iter().fold(Emits::default(), |emits, output| {
            emits.and(output.selection.emits)
        });
        let trace = settings::trace(&typed.kernel, &config);
        let verbose = typed.output.common.verbose > 0;
        let options = kernel::Options {
            emit: emits.records(),
            idle_ns: settings::audits_keepalive(typed, &config)
                .then(|| config.detect.half_open.idle_ns()),
            ..options(trace, Conditions { sockets, owners }, verbose)
        };
        privileges::check()?;
        let outputs = outputs
            .into_iter()
            .map(Output::open)
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            config,
            options,
            emits,
            outputs,
        })
    }
}

/// Traces, and keeps the records in `record` where that is named.
pub(super) fn run(typed: &RunArguments, record: Option<&Path>) -> anyhow::Result<Outcome> {
    let prepared = Prepared::new(typed)?;
    let runtime = event_loop()?;
    runtime.block_on(async {
        let mut signals = Signals::install().context("installing the signal handlers")?;
        let mut kernel = kernel::open(&prepared.options)?;
        // Not before: what cannot be traced would leave an empty file, in the way of the next attempt.
        let recording = record.map(settings::create_new).transpose()?;
        privileges::reduce();
        trace(&mut kernel, &mut signals, prepared, recording, typed).await
    })
}

async fn trace(
    kernel: &mut LiveKernel,
    signals: &mut Signals,
    prepared: Prepared,
    recording: Option<File>,
    typed: &RunArguments,
) -> anyhow::Result<Outcome> {
    let host = Arc::new(detect::with_coverage(kernel.host().clone()));
    let mut recorder = recording
        .map(|file| Recorder::new(file, &host))
        .transpose()
        .context("writing the recording")?;
    let mut sinks = Sinks::spawn(prepared.outputs, &host, WhenFull::Drop)
        .context("starting the output's thread")?;
    // The hooks are attached: whoever reads this line may act on it.
    sinks.push(Line::Start {
        time: kernel::now(),
    });
    sinks.flush();

    let mut watch = Watch::new(
        prepared.config.detect,
        host,
        prepared.emits,
        EventFilter::live(prepared.options.owners),
    );
    let ran = run::run(
        kernel,
        &mut watch,
        &mut sinks,
        recorder.as_mut(),
        Length {
            duration: typed.duration,
            polls: 0,
        },
        signals,
    )
    .await;
    // What was found is printed, whatever ended the run.
    let closed = sinks.close(Some(PATIENCE));
    let kept = recorder.map_or(Ok(()), Recorder::end);
    ran?;
    closed?;
    kept.context("writing the recording")?;
    Ok(Outcome {
        failed: typed.output.fail_on_finding && watch.found(),
    })
}
