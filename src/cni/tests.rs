//! The directory of CNI configurations, on a real file system.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{CniDirectory, CniError, Outcome, Removal};
use crate::addr::{Mtu, OverlayName};
use crate::agent::CniNetwork;

const GOLDEN: &[u8] = include_bytes!("../../tests/golden/cni-vxlan-1.conf");
const DATA_DIR: &str = "/var/run/mesos/cni/networks";
const PLAIN: &str = "{\"name\":\"vxlan-1\",\"type\":\"bridge\",\"bridge\":\"m-vxlan-1\",\"isGateway\":true,\
    \"ipMasq\":false,\"hairpinMode\":true,\"mtu\":1420,\"ipam\":{\"type\":\"host-local\",\
    \"subnet\":\"192.168.0.0/25\",\"routes\":[{\"dst\":\"0.0.0.0/0\"}]}}";

struct Place {
    root: tempfile::TempDir,
}

impl Place {
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

    /// With a search path of two directories, `first` and `second`.
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

    /// Names of all that is in the directory and beside it.
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

    /// An error's text without the path of the test's directory.
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
        mtu: Mtu::OVERLAY_DEFAULT,
    }
}

fn wanted(names: &[&str]) -> BTreeSet<OverlayName> {
    names.iter().map(|text| name(text)).collect()
}

#[test]
fn the_port_mapper_form_is_that_of_the_cpp_modules_byte_for_byte() {
    let place = Place::new();
    assert_eq!(place.directory().write(&network("vxlan-1")), Ok(Outcome::Created));
    let path = place.path("vxlan-1.conf");
    assert_eq!(fs::read(&path).unwrap(), GOLDEN);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(place.names(), ["cni", "vxlan-1.conf"]);
}

#[test]
fn without_a_port_mapper_the_bridge_plugin_is_configured_itself() {
    let place = Place::new();
    let directory = CniDirectory::new(place.root.path().join("cni"), None, Vec::new(), false);
    assert_eq!(directory.write(&network("vxlan-1")), Ok(Outcome::Created));
    assert_eq!(fs::read_to_string(place.path("vxlan-1.conf")).unwrap(), PLAIN);

    fs::remove_file(place.path("vxlan-1.conf")).unwrap();
    let directory = place.with_plugins(&["bridge", "host-local"]);
    assert_eq!(directory.write(&network("vxlan-1")), Ok(Outcome::Created));
    assert_eq!(fs::read_to_string(place.path("vxlan-1.conf")).unwrap(), PLAIN);

    let directory = place.with_plugins(&["bridge", "host-local", "mesos-cni-port-mapper"]);
    assert_eq!(directory.write(&network("vxlan-1")), Ok(Outcome::Replaced));
    assert!(fs::read_to_string(place.path("vxlan-1.conf")).unwrap().contains("port-mapper"));
}

#[test]
fn a_right_file_is_not_touched_and_a_changed_one_is_replaced() {
    let place = Place::new();
    let directory = place.directory();
    directory.write(&network("vxlan-1")).unwrap();
    let inode = || fs::metadata(place.path("vxlan-1.conf")).unwrap().ino();
    let first = inode();
    assert_eq!(directory.write(&network("vxlan-1")), Ok(Outcome::Unchanged));
    assert_eq!(inode(), first);

    let wider = CniNetwork { mtu: Mtu::new(8900).unwrap(), ..network("vxlan-1") };
    assert_eq!(directory.write(&wider), Ok(Outcome::Replaced));
    assert_ne!(inode(), first);
    assert_eq!(place.names(), ["cni", "vxlan-1.conf"]);
}

#[test]
fn what_a_crash_left_is_cleaned_up() {
    let place = Place::new();
    for staging in [".cni.mesos-overlay", "cni/.mesos-overlay"] {
        fs::create_dir_all(place.root.path().join(staging)).unwrap();
        fs::write(place.root.path().join(staging).join(".tmpAbCdEf"), "{").unwrap();
    }
    place.directory();
    assert_eq!(place.names(), ["cni"]);
}

#[test]
fn a_directory_may_be_a_symbolic_link_and_what_is_beside_it_is_not_ours_to_use() {
    let place = Place::new();
    fs::create_dir_all(place.root.path().join("elsewhere/cni")).unwrap();
    symlink("elsewhere/cni", place.root.path().join("cni")).unwrap();
    let directory = place.directory();
    assert_eq!(directory.write(&network("vxlan-1")), Ok(Outcome::Created));
    assert_eq!(place.names(), ["cni", "elsewhere", "vxlan-1.conf"]);

    fs::write(place.root.path().join("elsewhere/.cni.mesos-overlay"), "").unwrap();
    let error = directory.write(&network("vxlan-2")).unwrap_err();
    assert_eq!(
        place.text(&error),
        "write /cni/vxlan-2.conf: /elsewhere/.cni.mesos-overlay is not a directory of ours"
    );
}

#[test]
fn what_is_not_ours_is_left_alone_and_named() {
    let place = Place::new();
    let directory = place.directory();
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
        fs::write(place.path("vxlan-1.conf"), content).unwrap();
        let error = directory.write(&network("vxlan-1")).unwrap_err();
        assert_eq!(
            place.text(&error),
            "/cni/vxlan-1.conf is no CNI configuration of overlay vxlan-1, so it is left alone: \
             move it out of the directory"
        );
        assert_eq!(directory.remove_unwanted(&wanted(&[])), Removal::default());
        assert_eq!(fs::read_to_string(place.path("vxlan-1.conf")).unwrap(), content);
    }
}

#[test]
fn a_link_or_a_directory_in_the_place_of_a_file_is_named() {
    let place = Place::new();
    let directory = place.directory();
    let target = place.root.path().join("target");
    fs::write(&target, GOLDEN).unwrap();
    symlink(&target, place.path("vxlan-1.conf")).unwrap();
    fs::create_dir(place.path("vxlan-2.conf")).unwrap();

    assert_eq!(directory.remove_unwanted(&wanted(&[])), Removal::default());
    assert_eq!(
        place.text(&directory.write(&network("vxlan-1")).unwrap_err()),
        "/cni/vxlan-1.conf is a symbolic link where the CNI configuration of overlay vxlan-1 \
         belongs, so it is left alone: move it out of the directory"
    );
    assert_eq!(
        place.text(&directory.write(&network("vxlan-2")).unwrap_err()),
        "/cni/vxlan-2.conf is a directory where the CNI configuration of overlay vxlan-2 belongs, \
         so it is left alone: move it out of the directory"
    );
    assert_eq!(fs::read(&target).unwrap(), GOLDEN);
}

#[test]
fn a_second_file_with_the_network_is_named() {
    let place = Place::new();
    let directory = place.directory();
    directory.write(&network("vxlan-1")).unwrap();
    // Mesos reads hidden and temporary files and does not care for extensions.
    fs::write(place.path(".vxlan-1.conf.swp"), "{\"name\":\"vxlan-1\",\"type\":\"ptp\"}").unwrap();
    fs::write(place.path("broken"), "{\"name\":\"vxlan-1\"").unwrap();
    assert_eq!(
        place.text(&directory.write(&network("vxlan-1")).unwrap_err()),
        "/cni/.vxlan-1.conf.swp declares the network vxlan-1 too, and Mesos takes whichever it \
         sees first of it and /cni/vxlan-1.conf: move /cni/.vxlan-1.conf.swp out of the directory, \
         or change its name"
    );
    assert_eq!(directory.write(&network("vxlan-2")), Ok(Outcome::Created));
}

#[test]
fn only_what_is_ours_and_not_wanted_is_removed() {
    let place = Place::new();
    let directory = place.directory();
    for overlay in ["vxlan-1", "vxlan-2", "a.b"] {
        directory.write(&network(overlay)).unwrap();
    }
    fs::write(place.path("old.conf"), PLAIN.replace("vxlan-1", "old")).unwrap();
    fs::write(place.path("lan.conf"), "{\"name\":\"lan\",\"type\":\"macvlan\"}").unwrap();
    fs::write(place.path("vxlan-2.bak"), PLAIN.replace("vxlan-1", "vxlan-2")).unwrap();

    let removal = directory.remove_unwanted(&wanted(&["vxlan-1"]));
    assert_eq!(removal.removed, [name("a.b"), name("old"), name("vxlan-2")]);
    assert_eq!(removal.failed, []);
    assert_eq!(place.names(), ["cni", "lan.conf", "vxlan-1.conf", "vxlan-2.bak"]);

    let nowhere = CniDirectory::new(place.path("none"), None, Vec::new(), true);
    assert_eq!(nowhere.remove_unwanted(&wanted(&[])), Removal::default());
}

#[test]
fn a_missing_plugin_is_named() {
    let place = Place::new();
    let directory = place.with_plugins(&["bridge"]);
    fs::write(place.root.path().join("second/host-local"), "not executable").unwrap();
    assert_eq!(
        place.text(&directory.write(&network("vxlan-1")).unwrap_err()),
        "CNI plugin 'host-local' is not an executable file in /first:/second: install the CNI \
         plugins there, or correct cni_plugins_dir"
    );
}

#[test]
fn a_subnet_without_room_and_a_data_dir_that_is_no_text_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let small = CniNetwork { subnet: "10.0.0.0/31".parse().unwrap(), ..network("vxlan-1") };
    assert_eq!(
        place.directory().write(&small).unwrap_err().to_string(),
        "subnet 10.0.0.0/31 of overlay vxlan-1 has no room for a bridge and a container: give the \
         overlay a prefix of at most 29"
    );
    let data_dir = std::ffi::OsStr::from_bytes(b"/a\xff\n");
    let directory = CniDirectory::new(place.path(""), Some(data_dir.into()), Vec::new(), true);
    assert_eq!(
        directory.write(&network("vxlan-1")).unwrap_err().to_string(),
        "cni_data_dir /a\u{fffd}\\n is no UTF-8 text, so no CNI configuration can hold it"
    );
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let place = Place::new();
    fs::write(place.root.path().join("file"), "").unwrap();
    let directory = CniDirectory::new(place.root.path().join("file/cni"), None, Vec::new(), true);
    let text = "create directory /file/cni: Not a directory (os error 20)";
    assert_eq!(place.text(&directory.prepare().unwrap_err()), text);
    assert_eq!(place.text(&directory.write(&network("vxlan-1")).unwrap_err()), text);
    assert_eq!(
        place.text(&directory.remove_unwanted(&wanted(&[])).failed[0]),
        "read directory /file/cni: Not a directory (os error 20)"
    );
}
