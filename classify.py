"""Classifies images with a finished run of init.py.

    python classify.py run photo.jpg holiday/                  the class of each image, or "unknown"
    python classify.py run holiday/ --format csv > answers.csv for programs; json has an object on each line
    python classify.py run --check labelled/                   how good the answers are, on images in class folders
    python classify.py run --similar photo.jpg --neighbours 9  the most similar references
    python classify.py run --add cup=cups/                     a new class, without training; --remove undoes it
    python classify.py run --list                              the classes and the numbers of their references
    python classify.py run --export model.onnx                 everything in one file, for serving

The run folder is all that is needed, also on another machine.
"""

import os
import sys
from collections import Counter

from pipeline.data.folders import images_in
from pipeline.data.image_list import in_lines, normal_name
from pipeline.errors import InputError
from pipeline.finished_run import check_export_path, constants_of_finished
from pipeline.settings import keras_settings, options, process


def main():
    given = parsed_arguments()
    constants_of_finished(given.run_folder)
    check_export_path(given.export)
    added = dict(class_and_folder(text) for text in given.add)
    if len(added) < len(given.add):
        raise InputError(f"`--add` must name each class once. Received: {', '.join(given.add)}")

    # Import what takes seconds, now that no argument is wrong.
    with process.silent_interrupts():
        keras_settings.apply()
        from pipeline.classifier import Classifier
        from pipeline.data.pixels import image_suffixes
        from pipeline.report import answers, check

    classifier, unread = Classifier(given.run_folder), []
    if given.remove or added:
        images = {name: images_in([folder], image_suffixes(), unread) for name, folder in added.items()}
        removed = [normal_name(name.strip()) for name in given.remove]
        unread += [f"{path}: {error}" for path, error in classifier.change_classes(removed, images)]
        print(f"The run has {len(classifier.references.class_names):,} classes now; --list shows them.")
    if given.list:
        answers.print_classes(classifier)
    if given.similar:
        answers.print_similar(classifier, given.similar, given.neighbours or classifier.neighbours, given.format)
    if given.check:
        unread += check.print_check(classifier, given.check)
    if given.export:
        from pipeline.export import export  # which needs packages that other commands do not

        export(classifier, given.export)
    if given.images:
        paths = images_in(given.images, image_suffixes(), unread, skipped := Counter())
        unread += answers.print_answers(classifier.answers(paths), given.format, classifier.references.class_names)
        if skipped:
            names = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(skipped.items()))
            print(f"Skipped files in folders that are no images: {names}", file=sys.stderr)
    if unread:
        raise SystemExit(f"Images and folders that could not be read: {len(unread):,}{in_lines(unread)}")


def parsed_arguments():
    """The command line; raises InputError if something is missing or wrong."""
    parser = options.Parser(description=__doc__, formatter_class=options.argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", metavar="RUN_FOLDER", help="folder of a finished run")
    parser.add_argument("images", nargs="*", metavar="IMAGE_OR_FOLDER", help="images; folders with all below them")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="of the answers")
    parser.add_argument("--check", metavar="PATH", help="folder or CSV file of labelled images, as for DATASET")
    parser.add_argument("--add", metavar="CLASS=FOLDER", action="append", default=[], help="adds a class")
    parser.add_argument("--remove", metavar="CLASS", action="append", default=[], help="removes a class")
    parser.add_argument("--list", action="store_true", help="prints the classes")
    parser.add_argument("--similar", metavar="IMAGE", help="prints the references most similar to an image")
    parser.add_argument("--neighbours", metavar="N", type=int, help="how many references --similar prints")
    parser.add_argument("--export", metavar="FILE", help="writes network, references and vote as .onnx or SavedModel")
    given = parser.parse_intermixed_args()
    if not any((given.images, given.check, given.add, given.remove, given.list, given.similar, given.export)):
        parser.error("images, folders or an option must be given")
    for path in given.images + [path for path in (given.check, given.similar) if path]:
        if not os.path.exists(path):
            raise InputError(f"Images and folders must exist. Received: {path!r}")
    if given.neighbours is not None and (given.neighbours < 1 or not given.similar):
        raise InputError(f"`--neighbours` is for --similar, and must be at least 1. Received: {given.neighbours}")
    return given


def class_and_folder(text: str) -> tuple[str, str]:
    """The name and the folder in `CLASS=FOLDER`. Raises InputError if there is no such folder, or no name."""
    name, _, folder = text.partition("=")
    name, folder = normal_name(name.strip()), os.path.expanduser(folder)
    if not name or not os.path.isdir(folder):
        raise InputError(f"`--add` must be CLASS=FOLDER, with an existing folder. Received: {text!r}")
    return name, folder


if __name__ == "__main__":
    process.run(main, trains=False)
