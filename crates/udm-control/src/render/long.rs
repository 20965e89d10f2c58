//! `info` of one device, in dmsetup's long form.
//!
//! The block ends with an empty line. "Read Ahead" is there once a device has had a table, as with
//! the kernel, whose device node appears at the first load; the number is the kernel's default.
//!
//! What dmsetup cannot say follows after its own lines, and only while there is something to say:
//! why the device is suspended and for how long, how much I/O is under way and held. With
//! `verbose` it is always there.

use crate::api::{Device, Gauges, SuspendState};

/// The block of one device.
pub fn info(device: &Device, gauges: Option<&Gauges>, verbose: bool) -> String {
    let mut text = format!("Name:              {}\n", device.name);
    let state = if device.suspended { "SUSPENDED" } else { "ACTIVE" };
    text += &format!("State:             {state}");
    if device.read_only {
        text += " (READ-ONLY)";
    }
    if device.deferred_remove {
        text += " (DEFERRED REMOVE)";
    }
    text.push('\n');
    if device.live_present || device.inactive_present {
        text += "Read Ahead:        256\n";
    }
    let tables = match (device.live_present, device.inactive_present) {
        (false, false) => "None",
        (true, false) => "LIVE",
        (false, true) => "INACTIVE",
        (true, true) => "LIVE & INACTIVE",
    };
    text += &format!("Tables present:    {tables}\n");
    text += &format!("Open count:        {}\n", device.open_count);
    text += &format!("Event number:      {}\n", device.event_nr);
    text += &format!("Major, minor:      {}, {}\n", device.major, device.minor);
    text += &format!("Number of targets: {}\n", device.target_count);
    if let Some(uuid) = &device.uuid {
        text += &format!("UUID: {uuid}\n");
    }
    if let Some(gauges) = gauges {
        text += &more(device, gauges, verbose);
    }
    text.push('\n');
    text
}

fn more(device: &Device, gauges: &Gauges, verbose: bool) -> String {
    let mut text = String::new();
    if let Some(suspend) = &device.suspend
        && (verbose || suspend.draining || !suspend.reason.is_empty() || gauges.held > 0)
    {
        text += &suspend_line(suspend);
    }
    let waiting = gauges.held > 0 || device.suspend.as_ref().is_some_and(|state| state.draining);
    if verbose || waiting {
        text += &format!("In flight, held:   {}, {}\n", gauges.in_flight, gauges.held);
    }
    if verbose {
        text += &format!("Size (sectors):    {}\n", device.len_sectors);
        for counter in &gauges.counters {
            text += &format!(
                "I/O {:<15}{} ios, {} sectors\n",
                format!("{}:", counter.op),
                counter.ios,
                counter.sectors
            );
        }
        text += &format!("I/O errors:        {}\n", gauges.errors);
    }
    text
}

fn suspend_line(suspend: &SuspendState) -> String {
    let state = if suspend.draining { "draining" } else { "done" };
    let mut text = format!("Suspend:           {state}, {}", seconds(suspend.age_ms));
    if suspend.noflush {
        text += ", noflush";
    }
    if let Some(deadline_ms) = suspend.deadline_ms.filter(|_| suspend.draining) {
        text += &format!(", gives up after {}", seconds(deadline_ms));
    }
    if !suspend.reason.is_empty() {
        text += &format!(", reason: {}", suspend.reason);
    }
    text.push('\n');
    text
}

fn seconds(span_ms: u64) -> String {
    format!("{}.{} s", span_ms / 1000, span_ms % 1000 / 100)
}
