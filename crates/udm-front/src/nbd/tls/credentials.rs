//! Certificates and keys from a directory, in the files that nbdkit and QEMU use.
//!
//! ```text
//! server-cert.pem   our certificate, and those between it and the authority
//! server-key.pem    its key; nobody else may read it
//! ca-cert.pem       who signs the clients' certificates; needed if they are asked for
//! ca-crl.pem        certificates that are revoked; may be missing
//! ```
//!
//! Read once, when an export starts. Every mistake names the file and what is wrong with it,
//! because what a TLS client says about a bad server is never enough to find it.
//!
//! The tricky case is a key whose file others can read: it is refused, not warned about, since
//! nobody reads warnings of a daemon, and a key that has been read once is spent.

use super::TlsSettings;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{Error, RootCertStore, ServerConfig, SupportedCipherSuite, version};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use udm_core::error::{ErrorCode, ErrorKind, UserError};

/// Our certificate.
const SERVER_CERT: &str = "server-cert.pem";
/// Our key.
const SERVER_KEY: &str = "server-key.pem";
/// Who signs the clients' certificates.
const CA_CERT: &str = "ca-cert.pem";
/// What was revoked.
const CA_CRL: &str = "ca-crl.pem";

/// No such file is longer; a wrong path may lead to anything.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Permission bits of those who are neither the owner nor in the group.
pub(super) const OTHERS: u32 = 0o007;

/// What the directory is used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Where the files are.
    pub dir: PathBuf,
    /// Clients without TLS are refused.
    pub is_required: bool,
    /// Clients have to show a certificate of our authority.
    pub verify_peer: bool,
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    /// `TlsFiles`, with the file and what is wrong with it.
    pub fn load(&self) -> Result<TlsSettings, UserError> {
        let provider = Arc::new(provider());
        let certs = self.certificates(SERVER_CERT)?;
        let key = self.key()?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(|error| wrong(&self.dir, &error.to_string()))?;
        let builder = if self.verify_peer {
            builder.with_client_cert_verifier(self.verifier(provider)?)
        } else {
            builder.with_no_client_auth()
        };
        let mut config =
            builder.with_single_cert(certs, key).map_err(|error| self.mismatch(&error))?;
        // Clients of block devices connect once and stay; tickets would be work for nobody.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // The records after the handshake are ours (see `records`).
        config.enable_secret_extraction = true;
        Ok(TlsSettings::new(Arc::new(config), self.is_required))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, UserError> {
        let path = self.path(name);
        let bytes = read(&path, |_| Ok(()))?;
        let certs: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
        match certs {
            Ok(certs) if certs.is_empty() => {
                Err(wrong(&path, "there is no certificate in it").hint(PEM_HINT))
            }
            Ok(certs) => Ok(certs),
            Err(error) => Err(wrong(&path, &error.to_string()).hint(PEM_HINT)),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, UserError> {
        let path = self.path(SERVER_KEY);
        let bytes = read(&path, |file| {
            let mode = file.metadata().map_err(|error| unreadable(&path, &error))?.mode();
            if mode & OTHERS == 0 {
                return Ok(());
            }
            let what = format!("everybody may use this key (mode {:03o})", mode & 0o777);
            Err(wrong(&path, &what).hint(format!("chmod o= {}", path.display())))
        })?;
        match PrivateKeyDer::from_pem_slice(&bytes) {
            Ok(key) => Ok(key),
            Err(_) if is_encrypted(&bytes) => Err(wrong(&path, "the key is encrypted")
                .hint("nobody is there to type its password: openssl pkey -in OLD -out NEW")),
            Err(pem::Error::NoItemsFound) => {
                Err(wrong(&path, "there is no private key in it").hint(PEM_HINT))
            }
            Err(error) => Err(wrong(&path, &error.to_string()).hint(PEM_HINT)),
        }
    }

    /// Who decides about the clients' certificates.
    fn verifier(
        &self,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, UserError> {
        let path = self.path(CA_CERT);
        let mut roots = RootCertStore::empty();
        for cert in self.certificates(CA_CERT)? {
            roots.add(cert).map_err(|error| wrong(&path, &error.to_string()))?;
        }
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let crl_path = self.path(CA_CRL);
        if crl_path.exists() {
            let bytes = read(&crl_path, |_| Ok(()))?;
            let crls: Result<Vec<_>, pem::Error> =
                CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
            let crls = crls.map_err(|error| wrong(&crl_path, &error.to_string()).hint(PEM_HINT))?;
            builder = builder.with_crls(crls).allow_unknown_revocation_status();
        }
        builder.build().map_err(|error| wrong(&crl_path, &error.to_string()))
    }

    /// Certificate and key are fine by themselves, but do not go together.
    fn mismatch(&self, error: &Error) -> UserError {
        let (key, cert) = (self.path(SERVER_KEY), self.path(SERVER_CERT));
        match error {
            Error::InconsistentKeys(_) => {
                wrong(&key, &format!("it is not the key of {}", cert.display()))
            }
            Error::InvalidCertificate(_) => wrong(&cert, &error.to_string()),
            other => wrong(&key, &other.to_string())
                .hint("keys may be ECDSA (P-256, P-384), Ed25519 or RSA of at least 2048 bits"),
        }
    }
}

/// What we encrypt with: suites whose keys last, or can be changed (see the module above).
pub(in crate::nbd) fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.retain(|suite| match suite {
        SupportedCipherSuite::Tls13(_) => true,
        SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit == u64::MAX,
    });
    provider
}

const PEM_HINT: &str =
    "the files are PEM: -----BEGIN CERTIFICATE----- or -----BEGIN PRIVATE KEY-----";

/// Reads a file that `check` is content with.
pub(super) fn read(
    path: &Path,
    check: impl FnOnce(&File) -> Result<(), UserError>,
) -> Result<Vec<u8>, UserError> {
    let failed = |error: io::Error| unreadable(path, &error);
    let file = File::open(path).map_err(failed)?;
    check(&file)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn is_encrypted(bytes: &[u8]) -> bool {
    let has = |words: &[u8]| bytes.windows(words.len()).any(|window| window == words);
    has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED")
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> UserError {
    let words = error.to_string();
    let words = words.split(" (os error").next().unwrap_or_default();
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NoEntry,
        _ => ErrorKind::Invalid,
    };
    wrong(path, words).of_kind(kind)
}

pub(super) fn wrong(path: &Path, what: &str) -> UserError {
    UserError::new(ErrorCode::TlsFiles, format!("{}: {what}", path.display()))
}
