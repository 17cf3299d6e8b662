"""Fine-tunes a pre-trained network with a triplet loss, then predicts classes by nearest neighbour.

    python init.py                                            CIFAR-10, ImageNet weights, for one GPU
    python init.py --epochs 3 --mining batch_hard             any constant below is an option
    python init.py --dataset my_images --run-folder my_run    a folder of CLASS/IMAGE files
    python init.py --dataset digits --backbone VGG16 --image-size 32 --augment none --weights none --frozen-layers 0 \
        --precision float32 --images-per-class 4 --learning-rate 3e-4 --epochs 1 --run-folder digits_run
                                                              no download, no GPU, one or two minutes
"""

import json
import sys

import command_line
import keras_settings
import run_folder

# ------------------------------------------------------------------------------------------------------------------
# Data
DATASET = "cifar10"  # "cifar10", "digits", or a folder of CLASS/IMAGE or of train/CLASS/IMAGE and test/CLASS/IMAGE
TEST_FRACTION = 0.2  # share of the images to test, where the data set has no test set of its own
VALIDATION_FRACTION = 0.1  # share of the training images held back, to choose the best epoch by
IMAGE_SIZE = 224  # pixels, height and width that the network is given; smaller is faster
FIT = "scale"  # "scale" images to IMAGE_SIZE, or "pad" them with black where they are smaller
UNREADABLE_IMAGES = "stop"  # "stop" where image files cannot be read, and name them all, or "skip" them with a count
AUGMENT = "shift_flip"  # "none", "shift" by up to 1/8, or "shift_flip", mirrored too (not for digits or text)
# Model
BACKBONE = "ResNet50"  # a constructor in keras.applications, such as "VGG16" or "InceptionV3"
WEIGHTS = "imagenet"  # "imagenet", "none" (random), or a weights file of the backbone or of an earlier run
FROZEN_LAYERS = 15  # the backbone's first layers that do not train; 0 with random weights
EMBEDDING_SIZE = 128  # numbers in an embedding, whose length is 1
# Loss and optimizer
TRIPLET_LOSS = "in_batch"  # "in_batch" finds triplets inside each batch; "merge" draws them at random, 3 images each
MINING = "semi_hard"  # "batch_all", "batch_hard", "semi_hard" or "all_semi_hard": which triplets count; for "in_batch"
MARGIN = 0.3  # on squared distances of unit vectors, which lie between 0 and 4
CLASSES_PER_BATCH = 8  # P, at least 2 and at most the number of classes
IMAGES_PER_CLASS = 16  # K, at least 2; a batch has P*K images, halve K if memory runs out
EPOCHS = 20  # passes over the training images
LEARNING_RATE = 1e-4  # Adam's at its peak; 1e-3 with random weights, 3e-4 for those of VGG16; lower for "merge"
WARM_UP = 0.1  # share of the steps in which the learning rate rises, before it falls along a cosine
# Run
NEIGHBOURS = 5  # nearest training images that vote for a test image's class
PRECISION = "mixed_float16"  # "mixed_float16", "mixed_bfloat16" (GPUs since Ampere), or "float32" (any CPU)
SEED = 0  # of the split, the weights, the batches and the augmentation
CHECKPOINT_MINUTES = 5.0  # between checkpoints; the same command goes on from the last one, whatever stopped it
START_AFRESH = False  # True removes the run in RUN_FOLDER, and begins it again; interrupted, the same command goes on
RUN_FOLDER = "run"  # where the model, the report and the figures go
# ------------------------------------------------------------------------------------------------------------------


def read_constants():
    globals().update(command_line.read_options(__file__, globals()))
    finished = run_folder.finished_report(RUN_FOLDER, None if START_AFRESH else constants())
    if finished:
        run_folder.remove_checkpoints(RUN_FOLDER)  # left where the process was killed before it did
        print(f"The run in {RUN_FOLDER} is finished; --start-afresh True trains again.\n\n{finished}")
        sys.exit(0)
    keras_settings.apply()


def constants():
    return {name: globals()[name] for name in command_line.RULES}


if __name__ == "__main__":
    command_line.run(read_constants)  # before the imports below, so that a wrong value is told at once

import keras
import numpy as np
from sklearn.metrics import classification_report, precision_recall_fscore_support

import figures
import image_data
import nearest_neighbours
from fine_tune_model import fine_tuned_models, triplet_model
from training_batches import Batches, classes_and_images, in_order, random_triplets
from training_callbacks import HistoryFile, NearestNeighbourAccuracy, TimeEstimate, Watch
from training_checkpoints import Checkpoints
from triplet_loss_functions import InBatchTripletLoss, MergeTripletLoss


def main():
    keras.utils.set_random_seed(SEED)
    keras.config.set_dtype_policy(PRECISION)
    batch_size = CLASSES_PER_BATCH * IMAGES_PER_CLASS
    say_where_it_runs()

    # Load and split the images.
    train, test, class_names = image_data.load_images(DATASET, IMAGE_SIZE, FIT, TEST_FRACTION, SEED, UNREADABLE_IMAGES)
    train, validation = image_data.stratified_split(train, VALIDATION_FRACTION, SEED)
    say_what_was_loaded(train, validation, test, class_names)

    # Build the network, and see how well it does as it is.
    model = fine_tuned_models(train.images.shape[1:], IMAGE_SIZE, FIT, BACKBONE, WEIGHTS, FROZEN_LAYERS, EMBEDDING_SIZE)
    sources = {
        "images or classes in DATASET": image_data.checksum((train, validation, test), class_names),
        "content of the file WEIGHTS": run_folder.checksum(WEIGHTS),
        "KERAS_BACKEND": keras.backend.backend(),
    }
    folder = run_folder.begin(RUN_FOLDER, constants(), START_AFRESH, sources)  # now that no constant can be refused

    def embed(data):  # shape (n, EMBEDDING_SIZE)
        return model.predict(Batches(data, in_order(len(data.labels), batch_size)), verbose=0)

    def evaluate(features):
        return nearest_neighbours.evaluate(features(train), train.labels, features(test), test.labels, NEIGHBOURS)

    def controls():
        print("Predicting the test images' classes from raw pixels, and from the network before training ...")
        return {"raw pixels": evaluate(image_data.raw_pixels)[1], "before training": evaluate(embed)[1]}

    scores = run_folder.remembered(folder / "controls.json", controls)

    # Train with one of the two triplet losses; keep the weights of the best epoch.
    if TRIPLET_LOSS == "in_batch":
        plan = classes_and_images(train.labels, CLASSES_PER_BATCH, IMAGES_PER_CLASS)
        trained, loss = keras.Model(model.inputs, model.outputs), InBatchTripletLoss(MARGIN, MINING)
    else:
        plan = random_triplets(train.labels, batch_size // 3)
        trained, loss = triplet_model(model), MergeTripletLoss(MARGIN)
    batches = Batches(train, plan, SEED, AUGMENT)
    metrics = loss.metrics()
    trained.compile(keras.optimizers.Adam(learning_rate(EPOCHS * len(batches))), loss, metrics=metrics)
    known = image_data.sample(train, len(validation.labels), SEED)
    check = NearestNeighbourAccuracy(model, embed, known, validation, NEIGHBOURS)
    history = HistoryFile(folder / "history.csv")
    watch = Watch(MARGIN, MINING if TRIPLET_LOSS == "in_batch" else TRIPLET_LOSS)
    parts = {"check": check, "history": history, "watch": watch}
    checkpoints = Checkpoints(trained, metrics, batches, parts, folder, CHECKPOINT_MINUTES)
    checkpoints.restore(START_AFRESH)
    callbacks = [keras.callbacks.TerminateOnNaN(), TimeEstimate(batches), check, watch, history, checkpoints]
    verbose = 1 if sys.stdout.isatty() else 2
    with checkpoints.told_of_signals():
        while checkpoints.going_on(EPOCHS):
            epochs = {"initial_epoch": batches.epoch, "epochs": EPOCHS}
            trained.fit(batches, **epochs, shuffle=False, callbacks=callbacks, verbose=verbose)
    check.load_best_weights()

    # Predict the classes of the test images by nearest neighbour on the embeddings.
    references, queries = embed(train), embed(test)
    predicted, scores["after training"] = nearest_neighbours.evaluate(
        references, train.labels, queries, test.labels, NEIGHBOURS
    )

    # Say how well it did, and save everything.
    text = report(scores, test.labels, predicted, class_names, folder, checkpoints.stopped)
    with run_folder.whole(folder / "embedding_model.keras") as path:
        model.save(path)
    with run_folder.whole(folder / "references.npz") as path:
        np.savez(path, embeddings=references, labels=train.labels, class_names=class_names)
    print("Drawing the figures ...")
    _, voters = nearest_neighbours.nearest(references, queries, NEIGHBOURS)
    figures.training_curves(history.columns(), folder / "training_curves.png")
    figures.confusion_matrix(test.labels, predicted, class_names, folder / "confusion_matrix.png")
    figures.embedding_map(queries, test.labels, class_names, folder / "embedding_map.png", SEED)
    figures.neighbour_page(test, predicted, train, voters, class_names, folder / "neighbours.png", SEED)
    run_folder.finish(folder, text)
    print(f"The model, its reference embeddings, this report and four figures are in {folder}/")


def say_what_was_loaded(train, validation, test, class_names):
    """Prints how many images there are; raises InputError if they are too few for the constants."""
    height, width = train.images.shape[2:]
    counts = np.bincount(train.labels, minlength=len(class_names))
    print(
        f"{len(train.labels):,} images to train on, {len(validation.labels):,} to validate, {len(test.labels):,} to "
        f"test; {height}×{width} pixels, {len(class_names)} classes: {', '.join(class_names[:20])}"
        + (" ..." if len(class_names) > 20 else "")
    )
    if NEIGHBOURS > len(train.labels):
        raise command_line.InputError(
            f"`NEIGHBOURS` must be at most the number of training images, {len(train.labels)}. Received: {NEIGHBOURS}"
        )
    small = [f"{name} ({count})" for name, count in zip(class_names, counts, strict=True) if count < IMAGES_PER_CLASS]
    if small and TRIPLET_LOSS == "in_batch":
        print(f"Classes with fewer than {IMAGES_PER_CLASS} training images, repeated in a batch: {', '.join(small)}")
    if WEIGHTS == "none" and FROZEN_LAYERS > 0:
        print(f"FROZEN_LAYERS = {FROZEN_LAYERS} keeps random weights as they are; 0 trains them.")


def say_where_it_runs():
    """Prints the versions and the device; raises InputError where it or PRECISION does not suit."""
    on_cpu = "cpu" in str(keras.ops.zeros(1).device).lower()
    print(
        f"Keras {keras.__version__} on {keras.backend.backend()}, {'no GPU found: on the CPU' if on_cpu else 'a GPU'}"
    )
    if on_cpu and PRECISION != "float32":
        raise command_line.InputError(
            f'`PRECISION` must be "float32" where there is no GPU. Received: {PRECISION!r}. Try --precision float32 '
            f"--image-size 64. {command_line.NO_DOWNLOAD}"
        )
    if on_cpu and IMAGE_SIZE > 64:
        print(f"Without a GPU, IMAGE_SIZE = {IMAGE_SIZE} trains for days, or weeks. {command_line.NO_DOWNLOAD}")
    try:
        keras.ops.conv(np.zeros((1, 3, 8, 8), "float32"), np.zeros((3, 3, 3, 4), "float32"))
    except Exception as error:  # TensorFlow's own kind, on processors that oneDNN does not serve
        raise command_line.InputError(
            f"`KERAS_BACKEND` must be one with channels-first convolutions on this machine, such as jax (pip install "
            f"jax, and set KERAS_BACKEND=jax). Received: {keras.backend.backend()} ({str(error)[:200]})"
        ) from error


def learning_rate(steps):
    """Rises over the first WARM_UP of the steps, then falls to 0 along half a cosine."""
    rising = round(WARM_UP * steps)
    if rising == 0:
        return keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - rising, 1), warmup_target=LEARNING_RATE, warmup_steps=rising
    )


def report(scores, labels, predicted, class_names, folder, stopped):
    """Prints the scores, writes them into RUN_FOLDER as JSON, and returns what it printed."""
    columns = list(scores["after training"])
    lines = [" " * 16 + "".join(f"{column:>11}" for column in columns)]
    for name, values in scores.items():
        lines.append(f"{name:<16}" + "".join(f"{values[column]:>11.4f}" for column in columns))
    layout = {"labels": range(len(class_names)), "target_names": class_names, "zero_division": 0}
    measures = precision_recall_fscore_support(labels, predicted, labels=layout["labels"], zero_division=0)
    names = ("precision", "recall", "f1-score", "support")
    per_class = [dict(zip(names, map(float, values), strict=True)) for values in zip(*measures, strict=True)]
    everything = {**scores, "classes after training": dict(zip(class_names, per_class, strict=True))}
    run_folder.write_whole(folder / "report.json", json.dumps(everything, indent=4) + "\n")
    text = "Training stopped early, no longer finite: the best epoch's weights. Lower LEARNING_RATE.\n\n" * stopped
    text += f"Test images, by the vote of {NEIGHBOURS} neighbours among the training images\n\n" + "\n".join(lines)
    text += "\n\nAfter training, for each class\n\n" + classification_report(labels, predicted, **layout, digits=4)
    print(f"\n{text}")
    return text


if __name__ == "__main__":
    command_line.run(main)
