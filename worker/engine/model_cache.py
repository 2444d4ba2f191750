"""The loaded models, each with its runner. Evicts the least recently used."""

from __future__ import annotations

import gc
import logging
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from api_contracts.request_types import MAX_LORAS
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from worker.config.models import ModelSpec
    from worker.engine.loaded_model import LoadedModel
    from worker.engine.runner import Runner

logger = logging.getLogger(__name__)


class ModelCache:
    """Runners by the alias of their model, loaded when first needed. Only for the engine's thread.

    Models are loaded on the engine's thread, while nothing else runs: diffusers changes torch's
    default type and its modules' constructor for the whole process meanwhile.
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        load: Callable[[ModelSpec], LoadedModel],
        max_models: int,
        max_batch_rows: int | None,
        max_adapters: int = MAX_LORAS,
    ) -> None:
        """`load` returns a model on its device."""
        self.capacity, self.max_adapters = max_models, max_adapters
        self._specs, self._load, self._max_batch_rows = specs, load, max_batch_rows
        #: Least recently used first.
        self._runners: dict[str, Runner] = {}
        #: Begin and end of the last loading of each model, on the monotonic clock.
        self._load_times_s: dict[str, tuple[float, float]] = {}
        #: The model that is loaded or measured now, and since when.
        self._loading: tuple[str, float] | None = None
        #: End of the last loading, successful or not.
        self.load_ended_s = float("-inf")

    @property
    def loading(self) -> tuple[str, float] | None:
        """The model that is being loaded, and for how many seconds, or None. Any thread."""
        if (loading := self._loading) is None:
            return None
        return loading[0], time.perf_counter() - loading[1]

    def is_loaded(self, alias: str) -> bool:
        """Whether a model is loaded now. Any thread."""
        return alias in self._runners

    def has_adapters(self, alias: str, names: Collection[str]) -> bool:
        """Whether a model is loaded now, and these of its adapters are."""
        runner = self._runners.get(alias)
        return runner is not None and runner.model.adapters.are_loaded(names)

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

    def is_measured(self, alias: str) -> bool:
        """Whether the rows of a loaded model's UNet call are known."""
        return self._runners[alias].unet.is_measured

    def measure(self, alias: str) -> None:
        """Measure the rows of a loaded model's UNet call, which counts as loading."""
        with self._as_loading(alias):
            self._runners[alias].unet.measure()

    def load_adapters(self, alias: str, names: Collection[str], busy: Collection[str]) -> float:
        """Load adapters of a loaded model, which counts as loading, beside those that are `busy`.

        Returns the seconds that it took; raises `ModelLoadError`.
        """
        model, began_s, took_s = self._runners[alias].model, time.perf_counter(), 0.0
        if not model.adapters.are_loaded(names):
            with self._as_loading(alias):
                model.adapters.load(
                    model.pipeline, self._specs[alias], names, busy, self.max_adapters
                )
            took_s = self.load_ended_s - began_s
        model.adapters.use(names)
        return took_s

    @property
    def offloads(self) -> bool:
        """Whether `make_room` may help a call that was out of memory."""
        return any(runner.model.residency is not None for runner in self._runners.values())

    def offload_idle(self) -> None:
        """Move offloaded models off the device, when no job is left."""
        for runner in self._runners.values():
            runner.offload_idle()

    def make_room(self) -> None:
        """After a call that failed: leave as much of the device's memory as possible to the next.

        With offload the networks leave the device; the next calls bring back those they need.
        """
        for runner in self._runners.values():
            runner.make_room()
        self.free_memory()

    def free_memory(self) -> None:
        """Release unused cached memory of the device, which other processes may share."""
        import torch  # noqa: PLC0415  # takes seconds to import

        gc.collect()
        torch.cuda.empty_cache()  # does nothing before CUDA is used

    def clear(self) -> None:
        """Drop all models."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()

    @contextmanager
    def _as_loading(self, alias: str) -> Iterator[None]:
        """What the engine's thread does meanwhile is no step of a job."""
        before, self._loading = self._loading, (alias, time.perf_counter())
        try:
            yield
        finally:
            self.load_ended_s = time.perf_counter()
            self._loading = before

    def _build(self, alias: str, busy: Collection[str]) -> None:
        from worker.engine.runner import Runner  # noqa: PLC0415  # imports torch

        began_s = time.perf_counter()
        with self._as_loading(alias):
            idle = [each for each in self._runners if each not in busy]
            while len(self._runners) >= self.capacity and idle:
                self._evict(idle.pop(0))
            model = self._load(self._specs[alias])
            try:
                compiling = partial(self._as_loading, alias)
                self._runners[alias] = Runner(model, self._max_batch_rows, compiling)
            except Exception as error:
                model.release()
                message = f"model {alias!r} was loaded but can't run here: {error}"
                raise ModelLoadError(message[:2000]) from error
        self._load_times_s[alias] = began_s, self.load_ended_s

    def _evict(self, alias: str) -> None:
        logger.info("evicted model %s to load another", alias)
        self._runners.pop(alias).close()
        self.free_memory()
