"""The models that are loaded, each with its runner; the one longest unused makes room."""

from __future__ import annotations

import gc
import logging
import time
from typing import TYPE_CHECKING

from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from worker.config.models import ModelSpec
    from worker.engine.model_loader import LoadedModel
    from worker.engine.runner import Runner

logger = logging.getLogger(__name__)


class ModelCache:
    """Runners by the alias of their model, built on first use, on the engine's thread alone."""

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        load: Callable[[ModelSpec], LoadedModel],
        max_models: int,
        max_batch_rows: int | None,
    ) -> None:
        self.capacity = max_models
        self._specs, self._load, self._max_batch_rows = specs, load, max_batch_rows
        #: In the order of their last use.
        self._ready: dict[str, Runner] = {}
        #: When the last build began and ended, on the monotonic clock.
        self._built_s: dict[str, tuple[float, float]] = {}
        self._loading_since_s: float | None = None
        #: When the last build ended, also one that failed.
        self.loaded_s = float("-inf")

    @property
    def loading_s(self) -> float | None:
        """Seconds for which a model has been in the making, None when none is."""
        since_s = self._loading_since_s
        return None if since_s is None else time.perf_counter() - since_s

    def get(self, alias: str, at_work: Collection[str] = ()) -> Runner:
        """The runner of a model; raises `ModelLoadError`. Models at work don't make room."""
        if alias not in self._ready:
            self._build(alias, at_work)
        self._ready[alias] = self._ready.pop(alias)
        return self._ready[alias]

    def build_s(self, alias: str, since_s: float) -> float:
        """Seconds of the model's build that somebody who has waited `since_s` has waited for."""
        began_s, ended_s = self._built_s[alias]
        return max(0.0, ended_s - max(began_s, since_s))

    def rest(self) -> None:
        """Nothing is left to do for now."""
        for runner in self._ready.values():
            runner.rest()

    def free_memory(self) -> None:
        """Give what no tensor holds back to the device."""
        from worker.engine.runner import free_memory  # noqa: PLC0415  # see `_build`

        gc.collect()
        for device in {runner.model.device for runner in self._ready.values()}:
            free_memory(device)

    def clear(self) -> None:
        """Let all models go."""
        self._ready.clear()

    def _build(self, alias: str, at_work: Collection[str]) -> None:
        from worker.engine.runner import Runner  # noqa: PLC0415  # torch, with the first task only

        began_s = self._loading_since_s = time.perf_counter()
        try:
            idle = [each for each in self._ready if each not in at_work]
            while len(self._ready) >= self.capacity and idle:
                self._evict(idle.pop(0))
            model = self._load(self._specs[alias])
            try:
                self._ready[alias] = Runner(model, self._max_batch_rows)
            except Exception as error:
                message = f"model {alias!r} was loaded but can't run here: {error}"
                raise ModelLoadError(message[:2000]) from error
        finally:
            self.loaded_s = time.perf_counter()
            self._loading_since_s = None
        self._built_s[alias] = began_s, time.perf_counter()

    def _evict(self, alias: str) -> None:
        from worker.engine.runner import free_memory  # noqa: PLC0415  # see `_build`

        logger.info("model %s makes room for another", alias)
        device = self._ready[alias].model.device
        self._ready.pop(alias).close()
        gc.collect()
        free_memory(device)
