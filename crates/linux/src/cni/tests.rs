//! Tests of the directory of CNI configurations, on a real file system.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use overlay_types::addr::{Mtu, OverlayName};
use overlay_types::container_network::CniNetwork;

use super::{CniDirectory, CniError, Outcome, Removal};

const GOLDEN: &[u8] = include_bytes!("../../../../tests/golden/cni-vxlan-1.conf");
const DATA_DIR: &str = "/var/run/mesos/cni/networks";
const PLAIN: &str = "{\"name\":\"vxlan-1\",\"type\":\"bridge\",\"bridge\":\"m-vxlan-1\",\"isGateway\":true,\
    \"ipMasq\":false,\"hairpinMode\":true,\"mtu\":1420,\"ipam\":{\"type\":\"host-local\",\
    \"subnet\":\"192.168.0.0/25\",\"routes\":[{\"dst\":\"0.0.0.0/0\"}]}}";

struct TestDirectory {
    root: tempfile::TempDir,
}

impl TestDirectory {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("cni").join(name)
    }

    fn directory(&self) -> CniDirectory {
        let directory = CniDirectory::new(
            self.root.path().join("cni"),
            Some(DATA_DIR.into()),
            Vec::new(),
            true,
        );
        directory.prepare().unwrap();
        directory
    }

    /// Returns a directory with a search path of two plugin directories: `first`, which does not
    /// exist, and `second`, which has `plugins`.
    fn with_plugins(&self, plugins: &[&str]) -> CniDirectory {
        let second = self.root.path().join("second");
        fs::create_dir_all(&second).unwrap();
        for plugin in plugins {
            fs::write(second.join(plugin), "").unwrap();
            fs::set_permissions(second.join(plugin), PermissionsExt::from_mode(0o755)).unwrap();
        }
        let search = vec![self.root.path().join("first"), second];
        CniDirectory::new(self.root.path().join("cni"), None, search, true)
    }

    /// Lists the names in the CNI directory and in its parent directory.
    fn names(&self) -> Vec<String> {
        let list = |path: &Path| {
            let entries = fs::read_dir(path).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let mut names: Vec<String> = list(self.root.path());
        names.extend::<Vec<String>>(list(&self.root.path().join("cni")));
        names.sort();
        names
    }

    /// Returns the text of an error without the path of the temporary directory.
    fn text(&self, error: &CniError) -> String {
        error.to_string().replace(self.root.path().to_str().unwrap(), "")
    }
}

fn name(text: &str) -> OverlayName {
    text.parse().unwrap()
}

fn network(text: &str) -> CniNetwork {
    CniNetwork {
        name: name(text),
        bridge: name(text).mesos_bridge(),
        subnet: "192.168.0.0/25".parse().unwrap(),
        subnet6: None,
        docker_subnets: Vec::new(),
        mtu: Mtu::OVERLAY_DEFAULT,
    }
}

fn overlays(names: &[&str]) -> BTreeSet<OverlayName> {
    names.iter().map(|text| name(text)).collect()
}

#[test]
fn port_mapper_form_matches_cpp_modules() {
    let test = TestDirectory::new();
    assert_eq!(test.directory().write(&network("vxlan-1")), Ok(Outcome::Created));
    let path = test.path("vxlan-1.conf");
    assert_eq!(fs::read(&path).unwrap(), GOLDEN);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(test.names(), ["cni", "vxlan-1.conf"]);
}

#[test]
fn missing_port_mapper_configures_bridge_plugin() {
    let test = TestDirectory::new();
    let directory = CniDirectory::new(test.root.path().join("cni"), None, Vec::new(), false);
    assert_eq!(directory.write(&network("vxlan-1")), Ok(Outcome::Created));
    assert_eq!(fs::read_to_string(test.path("vxlan-1.conf")).unwrap(), PLAIN);

    fs::remove_file(test.path("vxlan-1.conf")).unwrap();
    let directory = test.with_plugins(&["bridge", "host-local"]);
    assert_eq!(directory.write(&network("vxlan-1")), Ok(Outcome::Created));
    assert_eq!(fs::read_to_string(test.path("vxlan-1.conf")).unwrap(), PLAIN);

    let directory = test.with_plugins(&["bridge", "host-local", "mesos-cni-port-mapper"]);
    assert_eq!(directory.write(&network("vxlan-1")), Ok(Outcome::Replaced));
    assert!(fs::read_to_string(test.path("vxlan-1.conf")).unwrap().contains("port-mapper"));
}

#[test]
fn chosen_overlay_plugin_is_configured_while_it_is_installed() {
    const OVERLAY: &str = "{\"name\":\"vxlan-1\",\"type\":\"mesos-overlay-cni\",\"bridge\":\
        \"m-vxlan-1\",\"isGateway\":true,\"ipMasq\":false,\"hairpinMode\":true,\"mtu\":1420,\
        \"dockerSubnets\":[\"192.168.0.128/25\",\"fd01:b::8000:0:0/81\"],\"ipam\":{\"type\":\
        \"mesos-overlay-cni\",\"subnet\":\"192.168.0.0/25\",\"subnet6\":\"fd01:b::/81\",\
        \"routes\":[{\"dst\":\"0.0.0.0/0\"},{\"dst\":\"::/0\"}]}}";
    let test = TestDirectory::new();
    let parse = |subnet: &str| subnet.parse().unwrap();
    let network = CniNetwork {
        subnet6: Some(parse("fd01:b::/81")),
        docker_subnets: ["192.168.0.128/25", "fd01:b::8000:0:0/81"].map(parse).into(),
        ..network("vxlan-1")
    };
    let content = || fs::read_to_string(test.path("vxlan-1.conf")).unwrap();
    let directory = test.with_plugins(&["bridge", "host-local"]).with_overlay_plugin(true);
    assert_eq!(directory.write(&network), Ok(Outcome::Created));
    assert_eq!((content().as_str(), directory.plugin()), (PLAIN, "bridge"));
    assert_eq!(
        directory
            .plugin_problem()
            .map(|text| text.replace(&*test.root.path().to_string_lossy(), "")),
        Some(
            "bridge attaches its containers: CNI plugin 'mesos-overlay-cni' is not an executable \
             file in /first:/second: install the CNI plugins there, or correct cni_plugins_dir"
                .to_owned()
        )
    );
    // The plugin is installed, then removed, while the agent runs.
    test.with_plugins(&["mesos-overlay-cni"]);
    assert_eq!(directory.write(&network), Ok(Outcome::Replaced));
    assert_eq!((content().as_str(), directory.plugin()), (OVERLAY, "mesos-overlay-cni"));
    assert_eq!(directory.plugin_problem(), None);
    assert_eq!(directory.write(&network), Ok(Outcome::Unchanged));
    let subnets = vec![parse("192.168.0.0/25"), parse("fd01:b::/81")];
    assert_eq!(directory.subnets(), Ok([(name("vxlan-1"), subnets)].into()));
    fs::remove_file(test.root.path().join("second/mesos-overlay-cni")).unwrap();
    assert_eq!(directory.write(&network), Ok(Outcome::Replaced));
    assert_eq!(content(), PLAIN);
    // The operator does not choose it, so it is not used.
    let directory = test.with_plugins(&["mesos-overlay-cni"]);
    assert_eq!(directory.write(&network), Ok(Outcome::Unchanged));
    assert_eq!(directory.plugin_problem(), None);
}

#[test]
fn right_file_is_kept_and_changed_file_is_replaced() {
    let test = TestDirectory::new();
    let directory = test.directory();
    directory.write(&network("vxlan-1")).unwrap();
    let inode = || fs::metadata(test.path("vxlan-1.conf")).unwrap().ino();
    let first = inode();
    assert_eq!(directory.write(&network("vxlan-1")), Ok(Outcome::Unchanged));
    assert_eq!(inode(), first);

    let wider = CniNetwork { mtu: Mtu::new(8900).unwrap(), ..network("vxlan-1") };
    assert_eq!(directory.write(&wider), Ok(Outcome::Replaced));
    assert_ne!(inode(), first);
    assert_eq!(test.names(), ["cni", "vxlan-1.conf"]);
}

#[test]
fn staging_files_of_crash_are_removed() {
    let test = TestDirectory::new();
    for staging in [".cni.mesos-overlay", "cni/.mesos-overlay"] {
        fs::create_dir_all(test.root.path().join(staging)).unwrap();
        fs::write(test.root.path().join(staging).join(".tmpAbCdEf"), "{").unwrap();
    }
    test.directory();
    assert_eq!(test.names(), ["cni"]);
}

#[test]
fn symlinked_directory_stages_beside_its_target() {
    let test = TestDirectory::new();
    fs::create_dir_all(test.root.path().join("elsewhere/cni")).unwrap();
    symlink("elsewhere/cni", test.root.path().join("cni")).unwrap();
    let directory = test.directory();
    assert_eq!(directory.write(&network("vxlan-1")), Ok(Outcome::Created));
    assert_eq!(test.names(), ["cni", "elsewhere", "vxlan-1.conf"]);

    fs::write(test.root.path().join("elsewhere/.cni.mesos-overlay"), "").unwrap();
    let error = directory.write(&network("vxlan-2")).unwrap_err();
    assert_eq!(
        test.text(&error),
        "write /cni/vxlan-2.conf: /elsewhere/.cni.mesos-overlay is not a directory that this \
         process owns"
    );
}

#[test]
fn foreign_file_is_kept_and_named() {
    let test = TestDirectory::new();
    let directory = test.directory();
    let foreign = [
        "",
        "not json",
        "{\"name\":\"vxlan-1\"",
        "{\"name\":\"vxlan-1\",\"type\":\"bridge\",\"bridge\":\"br0\"}",
        "{\"name\":\"vxlan-2\",\"type\":\"bridge\",\"bridge\":\"m-vxlan-1\"}",
        "{\"name\":\"vxlan-1\",\"type\":\"macvlan\",\"bridge\":\"m-vxlan-1\"}",
        "{\"name\":\"vxlan-1\",\"type\":\"portmap\",\"delegate\":{\"type\":\"bridge\",\"bridge\":\"m-vxlan-1\"}}",
        "[{\"name\":\"vxlan-1\",\"type\":\"bridge\",\"bridge\":\"m-vxlan-1\"}]",
    ];
    for content in foreign {
        fs::write(test.path("vxlan-1.conf"), content).unwrap();
        let error = directory.write(&network("vxlan-1")).unwrap_err();
        assert_eq!(
            test.text(&error),
            "/cni/vxlan-1.conf is not a CNI configuration of overlay vxlan-1, so it is left alone: \
             move it out of the directory"
        );
        assert_eq!(directory.remove_stale(&overlays(&[])), Removal::default());
        assert_eq!(fs::read_to_string(test.path("vxlan-1.conf")).unwrap(), content);
    }
}

#[test]
fn symlink_or_directory_at_path_is_named() {
    let test = TestDirectory::new();
    let directory = test.directory();
    let target = test.root.path().join("target");
    fs::write(&target, GOLDEN).unwrap();
    symlink(&target, test.path("vxlan-1.conf")).unwrap();
    fs::create_dir(test.path("vxlan-2.conf")).unwrap();

    assert_eq!(directory.remove_stale(&overlays(&[])), Removal::default());
    assert_eq!(
        test.text(&directory.write(&network("vxlan-1")).unwrap_err()),
        "/cni/vxlan-1.conf is a symbolic link where the CNI configuration of overlay vxlan-1 \
         belongs, so it is left alone: move it out of the directory"
    );
    assert_eq!(
        test.text(&directory.write(&network("vxlan-2")).unwrap_err()),
        "/cni/vxlan-2.conf is a directory where the CNI configuration of overlay vxlan-2 belongs, \
         so it is left alone: move it out of the directory"
    );
    assert_eq!(fs::read(&target).unwrap(), GOLDEN);
}

#[test]
fn second_file_with_same_network_is_named() {
    let test = TestDirectory::new();
    let directory = test.directory();
    directory.write(&network("vxlan-1")).unwrap();
    // Mesos reads hidden and temporary files and ignores extensions.
    fs::write(test.path(".vxlan-1.conf.swp"), "{\"name\":\"vxlan-1\",\"type\":\"ptp\"}").unwrap();
    fs::write(test.path("broken"), "{\"name\":\"vxlan-1\"").unwrap();
    assert_eq!(
        test.text(&directory.write(&network("vxlan-1")).unwrap_err()),
        "/cni/.vxlan-1.conf.swp and /cni/vxlan-1.conf both declare the network vxlan-1, and Mesos \
         uses the file that it reads first: move /cni/.vxlan-1.conf.swp out of the directory, or \
         change the network name in it"
    );
    assert_eq!(directory.write(&network("vxlan-2")), Ok(Outcome::Created));
}

#[test]
fn remove_stale_removes_only_unassigned_managed_files() {
    let test = TestDirectory::new();
    let directory = test.directory();
    for overlay in ["vxlan-1", "vxlan-2", "a.b"] {
        directory.write(&network(overlay)).unwrap();
    }
    fs::write(test.path("old.conf"), PLAIN.replace("vxlan-1", "old")).unwrap();
    fs::write(test.path("lan.conf"), "{\"name\":\"lan\",\"type\":\"macvlan\"}").unwrap();
    fs::write(test.path("vxlan-2.bak"), PLAIN.replace("vxlan-1", "vxlan-2")).unwrap();

    let removal = directory.remove_stale(&overlays(&["vxlan-1"]));
    assert_eq!(removal.removed, [name("a.b"), name("old"), name("vxlan-2")]);
    assert_eq!(removal.failed, []);
    assert_eq!(test.names(), ["cni", "lan.conf", "vxlan-1.conf", "vxlan-2.bak"]);

    let nowhere = CniDirectory::new(test.path("none"), None, Vec::new(), true);
    assert_eq!(nowhere.remove_stale(&overlays(&[])), Removal::default());
}

#[test]
fn missing_plugin_is_named() {
    let test = TestDirectory::new();
    let directory = test.with_plugins(&["bridge"]);
    fs::write(test.root.path().join("second/host-local"), "not executable").unwrap();
    assert_eq!(
        test.text(&directory.write(&network("vxlan-1")).unwrap_err()),
        "CNI plugin 'host-local' is not an executable file in /first:/second: install the CNI \
         plugins there, or correct cni_plugins_dir"
    );
}

#[test]
fn small_subnet_and_non_utf8_data_dir_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let test = TestDirectory::new();
    let small = CniNetwork { subnet: "10.0.0.0/31".parse().unwrap(), ..network("vxlan-1") };
    assert_eq!(
        test.directory().write(&small).unwrap_err().to_string(),
        "subnet 10.0.0.0/31 of overlay vxlan-1 is too small for a bridge and a container: give the \
         overlay a prefix of at most 29"
    );
    let data_dir = std::ffi::OsStr::from_bytes(b"/a\xff\n");
    let directory = CniDirectory::new(test.path(""), Some(data_dir.into()), Vec::new(), true);
    assert_eq!(
        directory.write(&network("vxlan-1")).unwrap_err().to_string(),
        "cni_data_dir /a\u{fffd}\\n is not UTF-8 text, so no CNI configuration can contain it"
    );
}

#[test]
fn failed_directory_creation_is_named() {
    let test = TestDirectory::new();
    fs::write(test.root.path().join("file"), "").unwrap();
    let directory = CniDirectory::new(test.root.path().join("file/cni"), None, Vec::new(), true);
    let text = "create directory /file/cni: Not a directory (os error 20)";
    assert_eq!(test.text(&directory.prepare().unwrap_err()), text);
    assert_eq!(test.text(&directory.write(&network("vxlan-1")).unwrap_err()), text);
    assert_eq!(
        test.text(&directory.remove_stale(&overlays(&[])).failed[0]),
        "read directory /file/cni: Not a directory (os error 20)"
    );
}

#[test]
fn subnets_of_managed_files_are_listed() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("cni");
    let cni = |port_mapper| CniDirectory::new(directory.clone(), None, Vec::new(), port_mapper);
    assert_eq!(cni(true).subnets(), Ok(BTreeMap::new()));
    let network =
        |name: &str, subnet: &str| CniNetwork { subnet: subnet.parse().unwrap(), ..network(name) };
    cni(true).write(&network("a", "192.168.1.0/25")).unwrap();
    cni(false).write(&network("b", "192.168.2.0/25")).unwrap();
    fs::write(directory.join("c.conf"), "{}").unwrap();
    let expected = [("a", "192.168.1.0/25"), ("b", "192.168.2.0/25")];
    let expected =
        expected.map(|(name, subnet)| (name.parse().unwrap(), vec![subnet.parse().unwrap()]));
    assert_eq!(cni(true).subnets(), Ok(BTreeMap::from(expected)));
    // A directory that cannot be read is no empty directory.
    let path = directory.join("d.conf");
    fs::write(&path, "").unwrap();
    let files = cni(true).ours().unwrap();
    assert_eq!((files.files.len(), files.unreadable.len()), (2, 0), "the file is foreign");
    fs::remove_dir_all(&directory).unwrap();
    fs::write(&directory, "").unwrap();
    for error in [cni(true).subnets().unwrap_err(), cni(true).ours().unwrap_err()] {
        assert!(error.to_string().starts_with("read directory "), "{error}");
    }
}
