"""The environment variables that our parts need, decided here and nowhere else, each with its reason."""

import os
import site
import sys
from pathlib import Path

from cluster.ports import free_port
from cluster.storage import HOME_VARIABLE, home

PACKAGES = ("cluster", "training", "tuning", "serving")


def environment() -> dict[str, str]:
    """The environment variables that our parts need on every machine, each with its reason.

    A variable that the user has set keeps the user's value. ``RAY_AUTH_MODE`` is not among them: Ray itself turns
    token authentication on for a local session, and nothing here ever turns it off.
    """
    return {
        # A worker has another working directory, and `.headrace` there would be another home.
        HOME_VARIABLE: str(home()),
        # Serve behind HAProxy answers several times as many requests as behind its Python proxy, and our edge counts
        # on the way it limits queues. Serve reads this when it is imported.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # A thread that waits for the others of a matrix product spins for less than a millisecond, then sleeps. Where
        # something else runs on these cores, spinning for several, as OpenMP has it, takes from it the very time that
        # the product waits for; where nothing does, sleeping between any two of a small model's many products makes
        # each of them late.
        "GOMP_SPINCOUNT": "30000",
        # No usage report leaves the company's machines: Ray, Hugging Face, Daft and MLflow each send one unasked.
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DAFT_ANALYTICS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Daft's bars would write over ours, from every worker.
        "DAFT_PROGRESS_BAR": "0",
        # The pattern by which trials and workers are launched here is that of Train V2.
        "RAY_TRAIN_V2_ENABLED": "1",
        # A worker's next checkpoint and a run's end wait until Ray looks again, which it does every 2 s by itself.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
        # Workers stay in the folder they start in, so that a relative path means one place in a whole run.
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # Under `uv run` Ray would pack and upload the working directory, data and all; how code travels is ours.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # Said explicitly, it spares the warning about forks: our workers are started anew, never forked.
        "TOKENIZERS_PARALLELISM": "true",
        # A head that is not in the base model is expected here; transformers would warn at each load.
        "TRANSFORMERS_VERBOSITY": "error",
        # Colour codes do not belong in the lines of workers that a pipe or CI keeps.
        "RAY_COLOR_PREFIX": "1" if sys.stderr.isatty() else "0",
    }


def prepare_environment() -> None:
    """Sets what ``environment`` names and the user has not set. Cheap; best called before Ray is imported."""
    for name, value in environment().items():
        os.environ.setdefault(name, value)
    os.environ[HOME_VARIABLE] = str(home())  # absolute, even where the user's own value is relative


def local_environment(folder: Path) -> dict[str, str]:
    """What only a session on this machine needs: two of them, or another user's, must not meet.

    Args:
        folder: private to the user, with a short path.
    """
    proxy = folder / f"proxy-{os.getpid()}"
    variables = {
        # The process that watches for nodes about to be taken away: here there is one, and it goes when we go.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # Serve's defaults are fixed ports and one folder in /tmp for everyone on the machine.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
    }
    unset = {name: value for name, value in variables.items() if name not in os.environ}
    if not is_installed_copy():
        # Workers inherit this and so import the same four packages, from whatever folder the command was started.
        before = os.environ.get("PYTHONPATH", "")
        unset["PYTHONPATH"] = os.pathsep.join(filter(None, (str(code_root()), before)))
    return unset


def code_root() -> Path:
    """The folder that holds the four packages and ``headrace.py``: the repository, or where the wheel is installed."""
    return Path(__file__).resolve().parent.parent


def is_installed_copy() -> bool:
    """Whether the code lies in ``site-packages``, where each interpreter of this environment finds it anyway."""
    folders = {Path(folder).resolve() for folder in (*site.getsitepackages(), site.getusersitepackages())}
    return code_root() in folders
