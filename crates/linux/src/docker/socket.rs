//! The socket of the Docker daemon. A connection shows that the daemon has started, without a
//! process for each check.

use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::Docker;

/// The socket of an engine that nobody configured.
const SOCKET: &str = "/run/docker.sock";
/// The scheme of an engine with a local socket.
const UNIX: &str = "unix://";

impl Docker {
    /// Returns the socket of the engine, unless the engine has another kind of address. A context
    /// of the `docker` program may select another engine: then the socket has no meaning.
    fn socket(&self) -> Option<PathBuf> {
        let leading = self.leading.iter().filter_map(|argument| argument.to_str());
        let selected = leading.filter_map(|argument| argument.strip_prefix("--host=")).next();
        #[expect(clippy::disallowed_methods, reason = "the docker program reads the same variable")]
        let configured = selected.map(str::to_owned).or_else(|| std::env::var("DOCKER_HOST").ok());
        match configured.filter(|host| !host.is_empty()) {
            None => Some(PathBuf::from(SOCKET)),
            Some(host) => host.strip_prefix(UNIX).map(PathBuf::from),
        }
    }

    /// Returns whether a process accepts connections at the socket of the engine. `None` if the
    /// engine has no local socket.
    pub async fn is_listening(&self) -> Option<bool> {
        Some(UnixStream::connect(self.socket()?).await.is_ok())
    }

    /// Returns the socket of the engine if it exists, also if the `docker` program does not.
    #[must_use]
    pub fn existing_socket(&self) -> Option<PathBuf> {
        self.socket().filter(|socket| Path::new(socket).exists())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn listening_socket_is_detected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let docker = Docker::new("docker", Duration::from_secs(1));
        let docker = docker.with_host(&format!("unix://{}", path.display()));
        assert_eq!(docker.is_listening().await, Some(false));
        assert_eq!(docker.existing_socket(), None);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(docker.is_listening().await, Some(true));
        drop(listener);
        assert_eq!(docker.is_listening().await, Some(false), "the file of a stopped daemon");
        assert_eq!(docker.existing_socket(), Some(path));
        let remote = Docker::new("docker", Duration::from_secs(1)).with_host("tcp://10.0.0.1:2375");
        assert_eq!(remote.is_listening().await, None);
    }
}
