"""From nothing to an answering endpoint, with the commands that a person would type: ``make demo``.

Writes the sample project to ``headrace-demo/``, runs it (fuse, a small sweep, training, evaluation, registration),
serves the model, asks it five questions over HTTP, says what to type next, and ends what it started.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

FOLDER = Path("headrace-demo")
QUESTIONS = [
    "The courier page has said the same thing since Tuesday. Will my lamp ever get here?",
    "Yesterday I wrote: my card was refused. That is solved. Now I would like to hand the shoes back.",
    "you took the money two weeks ago and promised it back, my bank shows nothing",
    "my password is not accepted and the reset mail never comes",
    "Can my partner join our membership, or do we need the bigger plan for that?",
]


def headrace(*words: str) -> list[str]:
    """The command line for ``headrace WORD…`` in this environment."""
    return [sys.executable, "-m", "headrace", *words]


def step(title: str, *words: str) -> str:
    """Runs one command as a user would and returns what it printed; its progress is seen as it goes."""
    show_title(title, words)
    done = subprocess.run(headrace(*words), check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def show_title(title: str, words: tuple[str, ...]) -> None:
    """What comes now, in bold on a terminal, and what one would type for it."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{title}{plain}\n$ headrace {' '.join(words)}", flush=True)


def main() -> None:
    os.environ.setdefault("HEADRACE_HOME", str(FOLDER.resolve() / ".headrace"))
    started = time.monotonic()
    recipe = FOLDER / "recipe.yaml"
    if not recipe.exists():
        shutil.rmtree(FOLDER, ignore_errors=True)
        print(step("1. A recipe and three untidy sources", "new", str(FOLDER)), end="")
    result = json.loads(step("2. Fuse, tune, train, evaluate, register", "run", str(recipe), "--json"))
    show_metrics(result)
    answer_questions(result["model"], recipe)
    print(f"\nDone in {time.monotonic() - started:.0f} s. Look at the report, best in a browser:\n  {result['report']}")
    print("\nWhat to type next:")
    print(f"  export HEADRACE_HOME={os.environ['HEADRACE_HOME']}")
    for words in (f"serve {result['model']}", f"check {recipe}", f"run {recipe} train.epochs=8", "models", "--help"):
        print(f"  {Path(sys.executable).parent / 'headrace'} {words}")


def show_metrics(result: dict[str, Any]) -> None:
    """The model's test accuracy next to its baselines'."""
    scores: dict[str, dict[str, float]] = {"fine-tuned": result["metrics"], **result["baselines"]}
    print("\nAccuracy on tickets that nothing was trained or chosen on:")
    for name, metrics in sorted(scores.items(), key=lambda item: -item[1]["test/accuracy"]):
        bar = "█" * round(40 * metrics["test/accuracy"])
        print(f"  {name:12} {metrics['test/accuracy']:.3f}  {bar}")


def answer_questions(model: str, recipe: Path) -> None:
    """Serves the model, asks it the questions over HTTP, and ends the server."""
    words = ("serve", str(recipe), "--port", "0", "--json")
    show_title("3. Serve it and ask", words)
    server = subprocess.Popen(headrace(*words), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()  # comes when a request has been answered, or empty when the server ended
        if not line:
            sys.exit(server.wait() or 1)
        address = f"{json.loads(line)['address']}/models/{model}"
        print(f"\n$ curl {address} -H 'Content-Type: application/json' -d '{{\"inputs\": \"…\"}}'")
        for question in QUESTIONS:
            best = ask(address, question)[0]
            print(f"  {question}\n    -> {best['label']} ({best['score']:.2f})")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)


def ask(address: str, question: str) -> list[dict[str, Any]]:
    """The labels that the endpoint gives, the most probable first."""
    body = json.dumps({"inputs": question}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        labels: list[Any] = json.load(answer)
    return labels[0] if isinstance(labels[0], list) else labels


if __name__ == "__main__":
    main()
