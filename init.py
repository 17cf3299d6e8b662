"""Fine-tunes a pre-trained network with a triplet loss, then predicts classes by nearest neighbours.

    python init.py                                          CIFAR-10, ImageNet weights; a GPU is recommended
    python init.py --epochs 3 --mining batch_hard           override any constant below
    python init.py --dataset my_images --run-folder my_run  your own images, a folder of CLASS/IMAGE or a CSV file
    python init.py --constants examples/digits.json         handwritten digits: no download, no GPU, one minute
    python init.py --constants my_run/constants.json --margin 0.2 --run-folder second
                                                            repeat a run with one constant changed

If a run is interrupted, the same command resumes it. `python classify.py my_run photo.jpg` classifies new images.
"""

from functools import partial

from pipeline import run_folder
from pipeline.settings import keras_settings, options, process

# ----------------------------------------------------------------------------------------------------------------------
# Data
DATASET = "cifar10"  # "cifar10", "digits", a folder of CLASS/IMAGE or train/CLASS/IMAGE and test/CLASS/IMAGE, or a CSV
TEST_FRACTION = 0.2  # fraction of the images for testing, if the data set has no test set of its own
VALIDATION_FRACTION = 0.1  # fraction of the others for choosing the best epoch, if it has no validation set of its own
IMAGE_SIZE = 224  # pixels, height and width of the network's input; smaller is faster
FIT = "scale"  # "scale" stretches images to IMAGE_SIZE, "pad" surrounds smaller ones with black
UNREADABLE_IMAGES = "stop"  # if image files cannot be read, "stop" and name them, or "skip" them
SMALL_CLASSES = "stop"  # if classes have fewer than two training images, "stop" and name them, or "skip" them
HELD_OUT_CLASSES = "none"  # a number, or names with commas, of classes to leave out of training and to measure apart
AUGMENT = "shift_flip"  # "none", "shift" by up to 1/8, or "shift_flip", which also mirrors (not for digits or text)
# Model
BACKBONE = "ResNet50"  # one of keras.applications, "AlexNet", "GoogLeNet", "SmallConvNet", or your own .keras file
PREPROCESSING = "auto"  # of pixels for a .keras file: "auto" leaves it to the file, "tf", "torch", "caffe" as in Keras
WEIGHTS = "imagenet"  # "imagenet", "none" (random), or a weights file of the backbone or of an earlier run
FROZEN_LAYERS = 15  # number of first layers of the backbone that do not train; with random weights all layers train
EMBEDDING_SIZE = 128  # dimensions of an embedding, which is a unit vector
# Loss and optimizer
TRIPLET_LOSS = "in_batch"  # "in_batch" finds triplets inside each batch, "merge" draws random triplets
MINING = "semi_hard"  # which triplets of a batch count, with "in_batch"
MARGIN = 0.3  # on squared distances of unit vectors, which are between 0 and 4
CLASSES_PER_BATCH = 8  # P; a data set with fewer classes has all of them in each batch
IMAGES_PER_CLASS = 16  # K; a batch has P*K images, halve K if memory runs out
EPOCHS = 20  # passes over the training images
LEARNING_RATE = 1e-4  # Adam's highest; 1e-3 with random weights (VGG16: 3e-4), lower for "merge"
WARM_UP = 0.1  # fraction of the steps in which the learning rate rises; then it falls along a cosine
# Run
NEIGHBOURS = 5  # nearest training images that vote for a test image's class
CONTROL = "none"  # "cross_entropy" also fine-tunes the network as a classifier, to compare with; it doubles the time
FALSE_REJECTION_RATE = 0.01  # fraction of images of known classes that may be called unknown; sets the threshold
EXPORT_EMBEDDINGS = False  # True also writes embeddings.csv, and files for TensorBoard's projector
PRECISION = "auto"  # "auto" is mixed_float16 on a GPU and float32 on a CPU; mixed_bfloat16 needs an Ampere GPU or newer
SEED = 0  # of the split, the weights, the batches and the augmentation
CHECKPOINT_MINUTES = 5.0  # minutes between checkpoints
DEVICES = "auto"  # how many train: "auto" is all GPUs on JAX, else one; or a number, see docs/running.md
IMAGES_IN = "auto"  # "memory", "disk", or "auto": memory if the decoded images take at most half of what is free
CACHE_FOLDER = "auto"  # for decoded images on disk; "auto" is ~/.keras/decoded_images, which may be deleted
OVERWRITE = False  # replaces the run in RUN_FOLDER; otherwise it is resumed, or shown if it is finished
RUN_FOLDER = "run"  # where the model, the report and the figures go
# ----------------------------------------------------------------------------------------------------------------------


def main():
    constants = options.override(__file__, globals())  # options of the command line win over the constants above
    globals().update(constants)  # as if these values had been written above
    if run_folder.print_finished(RUN_FOLDER, constants, OVERWRITE):
        return

    # Import what takes seconds, now that no constant is wrong.
    with process.silent_interrupts():
        keras_settings.apply(trains=True)
        import keras

        from fine_tune_model import fine_tuned_models, portable_model, triplet_model
        from pipeline import files, run_identity
        from pipeline.data.batches import Batches, in_order, rows_of_a_batch, training_batches
        from pipeline.data.images import load_images, print_summary
        from pipeline.data.splits import at_most, sample
        from pipeline.neighbour_scores import nearest_neighbour_accuracy
        from pipeline.references import References, trained_classes, write_references
        from pipeline.report import audit, controls, figures, results, scores
        from pipeline.report.embedding_files import write_embeddings
        from pipeline.report.page.page import Page
        from pipeline.settings import devices
        from pipeline.training.alarms import TrainingAlarms
        from pipeline.training.callbacks import HistoryFile, PredictionProgress, TimeEstimate, ValidationAccuracy
        from pipeline.training.checkpoints import Checkpoints
        from pipeline.training.cross_entropy import trained_classifier
        from pipeline.training.learning_rate import warm_up_then_cosine
        from triplet_loss_functions import InBatchTripletLoss, MergeTripletLoss

    keras_settings.set_seed(SEED)
    precision = keras_settings.set_precision(PRECISION, IMAGE_SIZE)

    # Load and split the images.
    fractions, left_out = (TEST_FRACTION, VALIDATION_FRACTION), (UNREADABLE_IMAGES, SMALL_CLASSES, HELD_OUT_CLASSES)
    data = load_images(DATASET, IMAGE_SIZE, FIT, *fractions, SEED, *left_out, IMAGES_IN, CACHE_FOLDER)
    train, validation, _, _, class_names, held_out_names, value_range, checksum = data
    print_summary(data)
    rows = rows_of_a_batch(len(class_names), TRIPLET_LOSS, CLASSES_PER_BATCH, IMAGES_PER_CLASS)
    parallel = devices.distribute(DEVICES, rows)
    neighbours = at_most("NEIGHBOURS", NEIGHBOURS, len(train.labels), "the number of training images")
    sources = {  # what the run depends on, besides the constants
        "images, classes or split of DATASET": checksum,
        "content of the file WEIGHTS": files.checksum(WEIGHTS),
        "content of the file BACKBONE": files.checksum(BACKBONE),
        "KERAS_BACKEND": keras.backend.backend(),
        "precision": precision,
        "value range": value_range,  # of 16-bit images; new images need it
    }
    run_identity.check_same(constants, sources)

    # Build the network.
    frozen_layers = FROZEN_LAYERS if WEIGHTS != "none" else 0
    if frozen_layers != FROZEN_LAYERS:
        print(f"FROZEN_LAYERS = {FROZEN_LAYERS} is not used, since the weights are random: every layer trains.")
    settings = FIT, BACKBONE, WEIGHTS, frozen_layers, EMBEDDING_SIZE, PREPROCESSING
    model = fine_tuned_models(train.array.shape[1:], IMAGE_SIZE, *settings)

    def predict(network, images):
        count, batch_size = len(images.labels), min(CLASSES_PER_BATCH * IMAGES_PER_CLASS, 128)
        batches = Batches(images, in_order(count, batch_size, parallel.count), rows=parallel.rows)
        callbacks = [PredictionProgress(len(batches))]
        outputs = devices.for_every_process(network).predict(batches, verbose=0, callbacks=callbacks)
        return keras.tree.map_structure(lambda output: output[:count], outputs)

    def embed(images):  # with `model` as it then is
        return predict(model, images)

    # Start or resume the run, and measure how well images are classified without training.
    folder = run_folder.start(RUN_FOLDER, constants, OVERWRITE, sources, parallel.count)
    backbone = keras.Model(model.inputs, model.get_layer("pooling").output)
    before = controls.measure_controls(folder, partial(predict, backbone), data, neighbours, EPOCHS, SEED)
    audit.print_audit(before.findings, data, folder / "audit.csv")

    # Train with one of the two triplet losses, and keep the weights of the best epoch.
    if TRIPLET_LOSS == "in_batch":
        trained, loss = keras.Model(model.inputs, model.outputs), InBatchTripletLoss(MARGIN, MINING)
    else:
        trained, loss = triplet_model(model), MergeTripletLoss(MARGIN)
    settings = TRIPLET_LOSS, CLASSES_PER_BATCH, IMAGES_PER_CLASS, SEED, AUGMENT, parallel.rows
    batches = training_batches(train, class_names, *settings)
    metrics = loss.metrics()
    learning_rate = warm_up_then_cosine(LEARNING_RATE, WARM_UP, EPOCHS * len(batches))
    if CONTROL == "cross_entropy":
        settings = batches, validation, len(class_names), predict, keras.optimizers.Adam(learning_rate), EPOCHS
        train_classifier = partial(trained_classifier, model, *settings, folder, CHECKPOINT_MINUTES)
        before.methods.update(controls.measure_cross_entropy(folder, train_classifier, data, neighbours))
    trained.compile(keras.optimizers.Adam(learning_rate), loss, metrics=metrics)
    voting = sample(train, len(validation.labels), SEED)
    vote = partial(nearest_neighbour_accuracy, neighbours=neighbours)
    accuracy = ValidationAccuracy(
        model, lambda: devices.from_first(vote(embed(voting), voting.labels, embed(validation), validation.labels))
    )
    history = HistoryFile(folder / "history.csv")
    page = Page(folder, constants, keras_settings.environment(), data, before, history.seconds)
    progress = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: page.write_progress(history.columns()))
    alarms = TrainingAlarms(MARGIN, MINING if TRIPLET_LOSS == "in_batch" else "merge")
    states = {"accuracy": accuracy, "history": history, "alarms": alarms}
    checkpoints = Checkpoints(trained, metrics, batches, states, folder, CHECKPOINT_MINUTES)
    checkpoints.resume(OVERWRITE)
    page.write_progress(history.columns())
    callbacks = [keras.callbacks.TerminateOnNaN(), TimeEstimate(batches), accuracy, alarms, history, progress]
    checkpoints.fit(EPOCHS, callbacks)
    accuracy.load_best_weights()

    # Predict the classes of the test images by nearest neighbours on the embeddings.
    model = portable_model(model, IMAGE_SIZE, FIT, BACKBONE)  # it is saved, so its embeddings count
    after = results.measure_results(embed, data, neighbours, FALSE_REJECTION_RATE, SEED)

    # Report, and save everything.
    columns = history.columns()
    warnings = scores.prediction_warnings(after, data, FALSE_REJECTION_RATE, columns, checkpoints.diverged)
    warnings += scores.held_out_warnings(held_out_names, trained_classes(WEIGHTS))
    report, found = scores.print_report(folder, data, before, after, neighbours, FALSE_REJECTION_RATE, SEED, warnings)
    with files.atomic_path(folder / "embedding_model.keras") as path:
        model.save(path)
    references = References(after.references, train.labels, class_names, train.names, after.threshold)
    write_references(folder, references)
    print("Writing the report page ...")
    drawn = figures.some_images(len(after.embeddings), SEED)
    places = [figures.map_places(each, drawn, SEED) for each in (before.embeddings, after.embeddings)]
    page.write(columns, report, found, after, *places, drawn)
    if EXPORT_EMBEDDINGS:
        write_embeddings(folder, data, after, places[1], drawn)
    run_folder.finish(folder, report)
    print(f"The model, its reference embeddings and the report are in {folder}/; open {folder / 'report.html'}")
    print(f"To classify new images: python classify.py {folder} IMAGE_OR_FOLDER")


if __name__ == "__main__":
    process.run(main)
