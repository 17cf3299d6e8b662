"""Two triplet losses for Keras 3 on TensorFlow, JAX and PyTorch. The file imports only Keras: copy it where you like.

The triplet loss of FaceNet (Schroff et al. 2015, equation 2) requires that an anchor a is closer to a positive p, an
image of the same class, than to a negative n, an image of another class, by at least a margin:

    loss(a, p, n) = max(0, d(a, p) - d(a, n) + margin),  d(x, y) = |x - y|²

`InBatchTripletLoss` mines the triplets inside each labelled batch, in which several classes need several images each.
`MergeTripletLoss` takes triplets that you select beforehand. Both are passed to `model.compile`.

Both losses and their gradients are finite if the norms of all embeddings are below 1e12, unless a gradient is too large
for float16 embeddings. If an embedding contains NaN or infinity, the loss is NaN: no mask hides it. An anchor without a
positive or a negative forms no triplet. Without triplets, loss and gradient are 0. No tensor has three batch axes.
"""

import keras
from keras import ops

MINING = ("batch_all", "batch_hard", "semi_hard", "all_semi_hard")
DISTANCES = ("squared", "euclidean")
AVERAGES = ("auto", "active", "all", "sum")
STATISTICS = ("active_triplets", "positive_distance", "negative_distance")
ELEMENTS_AT_ONCE = 2**20  # of a matrix of distances, on a CPU: so few that they stay in its cache
# Counting takes one step for each positive of an anchor, sorting does not. As measured: on a GPU, sorting is always
# faster; on a CPU, only if an anchor has more positives than this; with JAX on a CPU, never.
SORTING_PAYS_ABOVE = {"tensorflow": 30, "torch": 20, "jax": float("inf")}


def in_batch_triplet_loss(
    labels, embeddings, margin: float | str = 0.3, mining="semi_hard", distance="squared", average="auto"
):
    """Triplet loss over triplets that are mined inside a batch.

    `mining` selects the triplets (a, p, n):

    - `"batch_all"`: every valid triplet (Hermans et al. 2017, "In Defense of the Triplet Loss", equation 6).
    - `"batch_hard"`: for each anchor, the farthest positive and the nearest negative (the same paper, equation 5).
    - `"semi_hard"`: for each pair (a, p), the negative with the smallest d(a, n) > d(a, p) (FaceNet, section 3.2). If
      no negative is farther, the farthest negative, as in TensorFlow Addons.
    - `"all_semi_hard"`: every valid triplet with d(a, p) < d(a, n) < d(a, p) + margin; `"soft"` sets no upper limit.

    `average` selects the loss of the batch: the mean over `"active"` triplets (with a positive loss) or `"all"` mined
    ones (for `"all_semi_hard"`, all valid ones), or the `"sum"` (FaceNet, equation 2). `"auto"` follows the papers:
    `"all"` for `"batch_hard"`, `"semi_hard"` and the soft margin, otherwise `"active"`.

    Args:
        labels: integers, shape `(batch,)` or `(batch, 1)`, at least one. `fit` casts them to float32, which merges some
            above 2**24, and JAX keeps 32 bits unless its 64-bit mode is on.
        embeddings: floats, shape `(batch, embedding_size)`. float16 and bfloat16 embeddings are cast to float32. On
            torch, Keras multiplies float64 matrices in float32.
        margin: positive float, in the unit of the distance; or `"soft"`: log(1 + exp(x)) replaces max(0, x + margin),
            where x = d(a, p) - d(a, n) (Hermans et al. 2017, section 2).
        distance: `"squared"` Euclidean, as in FaceNet (0 to 4 between unit vectors), or `"euclidean"`, with gradient 0
            at distance 0. Its square root amplifies rounding errors near 0, except with `"batch_hard"`.

    Returns:
        Losses of shape `(batch,)`, one for each anchor. They are scaled so that their mean is the selected average.

    Raises:
        ValueError: for other shapes or values, fractional labels outside graphs, or `"active"` with the soft margin.

    Example: the points 0 and 1 are one class, 2 and 4 another. Three triplets (a, p, n) have a positive loss:
    (1, 0, 2) has 1 - 1 + 0.5, (2, 4, 0) has 4 - 4 + 0.5, and (2, 4, 1) has 4 - 1 + 0.5.

        >>> labels, embeddings = [0, 0, 1, 1], [[0.0], [1.0], [2.0], [4.0]]
        >>> float(ops.mean(in_batch_triplet_loss(labels, embeddings, 0.5, "batch_all", average="sum")))
        4.5
    """
    _check_choice("mining", mining, MINING)
    margin, average = _checked_arguments(margin, distance, average, mining)
    losses, active_count, mined_count = _mined_losses(*_checked_batch(labels, embeddings), margin, mining, distance)
    return _scaled(losses, active_count, mined_count, average)


def merge_triplet_loss(anchor, positive, negative, margin: float | str = 0.3, distance="squared", average="all"):
    """Triplet loss of given triplets.

    Args:
        anchor, positive, negative: embeddings, each of shape `(batch, embedding_size)`.
        margin, distance, average: as in `in_batch_triplet_loss`; `"auto"` means `"all"`.

    Returns, raises: as `in_batch_triplet_loss`, with one loss for each triplet.

    Example: d(anchor, positive) - d(anchor, negative) + margin = 4 - 1 + 0.5.

        >>> float(ops.mean(merge_triplet_loss([[0.0]], [[2.0]], [[1.0]], margin=0.5)))
        3.5
    """
    margin, average = _checked_arguments(margin, distance, average)
    to_positive, to_negative = _triplet_distances(anchor, positive, negative, distance)
    losses, active = _losses(to_positive - to_negative, margin)  # each of shape (batch,)
    losses = ops.where(ops.isfinite(to_positive + to_negative), losses, float("nan"))
    return _scaled(losses, _count(active), _count(ops.ones_like(losses)), average)


class _TripletLoss(keras.losses.Loss):
    """What both losses share. Keep the default `reduction` of `keras.losses.Loss`, a mean."""

    def __init__(self, settings: dict, name: str, **kwargs):
        super().__init__(name=name, **kwargs)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"`dtype` must be float32 or float64, or labels could merge. Received: {self.dtype}")
        self.settings = {**settings, "margin": _checked_arguments(**settings)[0]}

    def metrics(self) -> list:
        """The metrics `active_triplets`, `positive_distance` and `negative_distance`, for `compile` or your own loop.

        They are the fraction of the mined triplets (for `"all_semi_hard"`, of all valid triplets) with a positive loss,
        or with the soft margin, with d(a, p) > d(a, n), and the mean distances of the pairs or of the given triplets.
        """
        return [TripletStatistic(self, name) for name in STATISTICS]

    def get_config(self) -> dict:
        return {**super().get_config(), "dtype": self.dtype, **self.settings}


@keras.saving.register_keras_serializable("triplet_loss")
class InBatchTripletLoss(_TripletLoss):
    """`in_batch_triplet_loss` for `compile`. `fit` needs integer labels of shape `(batch,)` or `(batch, 1)`.

    Example: the hardest triplets are (0, 1, 2), (1, 0, 2), (2, 4, 1) and (4, 2, 1); the losses 0, 0.5, 3.5 and 0.

        >>> loss = InBatchTripletLoss(margin=0.5, mining="batch_hard")
        >>> float(loss([0, 0, 1, 1], [[0.0], [1.0], [2.0], [4.0]]))
        1.0
    """

    def __init__(
        self, margin=0.3, mining="semi_hard", distance="squared", average="auto", name="in_batch_triplet_loss", **kwargs
    ):
        _check_choice("mining", mining, MINING)
        super().__init__({"margin": margin, "mining": mining, "distance": distance, "average": average}, name, **kwargs)

    def call(self, y_true, y_pred):
        return in_batch_triplet_loss(y_true, y_pred, **self.settings)

    def statistic(self, name: str, labels, embeddings) -> tuple:
        """One statistic of a batch, without the others, and its weight: 0 without such triplets or pairs, else 1."""
        labels, embeddings = _checked_batch(labels, embeddings)
        if name == "active_triplets":
            arguments = (self.settings[each] for each in ("margin", "mining", "distance"))
            _, active_count, mined_count = _mined_losses(labels, embeddings, *arguments)
            return active_count / ops.maximum(mined_count, 1), ops.cast(mined_count > 0, "float32")
        distances, *masks = _distances_and_masks(labels, embeddings, self.settings["distance"])
        mask = masks[name == "negative_distance"]
        mean = ops.sum(ops.where(mask, distances, 0)) / ops.cast(ops.maximum(_count(mask), 1), distances.dtype)
        return mean, ops.cast(ops.any(mask), "float32")


@keras.saving.register_keras_serializable("triplet_loss")
class MergeTripletLoss(_TripletLoss):
    """`merge_triplet_loss` for `compile`, on the merged embeddings of three branches.

    The model's output is `ops.stack([anchor, positive, negative], axis=1)`, of shape `(batch, 3, embedding_size)`. The
    loss ignores the targets that `fit` needs: pass the anchors' labels, or any other array of that length.

        >>> float(MergeTripletLoss(margin=0.5)([0], [[[0.0], [2.0], [1.0]]]))
        3.5
    """

    def __init__(self, margin=0.3, distance="squared", average="all", name="merge_triplet_loss", **kwargs):
        super().__init__({"margin": margin, "distance": distance, "average": average}, name, **kwargs)

    def call(self, y_true, y_pred):
        return merge_triplet_loss(*_unstacked(y_pred), **self.settings)

    def statistic(self, name: str, targets, merged) -> tuple:
        """One statistic of each triplet, shape `(batch,)`, and None: no weights."""
        to_positive, to_negative = _triplet_distances(*_unstacked(merged), self.settings["distance"])
        if name == "active_triplets":
            gap = to_positive - to_negative
            active = ops.cast(_losses(gap, self.settings["margin"])[1], "float32")
            return ops.where(ops.isfinite(gap), active, float("nan")), None
        return to_positive if name == "positive_distance" else to_negative, None


@keras.saving.register_keras_serializable("triplet_loss")
class TripletStatistic(keras.metrics.Mean):
    """A statistic as a metric: its mean over the batches with such triplets or pairs. It ignores sample weights.

    `loss.metrics()` makes the three of a loss. ValueError for a `statistic` that is not one of `STATISTICS`.

        >>> distance = TripletStatistic(MergeTripletLoss(), "positive_distance")
        >>> float(distance([0], [[[0.0], [2.0], [1.0]]]))
        4.0
    """

    def __init__(self, loss: _TripletLoss | dict, statistic: str, name: str | None = None, **kwargs):
        super().__init__(name=name or statistic, **kwargs)
        _check_choice("statistic", statistic, STATISTICS)
        self.loss = keras.saving.deserialize_keras_object(loss) if isinstance(loss, dict) else loss  # a dict if loaded
        self.statistic = statistic

    def update_state(self, y_true, y_pred, sample_weight=None):
        value, weight = self.loss.statistic(self.statistic, y_true, y_pred)
        return super().update_state(value, weight)

    def get_config(self) -> dict:
        return {**super().get_config(), "loss": keras.losses.serialize(self.loss), "statistic": self.statistic}


def squared_distances(embeddings):
    """Squared Euclidean distances, shape `(batch, batch)`, between embeddings of shape `(batch, embedding_size)`.

    None is negative; the diagonal is 0. Between unit vectors the error is about 5e-6 at most, even if a GPU multiplies
    in TF32. Distances below 2**22 between integer coordinates that differ by less than 2048 are exact.

        >>> float(squared_distances([[0.0], [3.0]])[0, 1])
        9.0
    """
    embeddings = _translated(_at_least_float32(embeddings))
    products = _dot_products(embeddings, embeddings)  # shape (batch, batch)
    norms = ops.diagonal(products)  # squared norms, shape (batch,); with the same rounding as the products
    return ops.relu(norms[:, None] - 2 * products + norms[None, :])


def _translated(embeddings):
    """Embeddings minus the shortest one: less cancellation far from the origin. A long outlier has no effect."""
    shortest = ops.argmin(ops.sum(ops.square(embeddings), axis=1))
    return embeddings - ops.stop_gradient(ops.take(embeddings, shortest, axis=0))


def _dot_products(left, right):
    """Dot products of the rows of both matrices, with float32 accuracy even in TF32 (but not their gradient).

    A GPU may multiply float32 matrices in TF32, which rounds each factor to 10 bits of mantissa: 1.2345678 becomes
    1.2343750, and the squared distances of unit vectors are wrong by about 1e-3. So each number is split into its
    leading 10 bits, which TF32 keeps exactly, and the rest: 1.2345678 = 1.2343750 + 0.0001928. Products with the small
    rest have small errors. A CPU multiplies in float32 anyway; without the split it is three times as fast.
    """
    if keras.backend.standardize_dtype(left.dtype) == "float64" or _on_cpu(left):
        return ops.matmul(left, ops.transpose(right))
    (left_leading, left_rest), (right_leading, right_rest) = _split(left), _split(right)
    factors = ops.concatenate([left_rest, left_leading], axis=1), ops.concatenate([right, right_rest], axis=1)
    return ops.matmul(left_leading, ops.transpose(right_leading)) + ops.matmul(factors[0], ops.transpose(factors[1]))


def _split(values):
    """The values with 10 bits of mantissa, with the gradient of the values, and the rest, without a gradient."""
    # A bit mask, because a compiler could simplify an arithmetic split (Veltkamp's) away.
    fixed = ops.stop_gradient(values)
    rest = fixed - ops.view(ops.bitwise_and(ops.view(fixed, "int32"), -(2**13)), "float32")
    return values - rest, rest


def _on_cpu(values):
    if keras.backend.backend() == "torch":
        return values.device.type == "cpu"
    return keras.distribution.list_devices()[0].startswith("cpu")


def _from_squared(squared, distance):
    """Squared distances unchanged, or their square roots, whose gradient is 0 at distance 0."""
    if distance == "squared":
        return squared
    is_zero = squared == 0
    return ops.where(is_zero, 0, ops.sqrt(ops.where(is_zero, 1, squared)))


def _distances_and_masks(labels, embeddings, distance):
    """Distances between all images, and the masks of anchor-positive and of anchor-negative pairs."""
    distances = _from_squared(squared_distances(embeddings), distance)  # shape (batch, batch), like both masks
    same = labels[:, None] == labels[None, :]
    others = ops.logical_not(ops.eye(ops.shape(labels)[0], dtype="bool"))
    return distances, ops.logical_and(same, others), ops.logical_not(same)


def _losses(gap, margin):
    """Losses for gap = d(a, p) - d(a, n), in any shape, and which are active: with the soft margin, if gap > 0."""
    if margin == "soft":
        return ops.softplus(gap), gap > 0
    return ops.relu(gap + margin), gap + margin > 0


def _scaled(losses, active_count, mined_count, average):
    """Losses scaled so that their mean over the batch is the selected average."""
    divisor = ops.cast({"active": active_count, "all": mined_count, "sum": 1.0}[average], losses.dtype)
    return losses * (ops.sum(ops.ones_like(losses)) / ops.maximum(divisor, 1))


def _mined_losses(labels, embeddings, margin, mining, distance):
    """Losses summed for each anchor, shape `(batch,)`, and the numbers of active and of mined triplets."""
    mine = (_batch_all, _batch_hard, _semi_hard, _all_semi_hard)[MINING.index(mining)]
    losses, active_count, mined_count = mine(labels, embeddings, margin, distance)
    finite = ops.isfinite(ops.sum(ops.stop_gradient(embeddings)))  # otherwise a mask could hide NaN or infinity
    return ops.where(finite, losses, float("nan")), ops.where(finite, active_count, float("nan")), mined_count


def _batch_hard(labels, embeddings, margin, distance):
    """Mines each anchor's farthest positive and nearest negative."""
    # Dot products only select the triplets. The losses use differences, which are accurate for near duplicates too.
    translated = _translated(ops.stop_gradient(embeddings))
    norms = ops.sum(ops.square(translated), axis=1)  # squared norms, shape (batch,)
    twice, indices = 2 * translated, ops.arange(ops.shape(labels)[0], dtype="int32")

    def hardest(anchor_embeddings, anchor_norms, anchor_labels, anchors):  # the last three of shape (anchors,)
        """Indices of each anchor's farthest positive and nearest negative; the anchor's own, if there is none."""
        products = _dot_products(anchor_embeddings, twice)  # shape (anchors, batch)
        distances = ops.relu(anchor_norms[:, None] - products + norms)
        keys, largest = _sortable_integers(distances)
        keys = ops.where(anchor_labels[:, None] == labels, keys, keys - largest)  # below -1 for negatives
        keys = ops.where(anchors[:, None] == indices, -1, keys)  # the anchor's own is between both
        return ops.cast(ops.stack([ops.argmax(keys, axis=1), ops.argmin(keys, axis=1)], axis=1), "int32")

    extremes = _in_blocks(hardest, (translated, norms, labels, indices), 2, "int32")  # shape (batch, 2)
    positive, negative = extremes[:, 0], extremes[:, 1]
    mined = ops.logical_and(positive != indices, ops.take(labels, negative) != labels)  # shape (batch,)
    positive, negative = ops.take(embeddings, positive, axis=0), ops.take(embeddings, negative, axis=0)
    to_positive, to_negative = _triplet_distances(embeddings, positive, negative, distance)
    return _chosen_losses((to_positive - to_negative)[:, None], mined[:, None], margin)


def _semi_hard(labels, embeddings, margin, distance):
    """Mines, for each anchor-positive pair, the nearest negative that is farther, or else the farthest negative."""
    distances, positives, negatives = _distances_and_masks(labels, embeddings, distance)
    keys, largest = _sortable_integers(distances)
    negative_keys = ops.where(negatives, keys, largest)
    farthest = ops.argmax(ops.where(negatives, keys, -1), axis=1)[:, None]  # shape (batch, 1)

    def choose_nearest(chosen, positive_key, negative_keys):
        # At least 0 for farther negatives, below 0 for the others, which an inverted sign bit puts last. With the
        # positive at 0.5 and negatives at 0.3, 0.5 and 0.9, the smallest is now that at 0.9.
        farther_by = negative_keys - positive_key - 1  # shape (anchors, batch)
        return chosen, ops.cast(ops.argmin(ops.bitwise_xor(farther_by, -largest - 1), axis=1), keys.dtype)

    chosen = _over_positives(choose_nearest, labels, keys, negative_keys, 0)  # of each pair, (batch, batch)
    is_negative = ops.take_along_axis(negative_keys, chosen, axis=1) < largest  # otherwise no negative is farther
    chosen = ops.where(is_negative, chosen, ops.cast(farthest, keys.dtype))
    mined = ops.logical_and(positives, ops.any(negatives, axis=1, keepdims=True))
    return _chosen_losses(distances - ops.take_along_axis(distances, chosen, axis=1), mined, margin)


def _chosen_losses(gap, mined, margin):
    """Losses summed for each anchor, and the numbers of triplets, from one row of gaps for each anchor."""
    losses, active = _losses(gap, margin)
    losses = ops.sum(ops.where(mined, losses, 0), axis=1)  # shape (batch,)
    return losses, _count(ops.logical_and(mined, active)), _count(mined)


def _batch_all(labels, embeddings, margin, distance, farther_only=False):
    """Mines all valid triplets; `farther_only` leaves out those whose negative is not farther than the positive."""
    distances, positives, negatives = _distances_and_masks(labels, embeddings, distance)
    positive_count, negative_count = _count(positives, axis=1), _count(negatives, axis=1)  # each of shape (batch,)
    mined_count = ops.sum(positive_count * negative_count)
    if margin == "soft":
        return *_soft_losses(labels, distances, negatives, farther_only), mined_count

    def count():
        return _summed(lambda p, n: p + margin > n, labels, distances, negatives, farther_only)

    def sort():
        return _counted_by_sorting(distances, positives, negatives, margin)

    limit = SORTING_PAYS_ABOVE[keras.backend.backend()] if _on_cpu(distances) else 0
    may_sort = not farther_only and limit < float("inf")
    weights = ops.cond(ops.max(positive_count) > limit, sort, count) if may_sort else count()
    return *_from_weights(weights, distances, margin), mined_count


def _all_semi_hard(labels, embeddings, margin, distance):
    """Mines all valid triplets whose negative is farther than the positive. The others count as mined, with loss 0."""
    return _batch_all(labels, embeddings, margin, distance, farther_only=True)


def _from_weights(weights, distances, margin):
    """Losses summed for each anchor, and the number of active triplets.

    The weight of a distance is the loss's derivative with respect to it: the number of its active triplets for d(a, p),
    minus that number for d(a, n). With constant weights, the sum of weight · distance has the gradient of the loss, and
    that sum plus margin · active triplets is the loss.

    Example: distances 0.2 and 0.5 to positives, 0.3, 0.5 and 0.9 to negatives, margin 0.3. The positive at 0.2 forms an
    active triplet with the negative at 0.3 (0.2 + 0.3 is not above 0.5), the one at 0.5 with those at 0.3 and 0.5. So
    the weights are 1 and 2, and -2, -1 and 0, and the loss is 0.2 + 2 · 0.5 - 2 · 0.3 - 0.5 + 3 · 0.3 = 1.0.
    """
    weights = ops.stop_gradient(weights)
    active = ops.sum(ops.relu(weights), axis=1)  # triplets of each anchor, shape (batch,)
    return ops.sum(weights * distances, axis=1) + margin * active, ops.cast(ops.sum(active), "float32")


def _soft_losses(labels, distances, negatives, farther_only):
    """The same for the soft margin, whose derivatives are no counts. Active triplets have d(a, n) < d(a, p)."""
    losses, derivatives, active = (
        _summed(function, labels, distances, negatives, farther_only)  # shape (batch, batch)
        for function in (lambda p, n: ops.softplus(p - n), lambda p, n: ops.sigmoid(p - n), ops.greater)
    )
    weighted = ops.sum(derivatives * distances, axis=1)
    losses = ops.sum(ops.relu(losses), axis=1) + (weighted - ops.stop_gradient(weighted))  # adds 0, and the gradient
    return losses, ops.cast(ops.sum(ops.relu(active)), "float32")


def _summed(function, labels, distances, negatives, farther_only):
    """Sums of function(d(a, p), d(a, n)) >= 0 over all valid triplets: at d(a, p) the sum, at d(a, n) minus the sum."""
    distances = ops.stop_gradient(distances)
    # Infinite entries add 0: d(a, n) = ∞ if n is no negative, d(a, p) = -∞ if a has no further positive.
    to_negatives = ops.where(negatives, distances, float("inf"))

    def add(sums, to_positive, to_negative):
        values = ops.cast(function(to_positive, to_negative), distances.dtype)  # shape (anchors, batch)
        if farther_only:
            values = values * ops.cast(to_positive < to_negative, distances.dtype)
        return sums - values, ops.sum(values, axis=1)

    return ops.stop_gradient(_over_positives(add, labels, distances, to_negatives, float("-inf")))


def _over_positives(function, labels, to_positives, to_negatives, missing):
    """A matrix of shape `(batch, batch)`, filled in a loop that takes one positive of each anchor at a time.

    `function(rows, to_positive, to_negative)` gets some anchors' rows of the matrix so far, first zeros, their entry in
    `to_positives` for one positive each, shape `(anchors, 1)`, and their rows of `to_negatives`. It returns the new
    rows, and the entries of the positives. An anchor without a further positive is its own, with the entry `missing`.
    """
    batch = ops.shape(labels)[0]
    by_class = ops.cast(ops.argsort(labels), "int32")  # shape (batch,)
    sorted_labels = ops.take(labels, by_class)
    start, end = (ops.cast(ops.searchsorted(sorted_labels, labels, side), "int32") for side in ("left", "right"))
    position = ops.cast(ops.argsort(by_class), "int32")  # of each image in `by_class`, shape (batch,)

    def fill_rows(to_positive, to_negative, anchors, first, size, position):
        numbers = ops.arange(ops.shape(anchors)[0], dtype="int32")[:, None]

        def add(step, rows):
            next_in_class = ops.take(by_class, first + (position - first + step) % size)
            positive = ops.where(step < size, next_in_class, anchors)[:, None]  # shape (anchors, 1)
            value = ops.where((step < size)[:, None], ops.take_along_axis(to_positive, positive, axis=1), missing)
            rows, entries = function(rows, value, to_negative)
            return ops.scatter_update(rows, ops.concatenate([numbers, positive], axis=1), entries)

        return ops.fori_loop(1, ops.max(size), add, ops.zeros_like(to_negative))

    arrays = (to_positives, to_negatives, ops.arange(batch, dtype="int32"), start, end - start, position)
    return _in_blocks(fill_rows, arrays, batch, to_negatives.dtype)


def _in_blocks(function, arrays, width, dtype):
    """`function(*arrays)` of shape `(batch, width)`, in blocks of rows that fit a CPU's cache; larger ones on a GPU."""
    batch = ops.shape(arrays[0])[0]
    elements = ELEMENTS_AT_ONCE if _on_cpu(arrays[0]) else 64 * ELEMENTS_AT_ONCE
    minimum, maximum = (min, max) if isinstance(batch, int) else (ops.minimum, ops.maximum)
    size = minimum(batch, maximum(1, elements // batch))
    if isinstance(batch, int) and size == batch:
        return function(*arrays)

    def replace(step, result):
        first = ops.minimum(step * size, batch - size)  # the last block ends at the end of the batch
        blocks = [ops.slice(each, (first, 0)[: len(each.shape)], (size, *ops.shape(each)[1:])) for each in arrays]
        return ops.slice_update(result, (first, 0), function(*blocks))

    return ops.fori_loop(0, (batch + size - 1) // size, replace, ops.zeros((batch, width), dtype))


def _counted_by_sorting(distances, positives, negatives, margin):
    """The weights of `_from_weights`, in time O(batch² log batch) however many positives there are.

    Each row sorts d(a, p) + margin and d(a, n) together. The active triplets of a positive are those with a negative
    before it, and those of a negative are those with a positive after it. The example of `_from_weights` becomes
    0 (the anchor), 0.3 (negative), 0.5 (positive), 0.5 (negative), 0.8 (positive) and 0.9 (negative).
    """
    distances = ops.stop_gradient(distances)
    keys, largest = _sortable_integers(ops.where(positives, distances + margin, distances))  # shape (batch, batch)
    # Of equal keys, like both 0.5 above, the positive must be first: on the margin, a triplet is not active. A lowest
    # bit that is added to the integer keys, 1 for negatives, ensures it. The subtraction avoids an overflow.
    keys = 2 * (keys - (largest // 2 + 1)) + ops.cast(negatives, keys.dtype)
    order = ops.argsort(keys, axis=1)  # shape (batch, batch)
    is_negative = ops.take_along_axis(ops.cast(negatives, distances.dtype), order, axis=1)
    is_positive = 1 - is_negative  # and the anchor itself, which is always first: its distance is 0
    positives_before, negatives_before = ops.cumsum(is_positive, axis=1), ops.cumsum(is_negative, axis=1)
    positives_after = positives_before[:, -1:] - positives_before
    weights = is_positive * negatives_before - is_negative * positives_after
    return ops.take_along_axis(weights, ops.argsort(order, axis=1), axis=1)  # at the places of the distances


def _sortable_integers(values):
    """Integers that sort like the given floats from 0 to infinity, and an integer above all of them.

    The bits of such floats (IEEE 754), read as integers, have the floats' order: 0.2, 0.3, 0.5, 0.5 and 0.9 become
    1045220557, 1050253722, 1056964608, 1056964608 and 1063675494. Backends find the smallest of integers faster than
    that of floats, a subtraction puts some below all others, and the sign bit is free for use.
    """
    wide = keras.backend.standardize_dtype(values.dtype) == "float64"
    column = ops.reshape(ops.stop_gradient(values), (-1, 1))  # `view` needs a last axis of known size
    integers = ops.reshape(ops.view(column, "int64" if wide else "int32"), ops.shape(values))
    return integers, 2**63 - 1 if wide else 2**31 - 1


def _triplet_distances(anchor, positive, negative, distance):
    anchor, positive, negative = (_at_least_float32(each) for each in (anchor, positive, negative))
    if not anchor.shape == positive.shape == negative.shape or len(anchor.shape) != 2:
        shapes = f"{anchor.shape}, {positive.shape}, {negative.shape}"
        raise ValueError(f"Anchor, positive and negative must have the same shape (batch, embedding_size): {shapes}")
    return [_from_squared(ops.sum(ops.square(anchor - each), axis=1), distance) for each in (positive, negative)]


def _count(mask, axis=None):
    return ops.sum(ops.cast(mask, "float32"), axis=axis)  # float: a large batch has more than 2**31 triplets


def _unstacked(merged):
    merged = ops.convert_to_tensor(merged)
    if len(merged.shape) != 3 or merged.shape[1] != 3:
        raise ValueError(f"Merged embeddings must have shape (batch, 3, embedding_size). Received: {merged.shape}")
    return ops.unstack(merged, 3, axis=1)


def _checked_batch(labels, embeddings):
    labels, embeddings = ops.convert_to_tensor(labels), _at_least_float32(embeddings)
    if len(embeddings.shape) != 2:
        raise ValueError(f"Embeddings must have shape (batch, embedding_size). Received: {embeddings.shape}")
    if len(labels.shape) not in (1, 2) or (len(labels.shape) == 2 and labels.shape[1] != 1):
        hint = "Labels must be integers of shape (batch,) or (batch, 1); take the argmax of one-hot labels."
        raise ValueError(f"{hint} Received shape: {labels.shape}")
    if None not in (counts := (labels.shape[0], embeddings.shape[0])) and counts[0] != counts[1]:
        raise ValueError(f"There must be one label for each embedding: {counts[0]} labels, {counts[1]} embeddings")
    dtype = keras.backend.standardize_dtype(labels.dtype)
    try:
        fractional = "float" in dtype and (ops.convert_to_numpy(labels) % 1 != 0).any()
    except Exception:  # in graph mode there are no values yet; each backend raises its own type
        fractional = False
    if fractional:
        raise ValueError(f"Labels must be integers, one for each class. Received: {labels}")
    return ops.reshape(ops.cast(labels, "int32") if dtype == "bool" else labels, (-1,)), embeddings


def _at_least_float32(values):
    values = ops.convert_to_tensor(values)
    return ops.cast(values, "float64" if keras.backend.standardize_dtype(values.dtype) == "float64" else "float32")


def _checked_arguments(margin, distance, average, mining=None):
    """The margin as `"soft"` or a float, and the average that `"auto"` selects; `mining` is None for given triplets."""
    try:
        number = float(margin) if hasattr(margin, "__float__") else 0.0
    except (TypeError, OverflowError):  # such as an array of several numbers, a tensor without a value yet, or 10**400
        number = 0.0
    soft = isinstance(margin, str) and margin == "soft"
    if not soft and not 0 < number < float("inf"):
        raise ValueError(f'`margin` must be a positive number or "soft". Received: {margin!r}')
    _check_choice("distance", distance, DISTANCES)
    _check_choice("average", average, AVERAGES)
    if average == "auto":
        average = "active" if mining in ("batch_all", "all_semi_hard") and not soft else "all"
    if average == "active" and soft:
        raise ValueError("`average` must not be 'active' with the soft margin: every triplet has a positive loss.")
    return "soft" if soft else number, average


def _check_choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}. Received: {value!r}")
