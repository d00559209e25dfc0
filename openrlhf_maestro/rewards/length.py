"""The ``length`` reward."""


def length_reward(n: float, l_min: float, l_max: float) -> float:
    """The ``length`` component [B]: 1 up to ``l_min`` tokens, linear to 0 at ``l_max``, 0 beyond.

    The paper gives the shape and not the two limits; in this project ``l_max`` is the data set's maximum completion
    length and ``l_min`` half of it. With ``l_min == l_max`` the reward is a step: 1 up to the limit, 0 beyond.

    Args:
        n: number of tokens in the response.
        l_min: number of tokens up to which the reward is 1.
        l_max: number of tokens from which the reward is 0.

    Raises:
        ValueError: unless ``0 <= n`` and ``0 <= l_min <= l_max``.
    """
    if not 0 <= l_min <= l_max:
        raise ValueError(f"length reward: l_min and l_max must satisfy 0 <= l_min <= l_max, got {l_min} and {l_max}")
    if n < 0:
        raise ValueError(f"length reward: a response cannot have {n} tokens")
    if n <= l_min:
        return 1.0
    if n >= l_max:
        return 0.0
    return (l_max - n) / (l_max - l_min)
