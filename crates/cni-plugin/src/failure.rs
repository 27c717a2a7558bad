//! Errors of files and of the kernel as errors of the plugin.

use std::fmt::Display;

use overlay_cni::{ErrorCode, PluginError};
use overlay_linux::dataplane::NamespaceError;

/// Converts an error of a file or of the kernel.
pub(crate) fn io(error: &dyn Display) -> PluginError {
    PluginError::new(ErrorCode::Io, error.to_string())
}

/// Converts an error about the namespace of a container.
pub(crate) fn of_namespace(error: &NamespaceError) -> PluginError {
    let code = match error {
        NamespaceError::Missing(_) => ErrorCode::UnknownContainer,
        NamespaceError::OfHost(_) | NamespaceError::NotANamespace(_) => {
            ErrorCode::InvalidEnvironment
        }
        NamespaceError::Io(..) => ErrorCode::Io,
    };
    PluginError::new(code, error.to_string())
}
