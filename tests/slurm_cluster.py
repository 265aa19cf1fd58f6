"""A real SLURM of two nodes on loopback, started and stopped by hand: needs root, Debian's slurm-wlm and munge.

Everything lies in one folder: configuration, keys, state, logs, and where accounting is asked for (Debian's slurmdbd
and mariadb-server) its database. No systemd, no cgroups.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

NODES = ("127.0.0.2", "127.0.0.3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")

CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={root}/munge.socket,cred_expire=5
SlurmctldPort={port}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/log/slurmctld
SlurmdLogFile={root}/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
MaxArraySize={max_array}
SlurmdTimeout=20
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={root}/munge.socket
AccountingStorageEnforce=associations,limits,qos,wckeys
TrackWCKey=yes
"""

DATABASE = """
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
TrackWCKey=yes
PidFile={root}/slurmdbd.pid
LogFile={root}/log/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage}
StorageUser=slurm
StoragePass=slurm
"""


def missing(programs: tuple[str, ...] = PROGRAMS) -> str:
    """Why no cluster can be started here; '' if one can."""
    lacking = [name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: slurm-wlm, munge, slurmdbd, mariadb-server)"
    return "" if os.geteuid() == 0 else "needs root"


class Cluster:
    """``cpus``: of each node, whatever the machine has. ``accounting``: with a database of accounts, limits and wckeys
    that are enforced; ``account`` fills it."""

    def __init__(self, root: Path, cpus: int = 2, max_array: int = 1001, accounting: bool = False):
        self.root, self.processes, self.killed = root, dict[str, subprocess.Popen[bytes]](), dict[str, float]()
        root.chmod(0o711)  # munged insists that its socket can be reached
        for folder in ("state", "spool", "log"):
            (root / folder).mkdir(parents=True)
        self.accounting = accounting
        *ports, self.database, self.storage = free_ports(3 + len(NODES))
        lines = [CONFIGURATION.format(root=root, port=ports[0], max_array=max_array)]
        for node, port in zip(NODES, ports[1:], strict=True):
            lines.append(f"NodeName={node} NodeHostname=localhost Port={port} CPUs={cpus} RealMemory=4000\n")
        lines.append(
            ACCOUNTING.format(root=root, port=self.database)
            if accounting
            else "AccountingStorageType=accounting_storage/none\n"
        )
        self.configuration = root / "slurm.conf"
        self.configuration.write_text("".join([*lines[1:], lines[0]]))
        key = root / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        self.environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        self.environment["PATH"] += ":/usr/sbin"

    def start(self) -> None:
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        self._spawn("munged", "munged", "-F", *(f"--{key}={self.root / name}" for key, name in files.items()))
        until(lambda: (self.root / "munge.socket").exists(), "munged's socket")
        if self.accounting:
            self.start_accounting()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        until(lambda: self.run("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * len(NODES), "idle nodes")

    def start_accounting(self) -> None:
        """The database, its daemon, and this cluster in it."""
        data, socket_ = self.root / "mariadb", self.root / "mariadb.socket"
        options = ["--no-defaults", f"--datadir={data}", "--user=root"]
        made = ["mariadb-install-db", *options, "--skip-test-db", "--auth-root-authentication-method=normal"]
        subprocess.run(made, check=True, capture_output=True, timeout=120)
        network = ["--bind-address=127.0.0.1", f"--port={self.storage}", f"--socket={socket_}"]
        self._spawn("mariadbd", "mariadbd", *options, *network, "--innodb-buffer-pool-size=32M")
        until(socket_.exists, "MariaDB's socket", 60)
        grant = (
            "CREATE USER slurm@localhost IDENTIFIED BY 'slurm'; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm';"
        )
        grant += "GRANT ALL ON *.* TO slurm@localhost; GRANT ALL ON *.* TO slurm@'127.0.0.1';"
        subprocess.run(["mariadb", "--no-defaults", f"--socket={socket_}", "-e", grant], check=True, timeout=60)
        file = self.root / "slurmdbd.conf"  # slurmdbd looks for it beside slurm.conf, and wants it for itself
        file.write_text(DATABASE.format(root=self.root, port=self.database, storage=self.storage))
        file.chmod(0o600)
        self._spawn("slurmdbd", "slurmdbd", "-D")
        until(lambda: "Cluster" in self.run("sacctmgr", "show", "cluster"), "slurmdbd", 60)
        self.account("add", "cluster", "test")

    def account(self, *command: str) -> None:
        """A change to the accounting database."""
        done = subprocess.run(
            ["sacctmgr", "-i", *command], env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start_controller(self) -> None:
        self._spawn("slurmctld", "slurmctld", "-D")
        until(lambda: "UP" in self.run("scontrol", "ping"), "the controller")

    def start_node(self, node: str) -> None:
        (self.root / "spool" / node).mkdir(exist_ok=True)
        self._spawn(node, "slurmd", "-D", "-N", node)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """A node by its name, 'slurmctld' or 'munged'."""
        process = self.processes[name]
        process.send_signal(number)
        process.wait(20)
        del self.processes[name]
        self.killed[name] = time.monotonic()

    def started(self) -> Iterator[tuple[int, dict[str, str]]]:
        """(process, environment) of all that the jobs of this cluster have started."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (folder / "environ").read_bytes().decode(errors="replace")
                values = dict(line.split("=", 1) for line in environment.split("\0") if "=" in line)
                if values.get("SLURM_CONF") == str(self.configuration) and "SLURM_JOB_ID" in values:
                    yield int(folder.name), values

    def power_off(self, node: str) -> None:
        """Kill what its jobs have started there, and first what would tell the controller of it; until nothing is left,
        as one may have been starting."""
        quiet = 0
        while quiet < 3:
            pids = [pid for pid, values in self.started() if values.get("SLURMD_NODENAME") == node]
            quiet = 0 if pids else quiet + 1
            for pid in sorted({parent_of(pid) for pid in pids}):
                with suppress(OSError):
                    if pid and "slurmstepd" in Path(f"/proc/{pid}/cmdline").read_text():
                        os.kill(pid, signal.SIGKILL)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def run(self, *command: str) -> str:
        """Standard output; '' if the command failed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    def stop(self) -> None:
        """Jobs first, because what a job started outlives its slurmd; munged last."""
        try:
            if "slurmctld" in self.processes:
                self.run("scancel", "--user=root")
                until(lambda: not self.run("squeue", "-h").strip(), "an empty queue", seconds=60)
        finally:
            for name in [*NODES, "slurmctld", "slurmdbd", "mariadbd", "munged"]:
                if name in self.processes:
                    self.end(name)

    def end(self, name: str) -> None:
        """Gently, and if that does not help, not."""
        try:
            self.kill(name, signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self.kill(name)

    def _spawn(self, name: str, *command: str) -> None:
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )


def parent_of(pid: int) -> int:
    """0 if it has gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def until(true: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
