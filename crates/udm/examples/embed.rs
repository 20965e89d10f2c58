//! A program with a mapped device of its own: no daemon, no socket, no root.
//!
//! Starts the engine, makes a device over memory, writes to it, grows it by a table swap under
//! noflush while the data stays, and reads back. Run it with
//! `cargo run --example embed -p udm`.
//!
//! I/O is done by a task on a lane; a program that wants the last bit of speed writes an
//! `udm_core::Actor` instead.

use std::error::Error;
use std::sync::mpsc;
use udm::runtime::{Runtime, RuntimeConfig};
use udm_core::AsyncIo;
use udm_core::lifecycle::{DeviceKey, SuspendOptions};
use udm_lane::{Buf, Payload};
use udm_types::{DeviceId, LaneId, Status};

const BLOCK_BYTES: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = Runtime::start(&RuntimeConfig { lanes: 1, ..RuntimeConfig::default() })?;
    println!("{}", runtime.driver());

    // 16 MiB: 32768 sectors of 512 bytes.
    let disk = runtime.create("disk", None, "0 32768 linear mem:16M:first 0", false)?;
    write(&runtime, disk.id, 8, b"still here")?;

    // The same memory, and 16 MiB more behind it. I/O may be under way all the time.
    let key = DeviceKey::Id(disk.id);
    let table = "0 32768 linear mem:16M:first 0\n32768 32768 linear mem:16M:second 0";
    runtime.load(&key, table, false)?;
    let noflush = SuspendOptions { noflush: true, ..SuspendOptions::default() };
    let grown = runtime.resume(&key, noflush)?;

    let data = read(&runtime, disk.id, 8)?;
    println!(
        "{} sectors; sector 8 says '{}'",
        grown.len_sectors,
        String::from_utf8_lossy(&data[..10])
    );
    runtime.shutdown();
    Ok(())
}

/// Writes a block and waits until it is durable.
fn write(runtime: &Runtime, device: DeviceId, sector: u64, text: &[u8]) -> Result<(), String> {
    let payload = Payload::from_buf(Buf::alloc(BLOCK_BYTES));
    payload.copy_in(0, text);
    on_lane(runtime, move |io| async move {
        let (written, _) = io.write(device, sector, payload).await;
        let (flushed, _) = io.flush(device).await;
        check(written).and_then(|()| check(flushed))
    })
}

/// Reads a block.
fn read(runtime: &Runtime, device: DeviceId, sector: u64) -> Result<Vec<u8>, String> {
    let payload = Payload::from_buf(Buf::alloc(BLOCK_BYTES));
    on_lane(runtime, move |io| async move {
        let (status, payload) = io.read(device, sector, payload).await;
        check(status)?;
        let mut data = vec![0; BLOCK_BYTES];
        payload.copy_out(0, &mut data);
        Ok(data)
    })
}

fn check(status: Status) -> Result<(), String> {
    if status.is_ok() { Ok(()) } else { Err(status.describe().to_owned()) }
}

/// Runs a task on lane 0 and waits for its result.
///
/// Each call makes a handle that lives as long as the lane; a program that does this often keeps
/// one task running and sends it work.
fn on_lane<T, F>(
    runtime: &Runtime,
    task: impl FnOnce(AsyncIo) -> F + Send + 'static,
) -> Result<T, String>
where
    T: Send + 'static,
    F: Future<Output = Result<T, String>> + 'static,
{
    let (sender, receiver) = mpsc::channel();
    runtime.on_lane(LaneId(0), move |engine| {
        let work = task(engine.async_io());
        engine.spawn_task(async move {
            // The receiver waits below.
            drop(sender.send(work.await));
        });
    });
    receiver.recv().map_err(|error| error.to_string())?
}
