"""How the Space bears load and abuse: many clients at once, many requests, hostile ones, and its time for one movie.

    python scripts/benchmarks/space_load.py --output runs/space_load.json
    python scripts/benchmarks/space_load.py --only clients hostile --clients 20

Starts `space/app.py` with the checkpoint that ships, on a port of this machine, and talks HTTP to it. Small requests
ask for one view of one frame in one step. Needs the extra `space` (httpx comes with Gradio), and Linux for memory.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx


ROOT = Path(__file__).resolve().parent.parent.parent

FIELDS = ("prompt", "seed", "steps", "guidance", "view_rows", "view_cols", "frames", "baseline", "loop", "joy")
SMALL = {
    "prompt": '"a white cow"',
    "seed": "0",
    "steps": "1",
    "guidance": "1",
    "view_rows": "1",
    "view_cols": "1",
    "frames": "1",
    "baseline": "1",
    "loop": "false",
    "joy": "false",
}
"""The smallest movie, as JSON texts."""

NUMBERS = ("seed", "steps", "guidance", "view_rows", "view_cols", "frames", "baseline")
DEFAULT = {"steps": "20", "guidance": "3", "view_rows": "3", "view_cols": "3", "frames": "8"}
SENTENCE = "a brown horse gallops out of a red barn at sunset"
WARM_UP = 50
SECONDS = 600.0
"""How long one answer is waited for."""


@contextmanager
def running_space() -> Iterator[tuple[str, int]]:
    """Address and process id of a Space that has just been started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "space" / "app.py"), "--port", str(port)]
        environment = {**os.environ, "GRADIO_TEMP_DIR": folder}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                address = f"http://127.0.0.1:{port}/gradio_api"
                wait_for(f"{address}/info", process)
                yield address, process.pid
            finally:
                process.terminate()


def wait_for(address: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(address, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise RuntimeError("The Space did not start; run `python space/app.py` to see why.")


def ask(address: str, **texts: str) -> tuple[str, float, str]:
    """What became of a request (`complete`, `full`, `refused`, `error`), seconds, and what was said."""
    body = f'{{"data": [{",".join({**SMALL, **texts}[name] for name in FIELDS)}]}}'
    start = time.monotonic()
    answer = httpx.post(
        f"{address}/call/generate", content=body, headers={"content-type": "application/json"}, timeout=SECONDS
    )
    kinds = {422: "refused", 400: "refused", 413: "refused", 503: "full"}
    if answer.status_code != 200:
        return kinds.get(answer.status_code, "error"), time.monotonic() - start, answer.text
    event = answer.json()["event_id"]
    end = httpx.get(f"{address}/call/generate/{event}", timeout=SECONDS).text
    return "complete" if "event: complete" in end else "error", time.monotonic() - start, end


def resident_mb(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def many_clients(address: str, pid: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Clients that ask at once, one request after the other each."""

    def client(number: int) -> list[tuple[str, float, str]]:
        return [ask(address, seed=str(number)) for _ in range(arguments.requests)]

    with ThreadPoolExecutor(arguments.clients) as pool:
        answers = [answer for answers in pool.map(client, range(arguments.clients)) for answer in answers]
    seconds = [taken for kind, taken, _ in answers if kind == "complete"]
    return {
        "clients": arguments.clients,
        "requests": len(answers),
        **Counter(kind for kind, _, _ in answers),
        "median_seconds": round(statistics.median(seconds), 2),
        "longest_seconds": round(max(seconds), 2),
        "alive": ask(address)[0] == "complete",
    }


def many_requests(address: str, pid: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Small requests, four at a time; memory is compared after a warm-up."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: ask(address, seed=str(seed)), range(WARM_UP)))
        before = resident_mb(pid)
        answers = list(pool.map(lambda seed: ask(address, seed=str(seed)), range(arguments.small)))
    after = resident_mb(pid)
    return {
        "requests": len(answers),
        **Counter(kind for kind, _, _ in answers),
        "resident_mb_before": round(before),
        "drift_mb": round(after - before, 1),
    }


def hostile_requests(address: str, pid: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Prompts and numbers that must be refused, with the longest time that one took."""
    draw = random.Random(0)
    asked = [{"prompt": hostile_prompt(draw)} for _ in range(arguments.prompts)]
    asked += [{name: hostile_number(draw)} for name in NUMBERS for _ in range(arguments.numbers)]
    answers = [(request, *ask(address, **request)) for request in asked]
    return {
        "requests": len(answers),
        **Counter(kind for _, kind, _, _ in answers),
        "without_a_sentence": sum(" must " not in said for *_, said in answers),
        "longest_seconds": round(max(taken for _, _, taken, _ in answers), 3),
        "not_refused": [request for request, kind, _, _ in answers if kind != "refused"][:5],
    }


def hostile_prompt(draw: random.Random) -> str:
    strange = draw.choice(["\\u0000", "\\ud800", "\\udfff", "\\u001b[31m", "\\u0007", "\\u007f", "\\udc00\\ud800"])
    kinds: list[Callable[[], str]] = [
        lambda: f'"a cow {strange} {draw.random()}"',
        lambda: json.dumps("".join(chr(draw.randrange(32, 0xD7FF)) for _ in range(draw.randrange(301, 3000)))),
        lambda: draw.choice(["null", "true", "NaN", "-1", "[]", "{}", '["a cow"]', '{"path": "/etc/passwd"}']),
        lambda: "[" * draw.randrange(1, 30_000),
        lambda: json.dumps("barn " * draw.randrange(100, 100_000)),
    ]
    return draw.choice(kinds)()


def hostile_number(draw: random.Random) -> str:
    kinds: list[Callable[[], str]] = [
        lambda: draw.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "null", "true", "[]", "{}", '""']),
        lambda: str(-draw.randrange(1, 10**12)),
        lambda: str(draw.randrange(2**31, 10**300)),
        lambda: f"{draw.uniform(2**31, 1e300):e}",
        lambda: json.dumps(draw.choice(["3", "three", "0x10", "1_000", "NaN"])),
        lambda: "9" * draw.randrange(20, 6000),
    ]
    return draw.choice(kinds)()


def page_and_command_line(address: str, pid: int, arguments: argparse.Namespace) -> dict[str, object]:
    """One movie as `make movie` makes it, through the API and from the command line, in turn."""
    texts = {**DEFAULT, "prompt": json.dumps(SENTENCE), "frames": str(arguments.frames)}
    through, alone = [], []
    for _ in range(arguments.repeats):
        kind, seconds, said = ask(address, **texts)
        if kind != "complete":
            raise RuntimeError(f"The movie was not made: {said[:300]}")
        through.append(seconds)
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            command = [sys.executable, "-m", "diffusers_stale.cli", "generate", "--frames", str(arguments.frames)]
            subprocess.run(
                [*command, "--output", f"{folder}/movie", "--", SENTENCE], check=True, capture_output=True, cwd=ROOT
            )
            alone.append(time.monotonic() - start)
    return {
        "frames": arguments.frames,
        "page_seconds": [round(value, 1) for value in through],
        "command_line_seconds": [round(value, 1) for value in alone],
        "ratio": round(statistics.median(through) / statistics.median(alone), 2),
    }


PARTS: dict[str, Callable[[str, int, argparse.Namespace], dict[str, object]]] = {
    "hostile": hostile_requests,
    "clients": many_clients,
    "small": many_requests,
    "movie": page_and_command_line,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=5, help="of each client")
    parser.add_argument("--small", type=int, default=1000, help="small requests, between which memory is compared")
    parser.add_argument("--prompts", type=int, default=200, help="hostile prompts")
    parser.add_argument("--numbers", type=int, default=100, help="hostile numbers for each field")
    parser.add_argument("--frames", type=int, default=8, help="of the movie that is timed; views are 3x3, steps 20")
    parser.add_argument("--repeats", type=int, default=1, help="of the movie that is timed")
    parser.add_argument("--output", type=Path, default=None, help="a JSON file for the figures")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    figures: dict[str, object] = {}
    with running_space() as (address, pid):
        for name in arguments.only:
            figures[name] = PARTS[name](address, pid, arguments)
            print(f"{name}: {json.dumps(figures[name])}", flush=True)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
