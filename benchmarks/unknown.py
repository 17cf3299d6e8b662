"""Which score tells images of unknown classes best from known ones: the project's, and others, on the same embeddings.

    python benchmarks/unknown.py RUN_FOLDER KNOWN_FOLDER UNKNOWN_FOLDER

KNOWN_FOLDER has images of the run's classes that it has not trained on, UNKNOWN_FOLDER images of other classes, both in
class folders or not. A score is better if its AUROC is higher. The project uses the distance to the nearest reference.
The last columns are the fractions of known and of unknown images that are rejected, with a threshold that rejects 5% of
one half of the known images, measured on the other half.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from pipeline.settings import keras_settings

MOST = 20  # neighbours


def main():
    keras_settings.apply()
    from pipeline.classifier import Classifier
    from pipeline.data.folders import images_in
    from pipeline.data.pixels import image_suffixes
    from pipeline.neighbours import unknown_threshold

    run_folder, *folders = sys.argv[1:]
    classifier = Classifier(run_folder)
    known, unknown = (classifier.embed(images_in([each], image_suffixes(), []))[0] for each in folders)
    references, labels = classifier.references.embeddings, classifier.references.labels
    search = NearestNeighbors(n_neighbors=MOST, algorithm="brute").fit(references)
    own, _ = search.kneighbors()  # of the references among themselves
    means = np.stack([references[labels == label].mean(axis=0) for label in np.unique(labels)])
    outliers = LocalOutlierFactor(n_neighbors=MOST, novelty=True, algorithm="brute").fit(references)

    def share_of_others(indices):
        return 1 - (labels[indices] == labels[indices[:, :1]]).mean(axis=1)

    scores = {
        "distance to the nearest reference (the project)": lambda x, d, i: d[:, 0],
        "mean distance to the 5 nearest": lambda x, d, i: d[:, :5].mean(axis=1),
        "mean distance to the 20 nearest": lambda x, d, i: d.mean(axis=1),
        "distance, relative to that reference's own": lambda x, d, i: d[:, 0] / (own[i[:, 0], 0] + 1e-6),
        "mean of 5, relative to the references' own": lambda x, d, i: (
            d[:, :5].mean(axis=1) / (own[i[:, :5], :5].mean(axis=(1, 2)) + 1e-6)
        ),
        "scikit-learn's LocalOutlierFactor, 20": lambda x, d, i: -outliers.score_samples(x),
        "distance to the nearest class mean": lambda x, d, i: np.linalg.norm(x[:, None] - means, axis=2).min(axis=1),
        "share of other classes among the 20 nearest": lambda x, d, i: share_of_others(i),
    }
    print("| score | AUROC | known rejected | unknown rejected |\n|---|---|---|---|")
    order = np.random.default_rng(0).permutation(len(known))
    one, other = np.array_split(order, 2)
    for name, score in scores.items():
        of_known, of_unknown = (score(x, *search.kneighbors(x)) for x in (known, unknown))
        is_unknown = np.repeat([0, 1], [len(known), len(unknown)])
        auroc = roc_auc_score(is_unknown, np.concatenate([of_known, of_unknown]))
        threshold = unknown_threshold(of_known[one], 0.05)
        rejected = np.mean(of_known[other] > threshold), np.mean(of_unknown > threshold)
        print(f"| {name} | {auroc:.3f} | {rejected[0]:.1%} | {rejected[1]:.1%} |")


if __name__ == "__main__":
    main()
