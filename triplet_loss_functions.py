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

Both are finite, with finite gradients, for every batch of embeddings shorter than 1e12; embeddings that are not finite
themselves give NaN, and are never hidden by a mask. An anchor without a positive or without a negative takes no part; a
batch without any triplet has loss 0 and gradient 0. No tensor has three batch axes.
"""

import keras
from keras import ops

MINING = ("batch_all", "batch_hard", "semi_hard", "all_semi_hard")
DISTANCES = ("squared", "euclidean")
AVERAGES = ("auto", "active", "all", "sum")
STATISTICS = ("active_triplets", "positive_distance", "negative_distance")
ANCHORS_AT_ONCE = 512  # that batch-hard mining compares with a batch: few enough that memory is used again


def in_batch_triplet_loss(labels, embeddings, margin=0.3, mining="semi_hard", distance="squared", average="auto"):
    """Triplet loss of the triplets found inside a batch.

    Mining says which of a batch's triplets count:

    - `"batch_all"`: every valid triplet (Hermans et al. 2017, "In Defense of the Triplet Loss", equation 6).
    - `"batch_hard"`: each anchor's farthest positive with its nearest negative (the same paper, equation 5).
    - `"semi_hard"`: each anchor-positive pair with the nearest negative that is farther than the positive (FaceNet,
      section 3.2); where none is farther, with the farthest negative, as in TensorFlow Addons.
    - `"all_semi_hard"`: every valid triplet whose negative is farther than the positive and violates the margin
      (with the soft margin, which all violate: every valid triplet whose negative is farther).

    The average says what the batch's loss is: the mean over the `"active"` triplets, those of positive loss; the mean
    over `"all"` the mined ones (for `"all_semi_hard"` all valid ones); or their `"sum"` (FaceNet's equation 2).
    `"auto"` is what the papers use: all for `"batch_hard"`, `"semi_hard"` and the soft margin, else active.

    Memory is O(batch²), and O(batch) for the loss of `"batch_hard"`, without statistics. Time is O(batch²) for
    `"batch_hard"`, O(batch² log batch) for `"batch_all"` with a margin, and O(batch² · images of the largest class)
    otherwise.

    Args:
        labels: integers of any dtype that the backend has (JAX wraps those beyond 32 bits unless told otherwise), shape
            `(batch,)` or `(batch, 1)`, of at least one image. `fit` makes them float32, in which integers above 2**24
            are no longer told apart, and nothing tells fractional ones while it runs as a graph.
        embeddings: floats, shape `(batch, embedding_size)`; float16 and bfloat16 are computed in float32, and float64
            too on torch, where Keras multiplies matrices in it.
        margin: positive float, in the unit of the distance; or `"soft"`, log(1 + exp(.)) in place of max(0, . +
            margin) (Hermans et al. 2017, section 2).
        mining: one of the four above.
        distance: `"squared"` Euclidean, as in FaceNet, or `"euclidean"`, whose gradient at distance 0 is 0. A root is
            less exact near 0: of unit vectors nearer than 1e-3, Euclidean distances carry an error of up to 1e-3,
            but for `"batch_hard"`, which computes them from the embeddings' differences.
        average: `"auto"`, `"active"`, `"all"` or `"sum"`.

    Returns:
        Losses of shape `(batch,)`, one for each anchor, scaled so that their mean is the average described above.

    Raises:
        ValueError: if labels or embeddings have another shape, labels are seen to be fractional, or another argument
            is none of those named, or the average over `"active"` triplets is asked for with the soft margin, with
            which all are.
    """
    margin, average = _checked_choices(margin, mining, distance, average)
    labels, embeddings = _checked_batch(labels, embeddings)
    losses, active, mined = _mined_losses(labels, embeddings, margin, mining, distance)
    return _averaged(losses, active, mined, average)


def in_batch_triplet_statistics(labels, embeddings, margin=0.3, mining="semi_hard", distance="squared", average="auto"):
    """The loss, and what a training log should show beside it, from the same distances (batch-hard has its own).

    Args:
        labels, embeddings, margin, mining, distance, average: as in `in_batch_triplet_loss`.

    Returns:
        Tuple of the losses `(batch,)` and a dict of scalars: `active_triplets`, the fraction of the mined triplets
        (for `"all_semi_hard"` of all valid ones) whose loss is positive, or with the soft margin whose negative is
        nearer than the positive; `positive_distance` and `negative_distance`, the means over all pairs.
    """
    margin, average = _checked_choices(margin, mining, distance, average)
    labels, embeddings = _checked_batch(labels, embeddings)
    pairs = distances, positives, negatives = _all_pairs(labels, embeddings, distance)
    losses, active, mined = _mined_losses(labels, embeddings, margin, mining, distance, pairs)
    statistics = {
        "active_triplets": active / ops.maximum(mined, 1),
        "positive_distance": _mean_where(positives, distances),
        "negative_distance": _mean_where(negatives, distances),
    }
    return _averaged(losses, active, mined, average), statistics


def merge_triplet_loss(anchor, positive, negative, margin=0.3, distance="squared", average="all"):
    """Triplet loss of given triplets.

    Args:
        anchor: embeddings, shape `(batch, embedding_size)`.
        positive: embeddings of images of the anchors' classes, the same shape.
        negative: embeddings of images of other classes, the same shape.
        margin, distance: as in `in_batch_triplet_loss`.
        average: mean over `"active"` or `"all"` triplets, or their `"sum"`; `"auto"` is all.

    Returns:
        Losses of shape `(batch,)`, one for each triplet, scaled so that their mean is the average asked for.

    Raises:
        ValueError: if the shapes differ, or another argument is none of those named.
    """
    margin, average = _checked_choices(margin, "batch_hard", distance, average)  # averaged as batch-hard triplets are
    to_positive, to_negative = _branch_distances(anchor, positive, negative, distance)
    losses, slopes = _loss_of_gap(to_positive - to_negative, margin)  # each of shape (batch,)
    active, mined = _count(_is_active(slopes, margin)), _count(ops.ones_like(losses))
    losses = ops.where(ops.isfinite(to_positive + to_negative), losses, float("nan"))
    return _averaged(losses, active, mined, average)


@keras.saving.register_keras_serializable("triplet_loss")
class InBatchTripletLoss(keras.losses.Loss):
    """`in_batch_triplet_loss` for `compile`; `fit` needs integer labels of shape `(batch,)` or `(batch, 1)`.

    Args:
        margin: positive float, or `"soft"`; unit vectors' squared distances lie between 0 and 4.
        mining: `"batch_all"`, `"batch_hard"`, `"semi_hard"` or `"all_semi_hard"`.
        distance: `"squared"` or `"euclidean"`.
        average: `"auto"`, `"active"`, `"all"` or `"sum"`.
        name: str, the loss's name.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`; keep the default reduction, a mean.

    Raises:
        ValueError: if an argument is none of those named.
    """

    def __init__(
        self,
        margin=0.3,
        mining="semi_hard",
        distance="squared",
        average="auto",
        name="in_batch_triplet_loss",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        _check_dtype(self.dtype)
        margin, _ = _checked_choices(margin, mining, distance, average)
        self.settings = {"margin": margin, "mining": mining, "distance": distance, "average": average}

    def call(self, y_true, y_pred):
        return in_batch_triplet_loss(y_true, y_pred, **self.settings)

    def metrics(self):
        """Metrics for `compile` that show how training goes: see `in_batch_triplet_statistics`.

        They repeat the loss's computations; `in_batch_triplet_statistics` gives all at once, for your own loop.

        Returns:
            list of three metrics: `active_triplets`, `positive_distance` and `negative_distance`.
        """
        return [TripletStatistic(self, name) for name in STATISTICS]

    def statistic(self, name, labels, embeddings):
        """One of a batch's statistics, computed without what it does not need, and its weight: 0 if there is none."""
        labels, embeddings = _checked_batch(labels, embeddings)
        if name == "active_triplets":
            choices = (self.settings[each] for each in ("margin", "mining", "distance"))
            _, active, mined = _mined_losses(labels, embeddings, *choices)
            return active / ops.maximum(mined, 1), ops.cast(mined > 0, "float32")
        distances, positives, negatives = _all_pairs(labels, embeddings, self.settings["distance"])
        pairs = positives if name == "positive_distance" else negatives
        value = _mean_where(pairs, distances)
        return value, ops.cast(ops.any(pairs), "float32")

    def get_config(self):
        return {**super().get_config(), "dtype": self.dtype, **self.settings}


@keras.saving.register_keras_serializable("triplet_loss")
class MergeTripletLoss(keras.losses.Loss):
    """`merge_triplet_loss` for `compile`, on the merged embeddings of three branches.

    The model's output is `(batch, 3, embedding_size)`: anchor, positive and negative in this order. The targets that
    `fit` asks for are not used; give it anything of the batch's length, such as the anchors' labels.

    Args:
        margin: positive float, or `"soft"`; unit vectors' squared distances lie between 0 and 4.
        distance: `"squared"` or `"euclidean"`.
        average: `"auto"`, `"active"`, `"all"` or `"sum"`.
        name: str, the loss's name.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`; keep the default reduction, a mean.

    Raises:
        ValueError: if an argument is none of those named, or the merged embeddings have another shape.
    """

    def __init__(self, margin=0.3, distance="squared", average="all", name="merge_triplet_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        _check_dtype(self.dtype)
        margin, _ = _checked_choices(margin, "batch_hard", distance, average)
        self.settings = {"margin": margin, "distance": distance, "average": average}

    def call(self, y_true, y_pred):
        return merge_triplet_loss(*_branches(y_pred), **self.settings)

    def metrics(self):
        """The same three metrics as `InBatchTripletLoss.metrics`, over the given triplets."""
        return [TripletStatistic(self, name) for name in STATISTICS]

    def statistic(self, name, targets, merged):
        """One of the statistics of each triplet, shape `(batch,)`, and their weights: all alike."""
        to_positive, to_negative = _branch_distances(*_branches(merged), self.settings["distance"])
        if name == "active_triplets":
            margin = self.settings["margin"]
            return ops.cast(_is_active(_loss_of_gap(to_positive - to_negative, margin)[1], margin), "float32"), None
        return to_positive if name == "positive_distance" else to_negative, None

    def get_config(self):
        return {**super().get_config(), "dtype": self.dtype, **self.settings}


@keras.saving.register_keras_serializable("triplet_loss")
class TripletStatistic(keras.metrics.Mean):
    """A statistic for the metrics of `compile`, a mean over the batches that have it; sample weights play no part.

    Args:
        loss: `InBatchTripletLoss` or `MergeTripletLoss`.
        statistic: `"active_triplets"`, `"positive_distance"` or `"negative_distance"`.
        name: str, the metric's name; the statistic's if not given.
        **kwargs: `dtype` of `keras.metrics.Mean`.

    Raises:
        ValueError: if there is no such statistic.
    """

    def __init__(self, loss, statistic, name=None, **kwargs):
        super().__init__(name=name or statistic, **kwargs)
        if statistic not in STATISTICS:
            raise ValueError(f"`statistic` must be one of {', '.join(map(repr, STATISTICS))}. Received: {statistic!r}")
        self.loss, self.statistic = loss, statistic

    def update_state(self, y_true, y_pred, sample_weight=None):
        value, weight = self.loss.statistic(self.statistic, y_true, y_pred)
        return super().update_state(value, weight)

    def get_config(self):
        loss = keras.saving.serialize_keras_object(self.loss)
        return {**super().get_config(), "loss": loss, "statistic": self.statistic}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})


def squared_distances(embeddings):
    """Squared Euclidean distances between all embeddings of a batch, never negative, 0 on the diagonal.

    On unit vectors they are exact to 5e-6, also where a GPU multiplies float32 matrices in TF32; between whole numbers
    less than 2048 apart, exact.

    Args:
        embeddings: floats, shape `(batch, embedding_size)`.

    Returns:
        Distances of shape `(batch, batch)`.
    """
    embeddings = _centred(_at_least_float32(embeddings))
    products = _twice_products(embeddings)  # shape (batch, batch)
    norms = ops.diagonal(products) / 2  # shape (batch,); rounded as the products are
    return ops.relu(norms[:, None] - products + norms[None, :])


def _centred(embeddings):
    """Embeddings moved nearer to 0, where less is cancelled, but not by one that lies far from the others."""
    shortest = ops.argmin(ops.sum(ops.square(embeddings), axis=1))
    return embeddings - ops.stop_gradient(ops.take(embeddings, shortest, axis=0))


def _leading_and_rest(embeddings):
    """Embeddings as a sum of their leading 10 bits, of which TF32 loses nothing, and the rest; without a gradient.

    What TF32 loses of products with the rest is near float32's own rounding. The split is by bits, since a compiler
    might simplify one by arithmetic (Veltkamp's).
    """
    fixed = ops.stop_gradient(embeddings)
    leading = ops.view(ops.bitwise_and(ops.view(fixed, "int32"), -(2**13)), "float32")
    return leading, fixed - leading


def _may_multiply_in_tf32():
    """Whether there are other devices than CPUs; True where Keras does not tell, as on PyTorch."""
    try:
        return not keras.distribution.list_devices()[0].startswith("cpu")
    except Exception:  # of each backend's own kind, and AttributeError on those without such a list
        return True


def _is_float64(values):
    return keras.backend.standardize_dtype(values.dtype) == "float64"


def _twice_products(embeddings):
    """Twice the dot products between all embeddings, as exact where a GPU multiplies in TF32 (10 bits of mantissa)."""
    if _is_float64(embeddings):
        half = ops.matmul(embeddings, ops.transpose(embeddings))
    else:
        leading, rest = _leading_and_rest(embeddings)
        leading = embeddings - rest  # with the gradient of the embeddings
        columns = ops.transpose(leading)
        half = ops.matmul(leading, columns) + ops.matmul(rest, 2 * columns + ops.transpose(rest))
    return half + ops.transpose(half)  # shape (batch, batch)


def _of_squared(squared, distance):
    """Squared distances as they are, or their roots, with gradient 0 where they are 0."""
    if distance == "squared":
        return squared
    duplicate = squared == 0
    return ops.where(duplicate, 0, ops.sqrt(ops.where(duplicate, 1, squared)))


def _all_pairs(labels, embeddings, distance):
    """Distances between all images, which pairs are anchor and positive, and which anchor and negative."""
    distances = _of_squared(squared_distances(embeddings), distance)  # shape (batch, batch), as are the others
    same = labels[:, None] == labels[None, :]
    itself = ops.eye(ops.shape(labels)[0], dtype="bool")
    return distances, ops.logical_and(same, ops.logical_not(itself)), ops.logical_not(same)


def _loss_of_gap(gap, margin):
    """Losses of d(anchor, positive) - d(anchor, negative), and their slopes, in any shape."""
    if margin == "soft":
        return ops.softplus(gap), ops.sigmoid(gap)
    return ops.relu(gap + margin), ops.cast(gap + margin > 0, gap.dtype)


def _is_active(slopes, margin):
    """Whether the loss is positive; with the soft margin, whether the negative is nearer than the positive."""
    return slopes > (0.5 if margin == "soft" else 0)


def _averaged(losses, active, mined, average):
    """Losses scaled so that their mean over the batch is the average asked for."""
    counted = ops.cast({"active": active, "all": mined, "sum": 1.0}[average], losses.dtype)
    return losses * (ops.sum(ops.ones_like(losses)) / ops.maximum(counted, 1))


def _mined_losses(labels, embeddings, margin, mining, distance, pairs=None):
    """Losses summed for each anchor, and the numbers of active and mined triplets."""
    if mining == "batch_hard":
        sums = _hardest(labels, embeddings, margin, distance)
    else:
        distances, positives, negatives = pairs or _all_pairs(labels, embeddings, distance)
        if mining == "batch_all" and margin != "soft":
            sums = _all_by_sorting(distances, positives, negatives, margin)
        else:
            sums = _by_positives(labels, distances, negatives, margin, mining)
    losses, active, mined = sums
    finite = ops.isfinite(ops.sum(ops.stop_gradient(embeddings)))  # or else masks might hide one that is not
    return ops.where(finite, losses, float("nan")), active, mined


def _hardest(labels, embeddings, margin, distance):
    """Batch-hard losses `(batch,)`, and the numbers of active and of mined triplets.

    The distances only choose; those of the chosen are computed again from the embeddings, exactly also for near ones.
    """
    positive, negative = _farthest_and_nearest(labels, ops.stop_gradient(embeddings))  # each of shape (batch,)
    is_other = positive != ops.arange(ops.shape(labels)[0], dtype="int32")
    valid = ops.logical_and(is_other, ops.take(labels, negative) != labels)
    positive, negative = ops.take(embeddings, positive, axis=0), ops.take(embeddings, negative, axis=0)
    to_positive, to_negative = _branch_distances(embeddings, positive, negative, distance)
    losses, slopes = _loss_of_gap(to_positive - to_negative, margin)  # each of shape (batch,)
    active = ops.logical_and(valid, _is_active(slopes, margin))
    return ops.where(valid, losses, 0), _count(active), _count(valid)


def _farthest_and_nearest(labels, embeddings):
    """Each anchor's farthest other image of its class, or else itself; and its nearest of another, if there is one.

    The distances come from one product for some anchors at a time, which needs less memory than the two products and
    the transposition of `squared_distances`; and where Keras knows of CPUs alone, which do not multiply in TF32 unless
    told to, from a third of the multiplications.
    """
    batch, embeddings = ops.shape(labels)[0], _centred(embeddings)
    at_once = min(batch, ANCHORS_AT_ONCE) if isinstance(batch, int) else ops.minimum(batch, ANCHORS_AT_ONCE)
    norms = ops.sum(ops.square(embeddings), axis=1)  # shape (batch,)
    left, right = embeddings, embeddings
    if not _is_float64(embeddings) and _may_multiply_in_tf32():
        leading, rest = _leading_and_rest(embeddings)
        left = ops.concatenate([leading, rest, leading], axis=1)  # shape (batch, 3 · embedding_size)
        right = ops.concatenate([leading, embeddings, rest], axis=1)
    columns, everyone = ops.transpose(2 * right), ops.arange(batch, dtype="int32")

    def choose(step, chosen):
        first = ops.minimum(step * at_once, batch - at_once)  # the last ones end with the batch
        anchors = first + ops.arange(at_once, dtype="int32")
        products = ops.matmul(ops.take(left, anchors, axis=0), columns)  # shape (anchors, batch)
        distances = ops.relu(ops.take(norms, anchors)[:, None] - products + norms[None, :])
        keys, infinite = _as_integers(distances)  # whose argmax is faster than that of floats
        same = ops.take(labels, anchors)[:, None] == labels[None, :]
        keys = ops.where(same, keys, keys - infinite)  # those of other classes are below -1
        keys = ops.where(anchors[:, None] == everyone, -1, keys)  # the anchor itself is neither
        extremes = ops.argmax(keys, axis=1), ops.argmin(keys, axis=1)  # each of shape (anchors,)
        pairs = zip(chosen, extremes, strict=True)
        return tuple(ops.scatter_update(of_all, anchors[:, None], ops.cast(some, "int32")) for of_all, some in pairs)

    nothing = ops.zeros((batch,), "int32")
    return ops.fori_loop(0, (batch + at_once - 1) // at_once, choose, (nothing, nothing))


def _all_by_sorting(distances, positives, negatives, margin):
    """Losses of all valid triplets, summed for each anchor, and the numbers of active and of valid ones.

    Sorting d(a,p) + margin and d(a,n) together tells how many negatives are active with each positive: those before
    it; and how many positives with each negative: those after it. A distance's gradient is that count, or minus it;
    so the sum of count · distance, plus the margin for each active triplet, has the loss's value and gradient.
    """
    fixed = ops.stop_gradient(distances)
    keys = ops.where(positives, fixed + margin, fixed)  # shape (batch, batch); where the anchor comes does not matter
    # As integers there is room for one more bit, once they are moved to lie around 0, so that twice of them is no
    # overflow: at equal keys, when the loss is 0 and the triplet not active, a positive comes before a negative.
    keys, infinite = _as_integers(keys)
    keys = 2 * (keys - (infinite // 2 + 1)) + ops.cast(negatives, keys.dtype)
    order = ops.argsort(keys, axis=1)  # shape (batch, batch)

    kinds = ops.cast(positives, fixed.dtype) - ops.cast(negatives, fixed.dtype)
    kinds = ops.take_along_axis(kinds, order, axis=1)  # 1 a positive, -1 a negative, 0 the anchor
    is_positive, is_negative = ops.relu(kinds), ops.relu(-kinds)
    negatives_before = ops.cumsum(is_negative, axis=1)  # shape (batch, batch)
    positives_before = ops.cumsum(is_positive, axis=1)
    positives_after = positives_before[:, -1:] - positives_before
    active_negatives = is_positive * negatives_before  # of each positive, shape (batch, batch)
    counts = active_negatives - is_negative * positives_after  # shape (batch, batch)

    active = ops.sum(active_negatives, axis=1)  # shape (batch,)
    losses = ops.sum(counts * ops.take_along_axis(distances, order, axis=1), axis=1) + margin * active
    valid = positives_before[:, -1] * negatives_before[:, -1]  # shape (batch,)
    return losses, ops.sum(active), ops.sum(valid)


def _as_integers(values):
    """Floats from 0 to infinity as integers that sort alike (IEEE 754), and an integer above them all."""
    wide = _is_float64(values)
    column = ops.reshape(ops.stop_gradient(values), (-1, 1))  # since `view` must know the last axis
    integers = ops.reshape(ops.view(column, "int64" if wide else "int32"), ops.shape(values))
    return integers, 2**63 - 1 if wide else 2**31 - 1


def _by_positives(labels, distances, negatives, margin, mining):
    """Losses of the mined triplets, summed for each anchor, and the numbers of active and of mined ones.

    Every step of a loop takes one positive of each anchor: its class's next member, around the end. A distance's
    weight is its derivative: the slopes of the triplets in which it is the positive's, less those in which it is the
    negative's. The losses' values have no gradient; they get that of the weighted distances.
    """
    batch, fixed = ops.shape(labels)[0], ops.stop_gradient(distances)
    by_class = ops.argsort(labels)  # shape (batch,)
    ordered = ops.take(labels, by_class)
    start, end = (ops.cast(ops.searchsorted(ordered, labels, side), "int32") for side in ("left", "right"))
    place = ops.cast(ops.argsort(by_class), "int32")  # of each image in `by_class`, shape (batch,)
    number_of_positives = ops.where(ops.any(negatives, axis=1), end - start - 1, 0)  # shape (batch,)
    columns = ops.arange(batch, dtype="int32")
    if mining == "semi_hard":
        keys, infinite = _as_integers(distances)  # whose argmin is faster than that of floats
        of_negatives = ops.where(negatives, keys, infinite)  # shape (batch, batch)
        farthest = ops.argmax(ops.where(negatives, keys, -1), axis=1)[:, None]  # shape (batch, 1)

    def add_one_positive(step, sums):
        weights, summed, active_count, mined_count = sums
        positive = ops.take(by_class, start + (place - start + step) % (end - start))[:, None]  # shape (batch, 1)
        to_positive = ops.take_along_axis(fixed, positive, axis=1)  # shape (batch, 1)
        exists = (step <= number_of_positives)[:, None]  # shape (batch, 1)
        if mining == "semi_hard":
            than = ops.take_along_axis(keys, positive, axis=1)  # shape (batch, 1)
            farther = ops.where(of_negatives > than, of_negatives, infinite)  # shape (batch, batch)
            nearest = ops.argmin(farther, axis=1)[:, None]  # shape (batch, 1)
            found = ops.take_along_axis(farther, nearest, axis=1) < infinite
            negative = ops.where(found, nearest, ops.cast(farthest, nearest.dtype))
            mined, to_negative = exists, ops.take_along_axis(fixed, negative, axis=1)  # each of shape (batch, 1)
        else:
            mined, to_negative = ops.logical_and(negatives, exists), fixed  # each of shape (batch, batch)
        gap = to_positive - to_negative
        counted = ops.logical_and(mined, gap < 0) if mining == "all_semi_hard" else mined
        losses, slopes = (ops.where(counted, each, 0) for each in _loss_of_gap(gap, margin))
        active_count = active_count + _count(_is_active(slopes, margin))
        total = ops.sum(slopes, axis=1, keepdims=True)  # shape (batch, 1)
        if mining == "semi_hard":
            slopes = ops.where(columns == ops.cast(negative, "int32"), slopes, 0)  # shape (batch, batch)
        weights = weights + ops.where(columns == ops.cast(positive, "int32"), total, 0) - slopes
        return weights, summed + ops.sum(losses, axis=1), active_count, mined_count + _count(mined)

    nothing = ops.zeros_like(fixed)
    sums = (nothing, nothing[:, 0], ops.zeros((), "float32"), ops.zeros((), "float32"))
    sums = ops.fori_loop(1, ops.max(number_of_positives) + 1, add_one_positive, sums)
    weights, losses, active, mined = (ops.stop_gradient(each) for each in sums)
    slope = ops.sum(weights * distances, axis=1)  # shape (batch,)
    return losses + (slope - ops.stop_gradient(slope)), active, mined


def _branch_distances(anchor, positive, negative, distance):
    anchor, positive, negative = (_at_least_float32(each) for each in (anchor, positive, negative))
    if not anchor.shape == positive.shape == negative.shape or len(anchor.shape) != 2:
        raise ValueError(
            "Anchor, positive and negative must have the same shape, (batch, embedding_size). "
            f"Received: {anchor.shape}, {positive.shape}, {negative.shape}"
        )
    to_positive, to_negative = (ops.sum(ops.square(anchor - each), axis=-1) for each in (positive, negative))
    return _of_squared(to_positive, distance), _of_squared(to_negative, distance)  # each of shape (batch,)


def _count(mask):
    return ops.sum(ops.cast(mask, "float32"))  # float, since a large batch has more than 2**31 triplets


def _mean_where(mask, values):
    return ops.divide(ops.sum(ops.where(mask, values, 0)), ops.maximum(_count(mask), 1))


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
        raise ValueError(
            f"There must be one label for each of {embeddings.shape[0]} embeddings. Received: {labels.shape[0]}"
        )
    if "float" in keras.backend.standardize_dtype(labels.dtype):
        _check_whole(labels)
    if keras.backend.standardize_dtype(labels.dtype) == "bool":
        labels = ops.cast(labels, "int32")
    return ops.reshape(labels, (-1,)), embeddings


def _check_whole(labels):
    try:
        values = ops.convert_to_numpy(labels)
    except Exception:  # while a graph is traced there are no values yet
        return
    if (values != values.round()).any():
        raise ValueError(f"Labels must be whole numbers, one for each class. Received: {values}")


def _at_least_float32(embeddings):
    embeddings = ops.convert_to_tensor(embeddings)
    wide_enough = keras.backend.standardize_dtype(embeddings.dtype) in ("float32", "float64")
    return embeddings if wide_enough else ops.cast(embeddings, "float32")


def _check_dtype(dtype):
    if dtype not in ("float32", "float64"):
        raise ValueError(f"`dtype` must be float32 or float64, or labels are confused. Received: {dtype}")


def _checked_choices(margin, mining, distance, average):
    """The margin as `"soft"` or a float, and the average that `"auto"` stands for; ValueError for what there is not."""
    try:
        number = float(margin) if hasattr(margin, "__float__") else 0.0
    except (TypeError, OverflowError):  # an array of several numbers, a tensor without a value yet, 10**400
        number = 0.0
    soft = isinstance(margin, str) and margin == "soft"
    if not soft and not 0 < number < float("inf"):
        raise ValueError(f'`margin` must be a positive number or "soft". Received: {margin!r}')
    choices = (("mining", mining, MINING), ("distance", distance, DISTANCES), ("average", average, AVERAGES))
    for name, value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}. Received: {value!r}")
    if average == "auto":
        average = "active" if mining in ("batch_all", "all_semi_hard") and not soft else "all"
    if average == "active" and soft:
        raise ValueError("`average` must not be 'active' with the soft margin, which leaves no triplet without loss.")
    return "soft" if soft else number, average
