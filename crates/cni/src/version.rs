//! The versions of the CNI protocol.

use std::fmt;

use crate::error::{ErrorCode, PluginError};

/// A version of the protocol that the plugin speaks, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CniVersion {
    /// 0.1.0, the version of a configuration without a version. Mesos and clusterd read its
    /// results.
    V0_1_0,
    /// 0.2.0: as 0.1.0, with the command VERSION.
    V0_2_0,
    /// 0.3.0: several addresses and interfaces.
    V0_3_0,
    /// 0.3.1: as 0.3.0.
    V0_3_1,
    /// 0.4.0: with the command CHECK.
    V0_4_0,
    /// 1.0.0: addresses without the number of their family.
    V1_0_0,
    /// 1.1.0: with the commands STATUS and GC, and the MTU of interfaces.
    V1_1_0,
}

impl CniVersion {
    /// All versions, in ascending order.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// Returns the version as text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Returns the version that a configuration declares.
    ///
    /// # Errors
    /// When the plugin does not speak the version.
    pub fn declared(text: Option<&str>) -> Result<Self, PluginError> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Self::V0_1_0) };
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            PluginError::new(
                ErrorCode::IncompatibleVersion,
                format!("cniVersion '{}' is not supported", text.escape_debug()),
            )
            .with_details(format!("write one of {}", Self::names().join(", ")))
        })
    }

    /// Returns the names of all versions.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|version| version.as_str()).collect()
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_without_text_is_the_first() {
        assert_eq!(CniVersion::declared(None), Ok(CniVersion::V0_1_0));
        assert_eq!(CniVersion::declared(Some("")), Ok(CniVersion::V0_1_0));
        for version in CniVersion::ALL {
            assert_eq!(CniVersion::declared(Some(version.as_str())), Ok(version));
        }
        let error = CniVersion::declared(Some("1.2.0")).unwrap_err();
        assert_eq!(error.code(), ErrorCode::IncompatibleVersion);
        assert!(CniVersion::V0_3_1 < CniVersion::V0_4_0);
    }
}
