"""A worker that can write to the volumes of the manifests alone."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.deploy.manifests import container, overlay
from tests.service.conftest import check_events
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

pytestmark = pytest.mark.slow  # starts a worker

#: The folders of the manifests, and empty ones of every Linux that stand for them here.
STAND_INS = {"/tmp": "/tmp", "/home/sag": "/media", "/var/cache/huggingface": "/srv"}
#: In a mount namespace of its own: all file systems read-only, but for those folders.
READ_ONLY = """
set -e
mount --bind "$PWD" /var/tmp
for mounted in $(awk '{print $2}' /proc/self/mounts | sort -u); do
    case $mounted in /proc*|/sys*|/dev*) ;; *) mount -o remount,bind,ro "$mounted";; esac
done
for folder in $FOLDERS; do mount -t tmpfs tmpfs "$folder"; done
case $PWD in  # a checkout that one of the folders hides
    /tmp/*)
        mkdir -p "$PWD"; mount --bind /var/tmp "$PWD"; mount -o remount,bind,ro "$PWD"; cd "$PWD";;
esac
if touch /etc/sag-worker-test "$PWD/sag-worker-test" 2>/dev/null; then exit 3; fi
exec "$@"
"""
NAMESPACE = ["unshare", "--mount", "--propagation", "private", "bash", "-c", READ_ONLY, "bash"]
#: What the image sets.
IMAGE = {"PYTHONDONTWRITEBYTECODE": "1", "HOME": "/media", "HF_HOME": "/srv"}


@pytest.fixture
def folders() -> str:
    """What the worker may write to, by the manifest."""
    mounts = container(overlay("cpu"), "sag-worker")["volumeMounts"]
    return " ".join(STAND_INS[each["mountPath"]] for each in mounts)


def test_a_picture_is_made_on_a_read_only_root(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path, folders: str
) -> None:
    """Every path that a worker writes is a volume: sockets, metrics, caches, temporary files."""
    others = {**IMAGE, "FOLDERS": folders}
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("a mount namespace needs root")
    subprocess.run([*NAMESPACE, "true"], env={**os.environ, **others}, check=True)
    port = str(embedded.free_port())
    command = [*NAMESPACE, sys.executable, "-m", "worker", "run"]
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, command, others, metrics_port=port) as worker,
    ):
        task = worker.client.submit({"prompt": "a green ring", "num_inference_steps": 6})
        events = list(task.events(timeout=100))
        check_events(events)
        assert events[-1].type == "succeeded"
