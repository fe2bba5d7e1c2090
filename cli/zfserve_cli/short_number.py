"""Writes numbers short. Tables and pictures use it for activations, scores and what maps add."""


def short_number(value: float, decimals: int = 2, sign: str = "-") -> str:
    """Returns a number with some decimals. A number that they would round to nearly nothing has two significant digits.

    Args:
        value: the number.
        decimals: the number of decimals, at least 1.
        sign: "-" writes the sign of negative numbers only, and "+" writes that of positive ones too.
    """
    tiny = 0 < abs(value) < 10.0 ** (1 - decimals)
    return f"{value:{sign}.2g}" if tiny else f"{value:{sign}.{decimals}f}"
