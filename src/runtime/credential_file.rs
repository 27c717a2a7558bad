//! Files with credentials: read at the start, and again when they have changed.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use overlay_config::{
    AuthenticationConfig, CREDENTIALS_FILE_MAX, CredentialError, credential_mode_warning,
    parse_agent_credential, parse_shared_secrets,
};
use overlay_engine::agent::AuthenticationSettings;
use overlay_engine::master::Authentication;
use overlay_types::protocol::{AgentCredential, SharedSecrets};
use overlay_types::warnings::Warnings;

use crate::files::{open_without_waiting, read_up_to};

/// Interval at which a file is read again. An operator who replaces a secret waits for it.
const READ_INTERVAL: Duration = Duration::from_secs(10);

/// Key of the warning that other users can read the file.
const MODE_WARNING: &str = "agent-credentials-mode";
/// Key of the warning that the file cannot be read any more.
const UNREADABLE_WARNING: &str = "agent-credentials";

/// A file with credentials, and how to parse it.
pub struct CredentialFile<T> {
    path: PathBuf,
    /// The key or flag that names the file, for messages.
    key: &'static str,
    parse: fn(&str) -> Result<T, CredentialError>,
}

/// The content of a file with credentials.
#[derive(Debug)]
pub struct ReadCredentials<T> {
    /// The credentials.
    pub content: T,
    /// A warning that other users can read the file.
    pub mode_warning: Option<String>,
}

impl<T> Clone for CredentialFile<T> {
    fn clone(&self) -> Self {
        Self { path: self.path.clone(), ..*self }
    }
}

impl<T> fmt::Debug for CredentialFile<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl CredentialFile<AgentCredential> {
    /// Returns the file with the credential of an agent.
    #[must_use]
    pub fn of_agent(path: &Path) -> Self {
        Self::new(path, "credential", parse_agent_credential)
    }
}

impl CredentialFile<SharedSecrets> {
    /// Returns the file with the credentials that a master accepts from agents.
    #[must_use]
    pub fn of_master(path: &Path) -> Self {
        Self::new(path, "credentials", parse_shared_secrets)
    }
}

impl<T> CredentialFile<T> {
    /// Returns the file that `key` names.
    #[must_use]
    pub fn new(
        path: &Path,
        key: &'static str,
        parse: fn(&str) -> Result<T, CredentialError>,
    ) -> Self {
        Self { path: path.to_owned(), key, parse }
    }

    /// Reads the file. May block.
    ///
    /// # Errors
    /// With the key, the path and the reason, without any part of the content.
    pub fn read(&self) -> Result<ReadCredentials<T>, String> {
        let Self { path, key, parse } = self;
        let failure = |reason: String| format!("{key}: {}: {reason}", path.display());
        let read = || {
            let mut file = open_without_waiting(path)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(io::Error::other("it is no regular file"));
            }
            Ok((metadata, read_up_to(&mut file, CREDENTIALS_FILE_MAX)?))
        };
        let (metadata, text) = read().map_err(|error| failure(error.to_string()))?;
        // The error of a conversion would hold the text.
        let text = String::from_utf8(text).map_err(|_| failure("it is no UTF-8".to_owned()))?;
        let content = parse(&text).map_err(|error| failure(error.to_string()))?;
        let name = path.display().to_string();
        let mode_warning = credential_mode_warning(&name, metadata.permissions().mode());
        Ok(ReadCredentials { content, mode_warning })
    }

    /// Reads the file, and warns if other users can read it. May block.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_first(&self, warnings: &Warnings) -> Result<T, String> {
        let ReadCredentials { content, mode_warning } = self.read()?;
        warnings.set(MODE_WARNING, mode_warning);
        Ok(content)
    }
}

/// Reads the credential of an agent. Without a configuration, the agent has none. May block.
///
/// # Errors
/// As [`CredentialFile::read`].
pub fn read_credential(
    config: Option<&AuthenticationConfig>,
    warnings: &Warnings,
) -> Result<Option<AuthenticationSettings>, String> {
    let Some(AuthenticationConfig { file, mode }) = config else { return Ok(None) };
    let credential = CredentialFile::of_agent(file).read_first(warnings)?;
    // The host reads the state of the agent when it starts.
    Ok(Some(AuthenticationSettings { credential, mode: *mode, was_authenticated: false }))
}

/// Reads the credentials that a master accepts from agents. Without a configuration, the master has
/// none. May block.
///
/// # Errors
/// As [`CredentialFile::read`].
pub fn read_credentials(
    config: Option<&AuthenticationConfig>,
    warnings: &Warnings,
) -> Result<Option<Authentication>, String> {
    let Some(AuthenticationConfig { file, mode }) = config else { return Ok(None) };
    let secrets = CredentialFile::of_master(file).read_first(warnings)?;
    Ok(Some(Authentication { mode: *mode, secrets: Arc::new(secrets) }))
}

/// The changes of a file with credentials.
pub(super) struct CredentialChanges<T> {
    file: CredentialFile<T>,
    /// The content in use.
    known: T,
    warnings: Warnings,
}

impl<T: PartialEq + Clone + Send + 'static> CredentialChanges<T> {
    /// Follows a file whose content is `known`.
    pub(super) const fn new(file: CredentialFile<T>, known: T, warnings: Warnings) -> Self {
        Self { file, known, warnings }
    }

    /// Waits until the content has changed, and returns it. While the file cannot be read, which is
    /// a warning, the former content stays in use.
    pub(super) async fn next(&mut self) -> T {
        loop {
            tokio::time::sleep(READ_INTERVAL).await;
            let reading = self.file.clone();
            let reading = tokio::task::spawn_blocking(move || reading.read());
            let Ok(read) = reading.await else { continue };
            let (read, unreadable) = match read {
                Ok(read) => (Some(read), None),
                Err(reason) => (None, Some(format!("{reason}: the former content stays in use"))),
            };
            self.warnings.set(UNREADABLE_WARNING, unreadable);
            let Some(ReadCredentials { content, mode_warning }) = read else { continue };
            self.warnings.set(MODE_WARNING, mode_warning);
            if content != self.known {
                let CredentialFile { path, key, .. } = &self.file;
                log::info!("{key}: {} has changed: using the new content", path.display());
                self.known = content.clone();
                return content;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn unreadable_file_is_named_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credential");
        let file = CredentialFile::of_agent(&path);
        let missing = file.read().unwrap_err();
        let expected = format!("credential: {}: No such file or directory", path.display());
        assert!(missing.starts_with(&expected), "{missing}");
        fs::write(&path, "s3cret").unwrap();
        let malformed = file.read().unwrap_err();
        assert!(malformed.contains("line 1") && !malformed.contains("s3cret"), "{malformed}");
        let folder = CredentialFile::of_master(folder.path()).read().unwrap_err();
        assert!(folder.ends_with("it is no regular file"), "{folder}");
    }

    #[test]
    fn file_for_others_is_a_warning() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "agents s3cret").unwrap();
        let (credential, warnings) = (CredentialFile::of_agent(file.path()), Warnings::new());
        set_mode(file.path(), 0o644);
        credential.read_first(&warnings).unwrap();
        let [warning] = &warnings.texts()[..] else { panic!("{:?}", warnings.texts()) };
        assert!(warning.contains("its mode 0644 is wider than 0600"), "{warning}");
        set_mode(file.path(), 0o600);
        credential.read_first(&warnings).unwrap();
        assert_eq!(warnings.texts(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn changed_file_is_sent_and_unreadable_file_is_a_warning() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "agents one").unwrap();
        let credentials = CredentialFile::of_master(file.path());
        let known = credentials.read().unwrap().content;
        let warnings = Warnings::new();
        let mut changes = CredentialChanges::new(credentials.clone(), known, warnings.clone());
        let is_unreadable = || warnings.texts().iter().any(|text| text.contains("stays in use"));
        let unchanged = tokio::time::timeout(READ_INTERVAL * 3, changes.next()).await;
        assert!(unchanged.is_err(), "the content is the same");
        fs::write(file.path(), "nothing").unwrap();
        while !is_unreadable() {
            let unreadable = tokio::time::timeout(READ_INTERVAL * 2, changes.next()).await;
            assert!(unreadable.is_err());
        }
        fs::write(file.path(), "agents one\nagents two").unwrap();
        assert_eq!(changes.next().await, credentials.read().unwrap().content);
        assert!(!is_unreadable());
    }
}
