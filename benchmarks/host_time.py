"""Time of the engine's thread in its rounds outside of the networks: what Python and samplers cost.

`Batch.step` and the calls of UNet, VAE and text encoder are wrapped, in this process only. SAG's
attention runs inside of the UNet's forward and counts as the network's. On a GPU the calls return
before the device is done, so these times say nothing there.
"""

from __future__ import annotations

import threading
import time
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from worker.engine.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


class HostTime:
    """Adds up the rounds of this process's engine and, in them, the calls of its networks."""

    def __init__(self) -> None:
        """Wrap the round; `watch` wraps the networks when they are loaded."""
        #: Held during a round, which ends after the last result was set.
        self._round = threading.Lock()
        self._rounds_s = self._networks_s = 0.0
        self._unet_calls = 0
        step = self._round_timed(Batch.step)
        Batch.step = step  # type: ignore[assignment, method-assign]  # for this process

    def watch(self, pipeline: Any) -> None:  # noqa: ANN401  # a diffusers pipeline
        """Wrap the calls of its networks."""
        for network, name in (
            (pipeline.unet, "forward"),
            (pipeline.vae, "decode"),
            (pipeline.text_encoder, "forward"),
        ):
            calls = int(network is pipeline.unet)
            setattr(network, name, self._network_timed(getattr(network, name), calls))

    def begin(self) -> None:
        """Forget everything until now."""
        with self._round:
            self._rounds_s = self._networks_s = 0.0
            self._unet_calls = 0

    def ms_a_round(self) -> float | None:
        """For each UNet call since `begin`; None without one. Waits for the end of the round."""
        with self._round:
            if not self._unet_calls:
                return None
            return 1000 * (self._rounds_s - self._networks_s) / self._unet_calls

    def _round_timed(self, step: Callable[[Batch], bool]) -> Callable[[Batch], bool]:
        @wraps(step)
        def timed(batch: Batch) -> bool:
            with self._round:
                began_s = time.perf_counter()
                try:
                    return step(batch)
                finally:
                    self._rounds_s += time.perf_counter() - began_s

        return timed

    def _network_timed(
        self, call: Callable[Arguments, Returned], unet_calls: int
    ) -> Callable[Arguments, Returned]:
        @wraps(call)
        def timed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
            began_s = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._networks_s += time.perf_counter() - began_s
                self._unet_calls += unet_calls

        return timed
