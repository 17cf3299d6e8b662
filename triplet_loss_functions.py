"""Two triplet losses for Keras 3, on any backend. This file imports Keras alone: copy it into any project.

FaceNet's triplet loss (Schroff et al. 2015, equation 2) asks that an anchor lie nearer to a positive, an image of its
own class, than to a negative, an image of another class, by a margin; in squared Euclidean distances of embeddings:

    loss(anchor, positive, negative) = max(0, |anchor - positive|² - |anchor - negative|² + margin)

`InBatchTripletLoss` finds its triplets inside each batch of labelled embeddings:

    model.compile(loss=InBatchTripletLoss(margin=0.3, mining="semi_hard"))
    model.fit(images, labels)  # integer labels; a batch needs several images of a class, and several classes

`MergeTripletLoss` takes triplets that were made beforehand, from a model that merges three branches:

    outputs = keras.ops.stack([anchor, positive, negative], axis=1)  # shape (batch, 3, embedding_size)
    model.compile(loss=MergeTripletLoss(margin=0.3))

Both are finite, with finite gradients, for every batch of finite embeddings. An anchor without a positive or without a
negative takes no part; a batch without any triplet has loss 0 and gradient 0.
"""

import keras
from keras import ops

MINING = ("batch_all", "batch_hard", "semi_hard")


def in_batch_triplet_loss(labels, embeddings, margin=0.3, mining="semi_hard"):
    """Triplet loss of the triplets found inside a batch.

    Mining, that is which triplets count, and what the loss is the mean of:

    - `"batch_all"`: every valid triplet; mean over the active ones, those of positive loss (Hermans et al. 2017).
    - `"batch_hard"`: each anchor's farthest positive with its nearest negative; mean over anchors (the same paper).
    - `"semi_hard"`: each anchor-positive pair with the nearest negative that is farther than the positive; with the
      farthest negative if none is; mean over pairs (FaceNet, section 3.2).

    Time is O(batch² · images of the largest class), memory O(batch²): no tensor has three batch axes.

    Args:
        labels: integers of any dtype, shape `(batch,)` or `(batch, 1)`.
        embeddings: floats, shape `(batch, embedding_size)`; float16 and bfloat16 are computed in float32.
        margin: positive float, in squared distance.
        mining: `"batch_all"`, `"batch_hard"` or `"semi_hard"`.

    Returns:
        Losses of shape `(batch,)`, one for each anchor, scaled so that their mean is the mean described above.

    Raises:
        ValueError: if labels or embeddings have another shape, or `mining` is none of the three.
    """
    labels, embeddings = _checked_batch(labels, embeddings)
    losses, _, counted = _in_batch_triplets(labels, embeddings, margin, mining)
    batch = ops.cast(ops.shape(embeddings)[0], losses.dtype)
    return losses * (batch / ops.maximum(counted, 1))  # shape (batch,)


def merge_triplet_loss(anchor, positive, negative, margin=0.3):
    """Triplet loss of given triplets.

    Args:
        anchor: embeddings, shape `(batch, embedding_size)`.
        positive: embeddings of images of the anchors' classes, the same shape.
        negative: embeddings of images of other classes, the same shape.
        margin: positive float, in squared distance.

    Returns:
        Losses of shape `(batch,)`, one for each triplet.
    """
    to_positive, to_negative = _merge_distances(anchor, positive, negative)
    return ops.relu(to_positive - to_negative + margin)  # shape (batch,)


@keras.saving.register_keras_serializable("triplet_loss")
class InBatchTripletLoss(keras.losses.Loss):
    """`in_batch_triplet_loss` for `compile`; `fit` needs integer labels of shape `(batch,)` or `(batch, 1)`.

    Args:
        margin: positive float, in squared distance; unit vectors' squared distances lie between 0 and 4.
        mining: `"batch_all"`, `"batch_hard"` or `"semi_hard"`; see `in_batch_triplet_loss`.
        name: str, the loss's name.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.
    """

    def __init__(self, margin=0.3, mining="semi_hard", name="in_batch_triplet_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.margin = _checked_margin(margin)
        self.mining = _checked_mining(mining)

    def call(self, y_true, y_pred):
        return in_batch_triplet_loss(y_true, y_pred, self.margin, self.mining)

    def metrics(self):
        """Metrics for `compile` that show how the training goes; the loss itself does not.

        Returns:
            list of metrics: `active_triplets`, the fraction of the mined triplets with a positive loss;
            `positive_distance` and `negative_distance`, the mean squared distances of a batch's
            anchor-positive and anchor-negative pairs.
        """

        def active_triplets(labels, embeddings):
            labels, embeddings = _checked_batch(labels, embeddings)
            _, active, counted = _in_batch_triplets(labels, embeddings, self.margin, self.mining, count_all=True)
            return active / ops.maximum(counted, 1)

        def positive_distance(labels, embeddings):
            labels, embeddings = _checked_batch(labels, embeddings)
            return _mean_where(_pair_masks(labels)[0], squared_distances(embeddings))

        def negative_distance(labels, embeddings):
            labels, embeddings = _checked_batch(labels, embeddings)
            return _mean_where(_pair_masks(labels)[1], squared_distances(embeddings))

        return _metrics(active_triplets, positive_distance, negative_distance)

    def get_config(self):
        return {**super().get_config(), "margin": self.margin, "mining": self.mining}


@keras.saving.register_keras_serializable("triplet_loss")
class MergeTripletLoss(keras.losses.Loss):
    """`merge_triplet_loss` for `compile`, on the merged embeddings of three branches.

    The model's output is `(batch, 3, embedding_size)`: anchor, positive and negative in this order. The targets that
    `fit` asks for are not used; give it anything of the batch's length, such as the anchors' labels.

    Args:
        margin: positive float, in squared distance; unit vectors' squared distances lie between 0 and 4.
        name: str, the loss's name.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.
    """

    def __init__(self, margin=0.3, name="merge_triplet_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.margin = _checked_margin(margin)

    def call(self, y_true, y_pred):
        return merge_triplet_loss(*_branches(y_pred), self.margin)

    def metrics(self):
        """The same three metrics as `InBatchTripletLoss.metrics`, over the given triplets."""

        def active_triplets(targets, merged):
            return ops.cast(merge_triplet_loss(*_branches(merged), self.margin) > 0, "float32")

        def positive_distance(targets, merged):
            return _merge_distances(*_branches(merged))[0]

        def negative_distance(targets, merged):
            return _merge_distances(*_branches(merged))[1]

        return _metrics(active_triplets, positive_distance, negative_distance)

    def get_config(self):
        return {**super().get_config(), "margin": self.margin}


def squared_distances(embeddings):
    """Squared Euclidean distances between all embeddings of a batch, never negative, 0 on the diagonal.

    Args:
        embeddings: float32 or float64, shape `(batch, embedding_size)`.

    Returns:
        Distances of shape `(batch, batch)`.
    """
    embeddings = embeddings - ops.stop_gradient(ops.mean(embeddings, axis=0))  # nearer to 0, so less is cancelled
    norms = ops.sum(embeddings * embeddings, axis=1)  # shape (batch,)
    distances = norms[:, None] - 2 * _products(embeddings) + norms[None, :]  # shape (batch, batch)
    return ops.where(ops.eye(ops.shape(embeddings)[0], dtype="bool"), 0, ops.relu(distances))


def _products(embeddings):
    """Dot products between all embeddings, as exact where a GPU multiplies in TF32 (10 bits of mantissa).

    Each number is split into its leading 11 bits, of which TF32 loses none or nothing that matters, and the rest
    (Veltkamp's splitting); what TF32 loses of the products with the rest is below float32's own rounding.
    """
    scaled = embeddings * 8193.0  # 2**13 + 1
    leading = scaled - (scaled - embeddings)
    rest = embeddings - leading
    crossed = ops.matmul(leading, ops.transpose(rest))  # shape (batch, batch)
    return ops.matmul(leading, ops.transpose(leading)) + (crossed + ops.transpose(crossed))


def _pair_masks(labels):
    """Which pairs of a batch are anchor and positive, and which anchor and negative; each `(batch, batch)`."""
    same = labels[:, None] == labels[None, :]
    return ops.logical_and(same, ops.logical_not(ops.eye(ops.shape(labels)[0], dtype="bool"))), ops.logical_not(same)


def _in_batch_triplets(labels, embeddings, margin, mining, count_all=False):
    """Sums the mined triplets of each anchor, one positive of every anchor at a time.

    Returns:
        The anchors' summed losses `(batch,)`, and for the whole batch the number of active triplets and the number
        to divide by (that of active triplets for `"batch_all"`, unless `count_all`, else that of all mined ones).
    """
    _checked_mining(mining)
    distances = squared_distances(embeddings)  # shape (batch, batch)
    positives, negatives = _pair_masks(labels)  # each of shape (batch, batch)
    fixed = ops.stop_gradient(distances)  # mining and counting have no gradient
    positives = ops.logical_and(positives, ops.any(negatives, axis=1, keepdims=True))
    if mining == "batch_hard":
        positives = _only_at(ops.argmax(ops.where(positives, fixed, -1), axis=1), positives)
        negatives = _only_at(_nearest(fixed, negatives), negatives)

    batch = ops.shape(fixed)[0]
    columns = ops.arange(batch)
    number_of_positives = ops.sum(ops.cast(positives, "int32"), axis=1)  # shape (batch,)
    order = ops.argsort(ops.where(positives, columns[None, :], columns[None, :] + batch), axis=1)  # positives first
    farthest = ops.argmax(ops.where(negatives, fixed, -1), axis=1)  # shape (batch,)

    def add_one_positive(rank, sums):
        weights, losses, active_count, mined_count = sums
        positive = ops.take(order, rank, axis=1)[:, None]  # shape (batch, 1)
        limit = ops.take_along_axis(fixed, positive, axis=1)  # shape (batch, 1)
        mined = ops.logical_and(negatives, (rank < number_of_positives)[:, None])  # shape (batch, batch)
        if mining == "semi_hard":
            farther = ops.logical_and(negatives, fixed > limit)
            chosen = ops.where(ops.any(farther, axis=1), _nearest(fixed, farther), farthest)
            mined = _only_at(chosen, mined)
        gap = limit - fixed + margin  # shape (batch, batch)
        active = ops.logical_and(mined, gap > 0)
        count = ops.sum(ops.cast(active, fixed.dtype), axis=1, keepdims=True)  # shape (batch, 1)
        weights = weights + ops.where(columns == positive, count, 0) - ops.cast(active, fixed.dtype)
        losses = losses + ops.sum(ops.where(active, gap, 0), axis=1)
        mined_count = mined_count + ops.sum(ops.cast(mined, fixed.dtype))
        return weights, losses, active_count + ops.sum(count), mined_count

    nothing = ops.zeros_like(fixed)
    start = (nothing, nothing[:, 0], ops.sum(nothing), ops.sum(nothing))
    sums = ops.fori_loop(0, ops.max(number_of_positives), add_one_positive, start)
    weights, losses, active_count, mined_count = (ops.stop_gradient(each) for each in sums)

    # A distance's weight is its derivative: how often it counts as a positive's less how often as a negative's.
    slope = ops.sum(weights * distances, axis=1)  # shape (batch,)
    losses = losses + slope - ops.stop_gradient(slope)
    return losses, active_count, active_count if mining == "batch_all" and not count_all else mined_count


def _nearest(distances, mask):
    return ops.argmin(ops.where(mask, distances, float("inf")), axis=1)  # shape (batch,)


def _only_at(column, mask):
    """The mask with one column of each row kept."""
    return ops.logical_and(mask, ops.arange(ops.shape(mask)[1]) == ops.cast(column, "int32")[:, None])


def _merge_distances(anchor, positive, negative):
    anchor, positive, negative = (_at_least_float32(each) for each in (anchor, positive, negative))
    to_positive = ops.sum(ops.square(anchor - positive), axis=-1)  # shape (batch,)
    return to_positive, ops.sum(ops.square(anchor - negative), axis=-1)


def _mean_where(mask, values):
    mean = ops.sum(ops.where(mask, values, 0)) / ops.maximum(ops.sum(ops.cast(mask, values.dtype)), 1)
    return mean


def _metrics(*functions):
    return [keras.metrics.MeanMetricWrapper(function, name=function.__name__) for function in functions]


def _branches(merged):
    if len(merged.shape) != 3 or merged.shape[1] != 3:
        raise ValueError(f"Merged embeddings must have shape (batch, 3, embedding_size). Received: {merged.shape}")
    return ops.unstack(merged, 3, axis=1)


def _checked_batch(labels, embeddings):
    labels, embeddings = ops.convert_to_tensor(labels), _at_least_float32(embeddings)
    if len(embeddings.shape) != 2:
        raise ValueError(f"Embeddings must have shape (batch, embedding_size). Received: {embeddings.shape}")
    if len(labels.shape) not in (1, 2) or (len(labels.shape) == 2 and labels.shape[1] != 1):
        raise ValueError(
            "Labels must be integers of shape (batch,) or (batch, 1); take the argmax of one-hot labels. "
            f"Received shape: {labels.shape}"
        )
    if None not in (labels.shape[0], embeddings.shape[0]) and labels.shape[0] != embeddings.shape[0]:
        raise ValueError(f"There must be one label for each of {embeddings.shape[0]} embeddings. "
                         f"Received: {labels.shape[0]}")  # fmt: skip
    return ops.reshape(labels, (-1,)), embeddings


def _at_least_float32(embeddings):
    embeddings = ops.convert_to_tensor(embeddings)
    wide_enough = keras.backend.standardize_dtype(embeddings.dtype) in ("float32", "float64")
    return embeddings if wide_enough else ops.cast(embeddings, "float32")


def _checked_margin(margin):
    if not margin > 0:
        raise ValueError(f"`margin` must be a positive number. Received: {margin}")
    return float(margin)


def _checked_mining(mining):
    if mining not in MINING:
        raise ValueError(f"`mining` must be one of {MINING}. Received: {mining!r}")
    return mining
