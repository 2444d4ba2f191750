"""The loaded models, each with its runner. Evicts the least recently used."""

from __future__ import annotations

import gc
import logging
import time
from typing import TYPE_CHECKING

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

    Files are read on other threads; what runs on the device is built here.
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        load: Callable[[ModelSpec], LoadedModel],
        max_models: int,
        max_batch_rows: int | None,
        load_timeout_s: float = 1800.0,
        fetch: Callable[[ModelSpec], object] | None = None,
    ) -> None:
        """`load` returns a model on its device; `fetch` downloads its files before, if it can."""
        self.capacity = max_models
        self._specs, self._load, self._max_batch_rows = specs, load, max_batch_rows
        self._load_timeout_s, self._fetch = load_timeout_s, fetch
        #: Models whose files are on this machine, and those that are being downloaded.
        self._fetched: set[str] = set() if fetch else set(specs)
        self._fetchings: dict[str, TimedCall[object]] = {}
        #: Least recently used first.
        self._runners: dict[str, Runner] = {}
        self._loadings: dict[str, TimedCall[LoadedModel]] = {}
        #: Begin and end of the last loading of each model, on the monotonic clock.
        self._load_times_s: dict[str, tuple[float, float]] = {}
        #: The model that is built on the engine's thread now.
        self._building: TimedCall[LoadedModel] | None = None
        #: End of the last building, successful or not.
        self.load_ended_s = float("-inf")

    @property
    def is_building(self) -> bool:
        """Whether the engine's thread is busy with a model that was loaded."""
        return self._building is not None

    def loading_s(self, alias: str) -> float | None:
        """Seconds since the model's loading began; None when it is not loading. Any thread."""
        building = self._building
        calls = self._fetchings.get(alias), self._loadings.get(alias), building
        began_s = [each.began_s for each in calls if each is not None and each.alias == alias]
        return time.perf_counter() - min(began_s) if began_s else None

    def get(self, alias: str) -> Runner:
        """The runner of a model that is loaded."""
        self._runners[alias] = self._runners.pop(alias)
        return self._runners[alias]

    def is_fetched(self, alias: str) -> bool:
        """Whether a model's files are on this machine; begins to download them if not.

        Meanwhile the model takes no room. Raises what downloading raised; then it is tried again.
        """
        if alias in self._fetched or self._fetch is None:
            return True
        fetching = self._fetchings.get(alias)
        if fetching is None:
            fetch, spec = self._fetch, self._specs[alias]
            self._fetchings[alias] = TimedCall(alias, lambda: fetch(spec), self._load_timeout_s)
            return False
        if not fetching.is_over:
            return False
        self._fetchings.pop(alias).take()
        self._fetched.add(alias)
        return True

    def request(self, alias: str, busy: Collection[str]) -> bool:
        """Whether the model is loaded; begins to load it if not. Raises what loading raised.

        Evicts no `busy` model. After an error the next request loads it again.
        """
        if alias in self._runners:
            return True
        loading = self._loadings.get(alias)
        if loading is None:
            self._make_room({*busy, *self._loadings})
            spec = self._specs[alias]
            self._loadings[alias] = TimedCall(alias, lambda: self._load(spec), self._load_timeout_s)
            return False
        if not loading.is_over:
            return False
        self._build(self._loadings.pop(alias))
        return True

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

    def _make_room(self, busy: Collection[str]) -> None:
        idle = [each for each in self._runners if each not in busy]
        while len(self._runners) + len(self._loadings) >= self.capacity and idle:
            self._evict(idle.pop(0))

    def _build(self, loading: TimedCall[LoadedModel]) -> None:
        from worker.engine.runner import Runner  # noqa: PLC0415  # imports torch

        self._building = loading
        try:
            model = loading.take()
            try:
                self._runners[loading.alias] = Runner(model, self._max_batch_rows)
            except Exception as error:
                message = f"model {loading.alias!r} was loaded but can't run here: {error}"
                raise ModelLoadError(message[:2000]) from error
        finally:
            self.load_ended_s = time.perf_counter()
            self._building = None
        self._load_times_s[loading.alias] = loading.began_s, self.load_ended_s

    def _evict(self, alias: str) -> None:
        logger.info("evicted model %s to load another", alias)
        self._runners.pop(alias).close()
        self.free_memory()
