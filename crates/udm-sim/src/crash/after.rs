//! What comes after a recovery: more work, another crash, the checker, and nothing may change.
//!
//! Used on a share of the recovered forks. [`echo`] crashes a recovered volume a second time,
//! [`settle`] closes it, has the offline checker look at it, opens it again, and flips bits of it.
//!
//! Rules. Nobody writes here, so what the device holds stays the same, its size included.
//!
//! The tricky case is work behind a recovery, like a checkpoint of what was found: a crash in it
//! must not bring back what the first recovery gave up.

use crate::crash::damage::spoil;
use crate::crash::host::Move;
use crate::crash::life::MOVES_MAX;
use crate::crash::outcome::{Crash, Loss};
use crate::crash::recover::{Recovered, Recovery};
use crate::crash::stamp;
use crate::crash::subject::{CrashSubject, Order, Standing};
use crate::crash::totals::Totals;
use fastrand::Rng;

/// What was recovered stays, whatever happens next: some work behind the recovery, a second crash,
/// and nothing may have changed.
pub(crate) fn echo<S: CrashSubject>(
    recovery: &Recovery<'_, S>,
    recovered: Recovered<S>,
    rng: &mut Rng,
    totals: &mut Totals,
) -> Result<(), String> {
    let Recovered { mut host, found, len_bytes, .. } = recovered;
    for _ in 0..rng.u32(0..60) {
        if host.is_calm() || host.step(rng)? == Move::Idle {
            break;
        }
    }
    let trace = host.trace.take().unwrap_or_default();
    let disk = host.into_disk();
    let crash = Crash::draw(&disk, recovery.nesting.process_percent, rng);
    totals.crash(crash, false);
    let lines = |when: &str, trace: &[String]| -> String {
        trace.iter().map(|line| format!("\n  {when} {line}")).collect()
    };
    let again = recovery.run(crash.strike(&disk, rng), crash.is_power(), rng, totals);
    again
        .and_then(|mut again| {
            let after = again.host.trace.take().unwrap_or_default();
            same((&found, len_bytes), &again).map_err(|what| what + &lines("after it", &after))
        })
        .map_err(|what| format!("a second crash ({crash:?}) {what}{}", lines("before it", &trace)))
}

/// The recovered volume writes a checkpoint, is closed, checked and opened again.
pub(crate) fn settle<S: CrashSubject>(
    recovery: &Recovery<'_, S>,
    recovered: Recovered<S>,
    rng: &mut Rng,
    totals: &mut Totals,
) -> Result<(), String> {
    let Recovered { mut host, found, len_bytes, .. } = recovered;
    if let Standing::Refusing(_) = host.subject.standing() {
        return Ok(());
    }
    let mut moves = 0;
    if recovery.shape.has_background {
        host.subject.order(Order::Checkpoint);
        host.stir();
        // To its end: behind it nothing is in the log, and the older checkpoint leads there, too.
        while !host.is_calm() {
            moves += 1;
            host.step(rng)?;
            if moves > MOVES_MAX {
                return Err("a recovered volume never comes to rest".to_owned());
            }
        }
    }
    host.subject.order(Order::Stop { flush: true });
    host.stir();
    while host.subject.standing() != Standing::Stopped {
        moves += 1;
        if host.step(rng)? == Move::Idle || moves > MOVES_MAX {
            return Err("a recovered volume does not stop".to_owned());
        }
    }
    while !host.disk.under_way.is_empty() {
        moves += 1;
        host.step(rng)?;
        if moves > MOVES_MAX {
            return Err("a stopped volume goes on with its disk".to_owned());
        }
    }
    let mut disk = Crash::Power(Loss::All).strike(&host.into_disk(), rng);
    let port = udm_meta::Disk::new(disk.len_sectors as u64 * 512);
    udm_meta::host::run_on(&port, &mut disk, S::check(recovery.setup, port.clone()))
        .map_err(|what| format!("the checker says: {what}"))?;
    totals.checked += 1;
    let closed = disk.restarted(disk.durable.clone());
    let again = recovery.run(disk, true, rng, totals)?;
    same((&found, len_bytes), &again).map_err(|what| format!("closing and opening it {what}"))?;
    spoil(recovery, closed, &again.host.subject, &found, rng, totals)
}

/// What it held, and its size, are as they were.
fn same<S>(
    (before, len_bytes): (&[Option<stamp::Value>], Option<u64>),
    again: &Recovered<S>,
) -> Result<(), String> {
    if again.len_bytes != len_bytes {
        return Err(format!("changes the size from {len_bytes:?} to {:?}", again.len_bytes));
    }
    match before.iter().zip(&again.found).position(|(before, after)| before != after) {
        None => Ok(()),
        Some(sector) => Err(format!(
            "changes sector {sector} from {} to {}",
            stamp::describe(before[sector]),
            stamp::describe(again.found[sector])
        )),
    }
}
