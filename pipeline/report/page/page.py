"""`report.html`: everything that a run has found, on one page that needs no other file and no network."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pipeline import files
from pipeline.data.image_list import printable
from pipeline.data.splits import DataSet
from pipeline.errors import InputError
from pipeline.report import figures
from pipeline.report.controls import Controls
from pipeline.report.methods import TRIPLET_LOSS
from pipeline.report.page import sections
from pipeline.report.page.thumbnails import Thumbnails
from pipeline.report.results import Results

FILE = "report.html"


class Page:
    """The report page of a run, which is written anew as the run proceeds.

    Args:
        folder: path of the run folder.
        constants: dict from the names of the constants to their values.
        environment: dict of what the run uses, such as versions and the device.
        data: `DataSet`.
        controls: `Controls`.
        seconds: function that returns the duration so far.
    """

    def __init__(
        self,
        folder: Path,
        constants: dict[str, Any],
        environment: dict[str, str],
        data: DataSet,
        controls: Controls,
        seconds: Callable[[], float],
    ):
        self.folder, self.constants, self.environment = folder, constants, environment
        self.data, self.controls, self.seconds = data, controls, seconds
        self._drawn = None  # the history whose curves are drawn

    def write_progress(self, history: dict[str, list[float]]) -> None:
        """Writes what is known during training: the curves, and what triplet loss is compared with.

        If that fails, such as on a full disk, training continues, and a line says so.

        Args:
            history: dict from names to one value an epoch.
        """
        methods = {name: method.known for name, method in self.controls.methods.items() if method.known}
        done, epochs = len(history.get("loss", [])), self.constants["EPOCHS"]
        title = "What triplet loss is compared with"
        scores = [sections.score_table(title, methods)] if methods else []
        try:
            progress = f"Epochs finished at {time.strftime('%H:%M')}: {done} of {epochs}."
            if done == epochs:
                progress = f"At {time.strftime('%H:%M')}, training was finished; next, the test images are classified."
            self._write(progress=progress, scores=scores, curves=self._curves(history))
        except (OSError, InputError) as error:
            print(f"\nWarning: {FILE} is not written: {error}")

    def write(
        self,
        history: dict[str, list[float]],
        text: str,
        report: dict[str, Any],
        results: Results,
        before: np.ndarray,
        after: np.ndarray,
        numbers: np.ndarray,
    ) -> None:
        """Writes the page of a finished run.

        Args:
            history: dict from names to one value an epoch.
            text: what `report.txt` has.
            report: the scores, as in `report.json`.
            results: `Results`.
            before, after, numbers: as in `sections.embedding_map`.
        """
        data, thumbnails, parts, script = self.data, Thumbnails(), {"scores": []}, {}
        parts["audit"] = sections.audit(data, self.controls.findings, report.get("near duplicates"), thumbnails)
        methods = {name: each for name, each in report.items() if isinstance(each, dict) and "95% interval" in each}
        if methods:
            ours = methods[TRIPLET_LOSS]
            low, high = ours["95% interval"]
            parts["headline"] = {"value": f"{ours['accuracy']:.1%}", "interval": f"{low:.1%} to {high:.1%}"}
            parts["scores"].append(sections.score_table("Comparison on the test images", methods))
            parts["mistakes"] = sections.mistakes(data, results, thumbnails)
            parts["confusion"] = sections.confusion(data.test.labels, results.predicted, data.class_names)
            parts["classes"] = sections.class_table(report["classes"])
        held_out = report.get("held-out classes", {})
        unseen = {name: each for name, each in held_out.items() if isinstance(each, dict) and "MAP@R" in each}
        if unseen:
            parts["scores"].append(sections.score_table("Held-out classes among themselves", unseen))
        parts["map"], script["points"] = sections.embedding_map(data, results, before, after, numbers, thumbnails)
        parts["threshold"], script["distances"] = sections.threshold(results)
        address, columns, side = thumbnails.sheet()
        script["sheet"] = parts["sheet"] = {"columns": columns, "side": side}
        script["names"] = thumbnails.names
        self._write(
            verdict=report.get("verdict", {}).get("sentence"),
            warnings=report.get("warnings", []),
            text="\n".join(printable(line) for line in text.split("\n")),
            curves=self._curves(history),
            points=script["points"],
            sheet_address=address,
            script=script,
            **parts,
        )

    def _write(self, **values):
        place = jinja2.FileSystemLoader(Path(__file__).parent)
        engine = jinja2.Environment(loader=place, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment = {**self.environment, "written": time.strftime("%Y-%m-%d %H:%M:%S")}
        environment["duration of training"] = str(timedelta(seconds=round(self.seconds())))
        dataset, backbone = (Path(self.constants[name]).resolve().name for name in ("DATASET", "BACKBONE"))
        text = engine.get_template("page.html").render(
            title=printable(f"{dataset}, {backbone}"),
            summary=self._summary(),
            constants=_table(self.constants),
            environment=_table(environment),
            **values,
        )
        files.write_text(self.folder / FILE, text)

    def _curves(self, history):
        path = self.folder / "training_curves.png"
        if history.get("val_accuracy") and history != self._drawn:
            figures.training_curves(history, path)
            self._drawn = history
        return sections.curves(history, path)

    def _summary(self):
        counts = {part: len(getattr(self.data, part).labels) for part in ("train", "validation", "test", "held_out")}
        return (
            f"{counts['train']:,} training, {counts['validation']:,} validation and {counts['test']:,} test images of "
            f"{len(self.data.class_names):,} classes"
            + (f"; {counts['held_out']:,} images of held-out classes" if counts["held_out"] else "")
            + "."
        )


def _table(values):
    """Names and values as a table without a header."""
    return {"columns": [], "rows": [[name, printable(str(value))] for name, value in values.items()]}
