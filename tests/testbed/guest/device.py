# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""What the device does beside ODP: devlink, the PCIe link, completions, resets."""

import json
import os
import time

import bed
import conformance
import traffic

# The driver looks at the device every 2 to 3 s (mlx5_core/health.c), then sets it up.
RECOVERY_SECONDS = 60


def pci_device(stack):
    """The PCI function of the RDMA device, in sysfs."""
    return os.path.realpath(f"{conformance.SYSFS}/{stack.dev}/device")


def read(path):
    """A file of sysfs."""
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def write(path):
    """Pulls a lever of sysfs."""
    with open(path, "w", encoding="ascii") as file:
        file.write("1")


def devlink(stack):
    """Registers that the device does not have are left out, not fatal."""
    name = "pci/" + os.path.basename(pci_device(stack))

    def lists(key):
        return lambda text: "" if name in json.loads(text)[key] else f"no {name} in {text}"
    stack.run("devlink info", "devlink", "-j", "dev", "info", name, check=lists("info"))
    stack.run("devlink params", "devlink", "-j", "dev", "param", "show", name,
              check=lists("param"))


def link(stack):
    """Nothing limits the link."""
    stack.emit("start", test="link")
    folder = pci_device(stack)
    now, most = ([read(f"{folder}/{which}_link_{what}") for what in ("speed", "width")]
                 for which in ("current", "max"))
    log = bed.command("dmesg").stdout
    detail = ""
    if now != most or most != ["32.0 GT/s PCIe", "16"]:
        detail = f"now {now}, at most {most}"
    elif "limited by" in log:
        detail = "the kernel says that the link is limited"
    stack.emit("result", test="link", ok=not detail, detail=detail)


def recovered(name):
    """How often the driver set the function up again after a fatal error, or None while it
    is at it."""
    done = bed.command("devlink", "-j", "health", "show", name, "reporter", "fw_fatal")
    if done.returncode:
        return None
    reporter = json.loads(done.stdout)["health"][name][0]
    return reporter["recover"] if reporter["state"] == "healthy" else None


def reset(stack):
    """A function-level reset under the bound driver, which finds out and recovers."""
    test = "reset"
    stack.emit("start", test=test)
    start = time.monotonic()
    folder = pci_device(stack)
    name = "pci/" + os.path.basename(folder)
    before = recovered(name)
    write(f"{folder}/reset")
    # Its commands end with the driver's recovery, and not after 60 s each.
    early = bed.command("timeout", "50", "ibv_devinfo", "-d", stack.dev)
    detail = "a command waits for ever" if early.returncode == 124 else ""
    while not detail and recovered(name) in (None, before):
        if time.monotonic() - start > RECOVERY_SECONDS:
            detail = f"the driver has not recovered after {RECOVERY_SECONDS} s"
        time.sleep(0.2)
    if not detail:
        stack.dev, detail = conformance.wait_for_port()
    stack.emit("result", test=test, ok=not detail, detail=detail,
               seconds=round(time.monotonic() - start, 3))


def replug(stack):
    """The function leaves the bus and comes back."""
    test = "remove and rescan"
    stack.emit("start", test=test)
    start = time.monotonic()
    write(f"{pci_device(stack)}/remove")
    left = os.listdir(conformance.SYSFS)
    write("/sys/bus/pci/rescan")
    stack.dev, detail = conformance.wait_for_port()
    if left:
        detail = f"still there after the removal: {left}"
    stack.emit("result", test=test, ok=not detail, detail=detail,
               seconds=round(time.monotonic() - start, 3))


def run(stack):
    """All of it; traffic after each time that the device was away."""
    devlink(stack)
    link(stack)
    stack.lines("completions", conformance.program("completions"), "--dev", stack.dev)
    traffic.with_itself(stack, "ib_send_lat -e", "ib_send_lat", "-e")
    traffic.with_itself(stack, "ib_send_bw -e", "ib_send_bw", "-e", "-n", "1000")
    reset(stack)
    traffic.pingpong(stack, "rc_pingpong after the reset")
    replug(stack)
    traffic.pingpong(stack, "rc_pingpong after the rescan")
