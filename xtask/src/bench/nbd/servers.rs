//! The servers that are measured: what each is, how it is started, when it is ready.
//!
//! Every server is started on a unix socket of its own in a scratch folder and stays up, idle, for
//! the whole run, so that rounds can be interleaved. It is ended by its process id, in `drop`,
//! whatever happens. A server whose program is not installed is left out and named.
//!
//! Ready means: the socket accepts. Foreign servers give no other sign, so this is asked again and
//! again, a few milliseconds apart, until it does, the program ends, or ten seconds are over.

use crate::steps::{Failed, is_installed};
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to accept.
const START_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to connect.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(5);

/// What is behind a server; only servers with the same are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Nothing: reads are zeroes (or one block), writes are forgotten.
    Nothing,
    /// Memory of the device's size.
    Memory,
    /// A file in the page cache.
    File,
}

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Floor,
    Udm,
    Peer,
}

/// A server as it is going to be started.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) backing: Backing,
    pub(crate) role: Role,
    export: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    /// Further calls of the program, once the socket `control` accepts.
    then: Vec<Vec<String>>,
    control: Option<PathBuf>,
    socket: PathBuf,
    is_secret: bool,
}

impl Spec {
    /// Whether clients have to use TLS.
    pub(crate) fn is_secret(&self) -> bool {
        self.is_secret
    }

    /// udm over memory; with the certificates in the folder, or in the clear.
    pub(crate) fn udm_by_tls(udm: &Path, dir: &Path, size_bytes: u64, is_secret: bool) -> Spec {
        let name = if is_secret { "udm, TLS" } else { "udm, in the clear" };
        let socket = dir.join(format!("udm-{is_secret}.sock"));
        let program = PathBuf::from(format!("mem:{size_bytes}"));
        let mut spec = Spec::over_memory(name, Role::Udm, program, socket, is_secret);
        spec.export = "d";
        as_udm(&mut spec, &Place { scratch: dir, files: dir, udm, size_bytes });
        if let (true, Some(export)) = (is_secret, spec.then.last_mut()) {
            export.extend(["--tls-certificates".to_owned(), dir.display().to_string()]);
        }
        spec
    }

    /// nbdkit over memory, likewise.
    pub(crate) fn nbdkit_by_tls(dir: &Path, size_bytes: u64, is_secret: bool) -> Spec {
        let name = if is_secret { "nbdkit, TLS" } else { "nbdkit, in the clear" };
        let socket = dir.join(format!("nbdkit-{is_secret}.sock"));
        let line = format!("-f -U {} ", socket.display());
        let tls = format!("--tls=require --tls-certificates={} ", dir.display());
        let line = line + if is_secret { &tls } else { "" } + &format!("memory {size_bytes}");
        let mut spec = Spec::over_memory(name, Role::Peer, "nbdkit".into(), socket, is_secret);
        spec.arguments = line.split(' ').map(str::to_owned).collect();
        spec
    }

    fn over_memory(
        name: &'static str,
        role: Role,
        program: PathBuf,
        socket: PathBuf,
        is_secret: bool,
    ) -> Spec {
        let (backing, export, control) = (Backing::Memory, "", None);
        let (arguments, then) = (Vec::new(), Vec::new());
        Spec { name, backing, role, export, program, arguments, then, control, socket, is_secret }
    }
}

/// Where things are.
pub(crate) struct Place<'a> {
    /// For sockets and logs.
    pub(crate) scratch: &'a Path,
    /// For the files behind the servers.
    pub(crate) files: &'a Path,
    pub(crate) udm: &'a Path,
    pub(crate) size_bytes: u64,
}

/// Every server there is to measure.
pub(crate) fn all(place: &Place<'_>) -> Result<Vec<Spec>, Failed> {
    let size = place.size_bytes;
    let this = std::env::current_exe().map_err(Failed::to("find this program"))?;
    let this = this.display().to_string();
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<String>>();
    let mut specs = Vec::new();
    let mut add = |name, backing, role, export, arguments: &dyn Fn(&str, &str) -> String| {
        let socket = place.scratch.join(format!("{}.sock", specs.len()));
        let file = place.files.join(format!("{}.img", specs.len()));
        let line = words(&arguments(&socket.display().to_string(), &file.display().to_string()));
        let (program, arguments) = (PathBuf::from(&line[0]), line[1..].to_vec());
        let (then, control, is_secret) = (Vec::new(), None, false);
        let spec = Spec {
            name,
            backing,
            role,
            export,
            program,
            arguments,
            then,
            control,
            socket,
            is_secret,
        };
        specs.push((spec, file));
    };
    add("floor, one block", Backing::Nothing, Role::Floor, "", &|socket, _| {
        format!("{this} bench floor {socket} {size}")
    });
    add("udm, null", Backing::Nothing, Role::Udm, "d", &|_, _| format!("null:{size}"));
    add("nbdkit null", Backing::Nothing, Role::Peer, "", &|socket, _| {
        format!("nbdkit -f -U {socket} null {size}")
    });
    add("qemu-nbd null", Backing::Nothing, Role::Peer, "", &|socket, _| {
        format!("qemu-nbd -t -e 16 -k {socket} --image-opts driver=null-co,size={size}")
    });
    add("qemu-storage-daemon null", Backing::Nothing, Role::Peer, "n", &|socket, _| {
        storage_daemon(socket, &format!("driver=null-co,node-name=n,size={size}"))
    });
    add("floor, memory", Backing::Memory, Role::Floor, "", &|socket, _| {
        format!("{this} bench floor {socket} {size} --memory")
    });
    add("udm, memory", Backing::Memory, Role::Udm, "d", &|_, _| format!("mem:{size}"));
    add("nbdkit memory", Backing::Memory, Role::Peer, "", &|socket, _| {
        format!("nbdkit -f -U {socket} memory {size}")
    });
    add("floor, file", Backing::File, Role::Floor, "", &|socket, file| {
        format!("{this} bench floor {socket} {size} --file {file}")
    });
    add("udm, file", Backing::File, Role::Udm, "d", &|_, file| file.to_owned());
    add("nbdkit file", Backing::File, Role::Peer, "", &|socket, file| {
        format!("nbdkit -f -U {socket} file {file}")
    });
    add("qemu-nbd file", Backing::File, Role::Peer, "", &|socket, file| {
        format!("qemu-nbd -t -e 16 -k {socket} -f raw {file}")
    });
    add("qemu-storage-daemon file", Backing::File, Role::Peer, "n", &|socket, file| {
        storage_daemon(socket, &format!("driver=file,node-name=n,filename={file}"))
    });
    for (spec, file) in &mut specs {
        if spec.backing == Backing::File {
            let made = File::create(&*file).and_then(|made| made.set_len(size));
            made.map_err(Failed::to(format!("make {}", file.display())))?;
        }
        if spec.role == Role::Udm {
            as_udm(spec, place);
        }
    }
    Ok(specs.into_iter().map(|(spec, _)| spec).collect())
}

fn storage_daemon(socket: &str, blockdev: &str) -> String {
    format!(
        "qemu-storage-daemon --blockdev {blockdev} \
         --nbd-server addr.type=unix,addr.path={socket},max-connections=16 \
         --export type=nbd,id=e,node-name=n,name=n,writable=on"
    )
}

/// Our own: a daemon, a device with one linear target over the backing, an export. Until here the
/// spec's program is the name of that backing.
fn as_udm(spec: &mut Spec, place: &Place<'_>) {
    let control = spec.socket.with_extension("control");
    let below = spec.program.display().to_string();
    let table = format!("0 {} linear {below} 0", place.size_bytes / 512);
    let address = format!("unix:{}", spec.socket.display());
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    spec.program = place.udm.to_owned();
    spec.arguments = owned(&["daemon", "--socket", &control.display().to_string()]);
    spec.then = vec![
        owned(&["create", "d", "--table", &table]),
        owned(&["export", "d", "--nbd", &address]),
    ];
    spec.control = Some(control);
}

/// A running server.
pub(crate) struct Server {
    pub(crate) spec: Spec,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts it; `None` if its program is not installed.
    pub(crate) fn start(spec: Spec) -> Result<Option<Server>, Failed> {
        let program = spec.program.display().to_string();
        if !spec.program.is_absolute() && !is_installed(&program) {
            println!("{program} is not installed; left out: {}", spec.name);
            return Ok(None);
        }
        let log = spec.socket.with_extension("log");
        let output = File::create(&log).map_err(Failed::to("make a log"))?;
        let child = Command::new(&spec.program)
            .args(&spec.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(Failed::to(format!("start {program}")))?;
        let mut server = Server { spec, child, log };
        if let Some(control) = server.spec.control.clone() {
            server.wait_for(&control)?;
            server.calls(&control)?;
        }
        let socket = server.spec.socket.clone();
        server.wait_for(&socket)?;
        Ok(Some(server))
    }

    /// The socket it serves on.
    pub(crate) fn socket(&self) -> &Path {
        &self.spec.socket
    }

    /// The name of its export.
    pub(crate) fn export(&self) -> &str {
        self.spec.export
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn calls(&self, control: &Path) -> Result<(), Failed> {
        for arguments in &self.spec.then {
            let output = Command::new(&self.spec.program)
                .args(arguments)
                .env("UDM_SOCKET", control)
                .output()
                .map_err(Failed::to(format!("run {}", arguments.join(" "))))?;
            if !output.status.success() {
                let why = String::from_utf8_lossy(&output.stderr);
                return Err(Failed::new(format!("udm {}: {why}", arguments.join(" "))));
            }
        }
        Ok(())
    }

    fn wait_for(&mut self, socket: &Path) -> Result<(), Failed> {
        let start = Instant::now();
        while UnixStream::connect(socket).is_err() {
            let ended = self.child.try_wait().map_err(Failed::to("ask for a child's end"))?;
            if ended.is_some() || start.elapsed() > START_MAX {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let state = if ended.is_some() { "ended" } else { "did not accept" };
                return Err(Failed::new(format!("{} {state}: {log}", self.spec.name)));
            }
            std::thread::park_timeout(ATTEMPT_PAUSE);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the process has already ended, which is what is wanted.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
