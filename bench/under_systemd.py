"""The unit under a real systemd: started with its credential, in its sandbox, reloaded, stopped, killed, hung, and
started on a disk that takes nothing.

A second systemd runs as process 1 of namespaces of its own, over a root whose changes stay in memory, without a network
but for the loopback; the machine's own services notice nothing. Needs root, Mosquitto, and systemd installed (it need
not be what the machine runs). With control groups of the first version, memory limits are not enforced in it.

    sudo python bench/under_systemd.py
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from support import row

from demo.broker import find_mosquitto

ROOT = Path(__file__).parents[1]
SYSTEMD = "/lib/systemd/systemd"
SECRET = "bench-secret"  # noqa: S105 - for a broker that is asked by nobody else
HANG_S = 90.0
"""More than ``WatchdogSec`` and ``RestartSec``."""

STATION = """\
station: {network: XX, station: SLOPE}
source: {kind: simulator, speed: 5, rates: {slopequakes_per_hour: 60, rockfalls_per_hour: 30}}
mqtt: {host: 127.0.0.1, port: 1883, username: slope, password_file: /run/credentials/talus-agent.service/mqtt-password}
state_dir: /var/lib/talus
tunables: {reporting: {health_interval_s: 5}}
"""
TALUS = """\
#!/bin/sh
export PYTHONPATH=/opt/talus/source:/opt/talus/packages LD_LIBRARY_PATH=/opt/talus/python/lib
exec /opt/talus/python/bin/python3 -B -m agent "$@"
"""
UNWANTED = (
    "systemd-udevd.service systemd-udev-trigger.service systemd-tmpfiles-setup-dev.service"
    " systemd-tmpfiles-setup.service systemd-remount-fs.service systemd-sysctl.service systemd-modules-load.service"
    " systemd-firstboot.service systemd-sysusers.service systemd-binfmt.service systemd-random-seed.service"
    " systemd-timesyncd.service systemd-hwdb-update.service systemd-networkd-wait-online.service dev-hugepages.mount"
    " dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount"
    " sys-kernel-config.mount"
)
ENTER = """\
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$B"
mkdir "$B/up" "$B/work" "$B/root"
R="$B/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$B/up,workdir=$B/work" "$R"
mount -t proc proc "$R/proc"
mount -t sysfs sysfs "$R/sys"
mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
for name in run tmp var/lib opt etc/talus; do mkdir -p "$R/$name"; mount -t tmpfs -o mode=755 tmpfs "$R/$name"; done
mount -t tmpfs -o mode=755 tmpfs "$R/dev"
for name in null zero full random urandom tty; do touch "$R/dev/$name"; mount --bind "/dev/$name" "$R/dev/$name"; done
mkdir "$R/dev/pts" "$R/dev/shm"
ln -s /proc/self/fd "$R/dev/fd"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$R/dev/pts"
ln -s pts/ptmx "$R/dev/ptmx"
mount -t tmpfs tmpfs "$R/dev/shm"
mkdir -p "$R/opt/talus/bin" "$R/opt/talus/python" "$R/opt/talus/packages" "$R/opt/talus/source"
mount --bind "$PYTHON" "$R/opt/talus/python"
mount --bind "$PACKAGES" "$R/opt/talus/packages"
mount --bind "$SOURCE" "$R/opt/talus/source"
printf %s "$TALUS" > "$R/opt/talus/bin/talus"
chmod 755 "$R/opt/talus/bin/talus"
printf %s "$STATION" > "$R/etc/talus/station.yaml"
printf '%s\\n' "$SECRET" > "$R/etc/talus/mqtt-password"
mosquitto_passwd -c -b "$R/etc/talus/passwords" slope "$SECRET"
printf 'listener 1883 127.0.0.1\\nallow_anonymous false\\npassword_file /etc/talus/passwords\\nuser root\\n' \
    > "$R/etc/talus/mosquitto.conf"
chmod 600 "$R/etc/talus/mqtt-password" "$R/etc/talus/passwords"
rm -rf "$R/etc/systemd/system"
mkdir -p "$R/etc/systemd/system/talus-agent.service.d"
cd "$R/etc/systemd/system"
cp "$SOURCE/systemd/talus-agent.service" .
cp "$SOURCE/systemd/credentials.conf" talus-agent.service.d/
for name in $UNWANTED; do ln -s /dev/null "$name"; done
printf '[Service]\\nExecStart=%s -c /etc/talus/mosquitto.conf\\n' "$MOSQUITTO" > broker.service
printf '[Unit]\\nWants=broker.service systemd-journald.service\\n' > bench.target
echo 0123456789abcdef0123456789abcdef > "$R/etc/machine-id"
ip link set lo up
mkdir "$R/old"
cd "$R"
pivot_root . old
umount -l /old
mount --make-rshared /
container=other exec "$SYSTEMD" --system --unit=bench.target --log-target=journal --show-status=0
"""


class Machine:
    """The second systemd, from outside."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(self, *command: str) -> str:
        """A command in its namespaces: what it printed, errors included."""
        inside = ("nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-i", "-u", "-C", "-r", "-w")
        done = subprocess.run([*inside, *command], capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip()

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.run("systemctl", "show", "-p", name, "--value", "talus-agent")

    def journal(self) -> str:
        """All that the unit and systemd said about it."""
        return self.run("journalctl", "-u", "talus-agent", "--no-pager", "-o", "cat")

    def kill(self, number: signal.Signals) -> None:
        """A signal to the agent."""
        self.run("kill", f"-{number.value}", self.show("MainPID"))

    def wait_for(self, condition: object, timeout_s: float) -> bool:
        """Whether it comes true in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if condition():  # type: ignore[operator]
                return True
            time.sleep(0.3)
        return False

    @property
    def is_up(self) -> bool:
        return self.show("ActiveState") == "active" and self.journal().rfind("connected to") > self.journal().rfind(
            "Stopped "
        )


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Started, and ended with everything in it."""
    unified = next(path for path in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if path.is_dir())
    group = unified / f"talus-bench-{os.getpid()}"
    group.mkdir()
    with tempfile.TemporaryDirectory(prefix="talus-systemd-") as folder:
        env = {
            **os.environ, "B": folder, "PYTHON": sys.base_prefix, "PACKAGES": sysconfig.get_path("purelib"),
            "SOURCE": str(ROOT), "TALUS": TALUS, "STATION": STATION, "SECRET": SECRET, "UNWANTED": UNWANTED,
            "MOSQUITTO": str(find_mosquitto()), "SYSTEMD": SYSTEMD, "G": str(group),
        }  # fmt: skip
        script = 'echo $$ > "$G/cgroup.procs"; exec unshare -m -p -C -i -u -n --fork --kill-child sh -c "$1"'
        outer = subprocess.Popen(["sh", "-c", script, "sh", ENTER], env=env)
        try:
            yield Machine(_first_child(outer))
        finally:
            outer.kill()
            outer.wait()
            time.sleep(1.0)
            for path in sorted(group.rglob("*/"), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()


def _first_child(outer: subprocess.Popen[bytes]) -> int:
    """Process 1 of the namespaces, once it is systemd."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and outer.poll() is None:
        time.sleep(0.2)
        for word in Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split():
            if Path(f"/proc/{word}/comm").read_text().strip() == "systemd":
                time.sleep(3.0)
                return int(word)
    raise SystemExit("the second systemd did not start")


def main() -> int:
    if os.geteuid() != 0 or not Path(SYSTEMD).exists() or find_mosquitto() is None or shutil.which("unshare") is None:
        print("needs root, systemd, mosquitto and unshare", file=sys.stderr)
        return 2
    met: list[bool] = []

    def must(name: str, value: object, goal: str, is_met: bool) -> None:
        met.append(is_met)
        row(name, str(value), goal, is_met)

    with machine() as box:
        row("systemd", box.run("systemctl", "--version").split("\n")[0])
        began = time.monotonic()
        box.run("systemctl", "start", "talus-agent")
        must("systemctl start returns when it watches", f"{time.monotonic() - began:.1f} s", "active",
             box.show("ActiveState") == "active")  # fmt: skip
        must("connected with the password of LoadCredential", "", "", box.wait_for(lambda: box.is_up, 20))
        status = box.run("cat", f"/proc/{box.show('MainPID')}/status")
        found = {name: re.search(rf"^{name}:\s+(\S+)", status, re.MULTILINE) for name in ("Uid", "CapEff", "Seccomp")}
        values = {name: match[1] if match else "?" for name, match in found.items()}
        boxed = values["Uid"] not in ("0", "?") and not values["CapEff"].strip("0") and values["Seccomp"] == "2"
        must("user, capabilities, system call filter", values, "no root, none, 2", boxed)
        time.sleep(70)
        must("alive after WatchdogSec", box.show("NRestarts") + " restarts", "0", box.show("NRestarts") == "0")
        open_to_others = box.run("find", "/var/lib/private/talus", "-perm", "/077")
        must("state readable by others", open_to_others or "none", "none", not open_to_others)
        box.run("sed", "-i", "s/health_interval_s: 5/health_interval_s: 6/", "/etc/talus/station.yaml")
        box.run("systemctl", "reload", "talus-agent")
        must("reload (SIGHUP)", "", "read anew", box.wait_for(lambda: "was read anew" in box.journal(), 5))
        began = time.monotonic()
        box.run("systemctl", "stop", "talus-agent")
        took = time.monotonic() - began
        must("systemctl stop", f"{took:.1f} s", "<= 5", took <= 5 and box.show("Result") == "success")
        box.run("systemctl", "start", "talus-agent")
        box.kill(signal.SIGKILL)
        must(
            "again after SIGKILL", "", "1 restart", box.wait_for(lambda: box.is_up and box.show("NRestarts") == "1", 30)
        )
        box.kill(signal.SIGSTOP)
        again = box.wait_for(lambda: box.show("NRestarts") == "2" and box.is_up, HANG_S)
        must("again after a hang", "", "2 restarts", again and "watchdog" in box.journal().lower())
        for how, words, goal in (
            ("ro", "takes nothing (Read-only file system)", "works in memory"),
            ("rw", "is well again", "carried back"),
        ):
            box.run("systemctl", "stop", "talus-agent")
            failed = box.run("mount", "-o", f"remount,{how}", "/var/lib")
            box.run("systemctl", "start", "talus-agent")
            up = not failed and box.wait_for(lambda words=words: box.is_up and words in box.journal(), 30)
            must(f"started with /var/lib mounted {how}", failed, goal, up)
        if not all(met):
            print(box.journal(), file=sys.stderr)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
