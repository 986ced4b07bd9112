# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""An IPoIB interface with an address: rdma_cm finds an InfiniBand device by one."""

import os
import subprocess
import time

from conformance import SYSFS

# Of the block for documentation (RFC 5737): no network that the machine is in.
ADDRESS = "192.0.2.1/24"
MODULES = "ib_ipoib", "rdma_ucm"


def run(*command):
    """Runs a command that must succeed; returns what it says."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_infiniband(dev):
    """Is port 1 of DEV an InfiniBand port?"""
    with open(f"{SYSFS}/{dev}/ports/1/link_layer", encoding="ascii") as file:
        return file.read().strip() == "InfiniBand"


def interfaces(dev):
    """The network interfaces of DEV's function."""
    folder = f"{SYSFS}/{dev}/device/net"
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def has_address(name):
    """Has the interface an IPv4 address?"""
    return bool(run("ip", "-4", "-oneline", "address", "show", "dev", name).strip())


class Interface:
    """`with Interface(DEV)`: DEV has an IPoIB interface with an address, and only as long as
    this lasts if it had none before. `why_not` says why it has none, and is empty if it has."""

    def __init__(self, dev):
        self.dev = dev
        self.loaded = []
        self.why_not = ""

    def __enter__(self):
        try:
            self.bring_up()
        except subprocess.CalledProcessError as error:
            self.why_not = f"{' '.join(error.cmd)}: {error.stderr.strip()}"
        return self

    def bring_up(self):
        """Loads what is needed, and waits for the interface's carrier."""
        if not is_infiniband(self.dev):
            self.why_not = f"{self.dev} is not InfiniBand"
            return
        for module in MODULES:
            if not os.path.isdir(f"/sys/module/{module}"):
                run("modprobe", module)
                self.loaded.append(module)
        names = interfaces(self.dev)
        if not names:
            self.why_not = f"{self.dev} has no network interface"
            return
        name = names[0]
        if not has_address(name):
            run("ip", "address", "add", ADDRESS, "dev", name)
        run("ip", "link", "set", name, "up")
        self.wait_for_carrier(name)

    def wait_for_carrier(self, name, seconds=30):
        """IPoIB has a carrier once it has joined the broadcast group."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with open(f"/sys/class/net/{name}/operstate", encoding="ascii") as file:
                if file.read().strip() == "up":
                    return
            time.sleep(0.1)
        self.why_not = f"{name} has no carrier"

    def __exit__(self, *_):
        for module in self.loaded:
            subprocess.run(["modprobe", "-r", module], check=False)
