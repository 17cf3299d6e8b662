"""Compares recipes by real runs of init.py: one factor at a time around its defaults.

    python benchmarks/recipes.py RESULTS_FOLDER --seeds 3 -- --dataset IMAGES --backbone MobileNet ...
    python benchmarks/recipes.py RESULTS_FOLDER --only margin,rate -- ...       recipes whose names start so

What follows `--` is given to every run. A recipe adds options, or changes the code where there is no constant.
All runs use copies of the code as it was at the first start, so that it can be edited meanwhile. The same command
resumes: a finished run is not repeated. RESULTS_FOLDER/table.md, written after each run, has the mean over the seeds,
and the lowest and the highest.
"""

import argparse
import json
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("init.py", "fine_tune_model.py", "triplet_loss_functions.py", "keras.json", "pipeline")
SCORES = ("accuracy", "recall@1", "MAP@R")
COMPILE = "trained.compile(keras.optimizers.Adam(learning_rate), loss, metrics=metrics)"
SHIFTED = "            images = images.reshape(*indices.shape, *images.shape[1:])\n"


class Recipe:
    """Options of init.py, and changes of the code: (file, old text, new text), each old text exactly once there."""

    def __init__(self, options: str, *changes: tuple[str, str, str]):
        self.options, self.changes = options, changes


def optimizer(factor):
    """Adam with the learning rate times `factor`, an expression of `is_head` and `step`."""
    return (
        "init.py",
        COMPILE,
        f"""head = [*model.get_layer("pooled_batch_norm").weights, *model.get_layer("embedding").weights]

    class Rates(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):  # TensorFlow is given the values of variables
            is_head = any(variable is each or variable is each.value for each in head)
            step = keras.ops.cast(self.iterations, "float32")
            super().update_step(gradient, variable, learning_rate * ({factor}))

    trained.compile(Rates(learning_rate), loss, metrics=metrics)""",
    )


def adam(new):
    return "init.py", COMPILE, COMPILE.replace("Adam(learning_rate)", new)


def loss(new):
    return "init.py", "InBatchTripletLoss(MARGIN, MINING)", f"InBatchTripletLoss({new})"


def augmentation(code):
    """`code` changes `images`, (n, 3, height, width), with `generator`, after the shift."""
    return "pipeline/data/batches.py", SHIFTED, textwrap.indent(code, 8 * " ") + SHIFTED


CROP = """    from PIL import Image

    def cropped(image):
        side = np.sqrt(generator.uniform(0.5, 1))
        height, width = image.shape[1] * side, image.shape[2] * side
        top, left = generator.uniform(0, image.shape[1] - height), generator.uniform(0, image.shape[2] - width)
        box = (left, top, left + width, top + height)
        resized = Image.fromarray(image.transpose(1, 2, 0)).resize(image.shape[:0:-1], Image.BILINEAR, box)
        return np.asarray(resized).transpose(2, 0, 1)

    images = np.stack([cropped(image) for image in images])
"""
COLOUR = """    contrast, light = generator.uniform(0.7, 1.3, (2, len(images), 1, 1, 1))
    tint = generator.uniform(0.9, 1.1, (len(images), 3, 1, 1))
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    images = np.clip(((images - mean) * contrast + mean * light) * tint, 0, 255).astype("uint8")
"""
ERASING = """    images = images.copy()
    for number in np.flatnonzero(generator.random(len(images)) < 0.5):
        height, width = (int(side * generator.uniform(0.2, 0.5)) for side in images.shape[2:])
        top, left = generator.integers(images.shape[2] - height), generator.integers(images.shape[3] - width)
        images[number, :, top : top + height, left : left + width] = 128
"""
BATCH_NORM = "fine_tune_model.py", 'if weights == "none":\n            layer.m', "if True:\n            layer.m"
AVERAGED = "init.py", "[keras.callbacks.T", "[keras.callbacks.SwapEMAWeights(swap_on_epoch=True), keras.callbacks.T"
POOLING = (
    "fine_tune_model.py",
    "_pooling(len(features.shape), data_format)(features)",
    'layers.Concatenate(name="pooling")([layers.GlobalAveragePooling2D()(features), '
    "layers.GlobalMaxPooling2D()(features)])",
)
SIMILARITY = (
    "pipeline/neighbours.py",
    "votes = same.sum(axis=2)",
    "votes = (same * np.exp(-(distances[:, None, :] ** 2) / 0.1)).sum(axis=2)",
)
FLIPPED = (
    "init.py",
    "return predict(model, images)",
    """summed = predict(model, images) + predict(model, images._replace(array=images.array[..., ::-1]))
        return summed / (summed**2).sum(axis=1, keepdims=True) ** 0.5""",
)
SOFT_MERGE = "init.py", "MergeTripletLoss(MARGIN)", 'MergeTripletLoss("soft")'
ACTIVE = "init.py", "MergeTripletLoss(MARGIN)", 'MergeTripletLoss(MARGIN, average="active")'
RECIPES = {
    "defaults": Recipe(""),
    "margin 0.05": Recipe("--margin 0.05"),
    "margin 0.1": Recipe("--margin 0.1"),
    "margin 0.2": Recipe("--margin 0.2"),
    "margin 0.5": Recipe("--margin 0.5"),
    "margin soft": Recipe("", loss('"soft", MINING')),
    "mining batch_all": Recipe("--mining batch_all"),
    "mining batch_all + margin 0.1": Recipe("--mining batch_all --margin 0.1"),
    "mining batch_hard": Recipe("--mining batch_hard"),
    "mining batch_hard + soft": Recipe("--mining batch_hard", loss('"soft", MINING')),
    "mining all_semi_hard": Recipe("--mining all_semi_hard"),
    "rate 5e-5": Recipe("--learning-rate 5e-5"),
    "rate 2e-4": Recipe("--learning-rate 2e-4"),
    "rate 4e-4": Recipe("--learning-rate 4e-4"),
    "rate of the head x10": Recipe("", optimizer("10 if is_head else 1")),
    "head alone first": Recipe("", optimizer('1 if is_head else keras.ops.cast(step >= len(batches) // 2, "float32")')),
    "frozen layers 0": Recipe("--frozen-layers 0"),
    "frozen layers 37": Recipe("--frozen-layers 37"),
    "batch norm trained": Recipe("", BATCH_NORM),
    "batch norm trained + rate 3e-4": Recipe("--learning-rate 3e-4", BATCH_NORM),
    "batch 10x13": Recipe("--classes-per-batch 10 --images-per-class 13"),
    "batch 8x8": Recipe("--images-per-class 8"),
    "batch 8x32": Recipe("--images-per-class 32"),
    "embedding size 64": Recipe("--embedding-size 64"),
    "embedding size 256": Recipe("--embedding-size 256"),
    "augment none": Recipe("--augment none"),
    "augment crop": Recipe("", augmentation(CROP)),
    "augment colour": Recipe("", augmentation(COLOUR)),
    "augment erasing": Recipe("", augmentation(ERASING)),
    "weight decay 1": Recipe("", adam("AdamW(learning_rate, 1.0)")),
    "average of the weights": Recipe("", adam("Adam(learning_rate, use_ema=True, ema_momentum=0.95)"), AVERAGED),
    "pooling mean and max": Recipe("", POOLING),
    "vote of 20": Recipe("--neighbours 20"),
    "vote by similarity": Recipe("", SIMILARITY),
    "vote after flip": Recipe("", FLIPPED),
    "image size 64": Recipe("--image-size 64"),
    "image size 128": Recipe("--image-size 128"),
    "epochs 6": Recipe("--epochs 6"),
    # A triplet has three images, so an epoch of the merge loss has three times as many.
    "merge": Recipe("--triplet-loss merge --epochs 1"),
    "merge + rate 3e-5": Recipe("--triplet-loss merge --epochs 1 --learning-rate 3e-5"),
    "merge + rate 3e-4": Recipe("--triplet-loss merge --epochs 1 --learning-rate 3e-4"),
    "merge + margin 1": Recipe("--triplet-loss merge --epochs 1 --margin 1"),
    "merge + margin 2": Recipe("--triplet-loss merge --epochs 1 --margin 2"),
    "merge + soft margin": Recipe("--triplet-loss merge --epochs 1", SOFT_MERGE),
    "merge + mean of the active triplets": Recipe("--triplet-loss merge --epochs 1", ACTIVE),
}


def code_of(recipe, results, name):
    """A copy of the code with the recipe's changes."""
    original, changed = results / "code" / "defaults", results / "code" / name
    if not original.exists():
        for item in CODE:
            (shutil.copytree if (ROOT / item).is_dir() else shutil.copy)(ROOT / item, _parent(original / item))
    if changed != original:
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(original, changed)
    for file, text in changed_files(recipe, original).items():
        (changed / file).write_text(text)
    return changed


def changed_files(recipe, code):
    """The text of each file of `code` that a recipe changes.

    Raises ValueError if a text that it replaces is not there exactly once.
    """
    texts = {}
    for file, old, new in recipe.changes:
        text = texts.get(file) or (code / file).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{file} must have this text once, and has it {text.count(old)} times: {old}")
        texts[file] = text.replace(old, new)
    return texts


def _parent(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def scores_of(name, recipe, seed, results, options):
    """Runs a recipe, or resumes it; returns its scores after training and its seconds, None if it failed."""
    folder = results / name.replace(" ", "-") / str(seed)
    report, log, times = folder / "report.json", _parent(folder).with_suffix(".log"), folder.with_suffix(".seconds")
    if not (folder / "report.txt").exists():
        command = [sys.executable, str(code_of(recipe, results, name) / "init.py"), *options, *recipe.options.split()]
        began = time.monotonic()
        with open(log, "a") as output:
            done = subprocess.run(
                [*command, "--seed", str(seed), "--run-folder", str(folder)], stdout=output, stderr=subprocess.STDOUT
            )
        before = float(times.read_text()) if times.exists() else 0.0
        times.write_text(str(before + time.monotonic() - began))
        if done.returncode:
            return None
    after = json.loads(report.read_text())["triplet loss"]
    return [after[name] for name in SCORES] + [float(times.read_text())]


def table(scores, options):
    """The recipes that have been run, with their mean, lowest and highest scores."""
    lines = [f"Options: `{' '.join(options)}`", "", f"| recipe | runs | {' | '.join(SCORES)} | seconds |"]
    lines += ["|---" * (len(SCORES) + 3) + "|", *(row(name, rows) for name, rows in scores.items() if rows)]
    return "\n".join(lines) + "\n"


def row(name, rows):
    columns = list(zip(*rows, strict=True))
    cells = [f"{sum(each) / len(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in columns[:-1]]
    return f"| {name} | {len(rows)} | {' | '.join(cells)} | {sum(columns[-1]) / len(rows):.0f} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        usage="%(prog)s RESULTS [--seeds N] [--only STARTS] -- OPTIONS OF init.py",
        epilog=f"Recipes: {'; '.join(RECIPES)}",
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="starts of names, with commas")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, options = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    chosen = [name for name in RECIPES if name.startswith(tuple(given.only.split(",")))]
    if not chosen:
        parser.error(f"no recipe's name starts with {given.only!r}")
    code = given.results / "code" / "defaults"
    for name in chosen:
        try:
            changed_files(RECIPES[name], code if code.exists() else ROOT)
        except ValueError as error:
            parser.error(f"{name}: {error}")
    stored = given.results / "options.json"
    if stored.exists() and (before := json.loads(stored.read_text())) != options:
        parser.error(f"{given.results} has runs with other options: {' '.join(before)}")
    _parent(stored).write_text(json.dumps(options))
    scores = {name: [] for name in chosen}
    runs, failed, began = [(seed, name) for seed in range(given.seeds) for name in chosen], [], time.monotonic()
    for done, (seed, name) in enumerate(runs, 1):
        result = scores_of(name, RECIPES[name], seed, given.results, options)
        if result:
            scores[name].append(result)
        else:
            failed.append(str(given.results / name.replace(" ", "-") / f"{seed}.log"))
        left = (time.monotonic() - began) / done * (len(runs) - done) / 60
        outcome = row(name, [result]) if result else f"{name} failed, see {failed[-1]}"
        print(f"{done} of {len(runs)}, about {left:.0f} min left: {outcome}", flush=True)
        (given.results / "table.md").write_text(table(scores, options))
    print(f"\n{table(scores, options)}")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
