"""The learning rate over a whole training."""

import keras


def warm_up_then_cosine(peak: float, warm_up: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Rises linearly from 0 to the peak, then falls to 0 along half a cosine (Loshchilov and Hutter 2017, equation 5).

    Args:
        peak: float, the highest learning rate.
        warm_up: float from 0 to below 1, the fraction of the steps in which it rises.
        steps: int, of the whole training.
    """
    rising = round(warm_up * steps)
    if rising == 0:
        return keras.optimizers.schedules.CosineDecay(peak, steps)
    return keras.optimizers.schedules.CosineDecay(0.0, max(steps - rising, 1), warmup_target=peak, warmup_steps=rising)
