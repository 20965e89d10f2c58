//! Scripts beside the volumes: devices that come and go, and askers who interfere.
//!
//! `scratch` walks a device of its own through its life and expects the exact refusals a user gets:
//! a taken name, no table, in use, gone. `meddle` asks for changes of a volume's devices that its
//! own script knows nothing of (suspends, resumes, loads of equal meaning, clears); only in worlds
//! with races, where scripts accept refusals and nothing moves data.
//!
//! The tricky case is the end: a meddler must have had its last answer before the volumes put
//! everything to rest, so they wait for it (`Progress::meddlers`).

use crate::director::{Act, Director, key};
use udm_core::ErrorCode;
use udm_core::lifecycle::{Reply, Request, SuspendOptions};
use udm_types::{DmName, DmUuid};

/// A device that comes and goes.
pub(crate) async fn scratch(director: Director) {
    let mut round = 0;
    while director.playing() {
        director.nap(40).await;
        round += 1;
        scratch_once(&director, round).await;
    }
    director.finished();
    director.until(Act::Sweep).await;
    director.finished();
    director.until(Act::Leave).await;
    director.finished();
}

async fn scratch_once(director: &Director, round: u32) {
    let name = format!("scratch{round}");
    let create = |uuid: &str| Request::Create {
        name: DmName::new(&name).expect("invariant: made of letters and digits"),
        uuid: DmUuid::new(uuid).ok(),
        minor: None,
    };
    let ask = |request| director.control.ask(request);
    let device = || key(&name);
    let uuid = format!("uuid-{round}");
    let Some(Reply::Done(Some(made))) = director.expect("create", ask(create(&uuid)).await) else {
        return;
    };
    director.stage.get().tally.count("scratch devices");
    director.expect_refusal("create twice", ErrorCode::NameTaken, ask(create("other")).await);
    let suspend = Request::Suspend {
        device: device(),
        options: SuspendOptions::default(),
        ticket: director.ticket(),
    };
    if director.once_in(2) {
        director.expect("suspend without a table", ask(suspend).await);
        let resume = Request::Resume {
            device: device(),
            options: SuspendOptions::default(),
            ticket: director.ticket(),
        };
        let answer = ask(resume).await;
        director.expect_refusal("resume without a table", ErrorCode::NoTable, answer);
    }
    if director.load(&name, "0 64 zero\n64 64 error").await && director.once_in(2) {
        director.resume(&name, SuspendOptions::default()).await;
        if let Some(status) = director.status(&name).await
            && (status.len_sectors != 128 || status.suspended)
            && !director.stage.get().swarm.races
        {
            director.violate(format!("{name} is not what was loaded: {status:?}"));
        }
    }
    director.nap(5).await;
    if director.once_in(2) {
        director.expect("open", ask(Request::Open { device: device() }).await);
        let remove = Request::Remove { device: device(), deferred: false };
        director.expect_refusal("remove while open", ErrorCode::InUse, ask(remove).await);
        let remove = Request::Remove { device: device(), deferred: true };
        director.expect("deferred remove", ask(remove).await);
        if director.once_in(3) {
            let cancel = Request::CancelDeferredRemove { device: device() };
            director.expect("cancel of a deferred remove", ask(cancel).await);
            director.expect("close", ask(Request::Close { device: made.id }).await);
            let remove = Request::Remove { device: device(), deferred: false };
            director.expect("remove", ask(remove).await);
        } else {
            director.expect("close", ask(Request::Close { device: made.id }).await);
        }
    } else {
        let remove = Request::Remove { device: device(), deferred: director.once_in(2) };
        director.expect("remove", ask(remove).await);
    }
    let answer = ask(Request::Status { device: device() }).await;
    director.expect_refusal("status of a removed device", ErrorCode::NoSuchDevice, answer);
}

/// Interferes with devices it does not own.
pub(crate) async fn meddle(director: Director) {
    while director.playing() {
        director.nap(15).await;
        let answer = director.control.ask(Request::List).await;
        let Ok(Reply::List(devices)) = answer else { continue };
        if devices.is_empty() || !director.playing() {
            continue;
        }
        let name = devices[director.pick(devices.len())].name.as_str().to_owned();
        let device = key(&name);
        let ticket = director.ticket();
        let options = director.draw_options();
        director.stage.get().tally.count("meddlings");
        match director.pick(5) {
            0 | 3 => {
                let window = director.open_abort(&options);
                let request = Request::Suspend { device, options, ticket };
                ask_for_a_while(&director, request, ticket).await;
                director.close_abort(window);
            }
            1 | 2 => {
                let window = director.open_abort(&options);
                let request = Request::Resume { device, options, ticket };
                ask_for_a_while(&director, request, ticket).await;
                director.close_abort(window);
            }
            _ => director.clear(&name).await,
        }
    }
    resume_all(&director).await;
    director.progress.meddlers.set(director.progress.meddlers.get() - 1);
    director.finished();
    director.until(Act::Sweep).await;
    director.finished();
    director.until(Act::Leave).await;
    director.finished();
}

/// Asks, and takes the wish back if it is not granted soon: a suspend of a device over a suspended
/// one waits until somebody resumes that, and this script must not wait for itself.
async fn ask_for_a_while(director: &Director, request: Request, ticket: u64) {
    let waiting = director.control.send(request);
    director.nap(6).await;
    let answer = director.control.ask(Request::Cancel { ticket }).await;
    director.expect("cancel", answer);
    // Whatever came of it: it has to be answered.
    let answer = director.control.answer_to(waiting).await;
    drop(answer);
}

/// Takes back every suspend, so that no volume's script waits for a device that nobody would
/// resume.
async fn resume_all(director: &Director) {
    let Ok(Reply::List(devices)) = director.control.ask(Request::List).await else { return };
    let mut waiting = Vec::new();
    for device in devices {
        let device = key(device.name.as_str());
        let (options, ticket) = (SuspendOptions::default(), director.ticket());
        waiting.push(director.control.send(Request::Resume { device, options, ticket }));
    }
    for id in waiting {
        // Whatever came of it: it has to be answered.
        let answer = director.control.answer_to(id).await;
        drop(answer);
    }
}
