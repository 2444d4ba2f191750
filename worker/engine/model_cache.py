"""The loaded models, each with its runner. Evicts the least recently used."""

from __future__ import annotations

import gc
import logging
import time
from typing import TYPE_CHECKING

from worker.config.models import is_local
from worker.engine.timed_call import TimedCall
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from worker.config.models import ModelSpec
    from worker.engine.model_loader import LoadedModel
    from worker.engine.runner import Runner

logger = logging.getLogger(__name__)


class ModelCache:
    """Runners by the alias of their model, loaded when first needed. Only for the engine's thread.

    A model of the hub is downloaded on another thread, so that the jobs of other models go on. It
    is loaded on the engine's thread, while nothing else runs: diffusers changes torch's default
    type and its modules' constructor for the whole process meanwhile.
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        load: Callable[[ModelSpec], LoadedModel],
        max_models: int,
        max_batch_rows: int | None,
        *,
        load_timeout_s: float,
        fetch: Callable[[ModelSpec], object],
    ) -> None:
        """`load` returns a model on its device; `fetch` downloads its files before."""
        self.capacity = max_models
        self._specs, self._load, self._max_batch_rows = specs, load, max_batch_rows
        self._fetch, self._load_timeout_s = fetch, load_timeout_s
        #: Models whose files are on this machine, and those that are being downloaded.
        self._fetched: set[str] = set()
        self._fetchings: dict[str, TimedCall] = {}
        #: Least recently used first.
        self._runners: dict[str, Runner] = {}
        #: Begin and end of the last loading of each model, on the monotonic clock.
        self._load_times_s: dict[str, tuple[float, float]] = {}
        #: The model that is loaded now, and since when.
        self._loading: tuple[str, float] | None = None
        #: End of the last loading, successful or not.
        self.load_ended_s = float("-inf")

    @property
    def overdue_s(self) -> float | None:
        """Seconds that the current loading has taken beyond its limit, at least 0.

        None when no model is loading. Any thread.
        """
        if (loading := self._loading) is None:
            return None
        return max(0.0, time.perf_counter() - loading[1] - self._load_timeout_s)

    def loading_s(self, alias: str) -> float | None:
        """Seconds since a model's download or loading began, None without one. Any thread."""
        fetching, loading = self._fetchings.get(alias), self._loading
        began_s = fetching.began_s if fetching is not None else None
        if loading is not None and loading[0] == alias:
            began_s = loading[1]
        return None if began_s is None else time.perf_counter() - began_s

    @property
    def downloads_s(self) -> dict[str, float]:
        """Seconds since each unfinished download began, by the model's alias. Any thread."""
        now_s = time.perf_counter()
        return {alias: now_s - each.began_s for alias, each in list(self._fetchings.items())}

    def is_fetched(self, alias: str) -> bool:
        """Whether a model's files are on this machine; begins to download them if not.

        Meanwhile the model takes no room. Raises what downloading raised; then it is tried again.
        """
        if alias in self._fetched:
            return True
        if alias not in self._fetchings:
            spec = self._specs[alias]
            if is_local(spec.path):
                self._fetched.add(alias)
                return True
            self._fetchings[alias] = TimedCall(
                alias, lambda: self._fetch(spec), self._load_timeout_s
            )
        if not self._fetchings[alias].is_over:
            return False
        self._fetchings.pop(alias).check()
        self._fetched.add(alias)
        return True

    def get(self, alias: str, busy: Collection[str] = ()) -> Runner:
        """A model's runner, loaded if needed; evicts no `busy` model. Raises `ModelLoadError`."""
        if alias not in self._runners:
            self._build(alias, busy)
        self._runners[alias] = self._runners.pop(alias)
        return self._runners[alias]

    def load_wait_s(self, alias: str, since_s: float) -> float:
        """Seconds of the model's loading that fall after `since_s`."""
        began_s, ended_s = self._load_times_s[alias]
        return max(0.0, ended_s - max(began_s, since_s))

    def offload_idle(self) -> None:
        """Move offloaded models off the device, when no job is left."""
        for runner in self._runners.values():
            runner.offload_idle()

    def free_memory(self) -> None:
        """Release unused cached memory of the device, which other processes may share."""
        import torch  # noqa: PLC0415  # takes seconds to import

        gc.collect()
        torch.cuda.empty_cache()  # does nothing before CUDA is used

    def clear(self) -> None:
        """Drop all models."""
        self._runners.clear()

    def _build(self, alias: str, busy: Collection[str]) -> None:
        from worker.engine.runner import Runner  # noqa: PLC0415  # imports torch

        began_s = time.perf_counter()
        self._loading = alias, began_s
        try:
            idle = [each for each in self._runners if each not in busy]
            while len(self._runners) >= self.capacity and idle:
                self._evict(idle.pop(0))
            model = self._load(self._specs[alias])
            try:
                self._runners[alias] = Runner(model, self._max_batch_rows)
            except Exception as error:
                message = f"model {alias!r} was loaded but can't run here: {error}"
                raise ModelLoadError(message[:2000]) from error
        finally:
            self.load_ended_s = time.perf_counter()
            self._loading = None
        self._load_times_s[alias] = began_s, self.load_ended_s

    def _evict(self, alias: str) -> None:
        logger.info("evicted model %s to load another", alias)
        self._runners.pop(alias).close()
        self.free_memory()
