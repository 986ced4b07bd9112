// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! QEMU's command line: the hardware, what the guest boots from, and its ways to us.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Job, Machine};

/// A way between the guest and a socket of ours.
#[derive(Debug)]
pub(super) struct Link {
    /// The virtio port's name in the guest.
    pub(super) name: String,
    /// The socket.
    pub(super) socket: PathBuf,
}

/// What one run brings to a machine.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    /// The initramfs with the job.
    pub(super) initrd: &'a Path,
    /// The modules.
    pub(super) modules: &'a Path,
    /// Where the kernel's log goes.
    pub(super) console: &'a Path,
    /// The ways to us.
    pub(super) links: &'a [Link],
    /// The device model's socket.
    pub(super) device: Option<&'a Path>,
}

/// The command that runs `job` in `machine`.
pub(super) fn command(machine: Machine, job: &Job, parts: &Parts<'_>) -> Command {
    let mut qemu = machine.qemu;
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    qemu.args(machine.hardware.qemu());
    qemu.arg("-kernel").arg(&machine.vmlinuz);
    qemu.arg("-initrd").arg(parts.initrd);
    qemu.arg("-append")
        .arg(machine.hardware.kernel_line(job.keep_going));
    qemu.arg("-serial")
        .arg(format!("file:{}", parts.console.display()));
    for (tag, path) in [
        ("root", machine.tree.as_path()),
        ("project", machine.project.as_path()),
        ("modules", parts.modules),
    ] {
        // A comma in a path is doubled for QEMU.
        let path = path.to_string_lossy().replace(',', ",,");
        qemu.arg("-fsdev").arg(format!(
            "local,id={tag},path={path},security_model=none,readonly=on,multidevs=remap"
        ));
        qemu.arg("-device")
            .arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
    qemu.args(["-device", "virtio-serial-pci"]);
    for (index, link) in parts.links.iter().enumerate() {
        qemu.arg("-chardev").arg(format!(
            "socket,id=port{index},path={}",
            link.socket.display()
        ));
        qemu.arg("-device").arg(format!(
            "virtserialport,chardev=port{index},name={}",
            link.name
        ));
    }
    if let Some(socket) = parts.device {
        // A root port as fast as the device: on the root bus QEMU hides the link.
        qemu.args([
            "-device",
            "pcie-root-port,id=root_port,hotplug=off,x-speed=32,x-width=16",
        ]);
        let device = serde_json::json!({
            "driver": "vfio-user-pci",
            "bus": "root_port",
            "socket": { "type": "unix", "path": socket },
        });
        qemu.arg("-device").arg(device.to_string());
    }
    qemu
}

#[cfg(test)]
mod tests {
    use super::super::tests::{job, machine};
    use super::*;

    #[test]
    fn links_and_device_follow_the_hardware() {
        let dir = tempfile::tempdir().unwrap();
        let link = |name: &str| Link {
            name: name.to_owned(),
            socket: dir.path().join(name),
        };
        let links = [link("a"), link("b")];
        let device = dir.path().join("vfio-user");
        let parts = Parts {
            initrd: dir.path(),
            modules: dir.path(),
            console: dir.path(),
            links: &links,
            device: Some(&device),
        };
        let words = |job: &Job| -> Vec<String> {
            command(machine(dir.path()), job, &parts)
                .get_args()
                .map(|word| word.to_string_lossy().into_owned())
                .collect()
        };
        let place = |words: &[String], part: &str| {
            let found = words.iter().position(|word| word.contains(part));
            found.unwrap_or_else(|| panic!("{part} is not in {words:?}"))
        };
        let ends = words(&job());
        // QEMU wants the IOMMU before what it serves.
        assert!(place(&ends, "intel-iommu") < place(&ends, "vfio-user-pci"));
        place(&ends, "virtserialport,chardev=port0,name=a");
        place(&ends, "virtserialport,chardev=port1,name=b");
        place(&ends, "oops=panic");
        let goes_on = words(&Job {
            keep_going: true,
            ..job()
        });
        assert!(!goes_on.iter().any(|word| word.contains("oops=panic")));
    }
}
