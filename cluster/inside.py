"""What runs on the cluster as a job: ``python -m cluster.inside FOLDER WORD…`` runs ``headrace WORD…`` in FOLDER.

Imports nothing but the standard library, and nothing of ours: it also has to work where our needs are not met.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PRIVATE = "private.json"
MARK = "headrace> "  # Ray keeps one log for stdout and stderr; lines of stdout carry this, so that `submit` parts them

# Ray runs a job's command in a shell whose PATH may know no Python at all, or another one than Ray runs on (a virtual
# environment that is not activated). With a pip environment of its own the job finds it in VIRTUAL_ENV; otherwise the
# raylet, an ancestor of the shell, names the interpreter it starts its workers with.
FIND_PYTHON = r"""
pid=$$
while [ "${pid:-1}" -gt 1 ] && [ -z "$raylet" ]; do
  raylet=$(tr '\0' '\n' < "/proc/$pid/cmdline" | sed -n 's/^--python_worker_command=\([^ ]*\).*/\1/p')
  pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
done
for python in "$VIRTUAL_ENV/bin/python" "$raylet" python python3; do
  "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("ray") is None)' 2>/dev/null && break
done
"""

JOB_SCRIPT = f"""#!/bin/sh
# Runs `headrace` inside a Ray job.
{FIND_PYTHON}
PYTHONPATH="$PWD${{PYTHONPATH:+:$PYTHONPATH}}" exec "$python" -P -m cluster.inside "$@"
"""

# Runs on the cluster before the job is sent: what it has, and whether the state's folder can be written there.
PROBE = r"""
import importlib.metadata, json, os, pathlib, platform, sys, uuid
home = sys.argv[1] or os.environ.get("HEADRACE_HOME", "")
trouble = ""
if home:
    try:
        folder = pathlib.Path(home)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{uuid.uuid4().hex}"
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        trouble = error.strerror or str(error)
have = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
print("headrace-probe " + json.dumps(
    {"python": platform.python_version(), "home": home, "trouble": trouble, "installed": have}))
"""


def main() -> int:
    """Runs the command and returns its exit code; marks the lines of its stdout."""
    folder, *words = sys.argv[1:]
    root = Path.cwd()
    private = root / PRIVATE
    variables: dict[str, str] = json.loads(private.read_text(encoding="utf-8"))
    if variables:
        private.unlink()  # the command has them from here on, and what lies about is found
    # Ray stops each process of the job, and the command ends by itself; what is ignored, it would ignore as well.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "headrace", *words],
        cwd=root / folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as command:
        assert command.stdout is not None
        for line in command.stdout:
            sys.stdout.write(MARK + line.rstrip("\n") + "\n")
            sys.stdout.flush()
    return command.returncode


if __name__ == "__main__":
    sys.exit(main())
