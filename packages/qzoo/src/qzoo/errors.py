"""What can be wrong with weights."""


class WeightsError(RuntimeError):
    """Weights are not there, not what the index says, or not safe to open: one sentence, a way out.

    A ``RuntimeError``, as timm itself raises one where a model has no weights.
    """
