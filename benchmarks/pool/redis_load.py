"""What Redis says of its own work between two moments: commands, processor time, bytes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from api_contracts.redis_io import scripts

if TYPE_CHECKING:
    from redis import Redis

#: Commands that take longer are in Redis's slow log, in microseconds.
SLOW_US = 500
#: Packages with scripts.
PACKAGES = ("api_contracts.redis_io", "worker.broker", "worker.record")
#: Commands of the measurement itself.
OWN = frozenset({"info", "config", "slowlog"})


@dataclass(frozen=True)
class Snapshot:
    """Redis's counters at one moment."""

    at_s: float
    #: Calls and microseconds by command; those of scripts count twice: as EVALSHA's, too.
    commands: dict[str, tuple[int, int]]
    #: Processor time in seconds: of the thread that serves commands, and of rewriting children.
    main_s: float
    children_s: float
    in_bytes: int
    out_bytes: int
    connections: int
    memory_bytes: int

    @classmethod
    def of(cls, redis: Redis) -> Snapshot:
        """The counters now."""
        info: dict[str, Any] = redis.info("all")
        commands = {
            name.removeprefix("cmdstat_"): (each["calls"], each["usec"])
            for name, each in info.items()
            if name.startswith("cmdstat_")
        }
        return cls(
            time.monotonic(),
            {name: each for name, each in commands.items() if name.partition("|")[0] not in OWN},
            info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"],
            info["used_cpu_user_children"] + info["used_cpu_sys_children"],
            info["total_net_input_bytes"],
            info["total_net_output_bytes"],
            info["connected_clients"],
            info["used_memory"],
        )


@dataclass(frozen=True)
class Load:
    """Redis's work between two snapshots."""

    before: Snapshot
    after: Snapshot

    @property
    def seconds(self) -> float:
        """Between the two."""
        return self.after.at_s - self.before.at_s

    @property
    def commands(self) -> dict[str, tuple[int, int]]:
        """Calls and microseconds by command, the most expensive first; inner ones are EVALSHA's."""
        found = {}
        for name, (calls, usec) in self.after.commands.items():
            calls_before, usec_before = self.before.commands.get(name, (0, 0))
            if calls > calls_before:
                found[name] = calls - calls_before, usec - usec_before
        return dict(sorted(found.items(), key=lambda each: -each[1][1]))

    @property
    def calls(self) -> int:
        """All commands, those inside of scripts and their EVALSHA included."""
        return sum(calls for calls, _ in self.commands.values())

    @property
    def main_s(self) -> float:
        """Processor time of the thread that serves commands."""
        return self.after.main_s - self.before.main_s

    @property
    def core_share(self) -> float:
        """The same as a share of one core."""
        return self.main_s / self.seconds

    @property
    def network_bytes(self) -> int:
        """Received and sent."""
        before, after = self.before, self.after
        return after.in_bytes + after.out_bytes - before.in_bytes - before.out_bytes


def watch_slow(redis: Redis) -> None:
    """Begin a new slow log."""
    redis.config_set("slowlog-log-slower-than", SLOW_US)
    redis.config_set("slowlog-max-len", 1024)
    redis.slowlog_reset()


def longest(redis: Redis) -> tuple[str, float]:
    """The longest command of the slow log, a script by its name, and its milliseconds."""
    found: list[dict[str, Any]] = redis.slowlog_get(1024)
    ours = [each for each in found if _name(each["command"]).lower() not in OWN]
    if not ours:
        return f"none above {SLOW_US / 1000:g} ms", 0.0
    slowest = max(ours, key=lambda each: each["duration"])
    return _name(slowest["command"]), slowest["duration"] / 1000


def _name(command: bytes) -> str:
    name, _, rest = command.decode(errors="replace").partition(" ")
    if name.upper() != "EVALSHA":
        return name
    return script_names().get(rest.partition(" ")[0], "another script") + ".lua"


@cache
def script_names() -> dict[str, str]:
    """The names of all scripts by their digest."""
    return {
        scripts.read(package, name).sha: name
        for package in PACKAGES
        for each in files(package).joinpath("lua").iterdir()
        if (name := each.name.removesuffix(".lua"))
    }
